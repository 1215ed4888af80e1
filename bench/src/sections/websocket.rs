//! Small messages there and back on open WebSockets.

use std::thread;
use std::time::{Duration, Instant};

use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::Effort;
use crate::client::Connector;
use crate::stage::Stage;
use crate::subject::{Subject, Who};
use crate::table::{Row, median};
use crate::tools::{CONNECTIONS, percentile};

const SUBJECTS: [Who; 5] = [
    Who::Nginx,
    Who::Haproxy,
    Who::Envoy,
    Who::AllInOne,
    Who::Split,
];

struct Sample {
    rate: f64,
    p50: f64,
    p99: f64,
    /// Microseconds a round trip.
    cpu: f64,
    wrong: u64,
}

pub fn run(stage: &Stage, effort: Effort) -> Vec<Row> {
    let subjects: Vec<_> = stage
        .subjects
        .iter()
        .filter(|it| it.is(&SUBJECTS))
        .collect();
    let mut samples: Vec<Vec<Sample>> = subjects.iter().map(|_| Vec::new()).collect();
    for _ in 0..effort.rounds {
        for (subject, samples) in subjects.iter().zip(&mut samples) {
            samples.push(sample(&stage.connector(subject.who), subject, effort.load));
        }
    }
    let rows = subjects.iter().zip(&samples).map(|(subject, own)| {
        let pairs = own.iter().zip(&samples[0]);
        Row::new(&subject.who)
            .figure("round trips/s", median(own.iter().map(|it| it.rate)))
            .figure(
                "× nginx",
                median(pairs.map(|(own, nginx)| own.rate / nginx.rate)),
            )
            .figure("CPU µs", median(own.iter().map(|it| it.cpu)))
            .figure("p50 ms", median(own.iter().map(|it| it.p50)))
            .figure("p99 ms", median(own.iter().map(|it| it.p99)))
            .wrong(own.iter().map(|it| it.wrong).sum())
    });
    rows.collect()
}

fn sample(connector: &Connector, subject: &Subject, load: Duration) -> Sample {
    let cpu = |subject: &Subject| subject.cpu().iter().map(|it| it.1).sum::<f64>();
    let before = cpu(subject);
    let end = Instant::now() + load;
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (connector, subject) = (connector.clone(), subject.clone());
            thread::spawn(move || talk(&connector, &subject, end))
        })
        .collect();
    let (mut latencies, mut wrong) = (Vec::new(), 0);
    for thread in threads {
        match thread.join().expect("a client ends") {
            Ok(taken) => latencies.extend(taken),
            Err(error) => {
                eprintln!("{}: {error}", subject.who);
                wrong += 1;
            }
        }
    }
    latencies.sort_by(f64::total_cmp);
    Sample {
        rate: latencies.len() as f64 / load.as_secs_f64(),
        p50: percentile(&latencies, 50),
        p99: percentile(&latencies, 99),
        cpu: (cpu(subject) - before) / latencies.len() as f64,
        wrong,
    }
}

/// Milliseconds of each round trip until `end`.
fn talk(connector: &Connector, subject: &Subject, end: Instant) -> Result<Vec<f64>, String> {
    let stream = connector
        .tls(subject.port, &subject.authority)
        .map_err(|error| error.to_string())?;
    let mut request = format!("wss://{}/ws", subject.authority)
        .into_client_request()
        .map_err(|error| error.to_string())?;
    let cookie = subject.cookie.parse().expect("a header value");
    request.headers_mut().insert("cookie", cookie);
    let (mut socket, _) =
        tungstenite::client(request, stream).map_err(|error| error.to_string())?;
    let mut latencies = Vec::new();
    while Instant::now() < end {
        let begun = Instant::now();
        let sent = Message::binary(vec![7; 64]);
        socket
            .send(sent.clone())
            .map_err(|error| error.to_string())?;
        let back = socket.read().map_err(|error| error.to_string())?;
        if back != sent {
            return Err(format!("sent {sent:?}, got {back:?}"));
        }
        latencies.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(latencies)
}
