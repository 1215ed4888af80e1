//! Looks at every server that a connection string names, and changes nothing: for whoever wants to know why there is
//! no database, or whether there will be one.

use std::time::Duration;

use futures::future::{join_all, select};
use jiff::Timestamp;
use postern_common::net::resolver::{LookupError, Resolver};
use tokio_postgres::{Client, Row};

use super::connect::{self, AttemptError, Connector, Driver, RESOLVE};
use super::schema::KNOWN;
use super::settings::Settings;
use super::socket::Place;
use super::{StartError, tls};
use crate::storage::sealed::{KeyId, Payloads};

/// For all questions to one server together.
const QUESTIONS: Duration = Duration::from_secs(4);

/// One server, as seen from here.
#[derive(Debug)]
pub struct Server {
    /// `host:port` as the connection string has it.
    pub name: String,
    /// The address, once the name is resolved.
    pub address: Option<String>,
    pub state: State,
}

#[derive(Debug)]
pub enum State {
    Unresolved(LookupError),
    /// Its name was not resolved within this time.
    Unanswered(Duration),
    Unusable(AttemptError),
    /// Can only be read from.
    Standby,
    Primary(Database),
}

/// What a databroker would find.
#[derive(Debug)]
pub struct Database {
    /// `server_version_num`: 160004.
    pub version: i32,
    /// To the second.
    pub clock: Option<Timestamp>,
    pub schema: Schema,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schema {
    /// The first databroker makes it.
    ToBeMade,
    /// It is not there, and this user must not make it.
    MustNotBeMade,
    /// It is there, and this user has not all rights on these of its parts.
    NoRights(Vec<String>),
    /// A newer Postern made it.
    Newer(i32),
    /// Its records are sealed with a key that is not configured here.
    OtherKey(String),
    Usable,
    /// It could not be asked.
    Unknown(String),
}

/// Looks at all servers at once.
pub async fn examine(
    settings: Settings,
    payloads: &Payloads,
    resolver: Resolver,
) -> Result<Vec<Server>, StartError> {
    let tls = tls::connector(&settings.tls)?;
    let hosts = settings.hosts.clone();
    let connector = Connector::new(settings, tls, resolver);
    let servers = hosts.iter().map(async |host| {
        let name = connect::name(host);
        let found = tokio::time::timeout(RESOLVE, connector.places(host)).await;
        let state = match found {
            Ok(Ok(places)) => {
                let each = places.into_iter().map(async |place| Server {
                    name: name.clone(),
                    address: Some(place.to_string()),
                    state: server(&connector, host, &place, payloads).await,
                });
                return join_all(each).await;
            }
            Ok(Err(error)) => State::Unresolved(error),
            Err(_) => State::Unanswered(RESOLVE),
        };
        vec![Server {
            name,
            address: None,
            state,
        }]
    });
    Ok(join_all(servers).await.into_iter().flatten().collect())
}

async fn server(
    connector: &Connector,
    host: &super::settings::Host,
    place: &Place,
    payloads: &Payloads,
) -> State {
    match connector.try_once(host, place).await {
        Ok((client, driver)) => {
            let asked = tokio::time::timeout(QUESTIONS, ask(&client, driver, payloads)).await;
            match asked {
                Ok(Ok(database)) => State::Primary(database),
                Ok(Err(error)) => State::Unusable(error),
                Err(_) => State::Unusable(AttemptError::Silent(QUESTIONS)),
            }
        }
        Err(AttemptError::ReadOnly) => State::Standby,
        Err(error) => State::Unusable(error),
    }
}

async fn ask(
    client: &Client,
    driver: Driver,
    payloads: &Payloads,
) -> Result<Database, AttemptError> {
    let questions = Box::pin(questions(client, payloads));
    match select(questions, driver).await {
        futures::future::Either::Left((database, _)) => Ok(database?),
        futures::future::Either::Right((ended, _)) => {
            ended?;
            Err(AttemptError::Closed)
        }
    }
}

async fn questions(
    client: &Client,
    payloads: &Payloads,
) -> Result<Database, tokio_postgres::Error> {
    client.batch_execute("BEGIN READ ONLY").await?;
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int, extract(epoch FROM clock_timestamp())::bigint",
            &[],
        )
        .await?;
    let schema = schema(client, payloads).await;
    Ok(Database {
        version: row.try_get(0)?,
        clock: Timestamp::from_second(row.try_get(1)?).ok(),
        schema: schema.unwrap_or_else(|error| Schema::Unknown(crate::causes(&error))),
    })
}

async fn schema(client: &Client, payloads: &Payloads) -> Result<Schema, tokio_postgres::Error> {
    let row = client
        .query_one(
            "SELECT n.oid IS NOT NULL, coalesce(has_schema_privilege(n.oid, 'USAGE'), false),
                 has_database_privilege(current_database(), 'CREATE')
             FROM (SELECT) AS one LEFT JOIN pg_namespace n ON n.nspname = 'postern'",
            &[],
        )
        .await?;
    match (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?) {
        (false, _, true) => return Ok(Schema::ToBeMade),
        (false, _, false) => return Ok(Schema::MustNotBeMade),
        (true, false, _) => return Ok(Schema::NoRights(vec!["postern".to_owned()])),
        (true, true, _) => {}
    }
    // Who may read `migrations` may learn the rest from a newer version.
    let tables = client
        .query(
            "SELECT c.relname::text, has_table_privilege(c.oid, 'SELECT') AND (c.relname = 'migrations' OR
                 (has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE')
                  AND has_table_privilege(c.oid, 'DELETE')))
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = 'postern' AND c.relkind = 'r' ORDER BY 1",
            &[],
        )
        .await?;
    if tables.is_empty() {
        return Ok(Schema::ToBeMade);
    }
    let closed: Vec<String> = tables
        .iter()
        .filter(|row| !row.get::<_, bool>(1))
        .map(|row| format!("postern.{}", row.get::<_, String>(0)))
        .collect();
    if !closed.is_empty() {
        return Ok(Schema::NoRights(closed));
    }
    let newest = "SELECT coalesce(max(version), 0), coalesce(max(compatible_from), 0) FROM postern.migrations";
    let row = client.query_one(newest, &[]).await?;
    if row.try_get::<_, i32>(1)? > KNOWN {
        return Ok(Schema::Newer(row.try_get(0)?));
    }
    let Some(row) = client
        .query_opt("SELECT sealed_by FROM postern.head", &[])
        .await?
    else {
        return Ok(Schema::ToBeMade);
    };
    other_key(client, payloads, &row).await
}

async fn other_key(
    client: &Client,
    payloads: &Payloads,
    head: &Row,
) -> Result<Schema, tokio_postgres::Error> {
    let used: Vec<Vec<u8>> = head.try_get(0)?;
    for key in used.iter().filter_map(|key| KeyId::from_bytes(key)) {
        let Err(unknown) = payloads.accept(key) else {
            continue;
        };
        let key = key.as_bytes().as_slice();
        let needed = client.query_one(super::schema::NEEDED, &[&key]).await?;
        if needed.try_get(0)? {
            return Ok(Schema::OtherKey(unknown.to_string()));
        }
    }
    Ok(Schema::Usable)
}
