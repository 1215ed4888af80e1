//! The promise that everything rests on: nobody who follows ever misses a change, whatever commits when.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use postern_common::crypto::keys::SecretKey;
use postern_common::rpc::stubs::databroker::data_broker_service_client::DataBrokerServiceClient;
use postern_common::rpc::stubs::databroker::{
    PutRequest, Record, SyncRequest, SyncResponse, sync_response,
};
use postern_common::rpc::token::{ClientToken, TokenKeys};
use postern_databroker::Databroker;
use postern_databroker::storage::sealed::Payloads;
use postern_databroker::storage::{Operation, Storage};
use postern_databroker::tidy::Housekeeping;
use proptest::prelude::*;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::{Status, Streaming};

use crate::contract::record;

pub type Client = DataBrokerServiceClient<InterceptedService<Routes, ClientToken>>;

/// A databroker on a storage, and a client of it.
pub struct Running {
    pub databroker: Databroker,
    pub client: Client,
    _stop: DropGuard,
}

pub fn start(storage: Arc<dyn Storage>, housekeeping: Housekeeping) -> Running {
    let stop = CancellationToken::new();
    let databroker = Databroker::start(storage, housekeeping, stop.clone());
    let keys = TokenKeys::new(vec![SecretKey::random()]);
    let routes = databroker.routes(keys.clone());
    let client = DataBrokerServiceClient::with_interceptor(routes, keys.for_client());
    Running {
        databroker,
        client,
        _stop: stop.drop_guard(),
    }
}

pub async fn follow(
    client: &Client,
    kind: &str,
    from: u64,
) -> Result<Streaming<SyncResponse>, Status> {
    let mut client = client.clone();
    let server_version = client.server_info(()).await?.into_inner().server_version;
    let request = SyncRequest {
        server_version,
        record_version: from,
        r#type: kind.to_owned(),
        wait: None,
    };
    Ok(client.sync(request).await?.into_inner())
}

/// The next record, past options.
pub async fn next(stream: &mut Streaming<SyncResponse>) -> Result<Record, Status> {
    let next = async {
        loop {
            match stream.message().await?.and_then(|message| message.response) {
                Some(sync_response::Response::Record(record)) => return Ok(record),
                Some(_) => {}
                None => return Err(Status::ok("the stream ended")),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), next)
        .await
        .expect("nothing came in 20 s")
}

const WRITERS: usize = 8;

/// What one writer does: transactions of so many records, each delayed inside by so many milliseconds.
#[derive(Debug, Clone)]
struct Script(Vec<(u8, u8)>);

fn script() -> impl Strategy<Value = Script> {
    proptest::collection::vec((1..6_u8, 0..30_u8), 5..12).prop_map(Script)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, max_shrink_iters: 8, ..ProptestConfig::default() })]

    /// 8 writers, through 2 databrokers and beside them, 3 followers, random delays inside transactions: every follower sees every change
    /// of its type once and in order, and ends with the same records as the database.
    #[test]
    fn no_follower_skips_a_change(scripts in proptest::collection::vec(script(), WRITERS)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(check(scripts));
    }
}

async fn check(scripts: Vec<Script>) {
    let server = crate::server();
    let name = format!("feed_{}", uuid::Uuid::new_v4().simple());
    let database = server.database(&name).unwrap();
    let key = SecretKey::random();
    let open = || crate::open(&database, Payloads::sealed(std::slice::from_ref(&key), &[]));
    let one = start(open().await, Housekeeping::default());
    let two = start(open().await, Housekeeping::default());
    // The delay lies inside the transaction, after its version has been taken: what lets a sequence skip changes.
    server
        .psql(
            &name,
            "CREATE FUNCTION delay() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM pg_sleep(split_part(NEW.id, '/', 2)::float / 1000); RETURN NEW; END $$;
            CREATE TRIGGER delay BEFORE INSERT ON postern.changes FOR EACH ROW
            WHEN (NEW.id LIKE '%/%/0') EXECUTE FUNCTION delay()",
        )
        .unwrap();

    let mut followers = Vec::new();
    for (running, kind) in [(&one, ""), (&two, ""), (&two, "even")] {
        let stream = follow(&running.client, kind, 0).await.unwrap();
        followers.push((kind, stream));
    }
    let mut expected = 0;
    let mut even = 0;
    let mut writers = Vec::new();
    for (writer, Script(transactions)) in scripts.into_iter().enumerate() {
        let kind = if writer % 2 == 0 { "even" } else { "odd" };
        let count: usize = transactions
            .iter()
            .map(|(records, _)| usize::from(*records))
            .sum();
        expected += count;
        even += if writer % 2 == 0 { count } else { 0 };
        // A third of them by each databroker, which knows what it wrote itself. The others have a connection of
        // their own each: their transactions run beside all others.
        let storage = open().await;
        let mut client = match writer % 3 {
            0 => None,
            1 => Some(one.client.clone()),
            _ => Some(two.client.clone()),
        };
        writers.push(tokio::spawn(async move {
            for (records, delay) in transactions {
                let records = (0..records)
                    .map(|n| record(kind, &format!("{}/{delay}/{n}", writer % 3), b"x"));
                let records = records.collect();
                match &mut client {
                    Some(client) => drop(client.put(PutRequest { records }).await.unwrap()),
                    None => drop(storage.write(vec![Operation::Put(records)]).await.unwrap()),
                }
            }
        }));
    }
    let mut readers = Vec::new();
    for (kind, mut stream) in followers {
        let count = if kind.is_empty() { expected } else { even };
        readers.push(tokio::spawn(async move {
            let mut seen = Vec::with_capacity(count);
            for _ in 0..count {
                seen.push(next(&mut stream).await.unwrap());
            }
            seen
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let log = open()
        .await
        .changes(None, 0, 100_000)
        .await
        .unwrap()
        .records;
    assert_eq!(log.len(), expected);
    for (number, reader) in readers.into_iter().enumerate() {
        let seen = reader.await.unwrap();
        let wanted: Vec<_> = log
            .iter()
            .filter(|it| number < 2 || it.r#type == "even")
            .cloned()
            .collect();
        assert_eq!(seen, wanted, "follower {number}");
    }
    // Replaying the log gives the records that are there.
    let replayed: BTreeMap<_, _> = log
        .into_iter()
        .map(|it| ((it.r#type.clone(), it.id.clone()), it))
        .collect();
    let start = postern_databroker::storage::PageStart::Offset(0);
    let records = open().await.page(None, start, 100_000).await.unwrap();
    assert_eq!(records, replayed.into_values().collect::<Vec<_>>());
}
