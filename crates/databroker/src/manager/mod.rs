//! The identity manager: keeps sessions fresh and ends those that are over.
//!
//! Any number of databrokers may run it; the one that holds the lease works. It follows the
//! session records, refreshes each a little before its tokens run out, asks for user info every
//! ten minutes, and deletes a session when its time is over or when its provider definitely
//! refuses. A provider that is away costs nobody a session.
//!
//! [`schedule`] says when what is due and is pure; [`table`] holds what is due next; [`job`] does
//! it; [`intent`] keeps two managers from using one refresh token; [`lease`] and [`follow`] are
//! the databroker's side.

mod follow;
mod intent;
mod job;
mod lease;
mod metrics;
mod record;
mod schedule;
mod start;
mod table;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use jiff::Timestamp;
use postern_common::crypto::random;
use postern_common::rpc::Transport;
use postern_common::rpc::stubs::databroker::data_broker_service_client::DataBrokerServiceClient;
use postern_common::rpc::token::{ClientToken, TokenKeys};
use postern_identity::Providers;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;

use crate::Databroker;
use follow::Event;
use job::Worker;
use table::Table;

pub use metrics::ManagerMetrics;
pub use schedule::IdTokenExpiry;
pub use start::{ManagerError, start};

pub(crate) type Client = DataBrokerServiceClient<InterceptedService<Transport, ClientToken>>;

/// Where the time comes from; a test's clock or [`Timestamp::now`].
pub type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Refreshes and user info calls under way at once.
const MAX_JOBS: usize = 16;
/// Longest sleep, so that a clock that was set is noticed.
const MAX_SLEEP: Duration = Duration::from_secs(30);
/// How long work under way may take to end after a stop: a refresh token may be spent already,
/// and its successor not yet stored.
const GRACE: Duration = Duration::from_secs(20);

/// What the manager works with.
pub struct Manager {
    pub databroker: Databroker,
    pub keys: TokenKeys,
    pub providers: watch::Receiver<Arc<Providers>>,
    /// `refresh_session_at_id_token_expiration`
    pub id_token_expiry: IdTokenExpiry,
    pub now: Now,
    pub metrics: ManagerMetrics,
}

impl Manager {
    /// Works whenever this process holds the lease; returns after `stop`.
    pub async fn run(self, stop: CancellationToken) {
        self.metrics.active(false);
        let transport = Transport::local(self.databroker.routes(self.keys.clone()));
        let client = DataBrokerServiceClient::with_interceptor(transport, self.keys.for_client());
        let worker = Arc::new(Worker {
            client: client.clone(),
            databroker: self.databroker,
            providers: self.providers,
            now: Arc::clone(&self.now),
        });
        let rule = self.id_token_expiry;
        lease::while_held(client.clone(), stop, move |held: CancellationToken| {
            let (client, worker) = (client.clone(), Arc::clone(&worker));
            let metrics = self.metrics.clone();
            async move {
                tracing::info!("this databroker runs the identity manager now");
                metrics.active(true);
                work(&client, &worker, rule, &metrics, held).await;
                metrics.active(false);
            }
            .boxed()
        })
        .await;
    }
}

/// Works while `held` is not cancelled.
async fn work(
    client: &Client,
    worker: &Arc<Worker>,
    rule: IdTokenExpiry,
    metrics: &ManagerMetrics,
    held: CancellationToken,
) {
    let (events, mut changes) = mpsc::channel(256);
    let mut follower = tokio::spawn(follow::sessions(client.clone(), events));
    let mut table = Table::new(rule);
    let mut jobs = JoinSet::new();
    loop {
        while jobs.len() < MAX_JOBS
            && let Some((id, task)) = table.take_due((worker.now)())
        {
            let worker = Arc::clone(worker);
            jobs.spawn(async move {
                let outcome = worker.run(&id, task).await;
                (id, task, outcome)
            });
        }
        metrics.sessions(table.len());
        let full = jobs.len() >= MAX_JOBS;
        let pause = table
            .pause((worker.now)())
            .unwrap_or(MAX_SLEEP)
            .min(MAX_SLEEP);
        tokio::select! {
            biased;
            () = held.cancelled() => break,
            Some(done) = jobs.join_next() => match done {
                Ok((id, task, outcome)) => {
                    metrics.finished(task, &outcome, (worker.now)());
                    table.finished(&id, task, outcome, (worker.now)(), random_fraction());
                }
                Err(error) => {
                    tracing::error!(%error, "work on a session broke off; it is tried again");
                    table.forget_running((worker.now)());
                }
            },
            Some(event) = changes.recv() => match event {
                Event::All(sessions) => table.replace(sessions, (worker.now)()),
                Event::Changed(id, facts) => table.put(&id, facts, (worker.now)()),
                Event::Deleted(id) => table.remove(&id),
            },
            // It only ends by a panic.
            _ = &mut follower => {
                tracing::error!("following the sessions broke off; starting again");
                break;
            }
            () = tokio::time::sleep(pause), if !full => {}
        }
    }
    follower.abort();
    let finish = async { while jobs.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, finish).await.is_err() {
        tracing::warn!(
            jobs = jobs.len(),
            "refreshes were still under way and are given up"
        );
    }
}

/// A random number from 0 to 1.
fn random_fraction() -> f64 {
    f64::from(u16::from_be_bytes(random::bytes())) / f64::from(u16::MAX)
}
