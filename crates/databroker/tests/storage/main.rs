//! Every storage keeps the same promises: `contract` states them, this file holds each storage to them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "tests may panic"
)]

mod contract;
mod failover;
mod feed;
mod file;
mod postgres_only;
#[path = "../../../../tests/src/postgres.rs"]
#[allow(dead_code, reason = "shared with the end-to-end tests")]
mod server;

use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use futures::future::LocalBoxFuture;
use postern_common::config::DnsOptions;
use postern_common::crypto::keys::SecretKey;
use postern_common::net::resolver::Resolver;
use postern_databroker::storage::Storage;
use postern_databroker::storage::local::Local;
use postern_databroker::storage::postgres::{Postgres, settings::Settings};
use postern_databroker::storage::sealed::Payloads;
use tokio_util::sync::CancellationToken;

type Check = fn(Arc<dyn Storage>) -> LocalBoxFuture<'static, ()>;

/// One server for all tests of this process that run at the same time.
fn server() -> Arc<server::Postgres> {
    static SERVER: OnceLock<Mutex<Weak<server::Postgres>>> = OnceLock::new();
    let mut running = SERVER.get_or_init(Mutex::default).lock().unwrap();
    if let Some(server) = running.upgrade() {
        return server;
    }
    let server = Arc::new(server::Postgres::start().unwrap());
    *running = Arc::downgrade(&server);
    server
}

fn sealed() -> Payloads {
    Payloads::sealed(&[SecretKey::random()], &[])
}

fn resolver() -> Resolver {
    Resolver::new(DnsOptions::default()).unwrap()
}

/// A databroker's view of a database, opened.
async fn open(connection_string: &str, payloads: Payloads) -> Arc<dyn Storage> {
    let settings = Settings::parse(connection_string, &|_| None).unwrap();
    let storage =
        Postgres::start(settings, payloads, resolver(), CancellationToken::new()).unwrap();
    eventually("the database is open", async || {
        storage.head().await.is_ok()
    })
    .await;
    Arc::new(storage)
}

async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let poll = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), poll)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    for (name, check) in contract::ALL {
        println!("memory: {name}");
        check(Arc::new(Local::in_memory().unwrap())).await;
    }
}

#[tokio::test]
async fn a_file_keeps_the_contract() {
    for (name, check) in contract::ALL {
        println!("file: {name}");
        let directory = tempfile::tempdir().unwrap();
        check(Arc::new(Local::open(directory.path(), sealed()).unwrap())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_keeps_the_contract() {
    let server = server();
    for (number, (name, check)) in contract::ALL.into_iter().enumerate() {
        println!("postgres: {name}");
        let database = server.database(&format!("contract_{number}")).unwrap();
        check(open(&database, sealed()).await).await;
    }
}
