use std::sync::atomic::AtomicI32;

use http::header::SET_COOKIE;
use jiff::SignedDuration;
use postern_common::authz::{Deny, DenyKind};
use postern_common::config::{PassIdentity, Route};
use postern_common::crypto::handle::{Handle, Purpose};
use postern_common::rpc::Transport;
use postern_common::rpc::token::TokenKeys;
use postern_identity::HttpError;
use serde_json::json;
use tonic::service::Routes;
use tonic::{Code, Status};

use super::*;
use crate::records::KeepTokens;
use crate::replica::data::Data;
use crate::testing::{
    config, deletion, request, route, session_message, session_record, user_message, user_record,
};

/// A decision point whose databroker answers every call with one status.
struct Setting {
    local: Local,
    config: Arc<Config>,
    data: Arc<Data>,
    status: Arc<AtomicI32>,
    counted: postern_common::telemetry::metrics::Metrics,
}

const UNAVAILABLE: i32 = Code::Unavailable as i32;

impl Setting {
    fn new(routes: Vec<Route>) -> Self {
        Self::with(config(routes))
    }

    fn with(config: Config) -> Self {
        let status = Arc::new(AtomicI32::new(UNAVAILABLE));
        let answer = Arc::clone(&status);
        let router = axum::Router::new().fallback(move || {
            let code = Code::from_i32(answer.load(Ordering::Relaxed));
            async move { Status::new(code, "as the test says").into_http::<tonic::body::Body>() }
        });
        let transport = Transport::local(Routes::from(router));
        let config = Arc::new(config);
        let keys = TokenKeys::new(config.secrets.shared.clone());
        let counted = postern_common::telemetry::metrics::Metrics::default();
        let metrics = Metrics::new(&counted);
        let replica = Arc::new(Replica::new(transport, &keys, metrics.clone()));
        let data = Arc::new(Data::new(KeepTokens::No));
        replica.install(Arc::clone(&data), Instant::now());
        let http = HttpClient::new(|_| {
            async { Err(HttpError::Transport("no network in this test".into())) }.boxed()
        });
        Self {
            local: Local::new(&config, replica, http, metrics),
            config,
            data,
            status,
            counted,
        }
    }

    fn sign_in(&self, name: &str, groups: &[&str]) {
        let (session, user) = (format!("session-{name}"), format!("user-{name}"));
        let email = format!("{name}@corp.test");
        self.data
            .apply(&user_record(&user, 1, &user_message(&email)))
            .unwrap();
        let message = session_message(&user, groups);
        self.data
            .apply(&session_record(&session, 2, &message))
            .unwrap();
    }

    fn cookie(&self, handle: &Handle) -> String {
        format!(
            "_pomerium={}",
            handle.encode(&self.config.secrets.shared[0])
        )
    }

    async fn ask(&self, request: CheckRequest) -> Result<Decision, AuthorizeError> {
        self.local.check(Arc::new(request)).await
    }
}

fn handle(name: &str) -> Handle {
    Handle {
        id: format!("session-{name}"),
        subject: format!("user-{name}"),
        audience: vec!["app.corp.test".to_owned()],
        idp_id: "IDP".to_owned(),
        purpose: Some(Purpose::Browser),
        ..Handle::default()
    }
}

fn to_route(route: &str, headers: &[(&'static str, &str)]) -> CheckRequest {
    CheckRequest {
        subject: CheckSubject::Route {
            id: RouteId(route.into()),
            checksum: RouteChecksum(7),
        },
        ..request("/x", headers)
    }
}

fn allowed(decision: Result<Decision, AuthorizeError>) -> Allow {
    match decision.unwrap() {
        Decision::Allow(allow) => *allow,
        Decision::Deny(deny) => panic!("{deny:?}"),
    }
}

fn denied(decision: Result<Decision, AuthorizeError>) -> Deny {
    match decision.unwrap() {
        Decision::Deny(deny) => *deny,
        Decision::Allow(allow) => panic!("{allow:?}"),
    }
}

fn eng() -> Route {
    route(
        "eng",
        &json!([{"allow": {"and": [{"claim/groups": "eng"}]}}]),
    )
}

#[tokio::test]
async fn a_person_passes_with_identity() {
    let mut eng = eng();
    eng.identity.headers = PassIdentity::Yes;
    let mut config = config(vec![eng]);
    config.identity.claims_headers = vec![("x-email".parse().unwrap(), "email".to_owned())];
    let setting = Setting::with(config);
    setting.sign_in("ann", &["eng"]);
    let cookie = setting.cookie(&handle("ann"));
    let allow = allowed(setting.ask(to_route("eng", &[("cookie", &cookie)])).await);
    assert_eq!(allow.session.unwrap().email, "ann@corp.test");
    let names: Vec<_> = allow
        .set_headers
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names, ["x-pomerium-jwt-assertion", "x-email"]);
    assert_eq!(allow.set_headers[1].1, "ann@corp.test");
    assert!(!allow.consumed.bearer);
}

#[tokio::test]
async fn c22_whom_the_policy_refuses_is_not_sent_to_sign_in() {
    let setting = Setting::new(vec![eng()]);
    setting.sign_in("bob", &["sales"]);
    let cookie = setting.cookie(&handle("bob"));
    let deny = denied(setting.ask(to_route("eng", &[("cookie", &cookie)])).await);
    assert_eq!(deny.kind, DenyKind::Forbidden);
    assert_eq!(deny.reasons, ["claim-unauthorized"]);
    assert!(deny.details.is_none() && deny.headers.is_empty());
}

#[tokio::test]
async fn c09_what_is_not_known_is_not_signed_out() {
    let setting = Setting::new(vec![eng()]);
    let cookie = setting.cookie(&handle("ann"));
    let ask = || setting.ask(to_route("eng", &[("cookie", &cookie)]));
    for code in [
        Code::Unavailable,
        Code::DeadlineExceeded,
        Code::Unknown,
        Code::Internal,
    ] {
        setting.status.store(code as i32, Ordering::Relaxed);
        let error = ask().await.unwrap_err();
        assert!(
            matches!(error, AuthorizeError::DataUnavailable { .. }),
            "{error}"
        );
    }
    setting
        .status
        .store(Code::NotFound as i32, Ordering::Relaxed);
    let deny = denied(ask().await);
    assert!(
        matches!(deny.kind, DenyKind::SignIn { .. }),
        "{:?}",
        deny.kind
    );
}

#[tokio::test]
async fn s09_a_deleted_session_is_gone_though_the_databroker_is_away() {
    let setting = Setting::new(vec![eng()]);
    setting.sign_in("ann", &["eng"]);
    let cookie = setting.cookie(&handle("ann"));
    allowed(setting.ask(to_route("eng", &[("cookie", &cookie)])).await);
    let record = session_record("session-ann", 2, &session_message("user-ann", &[]));
    setting.data.apply(&deletion(record, 3)).unwrap();
    let deny = denied(setting.ask(to_route("eng", &[("cookie", &cookie)])).await);
    assert!(matches!(deny.kind, DenyKind::SignIn { .. }));
}

#[tokio::test]
async fn s08_an_expired_session_counts_no_more() {
    let setting = Setting::new(vec![eng()]);
    setting.sign_in("ann", &["eng"]);
    let ended = Timestamp::now() - SignedDuration::from_secs(1);
    let mut message = session_message("user-ann", &["eng"]);
    message.expires_at = Some(prost_types::Timestamp {
        seconds: ended.as_second(),
        nanos: 0,
    });
    setting
        .data
        .apply(&session_record("session-ann", 3, &message))
        .unwrap();
    let cookie = setting.cookie(&handle("ann"));
    let deny = denied(setting.ask(to_route("eng", &[("cookie", &cookie)])).await);
    assert!(matches!(deny.kind, DenyKind::SignIn { .. }));
}

#[tokio::test]
async fn who_just_signed_in_is_not_judged_by_old_data() {
    let setting = Setting::new(vec![eng()]);
    setting.sign_in("ann", &["eng"]);
    // The handle was made for version 9 of this data set; the copy has version 2.
    let mut newer = handle("ann");
    newer.record_version = 9;
    newer.server_version = setting.data.server_version;
    let cookie = setting.cookie(&newer);
    let error = setting
        .ask(to_route("eng", &[("cookie", &cookie)]))
        .await
        .unwrap_err();
    assert!(
        matches!(error, AuthorizeError::DataUnavailable { .. }),
        "it has to ask"
    );
    // Versions of another data set say nothing.
    newer.server_version += 1;
    let cookie = setting.cookie(&newer);
    allowed(setting.ask(to_route("eng", &[("cookie", &cookie)])).await);
}

#[tokio::test]
async fn s49_two_sessions_at_once_are_none_and_both_cookies_go() {
    let setting = Setting::new(vec![eng()]);
    setting.sign_in("ann", &["eng"]);
    setting.sign_in("eve", &["eng"]);
    let (ann, eve) = (
        setting.cookie(&handle("ann")),
        setting.cookie(&handle("eve")),
    );
    let both = format!("{ann}; {eve}");
    let deny = denied(setting.ask(to_route("eng", &[("cookie", &both)])).await);
    assert!(matches!(deny.kind, DenyKind::SignIn { .. }));
    let cleared: Vec<_> = deny
        .headers
        .iter()
        .filter(|(name, value)| {
            name == SET_COOKIE && value.to_str().unwrap().starts_with("_pomerium=;")
        })
        .collect();
    assert_eq!(
        cleared.len(),
        3,
        "host-only, app.corp.test, corp.test: {cleared:?}"
    );
}

#[tokio::test]
async fn s03_unknown_routes_are_no_answer() {
    let setting = Setting::new(vec![eng()]);
    let error = setting.ask(to_route("other", &[])).await.unwrap_err();
    assert!(matches!(error, AuthorizeError::UnknownConfiguration { .. }));
    let mut other_content = to_route("eng", &[]);
    other_content.subject = CheckSubject::Route {
        id: RouteId("eng".into()),
        checksum: RouteChecksum(8),
    };
    let error = setting.ask(other_content).await.unwrap_err();
    assert!(matches!(error, AuthorizeError::UnknownConfiguration { .. }));
}

#[tokio::test]
async fn a_route_of_the_configuration_before_needs_both_to_allow() {
    let public = |id: &str| route(id, &json!([{"allow": {"or": [{"accept": true}]}}]));
    let setting = Setting::new(vec![public("old")]);
    let reload = |routes: Vec<Route>| {
        let mut new = config(routes);
        new.secrets = setting.config.secrets.clone();
        setting.local.load(&Arc::new(new));
    };
    let mut revisits = setting.local.revisits();
    // The same place is served by another route that allows, too.
    reload(vec![public("new")]);
    assert_eq!(revisits.try_recv(), Ok(Revisit::Everything));
    allowed(setting.ask(to_route("old", &[])).await);
    allowed(setting.ask(to_route("new", &[])).await);
    // "old" is now two loads away.
    reload(vec![eng()]);
    let error = setting.ask(to_route("old", &[])).await.unwrap_err();
    assert!(matches!(error, AuthorizeError::UnknownConfiguration { .. }));
    // "new" is one load away, and its place is protected now.
    let deny = denied(setting.ask(to_route("new", &[])).await);
    assert!(matches!(deny.kind, DenyKind::SignIn { .. }));
    // Nothing serves the place any more.
    reload(Vec::new());
    let deny = denied(setting.ask(to_route("eng", &[])).await);
    assert_eq!(deny.kind, DenyKind::NotFound);
}

#[tokio::test]
async fn own_endpoints_work_while_sessions_cannot_be_read() {
    let setting = Setting::new(vec![eng()]);
    let cookie = setting.cookie(&handle("ann"));
    let open = request("/.pomerium/callback/", &[("cookie", &cookie)]);
    assert!(allowed(setting.ask(open).await).session.is_none());
    // Who has a cookie is not told to be signed out because nobody knows.
    for path in ["/.pomerium/", "/.pomerium/user", "/.pomerium/routes"] {
        let personal = request(path, &[("cookie", &cookie)]);
        let error = setting.ask(personal).await.unwrap_err();
        assert!(
            matches!(error, AuthorizeError::DataUnavailable { .. }),
            "{path}: {error}"
        );
    }
    let anonymous = allowed(setting.ask(request("/.pomerium/", &[])).await);
    assert!(anonymous.session.is_none());
    setting.sign_in("ann", &[]);
    let personal = request("/.pomerium/user", &[("cookie", &cookie)]);
    let allow = allowed(setting.ask(personal).await);
    assert_eq!(allow.set_headers[0].0, "x-pomerium-jwt-assertion");
}

#[tokio::test]
async fn details_only_where_the_route_shows_them() {
    let mut shown = eng();
    shown.error_details = postern_common::config::ErrorDetails::Show;
    let setting = Setting::new(vec![shown]);
    setting.sign_in("bob", &["sales"]);
    let cookie = setting.cookie(&handle("bob"));
    let deny = denied(setting.ask(to_route("eng", &[("cookie", &cookie)])).await);
    assert!(deny.details.unwrap().contains("claim-unauthorized"));
}

#[tokio::test]
async fn c79_large_headers_are_told_of_by_route() {
    let mut eng = eng();
    eng.identity.headers = PassIdentity::Yes;
    let setting = Setting::new(vec![eng]);
    let groups: Vec<_> = (0..300)
        .map(|n| format!("a-group-with-a-name-{n}"))
        .collect();
    let groups: Vec<&str> = groups.iter().map(String::as_str).chain(["eng"]).collect();
    setting.sign_in("ann", &groups);
    let cookie = setting.cookie(&handle("ann"));
    allowed(setting.ask(to_route("eng", &[("cookie", &cookie)])).await);
    let page = setting.counted.page().unwrap();
    let size = page
        .lines()
        .find_map(|line| {
            line.strip_prefix(r#"postern_authorize_large_headers_bytes{route="eng"} "#)
        })
        .unwrap();
    assert!(size.parse::<usize>().unwrap() > LARGE_HEADERS);
}

#[test]
fn names_of_hosts() {
    for (host, name) in [
        ("app.corp.test", "app.corp.test"),
        ("app.corp.test:8443", "app.corp.test"),
        ("[2001:db8::1]", "[2001:db8::1]"),
        ("[2001:db8::1]:8443", "[2001:db8::1]"),
    ] {
        assert_eq!(name_of(host), name);
    }
}
