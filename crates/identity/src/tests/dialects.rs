//! What single providers do differently.

use std::sync::Arc;

use http::Response;
use serde_json::json;
use url::Url;

use postern_common::config::ProviderKind;

use super::idp::*;
use crate::{
    EndSession, HttpClient, ProviderError, ProviderSettings, Providers, Refresh, RegistryError,
    UserInfoRequest, VerifyToken,
};

fn with(kind: ProviderKind, url: Option<&str>) -> ProviderSettings {
    ProviderSettings {
        url: url.map(str::to_owned),
        ..Idp::settings(kind, "")
    }
}

#[tokio::test]
async fn names_that_are_no_providers() {
    let idp = Idp::new();
    let build = |settings| {
        Providers::new([settings], &idp.client(), None)
            .global()
            .map(|_| ())
            .unwrap_err()
    };
    for kind in [
        ProviderKind::Oidc,
        ProviderKind::Okta,
        ProviderKind::Auth0,
        ProviderKind::Ping,
        ProviderKind::Cognito,
    ] {
        let error = build(with(kind, None)).to_string();
        assert!(error.contains("needs idp_provider_url"), "{error}");
    }
    for kind in [
        ProviderKind::Google,
        ProviderKind::Azure,
        ProviderKind::Gitlab,
        ProviderKind::OneLogin,
        ProviderKind::Github,
        ProviderKind::Apple,
    ] {
        assert!(
            Providers::new([with(kind, None)], &idp.client(), None)
                .global()
                .is_ok(),
            "{}",
            kind.name()
        );
    }
    assert!(matches!(
        build(with(ProviderKind::Oidc, Some("idp.corp.test"))),
        RegistryError::Unusable(_)
    ));
    assert!(matches!(
        build(with(ProviderKind::Oidc, Some("file:///x"))),
        RegistryError::Unusable(_)
    ));
    let empty = Providers::default();
    assert_eq!(empty.global().unwrap_err(), RegistryError::NotConfigured);
    let one = Providers::new(
        [with(ProviderKind::Oidc, Some(ISSUER))],
        &idp.client(),
        None,
    );
    assert_eq!(
        one.get("other").unwrap_err(),
        RegistryError::Unknown("other".into())
    );
    assert_eq!(one.problems().count(), 0);
}

#[tokio::test]
async fn default_scopes_and_parameters() {
    for (kind, scope, params) in [
        (
            ProviderKind::Google,
            "openid profile email",
            &[
                ("prompt", "select_account consent"),
                ("access_type", "offline"),
            ][..],
        ),
        (
            ProviderKind::Azure,
            "openid profile email offline_access",
            &[("prompt", "select_account")],
        ),
        (ProviderKind::Gitlab, "openid profile email", &[]),
        (ProviderKind::Cognito, "openid email profile", &[]),
        (
            ProviderKind::OneLogin,
            "openid profile email groups offline_access",
            &[],
        ),
        (
            ProviderKind::Apple,
            "name email",
            &[("response_mode", "form_post")],
        ),
        (
            ProviderKind::Okta,
            "openid profile email offline_access",
            &[],
        ),
    ] {
        let provider = Idp::new().provider_of(kind);
        let (_, query) = authorization_query(&*provider).await;
        assert_eq!(query["scope"], scope, "{}", kind.name());
        for (name, value) in params {
            assert_eq!(query[*name], *value, "{}", kind.name());
        }
        assert_eq!(
            provider.capabilities().form_post,
            kind == ProviderKind::Apple
        );
    }
}

#[tokio::test]
async fn configured_scopes_and_parameters() {
    let configured = |kind: ProviderKind| ProviderSettings {
        scopes: vec!["openid".into(), "groups".into()],
        request_params: vec![
            ("prompt".into(), "login".into()),
            ("nonce".into(), "mine".into()),
            ("code_challenge".into(), "mine".into()),
        ],
        ..Idp::settings(kind, ISSUER)
    };
    let idp = Idp::new();
    let query = async |kind| {
        let provider = Providers::new([configured(kind)], &idp.client(), None)
            .global()
            .unwrap();
        authorization_query(&*provider).await.1
    };
    let google = query(ProviderKind::Google).await;
    assert_eq!(google["scope"], "openid groups");
    assert_eq!(google["prompt"], "login");
    assert!(
        !google.contains_key("access_type"),
        "they replace the defaults as a whole"
    );
    assert_eq!(
        (google["nonce"].as_str(), google["code_challenge"].as_str()),
        (NONCE, "challenge")
    );
    assert_eq!(
        query(ProviderKind::Apple).await["response_mode"],
        "form_post",
        "apple's are added to the defaults"
    );
    assert_eq!(
        query(ProviderKind::OneLogin).await["scope"],
        "openid profile email groups offline_access"
    );
}

#[tokio::test]
async fn sign_out_of_auth0_and_cognito() {
    let signed_out = Url::parse("https://auth.corp.test/.pomerium/signed_out").unwrap();
    let target = Url::parse("https://www.corp.test/bye").unwrap();
    let ask = EndSession {
        id_token_hint: Some("raw"),
        target: Some(&target),
        signed_out: &signed_out,
    };

    let idp = Idp::new();
    idp.set(|s| s.discovery = Arc::new(|d| d["issuer"] = json!("https://idp.corp.test/")));
    let out = idp
        .provider_of(ProviderKind::Auth0)
        .end_session_url(ask)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        out.url.as_str(),
        "https://idp.corp.test/v2/logout?client_id=client&returnTo=https%3A%2F%2Fwww.corp.test%2Fbye"
    );
    assert!(out.returns_to_target);

    let out = Idp::new()
        .provider_of(ProviderKind::Cognito)
        .end_session_url(ask)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        out.url.as_str(),
        "https://idp.corp.test/logout?client_id=client&logout_uri=https%3A%2F%2Fauth.corp.test%2F.pomerium%2Fsigned_out"
    );
    assert!(!out.returns_to_target);
}

fn pointing_at(endpoint: &'static str) -> Idp {
    let idp = Idp::new();
    idp.set(|s| {
        s.user_info = Arc::new(|i| {
            i.as_object_mut().unwrap().remove("groups");
        });
    });
    idp.id_token(move |c| {
        c["oid"] = json!("ann-oid");
        c["_claim_names"] = json!({"groups": "src1"});
        c["_claim_sources"] = json!({"src1": {"endpoint": endpoint}});
    });
    idp
}

#[tokio::test]
async fn c29_groups_that_lie_elsewhere() {
    const MEMBERS: &str = "https://idp.corp.test/t/users/u/getMemberObjects";
    let idp = pointing_at(MEMBERS);
    idp.set(|s| {
        s.instead.insert(
            "/t/users/u/getMemberObjects",
            (200, json!({"value": ["g1", "g2"]}).to_string()),
        )
    });
    let identity = sign_in(&*idp.provider_of(ProviderKind::Azure))
        .await
        .unwrap();
    assert_eq!(identity.subject, "ann-oid");
    assert_eq!(identity.claims["groups"], json!(["g1", "g2"]));
    assert!(!identity.claims.contains_key("_claim_sources"));
    assert_eq!(idp.asked("/t/users/u/getMemberObjects"), 1);

    // Failing: signed in, but in no group.
    idp.set(|s| {
        s.instead
            .insert("/t/users/u/getMemberObjects", (503, String::new()))
    });
    let identity = sign_in(&*idp.provider_of(ProviderKind::Azure))
        .await
        .unwrap();
    assert!(!identity.claims.contains_key("groups"));

    // A foreign host gets neither question nor token.
    let idp = pointing_at("https://evil.test/steal");
    let identity = sign_in(&*idp.provider_of(ProviderKind::Azure))
        .await
        .unwrap();
    assert!(!identity.claims.contains_key("groups"));
    assert_eq!(idp.asked("/steal"), 0);

    // Other providers' pointers are not followed.
    let idp = pointing_at(MEMBERS);
    let identity = sign_in(&*idp.provider()).await.unwrap();
    assert!(
        !identity.claims.contains_key("groups") && !identity.claims.contains_key("_claim_names")
    );
    assert_eq!(idp.asked("/t/users/u/getMemberObjects"), 0);
}

#[tokio::test]
async fn c29_a_refresh_does_not_take_groups_away_when_they_cannot_be_read() {
    let idp = pointing_at("https://idp.corp.test/members");
    idp.set(|s| s.instead.insert("/members", (503, String::new())));
    let ask = Refresh {
        refresh_token: "refresh-1",
        expected_subject: Some("ann"),
        now: now(),
    };
    let refreshed = idp
        .provider_of(ProviderKind::Azure)
        .refresh(ask)
        .await
        .unwrap();
    assert!(refreshed.id_token.is_some() && refreshed.claims.is_none());
}

/// Answers as GitHub's site and interface do.
fn github(emails: serde_json::Value, user_status: u16) -> HttpClient {
    HttpClient::new(move |request| {
        let path = request.uri().path();
        let authorized = request
            .headers()
            .get("authorization")
            .is_some_and(|v| v == "token access");
        let (status, body) = match path {
            "/login/oauth/access_token" => {
                let form: Form = url::form_urlencoded::parse(request.body())
                    .into_owned()
                    .collect();
                assert_eq!(form["code_verifier"], VERIFIER);
                if form["code"] == "good" {
                    (
                        200,
                        json!({"access_token": "access", "scope": "user:email", "token_type": "bearer"}),
                    )
                } else {
                    (
                        200,
                        json!({"error": "bad_verification_code", "error_description": "expired"}),
                    )
                }
            }
            "/user" if authorized => (
                user_status,
                json!({
                    "id": 7, "node_id": "U_7", "login": "ann", "name": null, "avatar_url": "https://a/7",
                }),
            ),
            "/user/emails" if authorized => (200, emails.clone()),
            "/applications/client/token" => (200, json!({})),
            _ => (401, json!({"message": "Bad credentials"})),
        };
        let response = Response::builder()
            .status(status)
            .body(body.to_string().into_bytes())
            .unwrap();
        Box::pin(std::future::ready(Ok(response)))
    })
}

#[tokio::test]
async fn github_signs_in_by_its_interface() {
    let emails = json!([
        {"email": "stolen@corp.test", "primary": true, "verified": false},
        {"email": "second@corp.test", "primary": false, "verified": true},
        {"email": "ann@corp.test", "primary": true, "verified": true},
    ]);
    let provider = Providers::new(
        [with(ProviderKind::Github, None)],
        &github(emails, 200),
        None,
    )
    .global()
    .unwrap();
    let (url, query) = authorization_query(&*provider).await;
    assert!(
        url.as_str()
            .starts_with("https://github.com/login/oauth/authorize?")
    );
    assert_eq!(query["scope"], "user:email read:org");
    let identity = sign_in(&*provider).await.unwrap();
    assert_eq!(identity.subject, "U_7");
    assert_eq!(identity.claims["user"], "ann");
    assert_eq!(identity.claims["email"], "ann@corp.test");
    assert!(identity.id_token.is_none() && identity.tokens.expires_at.is_none());

    assert!(
        provider
            .exchange(code(&redirect_uri(), "used"))
            .await
            .unwrap_err()
            .is_refusal()
    );
    let wrong = UserInfoRequest {
        access_token: "revoked",
        expected_subject: None,
    };
    assert!(provider.user_info(wrong).await.unwrap_err().is_refusal());

    let audiences = vec!["client".to_owned()];
    let ask = VerifyToken {
        token: "access",
        audiences: &audiences,
        now: now(),
    };
    assert_eq!(
        provider.verify_access_token(ask).await.unwrap().subject,
        "U_7"
    );
}

#[tokio::test]
async fn github_unverified_addresses_are_nobodys() {
    let emails = json!([{"email": "ceo@corp.test", "primary": true, "verified": false}]);
    let provider = Providers::new(
        [with(ProviderKind::Github, None)],
        &github(emails, 200),
        None,
    )
    .global()
    .unwrap();
    let identity = sign_in(&*provider).await.unwrap();
    assert_eq!(
        (
            &identity.claims["email"],
            &identity.claims["email_verified"]
        ),
        (&json!(""), &json!(false))
    );
}

#[tokio::test]
async fn github_in_trouble_is_no_refusal() {
    for status in [403, 404, 429, 500] {
        let provider = Providers::new(
            [with(ProviderKind::Github, None)],
            &github(json!([]), status),
            None,
        )
        .global()
        .unwrap();
        let ask = UserInfoRequest {
            access_token: "access",
            expected_subject: None,
        };
        let error = provider.user_info(ask).await.unwrap_err();
        assert!(!error.is_refusal(), "{status}: {error}");
        assert!(
            !matches!(error, ProviderError::Invalid(_)),
            "{status}: {error}"
        );
    }
}
