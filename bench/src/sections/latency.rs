//! How long an answer takes when there is time for it: an open loop at a quarter and at half of
//! nginx's peak. A latency counts from when the request was due, so that waiting for a late answer
//! is not hidden.
//!
//! Those who ask share the cores with whom they ask and with the upstream, so each line says what
//! they take and what was left over: where cores are never idle, all of them together are the bound.

use std::thread;
use std::time::{Duration, Instant};

use crate::Effort;
use crate::client::{Connection, Connector};
use crate::procfs::{self, Cores};
use crate::stage::Stage;
use crate::subject::{Subject, Who};
use crate::table::{Row, median};
use crate::tools::{self, CONNECTIONS, Reuse, percentile};

const SUBJECTS: [Who; 6] = [
    Who::Nginx,
    Who::NginxAuth,
    Who::Haproxy,
    Who::EnvoyYes,
    Who::AllInOne,
    Who::Split,
];

/// Of nginx's peak, as wrk finds it.
const SHARES: [(&str, f64); 2] = [("a quarter", 0.25), ("half", 0.5)];

struct Sample {
    /// Answers a second: fewer than are due where somebody can't keep up.
    rate: f64,
    p50: f64,
    p99: f64,
    /// Of those who were free to ask in time, how late they did: what is not the subject's.
    late: f64,
    /// CPU time of those who ask, microseconds a request.
    client: f64,
    /// Percent.
    idle: f64,
    wrong: u64,
}

pub fn run(stage: &Stage, effort: Effort) -> Vec<Row> {
    let subjects: Vec<_> = stage
        .subjects
        .iter()
        .filter(|it| it.is(&SUBJECTS))
        .collect();
    let peak = tools::wrk(subjects[0], effort.load, Reuse::KeepAlive).rate;
    let mut samples = SHARES.map(|_| subjects.iter().map(|_| Vec::new()).collect::<Vec<_>>());
    for _ in 0..effort.rounds {
        for ((_, share), samples) in SHARES.iter().zip(&mut samples) {
            for (subject, samples) in subjects.iter().zip(samples) {
                let connector = stage.connector(subject.who);
                samples.push(sample(&connector, subject, effort.load, peak * share));
            }
        }
    }
    let mut rows = Vec::new();
    for ((name, share), samples) in SHARES.iter().zip(&samples) {
        for (subject, own) in subjects.iter().zip(samples) {
            let name = format!("{}, at {name}", subject.who);
            rows.push(row(&name, peak * share, own, &samples[0]));
        }
    }
    rows
}

fn row(name: &str, due: f64, own: &[Sample], nginx: &[Sample]) -> Row {
    let of = |figure: fn(&Sample) -> f64| median(own.iter().map(figure));
    let added = own.iter().zip(nginx);
    let added = added.map(|(own, nginx)| own.p99 - nginx.p99);
    Row::new(&name)
        .figure("due/s", due)
        .figure("answers/s", of(|it| it.rate))
        .figure("p50 ms", of(|it| it.p50))
        .figure("p99 ms", of(|it| it.p99))
        .figure("p99 over nginx, ms", median(added))
        .figure("asked late, p99 ms", of(|it| it.late))
        .figure("clients' CPU µs", of(|it| it.client))
        .figure("cores idle %", of(|it| it.idle))
        .wrong(own.iter().map(|it| it.wrong).sum())
}

fn sample(connector: &Connector, subject: &Subject, load: Duration, rate: f64) -> Sample {
    let period = Duration::from_secs_f64(f64::from(CONNECTIONS) / rate);
    let head = subject.request("GET", "/") + "\r\n";
    // Handshake and first use are not what is measured.
    let connections: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let connection = connector.connect(subject.port, &subject.authority);
            let mut connection = connection.expect("a connection");
            connection.exchange(&head).expect("an answer");
            connection
        })
        .collect();
    let (cpu, cores) = (procfs::own_cpu(), Cores::now());
    let begin = Instant::now() + Duration::from_millis(5);
    let threads: Vec<_> = (0..CONNECTIONS)
        .zip(connections)
        .map(|(number, connection)| {
            let first = begin + period * number / CONNECTIONS;
            let head = head.clone();
            thread::spawn(move || paced(connection, &head, first, period, begin + load))
        })
        .collect();
    let mut seen = Seen::default();
    for thread in threads {
        let own = thread.join().expect("a client ends");
        seen.latencies.extend(own.latencies);
        seen.late.extend(own.late);
        seen.wrong += own.wrong;
    }
    let (took, idle) = (begin.elapsed(), Cores::now().idle_since(cores));
    let cpu = procfs::own_cpu().saturating_sub(cpu);
    seen.latencies.sort_by(f64::total_cmp);
    seen.late.sort_by(f64::total_cmp);
    let answers = seen.latencies.len() as f64;
    Sample {
        rate: answers / took.as_secs_f64(),
        p50: percentile(&seen.latencies, 50),
        p99: percentile(&seen.latencies, 99),
        late: percentile(&seen.late, 99),
        client: cpu.as_secs_f64() * 1e6 / answers,
        idle: idle * 100.0,
        wrong: seen.wrong,
    }
}

/// In milliseconds.
#[derive(Default)]
struct Seen {
    latencies: Vec<f64>,
    late: Vec<f64>,
    wrong: u64,
}

/// One connection's requests, each due a period after the one before.
fn paced(
    mut connection: Connection,
    head: &str,
    first: Instant,
    period: Duration,
    end: Instant,
) -> Seen {
    let mut seen = Seen::default();
    let mut due = first;
    while due < end {
        let early = due.saturating_duration_since(Instant::now());
        if !early.is_zero() {
            thread::sleep(early);
            seen.late.push(milliseconds(due));
        }
        match connection.exchange(head) {
            Ok(answer) if answer.status == 200 => seen.latencies.push(milliseconds(due)),
            Ok(_) => seen.wrong += 1,
            Err(_) => {
                seen.wrong += 1;
                break;
            }
        }
        due += period;
    }
    seen
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
