//! Opens an HTTP/2 connection to an endpoint.

use std::net::SocketAddr;
use std::time::Duration;

use hyper::client::conn::http2::{self, SendRequest};
use hyper::rt::bounds::Http2ClientConnExec;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::body::Body;

use super::discovery::Target;
use super::fault::PeerFault;
use super::speaks::{FirstBytes, Overheard};
use crate::net::connect::{Cuttable, connect};
use crate::telemetry::log::chain;
use crate::tls::peer_error::is_clear_text;

/// Room for record streams: at the default of 64 KiB an initial sync takes twice as long.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

type Io = TokioIo<Overheard<Cuttable>>;

/// An HTTP/2 connection that is open.
pub(super) struct Opened<E>
where
    E: Http2ClientConnExec<Body, Io> + Unpin,
{
    pub(super) sender: SendRequest<Body>,
    /// Has to be run.
    pub(super) connection: http2::Connection<Io, Body, E>,
    /// Dropping it cuts the connection, and with it all calls on it.
    pub(super) cut: DropGuard,
    pub(super) first: FirstBytes,
}

/// TCP, TLS and our half of the HTTP/2 preface, all within `limit`.
pub(super) async fn open<E>(
    address: SocketAddr,
    target: &Target,
    executor: E,
    limit: Duration,
) -> Result<Opened<E>, PeerFault>
where
    E: Http2ClientConnExec<Body, Io> + Unpin,
{
    let deadline = Instant::now() + limit;
    let stream = connect(address, target.tls.as_ref(), limit).await;
    let stream = stream.map_err(|error| {
        if is_clear_text(&error) {
            PeerFault::ClearText(error)
        } else {
            PeerFault::Connect(error)
        }
    })?;
    if target.tls.is_some() && !stream.is_h2() {
        return Err(PeerFault::NotHttp2);
    }
    let cut = CancellationToken::new();
    let first = FirstBytes::default();
    let stream = Overheard::new(Cuttable::new(stream, &cut), first.clone());
    let handshake = http2::Builder::new(executor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(TokioIo::new(stream));
    let (sender, connection) = tokio::time::timeout_at(deadline, handshake)
        .await
        .map_err(|_| PeerFault::Handshake(limit))?
        .map_err(|error| PeerFault::Broken(chain(&error)))?;
    Ok(Opened {
        sender,
        connection,
        cut: cut.drop_guard(),
        first,
    })
}
