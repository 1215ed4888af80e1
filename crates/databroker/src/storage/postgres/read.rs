//! Reading. Each method is one statement, so it sees one moment.

use std::time::SystemTime;

use postern_common::rpc::stubs::databroker::{Options, Record};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};
use uuid::Uuid;

use super::Shared;
use super::pool::Pooled;
use crate::storage::{Changes, Head, Lookup, PageStart, RecordKey, StorageError};

/// Id of the timeline: another one after each promotion of a standby. (`pg_control_checkpoint()` would show the old
/// one for a while.)
macro_rules! timeline {
    () => {
        "substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)"
    };
}
pub(super) use timeline;

const HEAD: &str = concat!(
    "SELECT data_set, ",
    timeline!(),
    ", version, coalesce((SELECT min(c.version) FROM postern.changes c WHERE c.version > h.forgotten), 0)
    FROM postern.head h"
);
const GET: &str = "SELECT type, id, version, modified_at, payload FROM postern.records WHERE type = $1 AND id = $2";
const PAGE_OF_KIND_AFTER: &str =
    "SELECT type, id, version, modified_at, payload FROM postern.records
    WHERE type = $1 AND version > $2 ORDER BY type, version LIMIT $3";
const PAGE_OF_ALL_AFTER: &str =
    "SELECT type, id, version, modified_at, payload FROM postern.records
    WHERE (type, version) > ($1, $2) ORDER BY type, version LIMIT $3";
const PAGE_OF_KIND: &str = "SELECT type, id, version, modified_at, payload FROM postern.records
    WHERE type = $1 ORDER BY type, id OFFSET $2 LIMIT $3";
const PAGE_OF_ALL: &str = "SELECT type, id, version, modified_at, payload FROM postern.records
    ORDER BY type, id OFFSET $1 LIMIT $2";
const COUNT_OF_KIND: &str = "SELECT count(*) FROM postern.records WHERE type = $1";
const COUNT_OF_ALL: &str = "SELECT count(*) FROM postern.records";
const FIND: &str = "WITH found AS (
        SELECT unnest($2::text[]) COLLATE \"C\" AS id
        UNION SELECT r.id FROM unnest($3::text[]) AS n JOIN postern.records r ON r.network >>= n::inet AND r.type = $1
        UNION SELECT id FROM postern.fields WHERE type = $1 AND hash = ANY ($4)
    )
    SELECT r.type, r.id, r.version, r.modified_at, r.payload FROM postern.records r JOIN found USING (id)
    WHERE r.type = $1 ORDER BY r.id LIMIT $5";
/// One step of an index per kind, instead of reading every record.
const KINDS: &str = "WITH RECURSIVE kinds AS (
        SELECT min(type) AS type FROM postern.records
        UNION ALL SELECT (SELECT min(type) FROM postern.records r WHERE r.type > kinds.type) FROM kinds
        WHERE kinds.type IS NOT NULL
    )
    SELECT type FROM kinds WHERE type IS NOT NULL ORDER BY type COLLATE \"C\"";
/// The head stands in every row, so that it is of the same moment as the changes.
const CHANGES: &str = concat!(
    "SELECT h.data_set, ",
    timeline!(),
    ", h.version, h.forgotten, c.type, c.id, c.version, c.modified_at, c.payload, c.deleted
    FROM postern.head h LEFT JOIN LATERAL (
        SELECT * FROM postern.changes WHERE version > $1 ORDER BY version LIMIT $2
    ) c ON true ORDER BY c.version"
);
const CHANGES_OF: &str = concat!(
    "SELECT h.data_set, ",
    timeline!(),
    ", h.version, coalesce(f.version, 0), c.type, c.id, c.version, c.modified_at, c.payload, c.deleted
    FROM postern.head h LEFT JOIN postern.forgotten f ON f.type = $3 LEFT JOIN LATERAL (
        SELECT * FROM postern.changes WHERE type = $3 AND version > $1 ORDER BY version LIMIT $2
    ) c ON true ORDER BY c.version"
);
pub(super) const OPTIONS: &str = "SELECT type, options FROM postern.options ORDER BY type";

impl Shared {
    /// Runs one statement that reads.
    async fn query(
        &self,
        sql: &'static str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, StorageError> {
        let mut connection = self.pool.get().await?;
        let [statement] = connection.prepare([sql]).await?;
        query(&mut connection, &statement, params).await
    }

    pub(super) async fn head(&self) -> Result<Head, StorageError> {
        let rows = self.query(HEAD, &[]).await?;
        let row = rows.first().ok_or_else(headless)?;
        Ok(Head {
            server_version: server_version(&get(row, 0)?, get(row, 1)?),
            latest: unsigned(get(row, 2)?),
            earliest: unsigned(get(row, 3)?),
        })
    }

    pub(super) async fn get(&self, key: &RecordKey) -> Result<Option<Record>, StorageError> {
        let rows = self.query(GET, &[&key.kind, &key.id]).await?;
        rows.first().map(|row| self.record(row, 0)).transpose()
    }

    pub(super) async fn page(
        &self,
        kind: Option<String>,
        start: PageStart,
        limit: usize,
    ) -> Result<Vec<Record>, StorageError> {
        let limit = signed(limit as u64);
        let rows = match (kind, start) {
            (Some(kind), PageStart::After { version, .. }) => {
                self.query(PAGE_OF_KIND_AFTER, &[&kind, &signed(version), &limit])
                    .await?
            }
            (None, PageStart::After { kind, version }) => {
                self.query(PAGE_OF_ALL_AFTER, &[&kind, &signed(version), &limit])
                    .await?
            }
            (Some(kind), PageStart::Offset(offset)) => {
                self.query(PAGE_OF_KIND, &[&kind, &signed(offset), &limit])
                    .await?
            }
            (None, PageStart::Offset(offset)) => {
                self.query(PAGE_OF_ALL, &[&signed(offset), &limit]).await?
            }
        };
        self.records(&rows)
    }

    pub(super) async fn count(&self, kind: Option<String>) -> Result<u64, StorageError> {
        let rows = match kind {
            Some(kind) => self.query(COUNT_OF_KIND, &[&kind]).await?,
            None => self.query(COUNT_OF_ALL, &[]).await?,
        };
        rows.first().map_or(Ok(0), |row| get(row, 0).map(unsigned))
    }

    pub(super) async fn find(
        &self,
        kind: String,
        lookups: Vec<Lookup>,
        limit: usize,
    ) -> Result<Vec<Record>, StorageError> {
        let (mut ids, mut networks, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
        for lookup in lookups {
            match lookup {
                Lookup::Id(id) => ids.push(id),
                Lookup::Network(network) => networks.push(network.to_string()),
                Lookup::Field { path, value } => {
                    hashes.extend(self.payloads.field_hashes(&kind, &path, &value));
                }
            }
        }
        let limit = signed(limit as u64);
        let rows = self
            .query(FIND, &[&kind, &ids, &networks, &hashes, &limit])
            .await?;
        self.records(&rows)
    }

    pub(super) async fn kinds(&self) -> Result<Vec<String>, StorageError> {
        self.query(KINDS, &[])
            .await?
            .iter()
            .map(|row| get(row, 0))
            .collect()
    }

    pub(super) async fn changes(
        &self,
        kind: Option<String>,
        after: u64,
        limit: usize,
    ) -> Result<Changes, StorageError> {
        let (after, limit) = (signed(after), signed(limit as u64));
        let rows = match kind {
            None => self.query(CHANGES, &[&after, &limit]).await?,
            Some(kind) => self.query(CHANGES_OF, &[&after, &limit, &kind]).await?,
        };
        let head = rows.first().ok_or_else(headless)?;
        let mut changes = Changes {
            server_version: server_version(&get(head, 0)?, get(head, 1)?),
            latest: unsigned(get(head, 2)?),
            forgotten: unsigned(get(head, 3)?),
            records: Vec::with_capacity(rows.len()),
        };
        for row in &rows {
            // Without changes there is one row, with the head only.
            if let Some(deleted) = get::<Option<bool>>(row, 9)? {
                let record = self.record(row, 4)?;
                let deleted_at = if deleted { record.modified_at } else { None };
                changes.records.push(Record {
                    deleted_at,
                    ..record
                });
            }
        }
        Ok(changes)
    }

    pub(super) async fn options(&self) -> Result<Vec<(String, Options)>, StorageError> {
        read_options(&self.query(OPTIONS, &[]).await?)
    }

    pub(super) fn records(&self, rows: &[Row]) -> Result<Vec<Record>, StorageError> {
        rows.iter().map(|row| self.record(row, 0)).collect()
    }

    /// A record from the columns type, id, version, modified_at, payload, beginning at `at`.
    fn record(&self, row: &Row, at: usize) -> Result<Record, StorageError> {
        let (kind, id): (String, String) = (get(row, at)?, get(row, at + 1)?);
        let version = unsigned(get(row, at + 2)?);
        let modified_at: SystemTime = get(row, at + 3)?;
        let data = self
            .payloads
            .decode(&kind, &id, version, get(row, at + 4)?)?;
        Ok(Record {
            version,
            r#type: kind,
            id,
            data,
            modified_at: Some(modified_at.into()),
            deleted_at: None,
        })
    }
}

pub(super) async fn query(
    connection: &mut Pooled,
    statement: &Statement,
    params: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Row>, StorageError> {
    connection
        .answer(async |client| client.query(statement, params).await)
        .await
}

pub(super) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a Row,
    column: usize,
) -> Result<T, StorageError> {
    row.try_get(column)
        .map_err(|error| StorageError::Postgres(Box::new(error)))
}

pub(super) fn read_options(rows: &[Row]) -> Result<Vec<(String, Options)>, StorageError> {
    rows.iter()
        .map(|row| {
            let options =
                Options::decode(get::<&[u8]>(row, 1)?).map_err(|_| StorageError::Damaged {
                    what: "postern.options".to_owned(),
                })?;
            Ok((get(row, 0)?, options))
        })
        .collect()
}

/// Names the data set *and* its timeline: after a failover the new primary may lack the last commits and give their
/// versions out again, so nothing that was seen before counts any more.
pub(super) fn server_version(data_set: &Uuid, timeline: &str) -> u64 {
    let mut hash = Sha256::new();
    hash.update(data_set.as_bytes());
    hash.update(timeline.as_bytes());
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(hash.finalize()) {
        *to = from;
    }
    u64::from_be_bytes(first).max(1)
}

pub(super) fn headless() -> StorageError {
    StorageError::Damaged {
        what: "postern.head, which has no row,".to_owned(),
    }
}

/// Versions and counts fit; what does not is capped rather than turned negative.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_timeline_is_another_server_version() {
        let data_set = Uuid::from_u128(7);
        let first = server_version(&data_set, "00000001");
        assert_eq!(first, server_version(&data_set, "00000001"));
        assert_ne!(first, server_version(&data_set, "00000002"));
        assert_ne!(first, server_version(&Uuid::from_u128(8), "00000001"));
    }
}
