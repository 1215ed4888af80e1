//! One connection of a client: TLS, the choice of the protocol, and its life until it is closed.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use hyper::body::Incoming;
use hyper::rt::bounds::Http2ServerConnExec;
use hyper::server::conn::http2;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_common::authz::ClientCertificate;
use postern_common::config::{Codec, ProxyProtocol};
use postern_common::lifecycle::Phase;
use postern_common::net::proxy_protocol::{self, Header};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use crate::address::Address;
use crate::alarm::Alarm;
use crate::body::Body;
use crate::core::Core;
use crate::guarded::{Activity, Guarded, Silence};
use crate::http1::Http1;
use crate::limits;
use crate::listener::Place;
use crate::serve::serve;
use crate::stream::StreamExecutor;
use crate::tls::PublicTls;

/// What an HTTP/2 connection with prior knowledge begins with (RFC 9113 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is known about a client's connection; its requests share it.
#[derive(Debug)]
pub(crate) struct Client {
    pub peer: Address,
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
        let reading = proxy_protocol::read(&mut stream, Header::Required);
        match timeout(limits::TLS_HANDSHAKE, reading).await {
            Ok(Ok(client)) => peer = client.unwrap_or(peer),
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "a connection is closed"),
            Err(_) => return tracing::debug!(%peer, "no PROXY header in time"),
        }
    }
    let (tls, codec) = (snapshot.tls.clone(), snapshot.config.http.codec);
    drop(snapshot);
    // Boxed, so that the room is free again when the connection has been opened.
    let opened = match tls {
        Some(tls) => Box::pin(over_tls(&core, stream, peer, place, tls)).await,
        None => Box::pin(clear_text(&core, stream, peer, place, codec)).await,
    };
    let Some(mut opened) = opened else {
        return;
    };
    let tls = &core.shared.metrics.tls_active;
    if opened.client.is_tls {
        tls.inc();
    }
    let ended = opened.run(&core).await;
    if opened.client.is_tls {
        tls.dec();
    }
    match ended {
        Ended::Closed(Ok(())) | Ended::Stopped => {}
        Ended::Closed(Err(error)) => {
            let reason = postern_common::telemetry::log::chain(&error);
            tracing::debug!(%peer, reason, "a client's connection ended");
        }
        Ended::Silent(silence) => tracing::debug!(%peer, ?silence, "a silent connection is closed"),
    }
}

/// A connection on which HTTP is spoken. It lives on the heap, and its task holds a pointer:
/// connections that wait are many, and a task is as large as all that it may ever hold.
struct Opened {
    client: Rc<Client>,
    conversation: Pin<Box<dyn Conversation>>,
}

/// hyper's end of a connection, whichever protocol it speaks.
pub(crate) trait Conversation: Future<Output = hyper::Result<()>> {
    /// Says goodbye, finishes what runs, and ends.
    fn drain(self: Pin<&mut Self>);

    /// Gives back what an idle connection does not need.
    fn rest(self: Pin<&mut Self>) {}
}

impl<I, S> Conversation for http2::Connection<I, S, StreamExecutor>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: HttpService<Incoming, ResBody = Body, Error = Infallible>,
    S::Future: 'static,
    StreamExecutor: Http2ServerConnExec<S::Future, Body>,
{
    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

async fn over_tls(
    core: &Rc<Core>,
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
    tls: Arc<PublicTls>,
) -> Option<Opened> {
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.server));
    let stream = match timeout(limits::TLS_HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            core.shared.metrics.tls_failed.inc();
            tracing::debug!(%peer, %error, "TLS handshake failed");
            return None;
        }
        Err(_) => {
            core.shared.metrics.tls_failed.inc();
            tracing::debug!(%peer, "TLS handshake not finished in time");
            return None;
        }
    };
    let (_, session) = stream.get_ref();
    let protocol = match session.alpn_protocol() {
        Some(b"h2") => Protocol::Http2,
        _ => Protocol::Http1,
    };
    let certificate = session.peer_certificates().map(|chain| {
        let chain = chain.iter().map(|der| der.as_ref().to_vec()).collect();
        Arc::new(ClientCertificate { chain })
    });
    let client = Client {
        peer: peer.ip().into(),
        is_tls: true,
        sni: session.server_name().map(Into::into),
        certificate,
        activity: Arc::new(Activity::new(protocol == Protocol::Http2)),
        _place: place,
    };
    Some(Opened::new(core, stream, Bytes::new(), client, protocol))
}

async fn clear_text(
    core: &Rc<Core>,
    mut stream: TcpStream,
    peer: SocketAddr,
    place: Place,
    codec: Codec,
) -> Option<Opened> {
    let (first, protocol) = match codec {
        Codec::Http1 => (Bytes::new(), Protocol::Http1),
        Codec::Http2 => (Bytes::new(), Protocol::Http2),
        Codec::Auto => sniff(core, &mut stream).await?,
    };
    let client = Client {
        peer: peer.ip().into(),
        is_tls: false,
        sni: None,
        certificate: None,
        activity: Arc::new(Activity::new(protocol == Protocol::Http2)),
        _place: place,
    };
    Some(Opened::new(core, stream, first, client, protocol))
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

impl Opened {
    /// `first`: what was read to tell the protocol.
    fn new<S>(core: &Rc<Core>, stream: S, first: Bytes, client: Client, protocol: Protocol) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = Guarded::new(stream, first, Arc::clone(&client.activity));
        let client = Rc::new(client);
        let (service_core, service_client) = (Rc::clone(core), Rc::clone(&client));
        // Boxed, so that an idle connection does not hold the room of a request.
        let service = service_fn(move |request| {
            Box::pin(serve(
                Rc::clone(&service_core),
                Rc::clone(&service_client),
                request,
            ))
        });
        let conversation: Pin<Box<dyn Conversation>> = match protocol {
            Protocol::Http1 => Box::pin(Http1::new(io, service)),
            Protocol::Http2 => Box::pin(
                http2::Builder::new(StreamExecutor)
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
                    .serve_connection(TokioIo::new(io), service),
            ),
        };
        Self {
            client,
            conversation,
        }
    }
}

enum Ended {
    Closed(hyper::Result<()>),
    Silent(Silence),
    Stopped,
}

impl Opened {
    /// Speaks HTTP until the connection ends by itself, falls silent, or the process drains.
    ///
    /// An HTTP/2 connection is told to go away as soon as the drain begins, but not before its
    /// first request: hyper would close it without an answer. HTTP/1.1 answers carry
    /// `Connection: close` meanwhile, and idle connections are closed only when their phase comes.
    async fn run(&mut self, core: &Core) -> Ended {
        let activity = &*self.client.activity;
        let conversation = &mut self.conversation;
        let idle = core.snapshot().config.http.timeout_idle;
        let mut phase = core.phase.clone();
        let mut alarm = Alarm::default();
        let mut draining = false;
        // When an idle connection was told to end.
        let mut told: Option<Instant> = None;
        loop {
            let moved = phase.changed();
            let mut moved = pin!(moved);
            let event = std::future::poll_fn(|cx| {
                if let Poll::Ready(ended) = conversation.as_mut().poll(cx) {
                    return Poll::Ready(Some(Ended::Closed(ended)));
                }
                if moved.as_mut().poll(cx).is_ready()
                    || must_drain(core.phase(), activity, draining)
                {
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
                    conversation.as_mut().drain();
                    continue;
                }
                Some(Ended::Silent(Silence::Rest)) => {
                    conversation.as_mut().rest();
                    activity.rest();
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
                conversation.as_mut().drain();
            }
        }
    }
}

/// Whether it is time to say goodbye. `Activity` knows which protocol it watches.
fn must_drain(phase: Phase, activity: &Activity, already: bool) -> bool {
    let early = phase >= Phase::Draining && activity.is_http2() && activity.requests() > 0;
    !already && (early || phase >= Phase::IdleClosed)
}
