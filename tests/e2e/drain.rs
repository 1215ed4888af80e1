//! A proxy that goes away behind a balancer while people use it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use futures::StreamExt as _;
use h2::client::SendRequest;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use postern_tests::cluster::{Cluster, Layout};
use postern_tests::load::{Load, Witness};
use postern_tests::person::{Tunnel, trusting};
use postern_tests::postgres::Postgres;
use postern_tests::site::Server;
use postern_tests::wait;
use postern_tests::world::{Setting, World};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

const DELAY: Duration = Duration::from_secs(2);
/// Longer than the delay and the two seconds until idle connections are closed.
const SLOW: Duration = Duration::from_secs(5);
const STREAMS: usize = 10;
const HOST: &str = "slow.corp.test";
/// Requests a second.
const LOAD: u32 = 40;

/// Where the balancer would have put these connections: on the proxy that is about to go.
struct Straight<'a> {
    cluster: &'a Cluster,
    address: SocketAddr,
}

impl Straight<'_> {
    async fn tls(&self, protocol: &str) -> Tunnel {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from(HOST).unwrap();
        trusting(&self.cluster.site.certificates.authority, &[protocol])
            .connect(name, stream)
            .await
            .unwrap()
    }

    fn authority(&self) -> String {
        format!("{HOST}:{}", self.cluster.port)
    }

    async fn http1(&self, path: &str) -> (StatusCode, String, Bytes) {
        let io = TokioIo::new(self.tls("http/1.1").await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", self.authority())
            .body(Empty::<Bytes>::new())
            .unwrap();
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        let ends = head.headers.get("connection");
        let ends = ends.map_or("", |value| value.to_str().unwrap()).to_owned();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status, ends, body)
    }

    /// A connection whose streams answer with what became of them.
    async fn http2(&self, path: &str) -> (SendRequest<Bytes>, JoinSet<(StatusCode, Bytes)>) {
        let io = self.tls("h2").await;
        let (sender, connection) = h2::client::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let mut streams = JoinSet::new();
        for _ in 0..STREAMS {
            let request = Request::get(format!("https://{}{path}", self.authority()));
            let mut sender = sender.clone().ready().await.unwrap();
            let (answer, _) = sender
                .send_request(request.body(()).unwrap(), true)
                .unwrap();
            streams.spawn(async move {
                let (head, mut body) = answer.await.unwrap().into_parts();
                let mut all = Vec::new();
                while let Some(bytes) = body.data().await {
                    all.extend_from_slice(&bytes.unwrap());
                }
                (head.status, all.into())
            });
        }
        (sender, streams)
    }
}

fn slow() -> Router {
    Router::new().route(
        "/slow",
        get(async || {
            tokio::time::sleep(SLOW).await;
            "at last"
        }),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn c14_a_proxy_behind_a_balancer_goes_unnoticed() {
    let postgres = Postgres::start().expect("Postgres");
    let (witness, upstream) = (Witness::start().await, Server::start(slow()).await);
    let config = format!(
        "databroker_storage_type: postgres\ndatabroker_storage_connection_string: '{}'\n\
         drain_delay: {}s\n",
        postgres.uri("postgres"),
        DELAY.as_secs()
    );
    let routes = format!(
        "{}- {{from: 'https://{HOST}:{{PORT}}', to: '{}', allow_public_unauthenticated_access: true}}\n",
        witness.routes(),
        upstream.url()
    );
    let setting = Setting::new(Layout::Fleet).config(config).routes(routes);
    let mut world = World::start_with(setting).await;
    let load = Load::start(&world, LOAD).await;
    let ann = world.cluster.browser();
    world
        .sign_in(&ann, &world.cluster.url("app", "/"), "ann")
        .await;
    let cookie = ann.cookie_header("app.corp.test");

    let straight = Straight {
        cluster: &world.cluster,
        address: world.cluster.serves("proxy-1"),
    };
    let upgrade = Request::get(format!("wss://app.corp.test:{}/ws", world.cluster.port))
        .header("host", format!("app.corp.test:{}", world.cluster.port))
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("cookie", cookie)
        .body(())
        .unwrap();
    let opened = tokio_tungstenite::client_async(upgrade, straight.tls("http/1.1").await).await;
    let (mut socket, _) = opened.unwrap();
    let (shared, mut streams) = straight.http2("/slow").await;
    let request = straight.http1("/slow");
    let drain = async {
        let begun = Instant::now();
        // Not ready at once, and whoever has not heard of it is served and told to leave.
        let signal = std::process::Command::new("kill")
            .args(["-TERM", &world.cluster.process_id("proxy-1").to_string()])
            .status();
        assert!(signal.unwrap().success());
        let (nobody, url) = (
            world.cluster.program(),
            world.cluster.health("proxy-1", "/readyz"),
        );
        wait::until("not ready", Duration::from_secs(1), async || {
            let answer = nobody.get(&url).await;
            (answer.status == 503).then_some(()).ok_or(answer.status)
        })
        .await;
        let (status, ends, _) = straight.http1("/nothing").await;
        assert_eq!((status, ends.as_str()), (StatusCode::NOT_FOUND, "close"));
        wait::until("GOAWAY", DELAY, async || {
            match shared.clone().ready().await {
                Ok(_) => Err("none"),
                Err(error) if error.is_go_away() && error.is_remote() => Ok(()),
                Err(error) => panic!("{error}"),
            }
        })
        .await;
        wait::until(
            "the listener to close",
            4 * DELAY,
            async || match TcpStream::connect(straight.address).await {
                Ok(_) => Err("open"),
                Err(_) => Ok(()),
            },
        )
        .await;
        assert!(begun.elapsed() >= DELAY, "{:?}", begun.elapsed());
        let closed = tokio::time::timeout(SLOW, socket.next()).await;
        let closed = closed.expect("a close frame").unwrap().unwrap();
        assert!(
            matches!(&closed, Message::Close(Some(frame)) if frame.code == CloseCode::Away),
            "{closed:?}"
        );
    };
    let at_last = Bytes::from_static(b"at last");
    let ((status, ends, body), ()) = tokio::join!(request, drain);
    assert_eq!((status, &body), (StatusCode::OK, &at_last));
    assert_eq!(ends, "close");
    let mut ended = 0;
    while let Some(stream) = streams.join_next().await {
        assert_eq!(stream.unwrap(), (StatusCode::OK, at_last.clone()));
        ended += 1;
    }
    assert_eq!(ended, STREAMS);
    let code = world.cluster.process("proxy-1").ended().await;
    assert_eq!(code.code(), Some(0));
    world.cluster.start_again("proxy-1");
    world.cluster.ready().await;

    let report = load.stop().await;
    assert!(report.sent() > 0);
    assert_eq!(report.failed(), 0, "{:?}", report.problems());
    assert_eq!(witness.wrong(), Vec::<String>::new());
}
