//! The databroker: copies for authorize, writes on Postgres, and how soon a change counts.

mod changes;
mod put;
mod sync;

use postern_tests::postgres::Postgres;

use crate::Effort;
use crate::stage::Stage;
use crate::table::Row;

pub async fn run(stage: &Stage, effort: Effort) -> Vec<Row> {
    let many = effort.sessions;
    let postgres = Postgres::start().expect("Postgres");
    let mut rows = sync::run(stage, effort, many, "memory", "").await;
    let settings = settings(&postgres, "copied");
    rows.extend(sync::run(stage, effort, many, "Postgres", &settings).await);
    rows.extend(put::run(stage, effort, &postgres).await);
    rows.extend(changes::run(stage, effort, &postgres).await);
    rows
}

/// The keys for a new database.
pub fn settings(postgres: &Postgres, name: &str) -> String {
    postgres.database(name).expect("a database");
    let uri = postgres.uri(name);
    format!("databroker_storage_type: postgres\ndatabroker_storage_connection_string: '{uri}'\n")
}
