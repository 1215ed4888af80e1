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
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower::ServiceExt as _;

use super::VERSION_HEADER;
use super::transport::grpc_timeout;
use crate::lifecycle::{Lifecycle, Phase};
use crate::net::AnyStream;
use crate::net::accept::{Bounds, accept};
use crate::net::in_use::{Call, InUse, Patience};
use crate::net::served;

/// A TLS handshake takes no longer.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A connection that has made no call by then is closed, and one that has made none for longer.
/// A service of ours that waits for work has a watch of health open; that of a stranger does not
/// count.
const PATIENCE: Patience = Patience {
    first_call: Duration::from_secs(60),
    idle: Duration::from_secs(5 * 60),
};
/// Pings find clients that vanished; hyper closes the connection when none comes back in time.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Calls at a time on one connection.
const MAX_STREAMS: u32 = 1024;
const MAX_HEADERS: u32 = 64 * 1024;
/// Methods that anybody may call.
const HEALTH: &str = "/grpc.health.v1.Health/";
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
    let bounds = Bounds {
        kind: "gRPC",
        connections: server.max_connections,
    };
    accept(listener, bounds, lifecycle, |stream, peer| {
        let shared = shared.clone();
        async move {
            if let Err(error) = connection(stream, peer, shared).await {
                tracing::debug!(%peer, error, "connection ended");
            }
        }
    })
    .await;
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
        None => http2(Box::new(stream), peer, shared).await,
        Some(tls) => {
            let handshake = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await;
            let stream = handshake
                .map_err(|_| format!("no TLS handshake within {HANDSHAKE:?}"))?
                .map_err(|error| format!("TLS handshake: {error}"))?;
            http2(Box::new(stream), peer, shared).await
        }
    }
}

async fn http2(io: AnyStream, peer: SocketAddr, shared: Shared) -> Result<(), String> {
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
    let shut = |connection: Pin<&mut _>| {
        hyper::server::conn::http2::Connection::graceful_shutdown(connection);
    };
    let told_at = served::told_at(&lifecycle);
    served::run(connection, shut, told_at, (&in_use, PATIENCE), &lifecycle).await
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
    let refusal = refusal(response.headers());
    let call = if path.starts_with(HEALTH) {
        call.of_anybody()
    } else {
        if !matches!(
            refusal,
            Some(Code::Unauthenticated | Code::PermissionDenied)
        ) {
            call.is_of_somebody_known();
        }
        match refusal {
            Some(_) => {
                call.refused();
                None
            }
            None => Some(call),
        }
    };
    Ok(response.map(|body| Body::new(Ending::new(body, lifecycle, call))))
}

/// The caller may not make this call, or nothing serves it.
fn refusal(answer: &HeaderMap) -> Option<Code> {
    const REFUSALS: [Code; 3] = [
        Code::Unauthenticated,
        Code::PermissionDenied,
        Code::Unimplemented,
    ];
    let code = Status::from_header_map(answer)?.code();
    REFUSALS.contains(&code).then_some(code)
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
