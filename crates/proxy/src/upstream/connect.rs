//! Opens one connection to one address of an upstream.

use std::error::Error as _;
use std::net::SocketAddr;
use std::rc::Rc;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_common::config::UpstreamProtocol;
use postern_common::net::LocalExecutor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::heard::Heard;
use super::{Endpoint, UpstreamError};
use crate::forward::exchange::RequestBody;
use crate::limits;

/// A connection that is ready for requests. Its driver runs on this core until it ends.
pub(crate) enum Connected {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

/// What the request needs from the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Whatever the endpoint speaks.
    Http,
    /// HTTP/1.1, for an upgrade.
    Http1,
}

/// Connects within [`limits::UPSTREAM_CONNECT`].
pub(crate) async fn connect(
    endpoint: &Endpoint,
    address: SocketAddr,
    needs: Needs,
) -> Result<Connected, UpstreamError> {
    let opening = open(endpoint, address, needs);
    match tokio::time::timeout(limits::UPSTREAM_CONNECT, opening).await {
        Ok(connected) => connected,
        Err(_) => Err(UpstreamError::ConnectTimeout {
            name: endpoint.name.clone(),
            address,
            seconds: limits::UPSTREAM_CONNECT.as_secs(),
        }),
    }
}

/// A bare TCP connection, for tunnels too.
pub(crate) async fn tcp(
    endpoint: &Endpoint,
    address: SocketAddr,
) -> Result<TcpStream, UpstreamError> {
    let failed = |source| UpstreamError::Connect {
        name: endpoint.name.clone(),
        address,
        source,
    };
    let stream = TcpStream::connect(address).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}

async fn open(
    endpoint: &Endpoint,
    address: SocketAddr,
    needs: Needs,
) -> Result<Connected, UpstreamError> {
    let stream = tcp(endpoint, address).await?;
    match (endpoint.protocol, &endpoint.tls, needs) {
        (UpstreamProtocol::Http, ..) => http1(endpoint, address, stream).await,
        (UpstreamProtocol::H2c, _, Needs::Http) => http2(endpoint, address, stream).await,
        (UpstreamProtocol::H2c, _, Needs::Http1) => Err(UpstreamError::Protocol {
            name: endpoint.name.clone(),
            reason: "an upgrade needs HTTP/1.1, and h2c is HTTP/2",
        }),
        (UpstreamProtocol::Https, Some(tls), needs) => {
            let config = if needs == Needs::Http1 {
                &tls.http1
            } else {
                &tls.any
            };
            let connector = TlsConnector::from(std::sync::Arc::clone(config));
            let connecting = Box::pin(connector.connect(tls.name.clone(), stream));
            let stream = connecting.await.map_err(|error| UpstreamError::Tls {
                name: endpoint.name.clone(),
                address,
                reason: tls.explain(&error),
            })?;
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                http2(endpoint, address, stream).await
            } else {
                http1(endpoint, address, stream).await
            }
        }
        (UpstreamProtocol::Https, None, _) => Err(UpstreamError::Protocol {
            name: endpoint.name.clone(),
            reason: "https without TLS settings",
        }),
        (UpstreamProtocol::Tcp, ..) => Err(UpstreamError::Protocol {
            name: endpoint.name.clone(),
            reason: "tcp carries no HTTP",
        }),
    }
}

async fn http1<S>(
    endpoint: &Endpoint,
    address: SocketAddr,
    stream: S,
) -> Result<Connected, UpstreamError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let opened = handshake(stream).await;
    let (sender, connection) = opened.map_err(|source| UpstreamError::Handshake {
        name: endpoint.name.clone(),
        address,
        source,
    })?;
    let name: Rc<str> = endpoint.name.as_str().into();
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.with_upgrades().await {
            ended(&name, address, &error);
        }
    });
    Ok(Connected::Http1(sender))
}

async fn handshake<S>(
    stream: S,
) -> hyper::Result<(
    http1::SendRequest<RequestBody>,
    http1::Connection<TokioIo<Heard<S>>, RequestBody>,
)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    http1::Builder::new()
        .preserve_header_case(true)
        .max_buf_size(limits::UPSTREAM_BUFFER)
        .handshake(TokioIo::new(Heard::new(stream)))
        .await
}

async fn http2<S>(
    endpoint: &Endpoint,
    address: SocketAddr,
    stream: S,
) -> Result<Connected, UpstreamError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .max_send_buf_size(limits::SEND_BUFFER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|source| UpstreamError::Handshake {
            name: endpoint.name.clone(),
            address,
            source,
        })?;
    let name: Rc<str> = endpoint.name.as_str().into();
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            ended(&name, address, &error);
        }
    });
    Ok(Connected::Http2(sender))
}

/// What concerns a request is told with the request.
fn ended(name: &str, address: SocketAddr, error: &hyper::Error) {
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    tracing::debug!(upstream = name, %address, %error, cause, "a connection to an upstream ended");
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use http::{Request, header};
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::{LocalSet, spawn_local};
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::forward::exchange::Progress;

    /// Who takes an answer slowly is one of many.
    #[tokio::test(start_paused = true)]
    async fn little_is_read_ahead_of_a_client_that_does_not_take_it() {
        const PIPE: usize = 1024 * 1024;
        // Until reading is as quick as it gets.
        const ENOUGH: usize = 16 * PIPE;
        let reading = async {
            let (ours, mut theirs) = tokio::io::duplex(PIPE);
            let (mut sender, connection) = handshake(ours).await.unwrap();
            spawn_local(connection);
            let written = Rc::new(Cell::new(0));
            let counted = Rc::clone(&written);
            spawn_local(async move {
                let _ = theirs.read(&mut [0; 1024]).await.unwrap();
                let head = b"HTTP/1.1 200 OK\r\n\r\n";
                theirs.write_all(head).await.unwrap();
                let some = vec![b'x'; 64 * 1024];
                while let Ok(written) = theirs.write(&some).await {
                    counted.set(counted.get() + written);
                }
            });
            let body = RequestBody::empty(Progress::new(Instant::now(), false));
            let request = Request::get("/").header(header::HOST, "up").body(body);
            let answer = sender.send_request(request.unwrap()).await.unwrap();
            let mut answer = answer.into_body();
            let mut taken = 0;
            while taken < ENOUGH {
                let frame = answer.frame().await.unwrap().unwrap();
                taken += frame.into_data().unwrap().len();
            }
            // The clock stands still until nothing moves any more.
            sleep(Duration::from_secs(1)).await;
            let ahead = written.get() - taken;
            assert!(ahead <= PIPE + 3 * limits::UPSTREAM_BUFFER, "{ahead}");
        };
        LocalSet::new().run_until(reading).await;
    }
}
