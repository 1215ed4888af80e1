//! C14: the process goes away without losing a request.

use std::time::Duration;

use futures::StreamExt as _;
use http::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use postern_common::lifecycle::{DrainTiming, Exit, Phase};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::support::authorizer::Scripted;
use crate::support::client::{Http1, Http2, empty, get, read, read_raw, request, request2, tls};
use crate::support::proxy::Proxy;
use crate::support::soon;
use crate::support::upstream::Upstream;

#[tokio::test(flavor = "multi_thread")]
async fn c14_everything_under_way_is_finished() {
    let upstream = Upstream::http().await;
    let host = "app.corp.test";
    let routes = format!(
        "routes:\n- {{from: 'https://{host}', to: '{}', allow_websockets: true}}\n",
        upstream.url()
    );
    let timing = DrainTiming {
        // What is done before the listeners close has to fit in, on a busy machine too.
        delay: Duration::from_secs(4),
        settle: Duration::from_millis(200),
        ..DrainTiming::default()
    };
    let proxy = Proxy::start_draining(&routes, Scripted::allowing(), timing).await;
    let address = proxy.address;
    let (mut h1, mut h2) = (
        Http1::open(&proxy, host).await,
        Http2::open(&proxy, host).await,
    );
    let mut idle = Http1::open(&proxy, host).await;
    let first = idle
        .send(request(Method::GET, host, "/", &[]))
        .await
        .unwrap();
    assert_eq!(read(first).await.unwrap().status, StatusCode::OK);
    let stream = tls(&proxy, host, "http/1.1").await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(format!("wss://{host}/ws"), stream)
        .await
        .unwrap();

    let slow1 = tokio::spawn(async move {
        let response = h1
            .send(request(Method::GET, host, "/slow", &[]))
            .await
            .unwrap();
        read(response).await.unwrap()
    });
    let slow2: Vec<_> = (0..10)
        .map(|_| {
            let mut h2 = Http2(h2.0.clone());
            tokio::spawn(async move {
                let response = h2
                    .send(request2(Method::GET, host, "/slow", &[]))
                    .await
                    .unwrap();
                read(response).await.unwrap().status
            })
        })
        .collect();
    let _ = &mut h2;
    crate::support::eventually("all are under way", || upstream.count(), |n| *n >= 13).await;

    let lifecycle = proxy.lifecycle.clone();
    lifecycle.drain();
    let ending = tokio::spawn({
        let lifecycle = lifecycle.clone();
        async move { lifecycle.run_to_end().await }
    });
    // Listeners stay open for a while, and say that they will not.
    let late = get(&proxy, host, "/", &[]).await;
    assert_eq!(
        (late.status, late.header("connection")),
        (StatusCode::OK, "close")
    );
    let health = get(&proxy, host, "/healthz", &[]).await;
    assert_eq!(health.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(&proxy, host, "/ping", &[]).await.status, StatusCode::OK);
    // A connection that was idle still serves its next request.
    let again = idle
        .send(request(Method::GET, host, "/", &[]))
        .await
        .unwrap();
    assert_eq!(again.headers()["connection"], "close");

    let closed = soon("a close frame", socket.next()).await.unwrap().unwrap();
    let Message::Close(Some(frame)) = closed else {
        panic!("{closed:?}")
    };
    assert_eq!(frame.code, CloseCode::Away);
    let slow1 = slow1.await.unwrap();
    assert_eq!(
        (slow1.status, slow1.body.as_str()),
        (StatusCode::OK, "slow")
    );
    for slow in slow2 {
        assert_eq!(slow.await.unwrap(), StatusCode::OK);
    }
    let exit = soon("the end", ending).await.unwrap();
    assert_eq!(exit, Exit::Drained);
    assert!(lifecycle.phase() == Phase::Stopping);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_proxy_ends_at_once() {
    let proxy = Proxy::start("routes: []\n", Scripted::allowing()).await;
    let _idle1 = Http1::open(&proxy, "a.corp.test").await;
    let _idle2 = Http2::open(&proxy, "a.corp.test").await;
    let exit = tokio::time::timeout(Duration::from_secs(5), proxy.drained()).await;
    assert_eq!(exit.expect("nothing holds it"), Exit::Drained);
}

const HOST: &str = "app.corp.test";

/// In front of an upstream that echoes what comes by WebSocket.
async fn with_websockets() -> Proxy {
    let upstream = Upstream::http().await;
    let routes = format!(
        "routes:\n- {{from: 'https://{HOST}', to: '{}', allow_websockets: true}}\n",
        upstream.url()
    );
    Proxy::start(&routes, Scripted::allowing()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn c14_a_websocket_alone_gets_its_close_frame() {
    let proxy = with_websockets().await;
    let stream = tls(&proxy, HOST, "http/1.1").await.unwrap();
    let opened = tokio_tungstenite::client_async(format!("wss://{HOST}/ws"), stream).await;
    let (mut socket, _) = opened.unwrap();
    let drained = tokio::spawn(proxy.drained());
    let closed = soon("a close frame", socket.next()).await.unwrap().unwrap();
    assert!(matches!(closed, Message::Close(Some(frame)) if frame.code == CloseCode::Away));
    assert_eq!(soon("the end", drained).await.unwrap(), Exit::Drained);
}

/// What of a close frame does not depend on the reason: final, close, not masked; 1001.
fn is_going_away(frame: &[u8; 4]) -> bool {
    frame[0] == 0x88 && frame[1] & 0x80 == 0 && frame[2..] == 1001_u16.to_be_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn c14_a_websocket_over_http2_gets_its_close_frame() {
    let proxy = with_websockets().await;
    let mut client = Http2::open(&proxy, HOST).await;
    // An answer proves that the settings have come.
    let plain = client.send(request2(Method::GET, HOST, "/", &[])).await;
    assert_eq!(plain.unwrap().status(), StatusCode::OK);
    let connect = http::Request::connect(format!("https://{HOST}/ws"))
        .extension(hyper::ext::Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .body(empty())
        .unwrap();
    let response = client.send(connect).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let drained = tokio::spawn(proxy.drained());
    let mut frame = [0; 4];
    soon("a close frame", io.read_exact(&mut frame))
        .await
        .unwrap();
    assert!(is_going_away(&frame), "{frame:x?}");
    // Nobody answers it, and the stream stays open on this side.
    assert_eq!(soon("the end", drained).await.unwrap(), Exit::Drained);
}

#[tokio::test(flavor = "multi_thread")]
async fn c14_a_websocket_whose_ends_are_silent_is_closed_all_the_same() {
    for half_a_frame in [false, true] {
        let proxy = with_websockets().await;
        let mut stream = tls(&proxy, HOST, "http/1.1").await.unwrap();
        let upgrade = format!(
            "GET /ws HTTP/1.1\r\nhost: {HOST}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
        );
        stream.write_all(upgrade.as_bytes()).await.unwrap();
        let head = read_raw(&mut stream, |text| text.contains("\r\n\r\n")).await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        if half_a_frame {
            // The upstream echoes these bytes as they are and owes the client the rest.
            stream.write_all(b"\x82\x7e\x10\x00xxxx").await.unwrap();
            let mut echo = [0; 8];
            soon("an echo", stream.read_exact(&mut echo)).await.unwrap();
        }
        let drained = tokio::spawn(proxy.drained());
        let mut rest = Vec::new();
        soon("the end", stream.read_to_end(&mut rest))
            .await
            .unwrap_or_default();
        if half_a_frame {
            assert!(rest.is_empty(), "in the middle of a frame: {rest:x?}");
        } else {
            assert!(is_going_away(rest[..4].try_into().unwrap()), "{rest:x?}");
        }
        // Not cut: it has ended well before requests have to.
        assert_eq!(soon("the end", drained).await.unwrap(), Exit::Drained);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c14_the_redirect_listener_drains_too() {
    let added = "routes: []\nhttp_redirect_addr: 127.0.0.1:0\n";
    let timing = DrainTiming {
        delay: Duration::from_millis(300),
        settle: Duration::from_millis(200),
        ..DrainTiming::default()
    };
    let proxy = Proxy::start_draining(added, Scripted::allowing(), timing).await;
    let address = proxy.redirect.unwrap();
    let mut kept = tokio::net::TcpStream::connect(address).await.unwrap();
    let ask = async |stream: &mut tokio::net::TcpStream, path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: a.corp.test\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let n = soon("an answer", stream.read(&mut answer)).await.unwrap();
        String::from_utf8_lossy(&answer[..n]).into_owned()
    };
    let before = ask(&mut kept, "/healthz").await;
    assert!(before.starts_with("HTTP/1.1 200"), "{before}");
    let mut idle = tokio::net::TcpStream::connect(address).await.unwrap();
    ask(&mut idle, "/").await;

    proxy.lifecycle.drain();
    let after = ask(&mut kept, "/healthz").await;
    assert!(after.starts_with("HTTP/1.1 503"), "{after}");
    assert!(after.contains("connection: close"), "{after}");
    // Something else is under way, so nothing is cut yet.
    let busy = proxy.lifecycle.busy();
    let lifecycle = proxy.lifecycle.clone();
    let ending = tokio::spawn(async move { lifecycle.run_to_end().await });
    let mut rest = [0; 1];
    let closed = soon("an idle one to close", idle.read(&mut rest));
    assert_eq!(closed.await.unwrap(), 0);
    assert_eq!(proxy.lifecycle.phase(), Phase::IdleClosed);
    drop(busy);
    assert_eq!(soon("the end", ending).await.unwrap(), Exit::Drained);
}
