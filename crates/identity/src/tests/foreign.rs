//! JWTs that somebody else made.

use std::collections::BTreeMap;

use postern_common::config::JwtVerifier;
use serde_json::{Value, json};

use super::idp::*;
use crate::{ForeignToken, ForeignTokens, ProviderError};

fn verifiers(jwks_url: Option<&str>) -> BTreeMap<String, JwtVerifier> {
    let other = JwtVerifier {
        issuer: "https://other.test".into(),
        jwks_url: None,
        algorithms: vec!["ES256".into()],
        audiences: vec!["postern".into()],
    };
    let ours = JwtVerifier {
        issuer: ISSUER.into(),
        jwks_url: jwks_url.map(|url| url.parse().unwrap()),
        ..other.clone()
    };
    [("ci".to_owned(), ours), ("other".to_owned(), other)].into()
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": ["x", "postern"], "sub": "job-1", "iat": NOW, "exp": NOW + 60})
}

async fn verify(
    idp: &Idp,
    tokens: &ForeignTokens,
    claims: &Value,
    allowed: &[&str],
) -> Result<ForeignToken, ProviderError> {
    let allowed: Vec<String> = allowed.iter().map(|&name| name.to_owned()).collect();
    tokens.verify(&idp.token(claims), &allowed, now()).await
}

#[tokio::test]
async fn a_token_of_a_listed_issuer() {
    let idp = Idp::new();
    for jwks_url in [None, Some("https://idp.corp.test/jwks")] {
        let tokens = ForeignTokens::new(&verifiers(jwks_url), &idp.client(), None);
        for allowed in [&[][..], &["ci"], &["other", "ci"]] {
            let verified = verify(&idp, &tokens, &claims(), allowed).await.unwrap();
            assert_eq!(verified.entry, "ci");
            assert_eq!(verified.token.subject, "job-1");
            assert_eq!(verified.token.audience, ["x", "postern"]);
        }
        assert!(verify(&idp, &tokens, &claims(), &["other"]).await.is_err());
    }
}

#[tokio::test]
async fn s12_what_does_not_hold_is_invalid() {
    let idp = Idp::new();
    let tokens = ForeignTokens::new(&verifiers(None), &idp.client(), None);
    for (name, value) in [
        ("iss", json!("https://unknown.test")),
        ("aud", json!("other")),
        ("aud", json!([])),
        ("exp", json!(NOW - 100)),
        ("exp", Value::Null),
        ("nbf", json!(NOW + 1000)),
        ("sub", json!("")),
        ("sub", json!(7)),
    ] {
        let mut claims = claims();
        claims[name] = value;
        let outcome = verify(&idp, &tokens, &claims, &[]).await;
        assert!(
            matches!(outcome, Err(ProviderError::Invalid(_))),
            "{claims}: {outcome:?}"
        );
    }
    idp.set(|state| state.signing = Signing::Key(1));
    let outcome = verify(&idp, &tokens, &claims(), &[]).await;
    assert!(
        matches!(outcome, Err(ProviderError::Invalid(_))),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn only_the_listed_algorithms() {
    let idp = Idp::new();
    let mut verifiers = verifiers(None);
    verifiers.get_mut("ci").unwrap().algorithms = vec!["RS256".into()];
    let tokens = ForeignTokens::new(&verifiers, &idp.client(), None);
    let outcome = verify(&idp, &tokens, &claims(), &[]).await;
    assert!(
        matches!(outcome, Err(ProviderError::Invalid(_))),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn without_keys_nothing_is_known() {
    let idp = Idp::new();
    idp.set(|state| state.down = true);
    let tokens = ForeignTokens::new(&verifiers(None), &idp.client(), None);
    let outcome = verify(&idp, &tokens, &claims(), &[]).await;
    assert!(
        matches!(outcome, Err(ProviderError::Unreachable { .. })),
        "{outcome:?}"
    );

    // A new configuration keeps what is known of entries that stay.
    let idp = Idp::new();
    let tokens = ForeignTokens::new(&verifiers(None), &idp.client(), None);
    verify(&idp, &tokens, &claims(), &[]).await.unwrap();
    idp.set(|state| state.down = true);
    let again = ForeignTokens::new(&verifiers(None), &idp.client(), Some(&tokens));
    verify(&idp, &again, &claims(), &[]).await.unwrap();
}
