//! A copy of the databroker's records that follows it.
//!
//! One stream for every type instead of one for each: changes then arrive in the order in which
//! they were made, so that whoever sees a session also sees the user it was written after, and one
//! version and one age tell how current the copy is. A stream of one type learns nothing while
//! others change, and has to start all over once its type was quiet for an hour.

mod age;
pub mod data;
mod follow;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use postern_common::authz::Revisit;
use postern_common::crypto::handle::Handle;
use postern_common::free;
use postern_common::rpc::Transport;
use postern_common::rpc::stubs::databroker::data_broker_service_client::DataBrokerServiceClient;
use postern_common::rpc::stubs::databroker::{GetRequest, QueryRequest, Record};
use postern_common::rpc::token::{ClientToken, TokenKeys};
use postern_common::telemetry::RateLimit;
use tokio::sync::{Semaphore, broadcast};
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Response, Status};

use crate::metrics::Metrics;
use age::CurrentAt;
use data::{Change, Data};

/// A client whose calls carry a token.
pub type Client = DataBrokerServiceClient<InterceptedService<Transport, ClientToken>>;

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
    current_at: CurrentAt,
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
    /// Databrokers behind the one name have different data: "there is none" of one says nothing.
    split: AtomicBool,
    complaints: RateLimit,
    splits: RateLimit,
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
    #[error(
        "a databroker does not have the record, but those behind databroker_service_url keep different data"
    )]
    Split,
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
            current_at: CurrentAt::never(Instant::now()),
            revisits,
            client: DataBrokerServiceClient::with_interceptor(databroker, keys.for_client())
                .max_decoding_message_size(LARGEST_MESSAGE),
            lookups: Semaphore::new(LOOKUPS),
            absent: remembering(),
            recent: remembering(),
            looked_up: ArcSwap::default(),
            changes: AtomicU64::new(0),
            split: AtomicBool::new(false),
            complaints: RateLimit::new(Duration::from_secs(10)),
            splits: RateLimit::new(Duration::from_secs(30)),
            metrics,
        }
    }

    /// The copy as it is now; `None` before the first one was complete.
    pub fn data(&self) -> Option<Arc<Data>> {
        self.data.load_full()
    }

    /// How old the copy is: the time since the databroker had told everything that there was.
    /// `None` before the first copy.
    pub fn age(&self) -> Option<Duration> {
        self.current_at.age(Instant::now())
    }

    /// Whether the databrokers behind the one name have been found to keep different data.
    pub fn is_split(&self) -> bool {
        self.split.load(Ordering::Relaxed)
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
        if found.is_none() {
            self.all_agree()?;
        }
        self.recent.insert(key, found.clone());
        Ok(found)
    }

    /// As [`Self::get`], whatever the databroker said a few seconds ago.
    pub async fn ask(
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

    /// Only then does "there is none" of one databroker hold.
    fn all_agree(&self) -> Result<(), LookupError> {
        if self.is_split() {
            return Err(LookupError::Split);
        }
        Ok(())
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
            Ok(Err(status)) if status.code() == Code::NotFound => {
                self.all_agree()?;
                Ok(None)
            }
            Ok(Err(status)) => Err(LookupError::Status {
                code: status.code(),
                message: status.message().to_owned(),
            }),
            Ok(Ok(response)) => Ok(Some(response.into_inner())),
        }
    }

    /// Takes over a complete copy as a whole, which has everything that there was when it was begun.
    pub fn install(&self, data: Arc<Data>, begun: Instant) {
        let before = self.data.swap(Some(data));
        self.forget_recent();
        self.current_at.set(begun);
        if let Some(before) = before {
            // What changed between the two copies is not known in detail.
            self.announce(Revisit::Everything);
            free::apart(before);
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
