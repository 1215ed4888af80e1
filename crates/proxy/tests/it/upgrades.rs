//! WebSockets over both protocols, tunnels, and their end.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_common::authz::{DenyKind, Revisit};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::support::authorizer::{Scripted, allow, deny};
use crate::support::client::tls;
use crate::support::proxy::Proxy;
use crate::support::soon;
use crate::support::upstream::Upstream;

type Socket = tokio_tungstenite::WebSocketStream<TlsStream<TcpStream>>;

const HOST: &str = "ws.corp.test";

const WEBSOCKET: &str = "GET /ws HTTP/1.1\r\nHost: ws.corp.test\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n";

const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

async fn setup(authorizer: std::sync::Arc<Scripted>) -> (Upstream, Proxy) {
    let upstream = Upstream::http().await;
    let routes = format!(
        "routes:\n- {{from: 'https://{HOST}', to: '{}', allow_websockets: true}}\n",
        upstream.url()
    );
    let proxy = Proxy::start(&routes, authorizer).await;
    (upstream, proxy)
}

async fn socket(proxy: &Proxy, session: &str) -> Socket {
    let stream = tls(proxy, HOST, "http/1.1").await.unwrap();
    let mut request = format!("wss://{HOST}/ws").into_client_request().unwrap();
    request
        .headers_mut()
        .insert("x-test-session", session.parse().unwrap());
    let connecting = tokio_tungstenite::client_async(request, stream);
    soon("an upgrade", connecting).await.unwrap().0
}

async fn echoes(socket: &mut Socket, text: &str) {
    socket.send(Message::text(text)).await.unwrap();
    let back = soon("an echo", socket.next()).await.unwrap().unwrap();
    assert_eq!(back, Message::text(text));
}

#[tokio::test(flavor = "multi_thread")]
async fn c38_websockets_over_http1() {
    let (upstream, proxy) = setup(Scripted::allowing()).await;
    for i in 0..20 {
        let mut socket = socket(&proxy, "s1").await;
        echoes(&mut socket, &format!("message {i}")).await;
        echoes(&mut socket, "and another").await;
    }
    let seen = upstream.last();
    assert_eq!(seen.headers["upgrade"], "websocket");
    assert!(seen.headers.contains_key("sec-websocket-key"));
}

#[tokio::test(flavor = "multi_thread")]
async fn c38_header_case_arrives_as_sent() {
    let (_, proxy) = setup(Scripted::allowing()).await;
    let mut stream = tls(&proxy, HOST, "http/1.1").await.unwrap();
    let request = "GET /ws HTTP/1.1\r\nHost: ws.corp.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
        SEC-WebSocket-KEY: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = crate::support::client::read_raw(&mut stream, |t| t.contains("\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
}

/// Answers the first request of each connection, and breaks the second one off. Tells which it was,
/// and how it was written.
async fn breaks_off() -> (SocketAddr, UnboundedReceiver<(usize, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let tell = tell.clone();
            tokio::spawn(async move {
                for number in 1..=2 {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else {
                            return;
                        };
                        head.push(byte);
                    }
                    tell.send((number, String::from_utf8(head).unwrap()))
                        .unwrap();
                    if number == 1 {
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                        stream.write_all(answer).await.unwrap();
                    }
                }
            });
        }
    });
    (address, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn c38_header_case_survives_a_second_try() {
    let (address, mut told) = breaks_off().await;
    let routes = format!("routes:\n- {{from: 'https://{HOST}', to: 'http://{address}'}}\n");
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;
    let mut stream = tls(&proxy, HOST, "http/1.1").await.unwrap();
    let mut again = 0;
    for _ in 0..10 {
        let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-oDD-Case: 1\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = crate::support::client::read_raw(&mut stream, |t| t.ends_with("ok")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        while let Ok((number, head)) = told.try_recv() {
            assert!(head.contains("X-oDD-Case: 1"), "{head}");
            again += usize::from(number == 2);
        }
    }
    assert!(again > 0, "no connection was used twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn c38_websockets_over_http2() {
    let (upstream, proxy) = setup(Scripted::allowing()).await;
    let mut sender = over_http2(&proxy).await;
    for _ in 0..10 {
        let response = extended(&mut sender, "/ws").await;
        assert_eq!(response.status(), StatusCode::OK);
        let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        io.write_all(b"\x81\x82\0\0\0\0hi").await.unwrap();
        let mut back = [0; 4];
        soon("an echo", io.read_exact(&mut back)).await.unwrap();
        assert_eq!(&back, b"\x81\x02hi");
    }
    assert_eq!(upstream.last().method, "GET");
    assert_eq!(upstream.last().version, http::Version::HTTP_11);
}

/// HTTP/2, with the settings that allow WebSockets.
async fn over_http2(proxy: &Proxy) -> http2::SendRequest<Empty<Bytes>> {
    let stream = tls(proxy, HOST, "h2").await.unwrap();
    let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    // An answer proves that the settings have come.
    let plain = Request::get(format!("https://{HOST}/ping"))
        .body(Empty::new())
        .unwrap();
    let answer = soon("an answer", sender.send_request(plain)).await;
    assert_eq!(answer.unwrap().status(), StatusCode::OK);
    sender
}

/// The answer to a WebSocket over HTTP/2.
async fn extended(sender: &mut http2::SendRequest<Empty<Bytes>>, path: &str) -> Response<Incoming> {
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("https://{HOST}{path}"))
        .extension(Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .body(Empty::new())
        .unwrap();
    let sent = soon("an answer", sender.send_request(request)).await;
    sent.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn c38_s01_s02_a_websocket_is_the_same_request_by_either_protocol() {
    let authorizer = Scripted::allowing();
    let (upstream, proxy) = setup(authorizer.clone()).await;
    let asked = || {
        let question = authorizer.last();
        let upgrade = question.headers["upgrade"].to_str().unwrap().to_owned();
        (question.method.clone(), question.path.clone(), upgrade)
    };
    let mut over_http1 = socket(&proxy, "s1").await;
    echoes(&mut over_http1, "hi").await;
    let expected = asked();
    assert_eq!(expected, (Method::GET, "/ws".into(), "websocket".into()));
    let mut sender = over_http2(&proxy).await;
    let answer = extended(&mut sender, "/ws").await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(asked(), expected);
    assert_eq!(upstream.last().method, "GET");

    // Who may not is told so: a script cannot follow anybody to a page.
    authorizer.now(|_| {
        let sign_in_url = Some("https://auth.corp.test/sign_in".to_owned());
        Ok(deny(DenyKind::Unauthenticated { sign_in_url }))
    });
    let answer = extended(&mut sender, "/ws").await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(answer.headers()["content-type"], "application/json");
}

#[tokio::test(flavor = "multi_thread")]
async fn c38_only_a_websocket_is_a_success_over_http2() {
    let (upstream, proxy) = setup(Scripted::allowing()).await;
    let mut sender = over_http2(&proxy).await;
    let answer = extended(&mut sender, "/no-websocket-here").await;
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(upstream.last().target, "/no-websocket-here");
    // Nor are our own answers one.
    for path in ["/ping", "/.pomerium/", "/.well-known/pomerium"] {
        let answer = extended(&mut sender, path).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path}");
    }
    let answer = extended(&mut sender, "/ws").await;
    assert_eq!(answer.status(), StatusCode::OK, "and it goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn c27_websockets_end_with_their_session() {
    let authorizer = Scripted::allowing();
    let (_, proxy) = setup(authorizer.clone()).await;
    let mut anns = Vec::new();
    for _ in 0..20 {
        anns.push(socket(&proxy, "ann-1").await);
    }
    let mut bob = socket(&proxy, "bob-1").await;
    echoes(&mut bob, "before").await;
    authorizer.now(|request| match request.headers.get("x-test-session") {
        Some(session) if session == "ann-1" => Ok(deny(DenyKind::Forbidden)),
        _ => Ok(allow("bob-1", &[])),
    });
    authorizer.revisit(Revisit::Session("ann-1".into()));
    let all = futures::future::join_all(anns.iter_mut().map(|socket| async {
        match socket.next().await {
            Some(Ok(Message::Close(frame))) => frame.map(|frame| frame.code),
            other => panic!("{other:?}"),
        }
    }));
    let over = std::cell::Cell::new(false);
    // A second as this machine has it now: a hundred steps of ten milliseconds with an echo each.
    let second = async {
        for step in (0..100).take_while(|_| !over.get()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            echoes(&mut bob, &format!("step {step}")).await;
        }
        assert!(over.get(), "a socket outlives its session");
    };
    let all = async {
        let codes = all.await;
        over.set(true);
        codes
    };
    let (codes, ()) = tokio::join!(all, second);
    assert!(
        codes.iter().all(|code| *code == Some(CloseCode::Policy)),
        "{codes:?}"
    );
    echoes(&mut bob, "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_need_a_decision_and_the_route_key() {
    let authorizer = Scripted::new(|_| {
        let sign_in_url = None;
        Ok(deny(DenyKind::Unauthenticated { sign_in_url }))
    });
    let (upstream, proxy) = setup(authorizer).await;
    let stream = tls(&proxy, HOST, "http/1.1").await.unwrap();
    let refused = tokio_tungstenite::client_async(format!("wss://{HOST}/ws"), stream).await;
    let tokio_tungstenite::tungstenite::Error::Http(response) = refused.unwrap_err() else {
        panic!("not an answer");
    };
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(upstream.count(), 0);
}

/// A tunnel to `db.corp.test:5432`, open.
async fn tunnel(proxy: &Proxy) -> TlsStream<TcpStream> {
    let mut stream = tls(proxy, "db.corp.test", "http/1.1").await.unwrap();
    let head = "CONNECT db.corp.test:5432 HTTP/1.1\r\nHost: db.corp.test:5432\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let head = head_of(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    stream
}

/// Up to the empty line, and no byte more.
async fn head_of(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let byte = soon("a head", stream.read_u8()).await.unwrap();
        head.push(char::from(byte));
    }
    head
}

/// Waits for the end of a silent connection, whatever it looks like.
async fn ends(what: &str, stream: &mut (impl AsyncRead + Unpin)) {
    let read = soon(what, stream.read(&mut [0; 64])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{what}: {read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn c49_c27_what_a_client_held_ends_when_it_vanishes() {
    let far = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = far.local_addr().unwrap();
    let routes = format!(
        "routes:\n- {{from: 'tcp+https://db.corp.test:5432', to: 'tcp://{to}'}}\n\
         - {{from: 'https://{HOST}', to: 'http://{to}', allow_websockets: true}}\n"
    );
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;
    // A reset, or the end of TCP without that of TLS.
    for reset in [true, false] {
        let client = tunnel(&proxy).await;
        let (mut upstream, _) = soon("a connection", far.accept()).await.unwrap();
        if reset {
            client.get_ref().0.set_zero_linger().unwrap();
        }
        drop(client);
        ends("the tunnel", &mut upstream).await;

        let mut client = tls(&proxy, HOST, "http/1.1").await.unwrap();
        client.write_all(WEBSOCKET.as_bytes()).await.unwrap();
        let (mut upstream, _) = soon("a connection", far.accept()).await.unwrap();
        head_of(&mut upstream).await;
        upstream.write_all(SWITCHED.as_bytes()).await.unwrap();
        let head = head_of(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        if reset {
            client.get_ref().0.set_zero_linger().unwrap();
        }
        drop(client);
        ends("the WebSocket", &mut upstream).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c49_c38_what_a_client_holds_ends_when_the_upstream_vanishes() {
    let authority = crate::support::proxy::Authority::new();
    let acceptor = tokio_rustls::TlsAcceptor::from(authority.server(&["up.test"], &["http/1.1"]));
    let (raw, far) = (
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    );
    let (to_raw, to_far) = (raw.local_addr().unwrap(), far.local_addr().unwrap());
    let routes = format!(
        "routes:\n- {{from: 'tcp+https://db.corp.test:5432', to: 'tcp://{to_raw}'}}\n\
         - {{from: 'https://{HOST}', to: 'https://{to_far}', allow_websockets: true, \
         tls_skip_verify: true}}\n"
    );
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;

    let mut client = tunnel(&proxy).await;
    let (upstream, _) = soon("a connection", raw.accept()).await.unwrap();
    upstream.set_zero_linger().unwrap();
    drop(upstream);
    ends("the tunnel", &mut client).await;

    for reset in [true, false] {
        let mut client = tls(&proxy, HOST, "http/1.1").await.unwrap();
        client.write_all(WEBSOCKET.as_bytes()).await.unwrap();
        let (upstream, _) = soon("a connection", far.accept()).await.unwrap();
        let mut upstream = soon("TLS", acceptor.accept(upstream)).await.unwrap();
        head_of(&mut upstream).await;
        upstream.write_all(SWITCHED.as_bytes()).await.unwrap();
        upstream.flush().await.unwrap();
        let head = head_of(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        // What it said before it vanished arrives.
        upstream.write_all(b"\x81\x02hi").await.unwrap();
        upstream.flush().await.unwrap();
        let mut said = [0; 4];
        soon("a frame", client.read_exact(&mut said)).await.unwrap();
        assert_eq!(&said, b"\x81\x02hi");
        if reset {
            upstream.get_ref().0.set_zero_linger().unwrap();
        }
        drop(upstream);
        ends("the WebSocket", &mut client).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c49_tunnels_carry_bytes_and_end_with_their_route() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let authorizer = Scripted::allowing();
    let routes =
        format!("routes:\n- {{from: 'tcp+https://db.corp.test:5432', to: 'tcp://{address}'}}\n");
    let proxy = Proxy::start(&routes, authorizer.clone()).await;
    let mut stream = tunnel(&proxy).await;
    assert_eq!(&*authorizer.last().host, "db.corp.test:5432");
    for text in [b"one", b"two"] {
        stream.write_all(text).await.unwrap();
        let mut back = [0; 3];
        soon("an echo", stream.read_exact(&mut back)).await.unwrap();
        assert_eq!(&back, text);
    }
    // A reload that leaves its route alone leaves the tunnel alone.
    let issued = [proxy.authority.issue(&["*.corp.test"])];
    let pem = crate::support::proxy::certificates(&issued);
    let more =
        format!("{pem}{routes}- {{from: 'https://x.corp.test', to: 'http://127.0.0.1:1'}}\n");
    proxy
        .config
        .send_replace(crate::support::proxy::config(&more));
    stream.write_all(b"six").await.unwrap();
    let mut back = [0; 3];
    soon("an echo", stream.read_exact(&mut back)).await.unwrap();
    proxy
        .config
        .send_replace(crate::support::proxy::config(&format!("{pem}routes: []\n")));
    let end = tokio::time::timeout(Duration::from_secs(3), stream.read(&mut back)).await;
    assert!(matches!(end.expect("its route is gone"), Ok(0) | Err(_)));
}

/// Another proxy: takes CONNECT, answers with `answer`, and sends back what comes after.
async fn next_proxy<S>(mut stream: S, answer: &str) -> String
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head.push(char::from(stream.read_u8().await.unwrap()));
    }
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut bytes = [0; 3];
    if stream.read_exact(&mut bytes).await.is_ok() {
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
    }
    head
}

#[tokio::test(flavor = "multi_thread")]
async fn c49_a_tunnel_goes_on_through_another_proxy() {
    let authority = crate::support::proxy::Authority::new();
    let acceptor = tokio_rustls::TlsAcceptor::from(authority.server(&["up.test"], &["http/1.1"]));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let ask = async |scheme: &str, answer: &'static str, wanted: &str| {
        let routes = format!(
            "routes:\n- {{from: 'tcp+https://db.corp.test:5432', to: '{scheme}://127.0.0.1:{port}', \
             tls_skip_verify: true}}\n"
        );
        let proxy = Proxy::start(&routes, Scripted::allowing()).await;
        let mut stream = tls(&proxy, "db.corp.test", "http/1.1").await.unwrap();
        let head = "CONNECT db.corp.test:5432 HTTP/1.1\r\nHost: db.corp.test:5432\r\n\
                    Cookie: _pomerium=secret; a=b\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let upstream = async {
            let (tcp, _) = listener.accept().await.unwrap();
            if scheme == "https" {
                next_proxy(acceptor.accept(tcp).await.unwrap(), answer).await
            } else {
                next_proxy(tcp, answer).await
            }
        };
        let client = async {
            let read = crate::support::client::read_raw(&mut stream, |t| t.contains(wanted)).await;
            if wanted == "\r\n\r\n" {
                assert!(read.starts_with("HTTP/1.1 200"), "{read}");
                stream.write_all(b"six").await.unwrap();
                let mut back = [0; 3];
                stream.read_exact(&mut back).await.unwrap();
                assert_eq!(&back, b"six");
            }
            drop(stream);
            read
        };
        soon("both ends", futures::future::join(upstream, client)).await
    };
    for scheme in ["http", "https"] {
        let accepts = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let (head, answer) = ask(scheme, accepts, "\r\n\r\n").await;
        let lower = head.to_ascii_lowercase();
        assert!(
            head.starts_with("CONNECT db.corp.test:5432 HTTP/1.1\r\n"),
            "{head}"
        );
        assert!(lower.contains("\r\nhost: db.corp.test:5432\r\n"), "{head}");
        assert!(!head.contains("secret"), "s05 {head}");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            !answer.to_ascii_lowercase().contains("content-length"),
            "{answer}"
        );
    }
    // What the other proxy refuses is no tunnel.
    let refuses = "HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nnope";
    let (_, answer) = ask("http", refuses, "nope").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_requests_of_the_same_route_work() {
    let (_, proxy) = setup(Scripted::allowing()).await;
    let answer = crate::support::client::get(&proxy, HOST, "/", &[]).await;
    assert_eq!(answer.body, "hello");
    let _ = Empty::<Bytes>::new().collect().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c38_an_upstream_with_http2_gets_websockets_by_http1() {
    let authority = crate::support::proxy::Authority::new();
    let tls_config = authority.server(&["up.test"], &["h2", "http/1.1"]);
    let upstream = Upstream::https(tls_config).await;
    let routes = format!(
        "routes:\n- {{from: 'https://{HOST}', to: 'https://127.0.0.1:{}', allow_websockets: true, tls_skip_verify: true}}\n",
        upstream.address.port()
    );
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;
    for _ in 0..10 {
        assert_eq!(
            crate::support::client::get(&proxy, HOST, "/", &[])
                .await
                .body,
            "hello"
        );
        assert_eq!(upstream.last().version, http::Version::HTTP_2);
        let mut socket = socket(&proxy, "s1").await;
        echoes(&mut socket, "hi").await;
        assert_eq!(upstream.last().version, http::Version::HTTP_11);
    }
}
