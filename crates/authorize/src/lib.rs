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
//! The policy decision point: may this request pass, and what does its upstream learn?
//!
//! A request brings a credential; the credential names a session; the session, its user and the
//! request itself are the facts on which the route's policy decides ([`decide`], a pure function).
//! Facts come from a copy of the databroker's records that follows it ([`replica`]), or, where the
//! copy is behind, from the databroker itself. What can't be known just now is an error and never
//! "signed out".
//!
//! [`Authorize`] is the service: [`Local`] answers in one process, [`Authorize::routes`] serves the
//! same answers to proxies over one long stream each, and to Envoy as `ext_authz`.

mod answer;
mod assertion;
mod bearer;
mod certificate;
mod contacts;
mod credential;
mod decide;
mod ext_authz;
mod facts;
mod gather;
mod handles;
mod headers;
mod local;
mod log;
mod metrics;
mod records;
mod replica;
mod reuse;
mod server;
mod sign_in;
mod snapshot;
mod status;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use postern_common::config::{Config, ExtAuthzCallers};
use postern_common::lifecycle::{Lifecycle, NotReady};
use postern_common::rpc::Transport;
use postern_common::rpc::stubs::authorize::decisions_server::DecisionsServer;
use postern_common::rpc::stubs::ext_authz::authorization_server::AuthorizationServer;
use postern_common::rpc::token::{self, TokenKeys};
use postern_identity::HttpClient;
use tokio::sync::watch;
use tonic::service::Routes;

pub use ext_authz::request::{About, QuestionError, read as read_ext_authz};
pub use local::Local;
pub use records::{KeepTokens, Session};

use contacts::Contacts;
use ext_authz::ExtAuthz;
use ext_authz::bounded::{Bounded, UNDER_WAY};
use metrics::Metrics;
use replica::Replica;
use server::Server;

/// Largest message of questions, in bytes: a batch of them with all their headers.
const LARGEST_QUESTIONS: usize = 16 * 1024 * 1024;

/// Name of this part for readiness and health.
pub const PART: &str = "authorize";

/// The service. Build it, hand out [`Authorize::local`] or [`Authorize::routes`], then run it.
#[derive(Debug)]
pub struct Authorize {
    config: watch::Receiver<Arc<Config>>,
    local: Arc<Local>,
    keys: TokenKeys,
    metrics: Metrics,
    lifecycle: Lifecycle,
    not_ready: NotReady,
}

impl Authorize {
    /// Needs a tokio runtime. The process is not ready until the first copy of the databroker's
    /// records is complete; after that its readiness depends on nobody else's.
    ///
    /// `http` reaches identity providers, to verify bearer tokens.
    pub fn new(
        config: watch::Receiver<Arc<Config>>,
        databroker: Transport,
        http: HttpClient,
        metrics: &postern_common::telemetry::metrics::Metrics,
        lifecycle: &Lifecycle,
    ) -> Self {
        let current = Arc::clone(&config.borrow());
        let metrics = Metrics::new(metrics);
        let keys = TokenKeys::new(current.secrets.shared.clone());
        let replica = Arc::new(Replica::new(databroker, &keys, metrics.clone()));
        Self {
            local: Arc::new(Local::new(&current, replica, http, metrics.clone())),
            not_ready: lifecycle.not_ready(PART),
            lifecycle: lifecycle.clone(),
            config,
            keys,
            metrics,
        }
    }

    /// Decides by function calls.
    pub fn local(&self) -> Arc<Local> {
        Arc::clone(&self.local)
    }

    /// The same decisions for proxies and Envoys elsewhere. Every call needs a token; Envoy's may
    /// do without when the configuration says so, which counts from the next start.
    pub fn routes(&self) -> Routes {
        let contacts = Contacts::new(self.metrics.configurations.clone());
        let decisions = Server::new(self.local(), contacts);
        let routes = Routes::new(
            DecisionsServer::new(decisions).max_decoding_message_size(LARGEST_QUESTIONS),
        )
        .add_service(Bounded::new(
            AuthorizationServer::new(ExtAuthz::new(self.local())),
            UNDER_WAY,
            self.metrics.ext_authz_shed.clone(),
        ));
        let open: &[&str] = match self.config.borrow().grpc.ext_authz {
            ExtAuthzCallers::OwnServicesOnly => &[],
            ExtAuthzCallers::Anyone => &[ext_authz::CHECK],
        };
        token::require(routes, self.keys.clone(), open)
    }

    /// Follows the databroker and the configuration until the process stops.
    pub async fn run(self) {
        let Self {
            config,
            local,
            keys,
            metrics,
            lifecycle,
            not_ready,
        } = self;
        let (tokens, wanted) = watch::channel(local.snapshot().keep_tokens);
        let replica = Arc::clone(local.replica());
        tokio::select! {
            () = lifecycle.stopping().cancelled_owned() => {}
            () = replica.follow(wanted, not_ready) => {}
            () = follow_config(config, &local, &keys, &tokens) => {}
            () = status::tell(&replica, &metrics, &lifecycle) => {}
        }
    }
}

/// Takes over every configuration that is loaded.
async fn follow_config(
    mut config: watch::Receiver<Arc<Config>>,
    local: &Arc<Local>,
    keys: &TokenKeys,
    tokens: &watch::Sender<KeepTokens>,
) {
    while config.changed().await.is_ok() {
        let new = Arc::clone(&config.borrow_and_update());
        keys.replace(new.secrets.shared.clone());
        // With many routes it takes a while, and decisions run on these threads.
        let local = Arc::clone(local);
        let Ok(snapshot) = tokio::task::spawn_blocking(move || local.load(&new)).await else {
            continue;
        };
        tokens.send_if_modified(|wanted| {
            let before = std::mem::replace(wanted, snapshot.keep_tokens);
            before != *wanted
        });
    }
    // Whoever loads configurations has gone: the last one stays.
    std::future::pending::<()>().await;
}
