//! `postern-databroker`: records, as a process of its own.

use std::process::ExitCode;

use postern_common::config::Service;
use postern_common::launch::grpc::{self, GrpcError};
use postern_common::launch::{self, Launched};
use postern_databroker::StartError;

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Grpc(#[from] GrpcError),
}

fn main() -> ExitCode {
    launch::service(
        Service::Databroker,
        "Postern's records: sessions, users and what else the services share",
        run,
    )
}

async fn run(launched: Launched) -> Result<(), RunError> {
    let databroker = postern_databroker::start(&launched)?;
    let routes = databroker.routes(launched.keys.clone());
    grpc::serve(&launched, routes, &[Service::Databroker])?;
    Ok(())
}
