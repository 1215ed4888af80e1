//! One large body down, one up: how fast, and whether memory grows with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::Effort;
use crate::client::Connector;
use crate::stage::Stage;
use crate::subject::{Subject, Who};
use crate::table::{Row, median};

const LENGTH: usize = 1 << 30;

const SUBJECTS: [Who; 5] = [
    Who::Nginx,
    Who::Haproxy,
    Who::Envoy,
    Who::AllInOne,
    Who::Split,
];

struct Sample {
    down: Duration,
    up: Duration,
    /// Microseconds for both.
    cpu: f64,
    /// KiB more than before, at most.
    growth: u64,
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
            samples.push(sample(&stage.connector(subject.who), subject));
        }
    }
    let rate = |taken: Duration| (LENGTH >> 20) as f64 / taken.as_secs_f64();
    let rows = subjects.iter().zip(&samples).map(|(subject, own)| {
        let against = |figure: fn(&Sample) -> Duration| {
            let pairs = own.iter().zip(&samples[0]);
            median(
                pairs.map(|(own, nginx)| figure(nginx).as_secs_f64() / figure(own).as_secs_f64()),
            )
        };
        Row::new(&subject.who)
            .figure("down MiB/s", median(own.iter().map(|it| rate(it.down))))
            .figure("down × nginx", against(|it| it.down))
            .figure("up MiB/s", median(own.iter().map(|it| rate(it.up))))
            .figure("up × nginx", against(|it| it.up))
            .figure("CPU s for both", median(own.iter().map(|it| it.cpu / 1e6)))
            .figure(
                "RSS growth MiB",
                median(own.iter().map(|it| it.growth as f64 / 1024.0)),
            )
            .wrong(own.iter().map(|it| it.wrong).sum())
    });
    rows.collect()
}

fn sample(connector: &Connector, subject: &Subject) -> Sample {
    let before = subject.rss();
    let cpu = |subject: &Subject| subject.cpu().iter().map(|it| it.1).sum::<f64>();
    let cpu_before = cpu(subject);
    let stop = Arc::new(AtomicBool::new(false));
    let watching = {
        let (stop, subject) = (Arc::clone(&stop), subject.clone());
        thread::spawn(move || {
            let mut most = 0;
            while !stop.load(Ordering::Relaxed) {
                most = most.max(subject.rss());
                thread::sleep(Duration::from_millis(20));
            }
            most
        })
    };
    let mut connection = connector
        .connect(subject.port, &subject.authority)
        .expect("a connection");
    let head = subject.request("GET", "/1gib") + "\r\n";
    let begun = Instant::now();
    let answer = connection.exchange(&head);
    let down = begun.elapsed();
    let whole = answer.is_ok_and(|it| it.status == 200 && it.length == LENGTH);
    let mut wrong = u64::from(!whole);

    let head = subject.request("POST", "/upload");
    let head = format!("{head}Content-Length: {LENGTH}\r\n\r\n");
    let begun = Instant::now();
    let answer = connection.upload(&head, LENGTH);
    let up = begun.elapsed();
    wrong += u64::from(!answer.is_ok_and(|it| it.status == 200));
    stop.store(true, Ordering::Relaxed);
    Sample {
        down,
        up,
        cpu: cpu(subject) - cpu_before,
        growth: watching.join().expect("it watches").saturating_sub(before),
        wrong,
    }
}
