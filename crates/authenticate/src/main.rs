//! `postern-authenticate`: sign-in and sign-out, as a process of its own.

use std::process::ExitCode;
use std::sync::Arc;

use postern_authenticate::RunError;
use postern_common::config::Service;
use postern_common::launch::peers::{Peers, PeersError};
use postern_common::launch::{self, Launched};

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Peers(#[from] PeersError),
    #[error(transparent)]
    Run(#[from] RunError),
}

fn main() -> ExitCode {
    launch::service(Service::Authenticate, "Postern's sign-in service", start)
}

async fn start(launched: Launched) -> Result<(), StartError> {
    let config = Arc::clone(&launched.config.borrow());
    let peers = Peers::of(&launched)?;
    let databroker = peers.transport(&config, Service::Databroker)?;
    let http = peers.https_client()?.into();
    postern_authenticate::run(launched.config, databroker, http, &launched.lifecycle)?;
    Ok(())
}
