//! Records in Postgres, shared by any number of databrokers.
//!
//! Versions come from one row, `postern.head`, which every writing transaction locks first. A transaction therefore
//! gets its version only after all with lower ones have ended, and readers see versions appear in order. The price
//! is that commits queue; the writer makes up for it by putting everything that waits into one.
//!
//! Reads and writes go to the primary only: a standby may show commits in another order.

mod connect;
pub mod examine;
mod listen;
mod manager;
mod pool;
mod read;
mod schema;
pub mod settings;
mod socket;
mod tls;
mod write;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use postern_common::net::resolver::Resolver;
use postern_common::rpc::stubs::databroker::{Options, Record};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::connect::Connector;
use self::pool::{Pool, Readiness};
use self::settings::Settings;
use super::sealed::Payloads;
use super::{
    Changes, Cleared, Head, Lookup, Operation, PageStart, RecordKey, Storage, StorageError, Tidied,
    Written,
};

pub use self::connect::AttemptError;
pub use self::tls::TlsError;

/// First and longest pause between attempts to open the database, and to listen again.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Why the database cannot even be tried.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("TLS")]
    Tls(#[from] TlsError),
    #[error("the pool of connections cannot be set up")]
    Pool(#[from] deadpool_postgres::BuildError),
}

pub struct Postgres {
    shared: Arc<Shared>,
}

struct Shared {
    pool: Arc<Pool>,
    payloads: Payloads,
    changed: Notify,
}

impl Postgres {
    /// Whether the certificates that the settings name can be used.
    pub fn check(settings: &Settings) -> Result<(), StartError> {
        tls::connector(&settings.tls)?;
        Ok(())
    }

    /// Begins to open the database, and goes on trying until it can; until then every call tells why not. Fails only
    /// when certificates named in the settings cannot be read, or no pool made.
    pub fn start(
        settings: Settings,
        payloads: Payloads,
        resolver: Resolver,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        let tls = tls::connector(&settings.tls)?;
        let limits = settings.pool;
        let connector = Connector::new(settings, tls, resolver);
        let pool = Arc::new(Pool::new(connector, limits)?);
        let shared = Arc::new(Shared {
            pool,
            payloads,
            changed: Notify::new(),
        });
        let work = {
            let shared = Arc::clone(&shared);
            async move {
                open(&shared).await;
                listen::run(&shared).await;
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = work => {}
            }
        });
        Ok(Self { shared })
    }
}

/// Returns when the database can be used.
async fn open(shared: &Shared) {
    let mut pause = FIRST_PAUSE;
    let mut last = String::new();
    loop {
        let opened = async {
            let mut connection = shared.pool.get_unopened().await?;
            schema::open(&mut connection, &shared.payloads).await
        };
        match opened.await {
            Ok(()) => break,
            Err(error) => {
                let reason = crate::causes(&error);
                // Said once, not at each attempt.
                if reason != last {
                    tracing::error!(%reason, "the database cannot be opened yet; trying again");
                    last.clone_from(&reason);
                }
                shared.pool.tell(Readiness::NotYet { reason });
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    if !last.is_empty() {
        tracing::info!("the database is open");
    }
    shared.pool.tell(Readiness::Ready);
    shared.changed.notify_one();
}

impl Storage for Postgres {
    fn head(&self) -> BoxFuture<'_, Result<Head, StorageError>> {
        Box::pin(self.shared.head())
    }

    fn get<'a>(
        &'a self,
        key: &'a RecordKey,
    ) -> BoxFuture<'a, Result<Option<Record>, StorageError>> {
        Box::pin(self.shared.get(key))
    }

    fn page(
        &self,
        kind: Option<String>,
        start: PageStart,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Record>, StorageError>> {
        Box::pin(self.shared.page(kind, start, limit))
    }

    fn count(&self, kind: Option<String>) -> BoxFuture<'_, Result<u64, StorageError>> {
        Box::pin(self.shared.count(kind))
    }

    fn find(
        &self,
        kind: String,
        lookups: Vec<Lookup>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Record>, StorageError>> {
        Box::pin(self.shared.find(kind, lookups, limit))
    }

    fn kinds(&self) -> BoxFuture<'_, Result<Vec<String>, StorageError>> {
        Box::pin(self.shared.kinds())
    }

    fn changes(
        &self,
        kind: Option<String>,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'_, Result<Changes, StorageError>> {
        Box::pin(self.shared.changes(kind, after, limit))
    }

    fn write(&self, batch: Vec<Operation>) -> BoxFuture<'_, Result<Written, StorageError>> {
        Box::pin(self.shared.write(batch))
    }

    fn options(&self) -> BoxFuture<'_, Result<Vec<(String, Options)>, StorageError>> {
        Box::pin(self.shared.options())
    }

    fn set_options(
        &self,
        kind: String,
        options: Options,
    ) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(self.shared.set_options(kind, options))
    }

    fn clear(&self) -> BoxFuture<'_, Result<Cleared, StorageError>> {
        Box::pin(self.shared.clear())
    }

    fn lease<'a>(
        &'a self,
        name: &'a str,
        holder: &'a str,
        duration: Duration,
    ) -> BoxFuture<'a, Result<bool, StorageError>> {
        Box::pin(self.shared.lease(name, holder, duration))
    }

    fn release<'a>(
        &'a self,
        name: &'a str,
        holder: &'a str,
    ) -> BoxFuture<'a, Result<(), StorageError>> {
        Box::pin(self.shared.release(name, holder))
    }

    fn tidy(&self, retention: Duration) -> BoxFuture<'_, Result<Tidied, StorageError>> {
        Box::pin(self.shared.tidy(retention))
    }

    fn changed(&self) -> &Notify {
        &self.shared.changed
    }
}
