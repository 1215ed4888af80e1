//! One connection of a client: TLS, the choice of the protocol, and its life until it is closed.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_common::authz::ClientCertificate;
use postern_common::config::{Codec, ProxyProtocol};
use postern_common::lifecycle::Phase;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::alarm::Alarm;
use crate::core::Core;
use crate::guarded::{Activity, Guarded, Silence};
use crate::limits;
use crate::listener::Place;
use crate::proxy_protocol;
use crate::serve::serve;
use crate::stream::StreamExecutor;

/// What an HTTP/2 connection with prior knowledge begins with (RFC 9113 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is known about a client's connection; its requests share it.
#[derive(Debug)]
pub(crate) struct Client {
    pub peer: SocketAddr,
    pub is_tls: bool,
    pub sni: Option<Box<str>>,
    pub certificate: Option<Arc<ClientCertificate>>,
    pub activity: Arc<Activity>,
    /// Held by every request, and by what a request has become.
    pub _place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

/// Serves one accepted connection to its end.
pub(crate) async fn run(core: Rc<Core>, mut stream: TcpStream, mut peer: SocketAddr, place: Place) {
    let snapshot = core.snapshot();
    if snapshot.config.listen.proxy_protocol == ProxyProtocol::Required {
        match timeout(limits::TLS_HANDSHAKE, proxy_protocol::read(&mut stream)).await {
            Ok(Ok(client)) => peer = client.unwrap_or(peer),
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "a connection is closed"),
            Err(_) => return tracing::debug!(%peer, "no PROXY header in time"),
        }
    }
    let Some(tls) = snapshot.tls.clone() else {
        return clear_text(core, stream, peer, place, snapshot.config.http.codec).await;
    };
    drop(snapshot);
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.server));
    let handshake = Box::pin(acceptor.accept(stream));
    match timeout(limits::TLS_HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => over_tls(core, stream, peer, place).await,
        Ok(Err(error)) => {
            core.shared.metrics.tls_failed.inc();
            tracing::debug!(%peer, %error, "TLS handshake failed");
        }
        Err(_) => {
            core.shared.metrics.tls_failed.inc();
            tracing::debug!(%peer, "TLS handshake not finished in time");
        }
    }
}

async fn over_tls(core: Rc<Core>, stream: TlsStream<TcpStream>, peer: SocketAddr, place: Place) {
    let (_, session) = stream.get_ref();
    let protocol = match session.alpn_protocol() {
        Some(b"h2") => Protocol::Http2,
        _ => Protocol::Http1,
    };
    let certificate = session.peer_certificates().map(|chain| {
        let chain = chain.iter().map(|der| der.as_ref().to_vec()).collect();
        Arc::new(ClientCertificate { chain })
    });
    let activity = Arc::new(Activity::new(protocol == Protocol::Http2));
    let client = Client {
        peer,
        is_tls: true,
        sni: session.server_name().map(Into::into),
        certificate,
        activity,
        _place: place,
    };
    core.shared.metrics.tls_active.inc();
    http(&core, stream, Bytes::new(), client, protocol).await;
    core.shared.metrics.tls_active.dec();
}

async fn clear_text(
    core: Rc<Core>,
    mut stream: TcpStream,
    peer: SocketAddr,
    place: Place,
    codec: Codec,
) {
    let (first, protocol) = match codec {
        Codec::Http1 => (Bytes::new(), Protocol::Http1),
        Codec::Http2 => (Bytes::new(), Protocol::Http2),
        Codec::Auto => match sniff(&core, &mut stream).await {
            Some(sniffed) => sniffed,
            None => return,
        },
    };
    let activity = Arc::new(Activity::new(protocol == Protocol::Http2));
    let client = Client {
        peer,
        is_tls: false,
        sni: None,
        certificate: None,
        activity,
        _place: place,
    };
    http(&core, stream, first, client, protocol).await;
}

/// Reads as much as it takes to tell the protocols apart.
async fn sniff(core: &Core, stream: &mut TcpStream) -> Option<(Bytes, Protocol)> {
    let idle = core.snapshot().config.http.timeout_idle;
    let mut first = BytesMut::with_capacity(PREFACE.len());
    loop {
        let wait = if first.is_empty() { idle } else { limits::HEAD };
        let n = timeout(wait, stream.read_buf(&mut first))
            .await
            .ok()?
            .ok()?;
        if n == 0 {
            return None;
        }
        let same = first.len().min(PREFACE.len());
        if first.get(..same) != PREFACE.get(..same) {
            return Some((first.freeze(), Protocol::Http1));
        }
        if first.len() >= PREFACE.len() {
            return Some((first.freeze(), Protocol::Http2));
        }
    }
}

/// Speaks HTTP until the connection ends by itself, falls silent, or the process drains.
async fn http<S>(core: &Rc<Core>, stream: S, first: Bytes, client: Client, protocol: Protocol)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::clone(&client.activity);
    let io = TokioIo::new(Guarded::new(stream, first, Arc::clone(&activity)));
    let client = Rc::new(client);
    let peer = client.peer;
    let (service_core, service_client) = (Rc::clone(core), Rc::clone(&client));
    // Boxed, so that an idle connection does not hold the room of a request.
    let service = service_fn(move |request| {
        Box::pin(serve(
            Rc::clone(&service_core),
            Rc::clone(&service_client),
            request,
        ))
    });
    let idle = core.snapshot().config.http.timeout_idle;
    let ended = match protocol {
        Protocol::Http1 => {
            let connection = http1::Builder::new()
                .preserve_header_case(true)
                .header_read_timeout(None)
                .max_header_size(limits::HEAD_BYTES)
                .serve_connection(io, service)
                .with_upgrades();
            let mut connection = pin!(connection);
            drive(core, &activity, idle, |step, cx| match step {
                Step::Poll => connection.as_mut().poll(cx),
                Step::Drain => {
                    connection.as_mut().graceful_shutdown();
                    connection.as_mut().poll(cx)
                }
            })
            .await
        }
        Protocol::Http2 => {
            let connection = http2::Builder::new(StreamExecutor)
                .timer(TokioTimer::new())
                .enable_connect_protocol()
                .max_concurrent_streams(limits::CLIENT_STREAMS)
                .max_header_list_size(u32::try_from(limits::HEAD_BYTES).unwrap_or(u32::MAX))
                .max_pending_accept_reset_streams(limits::PENDING_RESETS)
                .max_local_error_reset_streams(limits::LOCAL_RESETS)
                .initial_stream_window_size(limits::STREAM_WINDOW)
                .initial_connection_window_size(limits::CONNECTION_WINDOW)
                .max_send_buf_size(limits::SEND_BUFFER)
                .keep_alive_interval(limits::CLIENT_PING)
                .keep_alive_timeout(limits::CLIENT_PING_ANSWER)
                .serve_connection(io, service);
            let mut connection = pin!(connection);
            drive(core, &activity, idle, |step, cx| match step {
                Step::Poll => connection.as_mut().poll(cx),
                Step::Drain => {
                    connection.as_mut().graceful_shutdown();
                    connection.as_mut().poll(cx)
                }
            })
            .await
        }
    };
    match ended {
        Ended::Closed(Ok(())) | Ended::Stopped => {}
        Ended::Closed(Err(error)) => {
            let reason = postern_common::telemetry::log::chain(&error);
            tracing::debug!(%peer, reason, "a client's connection ended");
        }
        Ended::Silent(silence) => tracing::debug!(%peer, ?silence, "a silent connection is closed"),
    }
}

enum Step {
    Poll,
    /// Say goodbye, finish what runs, go on polling.
    Drain,
}

enum Ended {
    Closed(hyper::Result<()>),
    Silent(Silence),
    Stopped,
}

/// Polls a connection, watches its silence, and takes it through a drain.
///
/// An HTTP/2 connection is told to go away as soon as the drain begins, but not before its first
/// request: hyper would close it without an answer. HTTP/1.1 answers carry `Connection: close`
/// meanwhile, and idle connections are closed only when their phase comes.
async fn drive(
    core: &Core,
    activity: &Activity,
    idle: Duration,
    mut step: impl FnMut(Step, &mut std::task::Context<'_>) -> Poll<hyper::Result<()>>,
) -> Ended {
    let mut phase = core.phase.clone();
    let mut alarm = Alarm::default();
    let mut draining = false;
    // When an idle connection was told to end.
    let mut told: Option<Instant> = None;
    loop {
        let moved = phase.changed();
        let mut moved = pin!(moved);
        let event = std::future::poll_fn(|cx| {
            if let Poll::Ready(ended) = step(Step::Poll, cx) {
                return Poll::Ready(Some(Ended::Closed(ended)));
            }
            if moved.as_mut().poll(cx).is_ready() || must_drain(core.phase(), activity, draining) {
                return Poll::Ready(None);
            }
            activity.watch(cx);
            let (at, silence) = match told {
                Some(told) if !activity.is_active() => (told + limits::GOODBYE, Silence::Idle),
                _ => activity.deadline(idle),
            };
            let waits = activity.is_active() && !silence.ends_requests();
            if alarm.poll(cx, at).is_ready() && !waits {
                return Poll::Ready(Some(Ended::Silent(silence)));
            }
            Poll::Pending
        })
        .await;
        match event {
            // Politely: a request may be on its way, and HTTP/2 can say which ones count.
            Some(Ended::Silent(Silence::Idle)) if told.is_none() && !draining => {
                told = Some(Instant::now());
                draining = true;
                let polled = std::future::poll_fn(|cx| Poll::Ready(step(Step::Drain, cx))).await;
                if let Poll::Ready(ended) = polled {
                    return Ended::Closed(ended);
                }
                continue;
            }
            Some(ended) => return ended,
            None => {}
        }
        if core.phase() == Phase::Stopping {
            return Ended::Stopped;
        }
        if must_drain(core.phase(), activity, draining) {
            draining = true;
            let polled = std::future::poll_fn(|cx| Poll::Ready(step(Step::Drain, cx))).await;
            if let Poll::Ready(ended) = polled {
                return Ended::Closed(ended);
            }
        }
    }
}

/// Whether it is time to say goodbye. `Activity` knows which protocol it watches.
fn must_drain(phase: Phase, activity: &Activity, already: bool) -> bool {
    let early = phase >= Phase::Draining && activity.is_http2() && activity.requests() > 0;
    !already && (early || phase >= Phase::IdleClosed)
}
