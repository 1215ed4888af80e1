//! All-in-one: wires the services that `services` names. The only file that knows all four.
//!
//! What runs in this process is called; what runs elsewhere is reached by its URL. The wires are
//! the same three seams in both cases: decisions, records, sign-in.

use std::sync::Arc;

use postern_authenticate::Authenticate;
use postern_authorize::Authorize;
use postern_common::config::{Config, Service};
use postern_common::launch::Launched;
use postern_common::launch::grpc::{self, GrpcError};
use postern_common::launch::peers::{Peers, PeersError};
use postern_common::rpc::Transport;
use postern_proxy::{Deciding, Remote};
use tonic::service::Routes;

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Peers(#[from] PeersError),
    #[error(transparent)]
    Grpc(#[from] GrpcError),
    #[error(transparent)]
    Databroker(#[from] postern_databroker::StartError),
    #[error(transparent)]
    Authenticate(#[from] postern_authenticate::RunError),
    #[error(transparent)]
    Proxy(#[from] postern_proxy::RunError),
}

/// Starts every service of this process. What fails here is not a matter of waiting.
pub fn run(launched: Launched) -> Result<(), RunError> {
    let config = Arc::clone(&launched.config.borrow());
    let runs = |service| config.services.contains(service);
    let peers = Peers::of(&launched)?;

    let mut grpc = Vec::new();
    let databroker = if runs(Service::Databroker) {
        let databroker = postern_databroker::start(&launched)?;
        let routes = databroker.routes(launched.keys.clone());
        grpc.push((Service::Databroker, routes.clone()));
        Transport::local(routes)
    } else {
        peers.transport(&config, Service::Databroker)?
    };

    let local = if runs(Service::Authorize) {
        let authorize = Authorize::new(
            launched.config.clone(),
            databroker.clone(),
            peers.https_client()?.into(),
            &launched.metrics,
            &launched.lifecycle,
        );
        grpc.push((Service::Authorize, authorize.routes()));
        let local = authorize.local();
        launched
            .lifecycle
            .spawn_critical(Service::Authorize.name(), authorize.run());
        Some(local)
    } else {
        None
    };

    serve_grpc(&launched, grpc)?;

    if runs(Service::Proxy) {
        let authorizer = match local {
            Some(local) => Deciding::Here(local),
            None => Deciding::Elsewhere(Remote::new(
                peers.transport(&config, Service::Authorize)?,
                launched.keys.clone(),
                launched.config.clone(),
            )),
        };
        let authenticate = if runs(Service::Authenticate) {
            Some(sign_in_here(&launched, &config, &databroker, &peers)?)
        } else {
            None
        };
        let peers = postern_proxy::Peers {
            authorizer,
            databroker,
            authenticate,
            keys: launched.keys.clone(),
            metrics: launched.metrics.clone(),
        };
        postern_proxy::start(launched.config, peers, &launched.lifecycle)?;
    } else if runs(Service::Authenticate) {
        let http = peers.https_client()?.into();
        postern_authenticate::run(launched.config, databroker, http, &launched.lifecycle)?;
    }
    Ok(())
}

/// Authenticate behind the proxy of this process: it calls the handler where it would forward.
fn sign_in_here(
    launched: &Launched,
    config: &Arc<Config>,
    databroker: &Transport,
    peers: &Peers,
) -> Result<axum::Router, PeersError> {
    let http = peers.https_client()?.into();
    let service = Authenticate::new(Arc::clone(config), databroker.clone(), http);
    let router = postern_authenticate::router(Arc::clone(&service));
    let (config, lifecycle) = (launched.config.clone(), launched.lifecycle.clone());
    launched.lifecycle.spawn(async move {
        postern_authenticate::follow(service, None, config, &lifecycle).await;
    });
    Ok(router)
}

fn serve_grpc(launched: &Launched, parts: Vec<(Service, Routes)>) -> Result<(), GrpcError> {
    let services: Vec<_> = parts.iter().map(|(service, _)| *service).collect();
    let merged = parts
        .into_iter()
        .map(|(_, routes)| routes.into_axum_router())
        // Each answers what it does not know; only one of them can.
        .reduce(|all, next| all.merge(next.reset_fallback()));
    match merged {
        Some(router) => grpc::serve(launched, Routes::from(router), &services),
        None => Ok(()),
    }
}
