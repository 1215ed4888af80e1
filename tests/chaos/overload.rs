//! More than the machine can do.

use std::time::Duration;

use postern_tests::process::Process;
use tokio::time::sleep;

use crate::stage::{BEFORE, Figure, Stage, Terms};

const SECOND: Duration = Duration::from_secs(1);

/// How long too much comes.
const FLOOD: Duration = Duration::from_secs(15);

/// What one process of ours may grow to.
const MEMORY: u64 = 256 * 1024 * 1024;

pub async fn overload(terms: Terms) -> Figure {
    let stage = Stage::set(terms).await;
    let load = stage.load().await;
    sleep(2 * BEFORE).await;
    let flood = load.now();
    load.set_rate(10 * terms.rate);
    sleep(FLOOD).await;
    load.set_rate(terms.rate);
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
    let (p99, usual) = (during.percentile(99), normal.percentile(99));
    let refused = during.failed() - during.unclear();
    stage
        .judged(&report, during.unclear() == 0 && after.failed() == 0)
        .and(format!("{refused} times 503"), true)
        .and(
            format!(
                "p99 {} ms, usually {} ms",
                p99.as_millis(),
                usual.as_millis()
            ),
            p99 < 5 * usual,
        )
        .and(format!("peak memory {} MiB", memory >> 20), memory < MEMORY)
}
