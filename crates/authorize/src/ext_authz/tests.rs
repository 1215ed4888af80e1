use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use postern_common::authz::CheckSubject;
use postern_common::authz::{Allow, ConsumedCredentials, Decision, Deny, DenyKind, Scheme};
use postern_common::config::{RouteChecksum, RouteId};
use postern_common::rpc::stubs::envoy::config::core::v3::{
    Address, HeaderMap as ProtoHeaders, HeaderValue as ProtoValue, SocketAddress, address,
    socket_address::PortSpecifier,
};
use postern_common::rpc::stubs::ext_authz::attribute_context::{HttpRequest, Peer, Request};
use postern_common::rpc::stubs::ext_authz::check_response::HttpResponse;
use proptest::prelude::*;
use serde_json::json;

use super::request::{About, QuestionError};
use super::*;
use crate::snapshot::Snapshot;
use crate::testing::{config, request as base_request, route};

/// What Envoy would ask about a request.
fn question(request: &CheckRequest) -> proto::CheckRequest {
    let mut path = request.path.to_string();
    if let Some(query) = &request.query {
        path.push('?');
        path.push_str(query);
    }
    let context = match &request.subject {
        CheckSubject::OwnEndpoint => vec![("internal", "true".to_owned())],
        CheckSubject::Route { id, checksum } => vec![
            ("internal", "false".to_owned()),
            ("route_id", id.to_string()),
            ("route_checksum", checksum.0.to_string()),
        ],
    };
    let headers = request
        .headers
        .iter()
        .map(|(name, value)| ProtoValue {
            key: name.to_string(),
            value: String::new(),
            raw_value: value.as_bytes().to_vec(),
        })
        .collect();
    let http = HttpRequest {
        id: request.request_id.to_string(),
        method: request.method.to_string(),
        path,
        host: request.host.to_string(),
        scheme: request.scheme.as_str().to_owned(),
        header_map: Some(ProtoHeaders { headers }),
        ..HttpRequest::default()
    };
    let certificate = request.client_certificate.as_ref().map(|certificate| {
        certificate
            .chain
            .iter()
            .map(|der| pem(der))
            .collect::<String>()
    });
    let address = Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: request.client_address.to_string(),
            port_specifier: Some(PortSpecifier::PortValue(1)),
            ..SocketAddress::default()
        })),
    };
    proto::CheckRequest {
        attributes: Some(proto::AttributeContext {
            source: Some(Peer {
                address: Some(address),
                certificate: certificate.unwrap_or_default(),
                ..Peer::default()
            }),
            request: Some(Request {
                time: None,
                http: Some(http),
            }),
            context_extensions: context
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect(),
            ..proto::AttributeContext::default()
        }),
    }
}

/// URL-encoded, as Envoy writes certificates.
fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let text = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
    percent_encoding::utf8_percent_encode(&text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn rules() -> postern_common::config::PathNormalization {
    config(Vec::new()).http.path
}

fn any_request() -> impl Strategy<Value = CheckRequest> {
    let subject = prop_oneof![
        Just(CheckSubject::OwnEndpoint),
        ("[0-9a-f]{16}", any::<u64>()).prop_map(|(id, checksum)| CheckSubject::Route {
            id: RouteId(id.into()),
            checksum: RouteChecksum(checksum),
        }),
    ];
    let value = proptest::collection::vec(prop_oneof![0x21_u8..0x7f, 0x80_u8..=0xff], 1..20);
    let headers = proptest::collection::vec(("[a-z][a-z0-9-]{0,12}", value), 0..6);
    let der = proptest::collection::vec(any::<u8>(), 1..40);
    let chain = proptest::option::of(proptest::collection::vec(der, 1..3));
    let url = (
        "[a-z]{1,9}\\.test(:8[0-9]{3})?",
        "/[a-z]{1,5}/[a-zA-Z0-9_.]{0,4}[a-z]",
        proptest::option::of("[a-z]=[a-z0-9%+&]{0,9}"),
    );
    (
        subject,
        "[A-Z]{3,7}",
        any::<bool>(),
        url,
        headers,
        any::<IpAddr>(),
        chain,
    )
        .prop_map(
            |(subject, method, https, (host, path, query), headers, client_address, chain)| {
                let mut map = HeaderMap::new();
                for (name, value) in headers {
                    if name != "x-request-id" {
                        map.append(
                            name.parse::<HeaderName>().unwrap(),
                            HeaderValue::from_bytes(&value).unwrap(),
                        );
                    }
                }
                CheckRequest {
                    request_id: "r-1".into(),
                    subject,
                    method: method.parse().unwrap(),
                    scheme: if https { Scheme::Https } else { Scheme::Http },
                    host: host.into(),
                    path: path.into(),
                    query: query.map(Into::into),
                    headers: map,
                    client_address,
                    client_certificate: chain
                        .map(|chain| postern_common::authz::ClientCertificate { chain }.into()),
                    trace: None,
                }
            },
        )
}

proptest! {
    #[test]
    fn nothing_of_a_question_is_lost(request in any_request()) {
        let (mut read, about) = request::read(&question(&request), rules()).unwrap();
        match about {
            About::OwnEndpoint => {}
            About::Route(id, Some(checksum)) => {
                read.subject = CheckSubject::Route { id, checksum };
            }
            other => prop_assert!(false, "{other:?}"),
        }
        prop_assert_eq!(format!("{read:?}"), format!("{request:?}"));
        prop_assert_eq!(read.headers, request.headers);
    }
}

#[test]
fn s52_more_headers_than_a_map_can_hold_are_an_error() {
    let mut question = question(&base_request("/", &[]));
    let http = question
        .attributes
        .as_mut()
        .and_then(|it| it.request.as_mut()?.http.as_mut());
    let header = |n| ProtoValue {
        key: format!("x-{n}"),
        value: "x".into(),
        raw_value: Vec::new(),
    };
    http.unwrap().header_map = Some(ProtoHeaders {
        headers: (0..40_000).map(header).collect(),
    });
    let refused = request::read(&question, rules()).err();
    assert_eq!(refused, Some(QuestionError::Missing("number of headers")));
}

#[test]
fn s02_a_path_that_envoy_would_forward_differently_is_refused() {
    for path in ["/a/../b", "/a//b", "/a/./b", "/%2e%2e/b", "/%61"] {
        let request = CheckRequest {
            path: path.into(),
            ..base_request("/", &[])
        };
        let read = request::read(&question(&request), rules());
        assert!(read.is_err(), "{path}: {read:?}");
    }
    let request = CheckRequest {
        path: "/a/..;/b%2Fc".into(),
        ..base_request("/", &[])
    };
    assert!(matches!(
        request::read(&question(&request), rules()),
        Err(QuestionError::Target(_) | QuestionError::NotNormal)
    ));
}

#[test]
fn s01_a_route_is_only_the_one_that_serves_the_url() {
    let public = json!([{"allow": {"or": [{"accept": true}]}}]);
    let mut elsewhere = route("elsewhere", &public);
    elsewhere.from.host = "other.corp.test".into();
    let here = route("here", &public);
    let snapshot = Snapshot::new(Arc::new(config(vec![here, elsewhere])), 0);
    let request = base_request("/x", &[]);
    let subject = |about: About| about.subject(&snapshot, &request);
    let id = |id: &str| RouteId(id.into());
    let here = Some(CheckSubject::Route {
        id: id("here"),
        checksum: RouteChecksum(7),
    });
    assert_eq!(subject(About::Url), here);
    assert_eq!(
        subject(About::Route(id("here"), Some(RouteChecksum(7)))),
        here
    );
    // Another product's checksum.
    assert_eq!(
        subject(About::Route(id("here"), Some(RouteChecksum(99)))),
        here
    );
    assert_eq!(subject(About::Route(id("elsewhere"), None)), None);
    assert_eq!(
        subject(About::Route(id("unknown"), Some(RouteChecksum(7)))),
        None
    );
}

fn allow_response(allow: Allow, request: &CheckRequest) -> proto::OkHttpResponse {
    let mut config = config(Vec::new());
    config.identity.claims_headers = vec![("x-email".parse().unwrap(), "email".to_owned())];
    let snapshot = Snapshot::new(Arc::new(config), 0);
    let decision = Decision::Allow(Box::new(allow));
    let response = response::decided(&decision, request, &snapshot);
    assert_eq!(response.status.unwrap().code, 0);
    match response.http_response {
        Some(HttpResponse::OkResponse(ok)) => ok,
        other => panic!("{other:?}"),
    }
}

#[test]
fn s05_s06_upstreams_behind_envoy_see_no_credential_and_no_forged_header() {
    let request = base_request(
        "/",
        &[
            ("cookie", "a=1; _pomerium=x; _pomerium_csrf=y; b=2"),
            ("authorization", "Pomerium handle"),
            ("x-pomerium-authorization", "handle"),
            ("x-pomerium-claim-email", "forged"),
            ("x_pomerium_jwt_assertion", "forged"),
            ("x_email", "forged"),
        ],
    );
    let allow = Allow {
        set_headers: vec![(
            "x-pomerium-jwt-assertion".parse().unwrap(),
            HeaderValue::from_static("ours"),
        )],
        ..Allow::default()
    };
    let ok = allow_response(allow, &request);
    assert_eq!(
        ok.headers_to_remove,
        [
            "authorization",
            "x-pomerium-authorization",
            "x-pomerium-claim-email",
            "x_email",
            "x_pomerium_jwt_assertion"
        ]
    );
    let set: Vec<_> = ok
        .headers
        .iter()
        .map(|option| {
            let header = option.header.as_ref().unwrap();
            assert!(option.keep_empty_value);
            (header.key.as_str(), header.value.as_str())
        })
        .collect();
    assert_eq!(
        set,
        [("x-pomerium-jwt-assertion", "ours"), ("cookie", "a=1; b=2")]
    );

    let bearer = base_request(
        "/",
        &[("authorization", "Bearer T"), ("cookie", "_pomerium=x")],
    );
    let kept = allow_response(Allow::default(), &bearer);
    assert_eq!(kept.headers_to_remove, ["cookie"]);
    let consumed = Allow {
        consumed: ConsumedCredentials { bearer: true },
        ..Allow::default()
    };
    assert_eq!(
        allow_response(consumed, &bearer).headers_to_remove,
        ["authorization", "cookie"]
    );
}

#[test]
fn s05_s06_whoever_hands_requests_on_strips_the_same() {
    let request = CheckRequest {
        query: Some("a=1&pomerium_session=X&%70omerium_session=Y".into()),
        ..base_request(
            "/",
            &[
                ("authorization", "Basic x"),
                ("authorization", "bearer  pomerium-X"),
                ("impersonate-user", "admin"),
                ("impersonate_group", "system:masters"),
                ("x-postern-anything", "forged"),
                ("x_forwarded_for", "10.0.0.1"),
                ("x-forwarded-for", "192.0.2.1"),
                ("x-envoy-original-path", "/"),
                ("cookie", "flag; _pomerium=x"),
                ("cookie", "b=2"),
            ],
        )
    };
    let ok = allow_response(Allow::default(), &request);
    assert_eq!(
        ok.headers_to_remove,
        [
            "authorization",
            "impersonate-user",
            "impersonate_group",
            "x-postern-anything",
            "x_forwarded_for"
        ]
    );
    assert_eq!(
        ok.query_parameters_to_remove,
        ["%70omerium_session", "pomerium_session"]
    );
    let cookie = ok.headers[0].header.as_ref().unwrap();
    assert_eq!(
        (cookie.key.as_str(), cookie.value.as_str()),
        ("cookie", "flag; b=2")
    );
}

#[test]
fn denials() {
    let snapshot = Snapshot::new(Arc::new(config(Vec::new())), 0);
    let deny = |kind: DenyKind, headers: &[(&'static str, &str)]| {
        let deny = Deny {
            kind,
            message: "no".into(),
            reasons: Vec::new(),
            headers: Vec::new(),
            details: None,
        };
        let request = base_request("/", headers);
        let response = response::decided(&Decision::Deny(Box::new(deny)), &request, &snapshot);
        assert_eq!(response.status.unwrap().code, 7);
        match response.http_response {
            Some(HttpResponse::DeniedResponse(denied)) => denied,
            other => panic!("{other:?}"),
        }
    };
    let header = |denied: &proto::DeniedHttpResponse, name: &str| {
        denied
            .headers
            .iter()
            .filter_map(|option| option.header.as_ref())
            .find(|header| header.key == name)
            .map(|header| header.value.clone())
    };
    let sign_in = deny(
        DenyKind::SignIn {
            location: "https://auth.corp.test/x".into(),
        },
        &[],
    );
    assert_eq!(sign_in.status.as_ref().unwrap().code, 302);
    assert_eq!(
        header(&sign_in, "location").unwrap(),
        "https://auth.corp.test/x"
    );
    let broken = deny(
        DenyKind::SignIn {
            location: "https://auth.corp.test/\n".into(),
        },
        &[],
    );
    assert_eq!(broken.status.as_ref().unwrap().code, 503);
    let robots = {
        let deny = Deny {
            kind: DenyKind::Forbidden,
            message: "no".into(),
            reasons: Vec::new(),
            headers: Vec::new(),
            details: None,
        };
        let request = base_request("/robots.txt", &[]);
        response::decided(&Decision::Deny(Box::new(deny)), &request, &snapshot)
    };
    match robots.http_response {
        Some(HttpResponse::DeniedResponse(denied)) => {
            assert_eq!(denied.status.unwrap().code, 200);
            assert!(denied.body.contains("Disallow: /"));
        }
        other => panic!("{other:?}"),
    }
    let json = deny(DenyKind::Forbidden, &[("accept", "application/json")]);
    assert_eq!(json.status.as_ref().unwrap().code, 403);
    assert!(json.body.contains(r#""request_id":"request-1""#));
    let grpc = deny(
        DenyKind::Unauthenticated { sign_in_url: None },
        &[("content-type", "application/grpc")],
    );
    assert_eq!(grpc.status.as_ref().unwrap().code, 200);
    assert_eq!(header(&grpc, "grpc-status").unwrap(), "16");
}
