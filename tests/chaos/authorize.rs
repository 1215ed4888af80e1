//! One of two authorize is not what it was.

use std::time::Duration;

use tokio::time::sleep;

use crate::stage::{BEFORE, Figure, Stage, Terms, time_until};

const SECOND: Duration = Duration::from_secs(1);

/// Both of them, one after the other.
pub async fn c02_authorize_killed(terms: Terms) -> Figure {
    let mut stage = Stage::set(terms).await;
    let load = stage.load().await;
    let sockets = stage.sockets().await;
    for replica in ["authorize-1", "authorize-2"] {
        stage.until_ready("authorize", 2, 20 * SECOND).await;
        sleep(BEFORE).await;
        stage.world.cluster.kill(replica).await;
        sleep(BEFORE).await;
        stage.world.cluster.start_again(replica);
        stage.world.cluster.ready().await;
    }
    sleep(BEFORE).await;
    let report = load.stop().await;
    let sockets = sockets.stop().await;
    stage.flawless(&report).all_open(&sockets)
}

/// Both, one after the other; each goes on after a while.
pub async fn authorize_frozen(terms: Terms) -> Figure {
    let mut stage = Stage::set(terms).await;
    let load = stage.load().await;
    let sockets = stage.sockets().await;
    let mut ejected = Duration::ZERO;
    for replica in ["authorize-1", "authorize-2"] {
        stage.until_ready("authorize", 2, 20 * SECOND).await;
        sleep(BEFORE).await;
        stage.world.cluster.process(replica).signal("STOP");
        let noticed = time_until(async || {
            let seen = [
                stage.endpoints_ready("proxy-1", "authorize").await,
                stage.endpoints_ready("proxy-2", "authorize").await,
            ];
            seen == [Some(1), Some(1)]
        })
        .await;
        ejected = ejected.max(noticed);
        sleep(3 * BEFORE).await;
        stage.world.cluster.process(replica).signal("CONT");
    }
    sleep(BEFORE).await;
    let report = load.stop().await;
    let sockets = sockets.stop().await;
    stage
        .flawless(&report)
        .all_open(&sockets)
        .none_over(&report, SECOND)
        .within("ejected", ejected, 2 * SECOND)
}
