//! The real databroker on memory storage, behind a switch that makes it fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use futures::StreamExt as _;
use postern_common::rpc::stubs::databroker::data_broker_service_client::DataBrokerServiceClient;
use postern_common::rpc::stubs::databroker::*;
use postern_common::rpc::stubs::{session::Session, user::User};
use postern_common::rpc::token::TokenKeys;
use postern_common::rpc::transport::Transport;
use postern_databroker::storage::local::Local;
use postern_databroker::tidy::Housekeeping;
use prost::Message;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use tonic::service::Routes;

use crate::records::Payload;

pub(super) struct Databroker {
    running: postern_databroker::Databroker,
    /// So many calls more fail.
    down: Arc<AtomicUsize>,
    /// Calls are done, and every second answer is lost.
    losing: Arc<AtomicBool>,
    keys: TokenKeys,
    _stop: DropGuard,
}

impl Databroker {
    pub(super) fn start(keys: TokenKeys) -> Self {
        let stop = CancellationToken::new();
        let storage = Arc::new(Local::in_memory().unwrap());
        let housekeeping = Housekeeping::default();
        Self {
            running: postern_databroker::Databroker::start(storage, housekeeping, stop.clone()),
            down: Arc::default(),
            losing: Arc::default(),
            keys,
            _stop: stop.drop_guard(),
        }
    }

    pub(super) fn transport(&self) -> Transport {
        let down = Arc::clone(&self.down);
        let losing = Arc::clone(&self.losing);
        let calls = Arc::new(AtomicUsize::new(0));
        let switch = move |request: Request, next: Next| {
            let down = down
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                .is_ok();
            let lost = losing.load(Ordering::Relaxed)
                && calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
            async move {
                if down {
                    return Status::unavailable("down, as the test wants it").into_http();
                }
                let answer = next.run(request).await;
                if lost {
                    return Status::unknown("cut off, as the test wants it").into_http();
                }
                answer
            }
        };
        let routes = self.running.routes(self.keys.clone()).into_axum_router();
        Transport::local(Routes::from(routes.layer(from_fn(switch))))
    }

    pub(super) fn set_down(&self, down: bool) {
        self.fail_next(if down { usize::MAX } else { 0 });
    }

    pub(super) fn fail_next(&self, calls: usize) {
        self.down.store(calls, Ordering::Relaxed);
    }

    pub(super) fn lose_answers(&self, losing: bool) {
        self.losing.store(losing, Ordering::Relaxed);
    }

    pub(super) async fn sessions(&self) -> Vec<Session> {
        self.all().await
    }

    pub(super) async fn users(&self) -> Vec<User> {
        self.all().await
    }

    /// All records of a type.
    async fn all<P: Payload>(&self) -> Vec<P> {
        let transport = self.transport();
        let mut client =
            DataBrokerServiceClient::with_interceptor(transport, self.keys.for_client());
        let request = SyncLatestRequest {
            r#type: P::TYPE.to_owned(),
        };
        let stream = client.sync_latest(request).await.unwrap().into_inner();
        let messages: Vec<_> = stream.collect().await;
        let records = messages
            .into_iter()
            .filter_map(|message| match message.unwrap().response {
                Some(sync_latest_response::Response::Record(record)) => record.data,
                _ => None,
            });
        records
            .map(|data| P::decode(data.value.as_slice()).unwrap())
            .collect()
    }

    pub(super) async fn put<P: Payload + Message>(&self, payload: &P) {
        let transport = self.transport();
        let mut client =
            DataBrokerServiceClient::with_interceptor(transport, self.keys.for_client());
        let records = vec![crate::records::record(payload)];
        client.put(PutRequest { records }).await.unwrap();
    }
}
