//! Connections that we open: TCP with our settings, then TLS when asked for.

use std::future::Future as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::tls::PeerError;

/// The kernel probes a quiet connection after this time, and again at this interval.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// A connection to a peer.
#[derive(Debug)]
pub enum Stream {
    /// Clear text.
    Plain(TcpStream),
    /// TLS; boxed, as its state is large.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No TCP connection.
    #[error("cannot connect to {address}")]
    Tcp {
        /// Whom we called.
        address: SocketAddr,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The peer's certificate is not accepted.
    #[error("{address}: certificate refused: {reason}")]
    Certificate {
        /// Whom we called.
        address: SocketAddr,
        /// Why it is not accepted.
        reason: PeerError,
    },
    /// TLS failed for another reason.
    #[error("{address}: TLS handshake failed")]
    Tls {
        /// Whom we called.
        address: SocketAddr,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Not in time.
    #[error("{address}: not connected within {after:?}")]
    Deadline {
        /// Whom we called.
        address: SocketAddr,
        /// How long we waited.
        after: Duration,
    },
}

/// TLS towards one peer.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// Trust, ALPN and our own certificate.
    pub config: Arc<ClientConfig>,
    /// The name for SNI that the certificate must have.
    pub name: ServerName<'static>,
}

/// Opens a connection to `address`, all steps within `deadline`.
pub async fn connect(
    address: SocketAddr,
    tls: Option<&ClientTls>,
    deadline: Duration,
) -> Result<Stream, ConnectError> {
    let connecting = async {
        let stream = TcpStream::connect(address).await.and_then(|stream| {
            stream.set_nodelay(true)?;
            let keepalive = TcpKeepalive::new()
                .with_time(KEEPALIVE)
                .with_interval(KEEPALIVE);
            SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
            Ok(stream)
        });
        let stream = stream.map_err(|source| ConnectError::Tcp { address, source })?;
        let Some(tls) = tls else {
            return Ok(Stream::Plain(stream));
        };
        let connector = TlsConnector::from(Arc::clone(&tls.config));
        match connector.connect(tls.name.clone(), stream).await {
            Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
            Err(source) => Err(match PeerError::find(&source) {
                Some(reason) => ConnectError::Certificate { address, reason },
                None => ConnectError::Tls { address, source },
            }),
        }
    };
    tokio::time::timeout(deadline, connecting)
        .await
        .unwrap_or(Err(ConnectError::Deadline {
            address,
            after: deadline,
        }))
}

/// Opens a connection to the first of several addresses that works, within `deadline` in all.
/// `None` when there are no addresses.
pub async fn connect_any(
    addresses: &[IpAddr],
    port: u16,
    tls: Option<&ClientTls>,
    deadline: Duration,
) -> Option<Result<Stream, ConnectError>> {
    let until = tokio::time::Instant::now() + deadline;
    let mut last = None;
    let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    for address in addresses {
        let rest = until.saturating_duration_since(tokio::time::Instant::now());
        // A silent address must not use up the time of those behind it.
        let share = rest / left.max(1);
        left = left.saturating_sub(1);
        match connect(SocketAddr::new(*address, port), tls, share).await {
            Ok(stream) => return Some(Ok(stream)),
            Err(error) => last = Some(error),
        }
    }
    last.map(Err)
}

impl Stream {
    /// The protocol that TLS agreed on.
    pub fn is_h2(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(context, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}

/// A connection that can be cut from outside, so that all calls on it fail at once.
pub struct Cuttable {
    stream: Stream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Cuttable {
    /// Ends `stream` when `cut` is cancelled.
    pub fn new(stream: Stream, cut: &CancellationToken) -> Self {
        Self {
            stream,
            cut: Box::pin(cut.clone().cancelled_owned()),
        }
    }
}

impl AsyncRead for Cuttable {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "given up: the peer does not answer",
            )));
        }
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Cuttable {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
