//! More than can be served.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Method, StatusCode};
use postern_common::authz::{Authorizer, CheckRequest, Revisit};
use tokio::sync::{broadcast, mpsc, watch};

use crate::support::authorizer::{Answer as Decided, allow};
use crate::support::client::{Http2, read, request2};
use crate::support::eventually;
use crate::support::proxy::Proxy;

const HOST: &str = "app.corp.test";

/// As many as one connection may have, on so many that two cores of the proxy have too many.
const STREAMS: usize = 250;
const CONNECTIONS: usize = 9;

/// What the two cores may keep waiting.
const WAITING: usize = 2 * 1_000;

/// Allows everything, once it is told to go on.
struct Held {
    go: watch::Sender<bool>,
    revisits: broadcast::Sender<Revisit>,
}

impl Authorizer for Held {
    fn check(&self, _: Arc<CheckRequest>) -> BoxFuture<'_, Decided> {
        let mut go = self.go.subscribe();
        async move {
            go.wait_for(|go| *go).await.unwrap();
            Ok(allow("s1", &[]))
        }
        .boxed()
    }

    fn revisits(&self) -> broadcast::Receiver<Revisit> {
        self.revisits.subscribe()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s30_what_would_wait_too_long_is_refused_at_once() {
    let held = Arc::new(Held {
        go: watch::Sender::new(false),
        revisits: broadcast::channel(4).0,
    });
    let routes = format!(
        "routes:\n- {{from: 'https://{HOST}', response: {{status: 200, body: through}}, \
         allow_public_unauthenticated_access: true}}\n"
    );
    let proxy = Proxy::start(&routes, Arc::clone(&held) as Arc<dyn Authorizer>).await;
    let (answers, mut answered) = mpsc::channel(STREAMS * CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let client = Http2::open(&proxy, HOST).await;
        for number in 0..STREAMS {
            let (mut client, answers) = (client.0.clone(), answers.clone());
            tokio::spawn(async move {
                // Every other one is a program that speaks gRPC.
                let grpc = [("content-type", "application/grpc")];
                let headers = if number % 2 == 0 { &grpc[..] } else { &[] };
                let request = request2(Method::GET, HOST, "/", headers);
                client.ready().await.unwrap();
                let answer = client.send_request(request).await.unwrap();
                answers.send(read(answer).await.unwrap()).await.unwrap();
            });
        }
    }
    // Nobody has decided anything yet, so these are the refused.
    let refused = STREAMS * CONNECTIONS - WAITING;
    for _ in 0..refused {
        let answer = answered.recv().await.unwrap();
        if answer
            .header("content-type")
            .starts_with("application/grpc")
        {
            assert_eq!(answer.header("grpc-status"), "14");
        } else {
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
            assert!(!answer.header("retry-after").is_empty());
        }
    }
    held.go.send_replace(true);
    // The kernel chooses the core of a connection, so one may have had too many and the other room.
    let (mut through, mut more) = (0, refused);
    for _ in refused..STREAMS * CONNECTIONS {
        let answer = answered.recv().await.unwrap();
        if answer.body == "through" {
            through += 1;
        } else {
            more += 1;
        }
    }
    assert!(through > 0 && through <= WAITING, "{through}");
    let shed = format!("postern_proxy_requests_shed_undecided_total {more}");
    eventually(
        "the metric",
        || proxy.metrics.page().unwrap(),
        |page| page.contains(&shed),
    )
    .await;
}
