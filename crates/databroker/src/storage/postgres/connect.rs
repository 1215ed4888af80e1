//! A connection to the one server that can be written to: every address of every host at once, each with its own
//! deadline, the first that answers as primary wins.
//!
//! tokio-postgres tries hosts in turn, and a host that accepts and then stays silent stops it for ever.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use postern_common::net::resolver::{LookupError, Resolver};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, Config, config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::settings::{Host, Settings, SslMode, password_in};
use super::socket::{Place, Socket};

/// For each address, unless `connect_timeout` says otherwise.
const EACH: Duration = Duration::from_secs(2);
/// For name resolution and all addresses together, beyond the time for each.
const RESOLVE: Duration = Duration::from_secs(2);

/// A statement that runs longer is ended by the server.
const SESSION: &str = "SET statement_timeout = '15s'; SET idle_in_transaction_session_timeout = '30s'; \
                       SET lock_timeout = '10s'";

type TlsConnector = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;

/// What drives a connection: it has to be polled until it ends.
pub(super) type Driver =
    tokio_postgres::Connection<Socket, <TlsConnector as TlsConnect<Socket>>::Stream>;

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
}

impl Connector {
    pub fn new(settings: Settings, tls: MakeRustlsConnect, resolver: Resolver) -> Self {
        Self {
            settings,
            tls,
            resolver,
        }
    }

    /// For each address.
    fn each(&self) -> Duration {
        self.settings.connect_timeout.unwrap_or(EACH)
    }

    /// [`Self::connect`] has an answer by then: names are resolved in turn, addresses tried at once.
    pub fn longest(&self) -> Duration {
        self.settings
            .hosts
            .iter()
            .fold(self.each(), |sum, _| sum.saturating_add(RESOLVE))
    }

    pub async fn connect(&self) -> Result<(Client, Driver), ConnectError> {
        let Self {
            settings,
            tls,
            resolver,
        } = self;
        let mut attempts = String::new();
        let mut note = |place: &dyn std::fmt::Display, what: &dyn std::fmt::Display| {
            let separator = if attempts.is_empty() { "" } else { "; " };
            let _ = write!(attempts, "{separator}{place}: {what}");
        };
        let each = self.each();
        let mut running = FuturesUnordered::new();
        for host in &settings.hosts {
            match tokio::time::timeout(RESOLVE, places(host, resolver)).await {
                Ok(Ok(places)) => running.extend(places.into_iter().map(|place| async move {
                    let attempt =
                        tokio::time::timeout(each, attempt(settings, tls, host, &place)).await;
                    let result =
                        attempt.unwrap_or_else(|_| Err(format!("no answer within {each:?}")));
                    (place, result)
                })),
                Ok(Err(error)) => note(&name(host), &error),
                Err(_) => note(&name(host), &"its name was not resolved in time"),
            }
        }
        while let Some((place, result)) = running.next().await {
            match result {
                Ok(connection) => return Ok(connection),
                Err(reason) => note(&place, &reason),
            }
        }
        Err(ConnectError { attempts })
    }
}

fn name(host: &Host) -> String {
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
) -> Result<(Client, Driver), String> {
    let modes: &[config::SslMode] = match (place, settings.tls.mode) {
        (Place::Unix(_), _) | (_, SslMode::Disable) => &[config::SslMode::Disable],
        (_, SslMode::Allow) => &[config::SslMode::Disable, config::SslMode::Require],
        (_, SslMode::Prefer) => &[config::SslMode::Require, config::SslMode::Disable],
        _ => &[config::SslMode::Require],
    };
    let mut reason = String::new();
    for mode in modes {
        match attempt_with(settings, tls, host, place, *mode).await {
            Ok(connection) => return Ok(connection),
            Err(error) => reason = error,
        }
    }
    Err(reason)
}

async fn attempt_with(
    settings: &Settings,
    tls: &MakeRustlsConnect,
    host: &Host,
    place: &Place,
    mode: config::SslMode,
) -> Result<(Client, Driver), String> {
    let told = |error: tokio_postgres::Error| crate::causes(&error);
    let socket = Socket::open(place)
        .await
        .map_err(|error| error.to_string())?;
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
            .map_err(|error| error.to_string())?;
    let (client, mut driver) = config.connect_raw(socket, connector).await.map_err(told)?;
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
        checked = check => checked.map_err(told)?,
        ended = &mut driver => {
            ended.map_err(told)?;
            return Err("the server closed the connection".to_owned());
        }
    };
    if read_only {
        return Err("it can only be read from (a standby?)".to_owned());
    }
    Ok((client, driver))
}

fn password(settings: &Settings, host: &str, port: u16) -> Option<String> {
    settings.password.clone().or_else(|| {
        let file = std::fs::read_to_string(settings.passfile.as_ref()?).ok()?;
        password_in(&file, host, port, &settings.database, &settings.user)
    })
}
