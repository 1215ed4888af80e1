//! One look at a peer, as an endpoint that is followed gets it, for whoever wants to know and not
//! to call.

use std::net::SocketAddr;
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt as _};
use jiff::Timestamp;

use super::client::ProbeTiming;
use super::discovery::Target;
use super::driver::{Live, Probing, Unasked};
use super::endpoint::Event;
use super::fault::PeerFault;
use super::token::TokenKeys;

/// What a peer tells that accepts us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its Postern's version, if it is one.
    pub version: Option<String>,
    /// Of its records (a databroker): equal on all that share a storage.
    pub records: Option<u64>,
    /// Its clock, to the second.
    pub clock: Option<Timestamp>,
    /// Whether it takes calls.
    pub serves: bool,
}

/// Connects to one address of a service and asks it how it is. Boxed here, so that the whole connection is
/// compiled in this crate only.
pub fn look_at(
    address: SocketAddr,
    target: Arc<Target>,
    service: &str,
    keys: TokenKeys,
) -> BoxFuture<'_, Result<Peer, PeerFault>> {
    look(address, target, service, keys).boxed()
}

async fn look(
    address: SocketAddr,
    target: Arc<Target>,
    service: &str,
    keys: TokenKeys,
) -> Result<Peer, PeerFault> {
    let probing = Probing {
        service: service.to_owned(),
        keys: Some(keys),
        timing: ProbeTiming::default(),
    };
    let patience = probing.timing.first_patience;
    let mut live = Live::open(address, &target).await?;
    match tokio::time::timeout(patience, live.ask(&probing)).await {
        Err(_) => Err(PeerFault::Silent(patience)),
        Ok(Err(Unasked::Lost(why))) => Err(live.explain(why)),
        Ok(Err(Unasked::Rejected(fault))) => Err(fault),
        Ok(Ok(event)) => Ok(Peer {
            version: live.about.version.take(),
            records: live.about.records,
            clock: live.date,
            serves: event == Event::Serving,
        }),
    }
}
