//! The questions of a core: where each is open, where it goes next, how long it waits.
//!
//! No task of its own and no clock: streams tell what came, a tick tells the time.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use postern_common::authz::{AuthorizeError, CheckRequest, Decision, wire};
use postern_common::rpc::stubs::authorize as proto;
use postern_common::rpc::{Budget, Outcome, Patience};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::link::{Link, Outgoing, Standing};

/// How long a question waits for a stream that may answer it.
const WAIT: Duration = Duration::from_secs(1);

/// At least as long after its stream was lost, so that two seconds are never reached.
const WAIT_AFTER_LOSS: Duration = Duration::from_millis(500);

/// Questions that wait for a stream. One more fails at once.
const WAITING: usize = 1000;

/// Where patience begins.
const PATIENCE: Duration = Duration::from_millis(300);

/// At so many replicas one question is asked.
const MAX_ASKED: usize = 3;

pub(super) type Answer = Result<Decision, AuthorizeError>;

/// All questions of a core that nobody has answered yet, and who could.
#[derive(Debug)]
pub(super) struct Board {
    /// Oldest first.
    questions: BTreeMap<u64, Question>,
    next: u64,
    links: Vec<Rc<Link>>,
    patience: Patience,
    budget: Budget,
}

#[derive(Debug)]
struct Question {
    request: Arc<CheckRequest>,
    answer: oneshot::Sender<Answer>,
    begun: Instant,
    until: Instant,
    /// When it was sent last.
    sent: Instant,
    /// When it ends, unless somebody may answer it.
    gives_up: Instant,
    asked: Vec<Asked>,
    /// What one of those said that cannot decide.
    refusal: Option<AuthorizeError>,
}

/// A replica that has the question, or had it and said that it cannot decide.
#[derive(Debug)]
struct Asked {
    link: Rc<Link>,
    at: Instant,
    refused: bool,
}

impl Asked {
    fn is_open(&self) -> bool {
        !self.refused
    }
}

impl Question {
    /// Whether a replica has it that has not answered.
    fn is_open(&self) -> bool {
        self.asked.iter().any(Asked::is_open)
    }

    /// Whether one of those may still answer.
    fn is_in_good_hands(&self) -> bool {
        let good = |asked: &Asked| asked.is_open() && asked.link.may_answer();
        self.asked.iter().any(good)
    }

    /// Sends it to a replica that has not had it yet, if there is one.
    fn send(&mut self, number: u64, links: &[Rc<Link>], now: Instant) -> bool {
        let Some(link) = choose(links, &self.asked) else {
            return false;
        };
        if !link.send(Outgoing::Question(number, Arc::clone(&self.request))) {
            return false;
        }
        link.asked(now);
        self.sent = now;
        self.asked.push(Asked {
            link: Rc::clone(link),
            at: now,
            refused: false,
        });
        true
    }

    /// It is off the board.
    fn settle(&self) {
        for asked in self.asked.iter().filter(|asked| asked.is_open()) {
            asked.link.settled();
        }
    }
}

impl Board {
    pub(super) fn new() -> Self {
        Self {
            questions: BTreeMap::new(),
            next: 0,
            links: Vec::new(),
            patience: Patience::new(PATIENCE),
            budget: Budget::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.questions.is_empty()
    }

    pub(super) fn links(&self) -> &[Rc<Link>] {
        &self.links
    }

    /// Another replica.
    pub(super) fn join(&mut self, link: Rc<Link>) {
        self.links.push(link);
    }

    /// One that has left, and whose stream is closed.
    pub(super) fn part(&mut self, link: &Rc<Link>) {
        self.links.retain(|one| !Rc::ptr_eq(one, link));
    }

    /// Takes a question and sends it where it is answered soonest. Who asks says `forget` when it
    /// does not wait any longer.
    pub(super) fn ask(
        &mut self,
        request: Arc<CheckRequest>,
        limit: Duration,
        now: Instant,
    ) -> Result<(u64, oneshot::Receiver<Answer>), AuthorizeError> {
        let (answer, answered) = oneshot::channel();
        let mut question = Question {
            request,
            answer,
            begun: now,
            until: now + limit,
            sent: now,
            gives_up: now + WAIT,
            asked: Vec::with_capacity(1),
            refusal: None,
        };
        let number = self.next;
        if question.send(number, &self.links, now) {
            self.budget.earn();
        } else if self.waiting() >= WAITING {
            return Err(unreachable("too many questions wait for authorize"));
        }
        self.next += 1;
        self.questions.insert(number, question);
        Ok((number, answered))
    }

    /// Questions that no replica has.
    fn waiting(&self) -> usize {
        let waits = |question: &&Question| !question.is_open();
        self.questions.values().filter(waits).count()
    }

    /// Nobody waits for the answer any more.
    pub(super) fn forget(&mut self, number: u64) {
        if let Some(question) = self.questions.remove(&number) {
            question.settle();
        }
    }

    /// A stream to `link` is open: what waits goes there.
    pub(super) fn opened(&mut self, link: &Link, stream: mpsc::Sender<Outgoing>, now: Instant) {
        link.opened(stream);
        self.flush(now);
        // Those that were needed until now.
        for leaving in self.links.iter().filter(|link| link.is_leaving()) {
            leaving.changed.notify_one();
        }
    }

    /// Whether what could be asked at `link` could be asked nowhere else.
    pub(super) fn needs(&self, link: &Link) -> bool {
        let is_usable = |link: &Link| link.reluctance().is_some();
        let mut members = self.links.iter().filter(|other| !other.is_leaving());
        is_usable(link) && !members.any(|other| is_usable(other))
    }

    /// Something came over the connection of `link`.
    pub(super) fn heard(&mut self, link: &Link, now: Instant) {
        let back = link.standing() == Standing::Silent;
        link.heard(now);
        if back {
            self.flush(now);
        }
    }

    /// Sends what no replica has.
    fn flush(&mut self, now: Instant) {
        for (number, question) in &mut self.questions {
            if !question.is_open() {
                question.send(*number, &self.links, now);
            }
        }
    }

    /// The stream to `link` is no more: what was open there goes elsewhere, or waits.
    pub(super) fn lost(&mut self, link: &Rc<Link>, now: Instant) {
        link.closed();
        for (number, question) in &mut self.questions {
            let before = question.asked.len();
            question
                .asked
                .retain(|asked| !Rc::ptr_eq(&asked.link, link));
            if question.asked.len() == before {
                continue;
            }
            link.replica.note(Outcome::Failed);
            if !question.is_open() {
                question.gives_up = question.gives_up.max(now + WAIT_AFTER_LOSS);
                if question.send(*number, &self.links, now) {
                    link.replica.note(Outcome::Moved);
                }
            }
        }
    }

    /// An answer came from `link`.
    pub(super) fn answered(&mut self, link: &Rc<Link>, answer: proto::Answer, now: Instant) {
        let number = answer.number;
        // Answered elsewhere, or nobody waits any more.
        let Some(question) = self.questions.get_mut(&number) else {
            return;
        };
        let from = |asked: &&mut Asked| asked.is_open() && Rc::ptr_eq(&asked.link, link);
        let Some(asked) = question.asked.iter_mut().find(from) else {
            return;
        };
        let took = now.saturating_duration_since(asked.at);
        let decided = read(answer, &question.request);
        if let Err(refusal) = &decided {
            // Perhaps another one can.
            asked.refused = true;
            link.settled();
            question.refusal = Some(refusal.clone());
            if question.is_open()
                || (choose(&self.links, &question.asked).is_some()
                    && self.budget.spend()
                    && question.send(number, &self.links, now))
            {
                return;
            }
        }
        let Some(question) = self.questions.remove(&number) else {
            return;
        };
        link.replica.note(Outcome::Answered(took));
        self.patience
            .observe(now.saturating_duration_since(question.begun));
        if decided.is_ok() {
            let others = question.asked.iter().map(|asked| &asked.link);
            for slower in others.filter(|other| !Rc::ptr_eq(other, link)) {
                slower.replica.note(Outcome::Failed);
            }
        }
        question.settle();
        // Whoever asked may have gone.
        let _ = question.answer.send(decided);
    }

    /// Looks after what takes long.
    pub(super) fn tend(&mut self, now: Instant) {
        let patience = self.patience.now();
        for link in &self.links {
            link.look();
            if link
                .owes_since()
                .is_some_and(|since| since + patience <= now)
            {
                link.doubt();
            }
        }
        let mut over = Vec::new();
        for (number, question) in &mut self.questions {
            if question.until <= now {
                over.push((*number, "no answer within grpc_client_timeout"));
            } else if !question.is_in_good_hands() {
                let last = question.asked.last().map(|asked| Rc::clone(&asked.link));
                if question.send(*number, &self.links, now) {
                    // That is no second question: the first is as good as lost.
                    if let Some(silent) = last {
                        silent.replica.note(Outcome::Moved);
                    }
                } else if question.gives_up <= now {
                    over.push((*number, "no replica of authorize answers"));
                }
            } else if question.sent + patience <= now
                && question.asked.len() < MAX_ASKED
                && choose(&self.links, &question.asked).is_some()
                && self.budget.spend()
                && question.send(*number, &self.links, now)
                && let Some(asked) = question.asked.last()
            {
                asked.link.replica.note(Outcome::AskedElsewhere);
            }
        }
        for (number, why) in over {
            if let Some(question) = self.questions.remove(&number) {
                for asked in question.asked.iter().filter(|asked| asked.is_open()) {
                    asked.link.replica.note(Outcome::Failed);
                }
                question.settle();
                let error = question.refusal.unwrap_or_else(|| unreachable(why));
                let _ = question.answer.send(Err(error));
            }
        }
    }
}

/// The less burdened of two that have not been asked yet, of those that are best fit.
fn choose<'a>(links: &'a [Rc<Link>], asked: &[Asked]) -> Option<&'a Rc<Link>> {
    let fit = |link: &&Rc<Link>| {
        let fit = link.reluctance()?;
        let new = asked.iter().all(|asked| !Rc::ptr_eq(&asked.link, link));
        new.then_some(fit)
    };
    let best = links.iter().filter_map(|link| fit(&link)).min()?;
    let candidates = || links.iter().filter(|link| fit(link) == Some(best));
    let count = candidates().count();
    if count == 1 {
        return candidates().next();
    }
    let [one, two] = postern_common::crypto::random::bytes().map(usize::from);
    let one = one % count;
    // Another one, where there is another one.
    let two = (one + 1 + two % (count - 1)) % count;
    let (one, two) = (candidates().nth(one)?, candidates().nth(two)?);
    Some(if two.open() < one.open() { two } else { one })
}

/// What an answer says. One that has run out on its way is none.
fn read(answer: proto::Answer, request: &CheckRequest) -> Answer {
    let unusable = |reason: String| AuthorizeError::DataUnavailable { reason };
    let decided = wire::decision(answer, &request.subject)
        .unwrap_or_else(|error| Err(unusable(error.to_string())))?;
    match &decided {
        Decision::Allow(allow) if allow.valid_until.is_some_and(|t| t <= Timestamp::now()) => {
            let reason = "the decision had run out when it came; are the clocks right?";
            Err(unusable(reason.to_owned()))
        }
        _ => Ok(decided),
    }
}

fn unreachable(reason: &str) -> AuthorizeError {
    AuthorizeError::Unreachable {
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests;
