//! Postgres' primary dies, and a standby takes over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postern_common::rpc::stubs::databroker::{Record, sync_response};
use postern_common::rpc::token;
use postern_test_dns::{Answer, ResponseCode};
use postern_tests::databroker::{Databroker, shared_secret};
use postern_tests::postgres::Postgres;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::Code;

use crate::stage::{BEFORE, Figure, Stage, Terms, time_until};

const SECOND: Duration = Duration::from_secs(1);

/// Of the records that are written all the while.
const KIND: &str = "chaos";

const PRIMARY: &str = "pg-a.corp.test";
const STANDBY: &str = "pg-b.corp.test";

pub async fn c11_failover(terms: Terms) -> Figure {
    let primary = Postgres::start().expect("Postgres");
    let standby = primary.standby().expect("a standby");
    // An acknowledged record is then on both.
    for sql in [
        "ALTER SYSTEM SET synchronous_standby_names = '*'",
        "SELECT pg_reload_conf()",
    ] {
        primary.psql("postgres", sql).expect("a setting");
    }
    let uri = format!(
        "postgres://postgres@{PRIMARY}:{},{STANDBY}:{}/postgres?sslmode=disable&target_session_attrs=read-write",
        primary.port(),
        standby.port()
    );
    let stage = Stage::set_on(terms, primary, &uri, &[PRIMARY, STANDBY]).await;
    let load = stage.load().await;
    let sockets = stage.sockets().await;
    let brokers =
        ["databroker-1", "databroker-2"].map(|replica| stage.world.cluster.serves(replica));
    let written = Arc::new(Written::default());
    let writers = brokers.map(|at| tokio::spawn(write(at, Arc::clone(&written))));
    let followers = brokers.map(|at| {
        let seen = Arc::new(Follower::default());
        (Arc::clone(&seen), tokio::spawn(follow(at, seen)))
    });
    sleep(2 * BEFORE).await;

    stage.postgres.stop().expect("the primary stops");
    let dns = stage.world.cluster.dns();
    dns.set(PRIMARY, Answer::Fails(ResponseCode::NXDomain));
    sleep(BEFORE).await;
    let before = written.count();
    standby.promote().expect("the standby is promoted");
    let resumed = time_until(async || written.count() > before).await;
    let signed_in = stage.until_sign_in_works().await;
    sleep(2 * BEFORE).await;
    writers.iter().for_each(JoinHandle::abort);
    let report = load.stop().await;
    let sockets = sockets.stop().await;

    let lost = lost(brokers[0], &written).await;
    let mut behind = Vec::new();
    for (seen, task) in &followers {
        behind.extend(caught_up(brokers[0], seen).await);
        task.abort();
    }
    let disorder: usize = followers.iter().map(|(seen, _)| seen.disorder()).sum();
    let mut figure = stage
        .flawless(&report)
        .all_open(&sockets)
        .within("writes", resumed, 2 * SECOND)
        .and(
            format!(
                "{} of {} acknowledged records lost",
                lost.len(),
                written.count()
            ),
            lost.is_empty(),
        )
        .and(
            format!("{} changes skipped by followers", behind.len()),
            behind.is_empty(),
        )
        .and(format!("{disorder} out of order"), disorder == 0)
        .within("sign-in works", signed_in, 5 * SECOND);
    figure.notes.extend(lost.into_iter().take(3));
    figure.notes.extend(behind.into_iter().take(3));
    figure
}

/// Ids of records whose `Put` was acknowledged.
#[derive(Default)]
struct Written(Mutex<BTreeSet<String>>);

impl Written {
    fn count(&self) -> usize {
        self.0.lock().expect("no test panics here").len()
    }
}

fn token() -> String {
    token::sign(&shared_secret(), jiff::Timestamp::now())
}

/// One record after the other, each once.
async fn write(broker: SocketAddr, written: Arc<Written>) {
    let mut client = Databroker::connect_to(broker).await;
    for number in 0_u64.. {
        let id = format!("{broker}/{number}");
        let record = Record {
            r#type: KIND.to_owned(),
            id: id.clone(),
            data: Some(prost_types::Any {
                type_url: "type.googleapis.com/google.protobuf.StringValue".to_owned(),
                value: Vec::new(),
            }),
            ..Record::default()
        };
        match timeout(5 * SECOND, client.put(Some(&token()), record)).await {
            Ok(Ok(())) => {
                written.0.lock().expect("no test panics here").insert(id);
                sleep(SECOND / 50).await;
            }
            // Not acknowledged, so it need not be there.
            _ => sleep(SECOND / 20).await,
        }
    }
}

/// What a follower knows, and whether versions ever went back within one server version.
#[derive(Default)]
struct Follower {
    known: Mutex<BTreeMap<String, u64>>,
    disorder: Mutex<usize>,
}

impl Follower {
    fn disorder(&self) -> usize {
        *self.disorder.lock().expect("no test panics here")
    }

    fn knows(&self, id: &str) -> bool {
        self.known
            .lock()
            .expect("no test panics here")
            .contains_key(id)
    }
}

/// As authorize does: everything, then the changes; everything anew only when told to.
async fn follow(broker: SocketAddr, seen: Arc<Follower>) {
    let mut client = Databroker::connect_to(broker).await;
    let mut at = None;
    loop {
        let mut versions = if let Some(versions) = at.take() {
            versions
        } else if let Ok((records, versions)) = client.all(KIND).await {
            let known = records.into_iter().map(|it| (it.id, it.version));
            *seen.known.lock().expect("no test panics here") = known.collect();
            versions
        } else {
            sleep(SECOND / 10).await;
            continue;
        };
        let ended = match client.changes(KIND, versions).await {
            Ok(mut changes) => loop {
                match changes.message().await {
                    Ok(Some(change)) => {
                        if let Some(sync_response::Response::Record(record)) = change.response {
                            if record.version <= versions.latest_record_version {
                                *seen.disorder.lock().expect("no test panics here") += 1;
                            }
                            versions.latest_record_version = record.version;
                            let mut known = seen.known.lock().expect("no test panics here");
                            known.insert(record.id, record.version);
                        }
                    }
                    Ok(None) => break None,
                    Err(status) => break Some(status),
                }
            },
            Err(status) => Some(status),
        };
        if ended.is_none_or(|status| status.code() != Code::Aborted) {
            at = Some(versions);
        }
        sleep(SECOND / 10).await;
    }
}

/// Acknowledged, and not there.
async fn lost(broker: SocketAddr, written: &Written) -> Vec<String> {
    let mut client = Databroker::connect_to(broker).await;
    let (records, _) = client.all(KIND).await.expect("the records");
    let there: BTreeSet<_> = records.into_iter().map(|it| it.id).collect();
    let written = written.0.lock().expect("no test panics here");
    written.difference(&there).cloned().collect()
}

/// What a follower does not know 5 s after the last write.
async fn caught_up(broker: SocketAddr, seen: &Follower) -> Vec<String> {
    let mut client = Databroker::connect_to(broker).await;
    let (records, _) = client.all(KIND).await.expect("the records");
    let end = Instant::now() + 5 * SECOND;
    loop {
        let missing = records.iter().filter(|it| !seen.knows(&it.id));
        let missing: Vec<_> = missing.map(|it| it.id.clone()).collect();
        if missing.is_empty() || Instant::now() > end {
            return missing;
        }
        sleep(SECOND / 20).await;
    }
}
