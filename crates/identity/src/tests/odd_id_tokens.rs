//! ID tokens and documents that are not quite as the standard has them, but seen.

use std::sync::Arc;

use serde_json::{Value, json};

use super::idp::*;
use crate::ProviderError;

type Change = fn(&mut Value);

/// What openidconnect's types can't hold is checked no less.
const ODD: [Change; 4] = [
    |c| {
        c.as_object_mut().unwrap().remove("iat");
    },
    |c| c["address"] = json!("one line"),
    |c| c["updated_at"] = json!("yesterday"),
    |c| c["amr"] = json!("pwd"),
];

#[tokio::test]
async fn odd_claims_do_not_keep_people_out() {
    for odd in ODD {
        let idp = Idp::new();
        idp.id_token(odd);
        assert_eq!(idp.sign_in().await.unwrap().subject, "ann");
    }
    let idp = Idp::new();
    idp.id_token(|c| {
        c["email_verified"] = json!("true");
        c["updated_at"] = json!("2026-01-01T00:00:00Z");
        c["exp"] = json!(NOW + 3600);
    });
    let identity = idp.sign_in().await.unwrap();
    assert_eq!(identity.claims["updated_at"], "2026-01-01T00:00:00Z");
}

#[tokio::test]
async fn s12_odd_claims_let_nobody_in() {
    let lies: [(&str, Change); 4] = [
        ("issuer", |c| c["iss"] = json!("https://other.test")),
        ("audience", |c| c["aud"] = json!("another-client")),
        ("another nonce", |c| c["nonce"] = json!("of another")),
        ("expired", |c| c["exp"] = json!(NOW - 61)),
    ];
    for odd in ODD {
        for (why, lie) in lies {
            let idp = Idp::new();
            idp.id_token(move |c| {
                odd(c);
                lie(c);
            });
            assert_invalid(&idp, why).await;
        }
        let idp = Idp::new();
        idp.id_token(odd);
        idp.set(|s| s.signing = Signing::Key(1));
        assert_invalid(&idp, "signature is wrong").await;
        idp.set(|s| s.signing = Signing::None);
        assert_invalid(&idp, "never accepted").await;
    }
}

async fn assert_invalid(idp: &Idp, why: &str) {
    match idp.sign_in().await {
        Err(ProviderError::Invalid(message)) => assert!(message.contains(why), "{message}"),
        other => panic!("{why}: {other:?}"),
    }
}

#[tokio::test]
async fn several_keys_and_no_name_of_one() {
    let idp = Idp::new();
    idp.set(|s| {
        s.published = vec![1, 0];
        s.key_id = None;
    });
    assert_eq!(idp.sign_in().await.unwrap().subject, "ann");
}

#[tokio::test]
async fn members_that_are_not_read_may_be_wrong() {
    let idp = Idp::new();
    idp.set(|s| {
        s.discovery = Arc::new(|d| {
            d["op_policy_uri"] = json!("");
            d["claims_supported"] = json!({"sub": true});
            d["response_types_supported"] = json!("code");
            d["id_token_signing_alg_values_supported"] = json!(["ES256", "ES256K", "new"]);
        });
    });
    assert_eq!(idp.sign_in().await.unwrap().subject, "ann");
}

#[tokio::test]
async fn s12_unknown_algorithms_are_not_silence() {
    let idp = Idp::new();
    idp.set(|s| {
        s.discovery = Arc::new(|d| d["id_token_signing_alg_values_supported"] = json!(["ES256K"]));
    });
    assert_invalid(&idp, "algorithms unknown here only").await;
}
