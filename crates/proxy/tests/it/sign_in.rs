//! The callback: whose sign-in it is, and what it sets.

use http::StatusCode;
use jiff::Timestamp;
use postern_common::crypto::binding::{self, BindingCookie};
use postern_common::crypto::handle::{Handle, Purpose};
use postern_common::crypto::keys::SecretKey;
use postern_common::crypto::{seal, signed_url};
use url::Url;

use crate::support::authorizer::Scripted;
use crate::support::client::{Answer, get};
use crate::support::proxy::{Proxy, SHARED};

const HOST: &str = "app.corp.test";
const ROUTES: &str = "routes:\n- {from: 'https://app.corp.test', to: 'http://127.0.0.1:1'}\n- {from: 'https://b.corp.test', to: 'http://127.0.0.1:1'}\n- {from: 'https://c.corp.test', to: 'http://127.0.0.1:1'}\n";

fn key() -> SecretKey {
    SecretKey::from_base64(SHARED).unwrap()
}

fn handle(purpose: Option<Purpose>, audience: &str) -> String {
    Handle {
        id: "session-1".into(),
        subject: "ann".into(),
        issuer: "auth.corp.test".into(),
        audience: vec![audience.to_owned()],
        purpose,
        ..Handle::default()
    }
    .encode(&key())
}

fn sealed(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE.encode(seal::seal(&key(), text.as_bytes(), &[]))
}

/// The path and query of a signed callback.
fn link(host: &str, pairs: &[(&str, &str)], now: Timestamp) -> String {
    let mut url = Url::parse(&format!("https://{host}/.pomerium/callback/")).unwrap();
    url.query_pairs_mut().extend_pairs(pairs);
    let signed = signed_url::sign(&key(), &url, now);
    format!("{}?{}", signed.path(), signed.query().unwrap())
}

struct Binding {
    cookie: String,
    value: String,
    nonce: String,
}

fn bound() -> Binding {
    let cookie = BindingCookie::new([7; 16]);
    Binding {
        cookie: format!("_pomerium_binding={}", cookie.to_text()),
        value: binding::value(&key(), &cookie, [9; 16]),
        nonce: binding::nonce_text([9; 16]),
    }
}

async fn proxy() -> Proxy {
    Proxy::start(ROUTES, Scripted::new(|_| panic!("nobody is asked"))).await
}

fn session_cookie(answer: &Answer) -> Option<&str> {
    answer
        .headers
        .get("set-cookie")
        .map(|value| value.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_browser_that_began_gets_the_cookie() {
    let proxy = proxy().await;
    let (binding, token) = (bound(), handle(Some(Purpose::Browser), HOST));
    let sealed = sealed(&token);
    let pairs = [
        ("pomerium_additional_hosts", ""),
        ("pomerium_binding", binding.value.as_str()),
        ("pomerium_binding_nonce", binding.nonce.as_str()),
        (
            "pomerium_redirect_uri",
            "https://app.corp.test/deep/link?q=%0A&x=1",
        ),
        ("pomerium_session_encrypted", sealed.as_str()),
    ];
    let target = link(HOST, &pairs, Timestamp::now());
    let answer = get(&proxy, HOST, &target, &[("cookie", &binding.cookie)]).await;
    assert_eq!(answer.status, StatusCode::FOUND, "{}", answer.body);
    assert_eq!(
        answer.header("location"),
        "https://app.corp.test/deep/link?q=%0A&x=1"
    );
    let cookie = session_cookie(&answer).unwrap();
    assert!(
        cookie.starts_with(&format!("_pomerium={token}; ")),
        "{cookie}"
    );
    for attribute in ["Secure", "HttpOnly", "SameSite=Lax", "Path=/"] {
        assert!(cookie.contains(attribute), "s49 {cookie}");
    }
    assert!(!cookie.contains("Domain"), "s49 host-only");
    assert!(cookie.len() < 2048, "c20");

    // s11: the same link in another browser.
    let other = BindingCookie::new([8; 16]).to_text();
    let stolen = [("cookie", format!("_pomerium_binding={other}"))];
    for headers in [vec![], vec![("cookie", stolen[0].1.as_str())]] {
        let answer = get(&proxy, HOST, &target, &headers).await;
        assert_eq!(
            (answer.status, session_cookie(&answer)),
            (StatusCode::BAD_REQUEST, None)
        );
    }
    // s14: on another host, altered, or later.
    let on_b = get(
        &proxy,
        "b.corp.test",
        &target,
        &[("cookie", &binding.cookie)],
    )
    .await;
    assert_eq!(on_b.status, StatusCode::BAD_REQUEST);
    let altered = target.replace("deep", "DEEP");
    let answer = get(&proxy, HOST, &altered, &[("cookie", &binding.cookie)]).await;
    assert_eq!(
        (answer.status, session_cookie(&answer)),
        (StatusCode::BAD_REQUEST, None)
    );
    let old = link(
        HOST,
        &pairs,
        Timestamp::now() - jiff::SignedDuration::from_mins(10),
    );
    let answer = get(&proxy, HOST, &old, &[("cookie", &binding.cookie)]).await;
    assert_eq!(
        (answer.status, session_cookie(&answer)),
        (StatusCode::BAD_REQUEST, None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn s11_unbound_callbacks_set_nothing_unless_configured() {
    let sealed = sealed(&handle(None, HOST));
    let pairs = [
        ("pomerium_redirect_uri", "https://app.corp.test/"),
        ("pomerium_session_encrypted", sealed.as_str()),
    ];
    let target = link(HOST, &pairs, Timestamp::now());
    let strict = proxy().await;
    let answer = get(&strict, HOST, &target, &[]).await;
    assert_eq!(
        (answer.status, session_cookie(&answer)),
        (StatusCode::BAD_REQUEST, None)
    );
    let lenient = format!("accept_unbound_callbacks: true\n{ROUTES}");
    let lenient = Proxy::start(&lenient, Scripted::allowing()).await;
    let answer = get(&lenient, HOST, &target, &[]).await;
    assert_eq!(answer.status, StatusCode::FOUND);
    assert!(session_cookie(&answer).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_programs_callback_never_sets_a_cookie() {
    let proxy = proxy().await;
    let token = handle(Some(Purpose::Program), HOST);
    let sealed = sealed(&token);
    let pairs = [
        ("pomerium_programmatic", "true"),
        ("pomerium_redirect_uri", "http://127.0.0.1:4000/cb?x=1"),
        ("pomerium_session_encrypted", sealed.as_str()),
    ];
    let answer = get(&proxy, HOST, &link(HOST, &pairs, Timestamp::now()), &[]).await;
    assert_eq!(
        (answer.status, session_cookie(&answer)),
        (StatusCode::FOUND, None)
    );
    let expected = format!("http://127.0.0.1:4000/cb?x=1&pomerium_jwt={token}");
    assert_eq!(answer.header("location"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn s13_s08_only_good_targets_and_good_handles() {
    let proxy = proxy().await;
    let binding = bound();
    let ask = async |redirect: &str, token: &str| {
        let sealed = sealed(token);
        let pairs = [
            ("pomerium_binding", binding.value.as_str()),
            ("pomerium_binding_nonce", binding.nonce.as_str()),
            ("pomerium_redirect_uri", redirect),
            ("pomerium_session_encrypted", sealed.as_str()),
        ];
        let target = link(HOST, &pairs, Timestamp::now());
        let answer = get(&proxy, HOST, &target, &[("cookie", &binding.cookie)]).await;
        (answer.status, session_cookie(&answer).is_some())
    };
    let good = handle(Some(Purpose::Browser), HOST);
    let refused = (StatusCode::BAD_REQUEST, false);
    for redirect in [
        "https://evil.test/",
        "//evil.test",
        "javascript:alert(1)",
        "http://app.corp.test/",
    ] {
        assert_eq!(ask(redirect, &good).await, refused, "{redirect}");
    }
    let fine = "https://app.corp.test/";
    assert_eq!(ask(fine, &good).await, (StatusCode::FOUND, true));
    let foreign = Handle {
        id: "s".into(),
        ..Handle::default()
    }
    .encode(&SecretKey::random());
    assert_eq!(
        ask(fine, &foreign).await,
        refused,
        "signed by somebody else"
    );
    assert_eq!(
        ask(fine, &handle(Some(Purpose::Browser), "other.test")).await,
        refused
    );
    assert_eq!(
        ask(fine, &handle(Some(Purpose::Authenticate), HOST)).await,
        refused
    );
    assert_eq!(
        ask(fine, &handle(Some(Purpose::Program), HOST)).await,
        refused
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn depends_on_goes_from_host_to_host() {
    let proxy = proxy().await;
    let (binding, sealed) = (bound(), sealed(&handle(Some(Purpose::Browser), HOST)));
    let pairs = [
        ("pomerium_additional_hosts", "b.corp.test,c.corp.test"),
        ("pomerium_binding", binding.value.as_str()),
        ("pomerium_binding_nonce", binding.nonce.as_str()),
        ("pomerium_redirect_uri", "https://app.corp.test/x"),
        ("pomerium_session_encrypted", sealed.as_str()),
    ];
    let target = link(HOST, &pairs, Timestamp::now());
    let answer = get(&proxy, HOST, &target, &[("cookie", &binding.cookie)]).await;
    assert!(session_cookie(&answer).is_some());
    let next: Url = answer.header("location").parse().unwrap();
    assert_eq!(next.host_str(), Some("b.corp.test"));
    // The browser did not begin there: no cookie, and on to the next host, and to the target.
    let hop = format!("{}?{}", next.path(), next.query().unwrap());
    let answer = get(&proxy, "b.corp.test", &hop, &[]).await;
    assert_eq!(
        (answer.status, session_cookie(&answer)),
        (StatusCode::FOUND, None)
    );
    let next: Url = answer.header("location").parse().unwrap();
    assert_eq!(next.host_str(), Some("c.corp.test"));
    let hop = format!("{}?{}", next.path(), next.query().unwrap());
    let answer = get(&proxy, "c.corp.test", &hop, &[]).await;
    assert_eq!(
        (answer.status, session_cookie(&answer)),
        (StatusCode::FOUND, None)
    );
    assert_eq!(answer.header("location"), "https://app.corp.test/x");
    // s11: the first host refuses another browser, however many hosts follow.
    let answer = get(&proxy, HOST, &target, &[]).await;
    assert_eq!(
        (answer.status, session_cookie(&answer)),
        (StatusCode::BAD_REQUEST, None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_ends_in_a_page_that_names_the_cause() {
    use postern_common::authz::DenyKind;
    let authorizer = Scripted::new(|_| {
        let location = "https://auth.corp.test/.pomerium/sign_in".to_owned();
        Ok(crate::support::authorizer::deny(DenyKind::SignIn {
            location,
        }))
    });
    let proxy = Proxy::start(ROUTES, authorizer).await;
    let (binding, sealed) = (bound(), sealed(&handle(Some(Purpose::Browser), HOST)));
    let pairs = [
        ("pomerium_binding", binding.value.as_str()),
        ("pomerium_binding_nonce", binding.nonce.as_str()),
        ("pomerium_redirect_uri", "https://app.corp.test/"),
        ("pomerium_session_encrypted", sealed.as_str()),
    ];
    let mut cookies = binding.cookie.clone();
    for _ in 0..2 {
        let navigation = get(&proxy, HOST, "/", &[("cookie", &cookies)]).await;
        assert_eq!(navigation.status, StatusCode::FOUND);
        let target = link(HOST, &pairs, Timestamp::now());
        let callback = get(&proxy, HOST, &target, &[("cookie", &cookies)]).await;
        let counted = callback.headers.get_all("set-cookie").iter();
        let counted = counted
            .map(|v| v.to_str().unwrap())
            .find(|v| v.contains("_signed_in="));
        let counted = counted.unwrap().split(';').next().unwrap();
        cookies = format!("{}; {counted}", binding.cookie);
    }
    let third = get(&proxy, HOST, "/", &[("cookie", &cookies)]).await;
    assert_eq!(
        (third.status, third.header("location")),
        (StatusCode::UNAUTHORIZED, "")
    );
    assert!(
        third.body.contains("did not keep the session cookie"),
        "{}",
        third.body
    );
}
