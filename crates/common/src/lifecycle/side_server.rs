//! A small HTTP server on a thread of its own, for health and metrics: overload of the rest of
//! the process can't make it silent.

use std::convert::Infallible;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::future::{FutureExt as _, LocalBoxFuture};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::net::AnyStream;
use crate::net::accept::Failures;
use crate::net::listen::{ListenError, Share, listen};

/// More connections than any set of probes and scrapers needs; the next one waits.
const MAX_CONNECTIONS: usize = 64;
/// A connection that sends no complete request head for so long is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer is a few kilobytes; whoever does not read it in this time is cut off.
const CONNECTION_LIFE: Duration = Duration::from_secs(600);

/// The answer of a side server.
pub type Answer = Response<Full<Bytes>>;

/// Compiled for one kind of handler, as for one kind of connection.
type Handler = Arc<dyn Fn(Request<Incoming>) -> LocalBoxFuture<'static, Answer> + Send + Sync>;

/// A side server could not start.
#[derive(Debug, thiserror::Error)]
pub enum SideServerError {
    /// The address is taken, not ours, or not allowed to us.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// No thread or no runtime could be made.
    #[error("{name} server: cannot start its thread")]
    Thread {
        /// Which server.
        name: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Where a side server listens.
#[derive(Debug, Clone)]
pub struct SideServer {
    /// What it is called.
    pub name: &'static str,
    /// The key that gives its address.
    pub key: &'static str,
    /// The address.
    pub address: SocketAddr,
    /// Clear text or TLS.
    pub security: Security,
}

/// What a side server speaks below HTTP.
#[derive(Debug, Clone)]
pub enum Security {
    /// Clear text.
    ClearText,
    /// The next handshake uses what stands here then.
    Tls(Arc<ArcSwap<ServerConfig>>),
}

/// Answers GET and HEAD by `handler` until `stop` is cancelled. Returns the bound address (which
/// tells the port when port 0 was asked for).
pub fn start<H, F>(
    server: SideServer,
    stop: CancellationToken,
    handler: H,
) -> Result<SocketAddr, SideServerError>
where
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + 'static,
{
    let handler: Handler = Arc::new(move |request| handler(request).boxed_local());
    let SideServer {
        name,
        key,
        address,
        security,
    } = server;
    let thread = |source| SideServerError::Thread { name, source };
    let listener = listen(key, address, Share::No)?;
    let bound = listener.local_addr().map_err(|source| ListenError::Other {
        key,
        address,
        source,
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(thread)?;
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let local = tokio::task::LocalSet::new();
            let ended = local.block_on(&runtime, accept(key, listener, security, stop, handler));
            if let Err(error) = ended {
                tracing::error!(server = name, %error, "side server ended");
            }
        })
        .map_err(thread)?;
    Ok(bound)
}

async fn accept(
    key: &'static str,
    listener: TcpListener,
    security: Security,
    stop: CancellationToken,
    handler: Handler,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let failures = Failures::new(key);
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return Ok(());
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return Ok(()),
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                failures.pause(&error).await;
                continue;
            }
        };
        let (handler, security) = (Arc::clone(&handler), security.clone());
        tokio::task::spawn_local(async move {
            match security {
                Security::ClearText => serve(Box::new(stream), handler).await,
                Security::Tls(config) => {
                    let acceptor = TlsAcceptor::from(config.load_full());
                    match tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => serve(Box::new(stream), handler).await,
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake"),
                        Err(_) => tracing::debug!(%peer, "no TLS handshake in time"),
                    }
                }
            }
            drop(slot);
        });
    }
}

async fn serve(io: AnyStream, handler: Handler) {
    let service = service_fn(move |request| {
        let handler = Arc::clone(&handler);
        async move { Ok::<_, Infallible>(answer(request, &handler).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(io), service);
    // What goes wrong on such a connection concerns its client only.
    let _ = tokio::time::timeout(CONNECTION_LIFE, connection).await;
}

async fn answer(request: Request<Incoming>, handler: &Handler) -> Answer {
    let method = request.method().clone();
    if method != Method::GET && method != Method::HEAD {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        let allow = header::HeaderValue::from_static("GET, HEAD");
        refused.headers_mut().insert(header::ALLOW, allow);
        return refused;
    }
    // hyper leaves the body of an answer to HEAD out by itself.
    handler(request).await
}

/// A short answer in plain text.
pub fn text(status: StatusCode, body: &'static str) -> Answer {
    with_type(
        status,
        "text/plain; charset=utf-8",
        Bytes::from_static(body.as_bytes()),
    )
}

/// An answer of the given content type.
pub fn with_type(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let content_type = header::HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}
