//! A few connections, each with its prepared statements. What failed or was left in the middle is thrown away.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use postern_common::net::resolver::Resolver;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::connect::{ConnectError, Driver, connect};
use super::settings::Settings;
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
    settings: Settings,
    tls: MakeRustlsConnect,
    resolver: Resolver,
    readiness: watch::Sender<Readiness>,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
    /// Raised when everything that is open should be thrown away.
    generation: AtomicU64,
}

struct Connection {
    client: Client,
    statements: HashMap<&'static str, Statement>,
    generation: u64,
    born: Instant,
    used: Instant,
}

impl Pool {
    pub fn new(settings: Settings, tls: MakeRustlsConnect, resolver: Resolver) -> Self {
        let reason = "the database has not been opened yet".to_owned();
        Self {
            permits: Arc::new(Semaphore::new(settings.pool.max)),
            settings,
            tls,
            resolver,
            readiness: watch::Sender::new(Readiness::NotYet { reason }),
            idle: Mutex::default(),
            generation: AtomicU64::new(0),
        }
    }

    /// A connection that is not counted and does not come back.
    pub async fn connect(&self) -> Result<(Client, Driver), ConnectError> {
        connect(&self.settings, &self.tls, &self.resolver).await
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
        let permit = tokio::time::timeout(WAIT, Arc::clone(&self.permits).acquire_owned())
            .await
            .map_err(|_| StorageError::Deadline(WAIT))?
            .map_err(|_| StorageError::Interrupted)?;
        let generation = self.generation.load(Ordering::Relaxed);
        while let Some(connection) = self.idle().pop() {
            if self.is_usable(&connection) {
                return Ok(Pooled::new(self, connection, permit));
            }
        }
        let (client, driver) = self
            .connect()
            .await
            .map_err(|error| StorageError::NotReady {
                reason: error.to_string(),
            })?;
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(
                    reason = crate::causes(&error),
                    "a connection to Postgres ended"
                );
            }
        });
        let now = Instant::now();
        let connection = Connection {
            client,
            statements: HashMap::new(),
            generation,
            born: now,
            used: now,
        };
        Ok(Pooled::new(self, connection, permit))
    }

    fn is_usable(&self, connection: &Connection) -> bool {
        let pool = self.settings.pool;
        !connection.client.is_closed()
            && connection.generation == self.generation.load(Ordering::Relaxed)
            && connection.born.elapsed() < pool.max_lifetime
            && connection.used.elapsed() < pool.max_idle
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Throws away every connection: the server they lead to is not the one to talk to any more.
    pub fn empty(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.idle().clear();
    }
}

/// A connection on loan. It goes back when dropped, unless something was wrong with it.
pub(super) struct Pooled {
    pool: Arc<Pool>,
    connection: Option<Connection>,
    /// Failed: never to be used again.
    broken: bool,
    in_transaction: bool,
    /// A question is open. Who stops waiting for its answer leaves the connection in this state.
    in_flight: bool,
    _permit: OwnedSemaphorePermit,
}

impl Pooled {
    fn new(pool: &Arc<Pool>, connection: Connection, permit: OwnedSemaphorePermit) -> Self {
        Self {
            pool: Arc::clone(pool),
            connection: Some(connection),
            broken: false,
            in_transaction: false,
            in_flight: false,
            _permit: permit,
        }
    }

    /// Prepares statements once per connection.
    pub async fn prepare<const N: usize>(
        &mut self,
        sql: [&'static str; N],
    ) -> Result<[Statement; N], StorageError> {
        let mut statements = Vec::with_capacity(N);
        for sql in sql {
            let cached = self
                .connection
                .as_ref()
                .and_then(|it| it.statements.get(sql))
                .cloned();
            let statement = if let Some(statement) = cached {
                statement
            } else {
                let prepared = self
                    .answer(async |client| client.prepare(sql).await)
                    .await?;
                if let Some(connection) = &mut self.connection {
                    connection.statements.insert(sql, prepared.clone());
                }
                prepared
            };
            statements.push(statement);
        }
        <[Statement; N]>::try_from(statements).map_err(|_| StorageError::Interrupted)
    }

    fn client(&self) -> Result<&Client, StorageError> {
        self.connection
            .as_ref()
            .map(|it| &it.client)
            .ok_or(StorageError::Interrupted)
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
        ask: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, StorageError> {
        self.in_flight = true;
        let answer = ask(self.client()?).await;
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

impl Deref for Pooled {
    type Target = Pool;

    fn deref(&self) -> &Pool {
        &self.pool
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(mut connection) = self.connection.take()
            && !(self.broken || self.in_transaction || self.in_flight)
        {
            connection.used = Instant::now();
            let usable = self.pool.is_usable(&connection);
            if usable {
                self.pool.idle().push(connection);
            }
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
