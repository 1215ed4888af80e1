//! What must not be any more, is not, however much there is to do: at full load a session is ended,
//! then a policy closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use postern_tests::databroker::{Databroker, handle_of};
use postern_tests::person::Person;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::stage::{BEFORE, Figure, Stage, Terms};

const SECOND: Duration = Duration::from_secs(1);

/// Clients that ask as fast as they get answers, each time on a new connection: more than two cores do.
const GREEDY: usize = 32;

/// Clients with what has ended.
const ASKING: usize = 4;

/// How long they still try.
const AFTER: Duration = Duration::from_secs(5);

pub async fn c27_ended_at_full_load(terms: Terms) -> Figure {
    let stage = Stage::set(terms).await;
    let load = stage.load().await;
    let victim = signed_in(&stage, "load", "/ann/victim").await;
    let member = signed_in(&stage, "eng", "/").await;
    let greedy = signed_in(&stage, "load", "/ann/greedy").await;
    let session = handle_of(&victim, "load.corp.test").id;
    let mut databroker = Databroker::connect_to(stage.world.cluster.serves("databroker-1")).await;

    let answered = Arc::new(AtomicU64::new(0));
    let mut crowd = JoinSet::new();
    for _ in 0..GREEDY {
        let (person, answered) = (greedy.clone(), Arc::clone(&answered));
        let url = stage.world.cluster.url("load", "/ann/greedy");
        crowd.spawn(async move {
            loop {
                if person.try_get(&url).await.is_ok() {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    sleep(BEFORE).await;

    let trying = Trying::start(&victim, &stage.world.cluster.url("load", "/ann/victim"));
    sleep(SECOND).await;
    databroker.delete_session(&session).await;
    let ended = trying.let_in_after(Instant::now()).await;

    let trying = Trying::start(&member, &stage.world.cluster.url("eng", "/"));
    sleep(SECOND).await;
    let file = stage.world.cluster.config_file();
    let text = std::fs::read_to_string(&file).expect("a configuration");
    let (before, after) = text.split_once("//eng.").expect("the route eng");
    let closed = format!(
        "{before}//eng.{}",
        after.replacen("groups: eng", "groups: none", 1)
    );
    let next = file.with_extension("next");
    std::fs::write(&next, closed).expect("it can be written");
    std::fs::rename(&next, &file).expect("it can be renamed");
    let closed = trying.let_in_after(Instant::now()).await;

    crowd.shutdown().await;
    let report = load.stop().await;
    let answered = answered.load(Ordering::Relaxed);
    let late = [ended, closed].iter().filter(|it| **it > AFTER / 2).count();
    stage
        .judged(&report, report.unclear() == 0)
        .and(format!("{answered} answers to the crowd"), answered > 0)
        .within("session last let in", ended, SECOND)
        .within("policy last let in", closed, SECOND)
        .and(format!("{late} of 2 later still"), late == 0)
}

async fn signed_in(stage: &Stage, name: &str, path: &str) -> Person {
    let person = stage.world.cluster.browser();
    let url = stage.world.cluster.url(name, path);
    let page = stage.world.sign_in(&person, &url, "ann").await;
    assert_eq!(page.status, StatusCode::OK, "{}", page.text());
    person
}

/// Somebody who asks all the while, several requests at a time.
struct Trying {
    asking: JoinSet<Option<Instant>>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Trying {
    fn start(person: &Person, url: &str) -> Self {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut asking = JoinSet::new();
        for _ in 0..ASKING {
            let (person, url, stopped) = (person.clone(), url.to_owned(), stopped.clone());
            asking.spawn(async move {
                let mut last = None;
                while !*stopped.borrow() {
                    let sent = Instant::now();
                    let answer = person.try_get(&url).await;
                    if answer.is_ok_and(|answer| answer.status == StatusCode::OK) {
                        last = Some(sent);
                    }
                }
                last
            });
        }
        Self { asking, stop }
    }

    /// How long after `end` the last request was sent that was let in.
    async fn let_in_after(mut self, end: Instant) -> Duration {
        sleep(AFTER).await;
        self.stop.send_replace(true);
        let mut last = None;
        while let Some(ended) = self.asking.join_next().await {
            last = last.max(ended.expect("no test panics here"));
        }
        let last = last.expect("it was let in before");
        last.saturating_duration_since(end)
    }
}
