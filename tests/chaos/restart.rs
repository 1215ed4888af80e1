//! Services that go away and come back.

use std::time::Duration;

use tokio::time::sleep;

use crate::stage::{BEFORE, Figure, Stage, Terms};

const SECOND: Duration = Duration::from_secs(1);

/// As a deployment does it: the next one when the one before is ready again.
pub async fn c14_rolling_restart(terms: Terms) -> Figure {
    let mut stage = Stage::set(terms).await;
    let load = stage.load().await;
    let sign_ins = stage.sign_ins();
    sleep(BEFORE).await;
    let mut ended = Vec::new();
    for service in ["databroker", "authorize", "authenticate", "proxy"] {
        for replica in [format!("{service}-1"), format!("{service}-2")] {
            let process = stage.world.cluster.process(&replica);
            process.signal("TERM");
            let code = process.ended().await.code();
            if code != Some(0) {
                ended.push(format!("{replica} ended with {code:?}"));
            }
            stage.world.cluster.start_again(&replica);
            stage.world.cluster.ready().await;
            sleep(BEFORE).await;
        }
    }
    let (sign_ins, report) = (sign_ins.stop().await, load.stop().await);
    let mut figure = stage.flawless(&report).all_signed_in(&sign_ins);
    if !ended.is_empty() {
        figure = figure.and(ended.join(", "), false);
    }
    figure
}

pub async fn authenticate_frozen(terms: Terms) -> Figure {
    let mut stage = Stage::set(terms).await;
    let load = stage.load().await;
    let sign_ins = stage.sign_ins();
    for replica in ["authenticate-1", "authenticate-2"] {
        sleep(BEFORE).await;
        stage.world.cluster.process(replica).signal("STOP");
        sleep(3 * BEFORE).await;
        stage.world.cluster.process(replica).signal("CONT");
    }
    sleep(BEFORE).await;
    let (sign_ins, report) = (sign_ins.stop().await, load.stop().await);
    stage
        .flawless(&report)
        .none_over(&report, SECOND)
        .all_signed_in(&sign_ins)
        .signed_in_within(&sign_ins, 2 * SECOND)
}
