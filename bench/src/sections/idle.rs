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
    let count = possible(COUNT);
    let subjects = stage.subjects.iter().filter(|it| it.is(&SUBJECTS));
    subjects
        .map(|subject| row(&stage.connector(subject.who), subject, count))
        .collect()
}

fn row(connector: &Connector, subject: &Subject, count: usize) -> Row {
    let before = subject.rss();
    let (mut kept, wrong) = open(connector, subject, count);
    let grown = subject.rss().saturating_sub(before);
    let gone = ask_some(&mut kept, subject);
    Row::new(&subject.who)
        .figure("connections", kept.len() as f64)
        .figure("KiB each", grown as f64 / kept.len() as f64)
        .wrong(wrong + gone)
}

/// How many of so many a machine allows for, with the files that a process may have open.
pub fn possible(count: usize) -> usize {
    count.min(procfs::open_files() * 2 / 5)
}

/// So many connections, each of which has had an answer; and how many had none.
pub fn open(connector: &Connector, subject: &Subject, count: usize) -> (Vec<Connection>, u64) {
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let (connector, subject) = (connector.clone(), subject.clone());
            let share = (count + number) / THREADS;
            thread::spawn(move || open_in_turn(&connector, &subject, share))
        })
        .collect();
    let (mut kept, mut wrong) = (Vec::new(), 0);
    for thread in threads {
        let (connections, failed) = thread.join().expect("a client ends");
        kept.extend(connections);
        wrong += failed;
    }
    (kept, wrong)
}

/// Whether all are still there, by some of them: how many do not answer.
pub fn ask_some(kept: &mut [Connection], subject: &Subject) -> u64 {
    let head = subject.request("GET", "/") + "\r\n";
    let asked = kept.iter_mut().step_by(97);
    let answers = asked.map(|connection| connection.exchange(&head));
    answers
        .map(|answer| u64::from(!answer.is_ok_and(|it| it.status == 200)))
        .sum()
}

fn open_in_turn(connector: &Connector, subject: &Subject, count: usize) -> (Vec<Connection>, u64) {
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
