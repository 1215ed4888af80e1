//! What tests of this crate share: a configuration, routes, people and requests to start from.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method};
use jiff::Timestamp;
use postern_common::authz::{CheckRequest, CheckSubject, Scheme};
use postern_common::config::source::Environment;
use postern_common::config::*;
use postern_common::rpc::stubs::{databroker, session, user};
use postern_policy::Policy;
use serde_json::{Value, json};

use crate::facts::{Person, PersonKind, PersonVersions};
use crate::records::{Claims, Session, User, record_type};

pub const NOW: i64 = 1_767_225_600;

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

pub fn request(path: &str, headers: &[(&'static str, &str)]) -> CheckRequest {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, HeaderValue::from_str(value).unwrap());
    }
    CheckRequest {
        request_id: "request-1".into(),
        subject: CheckSubject::OwnEndpoint,
        method: Method::GET,
        scheme: Scheme::Https,
        host: "app.corp.test".into(),
        path: path.into(),
        query: None,
        headers: map,
        client_address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9)),
        client_certificate: None,
        trace: None,
    }
}

pub fn route(id: &str, policy: &Value) -> Route {
    let mut config = load(
        "routes: [{from: 'https://app.corp.test', response: {status: 200}, allow_any_authenticated_user: true}]",
    );
    let route = config.routes.pop().and_then(Arc::into_inner).unwrap();
    Route {
        id: RouteId(id.into()),
        checksum: RouteChecksum(7),
        name: id.to_owned(),
        policy: Policy::compile(policy).unwrap(),
        ..route
    }
}

pub fn config(routes: Vec<Route>) -> Config {
    Config {
        provider_id: Some("IDP".into()),
        routes: routes.into_iter().map(Arc::new).collect(),
        checksum: 1,
        ..load("")
    }
}

fn load(added: &str) -> Config {
    let secret = "dGVzdHMgc2hhcmUgdGhpcyBzZWNyZXQsIDMyIGJ5dGU=";
    let text = format!(
        "services: authorize\nauthenticate_service_url: https://auth.corp.test\n\
         databroker_service_url: http://127.0.0.1:1\ngrpc_insecure: true\nshared_secret: {secret}\n{added}\n"
    );
    let loaded = load_text(
        Path::new("config.yaml"),
        &text,
        &Environment::default(),
        &ProcessSecrets::default(),
    );
    let config = loaded
        .config
        .unwrap_or_else(|| panic!("{}", loaded.diagnostics));
    Arc::into_inner(config).unwrap()
}

/// Ann, in the groups eng and ops.
pub fn ann() -> Person {
    Person {
        id: "session-ann".into(),
        kind: PersonKind::Session {
            own: Arc::new(Session {
                id: "session-ann".into(),
                user_id: "user-ann".into(),
                idp_id: "IDP".into(),
                valid_until: Some(at(NOW + 3600)),
                claims: Claims::of(json!({"groups": ["eng", "ops"], "name": ["Ann"]})),
                impersonates: None,
                devices: Vec::new(),
                tokens: None,
                audience: Vec::new(),
            }),
            impersonated: None,
        },
        user_id: "user-ann".into(),
        user: Some(Arc::new(User {
            id: "user-ann".into(),
            email: "ann@corp.test".into(),
            claims: Claims::default(),
        })),
        directory: None,
        group_names: Vec::new(),
        devices: Vec::new(),
        valid_until: Some(at(NOW + 3600)),
        versions: PersonVersions::default(),
    }
}

fn list(values: &[&str]) -> prost_types::ListValue {
    prost_types::ListValue {
        values: values
            .iter()
            .map(|text| prost_types::Value {
                kind: Some(prost_types::value::Kind::StringValue((*text).to_owned())),
            })
            .collect(),
    }
}

pub fn session_message(user_id: &str, groups: &[&str]) -> session::Session {
    session::Session {
        user_id: user_id.to_owned(),
        idp_id: "IDP".to_owned(),
        expires_at: Some(prost_types::Timestamp {
            seconds: 4_000_000_000,
            nanos: 0,
        }),
        claims: [("groups".to_owned(), list(groups))].into(),
        ..Default::default()
    }
}

pub fn user_message(email: &str) -> user::User {
    user::User {
        email: email.to_owned(),
        ..Default::default()
    }
}

pub fn record(
    kind: &str,
    id: &str,
    version: u64,
    message: &impl prost::Message,
) -> databroker::Record {
    databroker::Record {
        version,
        r#type: kind.to_owned(),
        id: id.to_owned(),
        data: Some(prost_types::Any {
            type_url: kind.to_owned(),
            value: message.encode_to_vec(),
        }),
        ..Default::default()
    }
}

pub fn session_record(id: &str, version: u64, message: &session::Session) -> databroker::Record {
    record(record_type::SESSION, id, version, message)
}

pub fn user_record(id: &str, version: u64, message: &user::User) -> databroker::Record {
    record(record_type::USER, id, version, message)
}

pub fn deletion(of: databroker::Record, version: u64) -> databroker::Record {
    databroker::Record {
        version,
        deleted_at: Some(prost_types::Timestamp::default()),
        ..of
    }
}
