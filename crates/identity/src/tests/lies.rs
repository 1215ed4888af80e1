//! A provider, or somebody between, that lies: checklist 11, 12, 47, 48.

use std::sync::Arc;

use serde_json::{Value, json};

use super::idp::*;
use crate::{MAX_BODY, ProviderError, UserInfoRequest};

async fn refused(idp: &Idp, why: &str) {
    match idp.sign_in().await {
        Err(ProviderError::Invalid(message)) => {
            assert!(message.contains(why), "{message:?} lacks {why:?}");
        }
        other => panic!("{why}: {other:?}"),
    }
}

#[tokio::test]
async fn s12_signatures_that_prove_nothing() {
    let idp = Idp::new();
    idp.set(|s| s.signing = Signing::None);
    refused(&idp, "\"none\"").await;

    idp.set(|s| s.signing = Signing::Hs256WithPublicKey);
    refused(&idp, "\"HS256\"").await;

    // Even where the provider announces them.
    idp.set(|s| {
        s.discovery =
            Arc::new(|d| d["id_token_signing_alg_values_supported"] = json!(["HS256", "none"]));
    });
    refused(&idp, "it signs ID tokens with HS256, none only").await;
    idp.set(|s| s.signing = Signing::Key(0));
    refused(&idp, "it signs ID tokens with HS256, none only").await;
}

#[tokio::test]
async fn s12_an_algorithm_that_was_not_announced() {
    let idp = Idp::new();
    idp.set(|s| {
        s.discovery = Arc::new(|d| d["id_token_signing_alg_values_supported"] = json!(["RS256"]));
    });
    refused(&idp, "does not announce").await;
    // Silence means RS256.
    idp.set(|s| s.discovery = Arc::new(|d| d["id_token_signing_alg_values_supported"] = json!([])));
    refused(&idp, "does not announce").await;
}

#[tokio::test]
async fn s12_a_key_that_is_not_the_providers() {
    let idp = Idp::new();
    idp.set(|s| s.signing = Signing::Key(1));
    refused(&idp, "signature is wrong").await;
    idp.set(|s| s.key_id = Some("unknown"));
    refused(&idp, "none of the provider's keys").await;
    idp.set(|s| s.key_id = None);
    refused(&idp, "none of the provider's keys").await;
}

#[tokio::test]
async fn s12_claims_about_somebody_else() {
    type Lie = (&'static str, fn(&mut Value));
    let lies: [Lie; 12] = [
        ("issuer", |c| c["iss"] = json!("https://other.test")),
        ("issuer", |c| c["iss"] = json!("https://idp.corp.test/")),
        ("audience", |c| c["aud"] = json!("another-client")),
        ("audience", |c| c["aud"] = json!([])),
        ("azp", |c| c["azp"] = json!("another-client")),
        ("azp", |c| c["aud"] = json!(["client", "another-client"])),
        ("another nonce", |c| {
            c["nonce"] = json!("of another browser");
        }),
        ("does not return it", |c| {
            c.as_object_mut().unwrap().remove("nonce");
        }),
        ("expired", |c| c["exp"] = json!(NOW - 61)),
        ("future", |c| c["nbf"] = json!(NOW + 600)),
        ("future", |c| c["iat"] = json!(NOW + 600)),
        ("at_hash", |c| {
            c["at_hash"] = json!("AAAAAAAAAAAAAAAAAAAAAA");
        }),
    ];
    for (why, lie) in lies {
        let idp = Idp::new();
        idp.id_token(lie);
        refused(&idp, why).await;
    }
    let idp = Idp::new();
    idp.id_token(|c| {
        c.as_object_mut().unwrap().remove("sub");
    });
    refused(&idp, "names nobody").await;
}

#[tokio::test]
async fn no_id_token_no_sign_in() {
    let idp = Idp::new();
    idp.id_token(|c| c["drop"] = json!(true));
    refused(&idp, "no ID token").await;
}

#[tokio::test]
async fn w16_user_info_about_somebody_else() {
    let idp = Idp::new();
    idp.set(|s| s.user_info = Arc::new(|i| i["sub"] = json!("eve")));
    refused(&idp, "another person").await;
    let ask = UserInfoRequest {
        access_token: "access",
        expected_subject: Some("ann"),
    };
    assert!(idp.provider().user_info(ask).await.is_err());
    idp.set(|s| s.user_info = Arc::new(|i| i["sub"] = json!(null)));
    refused(&idp, "lacks sub").await;
    idp.set(|s| s.instead.insert("/userinfo", (200, "<html>".into())));
    refused(&idp, "unreadable").await;
}

#[tokio::test]
async fn s12_discovery_of_another_issuer() {
    let idp = Idp::new();
    idp.set(|s| s.discovery = Arc::new(|d| d["issuer"] = json!("https://evil.test")));
    refused(&idp, "idp_provider_url must be exactly the issuer").await;
}

#[tokio::test]
async fn s48_an_answer_of_another_provider() {
    let idp = Idp::new();
    let provider = idp.provider();
    let uri = redirect_uri();
    let mut answer = code(&uri, "good");
    answer.issuer_parameter = Some("https://evil.test");
    assert!(
        matches!(provider.exchange(answer).await, Err(ProviderError::Invalid(m)) if m.contains("another provider"))
    );
    assert_eq!(idp.asked("/token"), 0, "the code must not reach anybody");
    answer.issuer_parameter = Some(ISSUER);
    assert!(provider.exchange(answer).await.is_ok());

    let announcing = Idp::new();
    announcing.set(|s| {
        s.discovery =
            Arc::new(|d| d["authorization_response_iss_parameter_supported"] = json!(true));
    });
    refused(&announcing, "does not say which provider").await;
}

#[tokio::test]
async fn s47_oversized_answers() {
    let large = json!({"x": "y".repeat(MAX_BODY)}).to_string();
    for path in [
        "/.well-known/openid-configuration",
        "/jwks",
        "/token",
        "/userinfo",
    ] {
        let idp = Idp::new();
        idp.set(|s| s.instead.insert(path, (200, large.clone())));
        refused(&idp, "more than 1048576 bytes").await;
    }
}

/// The words of a provider end up in logs: no line breaks, no floods.
#[tokio::test]
async fn s46_errors_carry_no_control_characters_nor_secrets() {
    let idp = Idp::new();
    let body = json!({"error": "odd\n\u{1b}[31m", "error_description": "y".repeat(5000)});
    idp.set(|s| s.instead.insert("/token", (400, body.to_string())));
    let shown = idp.sign_in().await.unwrap_err().to_string();
    assert!(
        !shown.contains(char::is_control) && shown.len() < 600,
        "{shown}"
    );
    assert!(
        !shown.contains("secret\"") && !shown.contains("good"),
        "{shown}"
    );
}
