use std::net::IpAddr;

use proptest::prelude::*;
use prost::Message as _;

use super::*;

fn header_name() -> impl Strategy<Value = HeaderName> {
    "[a-z][a-z0-9-]{0,12}".prop_map(|name| name.parse().unwrap())
}

fn header_value() -> impl Strategy<Value = HeaderValue> {
    proptest::collection::vec(
        prop_oneof![0x20_u8..0x7f, 0x80_u8..=0xff, Just(b'\t')],
        0..20,
    )
    .prop_map(|bytes| HeaderValue::from_bytes(&bytes).unwrap())
}

fn header_list() -> impl Strategy<Value = Vec<(HeaderName, HeaderValue)>> {
    proptest::collection::vec((header_name(), header_value()), 0..6)
}

fn subject() -> impl Strategy<Value = CheckSubject> {
    prop_oneof![
        Just(CheckSubject::OwnEndpoint),
        ("[0-9a-f]{16}", any::<u64>()).prop_map(|(id, checksum)| CheckSubject::Route {
            id: RouteId(id.into()),
            checksum: RouteChecksum(checksum),
        }),
    ]
}

fn certificate() -> impl Strategy<Value = Option<Arc<ClientCertificate>>> {
    let der = proptest::collection::vec(any::<u8>(), 0..30);
    let chain = proptest::collection::vec(der, 0..3);
    proptest::option::of(chain.prop_map(|chain| Arc::new(ClientCertificate { chain })))
}

/// What is not kept does not travel.
fn place() -> impl Strategy<Value = Option<Place>> {
    proptest::option::of((1..u128::MAX, 1..u64::MAX).prop_map(|(trace, span)| {
        Place::parse(&format!("00-{trace:032x}-{span:016x}-01")).unwrap()
    }))
}

fn any_request() -> impl Strategy<Value = CheckRequest> {
    let words = (
        "[A-Z]{1,10}",
        ".{0,20}",
        ".{0,20}",
        proptest::option::of(".{0,20}"),
    );
    let rest = (
        subject(),
        any::<bool>(),
        header_list(),
        any::<IpAddr>(),
        certificate(),
        place(),
    );
    (words, rest).prop_map(|((method, host, path, query), rest)| {
        let (subject, https, headers, client_address, client_certificate, trace) = rest;
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value);
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
            client_certificate,
            trace,
        }
    })
}

fn any_allow() -> impl Strategy<Value = Decision> {
    let session = proptest::option::of((".{0,9}", ".{0,9}", ".{0,9}"));
    let names = proptest::collection::vec(header_name(), 0..3);
    let time = proptest::option::of((0..4_000_000_000_i64, 0..999_999_999_i32));
    (header_list(), names, session, time, any::<bool>()).prop_map(
        |(set_headers, remove_headers, session, time, bearer)| {
            Decision::Allow(Box::new(Allow {
                set_headers,
                remove_headers,
                session: session.map(|(session_id, user_id, email)| {
                    Arc::new(SessionSummary {
                        session_id,
                        user_id,
                        email,
                    })
                }),
                valid_until: time.map(|(seconds, nanos)| Timestamp::new(seconds, nanos).unwrap()),
                consumed: ConsumedCredentials { bearer },
            }))
        },
    )
}

fn any_deny() -> impl Strategy<Value = Decision> {
    let kind = prop_oneof![
        ".{0,20}".prop_map(|location| DenyKind::SignIn { location }),
        proptest::option::of(".{0,20}")
            .prop_map(|sign_in_url| DenyKind::Unauthenticated { sign_in_url }),
        Just(DenyKind::Forbidden),
        Just(DenyKind::NotFound),
        Just(DenyKind::DeviceUnauthorized),
        any::<bool>().prop_map(|presented| DenyKind::ClientCertificate { presented }),
        Just(DenyKind::BadRequest),
    ];
    let reasons = proptest::collection::vec("[a-z-]{1,12}", 0..3);
    (
        kind,
        ".{0,20}",
        reasons,
        header_list(),
        proptest::option::of(".{0,20}"),
    )
        .prop_map(|(kind, message, reasons, headers, details)| {
            Decision::Deny(Box::new(Deny {
                kind,
                message,
                reasons,
                headers,
                details,
            }))
        })
}

proptest! {
    #[test]
    fn nothing_of_a_question_is_lost(request in any_request(), number: u64) {
        let bytes = question(number, &request).encode_to_vec();
        let read = proto::Question::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(read.number, number);
        let read = check_request(read).unwrap();
        prop_assert_eq!(format!("{read:?}"), format!("{request:?}"));
        prop_assert_eq!(read.headers, request.headers);
    }

    #[test]
    fn nothing_of_an_answer_is_lost(
        decided in prop_oneof![any_allow(), any_deny()],
        subject in subject(),
    ) {
        let shown = format!("{decided:?}");
        let bytes = answer(3, &subject, &Ok(decided), 5).encode_to_vec();
        let read = proto::Answer::decode(bytes.as_slice()).unwrap();
        let read = decision(read, &subject).unwrap().unwrap();
        prop_assert_eq!(format!("{read:?}"), shown);
    }
}

fn route(id: &str, checksum: u64) -> CheckSubject {
    CheckSubject::Route {
        id: RouteId(id.into()),
        checksum: RouteChecksum(checksum),
    }
}

#[test]
fn s01_an_answer_about_another_route_is_none() {
    let decided = Ok(Decision::Allow(Box::default()));
    let answer = || answer(1, &route("a", 1), &decided, 0);
    assert!(decision(answer(), &route("a", 1)).unwrap().is_ok());
    for other in [route("b", 1), route("a", 2), CheckSubject::OwnEndpoint] {
        assert!(decision(answer(), &other).is_err(), "{other:?}");
    }
}

#[test]
fn s03_errors_stay_errors() {
    let subject = route("a", 1);
    let unknown = AuthorizeError::UnknownConfiguration {
        route: RouteId("a".into()),
    };
    let read = decision(answer(1, &subject, &Err(unknown), 0), &subject).unwrap();
    assert!(matches!(
        read,
        Err(AuthorizeError::UnknownConfiguration { .. })
    ));
    let away = AuthorizeError::DataUnavailable {
        reason: "away".into(),
    };
    let read = decision(answer(1, &subject, &Err(away), 0), &subject).unwrap();
    assert!(matches!(read, Err(AuthorizeError::DataUnavailable { reason }) if reason == "away"));
    let mut empty = answer(1, &subject, &Ok(Decision::Allow(Box::default())), 0);
    empty.outcome = None;
    assert!(decision(empty, &subject).is_err());
}

#[test]
fn s03_what_is_not_known_forbids_and_concerns_everything() {
    let deny = proto::Deny::default();
    assert_eq!(read_deny(deny).unwrap().kind, DenyKind::Forbidden);
    assert_eq!(
        read_revisit(proto::Revisit { what: None }),
        Revisit::Everything
    );
    for known in [
        Revisit::Session("s".into()),
        Revisit::User("u".into()),
        Revisit::Everything,
    ] {
        assert_eq!(read_revisit(revisit(&known)), known);
    }
}

#[test]
fn s52_more_headers_than_a_map_can_hold_are_an_error() {
    let header = |n| proto::Header {
        name: format!("x-{n}"),
        value: Bytes::new(),
    };
    let question = proto::Question {
        method: "GET".into(),
        scheme: "https".into(),
        client_ip: "203.0.113.9".into(),
        headers: (0..40_000).map(header).collect(),
        ..proto::Question::default()
    };
    assert!(check_request(question).is_err());
}

#[test]
fn damaged_questions_are_errors() {
    let good = || proto::Question {
        own_endpoint: true,
        method: "GET".into(),
        scheme: "https".into(),
        client_ip: "10.0.0.1".into(),
        ..proto::Question::default()
    };
    check_request(good()).unwrap();
    let header = |name: &str, value: &'static [u8]| proto::Header {
        name: name.into(),
        value: Bytes::from_static(value),
    };
    for damaged in [
        proto::Question {
            method: "G T".into(),
            ..good()
        },
        proto::Question {
            scheme: "ftp".into(),
            ..good()
        },
        proto::Question {
            client_ip: String::new(),
            ..good()
        },
        proto::Question {
            headers: vec![header("a b", b"")],
            ..good()
        },
        proto::Question {
            headers: vec![header("a", b"x\r\ny: z")],
            ..good()
        },
    ] {
        assert!(check_request(damaged).is_err());
    }
}
