//! How soon a process is ready with 1,000 routes, and how large it is when nothing happens.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use postern_tests::binaries::binary;
use postern_tests::cluster::{Cluster, Layout, Plan};

use crate::client::Connector;
use crate::stage::Stage;
use crate::table::{Row, median};
use crate::{Effort, postern, procfs};

const ROUTES: usize = 1_000;

const SERVICES: [&str; 4] = ["proxy", "authorize", "authenticate", "databroker"];

pub async fn run(stage: &Stage, effort: Effort) -> Vec<Row> {
    let mut rows = Vec::new();
    for layout in [Layout::AllInOne, Layout::Split] {
        let mut cluster = Cluster::start(Plan {
            layout,
            provider: stage.issuer.clone(),
            config: config(stage),
            names: Vec::new(),
        })
        .await;
        let names: &[&str] = match layout {
            Layout::AllInOne => &["postern"],
            Layout::Split | Layout::Fleet => &SERVICES,
        };
        for name in names {
            let rss = procfs::rss(cluster.process_id(name));
            let mut took = Vec::new();
            for _ in 0..effort.rounds {
                took.push(restart(&mut cluster, name).await);
            }
            let program = match layout {
                Layout::AllInOne => (*name).to_owned(),
                Layout::Split | Layout::Fleet => format!("postern-{name}"),
            };
            let size = std::fs::metadata(binary(&program)).map_or(0, |file| file.len());
            rows.push(
                Row::new(&program)
                    .figure("ms to ready", median(took))
                    .figure("idle RSS MiB", rss as f64 / 1024.0)
                    .figure("binary MiB", size as f64 / 1024.0 / 1024.0),
            );
        }
    }
    rows
}

/// A million sessions take a while to copy.
const PATIENCE: Duration = Duration::from_secs(180);

/// Milliseconds from the start of the process to its first "ready".
pub async fn restart(cluster: &mut Cluster, name: &str) -> f64 {
    let health = url_port(&cluster.health(name, "/readyz"));
    cluster.kill(name).await;
    let begun = Instant::now();
    cluster.start_again(name);
    while !Connector::is_ok(health, "/readyz") {
        assert!(begun.elapsed() < PATIENCE, "{name} is never ready");
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    let took = begun.elapsed().as_secs_f64() * 1e3;
    cluster.ready().await;
    took
}

fn url_port(url: &str) -> u16 {
    let after = url
        .strip_prefix("http://127.0.0.1:")
        .expect("a loopback URL");
    let port = after.split('/').next().unwrap_or_default();
    port.parse().expect("a port")
}

/// The usual routes and many more.
fn config(stage: &Stage) -> String {
    let mut text = postern::config(stage.ports);
    for number in 0..ROUTES {
        writeln!(
            text,
            "- {{from: 'https://app{number}.corp.test:{{PORT}}', to: 'http://127.0.0.1:{}', policy: *policy}}",
            stage.ports.asserted
        )
        .expect("text grows");
    }
    text
}
