//! The schema `postern`: made under a lock at the first start, widened by later versions.

use tokio_postgres::error::SqlState;

use super::pool::Pooled;
use super::write::USE_KEY;
use crate::storage::StorageError;
use crate::storage::sealed::{KeyId, Payloads};

/// Which migrations this program knows.
pub(super) const KNOWN: i32 = 2;

/// Held while the schema is looked at and changed, so that first starts do not collide. Any number that others do
/// not use.
const LOCK: i64 = 0x706f_7374_6572_6e31;

/// Whether anything is still sealed with a key.
pub(super) const NEEDED: &str = "SELECT EXISTS (SELECT FROM postern.records WHERE sealed_by = $1)
    OR EXISTS (SELECT FROM postern.changes WHERE substring(payload FROM 2 FOR 8) = $1)";

/// Each one leads from the version before to the next. Migrations only add, so that the version before runs beside
/// this one; a column goes one version after the last program that reads it.
const MIGRATIONS: [&str; KNOWN as usize] = ["
    CREATE SCHEMA IF NOT EXISTS postern;
    CREATE TABLE postern.migrations (
        version integer PRIMARY KEY,
        -- the lowest version of a program that can work with this schema
        compatible_from integer NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    );
    -- One row. It gives out versions: whoever writes locks it first, so versions appear in order.
    CREATE TABLE postern.head (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        data_set uuid NOT NULL,
        version bigint NOT NULL,
        -- highest version that has left the change log
        forgotten bigint NOT NULL DEFAULT 0,
        -- ids of the keys that sealed, the present one last
        sealed_by bytea[] NOT NULL DEFAULT '{}'
    );
    INSERT INTO postern.head (data_set, version) VALUES (gen_random_uuid(), 0);
    CREATE TABLE postern.records (
        type text COLLATE \"C\" NOT NULL,
        id text COLLATE \"C\" NOT NULL,
        version bigint NOT NULL,
        modified_at timestamptz NOT NULL,
        payload bytea NOT NULL,
        -- id of the key that sealed the payload
        sealed_by bytea NOT NULL GENERATED ALWAYS AS (substring(payload FROM 2 FOR 8)) STORED,
        network inet,
        PRIMARY KEY (type, id)
    );
    CREATE INDEX records_by_age ON postern.records (type, version);
    CREATE INDEX records_by_key ON postern.records (sealed_by);
    CREATE INDEX records_by_network ON postern.records USING gist (network inet_ops) WHERE network IS NOT NULL;
    -- Keyed hashes of the values of indexed fields.
    CREATE TABLE postern.fields (
        type text COLLATE \"C\" NOT NULL,
        hash bytea NOT NULL,
        id text COLLATE \"C\" NOT NULL,
        PRIMARY KEY (type, hash, id)
    );
    CREATE INDEX fields_of_record ON postern.fields (type, id);
    CREATE TABLE postern.changes (
        version bigint PRIMARY KEY,
        type text COLLATE \"C\" NOT NULL,
        id text COLLATE \"C\" NOT NULL,
        modified_at timestamptz NOT NULL,
        deleted boolean NOT NULL,
        payload bytea NOT NULL
    );
    CREATE INDEX changes_of_type ON postern.changes (type, version);
    -- Highest version of a type that has left the change log.
    CREATE TABLE postern.forgotten (
        type text COLLATE \"C\" PRIMARY KEY,
        version bigint NOT NULL
    );
    CREATE TABLE postern.options (
        type text COLLATE \"C\" PRIMARY KEY,
        options bytea NOT NULL
    );
    CREATE TABLE postern.leases (
        name text COLLATE \"C\" PRIMARY KEY,
        holder text NOT NULL,
        ends_at timestamptz NOT NULL
    );
    INSERT INTO postern.migrations (version, compatible_from) VALUES (1, 1);
", "
    -- Ids of writes that were done lately, so that one is not done twice.
    CREATE TABLE postern.writes (
        id bytea PRIMARY KEY,
        done_at timestamptz NOT NULL DEFAULT clock_timestamp()
    );
    CREATE INDEX writes_by_age ON postern.writes (done_at);
    INSERT INTO postern.migrations (version, compatible_from) VALUES (2, 1);
"];

/// Makes or widens the schema and checks that our keys open what is in it.
pub(super) async fn open(connection: &mut Pooled, payloads: &Payloads) -> Result<(), StorageError> {
    connection.in_transaction();
    let opened = in_transaction(connection, payloads).await;
    if opened.is_ok() {
        connection.settled();
    }
    opened
}

async fn in_transaction(connection: &mut Pooled, payloads: &Payloads) -> Result<(), StorageError> {
    run(connection, "BEGIN").await?;
    run(connection, &format!("SELECT pg_advisory_xact_lock({LOCK})")).await?;
    let (found, compatible_from) = version(connection).await?;
    if compatible_from > KNOWN {
        return Err(StorageError::NotReady {
            reason: format!(
                "the schema postern was made by a newer version ({found}, this one knows {KNOWN}); nothing was \
                 changed. Start that version again, or restore a backup from before the upgrade"
            ),
        });
    }
    for (version, migration) in (1..).zip(MIGRATIONS) {
        if version > found {
            run(connection, migration).await.map_err(explain)?;
            tracing::info!(
                version,
                "the database schema postern was brought up to date"
            );
        }
    }
    keys(connection, payloads).await?;
    run(connection, "COMMIT").await
}

async fn run(connection: &mut Pooled, sql: &str) -> Result<(), StorageError> {
    connection
        .answer(async |client| client.batch_execute(sql).await)
        .await
}

/// The version of the schema and the lowest program version that may use it; 0 when there is none.
async fn version(connection: &mut Pooled) -> Result<(i32, i32), StorageError> {
    let exists = "SELECT to_regclass('postern.migrations') IS NOT NULL, EXISTS (SELECT FROM pg_namespace WHERE nspname = 'pomerium')";
    let row = connection
        .answer(async |client| client.query_one(exists, &[]).await)
        .await?;
    if row.get(1) {
        tracing::info!(
            "this database also holds Pomerium's records; they are neither read nor changed"
        );
    }
    if !row.get::<_, bool>(0) {
        return Ok((0, 0));
    }
    let newest = "SELECT coalesce(max(version), 0), coalesce(max(compatible_from), 0) FROM postern.migrations";
    let row = connection
        .answer(async |client| client.query_one(newest, &[]).await)
        .await?;
    Ok((row.get(0), row.get(1)))
}

/// Refuses a database with records that none of our keys opens.
async fn keys(connection: &mut Pooled, payloads: &Payloads) -> Result<(), StorageError> {
    let used = "SELECT sealed_by FROM postern.head FOR UPDATE";
    let row = connection
        .answer(async |client| client.query_one(used, &[]).await)
        .await?;
    let used: Vec<Vec<u8>> = row.get(0);
    for key in used.iter().filter_map(|key| KeyId::from_bytes(key)) {
        let Err(unknown) = payloads.accept(key) else {
            continue;
        };
        let key = key.as_bytes().as_slice();
        let row = connection
            .answer(async |client| client.query_one(NEEDED, &[&key]).await)
            .await?;
        if row.get(0) {
            return Err(unknown.into());
        }
    }
    if let Some(current) = payloads.current() {
        let key = current.as_bytes().as_slice();
        connection
            .answer(async |client| client.execute(USE_KEY, &[&key]).await)
            .await?;
    }
    Ok(())
}

/// Tells what to do about the one mistake that is likely.
fn explain(error: StorageError) -> StorageError {
    match &error {
        StorageError::Postgres(cause)
            if cause.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) =>
        {
            StorageError::NotReady {
                reason: format!(
                    "the schema postern cannot be made ({}); as the owner of the database run \
                     GRANT CREATE ON DATABASE … TO …, once",
                    crate::causes(&error)
                ),
            }
        }
        _ => error,
    }
}
