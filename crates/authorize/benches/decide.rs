//! What a decision costs by itself: no sockets, no other task runs meanwhile.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "a benchmark that cannot go on stops"
)]

#[path = "../tests/service/world.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod world;

use std::fmt::Write as _;

use divan::{Bencher, black_box};
use futures::FutureExt as _;
use postern_authorize::{KeepTokens, Session, read_ext_authz};
use postern_common::authz::{CheckRequest, Decision};
use postern_common::crypto::handle::{Handle, Purpose};
use postern_common::rpc::Transport;
use postern_common::rpc::stubs::databroker::{PutRequest, Record};
use postern_common::rpc::stubs::envoy::config::core::v3::{
    Address, HeaderMap, HeaderValue, SocketAddress, address, socket_address::PortSpecifier,
};
use postern_common::rpc::stubs::ext_authz as proto;
use postern_common::rpc::stubs::ext_authz::attribute_context::{HttpRequest, Peer, Request};
use postern_common::rpc::stubs::ext_authz::authorization_client::AuthorizationClient;
use postern_common::rpc::stubs::{session, user};
use postern_common::rpc::token::TokenKeys;
use tokio::runtime::{Builder, Runtime};

use crate::world::{SESSION, USER, World, list};

fn main() {
    divan::main();
}

/// The domain of the address, a claim, an assertion and headers with claims.
const ROUTE: &str = "to: http://up, pass_identity_headers: true, \
    policy: [{allow: {and: [{domain: {is: corp.test}}, {claim/groups: eng}]}}]";

/// How many people ask, one after the other, where there are so many.
const IN_TURN: usize = 1_000;

const BATCH: usize = 500;

/// An authorize that has its copy, and requests that it allows.
struct Ready {
    // Tasks run only when it is told to.
    runtime: Runtime,
    world: World,
    requests: Vec<CheckRequest>,
}

impl Ready {
    fn new(routes: usize, sessions: usize, settings: &str) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let mut text = String::new();
        let others = (1..routes).map(|number| format!("app{number}"));
        for name in others.chain(["app".to_owned()]) {
            writeln!(text, "- {{from: 'https://{name}.corp.test', {ROUTE}}}").unwrap();
        }
        text.push_str("jwt_claims_headers: [email, groups]\n");
        text.push_str(settings);
        let (world, requests) = runtime.block_on(async {
            let world = World::new(&text).await;
            let numbers: Vec<_> = (0..sessions).collect();
            for numbers in numbers.chunks(BATCH) {
                let records = numbers.iter().flat_map(|number| {
                    let id = format!("user-{number}");
                    [record(USER, &id, &person(&id)), session_record(*number)]
                });
                let records = records.collect();
                world
                    .databroker()
                    .put(PutRequest { records })
                    .await
                    .unwrap();
            }
            let last = format!("session-{}", sessions - 1);
            world.until_session(&last).await;
            let asking = 0..sessions.min(IN_TURN);
            let requests = asking.map(|number| request(&world, routes, number));
            let requests: Vec<_> = requests.collect();
            (world, requests)
        });
        let ready = Self {
            runtime,
            world,
            requests,
        };
        for request in &ready.requests {
            assert!(matches!(ready.decide(request), Decision::Allow(_)));
        }
        ready
    }

    fn decide(&self, request: &CheckRequest) -> Decision {
        let _tasks = self.runtime.enter();
        let decided = self.world.authorize.decide(request).now_or_never();
        decided.expect("all is in the copy").unwrap()
    }

    /// Decides about one request after the other.
    fn bench(&self, bencher: Bencher) {
        let mut requests = self.requests.iter().cycle();
        bencher.bench_local(|| self.decide(black_box(requests.next().unwrap())));
    }
}

fn request(world: &World, routes: usize, number: usize) -> CheckRequest {
    let handle = Handle {
        id: format!("session-{number}"),
        subject: format!("user-{number}"),
        audience: vec!["app.corp.test".to_owned()],
        idp_id: world.provider_id(),
        purpose: Some(Purpose::Browser),
        ..Handle::default()
    };
    let cookie = format!("_pomerium={}", world.encode(&handle));
    world.request_to(
        routes - 1,
        &[
            ("cookie", &cookie),
            ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0)"),
            ("accept", "text/html,application/xhtml+xml,*/*;q=0.8"),
            ("accept-language", "en-GB,en;q=0.5"),
        ],
    )
}

fn person(id: &str) -> user::User {
    user::User {
        email: format!("{id}@corp.test"),
        ..user::User::default()
    }
}

fn record(kind: &str, id: &str, message: &impl prost::Message) -> Record {
    Record {
        r#type: kind.to_owned(),
        id: id.to_owned(),
        data: Some(prost_types::Any {
            type_url: kind.to_owned(),
            value: message.encode_to_vec(),
        }),
        ..Record::default()
    }
}

/// Eight claims, five groups, and tokens.
fn session_record(number: usize) -> Record {
    let user = format!("user-{number}");
    let email = format!("{user}@corp.test");
    let claims: [(&str, &[&str]); 8] = [
        ("iss", &["https://idp.corp.test"]),
        ("aud", &["postern"]),
        ("sub", &[&user]),
        ("email", &[&email]),
        ("email_verified", &["true"]),
        ("name", &["Somebody of some department"]),
        (
            "groups",
            &["eng", "staff", "berlin", "on-call", "everybody"],
        ),
        ("preferred_username", &[&user]),
    ];
    let message = session::Session {
        claims: claims
            .map(|(name, values)| (name.to_owned(), list(values)))
            .into(),
        id_token: Some(session::IdToken {
            raw: "t".repeat(800),
            ..session::IdToken::default()
        }),
        ..world::session(&user, &[])
    };
    record(SESSION, &format!("session-{number}"), &message)
}

#[divan::bench(args = [1, 100, 1_000, 10_000])]
fn decide_by_routes(bencher: Bencher, routes: usize) {
    Ready::new(routes, 1, "").bench(bencher);
}

/// With 1,000 routes.
#[divan::bench(args = [1, 1_000, 100_000])]
fn decide_by_sessions(bencher: Bencher, sessions: usize) {
    Ready::new(1_000, sessions, "").bench(bencher);
}

/// The same, and nothing reused.
#[divan::bench]
fn decide_and_sign(bencher: Bencher) {
    Ready::new(1, 1, "jwt_assertion_reuse: 0s\n").bench(bencher);
}

#[divan::bench]
fn record_decode(bencher: Bencher) {
    let record = session_record(7);
    bencher.bench_local(|| Session::from_record(black_box(&record), KeepTokens::No).unwrap());
}

/// Envoy's question as ours.
#[divan::bench]
fn ext_authz_read(bencher: Bencher) {
    let ready = Ready::new(1, 1, "");
    let rules = ready.world.config.borrow().http.path;
    let question = question(&ready.requests[0]);
    bencher.bench_local(|| read_ext_authz(black_box(&question), rules).unwrap());
}

/// A whole call, but the socket: question, decision, answer, and gRPC around them.
#[divan::bench]
fn ext_authz_call(bencher: Bencher) {
    let ready = Ready::new(1, 1, "");
    let keys = TokenKeys::new(ready.world.config.borrow().secrets.shared.clone());
    let transport = Transport::local(ready.world.routes.clone());
    let mut client = AuthorizationClient::with_interceptor(transport, keys.for_client());
    let question = question(&ready.requests[0]);
    bencher.bench_local(|| {
        let answer = ready.runtime.block_on(client.check(question.clone()));
        answer.unwrap().into_inner()
    });
}

/// What Envoy would ask about a request.
fn question(request: &CheckRequest) -> proto::CheckRequest {
    let headers = request.headers.iter().map(|(name, value)| HeaderValue {
        key: name.to_string(),
        value: String::new(),
        raw_value: value.as_bytes().to_vec(),
    });
    let http = HttpRequest {
        id: request.request_id.to_string(),
        method: request.method.to_string(),
        path: request.path.to_string(),
        host: request.host.to_string(),
        scheme: request.scheme.as_str().to_owned(),
        header_map: Some(HeaderMap {
            headers: headers.collect(),
        }),
        ..HttpRequest::default()
    };
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
                ..Peer::default()
            }),
            request: Some(Request {
                time: None,
                http: Some(http),
            }),
            ..proto::AttributeContext::default()
        }),
    }
}
