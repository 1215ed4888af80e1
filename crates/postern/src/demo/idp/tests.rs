//! The provider as Postern's own client sees it, and as somebody with other intentions does.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use jiff::Timestamp;
use postern_common::config::ProviderKind;
use postern_identity::{
    AuthRequest, CodeExchange, EndSession, HttpClient, HttpError, Provider, ProviderError,
    ProviderSettings, Providers, Refresh, UserInfoRequest, VerifyToken,
};
use tower::ServiceExt as _;

use super::*;

const ISSUER: &str = "http://localhost:9999";
const CALLBACK: &str = "https://auth.localhost:8443/oauth2/callback";

fn provider_and_router() -> (Arc<dyn Provider>, Router) {
    let app = router(DemoIdp::new(ISSUER, Redirects::Only(vec![CALLBACK.into()])));
    let inside = app.clone();
    let http = HttpClient::new(move |request| {
        let app = inside.clone();
        Box::pin(async move {
            let answer = app
                .oneshot(request.map(Body::from))
                .await
                .map_err(|never| match never {})?;
            let (parts, body) = answer.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20)
                .await
                .map_err(|e| HttpError::Transport(e.to_string()))?;
            Ok(axum::http::Response::from_parts(parts, body.to_vec()))
        })
    });
    let settings = ProviderSettings {
        id: "demo".into(),
        kind: ProviderKind::Oidc,
        url: Some(ISSUER.into()),
        client_id: CLIENT_ID.into(),
        client_secret: CLIENT_SECRET.into(),
        scopes: Vec::new(),
        request_params: Vec::new(),
    };
    (
        Providers::new([settings], &http, None).global().unwrap(),
        app,
    )
}

fn callback() -> url::Url {
    url::Url::parse(CALLBACK).unwrap()
}

async fn send(
    app: &Router,
    method: &str,
    uri: &str,
    body: String,
) -> (StatusCode, HeaderMap, String) {
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from(body))
        .unwrap();
    let answer = app.clone().oneshot(request).await.unwrap();
    let (parts, body) = answer.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    (
        parts.status,
        parts.headers,
        String::from_utf8(body.to_vec()).unwrap(),
    )
}

async fn authorization(provider: &dyn Provider) -> url::Url {
    use base64::Engine as _;
    use sha2::Digest as _;
    let challenge =
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(sha2::Sha256::digest("verifier"));
    provider
        .authorization_url(AuthRequest {
            state: "s&t",
            nonce: "nonce",
            code_challenge: &challenge,
            redirect_uri: &callback(),
        })
        .await
        .unwrap()
}

/// Picks somebody on the page; gives the query of the callback.
async fn pick(app: &Router, url: &url::Url, person: &str) -> authorize::Values {
    let query = url.query().unwrap();
    let (status, headers, page) =
        send(app, "GET", &format!("/authorize?{query}"), String::new()).await;
    assert_eq!(status, StatusCode::OK);
    assert!(
        headers["content-security-policy"]
            .to_str()
            .unwrap()
            .contains("default-src 'none'")
    );
    for needed in [
        "Ann Archer",
        "bob@corp.test",
        "eng, ops",
        "Sign in as Eve",
        "lang=\"en\"",
    ] {
        assert!(page.contains(needed), "{needed}");
    }
    assert!(!page.contains("<script"));
    let form = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("request", query)
        .append_pair("person", person)
        .finish();
    let (status, headers, _) = send(app, "POST", "/authorize", form).await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    let location = url::Url::parse(headers["location"].to_str().unwrap()).unwrap();
    assert!(location.as_str().starts_with(CALLBACK));
    let values = authorize::values(location.query().unwrap());
    assert_eq!(authorize::get(&values, "state"), Some("s&t"));
    assert_eq!(authorize::get(&values, "iss"), Some(ISSUER));
    values
}

fn exchange<'a>(code: &'a str, verifier: &'a str, uri: &'a url::Url) -> CodeExchange<'a> {
    CodeExchange {
        code,
        code_verifier: verifier,
        nonce: "nonce",
        redirect_uri: uri,
        issuer_parameter: Some(ISSUER),
        now: Timestamp::now(),
    }
}

#[tokio::test]
async fn a_whole_sign_in() {
    let (provider, app) = provider_and_router();
    let url = authorization(&*provider).await;
    let answer = pick(&app, &url, "ann").await;
    let code = authorize::get(&answer, "code").unwrap();
    let uri = callback();
    let ann = provider
        .exchange(exchange(code, "verifier", &uri))
        .await
        .unwrap();
    assert_eq!(ann.subject, "ann");
    assert_eq!(ann.claims["email"], "ann@corp.test");
    assert_eq!(ann.claims["groups"], json!(["eng", "ops"]));

    // A code works once.
    assert!(
        provider
            .exchange(exchange(code, "verifier", &uri))
            .await
            .unwrap_err()
            .is_refusal()
    );

    // Opaque access tokens are checked by introspection.
    let audiences = vec![CLIENT_ID.to_owned()];
    let ask = VerifyToken {
        token: &ann.tokens.access_token,
        audiences: &audiences,
        now: Timestamp::now(),
    };
    assert_eq!(
        provider.verify_access_token(ask).await.unwrap().subject,
        "ann"
    );

    // Refresh tokens rotate; the old one, used again, ends everything.
    let first = ann.tokens.refresh_token.clone().unwrap();
    let ask = Refresh {
        refresh_token: &first,
        expected_subject: Some("ann"),
        now: Timestamp::now(),
    };
    let next = provider.refresh(ask).await.unwrap();
    assert!(next.id_token.is_some());
    assert_ne!(next.tokens.refresh_token.as_deref(), Some(first.as_str()));
    let about = UserInfoRequest {
        access_token: &next.tokens.access_token,
        expected_subject: Some("ann"),
    };
    assert_eq!(
        provider.user_info(about).await.unwrap().unwrap()["name"],
        "Ann Archer"
    );
    assert!(provider.refresh(ask).await.unwrap_err().is_refusal());
    assert!(provider.user_info(about).await.unwrap_err().is_refusal());
}

#[tokio::test]
async fn wrong_verifier_wrong_secret_nobody() {
    let (provider, app) = provider_and_router();
    let url = authorization(&*provider).await;
    let answer = pick(&app, &url, "bob").await;
    let uri = callback();
    let code = authorize::get(&answer, "code").unwrap();
    assert!(
        provider
            .exchange(exchange(code, "another", &uri))
            .await
            .unwrap_err()
            .is_refusal()
    );

    let denied = pick(&app, &url, "").await;
    assert_eq!(authorize::get(&denied, "error"), Some("access_denied"));

    let form = format!(
        "grant_type=refresh_token&refresh_token=x&client_id={CLIENT_ID}&client_secret=guess"
    );
    let (status, _, body) = send(&app, "POST", "/token", form).await;
    assert_eq!(
        (status, body.contains("invalid_client")),
        (StatusCode::UNAUTHORIZED, true)
    );
}

#[tokio::test]
async fn s13_nobody_is_sent_to_unknown_addresses() {
    let (provider, app) = provider_and_router();
    let good = authorization(&*provider).await;
    let change = |name: &str, value: &str| {
        let pairs: Vec<_> = good
            .query_pairs()
            .map(|(k, v)| {
                if k == name {
                    (k, value.to_owned().into())
                } else {
                    (k, v)
                }
            })
            .collect();
        url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(pairs)
            .finish()
    };
    for (name, value) in [
        ("client_id", "other"),
        ("redirect_uri", "https://evil.test/oauth2/callback"),
        (
            "redirect_uri",
            "https://auth.localhost:8443/oauth2/callback/../x",
        ),
        ("redirect_uri", "javascript:alert(1)"),
    ] {
        let query = change(name, value);
        for (method, uri, body) in [
            ("GET", format!("/authorize?{query}"), String::new()),
            (
                "POST",
                "/authorize".to_owned(),
                format!(
                    "person=ann&request={}",
                    url::form_urlencoded::byte_serialize(query.as_bytes()).collect::<String>()
                ),
            ),
        ] {
            let (status, headers, page) = send(&app, method, &uri, body).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{value}");
            assert!(!headers.contains_key("location") && !page.contains("evil"));
        }
    }
    for (name, value, error) in [
        ("response_type", "token", "unsupported_response_type"),
        ("scope", "profile", "invalid_scope"),
        ("code_challenge_method", "plain", "invalid_request"),
    ] {
        let (status, headers, _) = send(
            &app,
            "GET",
            &format!("/authorize?{}", change(name, value)),
            String::new(),
        )
        .await;
        assert_eq!(status, StatusCode::SEE_OTHER);
        assert!(headers["location"].to_str().unwrap().contains(error));
    }
}

#[tokio::test]
async fn c26_signing_out() {
    let (provider, app) = provider_and_router();
    let url = authorization(&*provider).await;
    let answer = pick(&app, &url, "eve").await;
    let uri = callback();
    let eve = provider
        .exchange(exchange(
            authorize::get(&answer, "code").unwrap(),
            "verifier",
            &uri,
        ))
        .await
        .unwrap();
    let signed_out = url::Url::parse("https://auth.localhost:8443/.pomerium/signed_out").unwrap();
    let hint = eve.id_token.unwrap().raw;
    let out = provider
        .end_session_url(EndSession {
            id_token_hint: Some(&hint),
            target: None,
            signed_out: &signed_out,
        })
        .await
        .unwrap()
        .unwrap();
    let (status, headers, _) = send(
        &app,
        "GET",
        &format!("/logout?{}", out.url.query().unwrap()),
        String::new(),
    )
    .await;
    assert_eq!(
        (status, &headers["location"]),
        (StatusCode::SEE_OTHER, &signed_out.as_str().parse().unwrap())
    );
    let about = UserInfoRequest {
        access_token: &eve.tokens.access_token,
        expected_subject: None,
    };
    assert!(matches!(
        provider.user_info(about).await,
        Err(ProviderError::Refused(_))
    ));

    let (status, headers, page) = send(
        &app,
        "GET",
        "/logout?client_id=postern-demo&post_logout_redirect_uri=https://evil.test/",
        String::new(),
    )
    .await;
    assert_eq!(
        (status, headers.contains_key("location")),
        (StatusCode::OK, false)
    );
    assert!(page.contains("Signed out"));
}

#[tokio::test]
async fn revoked_tokens_are_gone() {
    let (provider, app) = provider_and_router();
    let url = authorization(&*provider).await;
    let answer = pick(&app, &url, "ann").await;
    let uri = callback();
    let ann = provider
        .exchange(exchange(
            authorize::get(&answer, "code").unwrap(),
            "verifier",
            &uri,
        ))
        .await
        .unwrap();
    provider.revoke(&ann.tokens).await.unwrap();
    let about = UserInfoRequest {
        access_token: &ann.tokens.access_token,
        expected_subject: None,
    };
    assert!(provider.user_info(about).await.unwrap_err().is_refusal());
    let refresh = ann.tokens.refresh_token.unwrap();
    let ask = Refresh {
        refresh_token: &refresh,
        expected_subject: None,
        now: Timestamp::now(),
    };
    assert!(provider.refresh(ask).await.unwrap_err().is_refusal());
}
