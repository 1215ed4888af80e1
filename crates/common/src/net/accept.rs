//! The accept loop of a listener.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::lifecycle::{Lifecycle, Phase};
use crate::telemetry::RateLimit;

/// After a failure that concerns every connection, such as a lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two lines of one kind in the log.
const SAY: Duration = Duration::from_secs(10);

/// Which connections a listener takes.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// For the log: `gRPC`, `sign-in`.
    pub kind: &'static str,
    /// At a time. The next one is closed at once: its client then tries another server, which it
    /// would not do while it waits in the kernel.
    pub connections: usize,
}

/// Accepts connections until a drain closes the listeners, and serves each in a task of
/// `lifecycle`.
pub async fn accept<F>(
    listener: TcpListener,
    bounds: Bounds,
    lifecycle: &Lifecycle,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(bounds.connections));
    let said = RateLimit::new(SAY);
    let closed = lifecycle.reached(Phase::ListenersClosed);
    tokio::pin!(closed);
    loop {
        let accepted = tokio::select! {
            () = &mut closed => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_of_the_connection(&error) => continue,
            Err(error) => {
                if let Some(held_back) = said.pass("failed", Instant::now()) {
                    let kind = bounds.kind;
                    tracing::warn!(kind, %error, held_back, "cannot accept connections just now");
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            if let Some(held_back) = said.pass("full", Instant::now()) {
                tracing::warn!(
                    kind = bounds.kind,
                    connections = bounds.connections,
                    %peer,
                    held_back,
                    "closed a new connection: there are as many as may be"
                );
            }
            continue;
        };
        let serving = serve(stream, peer);
        lifecycle.spawn(async move {
            serving.await;
            drop(place);
        });
    }
}

/// The client gave up before we came: nothing is wrong with the listener.
pub fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::lifecycle::DrainTiming;

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn s30_the_newest_beyond_the_bound_is_closed_and_a_drain_ends_it() {
        let lifecycle = Lifecycle::new(DrainTiming::immediate());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bounds = Bounds {
            kind: "test",
            connections: 1,
        };
        let running = lifecycle.clone();
        let ended = tokio::spawn(async move {
            let hold = |mut stream: TcpStream, _| async move {
                let _ = stream.read(&mut [0; 1]).await;
            };
            accept(listener, bounds, &running, hold).await;
        });
        let is_closed = async |stream: &mut TcpStream| {
            let read = tokio::time::timeout(SOON, stream.read(&mut [0; 1])).await;
            matches!(read, Ok(Ok(0) | Err(_)))
        };
        let first = TcpStream::connect(address).await.unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        assert!(is_closed(&mut second).await);
        drop(first);
        // The place is free again, as soon as its task has ended.
        tokio::time::timeout(SOON, async {
            loop {
                let mut third = TcpStream::connect(address).await.unwrap();
                let moment = Duration::from_millis(50);
                let mut byte = [0; 1];
                let read = third.read(&mut byte);
                if tokio::time::timeout(moment, read).await.is_err() {
                    return;
                }
            }
        })
        .await
        .unwrap();
        lifecycle.drain();
        lifecycle.run_to_end().await;
        tokio::time::timeout(SOON, ended).await.unwrap().unwrap();
    }
}
