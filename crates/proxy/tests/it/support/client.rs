//! Clients that speak HTTP/1.1 and HTTP/2 over TLS, and raw bytes.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::proxy::Proxy;
use super::soon;

pub type Body = BoxBody<Bytes, std::io::Error>;

pub fn empty() -> Body {
    full("")
}

pub fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed()
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
    pub trailers: HeaderMap,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

/// TLS to the proxy as a client that opened the connection for `sni`.
pub async fn tls(proxy: &Proxy, sni: &str, alpn: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(proxy.authority.der()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(postern_common::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let stream = TcpStream::connect(proxy.address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(sni.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

pub struct Http1(pub http1::SendRequest<Body>);
pub struct Http2(pub http2::SendRequest<Body>);

impl Http1 {
    pub async fn open(proxy: &Proxy, host: &str) -> Self {
        let stream = tls(proxy, host, "http/1.1").await.unwrap();
        let (sender, connection) = http1::Builder::new()
            .preserve_header_case(true)
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection.with_upgrades());
        Self(sender)
    }

    pub async fn send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        soon("ready", self.0.ready()).await?;
        soon("an answer", self.0.send_request(request)).await
    }
}

impl Http2 {
    pub async fn open(proxy: &Proxy, host: &str) -> Self {
        let stream = tls(proxy, host, "h2").await.unwrap();
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    pub async fn send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        soon("ready", self.0.ready()).await?;
        soon("an answer", self.0.send_request(request)).await
    }
}

/// For HTTP/1.1: origin form and `Host`.
pub fn request(
    method: Method,
    host: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Request<Body> {
    let mut builder = Request::builder()
        .method(method)
        .uri(target)
        .header("host", host);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(empty()).unwrap()
}

/// For HTTP/2.
pub fn request2(
    method: Method,
    host: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Request<Body> {
    let mut builder = Request::builder()
        .method(method)
        .uri(format!("https://{host}{target}"));
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(empty()).unwrap()
}

/// Reads an answer to its end; an error if it breaks.
pub async fn read(response: Response<Incoming>) -> Result<Answer, hyper::Error> {
    let (parts, body) = response.into_parts();
    let collected = soon("the end of the body", body.collect()).await?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let body = String::from_utf8_lossy(&collected.to_bytes()).into_owned();
    Ok(Answer {
        status: parts.status,
        headers: parts.headers,
        body,
        trailers,
    })
}

/// One GET on a connection of its own.
pub async fn get(proxy: &Proxy, host: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
    exchange(proxy, host, request(Method::GET, host, target, headers)).await
}

pub async fn exchange(proxy: &Proxy, host: &str, request: Request<Body>) -> Answer {
    let mut client = Http1::open(proxy, host).await;
    read(client.send(request).await.unwrap()).await.unwrap()
}

/// Sends bytes over TLS, reads until the other end closes or `enough` says so.
pub async fn raw(proxy: &Proxy, host: &str, bytes: &[u8], enough: impl Fn(&str) -> bool) -> String {
    let mut stream = tls(proxy, host, "http/1.1").await.unwrap();
    stream.write_all(bytes).await.unwrap();
    read_raw(&mut stream, enough).await
}

pub async fn read_raw(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
    enough: impl Fn(&str) -> bool,
) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match soon("bytes", stream.read(&mut buffer)).await {
            Ok(0) | Err(_) => break,
            Ok(n) => all.extend_from_slice(&buffer[..n]),
        }
        if enough(&String::from_utf8_lossy(&all)) {
            break;
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// One request in clear text.
pub async fn clear_text(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    read_raw(&mut stream, |text| text.contains("\r\n\r\n")).await
}
