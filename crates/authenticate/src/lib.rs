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
mod session;
mod sign_in;
mod sign_out;
mod snapshot;
#[cfg(test)]
mod tests;
mod verify;

use std::sync::Arc;

use arc_swap::ArcSwap;
use postern_common::config::Config;
use postern_common::rpc::token::TokenKeys;
use postern_common::rpc::transport::Transport;
use postern_identity::HttpClient;

use records::Records;
use snapshot::Snapshot;

pub use routes::router;

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
