//! Writing the record file: one transaction a call.

use std::collections::{BTreeSet, HashSet};
use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;
use postern_common::rpc::stubs::databroker::{Options, Record};
use prost::Message as _;
use redb::{ReadableTable as _, Table, WriteTransaction};

use super::tables::{
    BY_AGE, CHANGES, CHANGES_OF, CURRENT_KEY, FORGOTTEN, FORGOTTEN_OF, INDEX, KEYS, LATEST, LEASES,
    NUMBERS, OPTIONS, RECORDS, Row, SERVER_VERSION, entries, new_server_version, options,
};
use super::{Shared, file_error};
use crate::options::ttl;
use crate::patch;
use crate::storage::index::Index;
use crate::storage::sealed::Payloads;
use crate::storage::{
    Cleared, Operation, Refused, StorageError, Tidied, Written, is_empty, timestamp,
};

/// How many entries one round of housekeeping handles at most, so that writers wait for a moment only.
const TIDY_LIMIT: usize = 1_000;

impl Shared {
    /// Runs `work` in a transaction and commits it.
    fn writing<T>(
        &self,
        work: impl FnOnce(&mut Open<'_>) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let transaction = self.database.begin_write().map_err(file_error)?;
        let result = work(&mut Open::of(&transaction, &self.payloads)?)?;
        transaction.commit().map_err(file_error)?;
        Ok(result)
    }

    pub(super) fn write(
        &self,
        batch: Vec<Operation>,
        now: Timestamp,
    ) -> Result<Written, StorageError> {
        let ids: Vec<_> = batch.iter().map(Operation::write_id).collect();
        // Held until the transaction has ended, as it excludes every other one anyway.
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self.writing(|open| {
            let mut touched = BTreeSet::new();
            let mut results = Vec::with_capacity(batch.len());
            let mut now_done = HashSet::new();
            for operation in batch {
                let id = operation.write_id();
                if id.is_some_and(|id| done.has(id, now) || !now_done.insert(id)) {
                    results.push(Ok(open.present(operation.records())?));
                    continue;
                }
                // What can be refused is found out before anything is written, so nothing has to be undone.
                let wanted = match open.wanted(operation)? {
                    Ok(wanted) => wanted,
                    Err(refused) => {
                        results.push(Err(refused));
                        continue;
                    }
                };
                let mut written = Vec::with_capacity(wanted.len());
                for record in wanted {
                    touched.insert(record.r#type.clone());
                    written.push(open.store(record, now)?);
                }
                results.push(Ok(written));
            }
            for kind in touched {
                open.enforce_capacity(&kind, now)?;
            }
            Ok(Written {
                server_version: open.number(SERVER_VERSION)?,
                results,
            })
        })?;
        for (result, id) in written.results.iter().zip(ids) {
            if let (Ok(_), Some(id)) = (result, id) {
                done.add(id, now);
            }
        }
        Ok(written)
    }

    pub(super) fn set_options(
        &self,
        kind: &str,
        options: &Options,
        now: Timestamp,
    ) -> Result<(), StorageError> {
        self.writing(|open| {
            let before = open.options(kind)?;
            if is_empty(options) {
                open.options.remove(kind).map_err(file_error)?;
            } else {
                let options = options.encode_to_vec();
                open.options
                    .insert(kind, options.as_slice())
                    .map_err(file_error)?;
            }
            if before.indexable_fields != options.indexable_fields {
                for id in open.oldest(kind, usize::MAX)? {
                    open.store_again(kind, &id)?;
                }
            }
            open.enforce_capacity(kind, now)
        })
    }

    pub(super) fn clear(&self) -> Result<Cleared, StorageError> {
        self.writing(|open| {
            let old = open.number(SERVER_VERSION)?;
            let new = new_server_version();
            open.records.retain(|_, _| false).map_err(file_error)?;
            open.by_age.retain(|_, _| false).map_err(file_error)?;
            open.changes.retain(|_, _| false).map_err(file_error)?;
            open.changes_of.retain(|_, ()| false).map_err(file_error)?;
            open.forgotten_of.retain(|_, _| false).map_err(file_error)?;
            open.index.retain(|_, ()| false).map_err(file_error)?;
            open.options.retain(|_, _| false).map_err(file_error)?;
            open.numbers
                .insert(SERVER_VERSION, new)
                .map_err(file_error)?;
            open.numbers.insert(FORGOTTEN, 0).map_err(file_error)?;
            Ok(Cleared { old, new })
        })
    }

    pub(super) fn lease(
        &self,
        name: &str,
        holder: &str,
        duration: Duration,
        now: Timestamp,
    ) -> Result<bool, StorageError> {
        self.writing(|open| {
            let free = open
                .leases
                .get(name)
                .map_err(file_error)?
                .is_none_or(|lease| {
                    let (its_holder, seconds, nanos) = lease.value();
                    its_holder == holder
                        || Timestamp::new(seconds, nanos).is_ok_and(|end| end <= now)
                });
            if free {
                let end = now.saturating_add(duration).unwrap_or(Timestamp::MAX);
                let lease = (holder, end.as_second(), end.subsec_nanosecond());
                open.leases.insert(name, lease).map_err(file_error)?;
            }
            Ok(free)
        })
    }

    pub(super) fn release(&self, name: &str, holder: &str) -> Result<(), StorageError> {
        self.writing(|open| {
            let lease = open.leases.get(name).map_err(file_error)?;
            let held = lease.is_some_and(|lease| lease.value().0 == holder);
            if held {
                open.leases.remove(name).map_err(file_error)?;
            }
            Ok(())
        })
    }

    pub(super) fn tidy(&self, retention: Duration, now: Timestamp) -> Result<Tidied, StorageError> {
        self.writing(|open| {
            open.leases
                .retain(|_, (_, seconds, nanos)| {
                    Timestamp::new(seconds, nanos).is_ok_and(|end| end > now)
                })
                .map_err(file_error)?;
            Ok(Tidied {
                expired: open.expire(now)?,
                forgotten: open.forget(retention, now)?,
                resealed: open.reseal()?,
            })
        })
    }
}

/// Every table, open in one transaction.
struct Open<'t> {
    payloads: &'t Payloads,
    numbers: Table<'t, &'static str, u64>,
    keys: Table<'t, &'static str, &'static [u8]>,
    records: Table<'t, (&'static str, &'static str), &'static [u8]>,
    by_age: Table<'t, (&'static str, u64), &'static str>,
    changes: Table<'t, u64, &'static [u8]>,
    changes_of: Table<'t, (&'static str, u64), ()>,
    forgotten_of: Table<'t, &'static str, u64>,
    index: Table<'t, (&'static str, &'static [u8], &'static str), ()>,
    options: Table<'t, &'static str, &'static [u8]>,
    leases: Table<'t, &'static str, (&'static str, i64, i32)>,
}

impl<'t> Open<'t> {
    fn of(transaction: &'t WriteTransaction, payloads: &'t Payloads) -> Result<Self, StorageError> {
        Ok(Self {
            payloads,
            numbers: transaction.open_table(NUMBERS).map_err(file_error)?,
            keys: transaction.open_table(KEYS).map_err(file_error)?,
            records: transaction.open_table(RECORDS).map_err(file_error)?,
            by_age: transaction.open_table(BY_AGE).map_err(file_error)?,
            changes: transaction.open_table(CHANGES).map_err(file_error)?,
            changes_of: transaction.open_table(CHANGES_OF).map_err(file_error)?,
            forgotten_of: transaction.open_table(FORGOTTEN_OF).map_err(file_error)?,
            index: transaction.open_table(INDEX).map_err(file_error)?,
            options: transaction.open_table(OPTIONS).map_err(file_error)?,
            leases: transaction.open_table(LEASES).map_err(file_error)?,
        })
    }

    fn number(&self, name: &str) -> Result<u64, StorageError> {
        Ok(self
            .numbers
            .get(name)
            .map_err(file_error)?
            .map_or(0, |it| it.value()))
    }

    fn options(&self, kind: &str) -> Result<Options, StorageError> {
        let stored = self.options.get(kind).map_err(file_error)?;
        stored.map_or_else(|| Ok(Options::default()), |it| options(it.value()))
    }

    fn row(&self, kind: &str, id: &str) -> Result<Option<Row>, StorageError> {
        let row = self.records.get((kind, id)).map_err(file_error)?;
        row.map(|row| Row::read(row.value())).transpose()
    }

    /// The records that an operation comes down to.
    fn wanted(&self, operation: Operation) -> Result<Result<Vec<Record>, Refused>, StorageError> {
        match operation {
            Operation::Put(records) => Ok(Ok(records)),
            Operation::Patch { records, mask } => {
                let present = self.present(&records)?;
                Ok(patch::records(present, records, &mask).map_err(Refused::from))
            }
            Operation::PutIf { record, version } => {
                let found = self.row(&record.r#type, &record.id)?.map(|row| row.version);
                Ok(Refused::unless_same(version, found).map(|()| vec![record]))
            }
            Operation::Once { operation, .. } => self.wanted(*operation),
        }
    }

    /// Those of the records that there are.
    fn present(&self, records: &[Record]) -> Result<Vec<Record>, StorageError> {
        let mut present = Vec::new();
        for record in records {
            if let Some(row) = self.row(&record.r#type, &record.id)? {
                present.push(row.into_record(self.payloads)?);
            }
        }
        Ok(present)
    }

    /// Writes a record, or its deletion, under the next version.
    fn store(&mut self, mut record: Record, now: Timestamp) -> Result<Record, StorageError> {
        let version = self.number(LATEST)? + 1;
        self.numbers.insert(LATEST, version).map_err(file_error)?;
        record.version = version;
        record.modified_at = Some(timestamp(now));
        record.deleted_at = record.deleted_at.map(|_| timestamp(now));

        let (kind, id) = (record.r#type.as_str(), record.id.as_str());
        let deleted = record.deleted_at.is_some();
        let index = if deleted {
            Vec::new()
        } else {
            let indexable = self.options(kind)?.indexable_fields;
            entries(&Index::of(
                self.payloads,
                kind,
                record.data.as_ref(),
                &indexable,
            ))
        };
        let row = Row {
            kind: kind.to_owned(),
            id: id.to_owned(),
            version,
            modified_at: record.modified_at,
            deleted_at: record.deleted_at,
            payload: self
                .payloads
                .encode(kind, id, version, record.data.as_ref()),
            index,
        };
        let bytes = row.encode_to_vec();
        self.changes
            .insert(version, bytes.as_slice())
            .map_err(file_error)?;
        self.changes_of
            .insert((kind, version), ())
            .map_err(file_error)?;
        self.unlink(kind, id)?;
        if !deleted {
            self.link(&row)?;
        }
        Ok(record)
    }

    /// Puts a row into every table but the change log.
    fn link(&mut self, row: &Row) -> Result<(), StorageError> {
        let (kind, id) = (row.kind.as_str(), row.id.as_str());
        self.records
            .insert((kind, id), row.encode_to_vec().as_slice())
            .map_err(file_error)?;
        self.by_age
            .insert((kind, row.version), id)
            .map_err(file_error)?;
        for entry in &row.index {
            self.index
                .insert((kind, entry.as_slice(), id), ())
                .map_err(file_error)?;
        }
        Ok(())
    }

    /// Takes a record out of every table but the change log.
    fn unlink(&mut self, kind: &str, id: &str) -> Result<(), StorageError> {
        let Some(row) = self.records.remove((kind, id)).map_err(file_error)? else {
            return Ok(());
        };
        let row = Row::read(row.value())?;
        self.by_age
            .remove((kind, row.version))
            .map_err(file_error)?;
        for entry in &row.index {
            self.index
                .remove((kind, entry.as_slice(), id))
                .map_err(file_error)?;
        }
        Ok(())
    }

    /// Ids of a kind, those changed longest ago first.
    fn oldest(&self, kind: &str, limit: usize) -> Result<Vec<String>, StorageError> {
        let of_kind = self
            .by_age
            .range((kind, 0)..=(kind, u64::MAX))
            .map_err(file_error)?;
        of_kind
            .take(limit)
            .map(|row| Ok(row.map_err(file_error)?.1.value().to_owned()))
            .collect()
    }

    fn delete(&mut self, kind: &str, id: String, now: Timestamp) -> Result<(), StorageError> {
        let kind = kind.to_owned();
        let deleted_at = Some(timestamp(now));
        self.store(
            Record {
                r#type: kind,
                id,
                deleted_at,
                ..Record::default()
            },
            now,
        )
        .map(drop)
    }

    fn enforce_capacity(&mut self, kind: &str, now: Timestamp) -> Result<(), StorageError> {
        let Some(capacity) = self.options(kind)?.capacity else {
            return Ok(());
        };
        let of_kind = self
            .by_age
            .range((kind, 0)..=(kind, u64::MAX))
            .map_err(file_error)?;
        let surplus = (of_kind.count() as u64).saturating_sub(capacity);
        for id in self.oldest(kind, usize::try_from(surplus).unwrap_or(usize::MAX))? {
            self.delete(kind, id, now)?;
        }
        Ok(())
    }

    /// Deletes records that have not been changed for their kind's time to live.
    fn expire(&mut self, now: Timestamp) -> Result<u64, StorageError> {
        let mut limited = Vec::new();
        for row in self.options.iter().map_err(file_error)? {
            let (kind, bytes) = row.map_err(file_error)?;
            if let Some(ttl) = ttl(&options(bytes.value())?) {
                limited.push((kind.value().to_owned(), ttl));
            }
        }
        let mut expired = 0;
        for (kind, ttl) in limited {
            let Ok(end) = now.checked_sub(ttl) else {
                continue;
            };
            for id in self.oldest(&kind, TIDY_LIMIT)? {
                let modified = self.row(&kind, &id)?.and_then(|row| row.modified_at);
                if modified.is_none_or(|modified| !is_before(modified, end)) {
                    break;
                }
                self.delete(&kind, id, now)?;
                expired += 1;
            }
        }
        Ok(expired)
    }

    /// Removes what is older than `retention` from the change log.
    fn forget(&mut self, retention: Duration, now: Timestamp) -> Result<u64, StorageError> {
        let Ok(end) = now.checked_sub(retention) else {
            return Ok(0);
        };
        let mut old = Vec::new();
        for row in self.changes.iter().map_err(file_error)?.take(TIDY_LIMIT) {
            let (version, row) = row.map_err(file_error)?;
            let row = Row::read(row.value())?;
            if !row
                .modified_at
                .is_some_and(|modified| is_before(modified, end))
            {
                break;
            }
            old.push((version.value(), row.kind));
        }
        for (version, kind) in &old {
            self.changes.remove(version).map_err(file_error)?;
            self.changes_of
                .remove((kind.as_str(), *version))
                .map_err(file_error)?;
            self.forgotten_of
                .insert(kind.as_str(), version)
                .map_err(file_error)?;
            self.numbers
                .insert(FORGOTTEN, version)
                .map_err(file_error)?;
        }
        Ok(old.len() as u64)
    }

    /// Seals anew what another key than the first sealed; when nothing is left, notes the first as the one in use.
    fn reseal(&mut self) -> Result<u64, StorageError> {
        let Some(current) = self.payloads.current() else {
            return Ok(0);
        };
        let noted = self.keys.get(CURRENT_KEY).map_err(file_error)?;
        let done = noted.is_some_and(|noted| noted.value() == current.as_bytes().as_slice());
        if done {
            return Ok(0);
        }
        let mut records = Vec::new();
        for row in self.records.iter().map_err(file_error)? {
            let row = Row::read(row.map_err(file_error)?.1.value())?;
            if self.payloads.is_stale(&row.payload) && records.len() < TIDY_LIMIT {
                records.push((row.kind, row.id));
            }
        }
        for (kind, id) in &records {
            self.store_again(kind, id)?;
        }
        let mut changes = Vec::new();
        for row in self.changes.iter().map_err(file_error)? {
            let row = Row::read(row.map_err(file_error)?.1.value())?;
            if self.payloads.is_stale(&row.payload) && changes.len() < TIDY_LIMIT {
                changes.push(row);
            }
        }
        let resealed = (records.len() + changes.len()) as u64;
        for mut row in changes {
            let data = self
                .payloads
                .decode(&row.kind, &row.id, row.version, &row.payload)?;
            row.payload = self
                .payloads
                .encode(&row.kind, &row.id, row.version, data.as_ref());
            self.changes
                .insert(row.version, row.encode_to_vec().as_slice())
                .map_err(file_error)?;
        }
        if resealed == 0 {
            let current = current.as_bytes().as_slice();
            self.keys.insert(CURRENT_KEY, current).map_err(file_error)?;
        }
        Ok(resealed)
    }

    /// Makes the stored form and the index entries of a record anew; the record stays as it is.
    fn store_again(&mut self, kind: &str, id: &str) -> Result<(), StorageError> {
        let Some(row) = self.row(kind, id)? else {
            return Ok(());
        };
        let data = self.payloads.decode(kind, id, row.version, &row.payload)?;
        let indexable = self.options(kind)?.indexable_fields;
        self.unlink(kind, id)?;
        self.link(&Row {
            payload: self.payloads.encode(kind, id, row.version, data.as_ref()),
            index: entries(&Index::of(self.payloads, kind, data.as_ref(), &indexable)),
            ..row
        })
    }
}

fn is_before(time: prost_types::Timestamp, end: Timestamp) -> bool {
    (time.seconds, time.nanos) < (end.as_second(), end.subsec_nanosecond())
}
