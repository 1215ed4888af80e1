//! A small HTTP server on a thread of its own, for health and metrics: overload of the rest of
//! the process can't make it silent.

use std::convert::Infallible;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// More connections than any set of probes and scrapers needs; the next one waits.
const MAX_CONNECTIONS: usize = 64;
/// A connection that sends no complete request head for so long is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer is a few kilobytes; whoever does not read it in this time is cut off.
const CONNECTION_LIFE: Duration = Duration::from_secs(600);

/// The answer of a side server.
pub type Answer = Response<Full<Bytes>>;

/// A side server could not start.
#[derive(Debug, thiserror::Error)]
pub enum SideServerError {
    /// The address is taken, not ours, or not allowed to us.
    #[error("{name} server: cannot listen on {address}; free the address or set another `{key}`")]
    Bind {
        /// Which server.
        name: &'static str,
        /// The key that gives the address.
        key: &'static str,
        /// Where it should listen.
        address: SocketAddr,
        /// Why it could not.
        #[source]
        source: std::io::Error,
    },
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

/// Binds `address`, which `key` gives, and answers GET and HEAD by `handler` until `stop` is cancelled. Returns the
/// bound address (which tells the port when port 0 was asked for).
pub fn start<H, F>(
    name: &'static str,
    key: &'static str,
    address: SocketAddr,
    stop: CancellationToken,
    handler: H,
) -> Result<SocketAddr, SideServerError>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + 'static,
{
    let bind = |source| SideServerError::Bind {
        name,
        key,
        address,
        source,
    };
    let thread = |source| SideServerError::Thread { name, source };
    let listener = TcpListener::bind(address).map_err(bind)?;
    listener.set_nonblocking(true).map_err(bind)?;
    let bound = listener.local_addr().map_err(bind)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(thread)?;
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let local = tokio::task::LocalSet::new();
            let ended = local.block_on(&runtime, accept(listener, stop, handler));
            if let Err(error) = ended {
                tracing::error!(server = name, %error, "side server ended");
            }
        })
        .map_err(thread)?;
    Ok(bound)
}

async fn accept<H, F>(
    listener: TcpListener,
    stop: CancellationToken,
    handler: H,
) -> std::io::Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + 'static,
    F: Future<Output = Answer> + 'static,
{
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return Ok(());
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return Ok(()),
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, or the client has left again: try later.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let handler = handler.clone();
        tokio::task::spawn_local(async move {
            let service = service_fn(move |request| {
                let handler = handler.clone();
                async move { Ok::<_, Infallible>(answer(request, handler).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            // What goes wrong on such a connection concerns its client only.
            let _ = tokio::time::timeout(CONNECTION_LIFE, connection).await;
            drop(slot);
        });
    }
}

async fn answer<H, F>(request: Request<Incoming>, handler: H) -> Answer
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Answer>,
{
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
