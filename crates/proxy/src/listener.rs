//! The public listener: one socket a core on the same port.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use postern_common::config::Config;
use postern_common::lifecycle::Phase;
use postern_common::net::listen::{ListenError, Share, listen};
use tokio::net::TcpListener;

use crate::connection;
use crate::core::{Core, Shared};

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
    /// Binds `address` once for each core, and `http_redirect_addr`.
    pub fn bind(config: &Config, cores: usize) -> Result<Self, BindError> {
        let address = config.listen.public.ok_or(BindError::NoAddress)?;
        // SO_REUSEPORT would share a port that another process of this user has taken, so a
        // socket without it looks first whether the port is free.
        if address.port() != 0 {
            drop(listen("address", address, Share::No)?);
        }
        let first = listen("address", address, Share::Yes)?;
        let address = first.local_addr().map_err(|source| ListenError::Other {
            key: "address",
            address,
            source,
        })?;
        let mut public = vec![first];
        while public.len() < cores.max(1) {
            public.push(listen("address", address, Share::Yes)?);
        }
        let redirect = config
            .listen
            .http_redirect
            .map(|address| listen("http_redirect_addr", address, Share::No))
            .transpose()?;
        Ok(Self {
            public,
            redirect,
            address,
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

/// Accepts connections on this core until the listeners close, and serves each in a task.
pub(crate) async fn accept(core: &Rc<Core>, listener: TcpListener) {
    let mut phase = core.phase.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase >= Phase::ListenersClosed) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(place) = Place::take(core) else {
                    core.shared.metrics.connections_refused.inc();
                    continue;
                };
                // A small answer must not wait for the acknowledgement of the one before.
                let _ = stream.set_nodelay(true);
                let (core, tasks) = (Rc::clone(core), core.tasks.clone());
                tasks.spawn_local(async move {
                    connection::run(core, stream, peer, place).await;
                });
            }
            Err(error) => core.shared.accept_failures.pause(&error).await,
        }
    }
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
