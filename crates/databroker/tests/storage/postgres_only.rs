//! What only Postgres has to promise: first starts at once, servers that are away, keys on several replicas, hosts
//! that do not answer, certificates.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_common::crypto::keys::SecretKey;
use postern_common::rpc::stubs::databroker::{GetRequest, PutRequest, SyncRequest};
use postern_databroker::storage::postgres::{Postgres, settings::Settings};
use postern_databroker::storage::sealed::Payloads;
use postern_databroker::storage::{RecordKey, Storage, StorageError, Tidied};
use postern_databroker::tidy::Housekeeping;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::contract::{put, record};
use crate::feed::{Running, follow, next, start};
use crate::{eventually, open, resolver, sealed, server};

const DAY: Duration = Duration::from_secs(86_400);

fn keys(keys: &[&SecretKey]) -> Payloads {
    let keys: Vec<_> = keys.iter().map(|&key| key.clone()).collect();
    Payloads::sealed(&keys, &[])
}

/// Without waiting for it to open.
fn begin(connection_string: &str, payloads: Payloads) -> Arc<dyn Storage> {
    let settings = Settings::parse(connection_string, &|_| None).unwrap();
    Arc::new(Postgres::start(settings, payloads, resolver(), CancellationToken::new()).unwrap())
}

async fn reason(storage: &Arc<dyn Storage>) -> String {
    match storage.head().await {
        Err(StorageError::NotReady { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

async fn refused_because(storage: &Arc<dyn Storage>, text: &str) {
    let told = async || match storage.head().await {
        Err(StorageError::NotReady { reason }) => reason.contains(text),
        Err(_) => false,
        Ok(head) => panic!("opened: {head:?}"),
    };
    eventually(&format!("it says {text:?}"), told).await;
}

#[tokio::test]
async fn first_starts_at_once_do_not_collide() {
    let server = server();
    let database = server.database("first_starts").unwrap();
    let key = SecretKey::random();
    let all = futures::future::join_all((0..6).map(|_| open(&database, keys(&[&key])))).await;
    let heads = futures::future::join_all(all.iter().map(|it| it.head())).await;
    assert!(
        heads
            .windows(2)
            .all(|pair| pair[0].as_ref().unwrap() == pair[1].as_ref().unwrap())
    );
    assert!(!server.log().contains("deadlock"), "{}", server.log());
}

#[tokio::test]
async fn s19_the_database_tells_nothing_and_another_key_gets_nothing() {
    let server = server();
    let database = server.database("s19").unwrap();
    let (key, other) = (SecretKey::random(), SecretKey::random());
    let storage = open(&database, keys(&[&key])).await;
    let written = put(&storage, vec![record("t", "a", b"refresh-token-in-clear")])
        .await
        .remove(0);
    let dump = server
        .psql("s19", "SELECT encode(payload, 'escape') FROM postern.records UNION ALL SELECT encode(payload, 'escape') FROM postern.changes")
        .unwrap();
    assert!(!dump.is_empty() && !dump.contains("refresh-token"));

    let stranger = begin(&database, keys(&[&other]));
    refused_because(&stranger, "not among those configured").await;
    assert_eq!(
        storage.get(&RecordKey::of(&written)).await.unwrap(),
        Some(written)
    );
}

/// One replica already has the new order of keys, the other not yet: neither undoes the other's work, and when both
/// have it the old key is not needed any more.
#[tokio::test]
async fn s19_keys_rotate_over_several_replicas() {
    let server = server();
    let database = server.database("rotation").unwrap();
    let (old, new) = (SecretKey::random(), SecretKey::random());
    let count = |key: &str| {
        format!(
            "SELECT count(*) FROM postern.records WHERE sealed_by {key} (SELECT sealed_by[1] FROM postern.head)"
        )
    };
    let behind = open(&database, keys(&[&old, &new])).await;
    let written = put(
        &behind,
        (0..5).map(|n| record("t", &n.to_string(), b"x")).collect(),
    )
    .await;

    let ahead = open(&database, keys(&[&new, &old])).await;
    assert_eq!(ahead.tidy(DAY).await.unwrap().resealed, 5);
    assert_eq!(behind.tidy(DAY).await.unwrap(), Tidied::default());
    // What the one behind still writes under the old key is sealed anew as well.
    put(&behind, vec![record("t", "late", b"x")]).await;
    assert_eq!(server.psql("rotation", &count("=")).unwrap(), "1");
    assert_eq!(ahead.tidy(DAY).await.unwrap().resealed, 1);
    assert_eq!(server.psql("rotation", &count("=")).unwrap(), "0");
    for record in &written {
        assert_eq!(
            behind.get(&RecordKey::of(record)).await.unwrap().as_ref(),
            Some(record)
        );
    }
    // The change log still holds the old form for an hour, so a start without the old key is refused...
    let early = begin(&database, keys(&[&new]));
    refused_because(&early, "not among those configured").await;
    // ...and works afterwards.
    while ahead.tidy(Duration::ZERO).await.unwrap().forgotten > 0 {}
    let only_new = open(&database, keys(&[&new])).await;
    assert_eq!(
        only_new
            .get(&RecordKey::of(&written[0]))
            .await
            .unwrap()
            .as_ref(),
        Some(&written[0])
    );
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let server = server();
    let database = server.database("newer").unwrap();
    drop(open(&database, sealed()).await);
    server
        .psql(
            "newer",
            "INSERT INTO postern.migrations (version, compatible_from) VALUES (99, 99)",
        )
        .unwrap();
    let storage = begin(&database, sealed());
    refused_because(&storage, "newer version (99").await;
    // One that older programs can work with is taken.
    server
        .psql(
            "newer",
            "UPDATE postern.migrations SET compatible_from = 1 WHERE version = 99",
        )
        .unwrap();
    eventually("the compatible schema is taken", async || {
        storage.head().await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_role_that_may_not_make_the_schema_is_told_what_to_run() {
    let server = server();
    server.database("forbidden").unwrap();
    server.psql("forbidden", "CREATE ROLE weak LOGIN").unwrap();
    let database = server
        .connection_string("forbidden")
        .replace("user=postgres", "user=weak");
    let storage = begin(&database, sealed());
    refused_because(&storage, "GRANT CREATE ON DATABASE").await;
}

/// A server of its own, because it is stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c15_postgres_may_be_away_at_the_start_and_later() {
    let server = crate::server::Postgres::start().unwrap();
    let database = server.database("away").unwrap();
    server.stop().unwrap();

    let storage = begin(&database, sealed());
    let mut running = start(Arc::clone(&storage), Housekeeping::default());
    let get = || GetRequest {
        r#type: "t".to_owned(),
        id: "a".to_owned(),
    };
    // Never NOT_FOUND: nothing is known.
    assert_eq!(
        running.client.get(get()).await.unwrap_err().code(),
        Code::Unavailable
    );
    assert!(!reason(&storage).await.is_empty());

    server.resume().unwrap();
    eventually("it opens", async || storage.head().await.is_ok()).await;
    let put = |id: &str| PutRequest {
        records: vec![record("t", id, b"x")],
    };
    running.client.put(put("a")).await.unwrap();
    let mut stream = follow(&running.client, "t", 0).await.unwrap();
    assert_eq!(next(&mut stream).await.unwrap().id, "a");

    server.stop().unwrap();
    assert_eq!(
        running.client.get(get()).await.unwrap_err().code(),
        Code::Unavailable
    );
    assert_eq!(
        running.client.put(put("lost")).await.unwrap_err().code(),
        Code::Unavailable
    );
    server.resume().unwrap();
    let client = &running.client;
    eventually("it writes again", async || {
        client.clone().put(put("b")).await.is_ok()
    })
    .await;
    // The stream outlived the outage and goes on where it was.
    assert_eq!(next(&mut stream).await.unwrap().id, "b");
    let state = running.databroker.state();
    eventually("it is current", async || {
        matches!(
            &*state.borrow(),
            postern_databroker::feed::State::Current { .. }
        )
    })
    .await;
}

/// Whoever listens may be cut off without noticing; the feed looks by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_notification_costs_a_second_not_a_change() {
    let server = server();
    let database = server.database("deaf").unwrap();
    let storage = open(&database, sealed()).await;
    let running = start(Arc::clone(&storage), Housekeeping::default());
    let mut stream = follow(&running.client, "", 0).await.unwrap();
    server
        .psql("deaf", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = 'deaf'")
        .unwrap();
    // Written by somebody else, without a notification.
    let statement = "BEGIN; UPDATE postern.head SET version = version + 1;
        INSERT INTO postern.changes (version, type, id, modified_at, deleted, payload)
        SELECT version, 't', 'quiet', now(), true, '' FROM postern.head; COMMIT";
    server.psql("deaf", statement).unwrap();
    let since = Instant::now();
    assert_eq!(next(&mut stream).await.unwrap().id, "quiet");
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "{:?}",
        since.elapsed()
    );
}

/// The first name does not resolve, the second accepts and stays silent; the third is the server.
#[tokio::test]
async fn hosts_that_do_not_answer_delay_nothing() {
    let server = server();
    server.database("hosts").unwrap();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!(
        "postgres://postgres@nowhere.invalid:1,127.0.0.1:{},127.0.0.1:{}/hosts?sslmode=disable&target_session_attrs=read-write",
        silent.local_addr().unwrap().port(),
        server.port(),
    );
    let since = Instant::now();
    let storage = open(&uri, sealed()).await;
    put(&storage, vec![record("t", "a", b"x")]).await;
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "{:?}",
        since.elapsed()
    );

    // With nobody there, the reason names every address and what happened.
    let uri = uri.replace(&format!(",127.0.0.1:{}", server.port()), "");
    let storage = begin(&uri, sealed());
    refused_because(&storage, "no answer within 2s").await;
    assert!(reason(&storage).await.contains("nowhere.invalid"));
}

#[tokio::test]
async fn a_standby_is_not_taken_for_the_primary() {
    let server = server();
    server.database("read_only").unwrap();
    server
        .psql(
            "read_only",
            "ALTER DATABASE read_only SET default_transaction_read_only = on",
        )
        .unwrap();
    let storage = begin(&server.connection_string("read_only"), sealed());
    refused_because(&storage, "can only be read from").await;
}

/// A frozen server keeps its connections open and its port accepting; only deadlines find out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_is_unavailable_and_leaves_nothing_behind() {
    let server = crate::server::Postgres::start().unwrap();
    let database = server.database("frozen").unwrap();
    let mut running = start(open(&database, sealed()).await, Housekeeping::default());
    let put = |id: &str| PutRequest {
        records: vec![record("t", id, b"x")],
    };
    running.client.put(put("a")).await.unwrap();
    let get = || GetRequest {
        r#type: "t".to_owned(),
        id: "a".to_owned(),
    };
    running.client.get(get()).await.unwrap();

    server.freeze(true).unwrap();
    let since = Instant::now();
    let mut other = running.client.clone();
    let (read, written) = tokio::join!(running.client.get(get()), other.put(put("b")));
    let took = since.elapsed();
    server.freeze(false).unwrap();
    assert_eq!(read.unwrap_err().code(), Code::Unavailable);
    assert_eq!(written.unwrap_err().code(), Code::Unavailable);
    assert!(took < Duration::from_secs(15), "{took:?}");

    // Whether it was written nobody knows, and nobody said; from here on all is as before.
    let client = &running.client;
    eventually("it writes again", async || {
        client.clone().put(put("c")).await.is_ok()
    })
    .await;
    running.client.get(get()).await.unwrap();
}

/// A server of its own, because its TLS is switched on.
#[tokio::test]
async fn s20_certificates_are_verified_when_tls_is_asked_for() {
    let server = crate::server::Postgres::start().unwrap();
    server.database("tls").unwrap();
    let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let pem = certificate.cert.pem();
    server
        .enable_tls(&pem, &certificate.signing_key.serialize_pem())
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let ca = ca.display();
    let uri =
        |host: &str, rest: &str| format!("postgres://postgres@{host}:{}/tls?{rest}", server.port());

    for good in [
        uri(
            "localhost",
            &format!("sslmode=verify-full&sslrootcert={ca}"),
        ),
        uri("localhost", &format!("sslmode=require&sslrootcert={ca}")),
        // The chain is good, the name is another.
        uri("127.0.0.1", &format!("sslmode=verify-ca&sslrootcert={ca}")),
        uri("127.0.0.1", &format!("sslmode=require&sslrootcert={ca}")),
        uri("127.0.0.1", "sslmode=prefer"),
        uri("127.0.0.1", "sslmode=allow"),
        uri("127.0.0.1", ""),
        uri("127.0.0.1", "sslmode=disable"),
    ] {
        let storage = begin(&good, Payloads::sealed(&[], &[]));
        eventually(&format!("{good} opens"), async || {
            storage.head().await.is_ok()
        })
        .await;
    }
    for bad in [
        uri("localhost", "sslmode=require"),
        uri("localhost", "sslmode=verify-ca"),
        uri("localhost", "sslmode=verify-full"),
        uri(
            "127.0.0.1",
            &format!("sslmode=verify-full&sslrootcert={ca}"),
        ),
    ] {
        refused_because(&begin(&bad, sealed()), "certificate").await;
    }
    let encrypted = "SELECT bool_or(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE datname = 'tls'";
    assert_eq!(server.psql("postgres", encrypted).unwrap(), "t");
}

/// 50 writers at these databrokers for a while; the longest that one of them waited, and their writes.
async fn write(all: &[Running]) -> (Duration, usize) {
    let writers = (0..50).map(|writer| {
        let mut client = all[writer % all.len()].client.clone();
        tokio::spawn(async move {
            let mut slowest = Duration::ZERO;
            let begun = Instant::now();
            let mut n = 0;
            while begun.elapsed() < Duration::from_secs(6) {
                let records = vec![record("t", &format!("{writer}-{}", n % 10), b"x")];
                let since = Instant::now();
                client.put(PutRequest { records }).await.unwrap();
                slowest = slowest.max(since.elapsed());
                n += 1;
            }
            (slowest, n)
        })
    });
    let mut slowest = Duration::ZERO;
    let mut count = 0;
    for writer in futures::future::join_all(writers).await {
        let (took, n) = writer.unwrap();
        slowest = slowest.max(took);
        count += n;
    }
    (slowest, count)
}

/// Three databrokers, 200,000 changes past retention, cleanup forced every second in all three, 50 writers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c13_cleanup_and_writers_do_not_hinder_each_other() {
    let server = server();
    let database = server.database("c13").unwrap();
    let key = SecretKey::random();
    let first = open(&database, keys(&[&key])).await;
    put(&first, vec![record("t", "old", b"x")]).await;
    let undisturbed = {
        let quiet = server.database("c13_quiet").unwrap();
        let never = Housekeeping {
            retention: Duration::from_secs(3_600),
            every: Duration::from_secs(3_600),
        };
        let mut all = Vec::new();
        for _ in 0..3 {
            all.push(start(open(&quiet, keys(&[&key])).await, never));
        }
        write(&all).await.0
    };
    server
        .psql("c13", "INSERT INTO postern.changes (version, type, id, modified_at, deleted, payload)
            SELECT n, 't', 'gone', now() - interval '2 hours', true, '' FROM generate_series(2, 200001) AS n;
            UPDATE postern.changes SET modified_at = now() - interval '2 hours' WHERE version = 1;
            UPDATE postern.head SET version = 200001; ANALYZE postern.changes")
        .unwrap();
    let housekeeping = Housekeeping {
        retention: Duration::from_secs(3_600),
        every: Duration::from_secs(1),
    };
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(start(open(&database, keys(&[&key])).await, housekeeping));
    }
    let old = || {
        server
            .psql("c13", "SELECT count(*) FROM postern.changes WHERE deleted")
            .unwrap()
    };
    let (slowest, count) = write(&all).await;
    println!("c13: {count} writes, the slowest took {slowest:?}");
    eventually("the log is trimmed", async || old() == "0").await;
    // A second; more only where a write takes long on this machine without any cleanup.
    let bound = (undisturbed * 3).max(Duration::from_secs(1));
    assert!(
        slowest < bound,
        "a write took {slowest:?}, without cleanup {undisturbed:?}"
    );
    assert!(
        !server.log().contains("40P01") && !server.log().contains("deadlock"),
        "{}",
        server.log()
    );

    // Whoever was away for longer than the log reaches starts again.
    let mut client = all[0].client.clone();
    let info = client.server_info(()).await.unwrap().into_inner();
    let request = SyncRequest {
        server_version: info.server_version,
        record_version: 5,
        r#type: "t".to_owned(),
        wait: None,
    };
    assert_eq!(
        client.sync(request).await.unwrap_err().code(),
        Code::Aborted
    );
    // A type that was quiet all the time lost nothing.
    let quiet = SyncRequest {
        server_version: info.server_version,
        record_version: 5,
        r#type: "quiet".to_owned(),
        wait: Some(false),
    };
    client.sync(quiet).await.unwrap();
}
