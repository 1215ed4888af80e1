//! Writes on Postgres: the databroker's `Put` beside pgbench, which inserts rows of the same size, as
//! many at a time, into a table with the same key.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::future::join_all;
use postern_common::crypto::random;
use postern_common::rpc::stubs::databroker::Record;
use postern_tests::cluster::Layout;
use postern_tests::databroker::Databroker;
use postern_tests::postgres::Postgres;

use crate::Effort;
use crate::people::{self, Pattern};
use crate::postern::{self, Postern};
use crate::sections::records::settings;
use crate::stage::Stage;
use crate::table::{Row, median};

/// Records in one `Put`, clients that do it at the same time.
const SHAPES: [(usize, usize); 2] = [(100, 8), (1, 32)];

/// Where pgbench inserts.
const TABLE: &str = "CREATE TABLE plain_rows (
    type text COLLATE \"C\" NOT NULL,
    id text COLLATE \"C\" NOT NULL,
    version bigint NOT NULL,
    modified_at timestamptz NOT NULL,
    payload bytea NOT NULL,
    PRIMARY KEY (type, id)
)";

pub async fn run(stage: &Stage, effort: Effort, postgres: &Postgres) -> Vec<Row> {
    let settings = settings(postgres, "written");
    postgres.psql("written", TABLE).expect("a table");
    let config = postern::with_routes(stage.ports, &settings, "");
    let postern = Postern::start_with(Layout::Split, &stage.issuer, config).await;
    let databroker = Databroker::connect(&postern.cluster).await;
    let pattern = people::session("s", "user-1", Pattern::of(&postern.allowed).idp_id());
    let mut rows = Vec::new();
    for (batch, clients) in SHAPES {
        let script = script(stage, &pattern, batch);
        let (mut puts, mut plain) = (Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            puts.push(put(&databroker, &pattern, batch, clients, effort.load).await);
            plain.push(pgbench(postgres, &script, clients, effort.load) * batch as f64);
        }
        let ratio = puts.iter().zip(&plain).map(|(put, plain)| put / plain);
        let ratio = median(ratio);
        rows.extend([
            Row::new(&format!("Put of {batch}, {clients} clients, records/s")).found(median(puts)),
            Row::new(&"pgbench, the same, rows/s").found(median(plain)),
            Row::new(&format!("Put of {batch} ÷ pgbench"))
                .found(ratio)
                .goal(0.5),
        ]);
    }
    rows
}

/// New records, a second.
async fn put(
    databroker: &Databroker,
    pattern: &Record,
    batch: usize,
    clients: usize,
    load: Duration,
) -> f64 {
    let begun = Instant::now();
    let run = random::uuid();
    let writing = (0..clients).map(|client| {
        let mut databroker = databroker.clone();
        let prefix = format!("{run}-{client}");
        async move {
            let mut written = 0;
            while begun.elapsed() < load {
                let records = (written..written + batch).map(|number| Record {
                    id: format!("{prefix}-{number}"),
                    ..pattern.clone()
                });
                let records = records.collect();
                databroker.put_all(records).await.expect("it is written");
                written += batch;
            }
            written
        }
    });
    let written: usize = join_all(writing).await.iter().sum();
    written as f64 / begun.elapsed().as_secs_f64()
}

/// Transactions a second.
fn pgbench(postgres: &Postgres, script: &Path, clients: usize, load: Duration) -> f64 {
    let said = postgres
        .pgbench("written", script, clients, load)
        .unwrap_or_else(|error| panic!("{error}"));
    said.lines()
        .find_map(|line| {
            let rate = line.strip_prefix("tps = ")?;
            rate.split(' ').next()?.parse().ok()
        })
        .unwrap_or_else(|| panic!("pgbench said: {said}"))
}

/// One statement that inserts `batch` rows, each with as many random bytes as a sealed payload has.
fn script(stage: &Stage, pattern: &Record, batch: usize) -> PathBuf {
    /// What sealing adds: form, key, nonce, tag.
    const SEALED: usize = 49;
    let length = pattern.data.as_ref().map_or(0, |data| data.value.len()) + SEALED;
    let mut text = String::from("\\set base random(1, 1000000000000000)\n");
    text.push_str("INSERT INTO plain_rows VALUES\n");
    for row in 0..batch {
        let bytes = (0..length).map(|_| format!("{:02x}", random::bytes::<1>()[0]));
        let payload: String = bytes.collect();
        let end = if row + 1 == batch { ";" } else { "," };
        writeln!(
            text,
            "('{}', :base || '-{row}', 1, now(), '\\x{payload}'){end}",
            pattern.r#type
        )
        .expect("text grows");
    }
    let path = stage.site.path(&format!("insert-{batch}.sql"));
    std::fs::write(&path, text).expect("a file can be written");
    path
}
