//! What a connection costs on which nothing happens: TLS, one request answered, kept alive.

use std::thread;

use crate::client::{Connection, Connector};
use crate::procfs;
use crate::stage::Stage;
use crate::subject::{Subject, Who};
use crate::table::Row;

/// Fewer where the machine allows fewer files: a proxy may need two for each, and Postern keeps
/// some room.
const COUNT: usize = 10_000;

/// Clients that open them.
const THREADS: usize = 4;

const SUBJECTS: [Who; 4] = [Who::Nginx, Who::Haproxy, Who::Envoy, Who::AllInOne];

pub fn run(stage: &Stage) -> Vec<Row> {
    let count = COUNT.min(procfs::open_files() * 2 / 5);
    let subjects = stage.subjects.iter().filter(|it| it.is(&SUBJECTS));
    subjects
        .map(|subject| row(&stage.connector(subject.who), subject, count))
        .collect()
}

fn row(connector: &Connector, subject: &Subject, count: usize) -> Row {
    let before = subject.rss();
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (connector, subject) = (connector.clone(), subject.clone());
            thread::spawn(move || open(&connector, &subject, count / THREADS))
        })
        .collect();
    let (mut kept, mut wrong) = (Vec::new(), 0);
    for thread in threads {
        let (connections, failed) = thread.join().expect("a client ends");
        kept.extend(connections);
        wrong += failed;
    }
    let grown = subject.rss().saturating_sub(before);
    // All are still there, and answer.
    let head = subject.request("GET", "/") + "\r\n";
    for connection in kept.iter_mut().step_by(97) {
        let answer = connection.exchange(&head);
        wrong += u64::from(!answer.is_ok_and(|it| it.status == 200));
    }
    Row::new(&subject.who)
        .figure("connections", kept.len() as f64)
        .figure("KiB each", grown as f64 / kept.len() as f64)
        .wrong(wrong)
}

fn open(connector: &Connector, subject: &Subject, count: usize) -> (Vec<Connection>, u64) {
    let head = subject.request("GET", "/") + "\r\n";
    let mut kept = Vec::with_capacity(count);
    let mut wrong = 0;
    for _ in 0..count {
        let connection = connector.connect(subject.port, &subject.authority);
        let answered = connection.and_then(|mut connection| {
            let answer = connection.exchange(&head)?;
            Ok((connection, answer.status))
        });
        match answered {
            Ok((connection, 200)) => kept.push(connection),
            _ => wrong += 1,
        }
    }
    (kept, wrong)
}
