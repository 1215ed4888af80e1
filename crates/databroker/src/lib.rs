//! databroker: keeps records (sessions, users and what else the services share) and tells every follower each
//! change, in order, exactly as it was committed.
//!
//! Start reading at [`feed`]: from a commit to every stream.
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

pub mod feed;
pub mod lease;
pub mod manager;
pub mod options;
pub mod patch;
pub mod payload;
pub mod query;
mod registry;
pub mod server;
mod start;
pub mod storage;
pub mod tidy;
pub mod writer;

pub use start::{StartError, check, examine, start};

use std::error::Error;
use std::sync::Arc;

use postern_common::rpc::stubs::databroker::Record;
use postern_common::rpc::stubs::databroker::checkpoint_service_server::CheckpointServiceServer;
use postern_common::rpc::stubs::databroker::data_broker_service_server::DataBrokerServiceServer;
use postern_common::rpc::stubs::registry::registry_server::RegistryServer;
use postern_common::rpc::token::{self, TokenKeys};
use postern_common::telemetry::trace;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::feed::{Feed, State};
use crate::registry::Registry;
use crate::server::Service;
use crate::server::checkpoint::Checkpoints;
use crate::storage::{Operation, Storage};
use crate::tidy::Housekeeping;
use crate::writer::{Receipt, WriteError, Writer};

/// Largest request, in bytes: above what may be written at once, so that it is us who say what is too much.
const MAX_MESSAGE: usize = 2 * writer::MAX_BATCH;

/// A running databroker. It ends when the token it was started with is cancelled.
#[derive(Clone)]
pub struct Databroker {
    service: Service,
    registry: Registry,
    tasks: TaskTracker,
}

impl Databroker {
    /// Starts the tasks that write, follow the change log and keep house. Does not wait for the storage.
    pub fn start(
        storage: Arc<dyn Storage>,
        housekeeping: Housekeeping,
        stop: CancellationToken,
    ) -> Self {
        let tasks = TaskTracker::new();
        let (feed, following) = Feed::new(Arc::clone(&storage), stop.clone());
        let (writer, writing) = Writer::new(Arc::clone(&storage), feed.clone(), stop.clone());
        tasks.spawn(writing);
        tasks.spawn(following);
        tasks.spawn(tidy::run(Arc::clone(&storage), housekeeping, stop.clone()));
        tasks.close();
        Self {
            registry: Registry::new(stop.clone()),
            service: Service {
                storage,
                writer,
                feed,
                copies: Arc::new(Semaphore::new(server::stream::COPIES)),
                unread: Arc::default(),
                stop,
            },
            tasks,
        }
    }

    /// The gRPC services; every call needs a token.
    pub fn routes(&self, keys: TokenKeys) -> Routes {
        let service = DataBrokerServiceServer::new(self.service.clone())
            .max_decoding_message_size(MAX_MESSAGE);
        let registry = RegistryServer::new(self.registry.clone());
        let routes = Routes::new(service)
            .add_service(registry)
            .add_service(CheckpointServiceServer::new(Checkpoints));
        token::require(trace::serve(routes), keys, &[])
    }

    /// Whether the storage answers, since when not, and why.
    pub fn state(&self) -> watch::Receiver<State> {
        self.service.feed.state()
    }

    /// Writes `record` if its present version is still `version` (`None`: if there is no such record). For work that
    /// must not be done twice, such as using a refresh token; not on the wire.
    pub async fn put_if(
        &self,
        record: Record,
        version: Option<u64>,
    ) -> Result<Receipt, WriteError> {
        self.service
            .writer
            .write(Operation::PutIf { record, version })
            .await
    }

    /// Returns when the tasks have ended after a stop.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}

/// An error with its causes, in one line.
pub(crate) fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
