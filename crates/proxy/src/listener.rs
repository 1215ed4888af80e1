//! The public listener: one socket a core on the same port.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use postern_common::config::Config;
use postern_common::lifecycle::Phase;
use postern_common::net::accept::{is_dead, waiting};
use postern_common::net::given;
use postern_common::net::listen::{ListenError, Share, listen};
use tokio::net::{TcpListener, TcpStream};

use crate::connection;
use crate::core::{Core, Shared};

const ADDRESS: &str = "address";

/// Sockets that are bound and listen, not served yet.
#[derive(Debug)]
pub struct Listeners {
    pub(crate) public: Vec<StdListener>,
    pub(crate) redirect: Option<StdListener>,
    address: SocketAddr,
}

/// Proxy has nothing to listen on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The configuration has no public address.
    #[error("address is not set, so proxy has nothing to listen on")]
    NoAddress,
    /// A port could not be taken.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

impl Listeners {
    /// Binds `address` once for each core, or takes what was handed over, and `http_redirect_addr`.
    pub fn bind(config: &Config, cores: usize) -> Result<Self, BindError> {
        let address = config.listen.public.ok_or(BindError::NoAddress)?;
        let redirect = config
            .listen
            .http_redirect
            .map(|address| listen("http_redirect_addr", address, config.listen.share))
            .transpose()?;
        let public = match given::take(ADDRESS) {
            Some(given) => clones(given, address, cores)?,
            None => sockets(address, config.listen.share, cores)?,
        };
        let bound = public.first().map(|first| local_address(first, address));
        Ok(Self {
            address: bound.transpose()?.unwrap_or(address),
            public,
            redirect,
        })
    }

    /// Where clients find it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where `http_redirect_addr` listens.
    pub fn redirect_address(&self) -> Option<SocketAddr> {
        self.redirect
            .as_ref()
            .and_then(|listener| listener.local_addr().ok())
    }
}

/// A socket for each core, on the same port.
fn sockets(
    address: SocketAddr,
    share: Share,
    cores: usize,
) -> Result<Vec<StdListener>, ListenError> {
    // SO_REUSEPORT would share a port that another process of this user has taken. Where that is
    // not wanted, a socket without it looks first whether the port is free.
    if share == Share::No && address.port() != 0 {
        drop(listen(ADDRESS, address, Share::No)?);
    }
    let first = listen(ADDRESS, address, Share::Yes)?;
    let address = local_address(&first, address)?;
    let mut sockets = vec![first];
    while sockets.len() < cores.max(1) {
        sockets.push(listen(ADDRESS, address, Share::Yes)?);
    }
    Ok(sockets)
}

/// The same socket for each core: whichever is free takes the next connection.
fn clones(
    given: StdListener,
    address: SocketAddr,
    cores: usize,
) -> Result<Vec<StdListener>, ListenError> {
    let mut clones = Vec::new();
    while clones.len() + 1 < cores {
        clones.push(given.try_clone().map_err(|source| other(address, source))?);
    }
    clones.push(given);
    Ok(clones)
}

fn local_address(listener: &StdListener, address: SocketAddr) -> Result<SocketAddr, ListenError> {
    listener
        .local_addr()
        .map_err(|source| other(address, source))
}

fn other(address: SocketAddr, source: std::io::Error) -> ListenError {
    ListenError::Other {
        key: ADDRESS,
        address,
        source,
    }
}

/// Accepts connections on this core until the listeners close, and serves each in a task.
pub(crate) async fn accept(core: &Rc<Core>, listener: TcpListener) {
    let mut phase = core.phase.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase >= Phase::ListenersClosed) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => begin(core, stream, peer),
            Err(error) if is_dead(&error) => {
                let lifecycle = &core.shared.lifecycle;
                return lifecycle.give_up("proxy listener", &error.to_string());
            }
            Err(error) => core.shared.accept_failures.pause(&error).await,
        }
    }
    for (stream, peer) in waiting(listener) {
        begin(core, stream, peer);
    }
}

/// Serves a connection, if there is a place for it.
fn begin(core: &Rc<Core>, stream: TcpStream, peer: SocketAddr) {
    let Some(place) = Place::take(core) else {
        core.shared.metrics.connections_refused.inc();
        return;
    };
    // A small answer must not wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let (core, tasks) = (Rc::clone(core), core.tasks.clone());
    tasks.spawn_local(async move {
        connection::run(core, stream, peer, place).await;
    });
}

/// One of the connections that clients may have.
pub(crate) struct Place {
    shared: Arc<Shared>,
}

impl Place {
    fn take(core: &Rc<Core>) -> Option<Self> {
        let taken = core.shared.connections.fetch_add(1, Ordering::Relaxed);
        let place = Self {
            shared: Arc::clone(&core.shared),
        };
        core.shared.metrics.connections.inc();
        core.shared.metrics.connections_active.inc();
        (taken < core.shared.max_connections).then_some(place)
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").finish_non_exhaustive()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.shared.metrics.connections_active.dec();
    }
}
