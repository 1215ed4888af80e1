//! Where records live: one trait, and what every implementation of it promises.
//!
//! The promises are written down as tests in `tests/storage/contract.rs`; each storage passes all of them. The one
//! that everything else rests on: **versions appear in order**. Whoever has read version N will never later see a
//! version below N appear, however many write at once.

pub mod index;
pub mod local;
pub mod postgres;
pub mod sealed;

use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use postern_common::rpc::WriteId;
use postern_common::rpc::stubs::databroker::{Options, Record};
use tokio::sync::Notify;

pub use index::Lookup;

/// What finds a record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordKey {
    /// The record's `type`, normally the type URL of its payload.
    pub kind: String,
    pub id: String,
}

impl RecordKey {
    pub fn of(record: &Record) -> Self {
        Self {
            kind: record.r#type.clone(),
            id: record.id.clone(),
        }
    }
}

/// Where the data set stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Names the data set and, in Postgres, its timeline: another one means that versions seen before count for
    /// nothing. Never 0.
    pub server_version: u64,
    /// Version of the newest change; 0 when there never was one.
    pub latest: u64,
    /// Version of the oldest change that is still in the log; 0 when the log is empty.
    pub earliest: u64,
}

/// A piece of the change log.
#[derive(Debug, Clone, PartialEq)]
pub struct Changes {
    pub server_version: u64,
    /// Version of the newest change of any kind at the time of reading.
    pub latest: u64,
    /// Highest version of the wanted kind that has already left the log. A cursor below it has a gap.
    pub forgotten: u64,
    /// Ascending; deletions have `deleted_at`.
    pub records: Vec<Record>,
}

/// Where a page of records begins, and in which order they come. Kinds and ids are ordered byte by byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageStart {
    /// By kind, then version. About the order in which they lie on a disk; a record that is written between two
    /// pages comes again, or for the first time, where its new version stands.
    After { kind: String, version: u64 },
    /// By kind, then id; after this many records.
    Offset(u64),
}

/// One request to write; it happens completely or not at all.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// Writes records; those with `deleted_at` are deleted instead.
    Put(Vec<Record>),
    /// Copies the fields that `mask` names into records that exist; others are left out.
    Patch {
        records: Vec<Record>,
        mask: Vec<String>,
    },
    /// Writes one record if its present version is still `version` (`None`: if there is no such record).
    PutIf {
        record: Record,
        version: Option<u64>,
    },
    /// Does another operation, unless that was done before under this id. Then the records are
    /// those of its own that there are now. Ids are remembered for longer than the token lives that a
    /// request has with it.
    Once {
        id: WriteId,
        operation: Box<Operation>,
    },
}

impl Operation {
    /// What it writes, or would.
    pub fn records(&self) -> &[Record] {
        match self {
            Self::Put(records) | Self::Patch { records, .. } => records,
            Self::PutIf { record, .. } => std::slice::from_ref(record),
            Self::Once { operation, .. } => operation.records(),
        }
    }

    /// Its id, if it has one.
    fn write_id(&self) -> Option<WriteId> {
        match self {
            Self::Once { id, .. } => Some(*id),
            Self::Put(_) | Self::Patch { .. } | Self::PutIf { .. } => None,
        }
    }

    /// Without an id.
    fn plain(self) -> Self {
        match self {
            Self::Once { operation, .. } => operation.plain(),
            plain => plain,
        }
    }
}

/// How long ids of writes are remembered. A token of ours lives for minutes.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// What came of a batch: the server version, and for each operation its records as they were written.
#[derive(Debug)]
pub struct Written {
    pub server_version: u64,
    pub results: Vec<Result<Vec<Record>, Refused>>,
}

/// Why one operation was not done; the others of its batch are not touched by it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Patch(#[from] crate::patch::PatchError),
    #[error("the record was changed in between: its version is {found:?}, not {expected:?}")]
    Conflict {
        expected: Option<u64>,
        found: Option<u64>,
    },
    #[error("the database does not take this: {reason}")]
    Database { reason: String },
}

impl Refused {
    /// The check of [`Operation::PutIf`].
    fn unless_same(expected: Option<u64>, found: Option<u64>) -> Result<(), Self> {
        if expected == found {
            Ok(())
        } else {
            Err(Self::Conflict { expected, found })
        }
    }
}

/// What a round of housekeeping did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tidied {
    /// Entries that left the change log.
    pub forgotten: u64,
    /// Records deleted because their time to live was over.
    pub expired: u64,
    /// Records sealed anew under the first key.
    pub resealed: u64,
}

/// Old and new server version of a data set that was cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cleared {
    pub old: u64,
    pub new: u64,
}

/// The storage could not do what was asked; nothing is known about the records. Never a reason to think that a
/// record does not exist.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("the storage is not ready: {reason}")]
    NotReady { reason: String },
    #[error("the storage did not answer within {0:?}")]
    Deadline(Duration),
    /// Whether it did what it was asked for, nobody knows.
    #[error("the database server was given up while it was being asked")]
    GivenUp,
    #[error("the record file failed")]
    File(#[source] Box<redb::Error>),
    #[error("Postgres failed")]
    Postgres(#[source] Box<tokio_postgres::Error>),
    #[error(transparent)]
    Seal(#[from] sealed::SealError),
    #[error("what is stored under {what} cannot be read")]
    Damaged { what: String },
    #[error("the storage task ended in the middle of its work")]
    Interrupted,
}

/// A place for records, leases and options. Every method may be called from many tasks at once.
pub trait Storage: Send + Sync + 'static {
    fn head(&self) -> BoxFuture<'_, Result<Head, StorageError>>;

    fn get<'a>(&'a self, key: &'a RecordKey)
    -> BoxFuture<'a, Result<Option<Record>, StorageError>>;

    /// Records of one kind, or of all.
    fn page(
        &self,
        kind: Option<String>,
        start: PageStart,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Record>, StorageError>>;

    fn count(&self, kind: Option<String>) -> BoxFuture<'_, Result<u64, StorageError>>;

    /// Records that at least one of `lookups` finds, ordered, at most `limit`.
    fn find(
        &self,
        kind: String,
        lookups: Vec<Lookup>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Record>, StorageError>>;

    /// Kinds that have records, sorted.
    fn kinds(&self) -> BoxFuture<'_, Result<Vec<String>, StorageError>>;

    /// Changes after a version.
    fn changes(
        &self,
        kind: Option<String>,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'_, Result<Changes, StorageError>>;

    /// Does everything in one transaction. Capacity is enforced before it ends.
    fn write(&self, batch: Vec<Operation>) -> BoxFuture<'_, Result<Written, StorageError>>;

    /// Options that are set, ordered by kind.
    fn options(&self) -> BoxFuture<'_, Result<Vec<(String, Options)>, StorageError>>;

    /// Replaces the options of a kind; empty ones are removed.
    fn set_options(
        &self,
        kind: String,
        options: Options,
    ) -> BoxFuture<'_, Result<(), StorageError>>;

    /// Deletes records, changes and options, and begins a new data set. Leases stay.
    fn clear(&self) -> BoxFuture<'_, Result<Cleared, StorageError>>;

    /// Takes or prolongs a lease: true if it is free, over, or already `holder`'s.
    fn lease<'a>(
        &'a self,
        name: &'a str,
        holder: &'a str,
        duration: Duration,
    ) -> BoxFuture<'a, Result<bool, StorageError>>;

    /// Gives a lease back, if `holder` has it.
    fn release<'a>(
        &'a self,
        name: &'a str,
        holder: &'a str,
    ) -> BoxFuture<'a, Result<(), StorageError>>;

    /// Forgets changes older than `retention`, deletes records past their time to live, reseals. Does a bounded
    /// amount of work; there is more when something was done.
    fn tidy(&self, retention: Duration) -> BoxFuture<'_, Result<Tidied, StorageError>>;

    /// Woken when something may have been committed, here or elsewhere.
    fn changed(&self) -> &Notify;
}

/// The other form of a time.
pub(crate) fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}

/// A length of time that a client sent, if it is one: not negative, and in the form that protobuf
/// asks for. prost's own conversion overflows far out of that.
pub(crate) fn length(duration: &prost_types::Duration) -> Option<Duration> {
    let seconds = u64::try_from(duration.seconds).ok()?;
    let nanos = u32::try_from(duration.nanos).ok()?;
    (nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos))
}

/// The options that say nothing.
pub(crate) fn is_empty(options: &Options) -> bool {
    options.capacity.is_none() && options.indexable_fields.is_empty() && options.ttl.is_none()
}
