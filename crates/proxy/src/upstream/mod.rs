//! Where requests go: endpoints, the choice among them, and the connections to them.

pub(crate) mod balance;
pub(crate) mod connect;
pub(crate) mod directory;
mod heard;
pub(crate) mod pool;
mod resolve;
pub(crate) mod tls;

use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderValue;
use postern_common::config::UpstreamProtocol;
use tokio::sync::watch;

/// One URL of `to`, apart from its path. Routes and configurations that mean the same endpoint
/// share it, and with it the connections to it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Unique while the process lives; pools are kept under it.
    pub id: u64,
    pub protocol: UpstreamProtocol,
    /// For messages: `host:port`.
    pub name: String,
    pub tls: Option<tls::UpstreamConnector>,
    /// Every address of the host, or why there is none.
    pub addresses: watch::Receiver<Addresses>,
}

/// What is known of an endpoint's addresses.
#[derive(Debug, Clone)]
pub(crate) enum Addresses {
    /// The first answer is on its way.
    Resolving,
    Known(Arc<[SocketAddr]>),
    /// Never resolved so far; a set that was known once stays.
    Failed(Arc<str>),
}

/// All endpoints of a route.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// `upstream-cluster` of the access log.
    pub name: Arc<str>,
    pub members: Vec<Member>,
    pub choice: balance::Choice,
}

#[derive(Debug)]
pub(crate) struct Member {
    pub endpoint: Arc<Endpoint>,
    /// `host[:port]` as written in `to`.
    pub authority: HeaderValue,
    pub weight: u32,
}

/// Why a request could not be brought to an upstream. All of them are 503 but for the protocol.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error("cannot connect to {name} ({address})")]
    Connect {
        name: String,
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("no connection to {name} ({address}) within {seconds} s")]
    ConnectTimeout {
        name: String,
        address: SocketAddr,
        seconds: u64,
    },
    #[error("{name} ({address}) does not answer")]
    Silent { name: String, address: SocketAddr },
    #[error("TLS with {name} ({address}) failed: {reason}")]
    Tls {
        name: String,
        address: SocketAddr,
        reason: String,
    },
    #[error("HTTP with {name} ({address}) failed before the request was sent")]
    Handshake {
        name: String,
        address: SocketAddr,
        #[source]
        source: hyper::Error,
    },
    #[error("{name} does not speak what this request needs: {reason}")]
    Protocol { name: String, reason: &'static str },
}
