//! A provider that is away, slow or overloaded, and one that comes back: C16, W6, W17, checklist 47.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use postern_common::config::ProviderKind;

use super::idp::*;
use crate::{ProviderError, Providers, REFRESH_DEADLINE, Refresh};

const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Nobody waits for a provider at start, and nobody has to restart when it returns.
#[tokio::test(start_paused = true)]
async fn c16_unreachable_at_start() {
    let idp = Idp::new();
    idp.set(|s| s.down = true);
    let begin = Instant::now();
    let provider = idp.provider();
    assert_eq!(begin.elapsed(), Duration::ZERO);

    let error = sign_in(&*provider).await.unwrap_err();
    assert!(
        matches!(&error, ProviderError::Unreachable { reason, .. } if reason == "connection refused"),
        "{error}"
    );

    // However often somebody tries, it is asked at most once in two seconds.
    let span = Duration::from_secs(60);
    let end = Instant::now() + span;
    while Instant::now() < end {
        assert!(sign_in(&*provider).await.is_err());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(
        idp.asked(DISCOVERY) <= 32,
        "{} in {span:?}",
        idp.asked(DISCOVERY)
    );

    idp.set(|s| s.down = false);
    let back = Instant::now();
    while sign_in(&*provider).await.is_err() {
        assert!(back.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Nor does anybody have to ask for it to be found again.
#[tokio::test(start_paused = true)]
async fn c16_found_again_in_the_background() {
    let idp = Idp::new();
    idp.set(|s| s.down = true);
    let provider = idp.provider();
    tokio::time::sleep(Duration::from_secs(300)).await;
    let tried = idp.asked(DISCOVERY);
    assert!((60..=150).contains(&tried), "{tried}");
    idp.set(|s| s.down = false);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(
        provider.capabilities().pkce,
        "the document is there without a sign-in"
    );
}

#[tokio::test(start_paused = true)]
async fn w17_a_hanging_provider_costs_each_the_deadline_once() {
    let idp = Idp::new();
    idp.set(|s| s.delay = Duration::from_secs(3600));
    let provider = idp.provider();
    let begin = Instant::now();
    let all = futures::future::join_all((0..50).map(|_| sign_in(&*provider))).await;
    assert!(
        all.iter()
            .all(|r| matches!(r, Err(ProviderError::Unreachable { .. })))
    );
    assert!(
        begin.elapsed() <= Duration::from_secs(11),
        "{:?}",
        begin.elapsed()
    );
}

/// The last good document and keys serve on while the provider publishes nothing.
#[tokio::test(start_paused = true)]
async fn w17_last_good_is_kept() {
    let idp = Idp::new();
    let provider = idp.provider();
    sign_in(&*provider).await.unwrap();
    idp.set(|s| {
        s.instead.insert(DISCOVERY, (503, String::new()));
        s.instead
            .insert("/jwks", (200, "<html>maintenance</html>".into()));
    });
    tokio::time::sleep(Duration::from_secs(7200)).await;
    sign_in(&*provider).await.unwrap();
    assert!(idp.asked(DISCOVERY) > 2);
}

#[tokio::test(start_paused = true)]
async fn s47_a_new_key_is_fetched_but_not_at_everybodys_wish() {
    let idp = Idp::new();
    let provider = idp.provider();
    sign_in(&*provider).await.unwrap();
    let fetched = idp.asked("/jwks");

    // The provider rotates: the first token of the new key is accepted at once, although the keys
    // have just been fetched.
    idp.set(|s| {
        s.published = vec![1, 0];
        s.signing = Signing::Key(1);
        s.key_id = Some("key-1");
    });
    sign_in(&*provider).await.unwrap();
    assert_eq!(idp.asked("/jwks"), fetched + 1);

    // Forged tokens with made-up key ids cause one request in five seconds, not one each.
    idp.set(|s| s.key_id = Some("made-up"));
    for _ in 0..100 {
        assert!(matches!(
            sign_in(&*provider).await,
            Err(ProviderError::Invalid(_))
        ));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(
        idp.asked("/jwks") <= fetched + 1 + 3,
        "{}",
        idp.asked("/jwks") - fetched
    );
}

/// Not every provider names its keys anew when it changes them.
#[tokio::test(start_paused = true)]
async fn another_key_under_the_same_name_is_fetched() {
    for name in [Some("key-0"), None] {
        let idp = Idp::new();
        idp.set(|s| s.key_id = name);
        let provider = idp.provider();
        sign_in(&*provider).await.unwrap();
        idp.set(|s| {
            let mut key = jwk(1);
            key["kid"] = json!("key-0");
            let keys = json!({"keys": [key]}).to_string();
            s.instead.insert("/jwks", (200, keys));
            s.signing = Signing::Key(1);
        });
        sign_in(&*provider).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn w6_trouble_at_the_provider_is_no_refusal() {
    let ask = Refresh {
        refresh_token: "refresh-1",
        expected_subject: None,
        now: now(),
    };
    for (status, body) in [
        (500, ""),
        (502, "<html>"),
        (503, "{\"error\":\"invalid_grant\"}"),
        (429, ""),
        (408, ""),
        (400, "{\"error\":\"temporarily_unavailable\"}"),
    ] {
        let idp = Idp::new();
        let provider = idp.provider();
        idp.set(|s| s.instead.insert("/token", (status, body.into())));
        let error = provider.refresh(ask).await.unwrap_err();
        assert!(
            matches!(error, ProviderError::Unreachable { .. }),
            "{status}: {error}"
        );
    }
    let idp = Idp::new();
    let provider = idp.provider();
    sign_in(&*provider).await.unwrap();
    idp.set(|s| s.delay = REFRESH_DEADLINE + Duration::from_secs(1));
    assert!(matches!(
        provider.refresh(ask).await,
        Err(ProviderError::Unreachable { .. })
    ));
    idp.set(|s| s.down = true);
    assert!(matches!(
        provider.refresh(ask).await,
        Err(ProviderError::Unreachable { .. })
    ));
}

/// User info that fails is not user info that is empty: a rule that denies by claim would let
/// somebody in.
#[tokio::test]
async fn s03_failing_user_info_ends_the_sign_in() {
    for status in [429, 500, 503] {
        let idp = Idp::new();
        idp.set(|s| s.instead.insert("/userinfo", (status, String::new())));
        assert!(matches!(
            idp.sign_in().await,
            Err(ProviderError::Unreachable { .. })
        ));
    }
}

#[tokio::test]
async fn clients_of_one_issuer_share_what_it_publishes() {
    let idp = Idp::new();
    let mut other = Idp::settings(ProviderKind::Oidc, ISSUER);
    other.id = "route".into();
    other.client_id = "another".into();
    let providers = Providers::new(
        [Idp::settings(ProviderKind::Oidc, ISSUER), other.clone()],
        &idp.client(),
        None,
    );
    sign_in(&*providers.global().unwrap()).await.unwrap();
    let _ = sign_in(&*providers.get("route").unwrap()).await;
    // A new configuration that changes a client keeps the rest.
    other.client_secret = "new".into();
    let providers = Providers::new(
        [Idp::settings(ProviderKind::Oidc, ISSUER), other],
        &idp.client(),
        Some(&providers),
    );
    sign_in(&*providers.global().unwrap()).await.unwrap();
    let _ = sign_in(&*providers.get("route").unwrap()).await;
    assert_eq!((idp.asked(DISCOVERY), idp.asked("/jwks")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_nobody_holds_is_left_alone() {
    let idp = Idp::new();
    drop(idp.provider());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = idp.asked(DISCOVERY);
    tokio::time::sleep(Duration::from_secs(36_000)).await;
    assert_eq!(idp.asked(DISCOVERY), before);
}

#[tokio::test]
async fn keys_that_moved_are_found() {
    for (moved_to, found) in [
        ("/jwks", true),
        ("https://idp.corp.test/jwks", true),
        ("http://idp.corp.test/jwks", false),
        ("/old-jwks", false),
    ] {
        let idp = Idp::new();
        idp.set(|s| {
            s.discovery = Arc::new(|d| d["jwks_uri"] = json!(format!("{ISSUER}/old-jwks")));
            s.instead.insert("/old-jwks", (302, moved_to.into()));
        });
        let signed_in = sign_in(&*idp.provider()).await;
        assert_eq!(signed_in.is_ok(), found, "{moved_to}: {signed_in:?}");
        assert!(idp.asked("/old-jwks") <= 4);
    }
}
