//! What lies between the proxies and authorize.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use postern_test_dns::Answer;
use postern_tests::cluster::name_of;
use postern_tests::relay::{Relay, Way};
use tokio::time::sleep;

use crate::stage::{BEFORE, Figure, Stage, Terms};

const SECOND: Duration = Duration::from_secs(1);

/// How long nothing gets through, after the first second.
const CUT: Duration = Duration::from_secs(10);

pub async fn c66_cut(terms: Terms) -> Figure {
    cut(terms, Way::Cut).await
}

pub async fn c66_silent(terms: Terms) -> Figure {
    cut(terms, Way::Silent).await
}

async fn cut(terms: Terms, way: Way) -> Figure {
    let mut stage = Stage::set(terms).await;
    let relays = relays(&mut stage).await;
    let load = stage.load().await;
    sleep(BEFORE).await;
    for relay in &relays {
        relay.set(way);
    }
    let from = load.now();
    // Whoever was allowed before the cut may still be on the way.
    sleep(SECOND).await;
    let before = stage.witness.count();
    sleep(CUT).await;
    let reached = stage.witness.count() - before;
    let to = load.now();
    for relay in &relays {
        relay.set(Way::Open);
    }
    sleep(3 * BEFORE).await;
    let report = load.stop().await;
    let during = report.answered_between(from + SECOND, to);
    let let_through = during.sent() - during.failed();
    let refused = report.unavailable();
    let recovered = report.back_after(to);
    let outside = report.answered_between(Duration::ZERO, from).failed();
    stage
        .judged(&report, report.unclear() == 0 && outside == 0)
        .and(format!("{} times 503", refused.sent()), refused.sent() > 0)
        .within("the slowest of them", refused.slowest(), 2 * SECOND)
        .and(
            format!("{let_through} answered without authorize"),
            let_through == 0,
        )
        .and(format!("{reached} reached the upstream"), reached == 0)
        .and("answers came again", recovered.is_some())
        .within("back", recovered.unwrap_or_default(), 2 * SECOND)
}

/// Idle connections are lost without a word; after a while, a hundred requests.
pub async fn c01_forgotten_idle(terms: Terms) -> Figure {
    forgotten_idle(terms, &REPLICAS).await
}

/// With nobody else to ask.
pub async fn c01_forgotten_idle_alone(terms: Terms) -> Figure {
    forgotten_idle(terms, &REPLICAS[..1]).await
}

async fn forgotten_idle(terms: Terms, replicas: &[&str]) -> Figure {
    let mut stage = Stage::set(terms).await;
    let relays = relays_before(&mut stage, replicas).await;
    let load = stage.load().await;
    sleep(BEFORE).await;
    load.set_rate(0);
    sleep(BEFORE).await;
    for relay in &relays {
        relay.forget();
    }
    sleep(CUT).await;
    let idle = load.now();
    load.set_rate(100);
    sleep(SECOND).await;
    let report = load.stop().await.between(idle, Duration::MAX);
    stage.flawless(&report).none_over(&report, SECOND)
}

/// All of them at once, in the midst of load: the next question is what finds out.
pub async fn c01_forgotten_in_use(terms: Terms) -> Figure {
    let mut stage = Stage::set(terms).await;
    let relays = relays(&mut stage).await;
    let load = stage.load().await;
    sleep(BEFORE).await;
    for relay in &relays {
        relay.forget();
    }
    sleep(2 * BEFORE).await;
    let report = load.stop().await;
    stage.flawless(&report).none_over(&report, SECOND)
}

const REPLICAS: [&str; 2] = ["authorize-1", "authorize-2"];

/// Puts a relay before each authorize; the proxies know nothing else.
async fn relays(stage: &mut Stage) -> Vec<Relay> {
    relays_before(stage, &REPLICAS).await
}

/// The same before those that are named.
async fn relays_before(stage: &mut Stage, replicas: &[&str]) -> Vec<Relay> {
    let mut relays = Vec::new();
    for replica in replicas {
        let target = stage.world.cluster.serves(replica);
        let IpAddr::V4(ip) = target.ip() else {
            panic!("fleets live on IPv4")
        };
        let [a, b, c, d] = ip.octets();
        let address = SocketAddr::from((Ipv4Addr::new(a, b, c, d + 100), target.port()));
        relays.push(Relay::start(address, target).await);
    }
    let addresses = relays.iter().map(|relay| relay.address.ip()).collect();
    let answer = Answer::Addresses(addresses, 2);
    stage.world.cluster.dns().set(&name_of("authorize"), answer);
    // Streams that were open before would go on past the relays.
    for proxy in ["proxy-1", "proxy-2"] {
        stage.world.cluster.kill(proxy).await;
        stage.world.cluster.start_again(proxy);
    }
    stage.world.cluster.ready().await;
    stage
        .until_ready("authorize", replicas.len(), 20 * SECOND)
        .await;
    relays
}
