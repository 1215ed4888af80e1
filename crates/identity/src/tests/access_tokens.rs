//! Tokens that programs bring: W8, C29's neighbours.

use std::sync::Arc;

use postern_common::config::ProviderKind;
use serde_json::{Value, json};

use super::idp::*;
use crate::{ProviderError, VerifiedToken, VerifyToken};

fn audiences() -> Vec<String> {
    vec!["api://postern".into()]
}

async fn verify(idp: &Idp, token: &str) -> Result<VerifiedToken, ProviderError> {
    let audiences = audiences();
    idp.provider()
        .verify_access_token(VerifyToken {
            token,
            audiences: &audiences,
            now: now(),
        })
        .await
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "api://postern", "sub": "ann", "iat": NOW, "exp": NOW + 60})
}

#[tokio::test]
async fn a_signed_access_token() {
    let idp = Idp::new();
    let token = idp.token(&claims());
    let verified = verify(&idp, &token).await.unwrap();
    assert_eq!(verified.subject, "ann");
    assert_eq!(
        verified.claims["email"], "ann@corp.test",
        "user info is added"
    );
    assert_eq!(verified.expires_at.unwrap().as_second(), NOW + 60);

    // A token for an interface of its own often may not ask for user info.
    idp.set(|s| s.instead.insert("/userinfo", (403, String::new())));
    assert_eq!(verify(&idp, &token).await.unwrap().subject, "ann");
}

#[tokio::test]
async fn w8_tokens_made_for_others() {
    let idp = Idp::new();
    for (name, value) in [
        ("aud", json!("api://other")),
        ("aud", json!([])),
        ("iss", json!("https://other.test")),
        ("exp", json!(NOW - 100)),
        ("sub", json!(null)),
    ] {
        let mut claims = claims();
        claims[name] = value;
        let token = idp.token(&claims);
        assert!(
            matches!(verify(&idp, &token).await, Err(ProviderError::Invalid(_))),
            "{claims}"
        );
    }
    let mut forged = claims();
    forged["sub"] = json!("root");
    idp.set(|s| s.signing = Signing::Key(1));
    let token = idp.token(&forged);
    assert!(verify(&idp, &token).await.is_err());
}

#[tokio::test]
async fn w8_without_audiences_no_token_does() {
    let idp = Idp::new();
    let token = idp.token(&claims());
    let ask = VerifyToken {
        token: &token,
        audiences: &[],
        now: now(),
    };
    let error = idp.provider().verify_access_token(ask).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("idp_access_token_allowed_audiences"),
        "{error}"
    );
}

#[tokio::test]
async fn opaque_tokens_by_introspection() {
    let idp = Idp::new();
    idp.set(|s| {
        s.discovery =
            Arc::new(|d| d["introspection_endpoint"] = json!(format!("{ISSUER}/introspect")));
    });
    let answer = |body: Value| {
        idp.set(|s| s.instead.insert("/introspect", (200, body.to_string())));
    };
    answer(json!({"active": true, "sub": "ann", "aud": ["x", "api://postern"], "exp": NOW + 60}));
    assert_eq!(verify(&idp, "opaque").await.unwrap().subject, "ann");
    answer(json!({"active": false}));
    assert!(verify(&idp, "opaque").await.unwrap_err().is_refusal());
    answer(json!({"active": "true", "sub": "ann", "aud": "api://postern"}));
    assert!(verify(&idp, "opaque").await.unwrap_err().is_refusal());
    answer(json!({"active": true, "sub": "ann", "aud": "api://postern", "exp": NOW}));
    assert!(verify(&idp, "opaque").await.unwrap_err().is_refusal());
    answer(json!({"active": true, "sub": "ann", "aud": "other"}));
    assert!(matches!(
        verify(&idp, "opaque").await,
        Err(ProviderError::Invalid(_))
    ));
    idp.set(|s| s.instead.insert("/introspect", (503, String::new())));
    assert!(matches!(
        verify(&idp, "opaque").await,
        Err(ProviderError::Unreachable { .. })
    ));
}

fn introspecting(idp: &Idp) {
    idp.set(|s| {
        s.discovery = Arc::new(|d| {
            d["introspection_endpoint"] = json!(format!("{ISSUER}/introspect"));
            d["token_endpoint_auth_methods_supported"] =
                json!(["client_secret_basic", "client_secret_post"]);
        });
        let answer = json!({"active": true, "sub": "ann", "aud": "api://postern", "exp": NOW + 60});
        s.instead.insert("/introspect", (200, answer.to_string()));
    });
}

#[tokio::test]
async fn an_introspected_token_gets_what_user_info_knows() {
    let idp = Idp::new();
    introspecting(&idp);
    let verified = verify(&idp, "opaque").await.unwrap();
    assert_eq!(verified.claims["email"], "ann@corp.test");
    assert_eq!(verified.claims["groups"], json!(["eng", "ops"]));

    for status in [400, 401, 403, 404] {
        idp.set(|s| s.instead.insert("/userinfo", (status, String::new())));
        let verified = verify(&idp, "opaque").await.unwrap();
        assert!(!verified.claims.contains_key("email"), "{status}");
    }
    idp.set(|s| s.instead.insert("/userinfo", (503, String::new())));
    assert!(matches!(
        verify(&idp, "opaque").await,
        Err(ProviderError::Unreachable { .. })
    ));
    idp.set(|s| {
        s.instead.remove("/userinfo");
        s.user_info = Arc::new(|i| i["sub"] = json!("eve"));
    });
    assert!(matches!(
        verify(&idp, "opaque").await,
        Err(ProviderError::Invalid(_))
    ));
}

/// The session of a token is held against its audience at every request, so it must have one.
#[tokio::test]
async fn the_client_is_the_audience_where_none_is_named() {
    let client = |mut body: Value, audience: Value| {
        body["client_id"] = json!("api://postern");
        if !audience.is_null() {
            body["aud"] = audience;
        }
        body
    };
    for audience in [json!(null), json!([])] {
        let idp = Idp::new();
        introspecting(&idp);
        let body = client(json!({"active": true, "sub": "ann"}), audience.clone());
        idp.set(|s| s.instead.insert("/introspect", (200, body.to_string())));
        let verified = verify(&idp, "opaque").await.unwrap();
        assert_eq!(verified.audience, audiences(), "introspected, {audience}");

        let idp = Idp::new();
        let given = audience.clone();
        idp.set(|s| {
            s.user_info = Arc::new(move |info| *info = client(info.clone(), given.clone()));
        });
        let verified = verify(&idp, "opaque").await.unwrap();
        assert_eq!(verified.audience, audiences(), "by user info, {audience}");

        let idp = Idp::new();
        let mut signed = claims();
        signed.as_object_mut().unwrap().remove("aud");
        let token = idp.token(&client(signed, audience.clone()));
        let verified = verify(&idp, &token).await.unwrap();
        assert_eq!(verified.audience, audiences(), "signed, {audience}");
    }
}

/// Signed user info is made for our client and lasts as long as it likes; the token is and does not.
#[tokio::test]
async fn user_info_changes_nothing_about_the_token() {
    let idp = Idp::new();
    idp.set(|s| {
        s.user_info = Arc::new(|info| {
            info["aud"] = json!(["client"]);
            info["exp"] = json!(NOW + 9000);
            info["iat"] = json!(NOW + 1);
        });
    });
    let token = idp.token(&claims());
    let signed = verify(&idp, &token).await.unwrap();
    introspecting(&idp);
    for verified in [signed, verify(&idp, "opaque").await.unwrap()] {
        assert_eq!(verified.audience, audiences());
        assert_eq!(verified.expires_at.unwrap().as_second(), NOW + 60);
        assert_eq!(verified.claims["email"], "ann@corp.test");
    }
}

/// Providers differ in how they say no at user info. What they say there is about the token.
#[tokio::test]
async fn user_info_that_says_no_refuses_an_opaque_token() {
    let idp = Idp::new();
    for status in [400, 401, 403] {
        idp.set(|s| s.instead.insert("/userinfo", (status, String::new())));
        let error = verify(&idp, "opaque").await.unwrap_err();
        assert!(error.is_refusal(), "{status}: {error}");
    }
    for status in [404, 302, 500] {
        idp.set(|s| s.instead.insert("/userinfo", (status, ISSUER.into())));
        let error = verify(&idp, "opaque").await.unwrap_err();
        let nobody_knows = matches!(
            error,
            ProviderError::Unreachable { .. } | ProviderError::Misconfigured(_)
        );
        assert!(nobody_knows, "{status}: {error}");
    }
}

/// W11: a client that is registered for the body is known at introspection, too.
#[tokio::test]
async fn w11_introspection_finds_the_way_to_prove_the_client() {
    let idp = Idp::new();
    introspecting(&idp);
    idp.set(|s| s.accepts_basic = false);
    let provider = idp.provider();
    let audiences = audiences();
    let ask = VerifyToken {
        token: "opaque",
        audiences: &audiences,
        now: now(),
    };
    for _ in 0..2 {
        assert_eq!(
            provider.verify_access_token(ask).await.unwrap().subject,
            "ann"
        );
    }
    let (form, _) = idp.last_form();
    assert_eq!(form["client_secret"], "secret");
    assert_eq!(idp.asked("/introspect"), 3, "what worked is remembered");
}

/// 7.4: the issuer of Azure's access tokens of version 1, the tenant's own only.
#[tokio::test]
async fn azure_access_tokens_of_version_1() {
    const TENANT: &str = "72f988bf-86f1-41af-91ab-2d7cd011db47";
    let other = TENANT.replace('7', "8");
    let issuer = format!("https://login.microsoftonline.com/{TENANT}/v2.0");
    let idp = Idp::new();
    let named = issuer.clone();
    idp.set(|s| {
        s.discovery = Arc::new(move |d| d["issuer"] = json!(named));
        s.instead.insert("/userinfo", (401, String::new()));
    });
    let providers = crate::Providers::new(
        [Idp::settings(ProviderKind::Azure, &issuer)],
        &idp.client(),
        None,
    );
    let azure = providers.global().unwrap();
    let audiences = audiences();
    let verified = async |iss: String, tid: &str, identity: bool| {
        let mut claims = claims();
        claims["iss"] = json!(iss);
        claims["tid"] = json!(tid);
        if identity {
            claims["aud"] = json!("client");
        }
        let token = idp.token(&claims);
        let ask = VerifyToken {
            token: &token,
            audiences: &audiences,
            now: now(),
        };
        let outcome = if identity {
            azure.verify_identity_token(ask).await
        } else {
            azure.verify_access_token(ask).await
        };
        outcome.is_ok()
    };
    let v1 = |tenant: &str| format!("https://sts.windows.net/{tenant}/");
    assert!(verified(issuer.clone(), TENANT, false).await, "version 2");
    assert!(verified(v1(TENANT), TENANT, false).await, "version 1");
    assert!(!verified(v1(&other), &other, false).await, "another tenant");
    assert!(!verified(v1(&other), TENANT, false).await, "two tenants");
    assert!(verified(issuer, TENANT, true).await);
    assert!(!verified(v1(TENANT), TENANT, true).await, "ID tokens");
}

#[tokio::test]
async fn opaque_tokens_by_user_info_need_its_audience() {
    let idp = Idp::new();
    assert!(matches!(
        verify(&idp, "opaque").await,
        Err(ProviderError::Invalid(_))
    ));
    idp.set(|s| s.user_info = Arc::new(|i| i["aud"] = json!("api://postern")));
    assert_eq!(verify(&idp, "opaque").await.unwrap().subject, "ann");
}

#[tokio::test]
async fn identity_tokens_are_for_this_client() {
    let idp = Idp::new();
    let provider = idp.provider();
    let mut claims = claims();
    claims["aud"] = json!("client");
    let token = idp.token(&claims);
    let verified = provider
        .verify_identity_token(VerifyToken {
            token: &token,
            audiences: &[],
            now: now(),
        })
        .await
        .unwrap();
    assert_eq!(
        (verified.subject.as_str(), verified.audience.len()),
        ("ann", 1)
    );

    claims["aud"] = json!("api://postern");
    let token = idp.token(&claims);
    let audiences = audiences();
    let ask = VerifyToken {
        token: &token,
        audiences: &audiences,
        now: now(),
    };
    assert!(provider.verify_identity_token(ask).await.is_err());
}
