//! Records in one process: in memory, or in one file. Both are redb; in memory it has no file behind it.
//!
//! A write transaction excludes every other one, so versions appear in order by themselves.

mod done;
mod read;
mod tables;
mod write;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use postern_common::rpc::stubs::databroker::{Options, Record};
use redb::{Database, backends::InMemoryBackend};
use tokio::sync::Notify;

use self::done::Done;
use super::sealed::{KeyId, Payloads, SealError};
use super::{
    Changes, Cleared, Head, Lookup, Operation, PageStart, RecordKey, Storage, StorageError, Tidied,
    Written,
};

/// How much of the file redb may keep in memory, in bytes.
const FILE_CACHE: usize = 256 << 20;

pub struct Local {
    shared: Arc<Shared>,
    changed: Notify,
}

pub(super) struct Shared {
    database: Database,
    payloads: Payloads,
    /// In memory, with a file too: what is asked for again after the process has ended was asked for
    /// by somebody who still waits.
    done: Mutex<Done>,
}

/// Why the records of an earlier run cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot make the directory {directory} (databroker_storage_connection_string)")]
    Directory {
        directory: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "{file} is in use by another process; file storage serves one databroker only, several need postgres"
    )]
    InUse { file: PathBuf },
    #[error("cannot open {file}")]
    File {
        file: PathBuf,
        #[source]
        source: Box<redb::Error>,
    },
    #[error(
        "{file} was written by a newer version (layout {found}, this one knows {known}); start that version again"
    )]
    Newer {
        file: PathBuf,
        found: u64,
        known: u64,
    },
    #[error("cannot use {file}")]
    Keys {
        file: PathBuf,
        #[source]
        source: SealError,
    },
}

impl Local {
    /// Records that are gone when the process ends.
    pub fn in_memory() -> Result<Self, StorageError> {
        let database = Database::builder()
            .create_with_backend(InMemoryBackend::new())
            .map_err(file_error)?;
        let shared = Shared {
            database,
            payloads: Payloads::clear(),
            done: Mutex::default(),
        };
        shared.prepare()?;
        Ok(Self::with(shared))
    }

    /// Records in `directory/postern.redb`.
    pub fn open(directory: &Path, payloads: Payloads) -> Result<Self, OpenError> {
        std::fs::create_dir_all(directory).map_err(|source| OpenError::Directory {
            directory: directory.to_owned(),
            source,
        })?;
        let file = directory.join("postern.redb");
        let failed = |source| OpenError::File {
            file: file.clone(),
            source,
        };
        let database = Database::builder()
            .set_cache_size(FILE_CACHE)
            .create(&file)
            .map_err(|error| match error {
                redb::DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { file: file.clone() },
                error => failed(Box::new(error.into())),
            })?;
        let shared = Shared {
            database,
            payloads,
            done: Mutex::default(),
        };
        let (layout, key) = shared.prepare().map_err(|error| match error {
            StorageError::File(source) => failed(source),
            other => failed(Box::new(redb::Error::Corrupted(other.to_string()))),
        })?;
        if layout > tables::LAYOUT {
            return Err(OpenError::Newer {
                file,
                found: layout,
                known: tables::LAYOUT,
            });
        }
        if let Some(key) = key {
            shared
                .payloads
                .accept(key)
                .map_err(|source| OpenError::Keys { file, source })?;
        }
        Ok(Self::with(shared))
    }

    fn with(shared: Shared) -> Self {
        Self {
            shared: Arc::new(shared),
            changed: Notify::new(),
        }
    }

    /// Runs `work` where it may block.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, StorageError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StorageError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            tokio::task::spawn_blocking(move || work(&shared))
                .await
                .unwrap_or(Err(StorageError::Interrupted))
        })
    }

    /// As [`Self::run`], and wakes the feed afterwards.
    fn run_and_wake<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, StorageError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StorageError>> {
        let running = self.run(work);
        Box::pin(async move {
            let result = running.await;
            self.changed.notify_one();
            result
        })
    }
}

impl Shared {
    /// Creates what a new file lacks. Returns the layout and the key that sealed last.
    fn prepare(&self) -> Result<(u64, Option<KeyId>), StorageError> {
        let transaction = self.database.begin_write().map_err(file_error)?;
        let found = tables::prepare(&transaction, self.payloads.current())?;
        transaction.commit().map_err(file_error)?;
        Ok(found)
    }
}

/// Every error of redb is the file's; which step failed stands in its text.
fn file_error(error: impl Into<redb::Error>) -> StorageError {
    StorageError::File(Box::new(error.into()))
}

impl Storage for Local {
    fn head(&self) -> BoxFuture<'_, Result<Head, StorageError>> {
        self.run(Shared::head)
    }

    fn get<'a>(
        &'a self,
        key: &'a RecordKey,
    ) -> BoxFuture<'a, Result<Option<Record>, StorageError>> {
        let key = key.clone();
        self.run(move |shared| shared.get(&key))
    }

    fn page(
        &self,
        kind: Option<String>,
        start: PageStart,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Record>, StorageError>> {
        self.run(move |shared| shared.page(kind.as_deref(), &start, limit))
    }

    fn count(&self, kind: Option<String>) -> BoxFuture<'_, Result<u64, StorageError>> {
        self.run(move |shared| shared.count(kind.as_deref()))
    }

    fn find(
        &self,
        kind: String,
        lookups: Vec<Lookup>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Record>, StorageError>> {
        self.run(move |shared| shared.find(&kind, &lookups, limit))
    }

    fn kinds(&self) -> BoxFuture<'_, Result<Vec<String>, StorageError>> {
        self.run(Shared::kinds)
    }

    fn changes(
        &self,
        kind: Option<String>,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'_, Result<Changes, StorageError>> {
        self.run(move |shared| shared.changes(kind.as_deref(), after, limit))
    }

    fn write(&self, batch: Vec<Operation>) -> BoxFuture<'_, Result<Written, StorageError>> {
        self.run_and_wake(move |shared| shared.write(batch, Timestamp::now()))
    }

    fn options(&self) -> BoxFuture<'_, Result<Vec<(String, Options)>, StorageError>> {
        self.run(Shared::options)
    }

    fn set_options(
        &self,
        kind: String,
        options: Options,
    ) -> BoxFuture<'_, Result<(), StorageError>> {
        self.run_and_wake(move |shared| shared.set_options(&kind, &options, Timestamp::now()))
    }

    fn clear(&self) -> BoxFuture<'_, Result<Cleared, StorageError>> {
        self.run_and_wake(Shared::clear)
    }

    fn lease<'a>(
        &'a self,
        name: &'a str,
        holder: &'a str,
        duration: Duration,
    ) -> BoxFuture<'a, Result<bool, StorageError>> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        self.run(move |shared| shared.lease(&name, &holder, duration, Timestamp::now()))
    }

    fn release<'a>(
        &'a self,
        name: &'a str,
        holder: &'a str,
    ) -> BoxFuture<'a, Result<(), StorageError>> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        self.run(move |shared| shared.release(&name, &holder))
    }

    fn tidy(&self, retention: Duration) -> BoxFuture<'_, Result<Tidied, StorageError>> {
        self.run_and_wake(move |shared| shared.tidy(retention, Timestamp::now()))
    }

    fn changed(&self) -> &Notify {
        &self.changed
    }
}
