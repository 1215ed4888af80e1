//! Databrokers, and the database behind them.

use std::time::{Duration, Instant};

use postern_test_dns::Answer;
use postern_tests::cluster::name_of;
use postern_tests::load::Report;
use tokio::time::sleep;

use crate::stage::{BEFORE, Figure, Stage, Terms};

const SECOND: Duration = Duration::from_secs(1);

/// How long nobody keeps records.
const OUTAGE: Duration = Duration::from_secs(30);

pub async fn databroker_frozen(terms: Terms) -> Figure {
    let mut stage = Stage::set(terms).await;
    let load = stage.load().await;
    let sockets = stage.sockets().await;
    let sign_ins = stage.sign_ins();
    for replica in ["databroker-1", "databroker-2"] {
        sleep(BEFORE).await;
        stage.world.cluster.process(replica).signal("STOP");
        sleep(3 * BEFORE).await;
        stage.world.cluster.process(replica).signal("CONT");
    }
    sleep(BEFORE).await;
    let (sign_ins, report) = (sign_ins.stop().await, load.stop().await);
    let sockets = sockets.stop().await;
    stage
        .flawless(&report)
        .all_open(&sockets)
        .none_over(&report, SECOND)
        .all_signed_in(&sign_ins)
        .signed_in_within(&sign_ins, 2 * SECOND)
}

/// Both, one after the other, in the middle of sign-ins.
pub async fn databroker_killed(terms: Terms) -> Figure {
    let mut stage = Stage::set(terms).await;
    let load = stage.load().await;
    let sockets = stage.sockets().await;
    let sign_ins = stage.sign_ins();
    for replica in ["databroker-1", "databroker-2"] {
        sleep(BEFORE).await;
        stage.world.cluster.kill(replica).await;
        sleep(BEFORE).await;
        stage.world.cluster.start_again(replica);
        stage.world.cluster.ready().await;
    }
    sleep(BEFORE).await;
    let (sign_ins, report) = (sign_ins.stop().await, load.stop().await);
    let sockets = sockets.stop().await;
    stage
        .flawless(&report)
        .all_open(&sockets)
        .all_signed_in(&sign_ins)
}

pub async fn c07_databrokers_down(terms: Terms) -> Figure {
    let mut stage = Stage::set(terms).await;
    let load = stage.load().await;
    let sockets = stage.sockets().await;
    sleep(BEFORE).await;
    for replica in ["databroker-1", "databroker-2"] {
        stage.world.cluster.kill(replica).await;
    }
    let clear = refused_for(OUTAGE, &stage).await;
    let cluster = &mut stage.world.cluster;
    for number in [3, 4] {
        cluster.add("databroker", number);
    }
    let back = ["databroker-3", "databroker-4"].map(|it| cluster.serves(it).ip());
    cluster
        .dns()
        .set(&name_of("databroker"), Answer::Addresses(back.to_vec(), 2));
    // Those that were killed are not asked.
    for replica in back.map(|ip| format!("http://{ip}:{}/readyz", cluster.port + 4)) {
        let nobody = cluster.program();
        postern_tests::wait::until(&replica, 20 * SECOND, async || {
            match nobody.try_get(&replica).await {
                Ok(answer) if answer.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    let recovered = stage.until_sign_in_works().await;
    sleep(BEFORE).await;
    let report = load.stop().await;
    let sockets = sockets.stop().await;
    survived(&stage, &report, &clear, recovered).all_open(&sockets)
}

pub async fn c15_postgres_down(terms: Terms) -> Figure {
    let stage = Stage::set(terms).await;
    let load = stage.load().await;
    let sockets = stage.sockets().await;
    sleep(BEFORE).await;
    stage.postgres.stop().expect("Postgres stops");
    let clear = refused_for(OUTAGE, &stage).await;
    stage.postgres.resume().expect("Postgres starts");
    let recovered = stage.until_sign_in_works().await;
    sleep(BEFORE).await;
    let report = load.stop().await;
    let sockets = sockets.stop().await;
    survived(&stage, &report, &clear, recovered).all_open(&sockets)
}

/// What those who try to sign in during an outage are told.
struct Refused {
    visits: usize,
    unclear: Vec<String>,
}

async fn refused_for(outage: Duration, stage: &Stage) -> Refused {
    let end = Instant::now() + outage;
    let mut refused = Refused {
        visits: 0,
        unclear: Vec::new(),
    };
    while Instant::now() < end {
        refused.visits += 1;
        match stage.visit().await {
            Ok(page) if Stage::is_clear_503(&page) => {}
            Ok(page) => {
                let what = format!("{} at {}", page.status, page.url.path());
                refused.unclear.push(what);
            }
            Err(error) => refused.unclear.push(error),
        }
        sleep(SECOND).await;
    }
    refused
}

fn survived(stage: &Stage, report: &Report, refused: &Refused, recovered: Duration) -> Figure {
    let mut figure = stage
        .flawless(report)
        .and(
            format!(
                "{} of {} visits got something else than a clear 503",
                refused.unclear.len(),
                refused.visits
            ),
            refused.unclear.is_empty() && refused.visits > 0,
        )
        .within("sign-in works", recovered, 5 * SECOND);
    figure.notes.extend(refused.unclear.iter().take(5).cloned());
    figure
}
