//! Reading the record file. Each call sees one snapshot.

use std::collections::BTreeSet;

use postern_common::rpc::stubs::databroker::{Options, Record};
use redb::{
    ReadTransaction, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _,
};

use super::tables::{
    BY_AGE, CHANGES, CHANGES_OF, FORGOTTEN, FORGOTTEN_OF, INDEX, LATEST, NUMBERS, OPTIONS, RECORDS,
    Row, SERVER_VERSION, entries_for, options,
};
use super::{Shared, file_error};
use crate::storage::{Changes, Head, Lookup, PageStart, RecordKey, StorageError};

impl Shared {
    fn reading(&self) -> Result<ReadTransaction, StorageError> {
        self.database.begin_read().map_err(file_error)
    }

    pub(super) fn head(&self) -> Result<Head, StorageError> {
        let reading = self.reading()?;
        let changes = reading.open_table(CHANGES).map_err(file_error)?;
        let earliest = changes
            .first()
            .map_err(file_error)?
            .map_or(0, |(key, _)| key.value());
        Ok(Head {
            server_version: number(&reading, SERVER_VERSION)?,
            latest: number(&reading, LATEST)?,
            earliest,
        })
    }

    pub(super) fn get(&self, key: &RecordKey) -> Result<Option<Record>, StorageError> {
        let records = self.reading()?.open_table(RECORDS).map_err(file_error)?;
        let row = records
            .get((key.kind.as_str(), key.id.as_str()))
            .map_err(file_error)?;
        row.map(|row| Row::read(row.value())?.into_record(&self.payloads))
            .transpose()
    }

    pub(super) fn page(
        &self,
        kind: Option<&str>,
        start: &PageStart,
        limit: usize,
    ) -> Result<Vec<Record>, StorageError> {
        let reading = self.reading()?;
        let records = reading.open_table(RECORDS).map_err(file_error)?;
        let is_other = |found: &str| kind.is_some_and(|kind| kind != found);
        let mut page = Vec::new();
        let mut add = |row: &[u8]| -> Result<bool, StorageError> {
            page.push(Row::read(row)?.into_record(&self.payloads)?);
            Ok(page.len() < limit)
        };
        match start {
            PageStart::After {
                kind: after,
                version,
            } => {
                let after = (kind.unwrap_or(after), version.saturating_add(1));
                let by_age = reading.open_table(BY_AGE).map_err(file_error)?;
                for entry in by_age.range(after..).map_err(file_error)? {
                    let (key, id) = entry.map_err(file_error)?;
                    let (found, _) = key.value();
                    if is_other(found) {
                        break;
                    }
                    let row = records.get((found, id.value())).map_err(file_error)?;
                    if let Some(row) = row
                        && !add(row.value())?
                    {
                        break;
                    }
                }
            }
            PageStart::Offset(offset) => {
                let mut skip = *offset;
                let from = (kind.unwrap_or(""), "");
                for row in records.range(from..).map_err(file_error)? {
                    let (key, row) = row.map_err(file_error)?;
                    if is_other(key.value().0) {
                        break;
                    }
                    if skip > 0 {
                        skip -= 1;
                    } else if !add(row.value())? {
                        break;
                    }
                }
            }
        }
        Ok(page)
    }

    pub(super) fn count(&self, kind: Option<&str>) -> Result<u64, StorageError> {
        let reading = self.reading()?;
        let Some(kind) = kind else {
            let records = reading.open_table(RECORDS).map_err(file_error)?;
            return records.len().map_err(file_error);
        };
        let by_age = reading.open_table(BY_AGE).map_err(file_error)?;
        let of_kind = by_age
            .range((kind, 0)..=(kind, u64::MAX))
            .map_err(file_error)?;
        Ok(of_kind.count() as u64)
    }

    pub(super) fn find(
        &self,
        kind: &str,
        lookups: &[Lookup],
        limit: usize,
    ) -> Result<Vec<Record>, StorageError> {
        let reading = self.reading()?;
        let index = reading.open_table(INDEX).map_err(file_error)?;
        let records = reading.open_table(RECORDS).map_err(file_error)?;
        let mut ids = BTreeSet::new();
        for lookup in lookups {
            if let Lookup::Id(id) = lookup {
                ids.insert(id.clone());
            }
            for entry in entries_for(&self.payloads, kind, lookup) {
                let entry = entry.as_slice();
                for found in index.range((kind, entry, "")..).map_err(file_error)? {
                    let (found, _) = found.map_err(file_error)?;
                    let (its_kind, its_entry, id) = found.value();
                    if its_kind != kind || its_entry != entry || ids.len() > limit {
                        break;
                    }
                    ids.insert(id.to_owned());
                }
            }
        }
        let mut found = Vec::new();
        for id in ids {
            if found.len() == limit {
                break;
            }
            if let Some(row) = records.get((kind, id.as_str())).map_err(file_error)? {
                found.push(Row::read(row.value())?.into_record(&self.payloads)?);
            }
        }
        Ok(found)
    }

    pub(super) fn kinds(&self) -> Result<Vec<String>, StorageError> {
        let by_age = self.reading()?.open_table(BY_AGE).map_err(file_error)?;
        let mut kinds: Vec<String> = Vec::new();
        loop {
            // The first entry behind the last kind.
            let after = kinds
                .last()
                .map_or(("", 0), |kind| (kind.as_str(), u64::MAX));
            let next = by_age.range(after..).map_err(file_error)?.next();
            match next.transpose().map_err(file_error)? {
                Some((key, _)) => kinds.push(key.value().0.to_owned()),
                None => return Ok(kinds),
            }
        }
    }

    pub(super) fn changes(
        &self,
        kind: Option<&str>,
        after: u64,
        limit: usize,
    ) -> Result<Changes, StorageError> {
        let reading = self.reading()?;
        let changes = reading.open_table(CHANGES).map_err(file_error)?;
        let from = after.saturating_add(1);
        let read = |bytes: &[u8]| Row::read(bytes)?.into_record(&self.payloads);
        let mut records = Vec::new();
        let forgotten = match kind {
            None => {
                for row in changes.range(from..).map_err(file_error)?.take(limit) {
                    records.push(read(row.map_err(file_error)?.1.value())?);
                }
                number(&reading, FORGOTTEN)?
            }
            Some(kind) => {
                let of_kind = reading.open_table(CHANGES_OF).map_err(file_error)?;
                let versions = of_kind
                    .range((kind, from)..=(kind, u64::MAX))
                    .map_err(file_error)?;
                for key in versions.take(limit) {
                    let version = key.map_err(file_error)?.0.value().1;
                    if let Some(row) = changes.get(version).map_err(file_error)? {
                        records.push(read(row.value())?);
                    }
                }
                let forgotten = reading.open_table(FORGOTTEN_OF).map_err(file_error)?;
                forgotten
                    .get(kind)
                    .map_err(file_error)?
                    .map_or(0, |version| version.value())
            }
        };
        Ok(Changes {
            server_version: number(&reading, SERVER_VERSION)?,
            latest: number(&reading, LATEST)?,
            forgotten,
            records,
        })
    }

    pub(super) fn options(&self) -> Result<Vec<(String, Options)>, StorageError> {
        let table = self.reading()?.open_table(OPTIONS).map_err(file_error)?;
        let mut all = Vec::new();
        for row in table.iter().map_err(file_error)? {
            let (kind, bytes) = row.map_err(file_error)?;
            all.push((kind.value().to_owned(), options(bytes.value())?));
        }
        Ok(all)
    }
}

fn number(reading: &ReadTransaction, name: &str) -> Result<u64, StorageError> {
    let numbers = reading.open_table(NUMBERS).map_err(file_error)?;
    let number = numbers.get(name).map_err(file_error)?;
    Ok(number.map_or(0, |number| number.value()))
}
