//! Serves gRPC on a listener: TLS or clear text, bounded, drained without losing a call.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower::ServiceExt as _;

use super::VERSION_HEADER;
use super::in_use::{Call, InUse, Patience};
use super::transport::grpc_timeout;
use crate::lifecycle::{Lifecycle, Phase};
use crate::telemetry::RateLimit;

/// A TLS handshake takes no longer.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A connection that has made no call by then is closed, and one that has made none for longer.
/// A service of ours that waits for work has a watch of health open.
const PATIENCE: Patience = Patience {
    first_call: Duration::from_secs(60),
    idle: Duration::from_secs(5 * 60),
};
/// What is left of an idle connection after GOAWAY is closed without a farewell.
const FAREWELL: Duration = Duration::from_secs(20);
/// Pings find clients that vanished; hyper closes the connection when none comes back in time.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Calls at a time on one connection.
const MAX_STREAMS: u32 = 1024;
const MAX_HEADERS: u32 = 64 * 1024;
/// Room for bulk writes: at the default of 64 KiB they wait for the network at each step.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// A name that clients ask `grpc.health.v1` about, and the parts of the process it stands for.
#[derive(Debug, Clone)]
pub struct HealthName {
    /// As clients know it: `pomerium-databroker`, `pomerium-authorize`.
    pub service: String,
    /// Names of lifecycle parts; it serves when all of them are ready.
    pub parts: Vec<String>,
}

/// What a gRPC listener serves.
#[derive(Debug, Clone)]
pub struct Server {
    /// The services.
    pub routes: Routes,
    /// `None`: clear text HTTP/2 with prior knowledge.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// What health is told for; the empty name always stands for the whole process.
    pub health: Vec<HealthName>,
    /// Connections at a time; the next one is closed at once. Its client then tries another
    /// server, which it would not do while it waits in the kernel.
    pub max_connections: usize,
}

impl Server {
    /// A clear text server with the default bounds.
    pub fn new(routes: Routes) -> Self {
        Self {
            routes,
            tls: None,
            health: Vec::new(),
            max_connections: 4096,
        }
    }
}

/// Serves until the drain is over. Health follows the parts of `lifecycle`; during a drain it is
/// NOT_SERVING at once, connections get GOAWAY, and long streams are ended with UNAVAILABLE
/// after everything else.
pub async fn serve(listener: TcpListener, server: Server, lifecycle: &Lifecycle) {
    let reporter = HealthReporter::new();
    let health = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
    // Known before the first connection: a client must not be told that a name is unknown.
    report(&reporter, &server.health, lifecycle).await;
    lifecycle.spawn(report_health(reporter, server.health, lifecycle.clone()));
    let shared = Shared {
        routes: server.routes.add_service(health).prepare(),
        tls: server.tls.map(TlsAcceptor::from),
        lifecycle: lifecycle.clone(),
    };
    let slots = Arc::new(Semaphore::new(server.max_connections));
    let full = RateLimit::new(Duration::from_secs(10));
    let closed = lifecycle.reached(Phase::ListenersClosed);
    tokio::pin!(closed);
    loop {
        let accepted = tokio::select! {
            () = &mut closed => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or the client has left again.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            if let Some(held_back) = full.pass("full", std::time::Instant::now()) {
                tracing::warn!(
                    %peer,
                    connections = server.max_connections,
                    held_back,
                    "closed a new gRPC connection: there are as many as may be"
                );
            }
            continue;
        };
        let shared = shared.clone();
        lifecycle.spawn(async move {
            if let Err(error) = connection(stream, peer, shared).await {
                tracing::debug!(%peer, error, "connection ended");
            }
            drop(slot);
        });
    }
}

#[derive(Clone)]
struct Shared {
    routes: Routes,
    tls: Option<TlsAcceptor>,
    lifecycle: Lifecycle,
}

async fn connection(stream: TcpStream, peer: SocketAddr, shared: Shared) -> Result<(), String> {
    // Without it small calls wait for the peer's delayed ACK: ten times as long.
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    match &shared.tls {
        None => http2(stream, peer, shared).await,
        Some(tls) => {
            let handshake = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await;
            let stream = handshake
                .map_err(|_| format!("no TLS handshake within {HANDSHAKE:?}"))?
                .map_err(|error| format!("TLS handshake: {error}"))?;
            http2(stream, peer, shared).await
        }
    }
}

async fn http2<I>(io: I, peer: SocketAddr, shared: Shared) -> Result<(), String>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let lifecycle = shared.lifecycle.clone();
    let in_use = InUse::new();
    let calls = Arc::clone(&in_use);
    let service = service_fn(move |request| answer(request, peer, shared.clone(), calls.call()));
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    // A connection that was open when the drain began gets GOAWAY at once; one that was opened
    // after that is served until idle connections are closed.
    let goaway_at = if lifecycle.phase() >= Phase::Draining {
        Phase::IdleClosed
    } else {
        Phase::Draining
    };
    let idle = tokio::select! {
        ended = &mut connection => return ended.map_err(|error| error.to_string()),
        () = lifecycle.reached(goaway_at) => false,
        () = in_use.idle(PATIENCE) => true,
    };
    connection.as_mut().graceful_shutdown();
    let farewell = async {
        if idle {
            tokio::time::sleep(FAREWELL).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        ended = &mut connection => ended.map_err(|error| error.to_string()),
        () = lifecycle.stopping().cancelled_owned() => Err("stopped".to_owned()),
        () = farewell => Err("idle".to_owned()),
    }
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    shared: Shared,
    call: Call,
) -> Result<Response<Body>, Infallible> {
    // Until the answer begins; what streams on after that is ended by `Ending`.
    let busy = shared.lifecycle.busy();
    let deadline = grpc_timeout(request.headers());
    let path = request.uri().path().to_owned();
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(Peer(peer));
    let handled = AssertUnwindSafe(shared.routes.oneshot(request)).catch_unwind();
    let handled = async {
        match deadline {
            None => Some(handled.await),
            Some(deadline) => tokio::time::timeout(deadline, handled).await.ok(),
        }
    };
    let mut response = match handled.await {
        Some(Ok(Ok(response))) => response,
        Some(Ok(Err(never))) => match never {},
        Some(Err(_)) => {
            tracing::error!(path, %peer, "a call panicked");
            Status::internal("internal error").into_http()
        }
        None => Status::deadline_exceeded("deadline passed").into_http(),
    };
    drop(busy);
    let version = HeaderValue::from_static(env!("CARGO_PKG_VERSION"));
    response.headers_mut().insert(VERSION_HEADER, version);
    let lifecycle = shared.lifecycle;
    let call = if is_refusal(response.headers()) {
        call.refused();
        None
    } else {
        Some(call)
    };
    Ok(response.map(|body| Body::new(Ending::new(body, lifecycle, call))))
}

/// Whether the caller may not make this call, or nothing serves it.
fn is_refusal(answer: &HeaderMap) -> bool {
    const REFUSALS: [Code; 3] = [
        Code::Unauthenticated,
        Code::PermissionDenied,
        Code::Unimplemented,
    ];
    Status::from_header_map(answer).is_some_and(|status| REFUSALS.contains(&status.code()))
}

/// The address of the client, in the extensions of each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// A body that the server ends with UNAVAILABLE when the drain has come to long streams. What
/// is ready is sent first.
struct Ending {
    body: Body,
    ends: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
    /// Is open until the body is sent, or the client has left.
    _call: Option<Call>,
}

impl Ending {
    fn new(body: Body, lifecycle: Lifecycle, call: Option<Call>) -> Self {
        Self {
            body,
            ends: Box::pin(async move { lifecycle.reached(Phase::StreamsEnded).await }),
            ended: false,
            _call: call,
        }
    }
}

impl http_body::Body for Ending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        ready!(this.ends.as_mut().poll(context));
        this.ended = true;
        this.body = Body::empty();
        let mut trailers = HeaderMap::new();
        let status = Status::unavailable("server is shutting down");
        Poll::Ready(Some(
            status
                .add_header(&mut trailers)
                .map(|()| Frame::trailers(trailers)),
        ))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Keeps gRPC health equal to the state of the parts until a drain begins.
async fn report_health(reporter: HealthReporter, names: Vec<HealthName>, lifecycle: Lifecycle) {
    let mut changes = lifecycle.parts().changes();
    let draining = lifecycle.draining();
    loop {
        changes.mark_unchanged();
        report(&reporter, &names, &lifecycle).await;
        if lifecycle.phase() > Phase::Running {
            return;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = draining.cancelled() => {}
        }
    }
}

async fn report(reporter: &HealthReporter, names: &[HealthName], lifecycle: &Lifecycle) {
    reporter
        .set_service_status("", serving(lifecycle.is_ready()))
        .await;
    let running = lifecycle.phase() == Phase::Running;
    for name in names {
        let ready = running && lifecycle.parts().ready(&name.parts);
        reporter
            .set_service_status(&name.service, serving(ready))
            .await;
    }
}

fn serving(ready: bool) -> ServingStatus {
    if ready {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

#[cfg(test)]
mod tests;
