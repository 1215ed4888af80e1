//! A few connections, each with its prepared statements. What failed or was left in the middle is thrown away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_postgres::{
    BuildError, ClientWrapper, Hook, HookError, Object, PoolError, QueueMode, Runtime, TimeoutType,
    Timeouts,
};
use tokio::sync::watch;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Statement};

use super::connect::{ConnectError, Connector, Driver};
use super::manager::{manager, reason};
use super::settings::PoolSettings;
use crate::storage::StorageError;

/// How long to wait for a free connection.
const WAIT: Duration = Duration::from_secs(5);

/// Whether the database can be used yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Readiness {
    NotYet { reason: String },
    Ready,
}

pub(super) struct Pool {
    connections: deadpool_postgres::Pool,
    connector: Connector,
    readiness: watch::Sender<Readiness>,
    /// What was opened before is not used again.
    emptied: Arc<Last>,
    /// What was asked before is not waited for any more.
    given_up: Last,
}

/// When something last happened that concerns everything from before it.
struct Last(watch::Sender<Instant>);

impl Last {
    fn new() -> Self {
        Self(watch::Sender::new(Instant::now()))
    }

    fn now(&self) {
        self.0.send_replace(Instant::now());
    }

    fn since(&self, moment: Instant) -> bool {
        moment < *self.0.borrow()
    }

    /// Returns when it happens after `moment`.
    async fn after(&self, moment: Instant) {
        // The sender lives here, so waiting does not fail.
        let _ = self.0.subscribe().wait_for(|last| moment < *last).await;
    }
}

impl Pool {
    pub fn new(connector: Connector, settings: PoolSettings) -> Result<Self, BuildError> {
        let emptied = Arc::new(Last::new());
        let connections = deadpool_postgres::Pool::builder(manager(connector.clone()))
            .max_size(settings.max)
            .queue_mode(QueueMode::Lifo)
            .timeouts(Timeouts {
                wait: Some(WAIT),
                create: Some(connector.longest()),
                recycle: Some(WAIT),
            })
            .runtime(Runtime::Tokio1)
            .pre_recycle(fresh(settings, Arc::clone(&emptied)))
            .build()?;
        let reason = "the database has not been opened yet".to_owned();
        Ok(Self {
            connections,
            connector,
            readiness: watch::Sender::new(Readiness::NotYet { reason }),
            emptied,
            given_up: Last::new(),
        })
    }

    /// A connection that is not counted and does not come back.
    pub async fn connect(&self) -> Result<(Client, Driver), ConnectError> {
        self.connector.connect().await
    }

    pub fn tell(&self, readiness: Readiness) {
        self.readiness.send_replace(readiness);
    }

    /// A connection to a database that has been opened.
    pub async fn get(self: &Arc<Self>) -> Result<Pooled, StorageError> {
        if let Readiness::NotYet { reason } = &*self.readiness.borrow() {
            return Err(StorageError::NotReady {
                reason: reason.clone(),
            });
        }
        self.get_unopened().await
    }

    /// A connection, even if the database has not been opened yet.
    pub async fn get_unopened(self: &Arc<Self>) -> Result<Pooled, StorageError> {
        let asked = Instant::now();
        let connection = self.connections.get().await.map_err(explain)?;
        Ok(Pooled {
            pool: Arc::clone(self),
            connection: Some(connection),
            asked,
            broken: false,
            in_transaction: false,
            in_flight: false,
        })
    }

    /// Throws away every connection: the server they lead to is not the one to talk to any more.
    pub fn empty(&self) {
        // First, so that what comes back meanwhile is not used again either.
        self.emptied.now();
        drop(self.connections.retain(|_, _| false));
    }

    /// The server says nothing any more: nobody waits for an answer of it.
    pub fn give_up(&self) {
        self.given_up.now();
        self.empty();
    }
}

/// Keeps what is too old, or from before the pool was emptied, from being used again.
fn fresh(settings: PoolSettings, emptied: Arc<Last>) -> Hook {
    Hook::sync_fn(move |_, metrics| {
        let stale = emptied.since(metrics.created)
            || metrics.age() >= settings.max_lifetime
            || metrics.last_used() >= settings.max_idle;
        if stale {
            return Err(HookError::message("not fresh any more"));
        }
        Ok(())
    })
}

fn explain(error: PoolError) -> StorageError {
    let reason = match error {
        PoolError::Timeout(TimeoutType::Wait) => return StorageError::Deadline(WAIT),
        PoolError::Backend(error) => reason(&error),
        other => crate::causes(&other),
    };
    StorageError::NotReady { reason }
}

/// A connection on loan. It goes back when dropped, unless something was wrong with it.
pub(super) struct Pooled {
    pool: Arc<Pool>,
    connection: Option<Object>,
    asked: Instant,
    /// Failed: never to be used again.
    broken: bool,
    in_transaction: bool,
    /// A question is open. Who stops waiting for its answer leaves the connection in this state.
    in_flight: bool,
}

impl Pooled {
    /// Prepares statements once per connection.
    pub async fn prepare<const N: usize>(
        &mut self,
        sql: [&'static str; N],
    ) -> Result<[Statement; N], StorageError> {
        let mut statements = Vec::with_capacity(N);
        for sql in sql {
            let statement = self
                .answer(async |client| client.prepare_cached(sql).await)
                .await?;
            statements.push(statement);
        }
        <[Statement; N]>::try_from(statements).map_err(|_| StorageError::Interrupted)
    }

    /// From here on the connection is thrown away, unless [`Self::settled`] is reached.
    pub fn in_transaction(&mut self) {
        self.in_transaction = true;
    }

    /// The transaction has ended.
    pub fn settled(&mut self) {
        self.in_transaction = false;
    }

    /// Waits for the answer of something that was asked on this connection.
    pub async fn answer<T>(
        &mut self,
        ask: impl AsyncFnOnce(&ClientWrapper) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, StorageError> {
        self.in_flight = true;
        let client = self.connection.as_ref().ok_or(StorageError::Interrupted)?;
        let answer = tokio::select! {
            biased;
            answer = ask(client) => answer,
            () = self.pool.given_up.after(self.asked) => return Err(StorageError::GivenUp),
        };
        self.in_flight = false;
        answer.map_err(|error| self.failed(error))
    }

    /// An error of this connection; one that concerns the server empties the pool.
    fn failed(&mut self, error: tokio_postgres::Error) -> StorageError {
        // What a transaction does not survive is rolled back to a savepoint, or the connection is thrown away.
        self.broken |= !self.in_transaction;
        if means_another_server(&error) {
            self.pool.empty();
        }
        StorageError::Postgres(Box::new(error))
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let in_doubt = self.broken || self.in_transaction || self.in_flight;
        // The pool compares with the moment a connection was open; one may have been on its way when it was emptied.
        if let Some(connection) = self.connection.take()
            && (in_doubt || self.pool.emptied.since(self.asked))
        {
            drop(Object::take(connection));
        }
    }
}

/// The server is going down, cannot be written to, or cannot be heard any more.
fn means_another_server(error: &tokio_postgres::Error) -> bool {
    let Some(code) = error.code() else {
        return true;
    };
    let gone = [
        SqlState::READ_ONLY_SQL_TRANSACTION,
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        // A standby does not tell its position in the log.
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
    ];
    gone.contains(code) || code.code().starts_with("08")
}
