//! The code flow with an honest provider.

use serde_json::json;
use url::Url;

use postern_common::config::ProviderKind;

use super::idp::*;
use crate::{EndSession, ProviderError, Refresh, Tokens, UserInfoRequest};

#[tokio::test]
async fn authorization_url_has_everything_once() {
    let idp = Idp::new();
    let (url, query) = authorization_query(&*idp.provider()).await;
    assert!(
        url.as_str()
            .starts_with("https://idp.corp.test/authorize?tenant=1&")
    );
    for (name, value) in [
        ("client_id", "client"),
        ("redirect_uri", "https://auth.corp.test/oauth2/callback"),
        ("response_type", "code"),
        ("scope", "openid profile email offline_access"),
        ("state", "the state"),
        ("nonce", NONCE),
        ("code_challenge", "challenge"),
        ("code_challenge_method", "S256"),
    ] {
        assert_eq!(query.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(!url.query().unwrap().contains('+'));
    assert_eq!(url.query_pairs().count(), query.len());
}

#[tokio::test]
async fn pkce_only_where_it_is_offered() {
    let idp = Idp::new();
    idp.set(|s| {
        s.discovery =
            std::sync::Arc::new(|d| d["code_challenge_methods_supported"] = json!(["plain"]));
    });
    let provider = idp.provider();
    let (_, query) = authorization_query(&*provider).await;
    assert!(!query.contains_key("code_challenge"));
    sign_in(&*provider).await.unwrap();
    assert!(!idp.last_form().0.contains_key("code_verifier"));
    assert!(!provider.capabilities().pkce);
}

#[tokio::test]
async fn a_person_signs_in() {
    let idp = Idp::new();
    let identity = idp.sign_in().await.unwrap();
    assert_eq!(identity.subject, "ann");
    assert_eq!(identity.claims["name"], "Ann");
    assert_eq!(identity.claims["email"], "ann@corp.test");
    assert_eq!(identity.claims["groups"], json!(["eng", "ops"]));
    assert_eq!(identity.claims["number"].to_string(), "1700000000");
    let id_token = identity.id_token.unwrap();
    assert_eq!(
        (id_token.issuer.as_str(), id_token.subject.as_str()),
        (ISSUER, "ann")
    );
    assert_eq!(id_token.expires_at.as_second(), NOW + 3600);
    assert_eq!(identity.tokens.refresh_token.as_deref(), Some("refresh-1"));
    assert_eq!(identity.tokens.expires_at.unwrap().as_second(), NOW + 300);

    let (form, authorization) = idp.last_form();
    assert_eq!(form["code_verifier"], VERIFIER);
    assert_eq!(
        form["redirect_uri"],
        "https://auth.corp.test/oauth2/callback"
    );
    assert!(!form.contains_key("client_secret"));
    assert!(authorization.unwrap().starts_with("Basic "));
}

#[tokio::test]
async fn secrets_stay_out_of_debug() {
    let identity = Idp::new().sign_in().await.unwrap();
    let shown = format!("{identity:?}");
    assert!(
        !shown.contains("refresh-1") && !shown.contains("\"access\"") && !shown.contains("eyJ"),
        "{shown}"
    );
}

#[tokio::test]
async fn user_info_may_be_missing() {
    for discovery in [json!(null), json!("")] {
        let idp = Idp::new();
        idp.set(|s| {
            s.discovery = std::sync::Arc::new(move |d| d["userinfo_endpoint"] = discovery.clone());
        });
        let identity = idp.sign_in().await.unwrap();
        assert_eq!(identity.subject, "ann");
        assert!(!identity.claims.contains_key("groups"));
        assert_eq!(idp.asked("/userinfo"), 0);
    }
}

#[tokio::test]
async fn user_info_that_refuses_leaves_the_id_token() {
    for status in [401, 403, 404] {
        let idp = Idp::new();
        idp.set(|s| s.instead.insert("/userinfo", (status, String::new())));
        assert_eq!(idp.sign_in().await.unwrap().claims["name"], "Ann");
    }
}

/// C20: forty kilobytes of claims arrive whole.
#[tokio::test]
async fn c20_many_claims() {
    let idp = Idp::new();
    idp.id_token(|c| c["large"] = json!("x".repeat(40_000)));
    assert_eq!(
        idp.sign_in().await.unwrap().claims["large"]
            .as_str()
            .unwrap()
            .len(),
        40_000
    );
}

#[tokio::test]
async fn refused_code() {
    let provider = Idp::new().provider();
    let error = provider
        .exchange(code(&redirect_uri(), "used"))
        .await
        .unwrap_err();
    assert!(error.is_refusal(), "{error}");
}

#[tokio::test]
async fn c28_what_user_info_gave_is_told() {
    let identity = Idp::new().sign_in().await.unwrap();
    assert_eq!(identity.user_info_claims, ["email", "groups", "sub"]);
    assert!(identity.claims.contains_key("name"));
}

#[tokio::test]
async fn w11_post_is_used_when_discovery_says_so() {
    let idp = Idp::new();
    idp.set(|s| {
        s.accepts_basic = false;
        s.discovery = std::sync::Arc::new(|d| {
            d["token_endpoint_auth_methods_supported"] = json!(["client_secret_post"]);
        });
    });
    idp.sign_in().await.unwrap();
    assert_eq!(idp.asked("/token"), 1);
    assert_eq!(idp.last_form().1, None);
}

#[tokio::test]
async fn w11_a_provider_that_leaves_it_open_is_learned_once() {
    let both = json!(["client_secret_basic", "client_secret_post"]);
    for methods in [json!(null), json!([]), both] {
        let idp = Idp::new();
        idp.set(|s| {
            s.accepts_basic = false;
            let published = methods.clone();
            s.discovery = std::sync::Arc::new(move |d| {
                d["token_endpoint_auth_methods_supported"] = published.clone();
            });
        });
        let provider = idp.provider();
        sign_in(&*provider).await.unwrap();
        assert_eq!(idp.asked("/token"), 2, "{methods}");
        sign_in(&*provider).await.unwrap();
        assert_eq!(idp.asked("/token"), 3, "{methods}");
        // Another process has learned nothing yet.
        let tokens = Tokens {
            access_token: "access".into(),
            ..Tokens::default()
        };
        idp.provider().revoke(&tokens).await.unwrap();
        assert_eq!(idp.asked("/revoke"), 2, "{methods}");
    }
}

#[tokio::test]
async fn w11_a_refused_code_is_sent_once() {
    let idp = Idp::new();
    idp.set(|s| {
        s.discovery = std::sync::Arc::new(|d| {
            d.as_object_mut()
                .unwrap()
                .remove("token_endpoint_auth_methods_supported");
        });
    });
    let provider = idp.provider();
    assert!(
        provider
            .exchange(code(&redirect_uri(), "used"))
            .await
            .unwrap_err()
            .is_refusal()
    );
    assert_eq!(idp.asked("/token"), 1);
}

#[tokio::test]
async fn wrong_secret_is_no_refusal_of_the_person() {
    let idp = Idp::new();
    let mut settings = Idp::settings(ProviderKind::Oidc, ISSUER);
    settings.client_secret = "old".into();
    let provider = crate::Providers::new([settings], &idp.client(), None)
        .global()
        .unwrap();
    let error = sign_in(&*provider).await.unwrap_err();
    assert!(
        matches!(&error, ProviderError::Misconfigured(r) if r.error == "invalid_client"),
        "{error}"
    );
    assert_eq!(idp.asked("/token"), 1);
}

#[tokio::test]
async fn refresh_keeps_what_the_provider_does_not_send() {
    let idp = Idp::new();
    let provider = idp.provider();
    let ask = Refresh {
        refresh_token: "refresh-1",
        expected_subject: Some("ann"),
        now: now(),
    };
    let refreshed = provider.refresh(ask).await.unwrap();
    assert_eq!(refreshed.tokens.refresh_token.as_deref(), Some("refresh-1"));
    assert_eq!(refreshed.id_token.unwrap().subject, "ann");
    assert_eq!(refreshed.claims.unwrap()["name"], "Ann");

    idp.id_token(|c| c["drop"] = json!(true));
    let refreshed = provider.refresh(ask).await.unwrap();
    assert!(refreshed.id_token.is_none() && refreshed.claims.is_none());
}

/// The refresh token is spent by then: a bad ID token must not lose its successor.
#[tokio::test]
async fn a_bad_id_token_does_not_spoil_a_refresh() {
    let idp = Idp::new();
    idp.id_token(|c| c["sub"] = json!("eve"));
    let ask = Refresh {
        refresh_token: "refresh-1",
        expected_subject: Some("ann"),
        now: now(),
    };
    let refreshed = idp.provider().refresh(ask).await.unwrap();
    assert_eq!(refreshed.tokens.access_token, "access");
    assert!(refreshed.id_token.is_none() && refreshed.claims.is_none());
}

#[tokio::test]
async fn user_info_by_itself() {
    let idp = Idp::new();
    let ask = UserInfoRequest {
        access_token: "access",
        expected_subject: Some("ann"),
    };
    let info = idp.provider().user_info(ask).await.unwrap().unwrap();
    assert_eq!(info["email"], "ann@corp.test");
}

#[tokio::test]
async fn w13_both_tokens_are_revoked() {
    let idp = Idp::new();
    let tokens = Tokens {
        access_token: "a".into(),
        refresh_token: Some("r".into()),
        ..Tokens::default()
    };
    idp.provider().revoke(&tokens).await.unwrap();
    let state = idp.0.lock().unwrap();
    let sent: Vec<_> = state
        .forms
        .iter()
        .map(|(f, _)| (f["token"].as_str(), f["token_type_hint"].as_str()))
        .collect();
    assert_eq!(sent, [("r", "refresh_token"), ("a", "access_token")]);
}

#[tokio::test]
async fn c26_sign_out_at_the_provider() {
    let idp = Idp::new();
    let provider = idp.provider();
    let signed_out = Url::parse("https://auth.corp.test/.pomerium/signed_out").unwrap();
    let ask = EndSession {
        id_token_hint: Some("raw"),
        target: None,
        signed_out: &signed_out,
    };
    let out = provider.end_session_url(ask).await.unwrap().unwrap();
    assert!(out.returns_to_target);
    assert_eq!(
        out.url.as_str(),
        "https://idp.corp.test/logout?id_token_hint=raw&client_id=client&post_logout_redirect_uri=https%3A%2F%2Fauth.corp.test%2F.pomerium%2Fsigned_out"
    );

    let without = Idp::new();
    without.set(|s| s.discovery = std::sync::Arc::new(|d| d["end_session_endpoint"] = json!("")));
    assert_eq!(without.provider().end_session_url(ask).await.unwrap(), None);
}
