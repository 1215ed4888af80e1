//! From the configuration to a running databroker.

use std::sync::Arc;

use postern_common::config::{Config, Service, StorageOptions};
use postern_common::launch::Launched;
use postern_common::lifecycle::{Lifecycle, NotReady};
use postern_common::net::resolver::{LookupError, Resolver};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::feed::State;
use crate::manager::{self, ManagerError};
use crate::storage::local::{Local, OpenError};
use crate::storage::postgres::examine::Server;
use crate::storage::postgres::settings::{Settings, SettingsError};
use crate::storage::postgres::{self, Postgres};
use crate::storage::sealed::Payloads;
use crate::storage::{Storage, StorageError};
use crate::tidy::Housekeeping;
use crate::{Databroker, causes};

/// The storage can't be used, and waiting would not help.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the storage in memory cannot be made")]
    Memory(#[source] StorageError),
    #[error("the storage in files cannot be opened")]
    File(#[from] OpenError),
    #[error("databroker_storage_connection_string")]
    ConnectionString(#[from] SettingsError),
    #[error("name resolution")]
    Resolver(#[from] LookupError),
    #[error("Postgres, as databroker_storage_connection_string has it")]
    Postgres(#[from] postgres::StartError),
    #[error(transparent)]
    Manager(#[from] ManagerError),
}

/// Opens the storage that the configuration names and starts a databroker on it, with its identity
/// manager. Readiness and
/// `/status` follow the storage.
pub fn start(launched: &Launched) -> Result<Databroker, StartError> {
    let config = Arc::clone(&launched.config.borrow());
    let payloads = Payloads::sealed(&config.secrets.storage, &config.secrets.shared);
    let storage = open(&config, payloads.clone(), launched.lifecycle.stopping())?;
    let databroker = Databroker::start(
        storage,
        Housekeeping::default(),
        launched.lifecycle.stopping(),
    );
    // Where proxy runs too, people who are signed in go on without a database.
    let matters = if config.services.contains(Service::Proxy) {
        Matters::ToItself
    } else {
        Matters::ToTheProcess
    };
    let first = launched.lifecycle.not_ready(Service::Databroker.name());
    let up = launched.metrics.add(
        "postern_databroker_storage_up",
        "1 while the storage answers, else 0",
        Gauge::default(),
    );
    launched.lifecycle.spawn(tell_readiness(
        databroker.state(),
        launched.lifecycle.clone(),
        matters,
        first,
        up,
    ));
    manager::start(&databroker, launched)?;
    let stop = launched.lifecycle.stopping();
    let follow = follow(launched.config.clone(), payloads);
    launched
        .lifecycle
        .spawn(stop.run_until_cancelled_owned(follow));
    Ok(databroker)
}

/// What a start would refuse whatever the world is like: a connection string that cannot be read,
/// or that names certificates that cannot be used.
pub fn check(config: &Config) -> Result<(), StartError> {
    if let StorageOptions::Postgres { connection_string } = &config.storage {
        let settings = Settings::parse(connection_string, &environment)?;
        Postgres::check(&settings)?;
    }
    Ok(())
}

/// Looks at the database that the configuration names, and changes nothing; `None` where it names
/// none.
pub async fn examine(config: &Config) -> Result<Option<Vec<Server>>, StartError> {
    let StorageOptions::Postgres { connection_string } = &config.storage else {
        return Ok(None);
    };
    let settings = Settings::parse(connection_string, &environment)?;
    let payloads = Payloads::sealed(&config.secrets.storage, &config.secrets.shared);
    let resolver = Resolver::new(config.dns.clone())?;
    let servers = postgres::examine::examine(settings, &payloads, resolver).await?;
    Ok(Some(servers))
}

fn open(
    config: &Config,
    payloads: Payloads,
    stop: CancellationToken,
) -> Result<Arc<dyn Storage>, StartError> {
    match &config.storage {
        StorageOptions::Memory => Ok(Arc::new(Local::in_memory().map_err(StartError::Memory)?)),
        StorageOptions::File { directory } => Ok(Arc::new(Local::open(directory, payloads)?)),
        StorageOptions::Postgres { connection_string } => {
            let settings = Settings::parse(connection_string, &environment)?;
            let resolver = Resolver::new(config.dns.clone())?;
            Ok(Arc::new(Postgres::start(
                settings, payloads, resolver, stop,
            )?))
        }
    }
}

/// Takes over rotated storage keys. Another storage needs a restart.
async fn follow(mut config: watch::Receiver<Arc<Config>>, payloads: Payloads) {
    let mut before = config.borrow().storage.clone();
    while config.changed().await.is_ok() {
        let new = Arc::clone(&config.borrow_and_update());
        payloads.replace(&new.secrets.storage, &new.secrets.shared);
        if before != new.storage {
            before = new.storage.clone();
            tracing::warn!("another storage is configured; it is used from the next start on");
            if let Err(error) = check(&new) {
                let error = causes(&error);
                tracing::error!(error, "the next start will refuse it");
            }
        }
    }
}

/// What libpq reads beside the connection string: `PGHOST`, `PGPASSFILE` and their likes.
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Whose readiness rests on the storage.
#[derive(Debug, Clone, Copy)]
enum Matters {
    ToTheProcess,
    ToItself,
}

async fn tell_readiness(
    mut state: watch::Receiver<State>,
    lifecycle: Lifecycle,
    matters: Matters,
    first: NotReady,
    up: Gauge,
) {
    let name = Service::Databroker.name();
    let mut guard = Some(first);
    let stop = lifecycle.stopping();
    loop {
        let now = state.borrow_and_update().clone();
        up.set(i64::from(matches!(now, State::Current { .. })));
        match now {
            State::Current { .. } => guard = None,
            State::Behind { reason, .. } => {
                let held = guard.take().unwrap_or_else(|| match matters {
                    Matters::ToTheProcess => lifecycle.not_ready(name),
                    Matters::ToItself => lifecycle.degraded(name, &reason),
                });
                held.because(&reason);
                guard = Some(held);
            }
        }
        match stop.run_until_cancelled(state.changed()).await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => return,
        }
    }
}
