//! Requests that are not what they seem.

use http::{Method, StatusCode};
use postern_common::lifecycle::Exit;

use crate::support::authorizer::Scripted;
use crate::support::client::{self, Http1, Http2, get, raw, read, request, request2};
use crate::support::proxy::Proxy;
use crate::support::upstream::Upstream;

async fn setup() -> (Upstream, Proxy) {
    let upstream = Upstream::http().await;
    let routes = format!(
        "routes:\n- {{from: 'https://app.corp.test', to: '{}'}}\n",
        upstream.url()
    );
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;
    (upstream, proxy)
}

fn answered(text: &str) -> bool {
    text.contains("\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn s23_framing_that_can_be_read_two_ways_is_refused() {
    let (upstream, proxy) = setup().await;
    for (head, body) in [
        ("Transfer-Encoding: gzip, chunked", "0\r\n\r\n"),
        ("Transfer-Encoding: ,chunked", "0\r\n\r\n"),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "0\r\n\r\n",
        ),
        ("Content-Length: 1\r\nContent-Length: 2", "ab"),
        ("Content-Length: +2", "ab"),
        ("Content-Length: 1,1", "a"),
        ("X-A: a\r\n b: c", ""),
        ("X-A : b", ""),
        ("X-A: a\0b", ""),
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: app.corp.test\r\n{head}\r\n\r\n{body}");
        let answer = raw(&proxy, "app.corp.test", request.as_bytes(), answered).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{head:?}: {answer}");
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn s27_one_host_or_none() {
    let (upstream, proxy) = setup().await;
    for head in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: app.corp.test\r\nHost: app.corp.test\r\n\r\n",
        "GET http://other.test/ HTTP/1.1\r\nHost: app.corp.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@app.corp.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: app.corp.test:99999\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
    ] {
        let answer = raw(&proxy, "app.corp.test", head.as_bytes(), answered).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{head:?}: {answer}");
    }
    assert_eq!(upstream.count(), 0);
    for host in ["APP.CORP.TEST", "app.corp.test.", "app.corp.test:443"] {
        let answer = get(&proxy, "app.corp.test", "/", &[("host", host)]).await;
        // The helper adds a Host of its own, so two of them are refused; raw bytes tell.
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = raw(&proxy, "app.corp.test", head.as_bytes(), answered).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "c35 {host}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s24_http2_cannot_smuggle_into_http1() {
    let (upstream, proxy) = setup().await;
    let mut client = Http2::open(&proxy, "app.corp.test").await;
    let mut two_hosts = request2(Method::GET, "app.corp.test", "/", &[]);
    two_hosts
        .headers_mut()
        .insert("host", "evil.test".parse().unwrap());
    let answer = read(client.send(two_hosts).await.unwrap()).await.unwrap();
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(upstream.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn s06_underscores_are_refused_by_default() {
    let (upstream, proxy) = setup().await;
    let answer = get(
        &proxy,
        "app.corp.test",
        "/",
        &[("x_pomerium_jwt_assertion", "forged")],
    )
    .await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(upstream.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn s28_only_upgrades_that_a_route_allows() {
    let (upstream, proxy) = setup().await;
    for token in ["websocket", "SPDY/3.1"] {
        let upgrade = [("connection", "Upgrade"), ("upgrade", token)];
        let answer = get(&proxy, "app.corp.test", "/ws", &upgrade).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{token}");
    }
    assert_eq!(upstream.count(), 0);
    // An offer, and the proxy declines it.
    let offer = [
        ("connection", "Upgrade, HTTP2-Settings"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABk"),
    ];
    let answer = get(&proxy, "app.corp.test", "/", &offer).await;
    assert_eq!(answer.status, StatusCode::OK);
    let seen = upstream.last().headers;
    for name in ["connection", "upgrade", "http2-settings"] {
        assert!(!seen.contains_key(name), "{name}");
    }
    // An upstream that switches without being asked does not get through.
    let answer = get(&proxy, "app.corp.test", "/rude", &[]).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    let connect = "CONNECT app.corp.test:443 HTTP/1.1\r\nHost: app.corp.test:443\r\n\r\n";
    let seen = upstream.count();
    let early = format!("{connect}GET / HTTP/1.1\r\nHost: app.corp.test\r\n\r\n");
    let all = raw(&proxy, "app.corp.test", early.as_bytes(), |_| false).await;
    assert!(all.starts_with("HTTP/1.1 404"), "{all}");
    assert_eq!(all.matches("HTTP/1.1 ").count(), 1, "{all}");
    assert_eq!(
        upstream.count(),
        seen,
        "what was meant for a tunnel is no request"
    );
    // CONNECT is no way to ask for a page.
    let page = "CONNECT http://app.corp.test/x HTTP/1.1\r\nHost: app.corp.test\r\n\r\n";
    let all = raw(&proxy, "app.corp.test", page.as_bytes(), |_| false).await;
    assert!(all.starts_with("HTTP/1.1 400"), "{all}");
    assert_eq!(upstream.count(), seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn s30_heads_are_bounded() {
    let (upstream, proxy) = setup().await;
    let many: String = (0..400).map(|i| format!("x-{i}: y\r\n")).collect();
    let head = format!("GET / HTTP/1.1\r\nHost: app.corp.test\r\n{many}\r\n");
    let answer = raw(&proxy, "app.corp.test", head.as_bytes(), answered).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let large = "y".repeat(200 * 1024);
    let head = format!("GET / HTTP/1.1\r\nHost: app.corp.test\r\nx: {large}\r\n\r\n");
    let answer = raw(&proxy, "app.corp.test", head.as_bytes(), answered).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    assert_eq!(upstream.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn c61_no_agent_is_special() {
    let upstream = Upstream::http().await;
    let routes = format!(
        "routes:\n- {{from: 'https://app.corp.test', to: '{}'}}\n",
        upstream.url()
    );
    let authorizer = Scripted::new(|_| {
        Ok(crate::support::authorizer::deny(
            postern_common::authz::DenyKind::Forbidden,
        ))
    });
    let proxy = Proxy::start(&routes, authorizer.clone()).await;
    for agent in [
        "GoogleHC/1.0",
        "kube-probe/1.30",
        "ELB-HealthChecker/2.0",
        "",
    ] {
        let answer = get(&proxy, "app.corp.test", "/", &[("user-agent", agent)]).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{agent}");
        for probe in ["/ping", "/healthz"] {
            let answer = get(&proxy, "app.corp.test", probe, &[("user-agent", agent)]).await;
            assert_eq!(
                (answer.status, answer.body.as_str()),
                (StatusCode::OK, "OK\n")
            );
        }
    }
    let post = client::request(Method::POST, "app.corp.test", "/ping", &[]);
    let answer = client::exchange(&proxy, "app.corp.test", post).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(upstream.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn s05_the_handle_in_the_query_stays_here() {
    let (upstream, proxy) = setup().await;
    get(
        &proxy,
        "app.corp.test",
        "/x?a=1&pomerium_session=secret",
        &[],
    )
    .await;
    assert_eq!(upstream.last().target, "/x?a=1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_header_is_demanded_and_believed() {
    use tokio::io::AsyncWriteExt as _;
    let upstream = Upstream::http().await;
    let authorizer = Scripted::allowing();
    let config = crate::support::proxy::config(&format!(
        "insecure_server: true\nuse_proxy_protocol: true\n\
         routes:\n- {{from: 'https://app.corp.test', to: '{}'}}\n",
        upstream.url()
    ));
    let proxy = Proxy::with(
        &config,
        authorizer.clone(),
        std::sync::Arc::new(crate::support::proxy::Authority::new()),
        None,
        postern_common::lifecycle::DrainTiming::immediate(),
    );
    let head = "GET / HTTP/1.1\r\nHost: app.corp.test\r\n\r\n";
    let told = format!("PROXY TCP4 203.0.113.5 10.0.0.1 4711 443\r\n{head}");
    let answer = client::clear_text(proxy.address, &told).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(authorizer.last().client_address.to_string(), "203.0.113.5");
    assert_eq!(client::clear_text(proxy.address, head).await, "");
    // An IPv4 address in the clothes of IPv6, as sockets for both families have it.
    let mapped = format!("PROXY TCP6 ::ffff:203.0.113.6 ::1 4711 443\r\n{head}");
    client::clear_text(proxy.address, &mapped).await;
    assert_eq!(authorizer.last().client_address.to_string(), "203.0.113.6");
    let seen = upstream.last().headers;
    for name in ["x-forwarded-for", "x-real-ip"] {
        assert_eq!(seen[name], "203.0.113.6", "{name}");
    }
    // In two parts.
    let mut stream = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(&told.as_bytes()[..20]).await.unwrap();
    stream.flush().await.unwrap();
    stream.write_all(&told.as_bytes()[20..]).await.unwrap();
    assert!(
        client::read_raw(&mut stream, answered)
            .await
            .starts_with("HTTP/1.1 200")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn s30_idle_connections_are_closed() {
    let upstream = Upstream::http().await;
    let routes = format!(
        "timeout_idle: 200ms\nroutes:\n- {{from: 'https://app.corp.test', to: '{}'}}\n",
        upstream.url()
    );
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;
    let head = b"GET / HTTP/1.1\r\nHost: app.corp.test\r\n\r\n";
    let all = raw(&proxy, "app.corp.test", head, |_| false).await;
    assert!(
        all.starts_with("HTTP/1.1 200"),
        "answered, then closed: {all}"
    );
    // HTTP/2 is told to go, and its connection ends.
    let mut client = Http2::open(&proxy, "app.corp.test").await;
    let response = client
        .send(request2(Method::GET, "app.corp.test", "/", &[]))
        .await
        .unwrap();
    assert_eq!(read(response).await.unwrap().body, "hello");
    crate::support::eventually("closed", || client.0.is_closed(), |closed| *closed).await;
    // A request that takes longer than that is not idle.
    let answer = get(&proxy, "app.corp.test", "/slow", &[]).await;
    assert_eq!(answer.body, "slow");
}

/// A second without a question, after which HTTP/1.1 connections rest: neither their next request
/// nor their end may suffer from it. The time is the matter here, and nothing else waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_have_rested_serve_on_and_end() {
    let host = "app.corp.test";
    let upstream = Upstream::http().await;
    let routes = format!(
        "routes:\n- {{from: 'https://{host}', to: '{}'}}\n",
        upstream.url()
    );
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(Http1::open(&proxy, host).await);
    }
    for _ in 0..2 {
        for client in &mut clients {
            let get = request(Method::GET, host, "/", &[]);
            let answer = read(client.send(get).await.unwrap()).await.unwrap();
            assert_eq!(
                (answer.status, answer.body.as_str()),
                (StatusCode::OK, "hello")
            );
        }
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    }
    let exit = crate::support::soon("an end", proxy.drained()).await;
    assert_eq!(exit, Exit::Drained);
    for client in &clients {
        crate::support::eventually("closed", || client.0.is_closed(), |closed| *closed).await;
    }
}

/// An HTTP/2 frame (RFC 9113 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM_AND_HEADERS: u8 = 5;

/// `GET / https app.corp.test`, by the static table of HPACK and one literal.
fn get_block() -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 0x84, 0x41, 13];
    block.extend_from_slice(b"app.corp.test");
    block
}

/// Sends frames until all are gone or the other end has had enough.
async fn flood(proxy: &Proxy, frames: impl Iterator<Item = Vec<u8>>) -> bool {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let stream = client::tls(proxy, "app.corp.test", "h2").await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let drain = tokio::spawn(async move {
        let mut buffer = [0; 65536];
        while let Ok(1..) = read.read(&mut buffer).await {}
    });
    let mut begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    begin.extend(frame(SETTINGS, 0, 0, &[]));
    let mut alive = write.write_all(&begin).await.is_ok();
    for frame in frames {
        alive = alive && write.write_all(&frame).await.is_ok();
    }
    let closed = tokio::time::timeout(std::time::Duration::from_millis(500), drain)
        .await
        .is_ok();
    closed || !alive
}

#[tokio::test(flavor = "multi_thread")]
async fn s25_floods_cost_their_sender_only() {
    let (_, proxy) = setup().await;
    let rapid_reset = (0..5000_u32).flat_map(|i| {
        let stream = 2 * i + 1;
        let reset = frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
        [
            frame(HEADERS, END_STREAM_AND_HEADERS, stream, &get_block()),
            reset,
        ]
    });
    flood(&proxy, rapid_reset).await;
    let first = frame(HEADERS, 1, 1, &get_block());
    // A literal without an end, in parts of 16 KiB.
    let endless = (0..200).map(|_| frame(CONTINUATION, 0, 1, &[0x40; 16_000]));
    assert!(
        flood(&proxy, std::iter::once(first).chain(endless)).await,
        "CONTINUATION without end"
    );
    let too_many = (0..2000_u32).map(|i| frame(HEADERS, 4, 2 * i + 1, &get_block()));
    flood(&proxy, too_many).await;
    flood(&proxy, (0..20_000).map(|_| frame(PING, 0, 0, &[0; 8]))).await;
    flood(&proxy, (0..20_000).map(|_| frame(SETTINGS, 0, 0, &[]))).await;
    // Everybody else is served, and nothing is left.
    for _ in 0..5 {
        let answer = get(&proxy, "app.corp.test", "/", &[]).await;
        assert_eq!(answer.body, "hello");
    }
    let none = "envoy_http_downstream_rq_active{envoy_http_conn_manager_prefix=\"ingress\"} 0\n";
    let page = || proxy.metrics.page().unwrap();
    crate::support::eventually("nothing is left", page, |page| page.contains(none)).await;
}
