//! C14: the process goes away without losing a request.

use std::time::Duration;

use futures::StreamExt as _;
use http::{Method, StatusCode};
use postern_common::lifecycle::{DrainTiming, Exit, Phase};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::support::authorizer::Scripted;
use crate::support::client::{Http1, Http2, get, read, request, request2, tls};
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
        delay: Duration::from_millis(300),
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

#[tokio::test(flavor = "multi_thread")]
async fn c14_a_websocket_alone_gets_its_close_frame() {
    let upstream = Upstream::http().await;
    let host = "app.corp.test";
    let routes = format!(
        "routes:\n- {{from: 'https://{host}', to: '{}', allow_websockets: true}}\n",
        upstream.url()
    );
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;
    let stream = tls(&proxy, host, "http/1.1").await.unwrap();
    let opened = tokio_tungstenite::client_async(format!("wss://{host}/ws"), stream).await;
    let (mut socket, _) = opened.unwrap();
    let drained = tokio::spawn(proxy.drained());
    let closed = soon("a close frame", socket.next()).await.unwrap().unwrap();
    assert!(matches!(closed, Message::Close(Some(frame)) if frame.code == CloseCode::Away));
    assert_eq!(soon("the end", drained).await.unwrap(), Exit::Drained);
}
