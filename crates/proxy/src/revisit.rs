//! Asks again about requests that are open, when their decision no longer stands: a session ended,
//! a policy changed, a time came. What is no longer allowed is closed.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use postern_common::authz::{CheckRequest, CheckSubject, Decision, Revisit};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{interval, sleep};

use crate::core::Core;
use crate::limits;
use crate::open::{Closed, Entry};

/// Follows what authorize says, the clock, and the configuration, as long as the core lives.
pub(crate) async fn follow(core: Rc<Core>) {
    let mut revisits = core.shared.authorizer.revisits();
    let mut ticks = interval(limits::SWEEP);
    let mut checksum = core.snapshot().config.checksum;
    let mut authorizer_lives = true;
    loop {
        tokio::select! {
            revisit = revisits.recv(), if authorizer_lives => match revisit {
                Ok(revisit) => ask_again(&core, core.open.concerned(&revisit)),
                // Too many to hear each: as if everything had changed.
                Err(RecvError::Lagged(_)) => {
                    ask_again(&core, core.open.concerned(&Revisit::Everything));
                }
                Err(RecvError::Closed) => authorizer_lives = false,
            },
            _ = ticks.tick() => {
                ask_again(&core, core.open.expired(Timestamp::now()));
                let now = core.snapshot().config.checksum;
                if now != checksum {
                    checksum = now;
                    follow_routes(&core);
                }
            }
        }
    }
}

/// After a reload: a request whose route is gone ends; one whose route has changed is asked about
/// under its new form.
fn follow_routes(core: &Rc<Core>) {
    let snapshot = core.snapshot();
    let mut changed = Vec::new();
    for entry in core.open.all() {
        let question = entry.question();
        let CheckSubject::Route { id, checksum } = &question.subject else {
            continue;
        };
        match snapshot.route_by_id(id) {
            None => entry.close(Closed::RouteRemoved),
            Some(route) if route.route.checksum != *checksum => {
                let subject = CheckSubject::Route {
                    id: id.clone(),
                    checksum: route.route.checksum,
                };
                let question = CheckRequest {
                    subject,
                    ..(*question).clone()
                };
                entry.set_question(Arc::new(question));
                changed.push(entry);
            }
            Some(_) => {}
        }
    }
    ask_again(core, changed);
}

/// Asks in the background, at most so many a second.
fn ask_again(core: &Rc<Core>, mut entries: Vec<Rc<Entry>>) {
    if entries.is_empty() {
        return;
    }
    let mut seen = HashSet::new();
    entries.retain(|entry| seen.insert(Rc::as_ptr(entry)));
    for entry in &entries {
        entry.unverified();
    }
    let core = Rc::clone(core);
    tokio::task::spawn_local(async move {
        let pause = Duration::from_secs(1) / limits::REVISITS_PER_SECOND;
        let many = entries.len() > usize::try_from(limits::REVISITS_PER_SECOND / 10).unwrap_or(1);
        for entry in entries {
            tokio::task::spawn_local(verify(Rc::clone(&core), entry));
            if many {
                sleep(pause).await;
            }
        }
    });
}

/// Asks until there is an answer, or until it has taken too long.
async fn verify(core: Rc<Core>, entry: Rc<Entry>) {
    let since = entry.unverified();
    let mut pause = Duration::from_millis(100);
    while entry.closed().is_none() && Rc::strong_count(&entry) > 1 {
        entry.asking();
        match core.shared.authorizer.check(entry.question()).await {
            Ok(Decision::Allow(_)) if entry.has_changed() => {}
            Ok(Decision::Allow(allow)) => {
                let now = Timestamp::now();
                // An answer that has run out already would be asked for again and again.
                if allow.valid_until.is_some_and(|until| until <= now) {
                    return entry.close(Closed::Withdrawn);
                }
                return entry.allowed(&allow);
            }
            Ok(Decision::Deny(_)) => return entry.close(Closed::Withdrawn),
            Err(error) => {
                if since.elapsed() >= limits::MAX_UNVERIFIED {
                    tracing::warn!(%error, "an open request could not be verified and is closed");
                    return entry.close(Closed::Unverified);
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}
