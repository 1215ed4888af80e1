//! Requests to upstreams and back.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use postern_common::authz::{AuthorizeError, Decision, DenyKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::authorizer::{Scripted, allow, deny};
use crate::support::client::{self, Http1, Http2, get, read, request, request2};
use crate::support::proxy::Proxy;
use crate::support::upstream::Upstream;
use crate::support::{eventually, soon};

fn route(upstream: &Upstream, more: &str) -> String {
    format!(
        "routes:\n- from: https://app.corp.test\n  to: {}\n{more}",
        upstream.url()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allowed_request_reaches_the_upstream_as_it_should() {
    let upstream = Upstream::http().await;
    let authorizer = Scripted::new(|_| {
        Ok(allow(
            "s1",
            &[
                ("x-pomerium-jwt-assertion", "jwt"),
                ("x-pomerium-claim-email", ""),
            ],
        ))
    });
    let routes = route(&upstream, "  pass_identity_headers: true\n");
    let proxy = Proxy::start(&routes, authorizer.clone()).await;
    let sent = [
        ("cookie", "_pomerium=handle; theme=dark"),
        ("x-pomerium-jwt-assertion", "forged"),
        ("x-real-ip", "6.6.6.6"),
        ("x-custom", "kept"),
    ];
    let answer = get(&proxy, "app.corp.test", "/a/../b%20c?q=%0A", &sent).await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (StatusCode::OK, "hello")
    );
    let question = authorizer.last();
    assert_eq!(
        (&*question.path, &*question.host),
        ("/b%20c", "app.corp.test")
    );
    assert_eq!(question.headers["cookie"], "_pomerium=handle; theme=dark");
    let seen = upstream.last();
    assert_eq!(
        (seen.method.as_str(), seen.target.as_str()),
        ("GET", "/b%20c?q=%0A")
    );
    let header = |name: &str| seen.headers.get(name).map_or("", |v| v.to_str().unwrap());
    assert_eq!(header("host"), upstream.address.to_string());
    assert_eq!(header("x-forwarded-host"), "app.corp.test");
    assert_eq!(header("x-forwarded-for"), "127.0.0.1");
    assert_eq!(header("x-forwarded-proto"), "https");
    assert_eq!(header("x-real-ip"), "127.0.0.1");
    assert_eq!(header("cookie"), "theme=dark");
    assert_eq!(header("x-pomerium-jwt-assertion"), "jwt");
    assert!(seen.headers.contains_key("x-pomerium-claim-email"));
    assert_eq!(header("x-custom"), "kept");
    assert_eq!(header("x-request-id"), answer.header("x-request-id"));
    assert_eq!(answer.header("x-request-id").len(), 36);
}

/// Many servers do so with a body that is too large: they answer, and close without reading on.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_before_the_whole_request_reaches_the_client() {
    const SIZE: usize = 8 * 1024 * 1024;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let routes = format!(
        "routes:\n- {{from: 'https://app.corp.test', to: 'http://{}'}}\n",
        listener.local_addr().unwrap()
    );
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut some = [0; 1024];
            let _ = stream.read(&mut some).await.unwrap();
            let answer =
                b"HTTP/1.1 413 Too Large\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbig!";
            stream.write_all(answer).await.unwrap();
            // What has not been read makes a reset of this.
            drop(stream);
        }
    });
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;
    for _ in 0..10 {
        let mut client = Http2::open(&proxy, "app.corp.test").await;
        let empty = request2(Method::POST, "app.corp.test", "/", &[]);
        let body = client::full(vec![b'x'; SIZE]);
        let upload = Request::from_parts(empty.into_parts().0, body);
        let answer = soon("an answer", client.send(upload)).await.unwrap();
        let answer = read(answer).await.unwrap();
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (StatusCode::PAYLOAD_TOO_LARGE, "big!")
        );
    }
}

/// Over HTTP/1.1 nothing but the end of the connection tells a client to stop. A reset would take the
/// answer with it.
#[tokio::test(flavor = "multi_thread")]
async fn s32_a_client_that_is_still_sending_reads_its_answer() {
    const SIZE: usize = 1024 * 1024;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authorizer = Scripted::new(|request| match &*request.path {
        "/401" => Ok(deny(DenyKind::Unauthenticated { sign_in_url: None })),
        "/503" => Err(AuthorizeError::Unreachable {
            reason: "x".to_owned(),
        }),
        _ => Ok(allow("s1", &[])),
    });
    let routes = format!(
        "routes:\n- {{from: 'https://app.corp.test', to: 'http://{}'}}\n",
        listener.local_addr().unwrap()
    );
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut some = [0; 1024];
            let _ = stream.read(&mut some).await.unwrap();
            let answer = b"HTTP/1.1 413 Too Large\r\ncontent-length: 4\r\n\r\nbig!";
            stream.write_all(answer).await.unwrap();
        }
    });
    let proxy = Proxy::start(&routes, authorizer).await;
    let host = "app.corp.test";
    let post = |status: &str| format!("POST /{status} HTTP/1.1\r\nHost: {host}\r\n");
    let length = format!("Content-Length: {SIZE}\r\n\r\n");
    for (status, head) in [
        ("401", post("401") + &length),
        ("503", post("503") + &length),
        ("413", post("413") + "Connection: close\r\n" + &length),
        (
            "404",
            format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n"),
        ),
        ("431", post("431") + "X-Long: "),
    ] {
        for _ in 0..5 {
            let mut stream = client::tls(&proxy, host, "http/1.1").await.unwrap();
            let sent = [head.as_bytes(), &vec![b'x'; SIZE]].concat();
            let sending = soon("all of it is taken", stream.write_all(&sent)).await;
            sending.unwrap_or_else(|error| panic!("{status}: {error}"));
            let mut answer = Vec::new();
            let read = soon(
                &format!("the end of {status}"),
                stream.read_to_end(&mut answer),
            )
            .await;
            read.unwrap_or_else(|error| panic!("{status}: {error}"));
            let answer = String::from_utf8_lossy(&answer);
            let expected = format!("HTTP/1.1 {status}");
            assert!(answer.starts_with(&expected), "{answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_reach_clients_of_http1_that_want_them() {
    let upstream = Upstream::http().await;
    let proxy = Proxy::start(&route(&upstream, ""), Scripted::allowing()).await;
    for (te, expected) in [(&[("te", "trailers")][..], Some("abc")), (&[], None)] {
        let answer = get(&proxy, "app.corp.test", "/checked", te).await;
        assert_eq!(answer.body, "data");
        assert_eq!(answer.header("trailer"), "x-checksum");
        let checksum = answer.trailers.get("x-checksum");
        assert_eq!(checksum.map(|v| v.to_str().unwrap()), expected);
        assert!(!answer.trailers.contains_key("x-other"), "not announced");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s01_nothing_reaches_an_upstream_without_an_allow() {
    let upstream = Upstream::http().await;
    let authorizer = Scripted::new(|_| Ok(deny(DenyKind::Forbidden)));
    let proxy = Proxy::start(&route(&upstream, ""), authorizer.clone()).await;
    let host = "app.corp.test";
    let json = [("accept", "application/json")];
    let refused = get(&proxy, host, "/", &json).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(
        refused.body.contains(refused.header("x-request-id")),
        "{}",
        refused.body
    );
    assert_eq!(refused.header("x-pomerium-intercepted-response"), "true");
    assert_eq!(refused.header("x-frame-options"), "SAMEORIGIN");
    let page = get(&proxy, host, "/", &[("accept", "text/html")]).await;
    assert!(page.body.contains("<!doctype html") && !page.body.contains("traces"));
    assert_eq!(page.header("location"), "");

    authorizer.now(|_| {
        Ok(deny(DenyKind::SignIn {
            location: "https://auth.corp.test/x".into(),
        }))
    });
    let sign_in = get(&proxy, host, "/", &[]).await;
    assert_eq!(sign_in.status, StatusCode::FOUND);
    assert_eq!(sign_in.header("location"), "https://auth.corp.test/x");
    let robots = get(&proxy, host, "/robots.txt", &[]).await;
    assert_eq!(
        (robots.status, robots.body.contains("Disallow: /")),
        (StatusCode::OK, true)
    );

    authorizer.now(|_| {
        let sign_in_url = Some("https://auth.corp.test/y".to_owned());
        Ok(deny(DenyKind::Unauthenticated { sign_in_url }))
    });
    let program = get(&proxy, host, "/", &json).await;
    assert_eq!(program.status, StatusCode::UNAUTHORIZED);
    assert!(
        program.body.contains("https://auth.corp.test/y"),
        "{}",
        program.body
    );

    authorizer.now(|_| {
        Err(AuthorizeError::Unreachable {
            reason: "secret reason".into(),
        })
    });
    let undecided = get(&proxy, host, "/", &json).await;
    assert_eq!(undecided.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!undecided.header("retry-after").is_empty());
    assert!(!undecided.body.contains("secret"));

    authorizer.now(|_| panic!("a defect on the way to a decision"));
    let defect = get(&proxy, host, "/", &json).await;
    assert_eq!(defect.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(upstream.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn c66_grpc_learns_why_in_its_own_way() {
    let upstream = Upstream::http().await;
    let authorizer = Scripted::new(|_| {
        Err(AuthorizeError::Unreachable {
            reason: String::new(),
        })
    });
    let proxy = Proxy::start(&route(&upstream, ""), authorizer.clone()).await;
    let mut client = Http2::open(&proxy, "app.corp.test").await;
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    let call = || request2(Method::POST, "app.corp.test", "/svc/M", &grpc);
    let answer = read(client.send(call()).await.unwrap()).await.unwrap();
    assert_eq!(
        (answer.status, answer.header("grpc-status")),
        (StatusCode::OK, "14")
    );
    authorizer.now(|_| Ok(deny(DenyKind::Unauthenticated { sign_in_url: None })));
    let answer = read(client.send(call()).await.unwrap()).await.unwrap();
    assert_eq!(
        (answer.status, answer.header("grpc-status")),
        (StatusCode::OK, "16")
    );
    // An upstream that speaks HTTP/1.1 only: an error, not a hang.
    authorizer.now(|_| Ok(allow("s1", &[])));
    let answer = read(client.send(call()).await.unwrap()).await.unwrap();
    assert_eq!(
        (answer.status, answer.header("grpc-status")),
        (StatusCode::OK, "13")
    );
    assert_eq!(upstream.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn c46_grpc_passes_with_its_trailers() {
    let upstream = Upstream::http().await;
    let to = format!("h2c://{}", upstream.address);
    let routes = format!("routes:\n- from: https://app.corp.test\n  to: {to}\n");
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;
    let mut client = Http2::open(&proxy, "app.corp.test").await;
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    let call = request2(Method::POST, "app.corp.test", "/trailers", &grpc);
    let answer = read(client.send(call).await.unwrap()).await.unwrap();
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (StatusCode::OK, "data")
    );
    assert_eq!(answer.trailers["grpc-status"], "5");
    let seen = upstream.last();
    assert_eq!(seen.version, http::Version::HTTP_2);
    assert_eq!(seen.headers["te"], "trailers");
    // The deadline that the caller set.
    let mut late = grpc.to_vec();
    late.push(("grpc-timeout", "100m"));
    let call = request2(Method::POST, "app.corp.test", "/never", &late);
    let answer = read(client.send(call).await.unwrap()).await.unwrap();
    assert_eq!(
        (answer.status, answer.header("grpc-status")),
        (StatusCode::OK, "4")
    );
    // Both protocols lead to it.
    let answer = get(&proxy, "app.corp.test", "/", &[]).await;
    assert_eq!(answer.body, "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_stream_both_ways() {
    let upstream = Upstream::http().await;
    let proxy = Proxy::start(&route(&upstream, ""), Scripted::allowing()).await;
    for http2 in [false, true] {
        let (sender, frames) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
        let body = StreamBody::new(ReceiverStream::new(frames));
        let body = http_body_util::combinators::BoxBody::new(body);
        let mut post = if http2 {
            request2(Method::POST, "app.corp.test", "/echo", &[])
        } else {
            request(Method::POST, "app.corp.test", "/echo", &[])
        };
        *post.body_mut() = body;
        sender.send(Ok(Frame::data("one".into()))).await.unwrap();
        let response = if http2 {
            Http2::open(&proxy, "app.corp.test")
                .await
                .send(post)
                .await
                .unwrap()
        } else {
            Http1::open(&proxy, "app.corp.test")
                .await
                .send(post)
                .await
                .unwrap()
        };
        let mut back = response.into_body().into_data_stream();
        assert_eq!(
            soon("the first part", back.next()).await.unwrap().unwrap(),
            "one"
        );
        sender.send(Ok(Frame::data("two".into()))).await.unwrap();
        assert_eq!(
            soon("the second part", back.next()).await.unwrap().unwrap(),
            "two"
        );
        drop(sender);
        // HTTP/2 may end with an empty frame.
        while let Some(rest) = soon("the end", back.next()).await {
            assert_eq!(rest.unwrap(), "");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s32_a_broken_answer_is_never_a_short_one() {
    let upstream = Upstream::http().await;
    let proxy = Proxy::start(&route(&upstream, ""), Scripted::allowing()).await;
    let host = "app.corp.test";
    let mut client = Http1::open(&proxy, host).await;
    let response = client
        .send(request(Method::GET, host, "/broken", &[]))
        .await
        .unwrap();
    assert!(read(response).await.is_err());
    let mut client = Http2::open(&proxy, host).await;
    let response = client
        .send(request2(Method::GET, host, "/broken", &[]))
        .await
        .unwrap();
    assert!(read(response).await.is_err());
    // Other streams of the connection live on.
    let answer = client
        .send(request2(Method::GET, host, "/", &[]))
        .await
        .unwrap();
    assert_eq!(read(answer).await.unwrap().body, "hello");
}

/// Two lengths in one answer: who believes the wrong one has a part of it, or the next one's.
#[tokio::test(flavor = "multi_thread")]
async fn s32_an_answer_with_two_lengths_arrives_whole() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let heads = [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
    ];
    tokio::spawn(async move {
        for head in heads {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            let answer = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\n{head}\r\n\r\n5\r\nwhole\r\n0\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let routes = format!("routes:\n- {{from: 'https://app.corp.test', to: 'http://{to}'}}\n");
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;
    let answer = get(&proxy, "app.corp.test", "/", &[]).await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (StatusCode::OK, "whole")
    );
    // A coding that the client would not learn of.
    let answer = get(&proxy, "app.corp.test", "/", &[]).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_upstreams_are_kept_and_replaced() {
    let upstream = Upstream::http().await;
    let proxy = Proxy::start(&route(&upstream, ""), Scripted::allowing()).await;
    let host = "app.corp.test";
    let mut client = Http1::open(&proxy, host).await;
    for _ in 0..20 {
        let response = client
            .send(request(Method::GET, host, "/", &[]))
            .await
            .unwrap();
        assert_eq!(read(response).await.unwrap().status, StatusCode::OK);
    }
    let kept = upstream
        .connections
        .load(std::sync::atomic::Ordering::SeqCst);
    assert!(kept <= 3, "{kept} connections for 20 requests in a row");
    for _ in 0..10 {
        let response = client
            .send(request(Method::GET, host, "/closes", &[]))
            .await
            .unwrap();
        assert_eq!(read(response).await.unwrap().body, "closing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_upstreams_share_and_stand_in_for_each_other() {
    let (a, b) = (Upstream::http().await, Upstream::http().await);
    // Nobody listens on the third.
    let dead = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let routes = format!(
        "routes:\n- from: https://app.corp.test\n  to: ['{}', '{}', 'http://{dead}']\n",
        a.url(),
        b.url()
    );
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;
    for _ in 0..30 {
        let answer = get(&proxy, "app.corp.test", "/", &[]).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    assert!(
        a.count() > 5 && b.count() > 5,
        "{} and {}",
        a.count(),
        b.count()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_not_there_is_a_503() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let routes = format!(
        "routes:\n- {{from: 'https://app.corp.test', to: 'http://{dead}'}}\n\
         - {{from: 'https://name.corp.test', to: 'http://nowhere.invalid:1'}}\n\
         dns_query_timeout: 1s\ndns_query_tries: 1\n"
    );
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;
    for host in ["app.corp.test", "name.corp.test"] {
        let answer = get(&proxy, host, "/", &[("accept", "application/json")]).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{host}");
        assert!(!answer.body.contains("127.0.0.1"), "{}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c39_time_limits_say_which_key_they_are() {
    let upstream = Upstream::http().await;
    let routes = route(&upstream, "  timeout: 200ms\n") + "timeout_read: 300ms\n";
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;
    let host = "app.corp.test";
    let json = [("accept", "application/json")];
    let late = get(&proxy, host, "/never", &json).await;
    assert_eq!(late.status, StatusCode::GATEWAY_TIMEOUT);
    // A stream that began is cut, and the client sees it.
    let mut client = Http1::open(&proxy, host).await;
    let response = client
        .send(request(Method::GET, host, "/ticks", &[]))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(read(response).await.is_err());
    // A body that does not come.
    let (sender, frames) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
    let mut post = request(Method::POST, host, "/slow", &json);
    *post.body_mut() =
        http_body_util::combinators::BoxBody::new(StreamBody::new(ReceiverStream::new(frames)));
    let response = Http1::open(&proxy, host).await.send(post).await.unwrap();
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    drop(sender);
}

#[tokio::test(flavor = "multi_thread")]
async fn c39_a_request_that_nobody_takes_ends_in_time_too() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let routes = format!(
        "timeout_read: 300ms\nroutes:\n- {{from: 'https://app.corp.test', to: 'http://{}'}}\n",
        listener.local_addr().unwrap()
    );
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;
    let mut client = Http2::open(&proxy, "app.corp.test").await;
    let empty = request2(
        Method::POST,
        "app.corp.test",
        "/",
        &[("accept", "application/json")],
    );
    let body = client::full(vec![b'x'; 32 * 1024 * 1024]);
    let upload = Request::from_parts(empty.into_parts().0, body);
    // It is accepted, and never read.
    let (answer, _upstream) = tokio::join!(client.send(upload), listener.accept());
    let answer = read(answer.unwrap()).await.unwrap();
    assert_eq!(answer.status, StatusCode::REQUEST_TIMEOUT);
    assert!(
        answer.body.contains("request_overall_timeout"),
        "{}",
        answer.body
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_and_fixed_responses_need_a_decision_too() {
    let authorizer = Scripted::allowing();
    let routes = "routes:\n\
        - {from: 'https://old.corp.test', redirect: {host_redirect: new.corp.test, response_code: 308}}\n\
        - {from: 'https://fixed.corp.test', response: {status: 418, body: teapot}}\n";
    let proxy = Proxy::start(routes, authorizer.clone()).await;
    let answer = get(&proxy, "old.corp.test", "/x?y", &[]).await;
    assert_eq!(answer.status, StatusCode::PERMANENT_REDIRECT);
    assert_eq!(answer.header("location"), "https://new.corp.test/x?y");
    let answer = get(&proxy, "fixed.corp.test", "/", &[]).await;
    assert_eq!(
        (answer.status.as_u16(), answer.body.as_str()),
        (418, "teapot")
    );
    assert_eq!(authorizer.questions(), 2);
    authorizer.now(|_| Ok(deny(DenyKind::Forbidden)));
    assert_eq!(
        get(&proxy, "fixed.corp.test", "/", &[]).await.status,
        StatusCode::FORBIDDEN
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn c73_response_headers_stand_once() {
    let upstream = Upstream::http().await;
    let to = upstream.url();
    let routes = format!(
        "set_response_headers: {{X-Frame-Options: DENY, X-A: '1'}}\nroutes:\n\
         - {{from: 'https://a.corp.test', to: '{to}', set_response_headers: {{X-A: '2'}}}}\n\
         - {{from: 'https://b.corp.test', to: '{to}', set_response_headers: {{disable: 'true'}}}}\n"
    );
    let authorizer = Scripted::allowing();
    let proxy = Proxy::start(&routes, authorizer.clone()).await;
    let values = |answer: &client::Answer, name: &str| {
        let all = answer.headers.get_all(name).iter();
        all.map(|v| v.to_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let a = get(&proxy, "a.corp.test", "/cookies", &[]).await;
    assert_eq!(
        (values(&a, "x-a"), values(&a, "x-frame-options")),
        (vec!["2".into()], vec!["DENY".into()])
    );
    assert_eq!(
        values(&a, "set-cookie"),
        ["theme=dark"],
        "s31: no cookie of ours"
    );
    let b = get(&proxy, "b.corp.test", "/cookies", &[]).await;
    assert_eq!(
        (values(&b, "x-a"), values(&b, "x-frame-options")),
        (vec![], vec!["ALLOWALL".into()])
    );
    let own = get(&proxy, "b.corp.test", "/.well-known/pomerium", &[]).await;
    assert_eq!(values(&own, "x-frame-options"), ["DENY"]);
    authorizer.now(|_| Ok(deny(DenyKind::Forbidden)));
    let refused = get(&proxy, "b.corp.test", "/", &[]).await;
    assert_eq!(values(&refused, "x-frame-options"), ["DENY"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn c25_other_sites_read_refusals_where_they_read_answers() {
    let upstream = Upstream::http().await;
    let authorizer = Scripted::new(|_| {
        Ok(deny(DenyKind::Unauthenticated {
            sign_in_url: Some("https://auth.corp.test/sign_in".to_owned()),
        }))
    });
    let keys = "  set_response_headers:\n    Access-Control-Allow-Origin: https://spa.corp.test\n    X-Own: '1'\n";
    let proxy = Proxy::start(&route(&upstream, keys), authorizer).await;
    let headers = [
        ("sec-fetch-mode", "cors"),
        ("origin", "https://spa.corp.test"),
    ];
    let answer = get(&proxy, "app.corp.test", "/", &headers).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        "https://spa.corp.test"
    );
    assert_eq!(
        answer.header("x-own"),
        "",
        "only what browsers need to read it"
    );
    let elsewhere = get(&proxy, "b.corp.test", "/", &headers).await;
    assert_eq!(elsewhere.header("access-control-allow-origin"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn s09_what_is_under_way_ends_with_its_session() {
    let upstream = Upstream::http().await;
    let authorizer = Scripted::allowing();
    let proxy = Proxy::start(&route(&upstream, ""), authorizer.clone()).await;
    let host = "app.corp.test";
    let mut ann = Http2::open(&proxy, host).await;
    let mut bob = Http2::open(&proxy, host).await;
    let ticks = |session| request2(Method::GET, host, "/ticks", &[("x-test-session", session)]);
    let anns = ann.send(ticks("ann-1")).await.unwrap();
    let bobs = bob.send(ticks("bob-1")).await.unwrap();
    authorizer.now(|request| match request.headers.get("x-test-session") {
        Some(session) if session == "ann-1" => Ok(deny(DenyKind::Forbidden)),
        _ => Ok(allow("bob-1", &[])),
    });
    authorizer.revisit(postern_common::authz::Revisit::Session("ann-1".into()));
    let cut = tokio::time::timeout(Duration::from_secs(1), read(anns)).await;
    assert!(cut.expect("within a second").is_err());
    let mut bobs = bobs.into_body();
    for _ in 0..5 {
        soon("bob goes on", bobs.frame()).await.unwrap().unwrap();
    }
    authorizer.revisit(postern_common::authz::Revisit::Everything);
    soon("bob is asked about", bobs.frame())
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s09_decisions_run_out() {
    let upstream = Upstream::http().await;
    let authorizer = Scripted::new(|_| {
        let Decision::Allow(mut allow) = allow("s1", &[]) else {
            unreachable!()
        };
        let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(300);
        allow.valid_until = Some(soon);
        Ok(Decision::Allow(allow))
    });
    let proxy = Proxy::start(&route(&upstream, ""), authorizer.clone()).await;
    let mut client = Http1::open(&proxy, "app.corp.test").await;
    let ticks = request(Method::GET, "app.corp.test", "/ticks", &[]);
    let response = client.send(ticks).await.unwrap();
    let mut body = response.into_body();
    // Asked again before its time, and still allowed.
    eventually("asked again", || authorizer.questions(), |n| *n >= 3).await;
    soon("it goes on", body.frame()).await.unwrap().unwrap();
    authorizer.now(|_| Ok(deny(DenyKind::Forbidden)));
    let rest = tokio::time::timeout(Duration::from_secs(2), body.collect()).await;
    assert!(rest.expect("it ends").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_over_and_ends_what_lost_its_route() {
    let upstream = Upstream::http().await;
    let proxy = Proxy::start(&route(&upstream, ""), Scripted::allowing()).await;
    let mut client = Http1::open(&proxy, "app.corp.test").await;
    let ticks = request(Method::GET, "app.corp.test", "/ticks", &[]);
    let open = client.send(ticks).await.unwrap();
    let issued = [proxy.authority.issue(&["*.corp.test"])];
    let other = format!(
        "{}routes:\n- {{from: 'https://new.corp.test', to: '{}'}}\n",
        crate::support::proxy::certificates(&issued),
        upstream.url()
    );
    proxy
        .config
        .send_replace(crate::support::proxy::config(&other));
    let cut = tokio::time::timeout(Duration::from_secs(2), read(open)).await;
    assert!(cut.expect("its route is gone").is_err());
    assert_eq!(get(&proxy, "new.corp.test", "/", &[]).await.body, "hello");
    assert_eq!(
        get(&proxy, "app.corp.test", "/", &[]).await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn s42_https_upstreams_are_verified_and_speak_http2() {
    let authority = crate::support::proxy::Authority::new();
    let upstream = Upstream::https(authority.server(&["up.test"], &["h2", "http/1.1"])).await;
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let port = upstream.address.port();
    let ca = ca.display();
    let routes = format!(
        "routes:\n\
         - {{from: 'https://good.corp.test', to: 'https://127.0.0.1:{port}', tls_custom_ca_file: '{ca}', tls_upstream_server_name: up.test}}\n\
         - {{from: 'https://name.corp.test', to: 'https://127.0.0.1:{port}', tls_custom_ca_file: '{ca}', show_error_details: true}}\n\
         - {{from: 'https://issuer.corp.test', to: 'https://127.0.0.1:{port}', tls_upstream_server_name: up.test, show_error_details: true}}\n\
         - {{from: 'https://skip.corp.test', to: 'https://127.0.0.1:{port}', tls_skip_verify: true}}\n"
    );
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;
    assert_eq!(get(&proxy, "good.corp.test", "/", &[]).await.body, "hello");
    assert_eq!(upstream.last().version, http::Version::HTTP_2);
    assert_eq!(get(&proxy, "skip.corp.test", "/", &[]).await.body, "hello");
    let name = get(&proxy, "name.corp.test", "/", &[]).await;
    assert_eq!(name.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(name.body.contains("up.test"), "c47 {}", name.body);
    let issuer = get(&proxy, "issuer.corp.test", "/", &[]).await;
    assert_eq!(issuer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(issuer.body.contains("issuer"), "c47 {}", issuer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn c32_c33_one_meaning_for_a_path() {
    let upstream = Upstream::http().await;
    let to = upstream.url();
    let routes = format!(
        "routes:\n\
         - {{from: 'https://app.corp.test', prefix: /public, to: '{to}', allow_public_unauthenticated_access: true}}\n\
         - {{from: 'https://app.corp.test', to: '{to}'}}\n"
    );
    // As authorize would: only what is below /public.
    let authorizer = Scripted::new(|request| {
        if request.path.starts_with("/public") {
            Ok(allow("", &[]))
        } else {
            Ok(deny(DenyKind::Forbidden))
        }
    });
    let proxy = Proxy::start(&routes, authorizer).await;
    for (target, status) in [
        ("/public/../admin", 403),
        ("/public/%2e%2e/admin", 403),
        ("/public/./x", 200),
        ("/public?../admin", 200),
        ("/PUBLIC/x", 403),
        ("/public/%2f..%2fadmin", 400),
        ("/public/%5c..%5cadmin", 400),
        ("/public/%00", 400),
        ("/admin?x=/public/", 403),
        ("/public/%252e%252e/admin", 200),
        ("/public;a=b/../admin", 403),
    ] {
        let answer = get(&proxy, "app.corp.test", target, &[]).await;
        assert_eq!(answer.status.as_u16(), status, "{target}");
    }
    let seen = upstream.seen.lock().unwrap();
    assert!(
        seen.iter().all(|seen| !seen.target.starts_with("/admin")),
        "{seen:?}"
    );
    assert_eq!(seen.first().unwrap().target, "/public/x");
}

#[tokio::test(flavor = "multi_thread")]
async fn c87_bytes_of_path_and_query_arrive() {
    let upstream = Upstream::http().await;
    let proxy = Proxy::start(&route(&upstream, ""), Scripted::allowing()).await;
    let long = format!("/?{}", "q".repeat(12 * 1024));
    for target in ["/a/%0A/b", "/?q=x%0Ay", "/%C3%A4", "/a%20b", "/a+b", &long] {
        assert_eq!(
            get(&proxy, "app.corp.test", target, &[]).await.status,
            StatusCode::OK
        );
        assert_eq!(upstream.last().target, target);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rewrites_and_hosts() {
    let upstream = Upstream::http().await;
    let to = upstream.url();
    let routes = format!(
        "routes:\n\
         - {{from: 'https://a.corp.test', prefix: /a, prefix_rewrite: /b, to: '{to}', preserve_host_header: true}}\n\
         - {{from: 'https://b.corp.test', to: '{to}/get', host_rewrite: other.test}}\n\
         - {{from: 'https://c.corp.test', regex: '^/s/(.*)$', regex_rewrite_pattern: '^/s/(.*)$', regex_rewrite_substitution: '/t/\\1', to: '{to}'}}\n"
    );
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;
    get(&proxy, "a.corp.test", "/a/x?q", &[]).await;
    let seen = upstream.last();
    assert_eq!(
        (seen.target.as_str(), &seen.headers["host"]),
        ("/b/x?q", &"a.corp.test".parse().unwrap())
    );
    assert_eq!(seen.headers["x-envoy-original-path"], "/a/x");
    assert!(!seen.headers.contains_key("x-forwarded-host"));
    get(&proxy, "b.corp.test", "/x", &[]).await;
    let seen = upstream.last();
    assert_eq!(
        (seen.target.as_str(), &seen.headers["host"]),
        ("/get/x", &"other.test".parse().unwrap())
    );
    get(&proxy, "c.corp.test", "/s/u", &[]).await;
    assert_eq!(upstream.last().target, "/t/u");
}

#[tokio::test(flavor = "multi_thread")]
async fn c44_trusted_hops_in_clear_text() {
    let upstream = Upstream::http().await;
    let authorizer = Scripted::allowing();
    let config = crate::support::proxy::config(&format!(
        "insecure_server: true\nxff_num_trusted_hops: 1\n{}",
        route(&upstream, "")
    ));
    let proxy = Proxy::with(
        &config,
        authorizer.clone(),
        std::sync::Arc::new(crate::support::proxy::Authority::new()),
        None,
        postern_common::lifecycle::DrainTiming::immediate(),
    );
    let request = "GET / HTTP/1.1\r\nHost: app.corp.test\r\nX-Forwarded-For: 203.0.113.5, 198.51.100.7\r\nX-Forwarded-Proto: https\r\n\r\n";
    let answer = client::clear_text(proxy.address, request).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(authorizer.last().client_address.to_string(), "198.51.100.7");
    let seen = upstream.last();
    assert_eq!(
        seen.headers["x-forwarded-for"],
        "203.0.113.5, 198.51.100.7, 127.0.0.1"
    );
    assert_eq!(seen.headers["x-forwarded-proto"], "https");
}

#[tokio::test(flavor = "multi_thread")]
async fn s33_only_what_may_be_repeated_is() {
    // Answers the first request of each connection, then closes at the second.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await;
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                let _ = stream.write_all(answer).await;
                let _ = stream.read(&mut buffer).await;
            });
        }
    });
    let routes = format!("routes:\n- {{from: 'https://app.corp.test', to: 'http://{address}'}}\n");
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;
    let host = "app.corp.test";
    let mut client = Http1::open(&proxy, host).await;
    let mut ask = async |method: Method| {
        let response = client.send(request(method, host, "/", &[])).await.unwrap();
        read(response).await.unwrap().status
    };
    assert_eq!(ask(Method::GET).await, StatusCode::OK);
    // The kept connection dies under it: sent again on a new one.
    assert_eq!(ask(Method::GET).await, StatusCode::OK);
    // Nobody knows whether a POST was carried out.
    assert_eq!(ask(Method::POST).await, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_under_known_names() {
    let upstream = Upstream::http().await;
    let proxy = Proxy::start(&route(&upstream, "  name: app\n"), Scripted::allowing()).await;
    get(&proxy, "app.corp.test", "/", &[]).await;
    let wanted = r#"envoy_cluster_upstream_rq_total{envoy_cluster_name="app"} 1"#;
    eventually(
        "counted",
        || proxy.metrics.page().unwrap(),
        |page| page.contains(wanted),
    )
    .await;
    let page = proxy.metrics.page().unwrap();
    for line in [
        r#"envoy_http_downstream_rq_total{envoy_http_conn_manager_prefix="ingress"} 1"#,
        r#"envoy_http_ext_authz_ok_total{envoy_http_conn_manager_prefix="ingress"} 1"#,
    ] {
        assert!(page.contains(line), "{line} is missing in\n{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_hosts_and_paths_are_404_without_a_question() {
    let authorizer = Scripted::allowing();
    let upstream = Upstream::http().await;
    let proxy = Proxy::start(&route(&upstream, "  prefix: /only\n"), authorizer.clone()).await;
    for (host, path) in [("app.corp.test", "/other"), ("none.corp.test", "/")] {
        let answer = get(&proxy, host, path, &[("accept", "application/json")]).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert!(answer.body.contains("route_not_found"), "{}", answer.body);
    }
    assert_eq!(authorizer.questions(), 0);
    let _: Request<()> = Request::new(());
}

#[tokio::test(flavor = "multi_thread")]
async fn s04_a_panic_costs_one_request() {
    let upstream = Upstream::http().await;
    let authorizer = Scripted::new(|request| {
        assert!(&*request.path != "/panic", "a defect");
        Ok(allow("s1", &[]))
    });
    let proxy = Proxy::start(&route(&upstream, ""), authorizer).await;
    let host = "app.corp.test";
    let mut client = Http2::open(&proxy, host).await;
    let slow = client
        .0
        .send_request(request2(Method::GET, host, "/slow", &[]));
    let panic = client
        .0
        .send_request(request2(Method::GET, host, "/panic", &[]));
    let (slow, panic) = soon("both", futures::future::join(slow, panic)).await;
    assert_eq!(panic.unwrap().status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(read(slow.unwrap()).await.unwrap().body, "slow");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_are_all_answered_and_nothing_is_left() {
    let upstream = Upstream::http().await;
    let proxy =
        std::sync::Arc::new(Proxy::start(&route(&upstream, ""), Scripted::allowing()).await);
    let host = "app.corp.test";
    let workers = (0..16).map(|worker| {
        let proxy = std::sync::Arc::clone(&proxy);
        tokio::spawn(async move {
            let target = if worker % 4 == 0 { "/closes" } else { "/" };
            if worker % 2 == 0 {
                let mut client = Http1::open(&proxy, host).await;
                for _ in 0..50 {
                    let response = client
                        .send(request(Method::GET, host, target, &[]))
                        .await
                        .unwrap();
                    assert_eq!(read(response).await.unwrap().status, StatusCode::OK);
                }
            } else {
                let client = Http2::open(&proxy, host).await;
                let streams = (0..50).map(|_| {
                    let mut client = Http2(client.0.clone());
                    async move {
                        let response = client
                            .send(request2(Method::GET, host, "/", &[]))
                            .await
                            .unwrap();
                        assert_eq!(read(response).await.unwrap().status, StatusCode::OK);
                    }
                });
                futures::future::join_all(streams).await;
            }
        })
    });
    for worker in soon("all", futures::future::join_all(workers)).await {
        worker.unwrap();
    }
    for gauge in [
        "envoy_http_downstream_rq_active",
        "envoy_http_downstream_cx_active",
    ] {
        let none = format!("{gauge}{{envoy_http_conn_manager_prefix=\"ingress\"}} 0\n");
        eventually(
            gauge,
            || proxy.metrics.page().unwrap(),
            |page| page.contains(&none),
        )
        .await;
    }
}

/// Each answer is overtaken by a change while it is on its way, four times.
struct Overtaken {
    asked: std::sync::atomic::AtomicUsize,
    revisits: tokio::sync::broadcast::Sender<postern_common::authz::Revisit>,
}

impl postern_common::authz::Authorizer for Overtaken {
    fn check(
        &self,
        _: std::sync::Arc<postern_common::authz::CheckRequest>,
    ) -> futures::future::BoxFuture<'_, crate::support::authorizer::Answer> {
        use crate::support::authorizer::{allow, deny};
        use postern_common::authz::{DenyKind, Revisit};
        Box::pin(async {
            if self.asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) >= 3 {
                return Ok(deny(DenyKind::Forbidden));
            }
            let _ = self.revisits.send(Revisit::Session("s1".to_owned()));
            // The cores hear of it before they get the answer.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            Ok(allow("s1", &[]))
        })
    }

    fn revisits(&self) -> tokio::sync::broadcast::Receiver<postern_common::authz::Revisit> {
        self.revisits.subscribe()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s09_an_overtaken_answer_is_looked_at_again() {
    let upstream = Upstream::http().await;
    let routes = format!(
        "routes:\n- {{from: 'https://app.corp.test', to: '{}', timeout: 0s}}\n",
        upstream.url()
    );
    let authorizer = std::sync::Arc::new(Overtaken {
        asked: 0.into(),
        revisits: tokio::sync::broadcast::channel(64).0,
    });
    let proxy = Proxy::start(&routes, authorizer.clone()).await;
    let mut client = crate::support::client::Http1::open(&proxy, "app.corp.test").await;
    let ticks = crate::support::client::request(http::Method::GET, "app.corp.test", "/ticks", &[]);
    let response = client.send(ticks).await.unwrap();
    let status = response.status();
    eventually(
        "a fourth question",
        || authorizer.asked.load(std::sync::atomic::Ordering::SeqCst),
        |asked| *asked == 4,
    )
    .await;
    // Withdrawn before the first byte of the answer, or after it.
    if status == http::StatusCode::OK {
        let end = crate::support::client::read(response).await;
        assert!(end.is_err(), "the answer is broken off: {end:?}");
    } else {
        assert_eq!(status, http::StatusCode::FORBIDDEN);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s09_not_to_read_does_not_keep_an_answer_open() {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let upstream = Upstream::http().await;
    let routes = format!(
        "routes:\n- {{from: 'https://app.corp.test', to: '{}', timeout: 0s}}\n",
        upstream.url()
    );
    let authorizer = Scripted::allowing();
    let proxy = Proxy::start(&routes, authorizer.clone()).await;
    let stream = client::tls(&proxy, "app.corp.test", "h2").await.unwrap();
    // Room for one byte, and then none.
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let ticks = request2(Method::GET, "app.corp.test", "/ticks", &[]);
    let response = soon("an answer", sender.send_request(ticks)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    // Long enough for more ticks than there is room for.
    tokio::time::sleep(Duration::from_millis(300)).await;
    authorizer.now(|_| Ok(deny(DenyKind::Forbidden)));
    authorizer.revisit(postern_common::authz::Revisit::Everything);
    let _ = soon("the end of the connection", connection).await;
    drop(response);
}

/// A client that leaves one stream no room does not keep it open beyond its limits, and loses that
/// stream only.
#[tokio::test(flavor = "multi_thread")]
async fn s30_c39_limits_hold_for_answers_that_nobody_takes() {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let upstream = Upstream::http().await;
    let routes = format!(
        "routes:\n- {{from: 'https://app.corp.test', prefix: /ticks, to: '{to}', timeout: 1s}}\n\
         - {{from: 'https://app.corp.test', to: '{to}'}}\n",
        to = upstream.url()
    );
    let proxy = Proxy::start(&routes, Scripted::allowing()).await;
    let stream = client::tls(&proxy, "app.corp.test", "h2").await.unwrap();
    // Room for the word of another answer, not for many ticks.
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(6)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let ticks = request2(Method::GET, "app.corp.test", "/ticks", &[]);
    let response = soon("an answer", sender.send_request(ticks)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    // Nothing is read until the proxy has let the upstream go.
    soon("the end at the upstream", async {
        while upstream.ticking() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(crate::support::client::read(response).await.is_err());
    let other = request2(Method::GET, "app.corp.test", "/", &[]);
    let other = soon("an answer", sender.send_request(other)).await.unwrap();
    assert_eq!(
        crate::support::client::read(other).await.unwrap().body,
        "hello"
    );
}
