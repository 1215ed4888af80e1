//! The callback: whose sign-in it is, and what it sets.

use http::StatusCode;
use jiff::Timestamp;
use postern_common::crypto::binding::{self, BindingCookie};
use postern_common::crypto::handle::{Handle, Purpose};
use postern_common::crypto::keys::SecretKey;
use postern_common::crypto::{seal, signed_url};
use postern_common::web::sign_in_link::{Page, SignInLink};
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
async fn c87_the_page_that_was_asked_for_is_arrived_at() {
    let proxy = proxy().await;
    let (binding, token) = (bound(), handle(Some(Purpose::Browser), HOST));
    let authenticate = "https://auth.corp.test".parse().unwrap();
    for (path, query) in [
        ("/", "q=it's"),
        ("/a/%0A/b", "q=x%0Ay&z=%2f+"),
        ("/{a}|b^c", "a=\"<>`{}|\\^[]"),
    ] {
        let page = Page {
            host: HOST,
            path,
            query: Some(query),
        };
        let cookie = BindingCookie::new([7; 16]);
        let link = SignInLink::begin(&page, &key(), &cookie, [9; 16], Some("IDP"), &[]).unwrap();
        let sign_in = link.next(&authenticate, &key(), Timestamp::now()).unwrap();
        let sign_in = format!("{}?{}", sign_in.path(), sign_in.query().unwrap());
        let callback = signed_in(&sign_in, &token);
        let answer = get(&proxy, HOST, &callback, &[("cookie", &binding.cookie)]).await;
        assert_eq!(answer.status, StatusCode::FOUND, "{}", answer.body);
        let expected = format!("https://{HOST}{path}?{query}");
        assert_eq!(answer.header("location"), expected);
    }
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

/// Path and query of where an answer leads, and its host.
fn onward(answer: &Answer) -> (String, String) {
    assert_eq!(answer.status, StatusCode::FOUND, "{}", answer.body);
    let url: Url = answer.header("location").parse().unwrap();
    let host = url.host_str().unwrap().to_owned();
    (host, format!("{}?{}", url.path(), url.query().unwrap()))
}

/// The pair that a `Set-Cookie` keeps.
fn kept(answer: &Answer) -> String {
    let text = session_cookie(answer).unwrap();
    text.split(';').next().unwrap().to_owned()
}

/// As authorize begins, for the browser of [`bound`].
fn begun(path: &str, hosts: &[String]) -> SignInLink {
    let page = Page {
        host: HOST,
        path,
        query: None,
    };
    let cookie = BindingCookie::new([7; 16]);
    SignInLink::begin(&page, &key(), &cookie, [9; 16], Some("IDP"), hosts).unwrap()
}

/// The first visit of a sign-in for app, b and c: where authorize sends the browser.
fn beginning(now: Timestamp) -> String {
    let hosts = ["b.corp.test".to_owned(), "c.corp.test".to_owned()];
    let link = begun("/x", &hosts);
    let authenticate = "https://auth.corp.test".parse().unwrap();
    let url = link.next(&authenticate, &key(), now).unwrap();
    format!("{}?{}", url.path(), url.query().unwrap())
}

/// What authenticate makes of a sign-in link: the callback's path and query.
fn signed_in(sign_in: &str, token: &str) -> String {
    let url = Url::parse(&format!("https://auth.corp.test{sign_in}")).unwrap();
    let get = |name: &str| {
        let mut pairs = url.query_pairs();
        let found = pairs.find(|(n, _)| n == name);
        found.map(|(_, value)| value.into_owned())
    };
    let callback: Url = get("pomerium_callback_uri").unwrap().parse().unwrap();
    let (sealed, target) = (sealed(token), get("pomerium_redirect_uri").unwrap());
    let hosts = get("pomerium_additional_hosts").unwrap_or_default();
    let mut pairs: Vec<_> = callback.query_pairs().collect();
    pairs.extend([
        ("pomerium_additional_hosts".into(), hosts.into()),
        ("pomerium_redirect_uri".into(), target.into()),
        ("pomerium_session_encrypted".into(), sealed.into()),
    ]);
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(n, v)| (&**n, &**v)).collect();
    link(HOST, &pairs, Timestamp::now())
}

#[tokio::test(flavor = "multi_thread")]
async fn depends_on_signs_in_on_every_host_that_the_browser_began_on() {
    let proxy = proxy().await;
    let handle = Handle {
        id: "session-1".into(),
        subject: "ann".into(),
        audience: ["app", "b", "c"]
            .map(|name| format!("{name}.corp.test"))
            .into(),
        purpose: Some(Purpose::Browser),
        ..Handle::default()
    };
    let token = handle.encode(&key());
    // Out: b and c keep a cookie each, and reuse it.
    let begin = beginning(Timestamp::now());
    let on_b = get(&proxy, "b.corp.test", &begin, &[]).await;
    let cookie_b = kept(&on_b);
    assert!(cookie_b.starts_with("_pomerium_binding="), "{cookie_b}");
    let again = get(&proxy, "b.corp.test", &begin, &[("cookie", &cookie_b)]).await;
    assert_eq!(kept(&again), cookie_b, "one for all tabs");
    let (host, target) = onward(&on_b);
    assert_eq!(host, "c.corp.test");
    let on_c = get(&proxy, "c.corp.test", &target, &[]).await;
    let cookie_c = kept(&on_c);
    let (host, sign_in) = onward(&on_c);
    assert_eq!(host, "auth.corp.test");

    // Back: each host takes the session.
    let callback = signed_in(&sign_in, &token);
    let answer = get(&proxy, HOST, &callback, &[("cookie", &bound().cookie)]).await;
    assert_eq!(kept(&answer), format!("_pomerium={token}"));
    let (host, hop_b) = onward(&answer);
    assert_eq!(host, "b.corp.test");
    let answer = get(&proxy, "b.corp.test", &hop_b, &[("cookie", &cookie_b)]).await;
    assert_eq!(kept(&answer), format!("_pomerium={token}"));
    let (host, hop_c) = onward(&answer);
    assert_eq!(host, "c.corp.test");
    let answer = get(&proxy, "c.corp.test", &hop_c, &[("cookie", &cookie_c)]).await;
    assert_eq!(kept(&answer), format!("_pomerium={token}"));
    assert_eq!(answer.header("location"), "https://app.corp.test/x");

    // s11: a hop in another browser, with a cookie of its own or without one, keeps nothing there,
    // and leads on.
    let other = format!(
        "_pomerium_binding={}",
        BindingCookie::new([3; 16]).to_text()
    );
    for headers in [&[][..], &[("cookie", &*other)], &[("cookie", &*cookie_c)]] {
        let answer = get(&proxy, "b.corp.test", &hop_b, headers).await;
        assert_eq!(session_cookie(&answer), None, "{headers:?}");
        assert_eq!(onward(&answer).0, "c.corp.test");
    }
    // s11: the first host refuses another browser, however many hosts follow.
    let answer = get(&proxy, HOST, &callback, &[]).await;
    assert_eq!(
        (answer.status, session_cookie(&answer)),
        (StatusCode::BAD_REQUEST, None)
    );
    // s14: a hop is good on its own host only.
    let answer = get(&proxy, "c.corp.test", &hop_b, &[("cookie", &cookie_c)]).await;
    assert_eq!(
        (answer.status, session_cookie(&answer)),
        (StatusCode::BAD_REQUEST, None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn s14_a_beginning_that_was_not_signed_for_here_and_now_is_refused() {
    let proxy = proxy().await;
    let good = beginning(Timestamp::now());
    let expired = beginning(Timestamp::now() - jiff::SignedDuration::from_mins(10));
    let forged = good.replace("app.corp.test", "evil.test");
    let unsigned = good.split("&pomerium_signature").next().unwrap();
    let authenticate = "https://auth.corp.test".parse().unwrap();
    let gone = begun("/", &["gone.corp.test".to_owned()]);
    let gone = gone.next(&authenticate, &key(), Timestamp::now()).unwrap();
    let gone = format!("{}?{}", gone.path(), gone.query().unwrap());
    for (host, target) in [
        ("b.corp.test", &*expired),
        ("b.corp.test", &forged),
        ("b.corp.test", unsigned),
        ("b.corp.test", "/.pomerium/begin"),
        // Signed for b.
        ("c.corp.test", &good),
        ("gone.corp.test", &good),
        // Signed for a host that no route serves.
        ("gone.corp.test", &gone),
    ] {
        let answer = get(&proxy, host, target, &[]).await;
        assert_eq!(
            (answer.status, session_cookie(&answer)),
            (StatusCode::BAD_REQUEST, None),
            "{host} {target}"
        );
    }
    // s13: never on to a host that is none of ours, whoever signed for it.
    let hosts = ["b.corp.test".to_owned(), "evil.test".to_owned()];
    let link = begun("/", &hosts);
    let url = link.next(&authenticate, &key(), Timestamp::now()).unwrap();
    let target = format!("{}?{}", url.path(), url.query().unwrap());
    let answer = get(&proxy, "b.corp.test", &target, &[]).await;
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
