use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::service::service_fn;
use hyper_util::server::conn::auto;
use postern_test_dns::TestDns;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::net::test_dns::options;
use crate::tls::tests::{Authority, serving};

/// Answers `/echo` with the method, version, host and body; `/big` with a megabyte; `/slow` never.
async fn answer(
    request: Request<hyper::body::Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let text = match request.uri().path() {
        "/big" => "x".repeat(1 << 20),
        "/slow" => std::future::pending().await,
        "/away" => {
            let response = Response::builder().status(302).header("location", "/echo");
            return Ok(response.body(Full::default()).unwrap());
        }
        _ => {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let agent = parts.headers[header::USER_AGENT]
                .to_str()
                .unwrap()
                .to_owned();
            format!(
                "{} {:?} {agent} {}",
                parts.method,
                parts.version,
                String::from_utf8_lossy(&body)
            )
        }
    };
    Ok(Response::new(Full::from(text)))
}

async fn start(tls: Option<Arc<rustls::ServerConfig>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let tls = tls.clone();
            tokio::spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                match tls {
                    None => {
                        let _ = builder
                            .serve_connection(TokioIo::new(stream), service_fn(answer))
                            .await;
                    }
                    Some(tls) => {
                        if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                            let io = TokioIo::new(stream);
                            let _ = builder.serve_connection(io, service_fn(answer)).await;
                        }
                    }
                }
            });
        }
    });
    address
}

fn get(url: &str) -> Request<Vec<u8>> {
    Request::get(url).body(Vec::new()).unwrap()
}

#[tokio::test]
async fn https_by_name_over_http2_and_http1() {
    let authority = Authority::new("idp");
    let certificate = authority.issue(&["idp.test"], (2090, 1, 1));
    let dns = TestDns::start().await;
    // The first address is dead: nobody listens there.
    dns.set_addresses("idp.test", &["127.0.0.9", "127.0.0.1"]);
    let resolver = Resolver::new(options(&dns)).unwrap();
    let client = HttpsClient::new(resolver, &authority.trust()).unwrap();
    for (alpn, version) in [(Alpn::H2OrHttp1, "HTTP/2.0"), (Alpn::Http1, "HTTP/1.1")] {
        let server = tls::server_config(serving(&[&certificate]), alpn, None).unwrap();
        let port = start(Some(server)).await.port();
        let request = Request::post(format!("https://idp.test:{port}/echo"));
        let request = request.body(b"code=1".to_vec()).unwrap();
        let answer = client.send(request, Limits::default()).await.unwrap();
        let text = String::from_utf8(answer.into_body()).unwrap();
        assert_eq!(
            text,
            format!(
                "POST {version} postern/{} code=1",
                env!("CARGO_PKG_VERSION")
            )
        );
    }
}

#[tokio::test]
async fn an_untrusted_peer_is_explained() {
    let authority = Authority::new("idp");
    let certificate = authority.issue(&["idp.test"], (2090, 1, 1));
    let server = tls::server_config(serving(&[&certificate]), Alpn::Http1, None).unwrap();
    let port = start(Some(server)).await.port();
    let dns = TestDns::start().await;
    dns.set_addresses("idp.test", &["127.0.0.1"]);
    dns.set_addresses("other.test", &["127.0.0.1"]);
    let resolver = Resolver::new(options(&dns)).unwrap();
    let stranger = Authority::new("stranger");
    let client = HttpsClient::new(resolver.clone(), &stranger.trust()).unwrap();
    let url = format!("https://idp.test:{port}/echo");
    let error = client
        .send(get(&url), Limits::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("unknown issuer: not signed by /t/ca.pem"),
        "{error}"
    );
    let client = HttpsClient::new(resolver, &authority.trust()).unwrap();
    let url = format!("https://other.test:{port}/echo");
    let error = client
        .send(get(&url), Limits::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("name other.test not among idp.test"),
        "{error}"
    );
}

#[tokio::test]
async fn s47_answers_are_bounded_in_size_and_time_and_redirects_are_not_followed() {
    let port = start(None).await.port();
    let dns = TestDns::start().await;
    let resolver = Resolver::new(options(&dns)).unwrap();
    let client = HttpsClient::new(resolver, &Authority::new("x").trust()).unwrap();
    let url = |path: &str| format!("http://localhost:{port}{path}");
    let limits = Limits {
        deadline: Duration::from_millis(100),
        max_body: 1000,
    };
    let slow = client.send(get(&url("/slow")), limits).await.unwrap_err();
    assert!(matches!(slow, HttpClientError::Deadline { .. }), "{slow}");
    let big = Limits {
        max_body: 1000,
        ..Limits::default()
    };
    let big = client.send(get(&url("/big")), big).await.unwrap_err();
    assert!(
        matches!(big, HttpClientError::TooLarge { limit: 1000, .. }),
        "{big}"
    );
    let exact = Limits {
        max_body: 1 << 20,
        ..Limits::default()
    };
    assert_eq!(
        client
            .send(get(&url("/big")), exact)
            .await
            .unwrap()
            .body()
            .len(),
        1 << 20
    );
    let away = client
        .send(get(&url("/away")), Limits::default())
        .await
        .unwrap();
    assert_eq!(away.status(), 302);
    let nobody = client
        .send(get("http://127.0.0.9:1/"), Limits::default())
        .await
        .unwrap_err();
    assert!(nobody.to_string().contains("onnection refused"), "{nobody}");
    let missing = client
        .send(get("https://nowhere.test/"), Limits::default())
        .await
        .unwrap_err();
    assert!(
        missing
            .to_string()
            .contains("nowhere.test does not resolve"),
        "{missing}"
    );
}

#[test]
fn s47_bodies_are_uncompressed_within_the_same_bound() {
    let gzip = |text: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, text).unwrap();
        Bytes::from(encoder.finish().unwrap())
    };
    let decode = |coding: &'static str, body: Bytes| {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
        decoded(&mut headers, body, 1000)
    };
    assert_eq!(decode("GZIP", gzip(b"{}")).unwrap(), b"{}");
    assert_eq!(decode("identity", Bytes::from("{}")).unwrap(), b"{}");
    assert_eq!(decode("gzip", gzip(&[b'x'; 1000])).unwrap().len(), 1000);
    let bomb = decode("gzip", gzip(&vec![b'x'; 1_000_000]));
    assert!(matches!(bomb, Err(Undecodable::TooLarge)));
    let plain = decode("gzip", Bytes::from("{}"));
    assert!(matches!(plain, Err(Undecodable::Gzip(_))));
    let other = decode("br", Bytes::from("x"));
    assert!(matches!(other, Err(Undecodable::Coding(c)) if c == "br"));
}
