//! More than the proxies may take.

use std::time::Duration;

use postern_tests::load::{Load, Outcome};
use postern_tests::process::Process;
use tokio::time::sleep;

use crate::stage::{BEFORE, Figure, Stage, Terms};

const SECOND: Duration = Duration::from_secs(1);

/// How long too much comes.
const FLOOD: Duration = Duration::from_secs(15);

/// What one process of ours may grow to.
const MEMORY: u64 = 256 * 1024 * 1024;

/// A share of the usual load, so that ten times as much is nothing to whoever asks: what takes long
/// would be theirs.
const SHARE: u32 = 5;

/// The upstream takes its time, so that requests are under way in numbers: 400 a second are 400 at each
/// of two proxies …
const TAKES: Duration = Duration::from_secs(2);

/// … and with so many file descriptors each takes 200.
const DESCRIPTORS: u32 = 440;

pub async fn overload(terms: Terms) -> Figure {
    let mut stage = Stage::set(terms).await;
    let cluster = &mut stage.world.cluster;
    for proxy in ["proxy-1", "proxy-2"] {
        cluster.limit(proxy, DESCRIPTORS);
        cluster.kill(proxy).await;
        cluster.start_again(proxy);
    }
    cluster.ready().await;
    stage.witness.take(TAKES);
    let rate = terms.rate / SHARE;
    let load = Load::start(&stage.world, rate).await;
    sleep(2 * BEFORE).await;
    let flood = load.now();
    load.set_rate(10 * rate);
    sleep(FLOOD).await;
    load.set_rate(rate);
    let end = load.now();
    let memory = stage
        .world
        .cluster
        .processes
        .iter()
        .map(Process::peak_memory)
        .max();
    let memory = memory.unwrap_or_default();
    sleep(3 * BEFORE).await;
    let report = load.stop().await;
    let (normal, during) = (report.between(SECOND, flood), report.between(flood, end));
    let after = report.between(end + 5 * SECOND, Duration::MAX);
    // What is ours of it.
    let ours = |took: Duration| took.saturating_sub(TAKES);
    let (p99, usual) = (ours(during.percentile(99)), ours(normal.percentile(99)));
    let refused = during.unavailable().sent();
    let refusal = during.percentile_of(&Outcome::Unavailable, 99);
    stage
        .judged(&report, during.unclear() == 0 && after.failed() == 0)
        .and(
            format!(
                "{refused} of {} times 503, p99 {} ms",
                during.sent(),
                refusal.as_millis()
            ),
            refused > 0 && refusal < 5 * usual,
        )
        .and(
            format!(
                "those inside p99 {} ms beside the upstream's {}, usually {} ms",
                p99.as_millis(),
                TAKES.as_millis(),
                usual.as_millis()
            ),
            p99 < 5 * usual,
        )
        .and(format!("peak memory {} MiB", memory >> 20), memory < MEMORY)
}
