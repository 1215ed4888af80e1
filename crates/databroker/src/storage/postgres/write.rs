//! Writing: one transaction a batch. `postern.head` is locked first, always; so transactions never wait for each
//! other in a circle.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use deadpool_postgres::ClientWrapper;
use postern_common::rpc::WriteId;
use postern_common::rpc::stubs::databroker::{Options, Record};
use prost::Message as _;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};

use super::Shared;
use super::listen::CHANNEL;
use super::pool::Pooled;
use super::read::{
    OPTIONS, get, headless, query, read_options, server_version, signed, timeline, unsigned,
};
use crate::options::ttl;
use crate::patch;
use crate::storage::index::Index;
use crate::storage::sealed::FieldHash;
use crate::storage::{
    Cleared, Operation, REMEMBERED, RecordKey, Refused, StorageError, Tidied, Written, is_empty,
};

/// How many rows one round of housekeeping handles at most, so that writers wait for a moment only.
const TIDY_LIMIT: i64 = 1_000;
const RESEAL_LIMIT: i64 = 500;

const LOCK: &str = concat!(
    "SELECT data_set, ",
    timeline!(),
    ", version, clock_timestamp() FROM postern.head FOR UPDATE"
);
const ADVANCE: &str = "UPDATE postern.head SET version = $1";
const PRESENT: &str = "SELECT r.type, r.id, r.version, r.modified_at, r.payload
    FROM unnest($1::text[], $2::text[]) AS wanted (type, id) JOIN postern.records r USING (type, id)";
const CHANGE: &str =
    "INSERT INTO postern.changes (version, type, id, deleted, payload, modified_at)
    SELECT *, $6::timestamptz
    FROM unnest($1::bigint[], $2::text[], $3::text[], $4::boolean[], $5::bytea[])";
const DELETE: &str =
    "DELETE FROM postern.records r USING unnest($1::text[], $2::text[]) AS gone (type, id)
    WHERE r.type = gone.type AND r.id = gone.id";
const UPSERT: &str =
    "INSERT INTO postern.records (version, type, id, payload, network, modified_at)
    SELECT version, type, id, payload, network::inet, $6::timestamptz
    FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bytea[], $5::text[]) AS n (version, type, id, payload, network)
    ON CONFLICT (type, id) DO UPDATE SET version = excluded.version, payload = excluded.payload,
        network = excluded.network, modified_at = excluded.modified_at";
const UNLINK: &str =
    "DELETE FROM postern.fields f USING unnest($1::text[], $2::text[]) AS gone (type, id)
    WHERE f.type = gone.type AND f.id = gone.id";
const LINK: &str = "INSERT INTO postern.fields (type, hash, id)
    SELECT * FROM unnest($1::text[], $2::bytea[], $3::text[]) ON CONFLICT DO NOTHING";
const SURPLUS: &str = "SELECT id FROM (SELECT id, version FROM postern.records WHERE type = $1
        ORDER BY version DESC OFFSET $2) AS surplus ORDER BY version";
const EXPIRED: &str = "SELECT id FROM postern.records
    WHERE type = $1 AND modified_at < $2::timestamptz ORDER BY version LIMIT $3";
/// Both ends of the range are known, so the index leads there, past what was deleted before.
const FORGET: &str = "WITH bound AS (
        SELECT max(version) AS version FROM (
            SELECT version, modified_at FROM postern.changes
            WHERE version > (SELECT forgotten FROM postern.head) ORDER BY version LIMIT $2
        ) AS oldest WHERE modified_at < $1::timestamptz
    ), old AS (
        DELETE FROM postern.changes WHERE version > (SELECT forgotten FROM postern.head)
            AND version <= (SELECT version FROM bound)
        RETURNING type, version
    ), noted AS (
        INSERT INTO postern.forgotten (type, version) SELECT type, max(version) FROM old GROUP BY type
        ON CONFLICT (type) DO UPDATE SET version = greatest(postern.forgotten.version, excluded.version)
    )
    SELECT count(*), coalesce(max(version), 0) FROM old";
const NOTE_FORGOTTEN: &str = "UPDATE postern.head SET forgotten = greatest(forgotten, $1)";
/// A key that was never used becomes the present one. One that was used before does not, so that replicas that have
/// not got the new order of keys yet do not undo each other's work.
pub(super) const USE_KEY: &str = "UPDATE postern.head SET sealed_by = array_append(sealed_by, $1)
    WHERE NOT $1 = ANY (sealed_by)";
const PRESENT_KEY: &str =
    "SELECT coalesce(sealed_by[cardinality(sealed_by)] = $1, false) FROM postern.head";
const STALE: &str = "SELECT type, id, version, modified_at, payload FROM postern.records
    WHERE (sealed_by < $1 OR sealed_by > $1) AND sealed_by <> '' LIMIT $2";
const OF_KIND: &str = "SELECT type, id, version, modified_at, payload FROM postern.records
    WHERE type = $1 AND id > $2 ORDER BY id LIMIT $3";
const RESEAL: &str = "UPDATE postern.records r SET payload = n.payload
    FROM unnest($1::text[], $2::text[], $3::bytea[]) AS n (type, id, payload)
    WHERE r.type = n.type AND r.id = n.id";
/// Those that are new.
const CLAIM: &str = "INSERT INTO postern.writes (id) SELECT * FROM unnest($1::bytea[])
    ON CONFLICT DO NOTHING RETURNING id";
const DISCLAIM: &str = "DELETE FROM postern.writes WHERE id = ANY ($1::bytea[])";
const FORGET_WRITES: &str = "DELETE FROM postern.writes WHERE id IN (SELECT id FROM postern.writes
    WHERE done_at < clock_timestamp() - make_interval(secs => $1) ORDER BY done_at LIMIT $2)";
const LEASE: &str = "INSERT INTO postern.leases (name, holder, ends_at)
    VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
    ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, ends_at = excluded.ends_at
    WHERE postern.leases.holder = excluded.holder OR postern.leases.ends_at <= clock_timestamp()
    RETURNING name";
const RELEASE: &str = "DELETE FROM postern.leases WHERE name = $1 AND holder = $2";

/// An open transaction that holds the head.
struct Open<'s> {
    shared: &'s Shared,
    connection: Pooled,
    server_version: u64,
    /// The last version given out.
    version: u64,
    now: SystemTime,
    options: HashMap<String, Options>,
    /// Ids that no write has had before this transaction.
    claimed: HashSet<WriteId>,
}

impl Shared {
    /// Begins a transaction, locks the head and takes the ids that no write has had yet.
    async fn begin(&self, ids: &[Option<WriteId>]) -> Result<Open<'_>, StorageError> {
        let mut connection = self.pool.get().await?;
        let [lock, options, claim] = connection.prepare([LOCK, OPTIONS, CLAIM]).await?;
        connection.in_transaction();
        let ids: Vec<_> = ids.iter().flatten().map(WriteId::as_bytes).collect();
        let claim_params: Params<'_, 1> = [&ids];
        // Sent together: one trip to the server. The head is locked by then, so nobody else is about to take an id.
        let begin = async |client: &ClientWrapper| {
            futures::try_join!(
                client.batch_execute("BEGIN"),
                client.query(&lock, &[]),
                client.query(&options, &[]),
                async {
                    if ids.is_empty() {
                        return Ok(Vec::new());
                    }
                    client.query(&claim, &claim_params).await
                },
            )
        };
        let ((), head, options, ids) = connection.answer(begin).await?;
        let head = head.first().ok_or_else(headless)?;
        let mut claimed = HashSet::with_capacity(ids.len());
        for row in &ids {
            let id: Vec<u8> = get(row, 0)?;
            claimed.extend(WriteId::from_bytes(&id));
        }
        Ok(Open {
            shared: self,
            server_version: server_version(&get(head, 0)?, get(head, 1)?),
            version: unsigned(get(head, 2)?),
            now: get(head, 3)?,
            options: read_options(&options)?.into_iter().collect(),
            claimed,
            connection,
        })
    }

    pub(super) async fn write(&self, batch: Vec<Operation>) -> Result<Written, StorageError> {
        let ids: Vec<_> = batch.iter().map(Operation::write_id).collect();
        let mut open = self.begin(&ids).await?;
        let mut results = Vec::with_capacity(batch.len());
        // Puts that follow each other need nothing of what the ones before them wrote, so they go together.
        let mut together = Vec::new();
        for operation in batch {
            if operation
                .write_id()
                .is_some_and(|id| !open.claimed.remove(&id))
            {
                results.extend(open.store_each(std::mem::take(&mut together)).await?);
                results.push(Ok(open.present_in_order(operation.records()).await?));
                continue;
            }
            match operation.plain() {
                Operation::Put(records) => together.push(records),
                other => {
                    results.extend(open.store_each(std::mem::take(&mut together)).await?);
                    match open.wanted(other).await? {
                        Ok(wanted) => results.extend(open.store_each(vec![wanted]).await?),
                        Err(refused) => results.push(Err(refused)),
                    }
                }
            }
        }
        if results.is_empty() && !open.is_limited(&together) {
            let server_version = open.server_version;
            together = match open.store_and_commit(together).await? {
                Ok(written) => {
                    return Ok(Written {
                        server_version,
                        results: written.into_iter().map(Ok).collect(),
                    });
                }
                Err(refused) => refused,
            };
            // Now so that only the request goes that is refused.
            open = self.begin(&ids).await?;
            if open.claimed.len() < ids.iter().flatten().collect::<HashSet<_>>().len() {
                // Somebody else has done one of them meanwhile.
                return Err(StorageError::Interrupted);
            }
        }
        results.extend(open.store_each(together).await?);
        let refused = results
            .iter()
            .zip(ids)
            .filter(|(result, _)| result.is_err());
        open.disclaim(refused.filter_map(|(_, id)| id).collect())
            .await?;
        let written = results
            .iter()
            .filter_map(|result| result.as_ref().ok())
            .flatten();
        let touched: BTreeSet<_> = written.map(|record| record.r#type.clone()).collect();
        for kind in touched {
            open.enforce_capacity(kind).await?;
        }
        let server_version = open.server_version;
        open.commit().await?;
        Ok(Written {
            server_version,
            results,
        })
    }

    pub(super) async fn set_options(
        &self,
        kind: String,
        options: Options,
    ) -> Result<(), StorageError> {
        let mut open = self.begin(&[]).await?;
        if is_empty(&options) {
            open.execute("DELETE FROM postern.options WHERE type = $1", &[&kind])
                .await?;
        } else {
            let set = "INSERT INTO postern.options (type, options) VALUES ($1, $2)
                ON CONFLICT (type) DO UPDATE SET options = excluded.options";
            open.execute(set, &[&kind, &options.encode_to_vec()])
                .await?;
        }
        let indexable = options.indexable_fields.clone();
        let before = open.options.insert(kind.clone(), options);
        if before.unwrap_or_default().indexable_fields != indexable {
            open.index_again(&kind).await?;
        }
        open.enforce_capacity(kind).await?;
        open.commit().await
    }

    pub(super) async fn clear(&self) -> Result<Cleared, StorageError> {
        let mut open = self.begin(&[]).await?;
        let old = open.server_version;
        let all = ["records", "fields", "changes", "forgotten", "options"];
        open.batch(
            &all.map(|table| format!("DELETE FROM postern.{table}"))
                .join("; "),
        )
        .await?;
        let renew = "UPDATE postern.head SET data_set = gen_random_uuid(), forgotten = version";
        open.execute(renew, &[]).await?;
        open.commit().await?;
        Ok(Cleared {
            old,
            new: self.head().await?.server_version,
        })
    }

    pub(super) async fn lease(
        &self,
        name: &str,
        holder: &str,
        duration: Duration,
    ) -> Result<bool, StorageError> {
        let mut connection = self.pool.get().await?;
        let [lease] = connection.prepare([LEASE]).await?;
        let seconds = duration.as_secs_f64();
        let rows = query(&mut connection, &lease, &[&name, &holder, &seconds]).await?;
        Ok(!rows.is_empty())
    }

    pub(super) async fn release(&self, name: &str, holder: &str) -> Result<(), StorageError> {
        let mut connection = self.pool.get().await?;
        let [release] = connection.prepare([RELEASE]).await?;
        query(&mut connection, &release, &[&name, &holder])
            .await
            .map(drop)
    }

    pub(super) async fn tidy(&self, retention: Duration) -> Result<Tidied, StorageError> {
        let mut open = self.begin(&[]).await?;
        open.execute(
            "DELETE FROM postern.leases WHERE ends_at <= clock_timestamp()",
            &[],
        )
        .await?;
        let remembered = REMEMBERED.as_secs_f64();
        open.execute(FORGET_WRITES, &[&remembered, &TIDY_LIMIT])
            .await?;
        let tidied = Tidied {
            expired: open.expire().await?,
            forgotten: open.forget(retention).await?,
            resealed: open.reseal().await?,
        };
        open.commit().await?;
        Ok(tidied)
    }
}

impl Open<'_> {
    async fn query(
        &mut self,
        sql: &'static str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, StorageError> {
        let [statement] = self.connection.prepare([sql]).await?;
        query(&mut self.connection, &statement, params).await
    }

    async fn execute(
        &mut self,
        sql: &'static str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<(), StorageError> {
        self.query(sql, params).await.map(drop)
    }

    /// Notifies everybody and commits.
    async fn commit(mut self) -> Result<(), StorageError> {
        let [advance] = self.connection.prepare([ADVANCE]).await?;
        let version = signed(self.version);
        let commit = async |client: &ClientWrapper| commit(client, &advance, version).await;
        self.connection.answer(commit).await?;
        self.committed();
        Ok(())
    }

    fn committed(mut self) {
        self.connection.settled();
        // Listening tells it too; this way it does not depend on that.
        self.shared.changed.notify_one();
    }

    /// Whether there may only be so many of what these requests write.
    fn is_limited(&self, requests: &[Vec<Record>]) -> bool {
        let capacity = |kind: &str| self.options.get(kind).and_then(|it| it.capacity);
        let mut records = requests.iter().flatten();
        records.any(|record| capacity(&record.r#type).is_some())
    }

    /// Writes several requests and commits, in one trip to the server. If the database will not have one of them,
    /// all come back and nothing is left of the transaction.
    async fn store_and_commit(
        mut self,
        requests: Vec<Vec<Record>>,
    ) -> Result<Result<Vec<Vec<Record>>, Vec<Vec<Record>>>, StorageError> {
        let lengths: Vec<_> = requests.iter().map(Vec::len).collect();
        let mut all: Vec<_> = requests.into_iter().flatten().collect();
        self.stamp(&mut all);
        let statements = self.connection.prepare(Rows::STATEMENTS).await?;
        let [advance] = self.connection.prepare([ADVANCE]).await?;
        let payloads: Vec<_> = all.iter().map(|it| self.shared.encode(it)).collect();
        let rows = Rows::of(self.shared, &self.options, &all, &payloads);
        let (now, version) = (self.now, signed(self.version));
        let store = async |client: &ClientWrapper| {
            let stored = rows.send(client, &statements, now);
            futures::try_join!(stored, commit(client, &advance, version)).map(drop)
        };
        let ended = self.connection.answer(store).await;
        let requests = divided(all, &lengths);
        match ended {
            Ok(()) => {
                self.committed();
                Ok(Ok(requests))
            }
            // The connection goes, and with it what may still be under way.
            Err(StorageError::Postgres(error)) if is_about_data(&error) => Ok(Err(requests)),
            Err(error) => Err(error),
        }
    }

    /// The records that an operation comes down to.
    async fn wanted(
        &mut self,
        operation: Operation,
    ) -> Result<Result<Vec<Record>, Refused>, StorageError> {
        match operation {
            Operation::Put(records) => Ok(Ok(records)),
            Operation::Patch { records, mask } => {
                let present = self.present(&records).await?;
                Ok(patch::records(present, records, &mask).map_err(Refused::from))
            }
            Operation::PutIf { record, version } => {
                let present = self.present(std::slice::from_ref(&record)).await?;
                let found = present.first().map(|record| record.version);
                Ok(Refused::unless_same(version, found).map(|()| vec![record]))
            }
            Operation::Once { operation, .. } => Box::pin(self.wanted(*operation)).await,
        }
    }

    /// Gives back those of writes that were refused.
    async fn disclaim(&mut self, ids: Vec<WriteId>) -> Result<(), StorageError> {
        if ids.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = ids.iter().map(WriteId::as_bytes).collect();
        self.execute(DISCLAIM, &[&ids]).await
    }

    async fn present(&mut self, records: &[Record]) -> Result<Vec<Record>, StorageError> {
        let keys: BTreeSet<_> = records.iter().map(RecordKey::of).collect();
        let (kinds, ids): (Vec<_>, Vec<_>) = keys.into_iter().map(|key| (key.kind, key.id)).unzip();
        let rows = self.query(PRESENT, &[&kinds, &ids]).await?;
        self.shared.records(&rows)
    }

    async fn present_in_order(&mut self, records: &[Record]) -> Result<Vec<Record>, StorageError> {
        let present = self.present(records).await?;
        let present: HashMap<_, _> = present.iter().map(|it| (RecordKey::of(it), it)).collect();
        let wanted = records.iter().map(RecordKey::of);
        Ok(wanted
            .filter_map(|key| present.get(&key).copied().cloned())
            .collect())
    }

    /// Writes several requests at once; if the database will not have that, one by one, so that the others do not
    /// suffer from the one that is refused.
    async fn store_each(
        &mut self,
        requests: Vec<Vec<Record>>,
    ) -> Result<Vec<Result<Vec<Record>, Refused>>, StorageError> {
        let lengths: Vec<_> = requests.iter().map(Vec::len).collect();
        let all = requests.into_iter().flatten().collect();
        let (all, refused) = match self.store_or_undo(all).await? {
            Ok(written) => (written, None),
            Err((refused, wanted)) => (wanted, Some(refused)),
        };
        let requests = divided(all, &lengths);
        match refused {
            None => Ok(requests.into_iter().map(Ok).collect()),
            Some(refused) if requests.len() == 1 => Ok(vec![Err(refused)]),
            Some(_) => {
                let mut results = Vec::with_capacity(requests.len());
                for request in requests {
                    let written = self.store_or_undo(request).await?;
                    results.push(written.map_err(|(refused, _)| refused));
                }
                Ok(results)
            }
        }
    }

    /// Writes records under a savepoint. Refused ones come back with the reason.
    async fn store_or_undo(
        &mut self,
        mut wanted: Vec<Record>,
    ) -> Result<Result<Vec<Record>, (Refused, Vec<Record>)>, StorageError> {
        let version = self.version;
        match self.store(&mut wanted).await {
            Ok(()) => Ok(Ok(wanted)),
            Err(StorageError::Postgres(error)) if is_about_data(&error) => {
                self.version = version;
                self.batch("ROLLBACK TO SAVEPOINT request").await?;
                let reason = crate::causes(&*error);
                Ok(Err((Refused::Database { reason }, wanted)))
            }
            Err(error) => Err(error),
        }
    }

    async fn batch(&mut self, sql: &str) -> Result<(), StorageError> {
        self.connection
            .answer(async |client| client.batch_execute(sql).await)
            .await
    }

    /// Writes records, or their deletions, under the next versions, inside of savepoint `request`.
    async fn store(&mut self, records: &mut [Record]) -> Result<(), StorageError> {
        if records.is_empty() {
            return Ok(());
        }
        self.stamp(records);
        let statements = self.connection.prepare(Rows::STATEMENTS).await?;
        let payloads: Vec<_> = records.iter().map(|it| self.shared.encode(it)).collect();
        let rows = Rows::of(self.shared, &self.options, records, &payloads);
        let now = self.now;
        let store = async |client: &ClientWrapper| {
            let begin = client.batch_execute("SAVEPOINT request");
            let end = client.batch_execute("RELEASE SAVEPOINT request");
            futures::try_join!(begin, rows.send(client, &statements, now), end).map(drop)
        };
        self.connection.answer(store).await
    }

    /// Gives records the next versions.
    fn stamp(&mut self, records: &mut [Record]) {
        let now = prost_types::Timestamp::from(self.now);
        for record in records {
            self.version += 1;
            record.version = self.version;
            record.modified_at = Some(now);
            record.deleted_at = record.deleted_at.map(|_| now);
        }
    }

    async fn delete(&mut self, kind: &str, ids: Vec<String>) -> Result<u64, StorageError> {
        let gone = ids.into_iter().map(|id| Record {
            r#type: kind.to_owned(),
            id,
            deleted_at: Some(prost_types::Timestamp::default()),
            ..Record::default()
        });
        let mut gone: Vec<_> = gone.collect();
        self.store(&mut gone).await?;
        Ok(gone.len() as u64)
    }

    async fn enforce_capacity(&mut self, kind: String) -> Result<(), StorageError> {
        let Some(capacity) = self.options.get(&kind).and_then(|options| options.capacity) else {
            return Ok(());
        };
        let rows = self.query(SURPLUS, &[&kind, &signed(capacity)]).await?;
        let surplus = rows
            .iter()
            .map(|row| get(row, 0))
            .collect::<Result<_, _>>()?;
        self.delete(&kind, surplus).await.map(drop)
    }

    /// Deletes records that have not been changed for their kind's time to live.
    async fn expire(&mut self) -> Result<u64, StorageError> {
        let limited: Vec<_> = self
            .options
            .iter()
            .filter_map(|(kind, options)| Some((kind.clone(), ttl(options)?)))
            .collect();
        let mut expired = 0;
        for (kind, ttl) in limited {
            let Some(end) = self.now.checked_sub(ttl) else {
                continue;
            };
            let rows = self.query(EXPIRED, &[&kind, &end, &TIDY_LIMIT]).await?;
            let ids = rows
                .iter()
                .map(|row| get(row, 0))
                .collect::<Result<_, _>>()?;
            expired += self.delete(&kind, ids).await?;
        }
        Ok(expired)
    }

    /// Removes what is older than `retention` from the change log.
    async fn forget(&mut self, retention: Duration) -> Result<u64, StorageError> {
        let Some(end) = self.now.checked_sub(retention) else {
            return Ok(0);
        };
        let rows = self.query(FORGET, &[&end, &TIDY_LIMIT]).await?;
        let row = rows.first().ok_or_else(headless)?;
        let (count, highest): (i64, i64) = (get(row, 0)?, get(row, 1)?);
        if count > 0 {
            self.execute(NOTE_FORGOTTEN, &[&highest]).await?;
        }
        Ok(unsigned(count))
    }

    /// Seals anew what another key than the present one sealed, if the present one is our first.
    async fn reseal(&mut self) -> Result<u64, StorageError> {
        let Some(current) = self.shared.payloads.current() else {
            return Ok(0);
        };
        let current = current.as_bytes().to_vec();
        self.execute(USE_KEY, &[&current]).await?;
        let rows = self.query(PRESENT_KEY, &[&current]).await?;
        if !rows.first().map_or(Ok(false), |row| get(row, 0))? {
            return Ok(0);
        }
        let rows = self.query(STALE, &[&current, &RESEAL_LIMIT]).await?;
        let records = self.shared.records(&rows)?;
        let (mut kinds, mut ids, mut payloads) = (Vec::new(), Vec::new(), Vec::new());
        for record in &records {
            kinds.push(record.r#type.clone());
            ids.push(record.id.clone());
            payloads.push(self.shared.encode(record));
        }
        if !records.is_empty() {
            self.execute(RESEAL, &[&kinds, &ids, &payloads]).await?;
            self.link_again(&records).await?;
        }
        Ok(records.len() as u64)
    }

    /// Makes the index entries of a kind anew.
    async fn index_again(&mut self, kind: &str) -> Result<(), StorageError> {
        let mut after = String::new();
        loop {
            let rows = self.query(OF_KIND, &[&kind, &after, &TIDY_LIMIT]).await?;
            let records = self.shared.records(&rows)?;
            let Some(last) = records.last() else {
                return Ok(());
            };
            after.clone_from(&last.id);
            self.link_again(&records).await?;
        }
    }

    async fn link_again(&mut self, records: &[Record]) -> Result<(), StorageError> {
        let (kinds, ids): (Vec<_>, Vec<_>) = records
            .iter()
            .map(|record| (record.r#type.clone(), record.id.clone()))
            .unzip();
        self.execute(UNLINK, &[&kinds, &ids]).await?;
        let mut links = Links::default();
        for record in records {
            links.push(record, index(self.shared, &self.options, record).fields);
        }
        self.execute(LINK, &[&links.kinds, &links.hashes, &links.ids])
            .await
    }
}

impl Shared {
    fn encode(&self, record: &Record) -> Vec<u8> {
        self.payloads.encode(
            &record.r#type,
            &record.id,
            record.version,
            record.data.as_ref(),
        )
    }
}

/// The rows of a request, column by column.
#[derive(Default)]
struct Rows<'r> {
    changes: Columns<'r>,
    deleted: Vec<bool>,
    gone: Columns<'r>,
    present: Columns<'r>,
    networks: Vec<Option<String>>,
    /// Whether index entries have to be looked at, at all.
    indexed: bool,
    links: Links<'r>,
}

#[derive(Default)]
struct Columns<'r> {
    versions: Vec<i64>,
    kinds: Vec<&'r str>,
    ids: Vec<&'r str>,
    payloads: Vec<&'r [u8]>,
}

#[derive(Default)]
struct Links<'r> {
    kinds: Vec<&'r str>,
    hashes: Vec<FieldHash>,
    ids: Vec<&'r str>,
}

impl<'r> Columns<'r> {
    fn push(&mut self, record: &'r Record, payload: &'r [u8]) {
        self.versions.push(signed(record.version));
        self.kinds.push(&record.r#type);
        self.ids.push(&record.id);
        self.payloads.push(payload);
    }
}

impl<'r> Links<'r> {
    fn push(&mut self, record: &'r Record, fields: Vec<FieldHash>) {
        for hash in fields {
            self.kinds.push(&record.r#type);
            self.hashes.push(hash);
            self.ids.push(&record.id);
        }
    }
}

fn index(shared: &Shared, options: &HashMap<String, Options>, record: &Record) -> Index {
    let indexable = options
        .get(&record.r#type)
        .map(|it| it.indexable_fields.as_slice());
    Index::of(
        &shared.payloads,
        &record.r#type,
        record.data.as_ref(),
        indexable.unwrap_or_default(),
    )
}

impl<'r> Rows<'r> {
    const STATEMENTS: [&'static str; 5] = [CHANGE, DELETE, UPSERT, UNLINK, LINK];

    fn of(
        shared: &Shared,
        options: &HashMap<String, Options>,
        records: &'r [Record],
        payloads: &'r [Vec<u8>],
    ) -> Self {
        let mut rows = Self {
            indexed: records.iter().any(|it| {
                options
                    .get(&it.r#type)
                    .is_some_and(|it| !it.indexable_fields.is_empty())
            }),
            ..Self::default()
        };
        // A record that is named twice has two changes, and ends as the last one says.
        let keys = records.iter().map(|it| (&it.r#type, &it.id));
        let last: HashMap<_, _> = keys.zip(records.iter().map(|it| it.version)).collect();
        for (record, payload) in records.iter().zip(payloads) {
            rows.changes.push(record, payload);
            rows.deleted.push(record.deleted_at.is_some());
            if last.get(&(&record.r#type, &record.id)) != Some(&record.version) {
                continue;
            }
            if record.deleted_at.is_some() {
                rows.gone.push(record, payload);
            } else {
                let Index { network, fields } = index(shared, options, record);
                rows.networks.push(network.map(|it| it.to_string()));
                rows.links.push(record, fields);
                rows.present.push(record, payload);
            }
        }
        rows
    }

    /// Sends every statement at once: one trip to the server.
    async fn send(
        &self,
        client: &Client,
        [change, delete, upsert, unlink, link]: &[Statement; 5],
        now: SystemTime,
    ) -> Result<(), tokio_postgres::Error> {
        let run = async |wanted: bool, statement: &Statement, params: &[&(dyn ToSql + Sync)]| {
            if wanted {
                client.execute(statement, params).await
            } else {
                Ok(0)
            }
        };
        let (changes, gone, present, links) =
            (&self.changes, &self.gone, &self.present, &self.links);
        let change_params: Params<'_, 6> = [
            &changes.versions,
            &changes.kinds,
            &changes.ids,
            &self.deleted,
            &changes.payloads,
            &now,
        ];
        let upsert_params: Params<'_, 6> = [
            &present.versions,
            &present.kinds,
            &present.ids,
            &present.payloads,
            &self.networks,
            &now,
        ];
        let delete_params: Params<'_, 2> = [&gone.kinds, &gone.ids];
        let unlink_params: Params<'_, 2> = [&changes.kinds, &changes.ids];
        let link_params: Params<'_, 3> = [&links.kinds, &links.hashes, &links.ids];
        futures::try_join!(
            run(true, change, &change_params),
            run(!gone.ids.is_empty(), delete, &delete_params),
            run(!present.ids.is_empty(), upsert, &upsert_params),
            run(self.indexed, unlink, &unlink_params),
            run(!links.ids.is_empty(), link, &link_params),
        )?;
        Ok(())
    }
}

/// A COMMIT after a failed statement rolls back and calls that a success, so all three count.
async fn commit(
    client: &Client,
    advance: &Statement,
    version: i64,
) -> Result<(), tokio_postgres::Error> {
    let notify = format!("NOTIFY {CHANNEL}");
    let params: Params<'_, 1> = [&version];
    futures::try_join!(
        client.execute(advance, &params),
        client.batch_execute(&notify),
        client.batch_execute("COMMIT"),
    )
    .map(drop)
}

/// Records of several requests, given back to each.
fn divided(all: Vec<Record>, lengths: &[usize]) -> Vec<Vec<Record>> {
    let mut all = all.into_iter();
    let requests = lengths
        .iter()
        .map(|length| all.by_ref().take(*length).collect());
    requests.collect()
}

type Params<'p, const N: usize> = [&'p (dyn ToSql + Sync); N];

/// Whether the database refused the data, rather than being unable to work.
fn is_about_data(error: &tokio_postgres::Error) -> bool {
    // Data exceptions, integrity constraints, program limits (an index entry that is too long).
    error.code().is_some_and(|code| {
        ["22", "23", "54"]
            .iter()
            .any(|it| code.code().starts_with(it))
    })
}
