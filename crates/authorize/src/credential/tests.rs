use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderValue, Method};
use postern_common::authz::{CheckSubject, Scheme};
use postern_common::crypto::handle::Purpose;
use postern_common::crypto::keys::SecretKey;

use super::*;

fn request(headers: &[(&'static str, &str)], query: Option<&str>) -> CheckRequest {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, HeaderValue::from_str(value).unwrap());
    }
    CheckRequest {
        request_id: "r".into(),
        subject: CheckSubject::OwnEndpoint,
        method: Method::GET,
        scheme: Scheme::Https,
        host: "app.corp.test".into(),
        path: "/".into(),
        query: query.map(Into::into),
        headers: map,
        client_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        client_certificate: None,
        trace: None,
    }
}

fn handle(id: &str, purpose: Option<Purpose>) -> Handle {
    Handle {
        id: id.to_owned(),
        subject: "u".to_owned(),
        audience: vec!["app.corp.test".to_owned()],
        idp_id: "IDP".to_owned(),
        purpose,
        ..Handle::default()
    }
}

struct Setting {
    secrets: Vec<SecretKey>,
    handles: Handles,
    bearer: BearerTokenFormat,
}

impl Setting {
    fn new() -> Self {
        let secrets = vec![SecretKey::random(), SecretKey::random()];
        Self {
            handles: Handles::new(&secrets),
            secrets,
            bearer: BearerTokenFormat::Default,
        }
    }

    fn find(&self, request: &CheckRequest) -> Credential {
        let expected = Expected {
            handles: &self.handles,
            cookie_name: "_pomerium",
            cookie_domain: None,
            provider_ids: &["IDP"],
            bearer: self.bearer,
        };
        find(request, &expected)
    }

    fn token(&self, handle: &Handle) -> String {
        handle.encode(&self.secrets[0])
    }

    fn cookie(&self, handle: &Handle) -> String {
        format!("a=b; _pomerium={}; c=d", self.token(handle))
    }
}

fn id_of(credential: &Credential) -> &str {
    match credential {
        Credential::Handle { handle, .. } => &handle.id,
        other => panic!("no handle: {other:?}"),
    }
}

const REFUSED: Credential = Credential::None(NoCredential::Refused);

#[test]
fn where_handles_are_found() {
    let setting = Setting::new();
    let browser = setting.cookie(&handle("browser", Some(Purpose::Browser)));
    let program = setting.token(&handle("program", Some(Purpose::Program)));
    let plain = setting.token(&handle("plain", None));
    let cases = [
        (request(&[("cookie", &browser)], None), "browser"),
        (
            request(&[("x-pomerium-authorization", &program)], None),
            "program",
        ),
        (
            request(&[("authorization", &format!("Pomerium {program}"))], None),
            "program",
        ),
        (
            request(
                &[("authorization", &format!("Bearer Pomerium-{program}"))],
                None,
            ),
            "program",
        ),
        (
            request(&[], Some(&format!("x=1&pomerium_session={plain}"))),
            "plain",
        ),
        (
            request(
                &[("cookie", &browser), ("x-pomerium-authorization", &program)],
                None,
            ),
            "browser",
        ),
    ];
    for (request, id) in cases {
        assert_eq!(id_of(&setting.find(&request)), id);
    }
    assert_eq!(
        setting.find(&request(&[], None)),
        Credential::None(NoCredential::NotSent)
    );
}

#[test]
fn s08_only_in_its_place_and_for_its_host() {
    let setting = Setting::new();
    let browser = handle("s", Some(Purpose::Browser));
    let in_header = request(
        &[("x-pomerium-authorization", &setting.token(&browser))],
        None,
    );
    assert_eq!(
        setting.find(&in_header),
        REFUSED,
        "a cookie's value in a header"
    );
    for purpose in [Purpose::Program, Purpose::Authenticate] {
        let cookie = setting.cookie(&handle("s", Some(purpose)));
        assert_eq!(
            setting.find(&request(&[("cookie", &cookie)], None)),
            REFUSED
        );
    }
    let mut elsewhere = browser.clone();
    elsewhere.audience = vec!["other.corp.test".to_owned()];
    let request = request(&[("cookie", &setting.cookie(&elsewhere))], None);
    assert_eq!(setting.find(&request), REFUSED);
}

#[test]
fn s08_only_signed_by_us() {
    let setting = Setting::new();
    let foreign = Setting::new();
    let cookie = foreign.cookie(&handle("s", None));
    assert_eq!(
        setting.find(&request(&[("cookie", &cookie)], None)),
        REFUSED
    );
    // A cookie that does not count ends the search.
    let header = setting.token(&handle("program", None));
    let both = request(
        &[("cookie", &cookie), ("x-pomerium-authorization", &header)],
        None,
    );
    assert_eq!(setting.find(&both), REFUSED);
    // The second secret still verifies while keys rotate.
    let old = handle("s", None).encode(&setting.secrets[1]);
    let request = request(&[("cookie", &format!("_pomerium={old}"))], None);
    assert_eq!(id_of(&setting.find(&request)), "s");
}

#[test]
fn s49_several_cookies_of_the_name() {
    let setting = Setting::new();
    let (mine, other) = (handle("mine", None), handle("other", None));
    let (mine_text, other_text) = (setting.cookie(&mine), setting.cookie(&other));
    let garbage = "_pomerium=garbage";
    for headers in [
        vec![("cookie", garbage), ("cookie", mine_text.as_str())],
        vec![("cookie", &mine_text), ("cookie", garbage)],
        vec![("cookie", &mine_text), ("cookie", &mine_text)],
    ] {
        assert_eq!(id_of(&setting.find(&request(&headers, None))), "mine");
    }
    let tossed = request(&[("cookie", &mine_text), ("cookie", &other_text)], None);
    assert_eq!(
        setting.find(&tossed),
        Credential::None(NoCredential::TwoSessions)
    );
}

#[test]
fn handles_of_another_provider_do_not_count() {
    let setting = Setting::new();
    let mut other = handle("s", None);
    other.idp_id = "OTHER".to_owned();
    let request_other = request(&[("cookie", &setting.cookie(&other))], None);
    assert_eq!(
        setting.find(&request_other),
        Credential::None(NoCredential::OtherProvider)
    );
    // Service accounts are bound to none.
    other.idp_id.clear();
    let token = setting.token(&other);
    let request = request(&[("authorization", &format!("Pomerium {token}"))], None);
    assert_eq!(id_of(&setting.find(&request)), "s");
}

#[test]
fn bearer_tokens_where_the_route_reads_them() {
    let mut setting = Setting::new();
    let sent = request(&[("authorization", "bearer TOKEN")], None);
    assert_eq!(setting.find(&sent), Credential::None(NoCredential::NotSent));
    let cookie = setting.cookie(&handle("s", None));
    let both = request(
        &[("authorization", "Bearer TOKEN"), ("cookie", &cookie)],
        None,
    );
    assert_eq!(id_of(&setting.find(&both)), "s");

    setting.bearer = BearerTokenFormat::IdpAccessToken;
    let expected = Credential::Bearer(Bearer {
        format: BearerTokenFormat::IdpAccessToken,
        token: "TOKEN".to_owned(),
    });
    assert_eq!(setting.find(&sent), expected);
    assert_eq!(setting.find(&both), expected, "before the cookie");
    let own = format!("Bearer Pomerium-{}", setting.token(&handle("s", None)));
    assert_eq!(
        id_of(&setting.find(&request(&[("authorization", &own)], None))),
        "s"
    );

    setting.bearer = BearerTokenFormat::Jwt;
    assert_eq!(setting.find(&both), Credential::CookieAndBearer);
}

#[test]
fn s16_a_bearer_token_is_not_printed() {
    let bearer = Bearer {
        format: BearerTokenFormat::Jwt,
        token: "top-secret".into(),
    };
    assert!(!format!("{bearer:?}").contains("top-secret"));
}
