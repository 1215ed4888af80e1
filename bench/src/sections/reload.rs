//! Another configuration while requests go on: how soon it counts, and what requests notice.

use std::thread;
use std::time::{Duration, Instant};

use postern_tests::cluster::Layout;

use crate::Effort;
use crate::client::{Connection, Connector};
use crate::postern::{self, Postern};
use crate::stage::Stage;
use crate::subject::Subject;
use crate::table::{Row, median};
use crate::tools::{self, Reuse, percentile};

const ROUTES: usize = 10_000;

/// The load goes on for so long around a reload.
const LOAD: Duration = Duration::from_secs(6);

/// Before the file is written, and between two looks.
const BEFORE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(2);

const PATIENCE: Duration = Duration::from_secs(60);

/// What one reload took, in milliseconds.
struct Sample {
    visible: f64,
    /// Of answers while it went on.
    p99: f64,
    slowest: f64,
    wrong: u64,
}

pub async fn run(stage: &Stage, effort: Effort) -> Vec<Row> {
    let routes = postern::hosts(stage.ports, ROUTES - 1);
    let config = postern::with_routes(stage.ports, "", &routes);
    let postern = Postern::start_with(Layout::AllInOne, &stage.issuer, config).await;
    let samples: Vec<_> = (0..effort.rounds)
        .map(|round| sample(stage, &postern, round))
        .collect();
    let of = |figure: fn(&Sample) -> f64| median(samples.iter().map(figure));
    vec![
        Row::new(&"from written to in use, ms")
            .found(of(|it| it.visible))
            .goal(1_000.0)
            .wrong(samples.iter().map(|it| it.wrong).sum()),
        Row::new(&"answers meanwhile, p99 ms").found(of(|it| it.p99)),
        Row::new(&"slowest answer meanwhile, ms").found(of(|it| it.slowest)),
    ]
}

fn sample(stage: &Stage, postern: &Postern, round: u32) -> Sample {
    let subject = postern.subject();
    let loading = {
        let subject = subject.clone();
        thread::spawn(move || tools::wrk(&subject, LOAD, Reuse::KeepAlive))
    };
    let connector = postern.connector();
    let mut usual = Client::open(&connector, &subject);
    let host = format!("new{round}.corp.test:{}", subject.port);
    let new = Subject {
        authority: host.clone(),
        ..subject.clone()
    };
    let mut new = Client::open(&connector, &new);
    thread::sleep(BEFORE);

    let file = postern.cluster.config_file();
    let text = std::fs::read_to_string(&file).expect("a configuration");
    let to = stage.ports.plain;
    let route = format!(
        "- {{from: 'https://{host}', to: 'http://127.0.0.1:{to}', allow_public_unauthenticated_access: true}}\n"
    );
    let next = file.with_extension("next");
    std::fs::write(&next, text + &route).expect("it can be written");
    std::fs::rename(&next, &file).expect("it can be renamed");

    let begun = Instant::now();
    let (mut taken, mut wrong) = (Vec::new(), 0);
    let visible = loop {
        let asked = Instant::now();
        wrong += u64::from(usual.ask() != Some(200));
        taken.push(asked.elapsed().as_secs_f64() * 1e3);
        match new.ask() {
            Some(200) => break begun.elapsed(),
            Some(404) => {}
            _ => wrong += 1,
        }
        assert!(begun.elapsed() < PATIENCE, "the new route never came");
        thread::sleep(PAUSE);
    };
    taken.sort_by(f64::total_cmp);
    let seen = loading.join().expect("wrk ends");
    Sample {
        visible: visible.as_secs_f64() * 1e3,
        p99: percentile(&taken, 99),
        slowest: percentile(&taken, 100),
        wrong: wrong + seen.wrong,
    }
}

/// One connection, kept: a reload must not touch it.
struct Client {
    connection: Connection,
    head: String,
}

impl Client {
    fn open(connector: &Connector, subject: &Subject) -> Self {
        let connection = connector.connect(subject.port, &subject.authority);
        Self {
            connection: connection.expect("a connection"),
            head: subject.request("GET", "/") + "\r\n",
        }
    }

    /// The status; `None` when the connection is gone.
    fn ask(&mut self) -> Option<u16> {
        let answer = self.connection.exchange(&self.head);
        answer.ok().map(|answer| answer.status)
    }
}
