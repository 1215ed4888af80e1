//! Sign-in and sign-out.
//!
//! Sends people to their identity provider and back, writes session and user into the databroker,
//! and hands each route's host a session handle. Keeps nothing itself: whatever lasts from one
//! request to the next is in a cookie, in `state`, or in the databroker, so any replica can finish
//! what another began. Read [`routes`] first: every path, and who may call it.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        reason = "tests may panic"
    )
)]

mod call;
mod callback;
mod pages;
mod records;
pub mod routes;
pub mod serve;
mod session;
mod sign_in;
mod sign_out;
mod snapshot;
#[cfg(test)]
mod tests;
mod verify;

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use postern_common::config::Config;
use postern_common::lifecycle::Lifecycle;
use postern_common::net::listen::{ListenError, listen};
use postern_common::net::to_https;
use postern_common::rpc::token::TokenKeys;
use postern_common::rpc::transport::Transport;
use postern_common::tls::TlsError;
use postern_identity::HttpClient;
use serve::ListenerTls;
use tokio::net::TcpListener;
use tokio::sync::watch;

use records::Records;
use snapshot::Snapshot;

pub use routes::router;

/// Name of this part for readiness.
pub const PART: &str = "authenticate";

/// The service: what it follows the configuration with, and its way to the databroker.
#[derive(Debug)]
pub struct Authenticate {
    snapshot: ArcSwap<Snapshot>,
    records: Records,
    keys: TokenKeys,
    http: HttpClient,
}

impl Authenticate {
    /// `http` reaches identity providers. Needs a tokio runtime: what a provider publishes is read
    /// in the background.
    pub fn new(config: Arc<Config>, databroker: Transport, http: HttpClient) -> Arc<Self> {
        let keys = TokenKeys::new(config.secrets.shared.clone());
        Arc::new(Self {
            records: Records::new(databroker, &keys),
            snapshot: ArcSwap::from_pointee(Snapshot::new(config, &http, None)),
            keys,
            http,
        })
    }

    /// Takes over a new configuration. Requests under way keep the one they began with.
    pub fn configure(&self, config: Arc<Config>) {
        self.keys.replace(config.secrets.shared.clone());
        let previous = self.snapshot.load();
        let next = Snapshot::new(config, &self.http, Some(&previous.providers));
        self.snapshot.store(Arc::new(next));
    }
}

/// Why the service can't run by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("authenticate has no address to listen on: set `address`")]
    NoAddress,
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("address {address}: cannot listen there")]
    Register {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("TLS of the listener")]
    Tls(#[from] TlsError),
}

/// Takes over every configuration that is loaded, until the process stops.
pub async fn follow(
    service: Arc<Authenticate>,
    tls: Option<ListenerTls>,
    mut config: watch::Receiver<Arc<Config>>,
    lifecycle: &Lifecycle,
) {
    let stop = lifecycle.stopping();
    while let Some(Ok(())) = stop.run_until_cancelled(config.changed()).await {
        let new = Arc::clone(&config.borrow_and_update());
        if let Some(tls) = &tls {
            tls.follow(&new);
        }
        service.configure(new);
    }
}

/// The service on its own listener, as in split mode. Returns once it listens; what follows runs
/// in tasks of `lifecycle`. Its readiness depends on nobody else's: without the databroker or the
/// provider it answers with pages that say so.
pub fn run(
    config: watch::Receiver<Arc<Config>>,
    databroker: Transport,
    http: HttpClient,
    lifecycle: &Lifecycle,
) -> Result<(), RunError> {
    let not_ready = lifecycle.not_ready(PART);
    let current = Arc::clone(&config.borrow());
    let address = current.listen.public.ok_or(RunError::NoAddress)?;
    let tls = ListenerTls::new(&current)?;
    let listener = listen("address", address, current.listen.share)?;
    let listener =
        TcpListener::from_std(listener).map_err(|source| RunError::Register { address, source })?;
    if let Some(address) = current.listen.http_redirect {
        let listener = listen("http_redirect_addr", address, current.listen.share)?;
        let (config, serving) = (config.clone(), lifecycle.clone());
        lifecycle.spawn(async move { to_https::serve(listener, config, &serving).await });
    }
    let service = Authenticate::new(current, databroker, http);
    let router = router(Arc::clone(&service));
    let (followed, serving) = (lifecycle.clone(), lifecycle.clone());
    let swapped = tls.clone();
    lifecycle.spawn(async move { follow(service, swapped, config, &followed).await });
    lifecycle.spawn_critical(PART, async move {
        serve::serve(listener, tls, router, &serving).await;
    });
    not_ready.ready();
    Ok(())
}
