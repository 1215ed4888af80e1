//! Asks again about requests that are open, when their decision no longer stands: a session ended,
//! a policy changed, a time came. What is no longer allowed is closed.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use postern_common::authz::{Allow, AuthorizeError, CheckRequest, CheckSubject, Decision, Revisit};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, interval, sleep, sleep_until};

use crate::core::Core;
use crate::limits;
use crate::open::{Closed, Entry};

/// Follows what authorize says, the clock, and the configuration, as long as the core lives.
pub(crate) async fn follow(core: Rc<Core>) {
    let mut revisits = core.authorizer.revisits();
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
                for (entry, which) in core.open.overdue(Instant::now()) {
                    entry.close(Closed::TimedOut(which));
                }
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

/// Spreads the questions about open requests, whatever made them necessary: several replicas of
/// authorize may go within one second.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    next: Cell<Option<Instant>>,
}

impl Pace {
    /// When the next question may be asked.
    fn turn(&self, now: Instant) -> Instant {
        let turn = self.next.get().map_or(now, |next| next.max(now));
        let pause = Duration::from_secs(1) / limits::REVISITS_PER_SECOND;
        self.next.set(Some(turn + pause));
        turn
    }
}

/// Asks in the background: a few at once, more of them at most so many a second.
pub(crate) fn ask_again(core: &Rc<Core>, mut entries: Vec<Rc<Entry>>) {
    // One whose turn is still to come will see this change too.
    entries.retain(|entry| entry.queue());
    if entries.is_empty() {
        return;
    }
    for entry in &entries {
        entry.unverified();
    }
    let core = Rc::clone(core);
    tokio::task::spawn_local(async move {
        let many = entries.len() > usize::try_from(limits::REVISITS_PER_SECOND / 10).unwrap_or(1);
        for entry in entries {
            if many {
                sleep_until(core.pace.turn(Instant::now())).await;
            }
            tokio::task::spawn_local(verify(Rc::clone(&core), entry));
        }
    });
}

/// Asks until there is an answer, or until it has taken too long.
async fn verify(core: Rc<Core>, entry: Rc<Entry>) {
    let since = entry.unverified();
    let mut pause = Duration::from_millis(100);
    while entry.closed().is_none() && Rc::strong_count(&entry) > 1 {
        entry.asking();
        let answer = core.authorizer.check(entry.question()).await;
        match next(
            &answer,
            entry.has_changed(),
            since.elapsed(),
            Timestamp::now(),
        ) {
            Next::Stands(allow) => return entry.allowed(allow),
            Next::Close(why) => {
                if let Err(error) = answer {
                    tracing::warn!(%error, "an open request could not be verified and is closed");
                }
                return entry.close(why);
            }
            Next::AskAgain => {}
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// What an answer about an open request comes to.
#[derive(Debug)]
enum Next<'a> {
    Stands(&'a Allow),
    Close(Closed),
    AskAgain,
}

/// Only an answer that nothing has overtaken settles it, and it has to come in time.
fn next(
    answer: &Result<Decision, AuthorizeError>,
    changed: bool,
    unverified: Duration,
    now: Timestamp,
) -> Next<'_> {
    match answer {
        Ok(Decision::Deny(_)) => Next::Close(Closed::Withdrawn),
        // An answer that has run out already would be asked for again and again.
        Ok(Decision::Allow(allow)) if allow.valid_until.is_some_and(|until| until <= now) => {
            Next::Close(Closed::Withdrawn)
        }
        Ok(Decision::Allow(allow)) if !changed => Next::Stands(allow),
        Ok(Decision::Allow(_)) | Err(_) if unverified >= limits::MAX_UNVERIFIED => {
            Next::Close(Closed::Unverified)
        }
        Ok(Decision::Allow(_)) | Err(_) => Next::AskAgain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s09_questions_are_spread_over_all_occasions() {
        let pace = Pace::default();
        let now = Instant::now();
        let turns: Vec<_> = (0..1001).map(|_| pace.turn(now)).collect();
        assert_eq!(turns[0], now);
        assert_eq!(turns[1000], now + Duration::from_secs(2));
        let later = now + Duration::from_secs(5);
        assert_eq!(pace.turn(later), later);
    }

    #[test]
    fn s09_doubt_ends_in_time() {
        let (now, late) = (Timestamp::now(), limits::MAX_UNVERIFIED);
        let early = Duration::from_secs(1);
        let allow = Ok(Decision::Allow(Box::default()));
        let error = Err(AuthorizeError::Unreachable {
            reason: "x".to_owned(),
        });
        assert!(matches!(next(&allow, false, early, now), Next::Stands(_)));
        assert!(matches!(next(&allow, false, late, now), Next::Stands(_)));
        for doubtful in [(&allow, true), (&error, false), (&error, true)] {
            let (answer, changed) = doubtful;
            assert!(matches!(next(answer, changed, early, now), Next::AskAgain));
            assert!(matches!(
                next(answer, changed, late, now),
                Next::Close(Closed::Unverified)
            ));
        }
        let past = Ok(Decision::Allow(Box::new(Allow {
            valid_until: Some(now),
            ..Allow::default()
        })));
        assert!(matches!(
            next(&past, false, early, now),
            Next::Close(Closed::Withdrawn)
        ));
    }
}
