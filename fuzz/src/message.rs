//! Bytes from other programs: services, Envoy, load balancers.

use postern_authorize::read_ext_authz;
use postern_common::authz::{CheckSubject, wire};
use postern_common::config::{RouteChecksum, RouteId};
use postern_common::net::proxy_protocol::{Parsed, parse};
use postern_common::route::normalize_path;
use postern_common::rpc::stubs::{authorize as proto, ext_authz as envoy};
use prost::Message as _;

use crate::input::rules;

/// A `Question` in protobuf. What was read is written as it is meant.
pub fn decision_question(data: &[u8]) {
    let Ok(question) = proto::Question::decode(data) else {
        return;
    };
    let number = question.number;
    let Ok(request) = wire::check_request(question) else {
        return;
    };
    let written = wire::question(number, &request);
    let again = wire::check_request(written.clone()).map(|read| wire::question(number, &read));
    assert_eq!(again, Ok(written));
}

/// An `Answer` in protobuf. What was read is written as it is meant, and an answer about another
/// route is none.
pub fn decision_answer(data: &[u8]) {
    let Ok(answer) = proto::Answer::decode(data) else {
        return;
    };
    let (number, age) = (answer.number, answer.data_age_ms);
    let asked = CheckSubject::Route {
        id: RouteId(answer.route_id.as_str().into()),
        checksum: RouteChecksum(answer.route_checksum),
    };
    let another = CheckSubject::Route {
        id: RouteId(answer.route_id.as_str().into()),
        checksum: RouteChecksum(answer.route_checksum ^ 1),
    };
    assert!(wire::decision(answer.clone(), &another).is_err());
    let Ok(decided) = wire::decision(answer, &asked) else {
        return;
    };
    let written = wire::answer(number, &asked, &decided, age);
    let again = wire::decision(written.clone(), &asked)
        .map(|decided| wire::answer(number, &asked, &decided, age));
    assert_eq!(again, Ok(written));
}

/// A byte for the rules of paths, then Envoy's `CheckRequest` in protobuf. The path that is judged
/// is in its normal form, as it is the one that Envoy forwards.
pub fn ext_authz(data: &[u8]) {
    let Some((bits, message)) = data.split_first() else {
        return;
    };
    let rules = rules(&[*bits]);
    let Ok(question) = envoy::CheckRequest::decode(message) else {
        return;
    };
    let Ok((request, _)) = read_ext_authz(&question, rules) else {
        return;
    };
    if !request.path.is_empty() {
        let normal = normalize_path(&request.path, rules);
        assert_eq!(normal.as_deref(), Ok(&*request.path));
    }
}

/// The first bytes of a connection. What follows a header is none of its business, and before its
/// end there is none.
pub fn proxy_protocol(data: &[u8]) {
    let parsed = parse(data);
    match parsed {
        Some(Parsed::Header { length, .. }) => {
            let (header, rest) = data.split_at_checked(length).unwrap_or_default();
            assert!(!header.is_empty(), "longer than what there is");
            assert_eq!(parse(header), parsed);
            assert!(rest.len() < data.len());
            for at in 0..length {
                let part = header.get(..at).unwrap_or_default();
                assert_eq!(parse(part), Some(Parsed::Incomplete), "after {at} bytes");
            }
        }
        Some(Parsed::Incomplete) => {}
        None => {
            let more = [data, b"\r\n"].concat();
            assert!(data.is_empty() || parse(&more).is_none());
        }
    }
}
