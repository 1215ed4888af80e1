//! The accept loop of a listener.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::lifecycle::{Lifecycle, Phase, descriptors};
use crate::telemetry::RateLimit;

/// After a failure that concerns every connection, such as a lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two lines of one kind in the log.
const SAY: Duration = Duration::from_secs(10);

/// Connections that the kernel holds until somebody takes them, at most.
const BACKLOG: usize = 4096;

/// Which connections a listener takes.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// For the log: `gRPC`, `sign-in`.
    pub kind: &'static str,
    /// At a time, fewer where file descriptors allow for fewer. The next one is closed at once: its
    /// client then tries another server, which it would not do while it waits in the kernel.
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
    let connections = descriptors::connections(bounds.connections);
    let places = Arc::new(Semaphore::new(connections));
    let said = RateLimit::new(SAY);
    let failures = Failures::new(bounds.kind);
    let begin = |stream, peer: SocketAddr| {
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            if let Some(held_back) = said.pass("full", Instant::now()) {
                tracing::warn!(
                    kind = bounds.kind,
                    connections,
                    %peer,
                    held_back,
                    "closed a new connection: there are as many as may be"
                );
            }
            return;
        };
        let (connection, open) = (serve(stream, peer), lifecycle.serving());
        lifecycle.spawn(async move {
            connection.await;
            drop((place, open));
        });
    };
    let closed = lifecycle.reached(Phase::ListenersClosed);
    tokio::pin!(closed);
    loop {
        let accepted = tokio::select! {
            () = &mut closed => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => begin(stream, peer),
            Err(error) if is_dead(&error) => {
                let task = format!("{} listener", bounds.kind);
                return lifecycle.give_up(&task, &error.to_string());
            }
            Err(error) => failures.pause(&error).await,
        }
    }
    for (stream, peer) in waiting(listener) {
        begin(stream, peer);
    }
}

/// The connections that the kernel has taken and nobody else has: closing a socket resets them, even
/// where another one listens on the same port. The listener closes at the end.
pub fn waiting(listener: TcpListener) -> impl Iterator<Item = (TcpStream, SocketAddr)> {
    let listener = listener.into_std().ok();
    std::iter::from_fn(move || {
        // Asked at the kernel: tokio may not know yet.
        let (stream, peer) = listener.as_ref()?.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some((TcpStream::from_std(stream).ok()?, peer))
    })
    // As many as can wait at a time.
    .take(BACKLOG)
}

/// What became of `accept` when it gave no connection.
#[derive(Debug)]
pub struct Failures {
    kind: &'static str,
    told: RateLimit,
}

impl Failures {
    /// Of a listener of this kind.
    pub fn new(kind: &'static str) -> Self {
        Self {
            kind,
            told: RateLimit::new(SAY),
        }
    }

    /// Tells what is wrong, seldom, and waits for a while: with no file descriptor left, `accept`
    /// would fail again at once. A client that gave up before we came costs no pause.
    pub async fn pause(&self, error: &io::Error) {
        if is_of_the_connection(error) {
            return;
        }
        if let Some(held_back) = self.told.pass(self.kind, Instant::now()) {
            let kind = self.kind;
            if is_out_of_descriptors(error) {
                tracing::error!(
                    kind,
                    held_back,
                    "no file descriptor is left, so new connections wait; raise the limit \
                     (LimitNOFILE= in systemd, --ulimit nofile= in Docker)"
                );
            } else {
                tracing::warn!(kind, %error, held_back, "cannot accept connections just now");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    // Of the system, and of the process.
    let codes = [rustix::io::Errno::NFILE, rustix::io::Errno::MFILE];
    codes
        .iter()
        .any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

/// The socket does not listen any more, and never will again.
pub fn is_dead(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let codes = [Errno::INVAL, Errno::BADF, Errno::NOTSOCK, Errno::OPNOTSUPP];
    codes
        .iter()
        .any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

/// The client gave up before we came: nothing is wrong with the listener.
fn is_of_the_connection(error: &io::Error) -> bool {
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
    async fn failures_pause_only_where_it_helps() {
        let failures = Failures::new("test");
        let paused = async |error: io::Error| {
            let start = Instant::now();
            failures.pause(&error).await;
            start.elapsed() >= PAUSE
        };
        assert!(!paused(io::ErrorKind::ConnectionAborted.into()).await);
        assert!(paused(rustix::io::Errno::MFILE.into()).await);
        assert!(is_out_of_descriptors(&rustix::io::Errno::NFILE.into()));
        assert!(!is_out_of_descriptors(&rustix::io::Errno::ACCESS.into()));
    }

    #[tokio::test]
    async fn c54_a_listener_that_dies_ends_the_process() {
        let lifecycle = Lifecycle::new(DrainTiming::immediate());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = socket2::SockRef::from(&listener).try_clone().unwrap();
        let bounds = Bounds {
            kind: "test",
            connections: 1,
        };
        let running = lifecycle.clone();
        tokio::spawn(async move { accept(listener, bounds, &running, |_, _| async {}).await });
        assert!(lifecycle.is_ready());
        socket.shutdown(std::net::Shutdown::Read).unwrap();
        let exit = tokio::time::timeout(SOON, lifecycle.run_to_end()).await;
        let exit = exit.unwrap();
        assert!(
            matches!(&exit, crate::lifecycle::Exit::Crashed { task, .. } if task == "test listener"),
            "{exit:?}"
        );
        assert!(!lifecycle.is_ready());
    }

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

    #[tokio::test]
    async fn what_waits_in_the_kernel_is_taken_before_the_socket_closes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(std::net::TcpStream::connect(address).unwrap());
        }
        let taken: Vec<_> = waiting(listener).map(|(_, peer)| peer).collect();
        let sent: Vec<_> = clients.iter().map(|it| it.local_addr().unwrap()).collect();
        assert_eq!(taken, sent);
        assert!(TcpStream::connect(address).await.is_err());
    }
}
