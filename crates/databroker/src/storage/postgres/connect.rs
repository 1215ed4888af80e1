//! A connection to the one server that can be written to: every address of every host at once, each with its own
//! deadline, the first that answers as primary wins.
//!
//! tokio-postgres tries hosts in turn, and a host that accepts and then stays silent stops it for ever.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use postern_common::net::resolver::{LookupError, Resolver};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, Config, config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::settings::{Host, Settings, SslMode, password_in};
use super::socket::{Place, Socket};

/// For each address, unless `connect_timeout` says otherwise.
const EACH: Duration = Duration::from_secs(2);
/// For the name of each host; all are looked up at once.
pub(super) const RESOLVE: Duration = Duration::from_secs(2);
/// Before an address is tried again for as long as others have not said anything: a standby may be promoted.
const AGAIN: Duration = Duration::from_millis(250);

/// A statement that runs longer is ended by the server.
const SESSION: &str = "SET statement_timeout = '15s'; SET idle_in_transaction_session_timeout = '30s'; \
                       SET lock_timeout = '10s'";

type TlsConnector = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;

/// What drives a connection: it has to be polled until it ends.
pub(super) type Driver =
    tokio_postgres::Connection<Socket, <TlsConnector as TlsConnect<Socket>>::Stream>;

/// Why an address gives no connection to write with.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    #[error("{0}")]
    Unreachable(io::Error),
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("{0}")]
    Name(String),
    #[error("{}", crate::causes(.0))]
    Postgres(#[from] tokio_postgres::Error),
    #[error("the server closed the connection")]
    Closed,
    #[error("it can only be read from (a standby?)")]
    ReadOnly,
}

impl AttemptError {
    /// Postgres' own code of the error, where it is one of its errors.
    pub fn sql_state(&self) -> Option<&str> {
        match self {
            Self::Postgres(error) => error.code().map(SqlState::code),
            _ => None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no Postgres server can be written to: {attempts}")]
pub struct ConnectError {
    /// What happened at each address.
    pub attempts: String,
}

/// Opens connections; knows all that it takes.
#[derive(Clone)]
pub(super) struct Connector {
    settings: Settings,
    tls: MakeRustlsConnect,
    resolver: Resolver,
    unresolved: Unresolved,
}

/// Hosts whose names do not resolve, so that the log says it once and not with every connection.
#[derive(Debug, Clone, Default)]
struct Unresolved(Arc<Mutex<HashSet<String>>>);

impl Unresolved {
    fn note(&self, host: &str, found: Result<(), &str>) {
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Err(reason) if hosts.insert(host.to_owned()) => tracing::warn!(
                host,
                reason,
                "a host of databroker_storage_connection_string does not resolve; the others are used"
            ),
            Ok(()) if hosts.remove(host) => {
                tracing::info!(host, "the host of the database resolves again");
            }
            _ => {}
        }
    }
}

/// What comes of one step towards a connection.
enum Step<'c> {
    Looked {
        host: &'c Host,
        places: Result<Vec<Place>, String>,
    },
    Tried {
        host: &'c Host,
        place: Place,
        result: Result<Box<(Client, Driver)>, String>,
        /// Not for the first time.
        again: bool,
    },
}

impl Connector {
    pub fn new(settings: Settings, tls: MakeRustlsConnect, resolver: Resolver) -> Self {
        Self {
            settings,
            tls,
            resolver,
            unresolved: Unresolved::default(),
        }
    }

    /// For each address.
    fn each(&self) -> Duration {
        self.settings.connect_timeout.unwrap_or(EACH)
    }

    /// [`Self::connect`] has an answer by then.
    pub fn longest(&self) -> Duration {
        self.each().saturating_add(RESOLVE)
    }

    pub async fn connect(&self) -> Result<(Client, Driver), ConnectError> {
        let mut attempts = String::new();
        let mut note = |place: &dyn std::fmt::Display, what: &dyn std::fmt::Display| {
            let separator = if attempts.is_empty() { "" } else { "; " };
            let _ = write!(attempts, "{separator}{place}: {what}");
        };
        let hosts = self.settings.hosts.iter();
        let mut running: FuturesUnordered<BoxFuture<'_, Step<'_>>> =
            hosts.map(|host| self.look_up(host).boxed()).collect();
        // Hosts and addresses that have not said anything yet. The others are tried again meanwhile.
        let mut silent = running.len();
        while silent > 0
            && let Some(step) = running.next().await
        {
            match step {
                Step::Looked { host, places } => {
                    silent -= 1;
                    match places {
                        Ok(places) => {
                            silent += places.len();
                            running.extend(
                                places
                                    .into_iter()
                                    .map(|place| self.attempt(host, place, false).boxed()),
                            );
                        }
                        Err(reason) => note(&name(host), &reason),
                    }
                }
                Step::Tried {
                    result: Ok(connection),
                    ..
                } => return Ok(*connection),
                Step::Tried {
                    host,
                    place,
                    result: Err(reason),
                    again,
                } => {
                    if !again {
                        silent -= 1;
                        note(&place, &reason);
                    }
                    running.push(self.attempt(host, place, true).boxed());
                }
            }
        }
        Err(ConnectError { attempts })
    }

    async fn look_up<'c>(&self, host: &'c Host) -> Step<'c> {
        let (wanted, resolver, unresolved) =
            (host.clone(), self.resolver.clone(), self.unresolved.clone());
        // Told in the log also when another host is faster.
        let looking = tokio::spawn(async move {
            let found = tokio::time::timeout(RESOLVE, places(&wanted, &resolver)).await;
            let found = match found {
                Ok(found) => found.map_err(|error| error.to_string()),
                Err(_) => Err("its name was not resolved in time".to_owned()),
            };
            let told = found.as_ref().map(drop).map_err(String::as_str);
            unresolved.note(&name(&wanted), told);
            found
        });
        let places = looking.await.unwrap_or_else(|error| Err(error.to_string()));
        Step::Looked { host, places }
    }

    async fn attempt<'c>(&'c self, host: &'c Host, place: Place, again: bool) -> Step<'c> {
        if again {
            tokio::time::sleep(AGAIN).await;
        }
        let result = self.try_once(host, &place).await;
        let result = result.map(Box::new).map_err(|error| error.to_string());
        Step::Tried {
            host,
            place,
            result,
            again,
        }
    }

    /// One attempt at one address, within its deadline.
    pub async fn try_once(
        &self,
        host: &Host,
        place: &Place,
    ) -> Result<(Client, Driver), AttemptError> {
        let each = self.each();
        let attempt = attempt(&self.settings, &self.tls, host, place);
        tokio::time::timeout(each, attempt)
            .await
            .unwrap_or(Err(AttemptError::Silent(each)))
    }

    /// All addresses of a host.
    pub async fn places(&self, host: &Host) -> Result<Vec<Place>, LookupError> {
        places(host, &self.resolver).await
    }
}

pub(super) fn name(host: &Host) -> String {
    match host {
        Host::Tcp { name, port, .. } => format!("{name}:{port}"),
        Host::Unix { directory, .. } => directory.display().to_string(),
    }
}

async fn places(host: &Host, resolver: &Resolver) -> Result<Vec<Place>, LookupError> {
    Ok(match host {
        Host::Tcp {
            address: Some(address),
            port,
            ..
        } => {
            vec![Place::Tcp(SocketAddr::new(*address, *port))]
        }
        Host::Tcp { name, port, .. } => {
            let found = resolver.lookup(name).await?.addresses;
            found
                .into_iter()
                .map(|address| Place::Tcp(SocketAddr::new(address, *port)))
                .collect()
        }
        Host::Unix { directory, port } => {
            vec![Place::Unix(directory.join(format!(".s.PGSQL.{port}")))]
        }
    })
}

async fn attempt(
    settings: &Settings,
    tls: &MakeRustlsConnect,
    host: &Host,
    place: &Place,
) -> Result<(Client, Driver), AttemptError> {
    let modes: &[config::SslMode] = match (place, settings.tls.mode) {
        (Place::Unix(_), _) | (_, SslMode::Disable) => &[config::SslMode::Disable],
        (_, SslMode::Allow) => &[config::SslMode::Disable, config::SslMode::Require],
        (_, SslMode::Prefer) => &[config::SslMode::Require, config::SslMode::Disable],
        _ => &[config::SslMode::Require],
    };
    let mut last = AttemptError::Closed;
    for mode in modes {
        match attempt_with(settings, tls, host, place, *mode).await {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn attempt_with(
    settings: &Settings,
    tls: &MakeRustlsConnect,
    host: &Host,
    place: &Place,
    mode: config::SslMode,
) -> Result<(Client, Driver), AttemptError> {
    let socket = Socket::open(place)
        .await
        .map_err(AttemptError::Unreachable)?;
    let (host_name, port) = match host {
        Host::Tcp { name, port, .. } => (name.as_str(), *port),
        Host::Unix { port, .. } => ("localhost", *port),
    };
    let mut config = Config::new();
    config
        .user(&settings.user)
        .dbname(&settings.database)
        .application_name(&settings.application_name)
        .ssl_mode(mode);
    if !settings.options.is_empty() {
        config.options(&settings.options);
    }
    if let Some(password) = password(settings, host_name, port) {
        config.password(password);
    }
    let connector: TlsConnector =
        MakeTlsConnect::<Socket>::make_tls_connect(&mut tls.clone(), host_name)
            .map_err(|error| AttemptError::Name(error.to_string()))?;
    let (client, mut driver) = config.connect_raw(socket, connector).await?;
    // The driver must be polled for the client to make progress.
    let check = async {
        client.batch_execute(SESSION).await?;
        let row = client
            .query_one(
                "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool",
                &[],
            )
            .await?;
        row.try_get::<_, bool>(0)
    };
    let read_only = tokio::select! {
        checked = check => checked?,
        ended = &mut driver => {
            ended?;
            return Err(AttemptError::Closed);
        }
    };
    if read_only {
        return Err(AttemptError::ReadOnly);
    }
    Ok((client, driver))
}

fn password(settings: &Settings, host: &str, port: u16) -> Option<String> {
    settings.password.clone().or_else(|| {
        let file = std::fs::read_to_string(settings.passfile.as_ref()?).ok()?;
        password_in(&file, host, port, &settings.database, &settings.user)
    })
}
