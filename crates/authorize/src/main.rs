//! `postern-authorize`: the policy decision point, as a process of its own.

use std::process::ExitCode;
use std::sync::Arc;

use postern_authorize::Authorize;
use postern_common::config::Service;
use postern_common::launch::grpc::{self, GrpcError};
use postern_common::launch::peers::{Peers, PeersError};
use postern_common::launch::{self, Launched};

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Peers(#[from] PeersError),
    #[error(transparent)]
    Grpc(#[from] GrpcError),
}

fn main() -> ExitCode {
    launch::service(Service::Authorize, "Postern's policy decision point", start)
}

async fn start(launched: Launched) -> Result<(), StartError> {
    let config = Arc::clone(&launched.config.borrow());
    let peers = Peers::of(&launched)?;
    let databroker = peers.transport(&config, Service::Databroker)?;
    let authorize = Authorize::new(
        launched.config.clone(),
        databroker,
        peers.https_client()?.into(),
        &launched.metrics,
        &launched.lifecycle,
    );
    grpc::serve(&launched, authorize.routes(), &[Service::Authorize])?;
    launched
        .lifecycle
        .spawn_critical("authorize", authorize.run());
    Ok(())
}
