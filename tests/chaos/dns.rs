//! What the name server says about authorize.

use std::net::IpAddr;
use std::time::Duration;

use postern_test_dns::{Answer, ResponseCode};
use postern_tests::cluster::name_of;
use tokio::time::sleep;

use crate::stage::{BEFORE, Figure, Stage, Terms, time_until};

const SECOND: Duration = Duration::from_secs(1);

/// How long the name server misbehaves in each way.
const LIE: Duration = Duration::from_secs(30);

pub async fn c03_replica_added(terms: Terms) -> Figure {
    added(terms, 2, 5 * SECOND).await
}

pub async fn c03_replica_added_ttl_0(terms: Terms) -> Figure {
    added(terms, 0, 2 * SECOND).await
}

/// A second replica in DNS, while the first stays as healthy as it was.
async fn added(terms: Terms, ttl: u32, limit: Duration) -> Figure {
    let stage = Stage::set(terms).await;
    let (first, second) = (
        address(&stage, "authorize-1"),
        address(&stage, "authorize-2"),
    );
    tell(&stage, vec![first], ttl);
    stage.until_ready("authorize", 1, 20 * SECOND).await;
    let load = stage.load().await;
    sleep(BEFORE).await;
    let before = stage.decided("authorize-2").await;
    tell(&stage, vec![first, second], ttl);
    let reached = time_until(async || stage.decided("authorize-2").await > before).await;
    sleep(limit.saturating_sub(reached)).await;
    let from = (
        stage.decided("authorize-1").await,
        stage.decided("authorize-2").await,
    );
    sleep(5 * SECOND).await;
    let to = (
        stage.decided("authorize-1").await,
        stage.decided("authorize-2").await,
    );
    let (old, new) = (to.0 - from.0, to.1 - from.1);
    let share = 100.0 * new / (old + new);
    let report = load.stop().await;
    stage
        .flawless(&report)
        .within("first traffic", reached, limit)
        .and(format!("share {share:.0} %"), share >= 30.0)
}

/// A healthy replica that DNS does not name any more.
pub async fn c03_replica_removed(terms: Terms) -> Figure {
    let stage = Stage::set(terms).await;
    let stays = address(&stage, "authorize-1");
    tell(&stage, vec![stays, address(&stage, "authorize-2")], 2);
    let load = stage.load().await;
    sleep(BEFORE).await;
    tell(&stage, vec![stays], 2);
    sleep(5 * SECOND).await;
    let before = stage.decided("authorize-2").await;
    sleep(5 * SECOND).await;
    let after = stage.decided("authorize-2").await - before;
    let report = load.stop().await;
    stage
        .flawless(&report)
        .none_over(&report, SECOND)
        .and(format!("{after} questions there afterwards"), after == 0.0)
}

/// Every kind of failure in turn; then two addresses that have nothing to do with the first.
pub async fn c05_dns_lies(terms: Terms) -> Figure {
    let mut stage = Stage::set(terms).await;
    let load = stage.load().await;
    let name = name_of("authorize");
    let mut told = Vec::new();
    for lie in [
        Answer::Fails(ResponseCode::NXDomain),
        Answer::Fails(ResponseCode::ServFail),
        Answer::Silence,
        Answer::Empty,
    ] {
        stage.world.cluster.dns().set(&name, lie);
        sleep(LIE).await;
        let age = stage
            .metric("proxy-1", "postern_rpc_lookup_age_seconds{")
            .await;
        told.push(age.unwrap_or_default());
    }
    let oldest = told.iter().copied().fold(0.0, f64::max);
    for number in [3, 4] {
        stage.world.cluster.add("authorize", number);
    }
    stage.world.cluster.ready().await;
    let new = ["authorize-3", "authorize-4"];
    tell(&stage, new.map(|it| address(&stage, it)).to_vec(), 2);
    let moved = time_until(async || {
        stage.decided("authorize-3").await > 0.0 && stage.decided("authorize-4").await > 0.0
    })
    .await;
    sleep(BEFORE).await;
    for replica in ["authorize-1", "authorize-2"] {
        stage.world.cluster.kill(replica).await;
    }
    sleep(BEFORE).await;
    let report = load.stop().await;
    let lies = LIE.as_secs_f64();
    stage
        .flawless(&report)
        .and(
            format!("age of the set up to {oldest:.0} s on the metric"),
            oldest >= 2.0 * lies,
        )
        .within("new pair in use", moved, 5 * SECOND)
}

fn address(stage: &Stage, replica: &str) -> IpAddr {
    stage.world.cluster.serves(replica).ip()
}

fn tell(stage: &Stage, addresses: Vec<IpAddr>, ttl: u32) {
    let answer = Answer::Addresses(addresses, ttl);
    stage.world.cluster.dns().set(&name_of("authorize"), answer);
}
