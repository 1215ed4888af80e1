//! A copy of the databroker's records that follows it.
//!
//! One stream for every type instead of one for each: changes then arrive in the order in which
//! they were made, so that whoever sees a session also sees the user it was written after, and one
//! version and one age tell how current the copy is. A stream of one type learns nothing while
//! others change, and has to start all over once its type was quiet for an hour.

pub mod data;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use postern_common::authz::Revisit;
use postern_common::crypto::handle::Handle;
use postern_common::lifecycle::NotReady;
use postern_common::rpc::Transport;
use postern_common::rpc::stubs::databroker::data_broker_service_client::DataBrokerServiceClient;
use postern_common::rpc::stubs::databroker::{
    GetRequest, QueryRequest, Record, SyncLatestRequest, SyncRequest, sync_latest_response,
    sync_response,
};
use postern_common::rpc::token::{ClientToken, TokenKeys};
use postern_common::telemetry::RateLimit;
use tokio::sync::{Semaphore, broadcast, watch};
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Response, Status};

use crate::metrics::Metrics;
use crate::records::KeepTokens;
use data::{Change, Data};

/// A client whose calls carry a token.
pub type Client = DataBrokerServiceClient<InterceptedService<Transport, ClientToken>>;

/// Asks a Postern databroker to say every second that its feed is current.
const HEARTBEAT_METADATA: &str = "x-postern-heartbeat";

/// A stream that beats is dead when it has been silent for so long.
const SILENCE: Duration = Duration::from_secs(10);

/// The first copy ends when nothing comes for so long.
const FILL_SILENCE: Duration = Duration::from_secs(30);

/// Waiting between attempts doubles up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

/// Largest message of the databroker.
const LARGEST_MESSAGE: usize = 16 * 1024 * 1024;

/// Look-ups of single records at a time; more wait for their turn within their deadline.
const LOOKUPS: usize = 256;

/// Receivers of revisits that are further behind ask about everything.
const REVISITS: usize = 4096;

/// The copy, and the way to the original.
#[derive(Debug)]
pub struct Replica {
    data: ArcSwapOption<Data>,
    /// Unix milliseconds of when the databroker last said that this copy has everything; 0: never.
    current_at: AtomicI64,
    revisits: broadcast::Sender<Revisit>,
    client: Client,
    lookups: Semaphore,
    /// Records that the databroker said do not exist, for a few seconds.
    absent: moka::sync::Cache<Wanted, ()>,
    /// Records that decisions rest on only on some routes, and that are not in the copy.
    recent: moka::sync::Cache<Recent, Option<Arc<Record>>>,
    /// The types of these records.
    looked_up: ArcSwap<BTreeSet<String>>,
    /// Counts what makes `recent` wrong. A look-up that was under way then is remembered under the
    /// count it began with, where nobody finds it.
    changes: AtomicU64,
    complaints: RateLimit,
    metrics: Metrics,
}

/// Where a record is remembered that is not in the copy: count of changes, type, id.
type Recent = (u64, String, String);

/// How long an answer of the databroker about a single record counts, should the feed that
/// corrects it be late.
const REMEMBER: Duration = Duration::from_secs(5);
const REMEMBERED: u64 = 100_000;

/// A single record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    pub kind: &'static str,
    pub id: String,
    /// Data set and version that the record is said to have at least; zero when nothing is said.
    /// That an older one did not exist says nothing.
    pub server_version: u64,
    pub record_version: u64,
}

impl Wanted {
    pub fn new(kind: &'static str, id: &str) -> Self {
        Self {
            kind,
            id: id.to_owned(),
            server_version: 0,
            record_version: 0,
        }
    }

    /// What a handle names.
    pub fn by_handle(kind: &'static str, handle: &Handle) -> Self {
        Self {
            server_version: handle.server_version,
            record_version: handle.record_version,
            ..Self::new(kind, &handle.id)
        }
    }
}

/// A record could not be read just now. That says nothing about whether it exists.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LookupError {
    #[error("the databroker did not answer within {0:?}")]
    Deadline(Duration),
    #[error("the databroker answered {code:?}: {message}")]
    Status { code: Code, message: String },
    #[error("the databroker sent a record that can't be read: {0}")]
    Record(String),
    #[error("the bearer token could not be verified: {0}")]
    Provider(String),
    #[error("not supported: {0}")]
    NotSupported(&'static str),
}

impl Replica {
    pub fn new(databroker: Transport, keys: &TokenKeys, metrics: Metrics) -> Self {
        let (revisits, _) = broadcast::channel(REVISITS);
        Self {
            data: ArcSwapOption::empty(),
            current_at: AtomicI64::new(0),
            revisits,
            client: DataBrokerServiceClient::with_interceptor(databroker, keys.for_client())
                .max_decoding_message_size(LARGEST_MESSAGE),
            lookups: Semaphore::new(LOOKUPS),
            absent: remembering(),
            recent: remembering(),
            looked_up: ArcSwap::default(),
            changes: AtomicU64::new(0),
            complaints: RateLimit::new(Duration::from_secs(10)),
            metrics,
        }
    }

    /// The copy as it is now; `None` before the first one was complete.
    pub fn data(&self) -> Option<Arc<Data>> {
        self.data.load_full()
    }

    /// How old the copy is, as far as the databroker tells. `None` before the first copy, or with
    /// a databroker that tells nothing.
    pub fn age(&self, now: Timestamp) -> Option<Duration> {
        let current_at = self.current_at.load(Ordering::Relaxed);
        let age = now.as_millisecond().saturating_sub(current_at);
        (current_at != 0).then(|| Duration::from_millis(u64::try_from(age).unwrap_or(0)))
    }

    pub fn revisits(&self) -> broadcast::Receiver<Revisit> {
        self.revisits.subscribe()
    }

    /// Which types of records are looked up one by one: their changes, too, make decisions fall.
    pub fn look_up(&self, kinds: BTreeSet<String>) {
        self.looked_up.store(Arc::new(kinds));
        // What was remembered of a type before its changes were watched.
        self.forget_recent();
    }

    fn forget_recent(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    fn recent_key(&self, kind: &str, id: String) -> Recent {
        (self.changes.load(Ordering::Acquire), kind.to_owned(), id)
    }

    /// Tells that decisions no longer stand.
    pub fn announce(&self, revisit: Revisit) {
        // Nobody listening is fine.
        drop(self.revisits.send(revisit));
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Asks the databroker itself for one record. `Ok(None)` only when it says that there is none.
    pub async fn get(
        &self,
        wanted: Wanted,
        within: Duration,
    ) -> Result<Option<Record>, LookupError> {
        if self.absent.contains_key(&wanted) {
            return Ok(None);
        }
        let found = self.ask(wanted.kind, &wanted.id, within).await?;
        if found.is_none() {
            self.absent.insert(wanted, ());
        }
        Ok(found)
    }

    /// A record that is not part of the copy, at most a few seconds old.
    pub async fn recent(
        &self,
        kind: &str,
        id: &str,
        within: Duration,
    ) -> Result<Option<Arc<Record>>, LookupError> {
        let key = self.recent_key(kind, id.to_owned());
        if let Some(known) = self.recent.get(&key) {
            return Ok(known);
        }
        let found = self.ask(kind, id, within).await?.map(Arc::new);
        self.recent.insert(key, found.clone());
        Ok(found)
    }

    /// The record whose network holds an address (`$index`), at most a few seconds old.
    pub async fn of_address(
        &self,
        kind: &str,
        address: IpAddr,
        within: Duration,
    ) -> Result<Option<Arc<Record>>, LookupError> {
        // No id is written like this: an address is none of a record.
        let key = self.recent_key(kind, format!("$index:{address}"));
        if let Some(known) = self.recent.get(&key) {
            return Ok(known);
        }
        let value = prost_types::Value {
            kind: Some(prost_types::value::Kind::StringValue(address.to_string())),
        };
        let mut request = Request::new(QueryRequest {
            r#type: kind.to_owned(),
            limit: 1,
            filter: Some(prost_types::Struct {
                fields: [("$index".to_owned(), value)].into(),
            }),
            ..QueryRequest::default()
        });
        request.set_timeout(within);
        let mut client = self.client.clone();
        let found = self.within(within, client.query(request)).await?;
        let found = found
            .and_then(|response| response.records.into_iter().next())
            .map(Arc::new);
        self.recent.insert(key, found.clone());
        Ok(found)
    }

    async fn ask(
        &self,
        kind: &str,
        id: &str,
        within: Duration,
    ) -> Result<Option<Record>, LookupError> {
        let mut request = Request::new(GetRequest {
            r#type: kind.to_owned(),
            id: id.to_owned(),
        });
        request.set_timeout(within);
        let mut client = self.client.clone();
        let found = self.within(within, client.get(request)).await?;
        Ok(found
            .and_then(|response| response.record)
            .filter(|record| record.deleted_at.is_none()))
    }

    /// One look-up, with its turn and its deadline. `None` when the databroker finds nothing.
    async fn within<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<Option<T>, LookupError> {
        self.metrics.lookups.inc();
        let asked = async {
            // The semaphore is never closed.
            let _permit = self.lookups.acquire().await;
            call.await
        };
        match tokio::time::timeout(limit, asked).await {
            Err(_) => Err(LookupError::Deadline(limit)),
            Ok(Err(status)) if status.code() == Code::NotFound => Ok(None),
            Ok(Err(status)) => Err(LookupError::Status {
                code: status.code(),
                message: status.message().to_owned(),
            }),
            Ok(Ok(response)) => Ok(Some(response.into_inner())),
        }
    }

    /// Follows the databroker for ever: copy, follow, and again from the start when it has
    /// forgotten where we are. Every status is tried again. `ready` is dropped with the first copy.
    pub async fn follow(&self, keep_tokens: watch::Receiver<KeepTokens>, ready: NotReady) {
        let mut keep_tokens = keep_tokens;
        let mut ready = Some(ready);
        let mut wait = Backoff::default();
        loop {
            let keep = *keep_tokens.borrow_and_update();
            self.metrics.sync_latest.inc();
            let data = match self.copy(keep).await {
                Ok(data) => Arc::new(data),
                Err(status) => {
                    self.metrics.sync_latest_failures.inc();
                    if let Some(not_ready) = &ready {
                        not_ready.because(&format!(
                            "the databroker's records could not be copied yet: {}",
                            status.message()
                        ));
                    }
                    self.complain("copy of all records", &status);
                    wait.pause().await;
                    continue;
                }
            };
            wait = Backoff::default();
            tracing::info!(
                server_version = data.server_version,
                record_version = data.version(),
                sessions = data.sessions.len(),
                users = data.users.len(),
                "copied the databroker's records"
            );
            self.install(Arc::clone(&data));
            drop(ready.take());
            self.follow_copy(&data, &mut keep_tokens).await;
        }
    }

    /// Takes over a complete copy as a whole.
    pub fn install(&self, data: Arc<Data>) {
        let before = self.data.swap(Some(data));
        self.forget_recent();
        self.current_at
            .store(Timestamp::now().as_millisecond(), Ordering::Relaxed);
        if before.is_some() {
            // What changed between the two copies is not known in detail.
            self.announce(Revisit::Everything);
        }
    }

    /// Keeps `data` current until it has to be replaced.
    async fn follow_copy(&self, data: &Arc<Data>, keep_tokens: &mut watch::Receiver<KeepTokens>) {
        let mut wait = Backoff::default();
        loop {
            let before = data.version();
            let status = tokio::select! {
                status = self.sync(data) => status,
                () = wants_tokens(keep_tokens, data.keep_tokens) => return,
            };
            if status.code() == Code::Aborted {
                tracing::info!(
                    reason = status.message(),
                    "the databroker has other data or a gap; copying all records again"
                );
                wait.pause().await;
                return;
            }
            self.metrics.sync_failures.inc();
            self.complain("stream of changes", &status);
            if data.version() != before {
                wait = Backoff::default();
            }
            wait.pause().await;
        }
    }

    /// A new copy of everything.
    async fn copy(&self, keep_tokens: KeepTokens) -> Result<Data, Status> {
        let mut client = self.client.clone();
        let mut data = Data::new(keep_tokens);
        let request = Request::new(SyncLatestRequest::default());
        let mut stream = in_time(FILL_SILENCE, client.sync_latest(request))
            .await?
            .into_inner();
        loop {
            let Some(message) = in_time(FILL_SILENCE, stream.message()).await? else {
                return Err(Status::unavailable("the copy ended before it was complete"));
            };
            match message.response {
                Some(sync_latest_response::Response::Record(record)) => {
                    self.apply(&data, &record);
                }
                Some(sync_latest_response::Response::Versions(versions)) => {
                    data.server_version = versions.server_version;
                    data.restart_at(versions.latest_record_version);
                    return Ok(data);
                }
                Some(sync_latest_response::Response::Options(_)) | None => {}
            }
        }
    }

    /// Takes over changes until the stream ends; returns why it did.
    async fn sync(&self, data: &Data) -> Status {
        match self.sync_until_error(data).await {
            Ok(()) => Status::unavailable("the databroker ended the stream"),
            Err(status) => status,
        }
    }

    async fn sync_until_error(&self, data: &Data) -> Result<(), Status> {
        self.metrics.sync.inc();
        let mut request = Request::new(SyncRequest {
            server_version: data.server_version,
            record_version: data.version(),
            r#type: String::new(),
            wait: None,
        });
        request.metadata_mut().insert(
            HEARTBEAT_METADATA,
            tonic::metadata::MetadataValue::from_static("1"),
        );
        let mut client = self.client.clone();
        let mut stream = in_time(FILL_SILENCE, client.sync(request))
            .await?
            .into_inner();
        let mut beats = false;
        loop {
            let message = if beats {
                in_time(SILENCE, stream.message()).await?
            } else {
                stream.message().await?
            };
            let Some(message) = message else {
                return Ok(());
            };
            match message.response {
                Some(sync_response::Response::Record(record)) => {
                    self.changed(data, &record);
                }
                Some(sync_response::Response::Heartbeat(time)) => {
                    beats = true;
                    let millis =
                        time.seconds.saturating_mul(1000) + i64::from(time.nanos) / 1_000_000;
                    self.current_at.fetch_max(millis, Ordering::Relaxed);
                }
                Some(sync_response::Response::Options(_)) | None => {}
            }
        }
    }

    /// Takes over a change, and tells which decisions it may concern.
    pub fn changed(&self, data: &Data, record: &Record) {
        let change = self.apply(data, record);
        if self.looked_up.load().contains(&record.r#type) {
            self.forget_recent();
            // By user or by network: who rests on it can't be told from the record.
            self.announce(Revisit::Everything);
        } else if let Change::Revisit(revisit) = change {
            self.announce(revisit);
        }
    }

    fn apply(&self, data: &Data, record: &Record) -> Change {
        self.metrics
            .record_version
            .set(i64::try_from(record.version).unwrap_or(i64::MAX));
        match data.apply(record) {
            Ok(change) => change,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "passed over a record"
                );
                // Whoever rests on it must be asked about again; it can't be told who that is.
                Change::Revisit(Revisit::Everything)
            }
        }
    }

    /// One line a kind of trouble in ten seconds.
    fn complain(&self, what: &'static str, status: &Status) {
        if let Some(held_back) = self.complaints.pass(what, Instant::now()) {
            tracing::warn!(
                code = ?status.code(),
                reason = status.message(),
                held_back,
                "the databroker's {what} broke; trying again"
            );
        }
    }
}

fn remembering<K, V>() -> moka::sync::Cache<K, V>
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    moka::sync::Cache::builder()
        .max_capacity(REMEMBERED)
        .time_to_live(REMEMBER)
        .build()
}

/// Returns when tokens are wanted, or no longer, which needs a new copy.
async fn wants_tokens(wanted: &mut watch::Receiver<KeepTokens>, have: KeepTokens) {
    if wanted.wait_for(|wanted| *wanted != have).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn in_time<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("silent for {limit:?}"))))
}

/// Growing pauses with jitter, so that many followers of one databroker don't come back as one.
#[derive(Debug)]
struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            next: SHORTEST_WAIT,
        }
    }
}

impl Backoff {
    async fn pause(&mut self) {
        let [random] = postern_common::crypto::random::bytes();
        let jitter = 0.5 + f64::from(random) / 255.0;
        tokio::time::sleep(self.next.mul_f64(jitter)).await;
        self.next = (self.next * 2).min(LONGEST_WAIT);
    }
}
