//! How soon a change counts: sessions are ended at either of two databrokers on Postgres, and both
//! authorizes asked until they refuse.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use postern_common::rpc::stubs::databroker::Record;
use postern_common::rpc::stubs::envoy::config::core::v3::{
    Address, SocketAddress, address, socket_address::PortSpecifier,
};
use postern_common::rpc::stubs::ext_authz::attribute_context::{HttpRequest, Peer, Request};
use postern_common::rpc::stubs::ext_authz::authorization_client::AuthorizationClient;
use postern_common::rpc::stubs::ext_authz::check_response::HttpResponse;
use postern_common::rpc::stubs::ext_authz::{AttributeContext, CheckRequest};
use postern_tests::cluster::Layout;
use postern_tests::databroker::{Databroker, SESSIONS};
use postern_tests::postgres::Postgres;
use tonic::transport::{Channel, Endpoint};

use crate::Effort;
use crate::people::{self, Pattern};
use crate::postern::{self, Postern};
use crate::sections::records::settings;
use crate::stage::Stage;
use crate::table::Row;
use crate::tools::percentile;

/// Changes in each round.
const CHANGES: usize = 100;

const PATIENCE: Duration = Duration::from_secs(10);

pub async fn run(stage: &Stage, effort: Effort, postgres: &Postgres) -> Vec<Row> {
    let config = postern::with_routes(stage.ports, &settings(postgres, "changed"), "");
    let postern = Postern::start_with(Layout::Fleet, &stage.issuer, config).await;
    let cluster = &postern.cluster;
    let pattern = Pattern::of(&postern.allowed);
    let mut databrokers = Vec::new();
    for name in ["databroker-1", "databroker-2"] {
        databrokers.push(Databroker::connect_to(cluster.serves(name)).await);
    }
    let count = CHANGES * effort.rounds as usize;
    let version = people::write(&databrokers[0], pattern.idp_id(), 0..count).await;
    let mut authorizes = Vec::new();
    for name in ["authorize-1", "authorize-2"] {
        people::caught_up(cluster, name, version).await;
        authorizes.push(Authorize::connect(cluster.serves(name)).await);
    }
    let (mut taken, mut wrong) = (Vec::new(), 0);
    for number in 0..count {
        let request = question(&postern.authority, &pattern.of_person(number));
        for authorize in &mut authorizes {
            wrong += u64::from(authorize.ask(&request).await != Said::Yes);
        }
        let databroker = &mut databrokers[number % 2];
        let ended = ended(&format!("session-{number}"));
        databroker.put_all(vec![ended]).await.expect("it is ended");
        let begun = Instant::now();
        let until = authorizes
            .iter_mut()
            .map(|authorize| authorize.until_no(&request));
        let failed: u64 = futures::future::join_all(until).await.iter().sum();
        taken.push(begun.elapsed().as_secs_f64() * 1e3);
        wrong += failed;
    }
    taken.sort_by(f64::total_cmp);
    vec![
        Row::new(&"a change counts at both authorizes after Put, p50 ms")
            .found(percentile(&taken, 50)),
        Row::new(&"a change counts at both authorizes after Put, p99 ms")
            .found(percentile(&taken, 99))
            .goal(50.0)
            .wrong(wrong),
    ]
}

fn ended(id: &str) -> Record {
    Record {
        r#type: SESSIONS.to_owned(),
        id: id.to_owned(),
        deleted_at: Some(prost_types::Timestamp {
            seconds: Timestamp::now().as_second(),
            nanos: 0,
        }),
        ..Record::default()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Yes,
    /// Signed out.
    No,
    /// Anything else, such as "not just now".
    Else,
}

struct Authorize(AuthorizationClient<Channel>);

impl Authorize {
    async fn connect(address: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a URL");
        let channel = endpoint.connect().await.expect("authorize answers");
        Self(AuthorizationClient::new(channel))
    }

    async fn ask(&mut self, question: &CheckRequest) -> Said {
        let Ok(answer) = self.0.check(question.clone()).await else {
            return Said::Else;
        };
        match answer.into_inner().http_response {
            Some(HttpResponse::OkResponse(_)) => Said::Yes,
            Some(HttpResponse::DeniedResponse(denied))
                if denied
                    .status
                    .is_some_and(|it| it.code == 401 || it.code == 302) =>
            {
                Said::No
            }
            _ => Said::Else,
        }
    }

    /// Asks again and again; how many answers were neither yes nor no.
    async fn until_no(&mut self, question: &CheckRequest) -> u64 {
        let begun = Instant::now();
        let mut failed = 0;
        while begun.elapsed() < PATIENCE {
            match self.ask(question).await {
                Said::No => return failed,
                Said::Yes => {}
                Said::Else => failed += 1,
            }
        }
        failed + 1
    }
}

/// What Envoy would ask about `GET /`.
fn question(authority: &str, cookie: &str) -> CheckRequest {
    let address = Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: "127.0.0.1".to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(1)),
            ..SocketAddress::default()
        })),
    };
    let http = HttpRequest {
        method: "GET".to_owned(),
        scheme: "https".to_owned(),
        host: authority.to_owned(),
        path: "/".to_owned(),
        headers: [("cookie".to_owned(), cookie.to_owned())].into(),
        ..HttpRequest::default()
    };
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(Peer {
                address: Some(address),
                ..Peer::default()
            }),
            request: Some(Request {
                time: None,
                http: Some(http),
            }),
            ..AttributeContext::default()
        }),
    }
}
