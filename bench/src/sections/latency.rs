//! How long an answer takes when nobody is busy: an open loop at a quarter of nginx's peak. A
//! latency counts from when the request was due, so that waiting for a late answer is not hidden.

use std::thread;
use std::time::{Duration, Instant};

use crate::Effort;
use crate::client::Connector;
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

struct Sample {
    p50: f64,
    p99: f64,
    wrong: u64,
}

pub fn run(stage: &Stage, effort: Effort) -> Vec<Row> {
    let subjects: Vec<_> = stage
        .subjects
        .iter()
        .filter(|it| it.is(&SUBJECTS))
        .collect();
    let peak = tools::wrk(subjects[0], effort.load, Reuse::KeepAlive).rate;
    let mut samples: Vec<Vec<Sample>> = subjects.iter().map(|_| Vec::new()).collect();
    for _ in 0..effort.rounds {
        for (subject, samples) in subjects.iter().zip(&mut samples) {
            samples.push(sample(
                &stage.connector(subject.who),
                subject,
                effort.load,
                peak / 4.0,
            ));
        }
    }
    let rows = subjects.iter().zip(&samples).map(|(subject, own)| {
        let added = own.iter().zip(&samples[0]);
        Row::new(&subject.who)
            .figure("req/s", peak / 4.0)
            .figure("p50 ms", median(own.iter().map(|it| it.p50)))
            .figure("p99 ms", median(own.iter().map(|it| it.p99)))
            .figure(
                "p99 over nginx, ms",
                median(added.map(|(own, nginx)| own.p99 - nginx.p99)),
            )
            .wrong(own.iter().map(|it| it.wrong).sum())
    });
    rows.collect()
}

fn sample(connector: &Connector, subject: &Subject, load: Duration, rate: f64) -> Sample {
    let period = Duration::from_secs_f64(f64::from(CONNECTIONS) / rate);
    let begin = Instant::now() + Duration::from_millis(200);
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let first = begin + period * number / CONNECTIONS;
            let (connector, subject) = (connector.clone(), subject.clone());
            thread::spawn(move || paced(&connector, &subject, first, period, begin + load))
        })
        .collect();
    let (mut latencies, mut wrong) = (Vec::new(), 0);
    for thread in threads {
        let (taken, failed) = thread.join().expect("a client ends");
        latencies.extend(taken);
        wrong += failed;
    }
    latencies.sort_by(f64::total_cmp);
    Sample {
        p50: percentile(&latencies, 50),
        p99: percentile(&latencies, 99),
        wrong,
    }
}

/// One connection's requests, each due a period after the one before. Milliseconds, and failures.
fn paced(
    connector: &Connector,
    subject: &Subject,
    first: Instant,
    period: Duration,
    end: Instant,
) -> (Vec<f64>, u64) {
    let head = subject.request("GET", "/") + "\r\n";
    let (mut latencies, mut wrong) = (Vec::new(), 0);
    let mut connection = connector
        .connect(subject.port, &subject.authority)
        .expect("a connection");
    // Handshake and first use are not what is measured.
    connection.exchange(&head).expect("an answer");
    let mut due = first;
    while due < end {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        match connection.exchange(&head) {
            Ok(answer) if answer.status == 200 => {
                latencies.push(due.elapsed().as_secs_f64() * 1e3);
            }
            Ok(_) => wrong += 1,
            Err(_) => return (latencies, wrong + 1),
        }
        due += period;
    }
    (latencies, wrong)
}
