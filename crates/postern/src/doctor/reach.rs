//! Name, TCP, TLS: the first steps to anything.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_common::net::connect::{ClientTls, connect};
use postern_common::net::{ConnectError, LookupError, Stream};
use postern_common::telemetry::log::chain;
use url::Url;

use super::site::{ANSWER, AT_ONCE, CONNECT, Site};

/// Larger answers are not ours.
const MAX_BODY: usize = 256 * 1024;
/// Addresses of one name that are looked at.
const MAX_ADDRESSES: usize = 64;

/// All addresses of a host, each with what became of a connection.
pub async fn reach(
    site: &Site,
    host: &str,
    port: u16,
    tls: Option<&ClientTls>,
) -> Result<Vec<(SocketAddr, Result<Stream, ConnectError>)>, LookupError> {
    let found = site.resolver.lookup(host).await?.addresses;
    let connecting = found.into_iter().take(MAX_ADDRESSES).map(async |ip| {
        let address = SocketAddr::new(ip, port);
        (address, connect(address, tls, CONNECT).await)
    });
    Ok(futures::stream::iter(connecting)
        .buffered(AT_ONCE)
        .collect()
        .await)
}

/// Why there is no answer over a connection.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("{0}")]
    Broken(String),
}

/// One request.
pub struct Question<'a> {
    pub method: Method,
    pub url: &'a Url,
    pub headers: Vec<(&'static str, String)>,
}

impl<'a> Question<'a> {
    pub fn get(url: &'a Url) -> Self {
        Self {
            method: Method::GET,
            url,
            headers: Vec::new(),
        }
    }
}

/// Asks over a connection.
pub async fn ask(stream: Stream, question: Question<'_>) -> Result<Response<Bytes>, AskError> {
    let answer = tokio::time::timeout(ANSWER, exchange(stream, question)).await;
    answer
        .map_err(|_| AskError::Silent(ANSWER))?
        .map_err(|error| AskError::Broken(chain(&*error)))
}

type Broken = Box<dyn std::error::Error + Send + Sync>;

async fn exchange(stream: Stream, question: Question<'_>) -> Result<Response<Bytes>, Broken> {
    let h2 = stream.is_h2();
    let io = TokioIo::new(stream);
    let request = request(&question, h2)?;
    let (response, _driver) = if h2 {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        let driver = Driver::start(connection);
        (sender.send_request(request).await?, driver)
    } else {
        let (mut sender, connection) = http1::handshake(io).await?;
        let driver = Driver::start(connection);
        (sender.send_request(request).await?, driver)
    };
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await?.to_bytes();
    Ok(Response::from_parts(parts, body))
}

fn request(question: &Question<'_>, h2: bool) -> Result<Request<Full<Bytes>>, http::Error> {
    let url = question.url;
    let mut request = Request::builder().method(question.method.clone());
    request = if h2 {
        request.uri(url.as_str())
    } else {
        let host = &url[url::Position::BeforeHost..url::Position::AfterPort];
        request
            .uri(&url[url::Position::BeforePath..url::Position::AfterQuery])
            .header(header::HOST, host)
    };
    request = request.header(
        header::USER_AGENT,
        concat!("postern-doctor/", env!("CARGO_PKG_VERSION")),
    );
    for (name, value) in &question.headers {
        request = request.header(*name, value);
    }
    request.body(Full::default())
}

/// Drives a connection until it is dropped.
struct Driver(tokio::task::AbortHandle);

impl Driver {
    fn start(connection: impl Future<Output = hyper::Result<()>> + Send + 'static) -> Self {
        Self(tokio::spawn(async { drop(connection.await) }).abort_handle())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}
