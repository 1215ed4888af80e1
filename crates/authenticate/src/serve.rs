//! The service on a listener of its own: HTTPS, or clear text where `insecure_server` says so.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, Request, Version, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use postern_common::config::{Config, ServerTls};
use postern_common::lifecycle::{Lifecycle, Phase};
use postern_common::net::AnyStream;
use postern_common::net::accept::{Bounds, accept};
use postern_common::net::in_use::{Call, InUse, Patience};
use postern_common::net::served;
use postern_common::tls::{self, Alpn, Certificates, SwapCertificates, TlsError};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 4096;
/// A TLS handshake takes no longer.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The head of a request takes no longer.
const HEAD: Duration = Duration::from_secs(30);
/// A connection without a request is closed.
const PATIENCE: Patience = Patience {
    first_call: Duration::from_secs(30),
    idle: Duration::from_secs(60),
};
/// Requests at a time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// Room for a `state` that holds a long URL.
const MAX_HEADERS: u32 = 128 * 1024;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// TLS of the listener, with certificates that follow the configuration.
#[derive(Debug, Clone)]
pub struct ListenerTls {
    certificates: Arc<SwapCertificates>,
    server: Arc<rustls::ServerConfig>,
}

impl ListenerTls {
    /// `None` for clear text.
    pub fn new(config: &Config) -> Result<Option<Self>, TlsError> {
        let Some(current) = certificates(config) else {
            return Ok(None);
        };
        let certificates = SwapCertificates::new(current);
        let server = tls::server_config(Arc::clone(&certificates) as _, Alpn::H2OrHttp1, None)?;
        Ok(Some(Self {
            certificates,
            server,
        }))
    }

    /// Uses the certificates of `config` from the next handshake on.
    pub fn follow(&self, config: &Config) {
        if let Some(current) = certificates(config) {
            self.certificates.replace(current);
        }
    }
}

fn certificates(config: &Config) -> Option<Certificates> {
    match &config.server_tls {
        ServerTls::Off => None,
        ServerTls::Certificates(list) => Some(Certificates::new(
            list.iter()
                .map(|one| (one.names.as_slice(), Arc::clone(&one.key))),
        )),
    }
}

/// Serves until the drain is over.
pub async fn serve(
    listener: TcpListener,
    tls: Option<ListenerTls>,
    router: Router,
    lifecycle: &Lifecycle,
) {
    let acceptor = tls.map(|tls| TlsAcceptor::from(tls.server));
    let bounds = Bounds {
        kind: "sign-in",
        connections: MAX_CONNECTIONS,
    };
    accept(listener, bounds, lifecycle, |stream, peer| {
        let connection = connection(stream, acceptor.clone(), router.clone(), lifecycle.clone());
        async move {
            if let Err(error) = connection.await {
                tracing::debug!(%peer, error, "connection ended");
            }
        }
    })
    .await;
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    lifecycle: Lifecycle,
) -> Result<(), String> {
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    let Some(tls) = tls else {
        return http1(Box::new(stream), router, lifecycle).await;
    };
    let stream = tokio::time::timeout(HANDSHAKE, tls.accept(stream))
        .await
        .map_err(|_| format!("no TLS handshake within {HANDSHAKE:?}"))?
        .map_err(|error| format!("TLS handshake: {error}"))?;
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        http2(Box::new(stream), router, lifecycle).await
    } else {
        http1(Box::new(stream), router, lifecycle).await
    }
}

async fn http1(io: AnyStream, router: Router, lifecycle: Lifecycle) -> Result<(), String> {
    let (shared, in_use) = (lifecycle.clone(), InUse::new());
    let calls = Arc::clone(&in_use);
    let service =
        service_fn(move |request| answer(request, router.clone(), shared.clone(), calls.call()));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    // Until idle connections are closed, answers carry `Connection: close`.
    let shut = |connection: Pin<&mut _>| {
        hyper::server::conn::http1::Connection::graceful_shutdown(connection);
    };
    let patience = (&*in_use, PATIENCE);
    served::run(connection, shut, Phase::IdleClosed, patience, &lifecycle).await
}

async fn http2(io: AnyStream, router: Router, lifecycle: Lifecycle) -> Result<(), String> {
    let (shared, in_use) = (lifecycle.clone(), InUse::new());
    let calls = Arc::clone(&in_use);
    let service =
        service_fn(move |request| answer(request, router.clone(), shared.clone(), calls.call()));
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    let shut = |connection: Pin<&mut _>| {
        hyper::server::conn::http2::Connection::graceful_shutdown(connection);
    };
    let told_at = served::told_at(&lifecycle);
    served::run(connection, shut, told_at, (&in_use, PATIENCE), &lifecycle).await
}

async fn answer(
    request: Request<Incoming>,
    router: Router,
    lifecycle: Lifecycle,
    _call: Call,
) -> Result<Response, Infallible> {
    let _busy = lifecycle.busy();
    let version = request.version();
    let mut response = router.oneshot(request.map(Body::new)).await?;
    if version <= Version::HTTP_11 && lifecycle.phase() >= Phase::Draining {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}
