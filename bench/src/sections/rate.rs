//! As many requests as it takes: how many a second, and what each costs whom.

use crate::Effort;
use crate::checks::{self, Refused};
use crate::client::Connector;
use crate::stage::Stage;
use crate::subject::{Subject, Who};
use crate::table::{Row, median};
use crate::tools::{self, CONNECTIONS, Reuse, Seen};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Http1,
    Http2,
    NewConnections,
}

/// One subject in one round.
struct Sample {
    seen: Seen,
    /// Microseconds a request, of each process.
    cpu: Vec<f64>,
    rss: u64,
    wrong: u64,
}

pub async fn run(stage: &Stage, effort: Effort, kind: Kind) -> Vec<Row> {
    let mut samples: Vec<Vec<Sample>> = stage.subjects.iter().map(|_| Vec::new()).collect();
    for _ in 0..effort.rounds {
        for (subject, samples) in stage.subjects.iter().zip(&mut samples) {
            samples.push(sample(stage, subject, effort, kind).await);
        }
    }
    let of = |who: Who| {
        let at = stage.subjects.iter().position(|subject| subject.who == who);
        at.map_or(&[][..], |at| &samples[at])
    };
    let (nginx, envoy_yes) = (of(Who::Nginx), of(Who::EnvoyYes));
    stage
        .subjects
        .iter()
        .zip(&samples)
        .map(|(subject, samples)| row(subject, samples, nginx, envoy_yes))
        .collect()
}

async fn sample(stage: &Stage, subject: &Subject, effort: Effort, kind: Kind) -> Sample {
    let connector = stage.connector(subject.who);
    let reached = upstream_count(stage);
    let before = subject.cpu();
    let refused = Refused::ask(&connector, subject);
    let seen = match kind {
        Kind::Http1 => tools::wrk(subject, effort.load, Reuse::KeepAlive),
        Kind::NewConnections => tools::wrk(subject, effort.load, Reuse::Close),
        Kind::Http2 => tools::h2load(subject, effort.load, stage.site.directory.path()),
    };
    let mut wrong = seen.wrong + refused.map_or(0, Refused::wrong);
    let requests = seen.requests as f64;
    let cpu = subject.cpu();
    let cpu = cpu
        .iter()
        .zip(&before)
        .map(|(after, before)| (after.1 - before.1) / requests);
    let cpu = cpu.collect();
    // wrk takes a redirect to sign in for an answer; the upstream knows better.
    let reached = upstream_count(stage) - reached;
    wrong += seen
        .requests
        .saturating_sub(reached + u64::from(CONNECTIONS));
    let cluster = match subject.who {
        Who::AllInOne => Some(&stage.all_in_one.cluster),
        Who::Split => Some(&stage.split.cluster),
        _ => None,
    };
    if let Some(cluster) = cluster {
        let holds = checks::assertion_holds(&connector, subject, cluster).await;
        wrong += u64::from(!holds);
    }
    Sample {
        seen,
        cpu,
        rss: subject.rss(),
        wrong,
    }
}

fn row(subject: &Subject, samples: &[Sample], nginx: &[Sample], envoy_yes: &[Sample]) -> Row {
    let of = |figure: fn(&Sample) -> f64| median(samples.iter().map(figure));
    let against = |others: &[Sample]| {
        let pairs = samples.iter().zip(others);
        median(pairs.map(|(own, other)| own.seen.rate / other.seen.rate))
    };
    let mut row = Row::new(&subject.who)
        .figure("req/s", of(|it| it.seen.rate))
        .figure("× nginx", against(nginx))
        .figure("× Envoy ext_authz", against(envoy_yes))
        .figure("CPU µs", of(|it| it.cpu.iter().sum()));
    if subject.processes.len() > 1 {
        for (at, name) in ["front µs", "authorizer µs"].into_iter().enumerate() {
            row = row.figure(name, median(samples.iter().map(|it| it.cpu[at])));
        }
    }
    row.figure("p50 ms", of(|it| it.seen.p50))
        .figure("p99 ms", of(|it| it.seen.p99))
        .figure("RSS MiB", of(|it| it.rss as f64 / 1024.0))
        .wrong(samples.iter().map(|it| it.wrong).sum())
}

/// How many requests have reached the upstream.
pub fn upstream_count(stage: &Stage) -> u64 {
    let text = Connector::plain(stage.ports.plain, "/count").expect("the upstream counts");
    // `accepts handled requests`, the third number on the third line.
    text.lines()
        .nth(2)
        .and_then(|line| line.split_whitespace().nth(2)?.parse().ok())
        .unwrap_or_else(|| panic!("nginx said: {text}"))
}
