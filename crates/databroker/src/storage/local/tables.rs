//! The tables of the record file and the form of what stands in them.

use postern_common::crypto::random;
use postern_common::rpc::stubs::databroker::{Options, Record};
use prost::Message as _;
use redb::{ReadableTable as _, TableDefinition, WriteTransaction};

use super::file_error;
use crate::storage::sealed::{KeyId, Payloads};
use crate::storage::{Lookup, StorageError, index};

/// Which tables there are and what they mean. Raised when an older program could misread them.
pub(super) const LAYOUT: u64 = 1;

/// Numbers by name: `layout`, and those below.
pub(super) const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("numbers");
/// [`CURRENT_KEY`] → id of the key under which everything is sealed.
pub(super) const KEYS: TableDefinition<&str, &[u8]> = TableDefinition::new("keys");
/// (kind, id) → [`Row`].
pub(super) const RECORDS: TableDefinition<(&str, &str), &[u8]> = TableDefinition::new("records");
/// (kind, version) → id of the record that has this version now: the oldest of a kind come first.
pub(super) const BY_AGE: TableDefinition<(&str, u64), &str> = TableDefinition::new("by_age");
/// version → [`Row`]: the change log.
pub(super) const CHANGES: TableDefinition<u64, &[u8]> = TableDefinition::new("changes");
/// (kind, version) → nothing: the changes of a kind.
pub(super) const CHANGES_OF: TableDefinition<(&str, u64), ()> = TableDefinition::new("changes_of");
/// kind → highest version of it that has left the change log.
pub(super) const FORGOTTEN_OF: TableDefinition<&str, u64> = TableDefinition::new("forgotten_of");
/// (kind, what a lookup looks for, id) → nothing.
pub(super) const INDEX: TableDefinition<(&str, &[u8], &str), ()> = TableDefinition::new("index");
/// kind → `databroker.Options`.
pub(super) const OPTIONS: TableDefinition<&str, &[u8]> = TableDefinition::new("options");
/// name → (holder, end in seconds, nanoseconds).
pub(super) const LEASES: TableDefinition<&str, (&str, i64, i32)> = TableDefinition::new("leases");

const LAYOUT_KEY: &str = "layout";
pub(super) const SERVER_VERSION: &str = "server_version";
/// Version of the newest change.
pub(super) const LATEST: &str = "latest";
/// Highest version of any kind that has left the change log.
pub(super) const FORGOTTEN: &str = "forgotten";
pub(super) const CURRENT_KEY: &str = "current";

/// A record or a change as it is stored.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Row {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(uint64, tag = "3")]
    pub version: u64,
    #[prost(message, optional, tag = "4")]
    pub modified_at: Option<prost_types::Timestamp>,
    #[prost(message, optional, tag = "5")]
    pub deleted_at: Option<prost_types::Timestamp>,
    /// As [`Payloads::encode`] made it.
    #[prost(bytes = "vec", tag = "6")]
    pub payload: Vec<u8>,
    /// Its entries in [`INDEX`].
    #[prost(bytes = "vec", repeated, tag = "7")]
    pub index: Vec<Vec<u8>>,
}

impl Row {
    pub fn read(bytes: &[u8]) -> Result<Self, StorageError> {
        Self::decode(bytes).map_err(|_| StorageError::Damaged {
            what: "a record".to_owned(),
        })
    }

    pub fn into_record(self, payloads: &Payloads) -> Result<Record, StorageError> {
        let data = payloads.decode(&self.kind, &self.id, self.version, &self.payload)?;
        Ok(Record {
            version: self.version,
            r#type: self.kind,
            id: self.id,
            data,
            modified_at: self.modified_at,
            deleted_at: self.deleted_at,
        })
    }
}

/// The entries in [`INDEX`] for what a record can be found by.
pub(super) fn entries(of: &index::Index) -> Vec<Vec<u8>> {
    let network = of.network.map(|network| network_entry(network.trunc()));
    network
        .into_iter()
        .chain(of.fields.iter().map(|hash| field_entry(hash)))
        .collect()
}

/// The entries in [`INDEX`] that a lookup has to look at.
pub(super) fn entries_for(payloads: &Payloads, kind: &str, lookup: &Lookup) -> Vec<Vec<u8>> {
    match lookup {
        Lookup::Id(_) => Vec::new(),
        Lookup::Network(network) => index::containing(*network).map(network_entry).collect(),
        Lookup::Field { path, value } => payloads
            .field_hashes(kind, path, value)
            .iter()
            .map(|hash| field_entry(hash))
            .collect(),
    }
}

fn network_entry(network: ipnet::IpNet) -> Vec<u8> {
    format!("n{network}").into_bytes()
}

fn field_entry(hash: &[u8]) -> Vec<u8> {
    [b"f", hash].concat()
}

/// Opens every table once, so that readers find them, and fills in what a new file lacks.
pub(super) fn prepare(
    transaction: &WriteTransaction,
    current: Option<KeyId>,
) -> Result<(u64, Option<KeyId>), StorageError> {
    transaction.open_table(RECORDS).map_err(file_error)?;
    transaction.open_table(BY_AGE).map_err(file_error)?;
    transaction.open_table(CHANGES).map_err(file_error)?;
    transaction.open_table(CHANGES_OF).map_err(file_error)?;
    transaction.open_table(FORGOTTEN_OF).map_err(file_error)?;
    transaction.open_table(INDEX).map_err(file_error)?;
    transaction.open_table(OPTIONS).map_err(file_error)?;
    transaction.open_table(LEASES).map_err(file_error)?;
    let mut numbers = transaction.open_table(NUMBERS).map_err(file_error)?;
    let mut keys = transaction.open_table(KEYS).map_err(file_error)?;

    let layout = numbers
        .get(LAYOUT_KEY)
        .map_err(file_error)?
        .map(|it| it.value());
    if layout.is_none() {
        numbers.insert(LAYOUT_KEY, LAYOUT).map_err(file_error)?;
        numbers
            .insert(SERVER_VERSION, new_server_version())
            .map_err(file_error)?;
    }
    let key = keys
        .get(CURRENT_KEY)
        .map_err(file_error)?
        .and_then(|it| KeyId::from_bytes(it.value()));
    if let (None, Some(current)) = (key, current) {
        keys.insert(CURRENT_KEY, current.as_bytes().as_slice())
            .map_err(file_error)?;
    }
    Ok((layout.unwrap_or(LAYOUT), key))
}

/// Names a data set. Never 0, which clients take for "none".
pub(super) fn new_server_version() -> u64 {
    u64::from_be_bytes(random::bytes()).max(1)
}

pub(super) fn options(bytes: &[u8]) -> Result<Options, StorageError> {
    Options::decode(bytes).map_err(|_| StorageError::Damaged {
        what: "options".to_owned(),
    })
}
