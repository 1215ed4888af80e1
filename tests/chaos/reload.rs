//! Another configuration, while requests go on.

use std::path::Path;
use std::time::{Duration, Instant};

use postern_tests::wait;
use tokio::time::sleep;

use crate::stage::{BEFORE, Figure, Stage, Terms};

const SECOND: Duration = Duration::from_secs(1);

const SERVICES: [&str; 8] = [
    "databroker-1",
    "databroker-2",
    "authorize-1",
    "authorize-2",
    "authenticate-1",
    "authenticate-2",
    "proxy-1",
    "proxy-2",
];

pub async fn c58_reload(terms: Terms) -> Figure {
    let stage = Stage::set(terms).await;
    let file = stage.world.cluster.config_file();
    let good = std::fs::read_to_string(&file).expect("a configuration");
    let load = stage.load().await;
    let sockets = stage.sockets().await;
    sleep(BEFORE).await;
    let first = checksums(&stage).await;
    let mut everywhere = Duration::ZERO;
    for (number, write) in [in_place as fn(&Path, &str), by_rename, by_link]
        .iter()
        .enumerate()
    {
        let more = format!(
            "- {{from: 'https://more{number}.corp.test:{}', to: '{}', policy: [{{allow: {{and: [{{claim/groups: eng}}]}}}}]}}\nroutes_end: {number}\n",
            stage.world.cluster.port,
            stage.witness.server.url()
        );
        let more = more.split("routes_end").next().unwrap_or_default();
        let before = checksums(&stage).await;
        write(&file, &with_route(&good, more));
        let written = Instant::now();
        wait::until("one new checksum everywhere", 10 * SECOND, async || {
            let now = checksums(&stage).await;
            if now.iter().all(|it| *it == now[0] && *it != before[0]) {
                Ok(())
            } else {
                Err(now)
            }
        })
        .await;
        everywhere = everywhere.max(written.elapsed());
    }
    let valid = checksums(&stage).await;
    let half = good.split_once("policy:").expect("a policy").0;
    for broken in ["routes: [{from: nowhere}]\n", half, "", "routes: {"] {
        by_rename(&file, broken);
        sleep(2 * SECOND).await;
    }
    let unchanged = checksums(&stage).await == valid && first != valid;
    let report = load.stop().await;
    let sockets = sockets.stop().await;
    stage
        .flawless(&report)
        .all_open(&sockets)
        .within("valid everywhere", everywhere, 2 * SECOND)
        .and(
            if unchanged {
                "broken changed nothing"
            } else {
                "broken changed something"
            },
            unchanged,
        )
}

/// Another route after the last one, before the lines that follow the routes.
fn with_route(good: &str, route: &str) -> String {
    let (head, tail) = good.split_once("dns_resolvers:").expect("a fleet's file");
    format!("{head}{route}dns_resolvers:{tail}")
}

fn in_place(file: &Path, text: &str) {
    std::fs::write(file, text).expect("it can be written");
}

fn by_rename(file: &Path, text: &str) {
    let new = file.with_extension("new");
    in_place(&new, text);
    std::fs::rename(&new, file).expect("it can be renamed");
}

/// As kubelet does with a ConfigMap.
fn by_link(file: &Path, text: &str) {
    let target = file.with_extension("target");
    in_place(&target, text);
    let link = file.with_extension("link");
    std::os::unix::fs::symlink(&target, &link).expect("a link");
    std::fs::rename(&link, file).expect("it can be renamed");
}

/// Which configuration each process runs.
async fn checksums(stage: &Stage) -> Vec<Option<String>> {
    let mut all = Vec::new();
    for service in SERVICES {
        let checksum = stage
            .metric(service, "pomerium_config_checksum_decimal")
            .await;
        all.push(checksum.map(|it| format!("{it:e}")));
    }
    all
}
