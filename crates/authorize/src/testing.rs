//! What tests of this crate share: a configuration, routes, people and requests to start from.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method};
use jiff::Timestamp;
use postern_common::authz::{CheckRequest, CheckSubject, Scheme};
use postern_common::config::*;
use postern_common::crypto::keys::{SecretKey, SigningKeys};
use postern_common::rpc::stubs::{databroker, session, user};
use postern_policy::Policy;
use serde_json::{Value, json};

use crate::facts::{Person, PersonKind, PersonVersions};
use crate::records::{Session, User, record_type};

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
    }
}

pub fn route(id: &str, policy: &Value) -> Route {
    Route {
        id: RouteId(id.into()),
        checksum: RouteChecksum(7),
        name: id.to_owned(),
        description: String::new(),
        logo_url: None,
        from: RouteFrom {
            scheme: FromScheme::Https,
            host: "app.corp.test".into(),
            port: None,
            also: None,
            text: "https://app.corp.test".into(),
        },
        matcher: PathMatcher::Any,
        target: RouteTarget::Response(FixedResponse {
            status: http::StatusCode::OK,
            body: String::new(),
        }),
        policy: Policy::compile(policy).unwrap(),
        error_details: ErrorDetails::Hide,
        depends_on: Vec::new(),
        identity: RouteIdentity {
            headers: PassIdentity::No,
            issuer: IssuerFormat::HostOnly,
            groups_filter: Vec::new(),
        },
        provider_client: None,
        provider_id: None,
        bearer: RouteBearer {
            format: BearerTokenFormat::Default,
            audiences: None,
            verifiers: Vec::new(),
        },
        request_headers: RequestHeaders::default(),
        response_headers: ResponseHeaders::default(),
        kubernetes_token: None,
    }
}

pub fn config(routes: Vec<Route>) -> Config {
    let secret = SecretKey::random();
    Config {
        services: Services::all(),
        listen: Listen {
            public: None,
            grpc: None,
            http_redirect: None,
            health: "127.0.0.1:0".parse().unwrap(),
            proxy_protocol: ProxyProtocol::Off,
        },
        server_tls: ServerTls::Off,
        certificate_authorities: Vec::new(),
        urls: ServiceUrls {
            authenticate: "https://auth.corp.test".parse().unwrap(),
            authenticate_internal: None,
            authorize: Vec::new(),
            databroker: Vec::new(),
        },
        grpc: Grpc {
            listener: GrpcListenerSecurity::ClearText,
            client_timeout: Duration::from_secs(10),
            override_certificate_name: None,
            ext_authz: ExtAuthzCallers::OwnServicesOnly,
        },
        signing_keys: Arc::new(SigningKeys::derived_from(&secret).unwrap()),
        secrets: Secrets {
            shared: vec![secret],
            cookie: vec![SecretKey::random()],
            storage: Vec::new(),
        },
        provider: None,
        provider_id: Some("IDP".into()),
        jwt_verifiers: BTreeMap::new(),
        cookie: CookieOptions {
            name: "_pomerium".into(),
            domain: None,
            http_only: true,
            expire: Duration::from_secs(14 * 3600),
            same_site: SameSite::Lax,
        },
        storage: StorageOptions::Memory,
        identity: IdentityHeaders {
            claims_headers: Vec::new(),
            groups_filter: Vec::new(),
            assertion_reuse: Duration::from_secs(60),
        },
        programs: ProgrammaticAccess {
            redirect_domains: Vec::new(),
            unbound_callbacks: UnboundCallbacks::Refuse,
        },
        http: HttpOptions {
            codec: Codec::Auto,
            timeout_read: Duration::ZERO,
            timeout_write: Duration::ZERO,
            timeout_idle: Duration::ZERO,
            default_upstream_timeout: Duration::ZERO,
            set_response_headers: Vec::new(),
            trusted_hops: 0,
            append_forwarded_for: true,
            path: PathNormalization {
                merge_slashes: true,
                dot_segments: true,
                escaped_slashes: EscapedSlashes::Reject,
            },
            underscore_headers: UnderscoreHeaders::Allow,
        },
        dns: DnsOptions::default(),
        downstream_mtls: None,
        log: LogOptions {
            level: LogLevel::Info,
            proxy_level: LogLevel::Info,
            access_fields: None,
            authorize_fields: None,
        },
        metrics: None,
        branding: Branding::default(),
        flags: RuntimeFlags::default(),
        signout_redirect_url: None,
        routes: routes.into_iter().map(Arc::new).collect(),
        checksum: 1,
    }
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
                claims: serde_json::from_value(json!({"groups": ["eng", "ops"], "name": ["Ann"]}))
                    .unwrap(),
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
            claims: BTreeMap::new(),
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
