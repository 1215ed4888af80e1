use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use http::Method;
use postern_common::authz::{CheckSubject, Scheme};
use postern_common::config::SameSite;
use postern_common::crypto::signed_url::{self, param};

use super::*;

fn request(headers: &[(&'static str, &str)]) -> CheckRequest {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, HeaderValue::from_str(value).unwrap());
    }
    CheckRequest {
        request_id: "r".into(),
        subject: CheckSubject::OwnEndpoint,
        method: Method::GET,
        scheme: Scheme::Http,
        host: "app.corp.test".into(),
        path: "/a%20b".into(),
        query: Some("x=1&y=%2F".into()),
        headers: map,
        client_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        client_certificate: None,
        trace: None,
    }
}

fn cookie_options() -> CookieOptions {
    CookieOptions {
        name: "_pomerium".into(),
        domain: None,
        http_only: true,
        expire: Duration::from_secs(60),
        same_site: SameSite::Lax,
    }
}

const RANDOM: Random = Random {
    cookie: [1; 16],
    nonce: [2; 16],
};

struct Setting {
    secret: SecretKey,
    authenticate: Url,
    cookie: CookieOptions,
    depends_on: Vec<String>,
}

impl Setting {
    fn new() -> Self {
        Self {
            secret: SecretKey::random(),
            authenticate: "https://auth.corp.test".parse().unwrap(),
            cookie: cookie_options(),
            depends_on: Vec::new(),
        }
    }

    fn challenge(&self, request: &CheckRequest) -> Challenge {
        let sign_in = SignIn {
            authenticate: &self.authenticate,
            shared_secret: &self.secret,
            cookie: &self.cookie,
            provider_id: Some("IDP"),
            depends_on: &self.depends_on,
        };
        challenge(request, &sign_in, RANDOM, at(1_767_225_600))
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn location(challenge: &Challenge) -> Url {
    match &challenge.kind {
        DenyKind::SignIn { location } => location.parse().unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_browser_is_sent_to_sign_in() {
    let setting = Setting::new();
    let made = setting.challenge(&request(&[("sec-fetch-mode", "navigate")]));
    let url = location(&made);
    assert!(
        url.as_str()
            .starts_with("https://auth.corp.test/.pomerium/sign_in?")
    );
    let verified = signed_url::verify(
        std::slice::from_ref(&setting.secret),
        &url,
        at(1_767_225_600 + 300),
    )
    .unwrap();
    // https, as browsers have it, wherever TLS ends.
    assert_eq!(
        verified.get(param::REDIRECT_URI),
        Some("https://app.corp.test/a%20b?x=1&y=%2F")
    );
    assert_eq!(verified.get(param::IDP_ID), Some("IDP"));
    assert_eq!(verified.get(param::ADDITIONAL_HOSTS), None);
}

#[test]
fn a_sign_in_for_further_hosts_visits_them_first() {
    let mut setting = Setting::new();
    setting.depends_on = vec!["b.corp.test".into(), "c.corp.test".into()];
    let url = location(&setting.challenge(&request(&[("sec-fetch-mode", "navigate")])));
    assert!(
        url.as_str()
            .starts_with("https://b.corp.test/.pomerium/begin?"),
        "{url}"
    );
    let keys = std::slice::from_ref(&setting.secret);
    let verified = signed_url::verify(keys, &url, at(1_767_225_600)).unwrap();
    assert_eq!(
        verified.get(param::ADDITIONAL_HOSTS),
        Some("b.corp.test,c.corp.test")
    );
}

#[test]
fn s11_the_link_is_bound_to_the_browser() {
    let setting = Setting::new();
    let made = setting.challenge(&request(&[]));
    let verified = signed_url::verify(
        std::slice::from_ref(&setting.secret),
        &location(&made),
        at(1_767_225_600),
    )
    .unwrap();
    let callback: Url = verified.get(param::CALLBACK_URI).unwrap().parse().unwrap();
    assert_eq!(callback.path(), "/.pomerium/callback/");
    let query = |name: &str| {
        callback
            .query_pairs()
            .find(|(n, _)| n == name)
            .unwrap()
            .1
            .into_owned()
    };
    let (value, nonce) = (query(param::BINDING), query(param::BINDING_NONCE));
    let (_, set_cookie) = &made.headers[0];
    let text = set_cookie.to_str().unwrap();
    assert!(text.contains("; HttpOnly; Secure; SameSite=Lax") && !text.contains("Domain"));
    let mine = text
        .strip_prefix("_pomerium_binding=")
        .and_then(|rest| rest.split(';').next())
        .and_then(BindingCookie::from_text)
        .unwrap();
    let keys = [setting.secret.clone()];
    assert!(binding::matches(&keys, &mine, &nonce, &value));
    assert!(!binding::matches(
        &keys,
        &BindingCookie::new([9; 16]),
        &nonce,
        &value
    ));

    // All tabs of a browser share the cookie.
    let known = BindingCookie::new([7; 16]);
    let again = setting.challenge(&request(&[(
        "cookie",
        &format!("_pomerium_binding={}", known.to_text()),
    )]));
    assert!(
        again.headers[0]
            .1
            .to_str()
            .unwrap()
            .contains(&known.to_text())
    );
}

#[test]
fn c25_programs_are_told() {
    let setting = Setting::new();
    for headers in [
        &[("sec-fetch-mode", "cors"), ("accept", "*/*")][..],
        &[("x-requested-with", "XMLHttpRequest")],
        &[("accept", "application/json")],
        &[("content-type", "application/grpc")],
        &[("authorization", "Pomerium gone")],
    ] {
        let made = setting.challenge(&request(headers));
        match made.kind {
            DenyKind::Unauthenticated {
                sign_in_url: Some(_),
            } => {}
            other => panic!("{headers:?}: {other:?}"),
        }
    }
}

#[test]
fn nobody_signs_in_for_a_prefetch() {
    let setting = Setting::new();
    let made = setting.challenge(&request(&[
        ("sec-fetch-mode", "navigate"),
        ("sec-purpose", "prefetch;prerender"),
    ]));
    assert_eq!(made.kind, DenyKind::Unauthenticated { sign_in_url: None });
    assert!(made.headers.is_empty());
}

#[test]
fn a_host_that_is_none_gets_no_link() {
    let setting = Setting::new();
    for host in ["a/b", "user@evil.test", "a?b", "", "a b"] {
        let request = CheckRequest {
            host: host.into(),
            ..request(&[])
        };
        let made = setting.challenge(&request);
        assert_eq!(
            made.kind,
            DenyKind::Unauthenticated { sign_in_url: None },
            "{host:?}"
        );
    }
}
