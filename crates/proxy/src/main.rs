//! `postern-proxy`: the data plane, as a process of its own.

use std::process::ExitCode;
use std::sync::Arc;

use postern_common::config::Service;
use postern_common::launch::peers::{Peers, PeersError};
use postern_common::launch::{self, Launched};
use postern_proxy::{Deciding, Remote, RunError};

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Peers(#[from] PeersError),
    #[error(transparent)]
    Proxy(#[from] RunError),
}

fn main() -> ExitCode {
    launch::service(Service::Proxy, "Postern's data plane", start)
}

async fn start(launched: Launched) -> Result<(), StartError> {
    let config = Arc::clone(&launched.config.borrow());
    let peers = Peers::of(&launched)?;
    let authorize = peers.transport(&config, Service::Authorize)?;
    let peers = postern_proxy::Peers {
        authorizer: Deciding::Elsewhere(Remote::new(
            authorize,
            launched.keys.clone(),
            launched.config.clone(),
        )),
        databroker: peers.transport(&config, Service::Databroker)?,
        authenticate: None,
        keys: launched.keys.clone(),
        metrics: launched.metrics.clone(),
    };
    postern_proxy::start(launched.config, peers, &launched.lifecycle)?;
    Ok(())
}
