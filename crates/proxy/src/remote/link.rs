//! One replica of authorize, as a core sees it: how its stream stands, and how much is open there.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use postern_common::authz::CheckRequest;
use postern_common::rpc::Transport;
use postern_common::rpc::stubs::authorize::Hello;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// What goes out on a stream.
#[derive(Debug)]
pub(super) enum Outgoing {
    Hello(Hello),
    Question(u64, Arc<CheckRequest>),
}

/// A replica and the stream to it. Its driver runs in `stream`.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) replica: Transport,
    standing: Cell<Standing>,
    outgoing: RefCell<Option<mpsc::Sender<Outgoing>>>,
    open: Cell<usize>,
    owes: Cell<Option<Instant>>,
    left_out: Cell<bool>,
    part: Cell<Part>,
    /// Tells the driver that something of the above has changed.
    pub(super) changed: Notify,
}

/// Whether it is one of the replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Member,
    /// It takes no new calls, as it drains or says that it is not ready. As long as its stream is open
    /// it is better than nobody: it refuses by itself what it can't decide.
    LastResort,
    /// Not by DNS or the configuration.
    None,
}

/// How little a link should be chosen; the least is best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reluctance {
    part: Part,
    left_out: bool,
    standing: Standing,
}

/// What the stream of a link is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// It is open and answers.
    Well,
    /// It owes an answer and says nothing. Its connection is being tried.
    Doubtful,
    /// Nothing comes over its connection: it gets no questions until something does.
    Silent,
    /// It is not open.
    Closed,
}

impl Link {
    pub(super) fn new(replica: Transport) -> Self {
        Self {
            replica,
            standing: Cell::new(Standing::Closed),
            outgoing: RefCell::default(),
            open: Cell::new(0),
            owes: Cell::new(None),
            left_out: Cell::new(false),
            part: Cell::new(Part::Member),
            changed: Notify::new(),
        }
    }

    pub(super) fn standing(&self) -> Standing {
        self.standing.get()
    }

    /// For messages.
    pub(super) fn peer(&self) -> String {
        match self.replica.peer() {
            Some(peer) => peer.to_string(),
            None => "this process".to_owned(),
        }
    }

    /// Questions that are open there.
    pub(super) fn open(&self) -> usize {
        self.open.get()
    }

    /// It takes no new calls: it gets what nobody else can be asked, until its stream ends.
    pub(super) fn step_back(&self) {
        if self.part.replace(Part::LastResort) == Part::Member {
            self.changed.notify_one();
        }
    }

    /// It is no longer one of the replicas: what is open is finished, nothing new goes there.
    pub(super) fn leave(&self) {
        if self.part.replace(Part::None) != Part::None {
            self.changed.notify_one();
        }
    }

    /// It has stepped back, or left: its stream is the last one.
    pub(super) fn is_leaving(&self) -> bool {
        self.part.get() != Part::Member
    }

    /// How little it should be chosen; `None` when it must not be.
    pub(super) fn reluctance(&self) -> Option<Reluctance> {
        let stream = self.outgoing.borrow();
        let room = stream.as_ref().is_some_and(|stream| stream.capacity() > 0);
        (room && self.may_answer() && self.part.get() != Part::None).then(|| Reluctance {
            part: self.part.get(),
            left_out: self.left_out.get(),
            standing: self.standing.get(),
        })
    }

    /// Whether an answer may still come over its stream.
    pub(super) fn may_answer(&self) -> bool {
        self.standing.get() <= Standing::Doubtful
    }

    /// A stream is open.
    pub(super) fn opened(&self, outgoing: mpsc::Sender<Outgoing>) {
        *self.outgoing.borrow_mut() = Some(outgoing);
        self.standing.set(Standing::Well);
        self.owes.set(None);
    }

    /// The stream is no more, nor what was open there.
    pub(super) fn closed(&self) {
        *self.outgoing.borrow_mut() = None;
        self.standing.set(Standing::Closed);
        self.owes.set(None);
        self.open.set(0);
    }

    /// Puts something on the stream; `false` when there is no room.
    pub(super) fn send(&self, outgoing: Outgoing) -> bool {
        let stream = self.outgoing.borrow();
        stream
            .as_ref()
            .is_some_and(|stream| stream.try_send(outgoing).is_ok())
    }

    /// A question is open there.
    pub(super) fn asked(&self, now: Instant) {
        self.open.set(self.open.get() + 1);
        if self.owes.get().is_none() {
            self.owes.set(Some(now));
        }
    }

    /// One is open no more.
    pub(super) fn settled(&self) {
        let open = self.open.get().saturating_sub(1);
        self.open.set(open);
        if open == 0 {
            self.owes.set(None);
            if self.is_leaving() {
                self.changed.notify_one();
            }
        }
    }

    /// Something came over its connection.
    pub(super) fn heard(&self, now: Instant) {
        self.owes.set((self.open.get() > 0).then_some(now));
        if self.standing.get() != Standing::Closed {
            self.standing.set(Standing::Well);
        }
    }

    /// Since when it owes an answer and has said nothing.
    pub(super) fn owes_since(&self) -> Option<Instant> {
        self.owes.get()
    }

    /// It has owed an answer for too long.
    pub(super) fn doubt(&self) {
        if self.standing.get() == Standing::Well {
            self.standing.set(Standing::Doubtful);
            self.changed.notify_one();
        }
    }

    /// Its connection is dead, or its peer frozen.
    pub(super) fn silent(&self) {
        if self.standing.get() == Standing::Doubtful {
            self.standing.set(Standing::Silent);
        }
    }

    /// Asks the transport whether its calls fail.
    pub(super) fn look(&self) {
        self.left_out.set(self.replica.is_left_out());
    }
}
