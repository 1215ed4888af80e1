//! What a request costs with more routes, more sessions, more idle connections, and fewer cores.
//! Each line is beside the first of its kind, in the same round.

use std::fs;
use std::process::Command;

use postern_tests::cluster::Layout;
use postern_tests::databroker::Databroker;

use crate::client::{Connection, Connector};
use crate::peers::Ports;
use crate::people::{self, Pattern};
use crate::postern::{self, Postern};
use crate::sections::{idle, rate};
use crate::stage::Stage;
use crate::subject::Subject;
use crate::table::{Growth, Row, median};
use crate::tools::{self, CONNECTIONS, Reuse, Seen};
use crate::{Effort, checks};

/// How many people ask in turn.
const IN_TURN: usize = 1_000;

struct Variant {
    name: String,
    /// Where the one stands that it is compared with.
    first: usize,
    subject: Subject,
    connector: Connector,
    /// Of those who ask in turn; empty: ann alone.
    cookies: Vec<String>,
    /// Connections on which nothing happens.
    idle: Vec<Connection>,
    growth: Option<Growth>,
}

struct Sample {
    seen: Seen,
    /// Microseconds a request, of all processes.
    cpu: f64,
    wrong: u64,
}

pub async fn run(stage: &Stage, effort: Effort) -> Vec<Row> {
    // What runs, for as long as it is measured.
    let mut running = Vec::new();
    let mut variants = with_routes(stage, &mut running).await;
    let more = with_sessions(stage, &mut running, variants.len(), effort.sessions).await;
    variants.extend(more);
    variants.extend(with_idle(stage, &mut running, variants.len()).await);
    variants.extend(with_cores(stage, &mut running, variants.len()).await);
    let mut samples: Vec<Vec<Sample>> = variants.iter().map(|_| Vec::new()).collect();
    for _ in 0..effort.rounds {
        for (variant, samples) in variants.iter_mut().zip(&mut samples) {
            samples.push(sample(stage, variant, effort));
        }
    }
    let rows = variants.iter().zip(&samples).map(|(variant, own)| {
        let pairs = || own.iter().zip(&samples[variant.first]);
        Row::new(&variant.name)
            .figure("CPU µs", median(own.iter().map(|it| it.cpu)))
            .figure(
                "× first",
                median(pairs().map(|(own, first)| own.cpu / first.cpu)),
            )
            .figure("req/s", median(own.iter().map(|it| it.seen.rate)))
            .figure("p50 ms", median(own.iter().map(|it| it.seen.p50)))
            .figure("p99 ms", median(own.iter().map(|it| it.seen.p99)))
            .figure("RSS MiB", variant.subject.rss() as f64 / 1024.0)
            .growth(variant.growth)
            .wrong(own.iter().map(|it| it.wrong).sum())
    });
    rows.collect()
}

/// The requested route is the last one.
async fn with_routes(stage: &Stage, running: &mut Vec<Postern>) -> Vec<Variant> {
    let ports = stage.ports;
    let hosts = [1, 100, 1_000, 10_000].map(|count| {
        let config = postern::with_routes(ports, "", &postern::hosts(ports, count - 1));
        let growth = Some(Growth {
            of: "routes",
            count,
        });
        (format!("{count} routes, a host each"), config, growth)
    });
    let paths = postern::with_routes(ports, "", &paths(ports, 999));
    let paths = ("1000 routes of one host".to_owned(), paths, None);
    let mut variants = Vec::new();
    for (name, config, growth) in hosts.into_iter().chain([paths]) {
        let postern = Postern::start_with(Layout::AllInOne, &stage.issuer, config).await;
        variants.push(Variant {
            growth,
            ..Variant::new(name, 0, &postern)
        });
        running.push(postern);
    }
    variants
}

/// Routes of the requested host, each with a prefix that the request does not have.
fn paths(ports: Ports, count: usize) -> String {
    let from = |number| format!("'https://app.corp.test:{{PORT}}', prefix: /part{number}/");
    postern::guarded(ports, (0..count).map(from))
}

/// In the copy of an authorize of its own.
async fn with_sessions(
    stage: &Stage,
    running: &mut Vec<Postern>,
    first: usize,
    many: usize,
) -> Vec<Variant> {
    let mut variants = Vec::new();
    for count in [1, IN_TURN, many] {
        let config = postern::with_routes(stage.ports, "", "");
        let postern = Postern::start_with(Layout::Split, &stage.issuer, config).await;
        let pattern = Pattern::of(&postern.allowed);
        let databroker = Databroker::connect(&postern.cluster).await;
        // Ann is the first.
        let version = people::write(&databroker, pattern.idp_id(), 1..count).await;
        people::caught_up(&postern.cluster, "authorize", version).await;
        let name = format!("{count} sessions, split");
        let alone = Variant::new(name, first, &postern);
        let growth = Some(Growth {
            of: "sessions",
            count,
        });
        if count == 1 {
            variants.push(Variant { growth, ..alone });
        } else {
            variants.push(alone);
            let name = format!("{count} sessions, split, {IN_TURN} people in turn");
            let others = (1..IN_TURN).map(|number| pattern.of_person(number));
            let ann = std::iter::once(postern.allowed.clone());
            variants.push(Variant {
                cookies: ann.chain(others).collect(),
                growth,
                ..Variant::new(name, first, &postern)
            });
        }
        running.push(postern);
    }
    variants
}

/// Each has had an answer before.
async fn with_idle(stage: &Stage, running: &mut Vec<Postern>, first: usize) -> Vec<Variant> {
    let mut variants = Vec::new();
    for count in [1, 1_000, idle::possible(10_000)] {
        // They are to be there until the last round.
        let config = postern::with_routes(stage.ports, "timeout_idle: 24h\n", "");
        let postern = Postern::start_with(Layout::AllInOne, &stage.issuer, config).await;
        let name = format!("{count} idle connections");
        let variant = Variant::new(name, first, &postern);
        let (idle, failed) = idle::open(&variant.connector, &variant.subject, count);
        assert_eq!(failed, 0, "of {count} idle connections");
        variants.push(Variant {
            idle,
            growth: Some(Growth {
                of: "idle connections",
                count,
            }),
            ..variant
        });
        running.push(postern);
    }
    variants
}

/// The program has no setting for it: it takes the cores that it may run on.
async fn with_cores(stage: &Stage, running: &mut Vec<Postern>, first: usize) -> Vec<Variant> {
    let all = allowed();
    let mut variants = Vec::new();
    for (name, cores, count) in [("1 core", "0", 1), ("2 cores", "0-1", 2)] {
        // Whoever is started from this thread inherits where it may run.
        allow(cores);
        let config = postern::with_routes(stage.ports, "", "");
        let postern = Postern::start_with(Layout::AllInOne, &stage.issuer, config).await;
        allow(&all);
        variants.push(Variant {
            growth: Some(Growth { of: "cores", count }),
            ..Variant::new(name.to_owned(), first, &postern)
        });
        running.push(postern);
    }
    variants
}

/// The cores that this thread may run on, as a list.
fn allowed() -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.expect("a list of cores").trim().to_owned()
}

fn allow(cores: &str) {
    let thread = fs::read_link("/proc/thread-self").expect("a thread");
    let number = thread.file_name().expect("a number").to_owned();
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", "--pid", cores]).arg(number);
    let output = command.output().expect("taskset, of util-linux");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Variant {
    fn new(name: String, first: usize, postern: &Postern) -> Self {
        let (subject, connector) = (postern.subject(), postern.connector());
        checks::answers(&connector, &subject);
        Self {
            name,
            first,
            subject,
            connector,
            cookies: Vec::new(),
            idle: Vec::new(),
            growth: None,
        }
    }
}

fn sample(stage: &Stage, variant: &mut Variant, effort: Effort) -> Sample {
    let subject = &variant.subject;
    let cpu = || subject.cpu().iter().map(|it| it.1).sum::<f64>();
    let (reached, before) = (rate::upstream_count(stage), cpu());
    let seen = if variant.cookies.is_empty() {
        tools::wrk(subject, effort.load, Reuse::KeepAlive)
    } else {
        let directory = stage.site.directory.path();
        tools::wrk_in_turn(subject, effort.load, &variant.cookies, directory)
    };
    let cpu = (cpu() - before) / seen.requests as f64;
    // wrk takes a redirect to sign in for an answer; the upstream knows better.
    let reached = rate::upstream_count(stage) - reached;
    let missing = seen
        .requests
        .saturating_sub(reached + u64::from(CONNECTIONS));
    checks::answers(&variant.connector, subject);
    let gone = idle::ask_some(&mut variant.idle, subject);
    Sample {
        wrong: seen.wrong + missing + gone,
        seen,
        cpu,
    }
}
