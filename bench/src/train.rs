//! The load that a profile is taken from: what Postern does all day, in one process and in four,
//! with what it does rarely left cold.

use std::time::Duration;

use postern_tests::cluster::{Cluster, Layout};
use postern_tests::databroker::Databroker;
use postern_tests::load::{Load, Outcome, Witness};
use postern_tests::postgres::Postgres;
use postern_tests::wait;
use postern_tests::world::{Setting, World};

use crate::client::Connector;
use crate::echo;
use crate::people::{self, Pattern};
use crate::postern::sign_in;
use crate::sections::records;
use crate::subject::{Subject, Who};

/// Requests a second, few enough for programs that count as they run.
const RATE: u32 = 400;

const REQUESTS: usize = 10_000;

const SESSIONS: usize = 5_000;

const UPLOAD: usize = 64 << 20;

const PATIENCE: Duration = Duration::from_secs(300);

/// Programs write their profiles when they end by themselves, so each is asked to.
pub async fn run() {
    let postgres = Postgres::start().expect("Postgres");
    train(Layout::AllInOne, "").await;
    train(Layout::Split, &records::settings(&postgres, "trained")).await;
}

async fn train(layout: Layout, settings: &str) {
    let witness = Witness::start().await;
    let echo = echo::start().await;
    let routes = format!(
        "{}- {{from: 'https://body.corp.test:{{PORT}}', to: '{}', allow_any_authenticated_user: true}}\n",
        witness.routes(),
        echo.url(),
    );
    let setting = Setting::new(layout)
        .config(format!("drain_delay: 0s\n{settings}"))
        .routes(routes);
    let world = World::start_with(setting).await;

    let load = Load::start(&world, RATE).await;
    wait::until("the load", PATIENCE, async || match witness.count() {
        enough if enough >= REQUESTS => Ok(()),
        few => Err(few),
    })
    .await;
    let report = load.stop().await;
    let failed = report
        .answers
        .iter()
        .find(|it| it.outcome != Outcome::Right);
    assert!(failed.is_none(), "{failed:?}");

    let cookie = sign_in(&world.cluster, "body", "ann").await;
    upload(&world.cluster, &cookie);
    if layout == Layout::Split {
        let databroker = Databroker::connect(&world.cluster).await;
        let pattern = Pattern::of(&cookie);
        let version = people::write(&databroker, pattern.idp_id(), 0..SESSIONS).await;
        people::caught_up(&world.cluster, "authorize", version).await;
    }
    end(world.cluster).await;
}

fn upload(cluster: &Cluster, cookie: &str) {
    let subject = Subject {
        who: Who::AllInOne,
        port: cluster.port,
        authority: format!("body.corp.test:{}", cluster.port),
        cookie: cookie.to_owned(),
        refused: None,
        processes: Vec::new(),
    };
    let head = subject.request("POST", "/upload");
    let head = format!("{head}Content-Length: {UPLOAD}\r\n\r\n");
    let answer = Connector::new(cluster.site.authority())
        .connect(subject.port, &subject.authority)
        .and_then(|mut connection| connection.upload(&head, UPLOAD));
    assert!(
        answer.as_ref().is_ok_and(|it| it.status == 200),
        "{answer:?}"
    );
}

async fn end(mut cluster: Cluster) {
    for process in &cluster.processes {
        process.signal("TERM");
    }
    for process in &mut cluster.processes {
        let status = process.ended().await;
        assert!(status.success(), "{}: {status}", process.name);
    }
}
