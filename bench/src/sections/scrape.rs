//! What many routes and many people make of the metrics: series by routes, never by people.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use postern_tests::cluster::Layout;
use postern_tests::databroker::Databroker;
use postern_tests::ports;

use crate::Effort;
use crate::client::Connector;
use crate::people::{self, Pattern};
use crate::postern::{self, Postern};
use crate::procfs;
use crate::stage::Stage;
use crate::subject::Subject;
use crate::table::{Row, median};

const ROUTES: usize = 2_000;
const PEOPLE: usize = 1_000;

/// After so many, memory that stays would be seen.
const SCRAPES: usize = 50;

pub async fn run(stage: &Stage, effort: Effort) -> Vec<Row> {
    let metrics = ports::row(1);
    let settings = format!("metrics_address: 127.0.0.1:{metrics}\ngrpc_insecure: true\n");
    let routes = postern::hosts(stage.ports, ROUTES);
    let config = postern::with_routes(stage.ports, &settings, &routes);
    let postern = Postern::start_with(Layout::AllInOne, &stage.issuer, config).await;
    let (subject, connector) = (postern.subject(), postern.connector());
    let pattern = Pattern::of(&postern.allowed);
    let grpc = SocketAddr::from(([127, 0, 0, 1], postern.cluster.port + 1));
    let databroker = Databroker::connect_to(grpc).await;
    let version = people::write(&databroker, pattern.idp_id(), 0..PEOPLE).await;
    people::caught_up(&postern.cluster, "authorize", version).await;

    let ann = pattern.everywhere();
    let mut wrong = visit(&connector, &subject, |_| ann.clone());
    let alone = series(&scrape(metrics));
    wrong += visit(&connector, &subject, |route| {
        pattern.of_person(route % PEOPLE)
    });
    let page = scrape(metrics);

    let process = postern.cluster.process_id("postern");
    let before = procfs::rss(process);
    let took = (0..SCRAPES.max(effort.rounds as usize)).map(|_| {
        let begun = Instant::now();
        scrape(metrics);
        begun.elapsed().as_secs_f64() * 1e3
    });
    let took: Vec<f64> = took.collect();
    let grown = procfs::rss(process).saturating_sub(before);
    vec![
        Row::new(&"series, every route visited by one")
            .found(alone as f64)
            .wrong(wrong),
        Row::new(&"series, visited by 1,000 people too")
            .found(series(&page) as f64)
            .goal(alone as f64),
        Row::new(&"a scrape, ms").found(median(took)).goal(200.0),
        Row::new(&"its page, KiB").found(page.len() as f64 / 1024.0),
        Row::new(&format!("RSS growth of {SCRAPES} scrapes, KiB")).found(grown as f64),
    ]
}

/// Every route once, each on a connection for its host; how many answers were not 200.
fn visit(connector: &Connector, subject: &Subject, cookie: impl Fn(usize) -> String) -> u64 {
    let ask = |route: usize| {
        let subject = Subject {
            authority: format!("app{route}.corp.test:{}", subject.port),
            cookie: cookie(route),
            ..subject.clone()
        };
        let head = subject.request("GET", "/") + "\r\n";
        let mut connection = connector.connect(subject.port, &subject.authority).ok()?;
        Some(connection.exchange(&head).ok()?.status)
    };
    let wrong = (0..ROUTES).filter(|route| ask(*route) != Some(200));
    wrong.count() as u64
}

fn scrape(port: u16) -> String {
    const PATIENCE: Duration = Duration::from_secs(30);
    let begun = Instant::now();
    let page = Connector::plain(port, "/metrics").expect("a page of metrics");
    assert!(begun.elapsed() < PATIENCE, "a scrape takes too long");
    page
}

fn series(page: &str) -> usize {
    let lines = page.lines();
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .count()
}
