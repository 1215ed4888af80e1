//! Tokens that programs bring: W8, C29's neighbours.

use std::sync::Arc;

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
