//! The one HTTPS client of the program for control traffic: calls to identity providers, token
//! verification. User traffic never goes through it.
//!
//! It resolves names by [`Resolver`], always verifies certificates, never follows redirects, and
//! bounds time and size of each answer.

mod grpc;

use std::future::Future;
use std::io::Read as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use http::{HeaderMap, HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tonic::body::Body;
use tower::Service;

use crate::net::connect::{ClientTls, connect_any};
use crate::net::{ConnectError, LookupError, Resolver, Stream};
use crate::telemetry::log::chain;
use crate::tls::{self, Alpn, TlsError, Trust};

pub use grpc::GrpcClient;

/// All steps of opening a connection.
const CONNECT: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(60);
const IDLE_CONNECTIONS: usize = 8;
const MAX_HEADERS: u32 = 64 * 1024;

/// Sends requests; clones share its connections, which belong to the runtime that opened them.
#[derive(Clone)]
pub struct HttpsClient {
    resolver: Resolver,
    /// Of the same body as [`GrpcClient`]'s, so that both are one client to the compiler.
    client: Arc<ArcSwap<Client<Connector, Body>>>,
}

impl std::fmt::Debug for HttpsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HttpsClient")
    }
}

fn client(resolver: &Resolver, trust: &Trust) -> Result<Client<Connector, Body>, TlsError> {
    let tls = tls::client_config(trust, Alpn::H2OrHttp1, None)?;
    let connector = Connector {
        resolver: resolver.clone(),
        tls,
        trust: trust.told().into(),
    };
    Ok(Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .http2_max_header_list_size(MAX_HEADERS)
        .http1_max_buf_size(MAX_HEADERS as usize)
        .build(connector))
}

/// Bounds of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From the connection to the last byte of the answer.
    pub deadline: Duration,
    /// Bytes of the answer's body.
    pub max_body: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            max_body: 1 << 20,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpClientError {
    /// Not in time.
    #[error("no answer from {host} within {after:?}")]
    Deadline {
        /// Whom we asked.
        host: String,
        /// How long we waited.
        after: Duration,
    },
    /// The body is larger than allowed.
    #[error("the answer of {host} is larger than {limit} bytes")]
    TooLarge {
        /// Whom we asked.
        host: String,
        /// What is allowed.
        limit: usize,
    },
    /// No connection, no TLS, or it broke.
    #[error("{host}: {reason}")]
    Failed {
        /// Whom we asked.
        host: String,
        /// With its causes.
        reason: String,
    },
}

impl HttpsClient {
    /// Trusts `trust`; `https` and `http` URLs work, redirects are answers like any other.
    pub fn new(resolver: Resolver, trust: &Trust) -> Result<Self, TlsError> {
        let client = client(&resolver, trust)?;
        Ok(Self {
            resolver,
            client: Arc::new(ArcSwap::from_pointee(client)),
        })
    }

    /// From the next call on this client and all its clones trust somebody else.
    pub fn trust(&self, trust: &Trust) -> Result<(), TlsError> {
        let client = client(&self.resolver, trust)?;
        self.client.store(Arc::new(client));
        Ok(())
    }

    /// Sends one request and reads the whole answer, whatever its status.
    ///
    /// Boxed here, or every crate that sends compiles all of the client once more.
    pub fn send(
        &self,
        request: Request<Vec<u8>>,
        limits: Limits,
    ) -> BoxFuture<'_, Result<Response<Vec<u8>>, HttpClientError>> {
        self.send_within(request, limits).boxed()
    }

    async fn send_within(
        &self,
        request: Request<Vec<u8>>,
        limits: Limits,
    ) -> Result<Response<Vec<u8>>, HttpClientError> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let call = self.call(request, &host, limits.max_body);
        match tokio::time::timeout(limits.deadline, call).await {
            Ok(answer) => answer,
            Err(_) => Err(HttpClientError::Deadline {
                host,
                after: limits.deadline,
            }),
        }
    }

    async fn call(
        &self,
        request: Request<Vec<u8>>,
        host: &str,
        max_body: usize,
    ) -> Result<Response<Vec<u8>>, HttpClientError> {
        let failed = |error: &(dyn std::error::Error + 'static)| HttpClientError::Failed {
            host: host.to_owned(),
            reason: chain(error),
        };
        let mut request = request.map(|body| Body::new(Full::new(Bytes::from(body))));
        request
            .headers_mut()
            .entry(header::USER_AGENT)
            .or_insert(HeaderValue::from_static(concat!(
                "postern/",
                env!("CARGO_PKG_VERSION")
            )));
        let client = self.client.load_full();
        let response = client
            .request(request)
            .await
            .map_err(|error| failed(&error))?;
        let (mut parts, body) = response.into_parts();
        let body = Limited::new(body, max_body)
            .collect()
            .await
            .map_err(|error| {
                if error.is::<LengthLimitError>() {
                    HttpClientError::TooLarge {
                        host: host.to_owned(),
                        limit: max_body,
                    }
                } else {
                    failed(error.as_ref())
                }
            })?;
        let body = match decoded(&mut parts.headers, body.to_bytes(), max_body) {
            Ok(body) => body,
            Err(Undecodable::TooLarge) => {
                return Err(HttpClientError::TooLarge {
                    host: host.to_owned(),
                    limit: max_body,
                });
            }
            Err(error) => return Err(failed(&error)),
        };
        Ok(Response::from_parts(parts, body))
    }
}

#[derive(Debug, thiserror::Error)]
enum Undecodable {
    #[error("the answer is too large when uncompressed")]
    TooLarge,
    #[error("the answer is compressed with {0}, which was not asked for")]
    Coding(String),
    #[error("the answer is no gzip although it says so: {0}")]
    Gzip(#[from] std::io::Error),
}

/// The body without `Content-Encoding`. None is asked for, but some servers have nothing else.
fn decoded(headers: &mut HeaderMap, body: Bytes, max: usize) -> Result<Vec<u8>, Undecodable> {
    let Some(coding) = headers.remove(header::CONTENT_ENCODING) else {
        return Ok(body.into());
    };
    let coding = String::from_utf8_lossy(coding.as_bytes()).to_ascii_lowercase();
    match coding.trim() {
        "" | "identity" => Ok(body.into()),
        "gzip" | "x-gzip" => {
            let mut decoded = Vec::new();
            let limit = max.saturating_add(1) as u64;
            flate2::read::MultiGzDecoder::new(&*body)
                .take(limit)
                .read_to_end(&mut decoded)?;
            if decoded.len() > max {
                return Err(Undecodable::TooLarge);
            }
            Ok(decoded)
        }
        other => Err(Undecodable::Coding(other.to_owned())),
    }
}

/// No connection for the client.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("the URL must be http or https with a host")]
    Url,
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("certificate refused: {0}")]
    Certificate(String),
}

#[derive(Clone)]
struct Connector {
    resolver: Resolver,
    tls: std::sync::Arc<rustls::ClientConfig>,
    trust: std::sync::Arc<str>,
}

impl Connector {
    async fn open(self, uri: Uri) -> Result<Opened, OpenError> {
        let host = uri.host().ok_or(OpenError::Url)?;
        let (tls, default_port) = match uri.scheme_str() {
            Some("https") => {
                let bare = host.trim_start_matches('[').trim_end_matches(']');
                let name = ServerName::try_from(bare.to_owned()).map_err(|_| OpenError::Url)?;
                (
                    Some(ClientTls {
                        config: self.tls,
                        name,
                    }),
                    443,
                )
            }
            Some("http") => (None, 80),
            _ => return Err(OpenError::Url),
        };
        let found = self.resolver.lookup(host).await?;
        let port = uri.port_u16().unwrap_or(default_port);
        let opened = connect_any(&found.addresses, port, tls.as_ref(), CONNECT).await;
        match opened.ok_or(OpenError::Url)? {
            Ok(stream) => Ok(Opened(TokioIo::new(stream))),
            Err(ConnectError::Certificate { reason, .. }) => {
                Err(OpenError::Certificate(reason.explain(&self.trust)))
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Service<Uri> for Connector {
    type Response = Opened;
    type Error = OpenError;
    type Future = Pin<Box<dyn Future<Output = Result<Opened, OpenError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), OpenError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().open(uri))
    }
}

struct Opened(TokioIo<Stream>);

impl Connection for Opened {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        if self.0.inner().is_h2() {
            connected.negotiated_h2()
        } else {
            connected
        }
    }
}

impl hyper::rt::Read for Opened {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for Opened {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
