//! Requests that are under way, to find those again whose decision no longer stands.
//!
//! A request is entered before authorize is asked, so that no change can slip in between, and
//! leaves with the last byte of its answer. Everything here belongs to one core.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use hashbrown::HashMap;
use jiff::Timestamp;
use postern_common::authz::{Allow, CheckRequest, Revisit, SessionSummary};
use tokio::time::Instant;

use crate::forward::exchange::{Progress, TimedOut, Timeouts};
use crate::guarded::Activity;
use crate::limits;
use crate::stream::Stream;

/// All open requests of a core.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    entries: RefCell<HashMap<u64, Rc<Entry>>>,
    next: Cell<u64>,
}

/// One of them; leaves the registry when it is dropped.
#[derive(Debug)]
pub(crate) struct Open {
    registry: Rc<Registry>,
    key: u64,
    entry: Rc<Entry>,
}

#[derive(Debug)]
pub(crate) struct Entry {
    question: RefCell<Arc<CheckRequest>>,
    session: RefCell<Option<Arc<SessionSummary>>>,
    valid_until: Cell<Option<Timestamp>>,
    /// Something changed since the question was last asked.
    changed: Cell<bool>,
    /// Its turn to be asked about again is still to come.
    queued: Cell<bool>,
    /// Being asked about again since.
    unverified_since: Cell<Option<Instant>>,
    closed: Cell<Option<Closed>>,
    waker: RefCell<Option<Waker>>,
    /// Where the answer goes; it may have to be closed if the client does not take the end.
    connection: RefCell<Option<Arc<Activity>>>,
    /// On HTTP/2, what can be reset instead.
    stream: Option<Rc<Stream>>,
    /// How far the answer is, and what it may take.
    progress: RefCell<Option<(Rc<Progress>, Timeouts)>>,
}

/// Why an open request was ended by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// Authorize was asked again and no longer allows it.
    Withdrawn,
    /// Authorize could not be asked again for too long.
    Unverified,
    /// Its route is gone.
    RouteRemoved,
    /// The process ends.
    Draining,
    /// It has reached a limit, and its client left no room to say so.
    TimedOut(TimedOut),
}

impl Closed {
    /// `response-code-details` of the access log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Withdrawn => "authorization_withdrawn",
            Self::Unverified => "authorization_unverified",
            Self::RouteRemoved => "route_removed",
            Self::Draining => "draining",
            Self::TimedOut(which) => which.details(),
        }
    }

    /// Whether the person may no longer, which asking again does not change. Else we cannot.
    pub(crate) fn is_refusal(self) -> bool {
        self == Self::Withdrawn
    }

    /// `grpc-status` that goes with it.
    pub(crate) fn grpc(self) -> u8 {
        if self.is_refusal() { 7 } else { 14 }
    }

    /// For the client.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Withdrawn => "Access was withdrawn while the request was under way.",
            Self::Unverified => "Whether access still stands could not be found out in time.",
            Self::RouteRemoved => "This address was taken away while the request was under way.",
            Self::Draining => "This server ends. Please try again.",
            Self::TimedOut(_) => "The request took longer than it may.",
        }
    }
}

impl Registry {
    /// Enters a request that authorize is about to be asked about.
    pub(crate) fn enter(self: &Rc<Self>, question: Arc<CheckRequest>) -> Open {
        let open = self.enter_unasked(question);
        self.entries
            .borrow_mut()
            .insert(open.key, Rc::clone(&open.entry));
        open
    }

    /// For a request that nobody is asked about: it cannot be withdrawn, so it is not kept.
    pub(crate) fn enter_unasked(self: &Rc<Self>, question: Arc<CheckRequest>) -> Open {
        let key = self.next.get();
        self.next.set(key.wrapping_add(1));
        let entry = Rc::new(Entry {
            question: RefCell::new(question),
            session: RefCell::new(None),
            valid_until: Cell::new(None),
            changed: Cell::new(false),
            queued: Cell::new(false),
            unverified_since: Cell::new(None),
            closed: Cell::new(None),
            waker: RefCell::new(None),
            connection: RefCell::new(None),
            stream: Stream::current(),
            progress: RefCell::new(None),
        });
        Open {
            registry: Rc::clone(self),
            key,
            entry,
        }
    }

    /// Those that a change concerns. A request that is still being asked about may belong to
    /// anybody, so it is marked, and asked about once more before it passes.
    pub(crate) fn concerned(&self, revisit: &Revisit) -> Vec<Rc<Entry>> {
        let entries = self.entries.borrow();
        let mut concerned = Vec::new();
        for entry in entries.values() {
            let session = entry.session.borrow();
            let hit = match (revisit, &*session) {
                (Revisit::Everything, _) => true,
                (_, None) => false,
                (Revisit::Session(id), Some(session)) => session.session_id == *id,
                (Revisit::User(id), Some(session)) => session.user_id == *id,
            };
            entry
                .changed
                .set(entry.changed.get() || hit || session.is_none());
            if hit {
                concerned.push(Rc::clone(entry));
            }
        }
        concerned
    }

    /// Those whose decision has run out, or that wait for an answer for too long.
    pub(crate) fn expired(&self, now: Timestamp) -> Vec<Rc<Entry>> {
        let entries = self.entries.borrow();
        let due = |entry: &&Rc<Entry>| {
            entry.unverified_since.get().is_none()
                && entry.valid_until.get().is_some_and(|until| until <= now)
        };
        entries.values().filter(due).cloned().collect()
    }

    /// Those that have reached a limit a while ago, and which.
    pub(crate) fn overdue(&self, now: Instant) -> Vec<(Rc<Entry>, TimedOut)> {
        let entries = self.entries.borrow();
        let overdue = |entry: &Rc<Entry>| {
            let progress = entry.progress.borrow();
            let (progress, timeouts) = progress.as_ref()?;
            let (at, which) = progress.deadline(timeouts)?;
            (now >= at + limits::LIMIT_SAID).then(|| (Rc::clone(entry), which))
        };
        entries.values().filter_map(overdue).collect()
    }

    /// Every open request.
    pub(crate) fn all(&self) -> Vec<Rc<Entry>> {
        self.entries.borrow().values().cloned().collect()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.borrow().len()
    }
}

impl Entry {
    pub(crate) fn question(&self) -> Arc<CheckRequest> {
        Arc::clone(&self.question.borrow())
    }

    pub(crate) fn set_question(&self, question: Arc<CheckRequest>) {
        *self.question.borrow_mut() = question;
    }

    /// Authorize is being asked now: what changes from here on makes the answer stale.
    pub(crate) fn asking(&self) {
        self.queued.set(false);
        self.changed.set(false);
    }

    /// It is to be asked about again. `false`: it was before, and its turn is still to come.
    pub(crate) fn queue(&self) -> bool {
        !self.queued.replace(true)
    }

    pub(crate) fn has_changed(&self) -> bool {
        self.changed.get()
    }

    pub(crate) fn allowed(&self, allow: &Allow) {
        self.session.borrow_mut().clone_from(&allow.session);
        self.valid_until.set(allow.valid_until);
        self.unverified_since.set(None);
    }

    /// The first failure to ask again starts the time; returns when that was.
    pub(crate) fn unverified(&self) -> Instant {
        let since = self.unverified_since.get().unwrap_or_else(Instant::now);
        self.unverified_since.set(Some(since));
        since
    }

    pub(crate) fn close(&self, why: Closed) {
        if self.closed.get().is_none() {
            self.closed.set(Some(why));
            if let Some(waker) = self.waker.borrow_mut().take() {
                waker.wake();
            }
            if let (Closed::TimedOut(_), Some(stream)) = (why, &self.stream) {
                stream.reset();
            } else if let Some(connection) = &*self.connection.borrow() {
                connection.withdraw();
            }
        }
    }

    /// Its answer has begun.
    pub(crate) fn answers_within(&self, progress: Rc<Progress>, timeouts: Timeouts) {
        *self.progress.borrow_mut() = Some((progress, timeouts));
    }

    /// Its answer goes out on this connection now.
    pub(crate) fn answers_on(&self, connection: &Arc<Activity>) {
        let before = self.connection.replace(Some(Arc::clone(connection)));
        if self.closed.get().is_some() && before.is_none() {
            connection.withdraw();
        }
    }

    pub(crate) fn closed(&self) -> Option<Closed> {
        self.closed.get()
    }
}

impl Open {
    pub(crate) fn entry(&self) -> &Rc<Entry> {
        &self.entry
    }

    /// Ready when the request must end. One task at a time may wait.
    pub(crate) fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<Closed> {
        if let Some(why) = self.entry.closed.get() {
            return Poll::Ready(why);
        }
        let mut waker = self.entry.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.registry.entries.borrow_mut().remove(&self.key);
        // Taken, so that closing it later concerns nobody.
        let connection = self.entry.connection.take();
        let reset = matches!(self.entry.closed.get(), Some(Closed::TimedOut(_)))
            && self.entry.stream.is_some();
        if let (Some(connection), true) = (connection, self.entry.closed.get().is_some() && !reset)
        {
            connection.withdrawal_done();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use http::{HeaderMap, Method};
    use postern_common::authz::{CheckSubject, Scheme};

    pub(crate) fn question() -> Arc<CheckRequest> {
        Arc::new(CheckRequest {
            request_id: "r".into(),
            subject: CheckSubject::OwnEndpoint,
            method: Method::GET,
            scheme: Scheme::Https,
            host: "a.test".into(),
            path: "/".into(),
            query: None,
            headers: HeaderMap::new(),
            client_address: [127, 0, 0, 1].into(),
            client_certificate: None,
            trace: None,
        })
    }

    fn allow(session: &str, user: &str) -> Allow {
        Allow {
            session: Some(Arc::new(SessionSummary {
                session_id: session.to_owned(),
                user_id: user.to_owned(),
                email: String::new(),
            })),
            ..Allow::default()
        }
    }

    #[test]
    fn s09_changes_find_their_requests() {
        let registry = Rc::new(Registry::default());
        let open: Vec<_> = [("s1", "ann"), ("s2", "ann"), ("s3", "bob")]
            .into_iter()
            .map(|(session, user)| {
                let open = registry.enter(question());
                open.entry().allowed(&allow(session, user));
                open
            })
            .collect();
        let count = |revisit| registry.concerned(&revisit).len();
        assert_eq!(count(Revisit::Session("s1".into())), 1);
        assert_eq!(count(Revisit::User("ann".into())), 2);
        assert_eq!(count(Revisit::Everything), 3);
        assert_eq!(count(Revisit::Session("none".into())), 0);
        drop(open);
        assert_eq!(registry.len(), 0);
    }

    #[test]
    fn s09_no_change_slips_in_while_asking() {
        let registry = Rc::new(Registry::default());
        let open = registry.enter(question());
        open.entry().asking();
        assert!(
            registry
                .concerned(&Revisit::Session("s1".into()))
                .is_empty()
        );
        assert!(open.entry().has_changed());
        open.entry().asking();
        assert!(!open.entry().has_changed());
    }

    #[test]
    fn s09_what_waits_for_its_turn_waits_once() {
        let registry = Rc::new(Registry::default());
        let open = registry.enter(question());
        assert!(open.entry().queue());
        assert!(!open.entry().queue());
        open.entry().asking();
        assert!(open.entry().queue());
    }

    #[test]
    fn s09_who_may_no_longer_is_not_told_to_try_again() {
        for (why, grpc) in [
            (Closed::Withdrawn, 7),
            (Closed::Unverified, 14),
            (Closed::RouteRemoved, 14),
            (Closed::Draining, 14),
        ] {
            assert_eq!((why.grpc(), why.is_refusal()), (grpc, grpc == 7), "{why:?}");
        }
    }

    #[test]
    fn decisions_run_out() {
        let registry = Rc::new(Registry::default());
        let open = registry.enter(question());
        let at = |second| Timestamp::from_second(second).unwrap();
        open.entry().allowed(&Allow {
            valid_until: Some(at(100)),
            ..Allow::default()
        });
        assert!(registry.expired(at(99)).is_empty());
        assert_eq!(registry.expired(at(100)).len(), 1);
        open.entry().unverified();
        assert!(
            registry.expired(at(100)).is_empty(),
            "already being asked about"
        );
    }
}
