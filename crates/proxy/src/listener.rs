//! The public listener: one socket a core on the same port.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use postern_common::config::Config;
use postern_common::lifecycle::Phase;
use postern_common::net::accept::is_of_the_connection;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::connection;
use crate::core::{Core, Shared};
use crate::limits;

/// Waiting connections that the kernel holds, per socket.
const BACKLOG: i32 = 4096;

/// Sockets that are bound and listen, not served yet.
#[derive(Debug)]
pub struct Listeners {
    pub(crate) public: Vec<StdListener>,
    pub(crate) redirect: Option<StdListener>,
    address: SocketAddr,
}

/// A port could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The configuration has no public address.
    #[error("address is not set, so proxy has nothing to listen on")]
    NoAddress,
    /// Somebody else has it.
    #[error("{key} {address}: the port is taken by another process")]
    Taken {
        /// The configuration key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
    },
    /// A port below 1024 needs a right.
    #[error(
        "{key} {address}: no right to listen there. Ports below 1024 need CAP_NET_BIND_SERVICE \
         (setcap 'cap_net_bind_service=+ep' on the binary, or AmbientCapabilities= in systemd); \
         else set {key} to a port above 1023"
    )]
    Forbidden {
        /// The configuration key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("{key} {address}: cannot listen there")]
    Other {
        /// The configuration key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Listeners {
    /// Binds `address` once for each core, and `http_redirect_addr`.
    pub fn bind(config: &Config, cores: usize) -> Result<Self, BindError> {
        let address = config.listen.public.ok_or(BindError::NoAddress)?;
        // SO_REUSEPORT would share a port that another process of this user has taken, so a
        // socket without it looks first whether the port is free.
        if address.port() != 0 {
            drop(bind("address", address, Share::No)?);
        }
        let first = bind("address", address, Share::Yes)?;
        let address = first.local_addr().map_err(|source| BindError::Other {
            key: "address",
            address,
            source,
        })?;
        let mut public = vec![first];
        while public.len() < cores.max(1) {
            public.push(bind("address", address, Share::Yes)?);
        }
        let redirect = config
            .listen
            .http_redirect
            .map(|address| bind("http_redirect_addr", address, Share::No))
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    No,
    Yes,
}

fn bind(key: &'static str, address: SocketAddr, share: Share) -> Result<StdListener, BindError> {
    let (any4, any6) = (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED);
    let opened = open(address, share).or_else(|error| match address.ip() {
        // A machine without IPv6 has no `[::]`; every interface is then every one of IPv4.
        IpAddr::V6(ip) if ip == any6 && is_without_ipv6(&error) => {
            open(SocketAddr::new(any4, address.port()), share)
        }
        _ => Err(error),
    });
    opened.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::Taken { key, address },
        io::ErrorKind::PermissionDenied => BindError::Forbidden { key, address },
        _ => BindError::Other {
            key,
            address,
            source,
        },
    })
}

fn open(address: SocketAddr, share: Share) -> io::Result<StdListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if let SocketAddr::V6(v6) = address
        && v6.ip().is_unspecified()
    {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    if share == Share::Yes {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn is_without_ipv6(error: &io::Error) -> bool {
    /// `EAFNOSUPPORT`, which has no `ErrorKind`.
    const NO_SUCH_FAMILY: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(NO_SUCH_FAMILY)
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
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections just now");
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            }
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
        (taken < limits::CLIENT_CONNECTIONS).then_some(place)
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
