//! The authorize service across the network: questions and answers on long streams.
//!
//! Each core has a stream of its own to each replica, over a connection of its own, so that nothing
//! of a question crosses threads. A question goes to the less burdened of two replicas; unanswered
//! for a moment it is asked at another one too, and the first answer counts. Which replicas there
//! are, and which of them are well, the transport knows.

mod board;
mod link;
mod stream;

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher as _, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use postern_common::authz::{AuthorizeError, CheckRequest, Decision, Revisit, wire};
use postern_common::config::Config;
use postern_common::lifecycle::Lifecycle;
use postern_common::rpc::stubs::authorize as proto;
use postern_common::rpc::token::TokenKeys;
use postern_common::rpc::{Outcome, Transport};
use postern_common::telemetry::RateLimit;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use self::board::Board;
use self::link::{Link, Outgoing};
use self::stream::Driver;

/// Replicas that a core has streams to. In a fleet that has more, each core has its own choice.
const MOST: usize = 8;

/// How often open questions are looked after.
const TICK: Duration = Duration::from_millis(50);

/// Authorize may have to load the configuration that we have.
const CONFIGURATIONS_MEET: Duration = Duration::from_secs(2);

/// Between two questions about that.
const CONFIGURATION_PAUSE: Duration = Duration::from_millis(100);

/// Changes that a core may be behind before it takes everything as changed.
const REVISITS: usize = 1024;

/// `grpc_client_timeout: 0` does not mean for ever.
const LONGEST: Duration = Duration::from_secs(30);

/// One line about a broken stream in this time.
const LINES: Duration = Duration::from_secs(10);

/// What every core needs to open streams of its own.
#[derive(Clone)]
pub struct Remote {
    transport: Transport,
    keys: TokenKeys,
    config: watch::Receiver<Arc<Config>>,
}

impl Remote {
    /// Streams to the replicas that `transport` knows, signed with `keys`.
    pub fn new(
        transport: Transport,
        keys: TokenKeys,
        config: watch::Receiver<Arc<Config>>,
    ) -> Self {
        Self {
            transport,
            keys,
            config,
        }
    }

    /// Opens the streams of one core, on whose `LocalSet` this is called and they live. Returns at
    /// once; questions wait for a stream.
    pub fn open(&self, lifecycle: &Lifecycle) -> Rc<Streams> {
        let streams = Rc::new(Streams {
            board: RefCell::new(Board::new()),
            found: watch::Sender::new(false),
            revisits: broadcast::channel(REVISITS).0,
            busy: Notify::new(),
            limit: Cell::new(LONGEST),
            choice: RandomState::new(),
            told: RateLimit::new(LINES),
            lifecycle: lifecycle.clone(),
            remote: self.clone(),
        });
        streams.configure();
        tokio::task::spawn_local(Rc::clone(&streams).follow_replicas());
        tokio::task::spawn_local(Rc::clone(&streams).follow_config());
        tokio::task::spawn_local(Rc::clone(&streams).tend());
        streams
    }
}

/// The streams of one core. It ends with the `LocalSet` that it was opened on.
pub struct Streams {
    board: RefCell<Board>,
    /// Whether a stream has ever been open.
    found: watch::Sender<bool>,
    revisits: broadcast::Sender<Revisit>,
    /// There is a question.
    busy: Notify,
    /// How long one may take.
    limit: Cell<Duration>,
    choice: RandomState,
    told: RateLimit,
    lifecycle: Lifecycle,
    remote: Remote,
}

impl Streams {
    /// As [`Authorizer::check`](postern_common::authz::Authorizer::check).
    pub async fn check(&self, request: Arc<CheckRequest>) -> Result<Decision, AuthorizeError> {
        let begin = Instant::now();
        let deadline = begin + self.limit.get();
        loop {
            let answer = self.ask(&request, deadline).await;
            let Err(AuthorizeError::UnknownConfiguration { .. }) = &answer else {
                return answer;
            };
            let next = Instant::now() + CONFIGURATION_PAUSE;
            if begin.elapsed() >= CONFIGURATIONS_MEET || next >= deadline {
                return answer;
            }
            sleep(CONFIGURATION_PAUSE).await;
        }
    }

    /// As [`Authorizer::revisits`](postern_common::authz::Authorizer::revisits).
    pub fn revisits(&self) -> broadcast::Receiver<Revisit> {
        self.revisits.subscribe()
    }

    /// Returns once the first stream is open.
    pub async fn found(&self) {
        // The sender lives as long as `self`.
        let _ = self.found.subscribe().wait_for(|found| *found).await;
    }

    async fn ask(
        &self,
        request: &Arc<CheckRequest>,
        deadline: Instant,
    ) -> Result<Decision, AuthorizeError> {
        let now = Instant::now();
        let idle = self.board.borrow().is_empty();
        let limit = deadline.saturating_duration_since(now);
        let request = Arc::clone(request);
        let (number, answered) = self.board.borrow_mut().ask(request, limit, now)?;
        if idle {
            self.busy.notify_one();
        }
        let _asked = OnBoard {
            streams: self,
            number,
        };
        // The board answers every question that it has.
        let answer = answered.await.unwrap_or_else(|_| {
            Err(AuthorizeError::Unreachable {
                reason: "the process ends".to_owned(),
            })
        });
        if matches!(answer, Err(AuthorizeError::Unreachable { .. })) {
            self.remote.transport.note(Outcome::Nobody);
        }
        answer
    }

    /// Looks after what takes long, while there is something.
    async fn tend(self: Rc<Self>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.board.borrow().is_empty() {
                self.busy.notified().await;
                ticks.reset();
            }
            ticks.tick().await;
            self.board.borrow_mut().tend(Instant::now());
        }
    }

    /// A link for each replica that is well, as long as it is.
    async fn follow_replicas(self: Rc<Self>) {
        let mut changes = self.remote.transport.changes();
        loop {
            self.meet(self.remote.transport.each());
            let Some(changes) = &mut changes else { return };
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn meet(self: &Rc<Self>, mut replicas: Vec<Transport>) {
        if replicas.len() > MOST {
            replicas.sort_by_cached_key(|replica| self.choice.hash_one(replica.peer()));
            replicas.truncate(MOST);
        }
        let mut board = self.board.borrow_mut();
        for link in board.links() {
            let same = |replica: &Transport| replica.is_same_endpoint(&link.replica);
            let is_well = replicas.iter().position(same);
            match is_well.filter(|_| !link.is_leaving()) {
                Some(index) => drop(replicas.swap_remove(index)),
                None if self.remote.transport.knows(&link.replica) => link.step_back(),
                None => link.leave(),
            }
        }
        for replica in replicas {
            let link = Rc::new(Link::new(replica));
            board.join(Rc::clone(&link));
            let driver = Driver::new(Rc::clone(self), link);
            tokio::task::spawn_local(driver.run());
        }
    }

    async fn follow_config(self: Rc<Self>) {
        let mut config = self.remote.config.clone();
        while config.changed().await.is_ok() {
            config.mark_unchanged();
            self.configure();
            for link in self.board.borrow().links() {
                link.send(Outgoing::Hello(self.hello().0));
            }
        }
    }

    fn configure(&self) {
        self.limit
            .set(match self.remote.config.borrow().grpc.client_timeout {
                Duration::ZERO => LONGEST,
                limit => limit,
            });
    }

    /// What a stream begins with, and the checksum of the configuration in it.
    fn hello(&self) -> (proto::Hello, u64) {
        let checksum = self.remote.config.borrow().checksum;
        let hello = proto::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config_hash: format!("{checksum:016x}"),
            features: Vec::new(),
        };
        (hello, checksum)
    }

    fn opened(&self, link: &Link, stream: mpsc::Sender<Outgoing>, greeted: u64) {
        let (hello, checksum) = self.hello();
        if checksum != greeted {
            let _ = stream.try_send(Outgoing::Hello(hello));
        }
        self.board.borrow_mut().opened(link, stream, Instant::now());
        self.found.send_replace(true);
    }

    fn heard(&self, link: &Link) {
        self.board.borrow_mut().heard(link, Instant::now());
    }

    fn received(&self, link: &Rc<Link>, batch: proto::AnswerBatch) {
        // What changed comes before answers that may rest on it.
        for revisit in batch.revisits {
            // Without a listener there is nothing open.
            let _ = self.revisits.send(wire::read_revisit(revisit));
        }
        let now = Instant::now();
        let mut board = self.board.borrow_mut();
        for answer in batch.answers {
            board.answered(link, answer, now);
        }
        board.heard(link, now);
    }

    /// From here on its replica can't tell what changes, so nothing that is open stands unless it is
    /// confirmed, by whichever replica: that one tells from then on.
    fn lost(&self, link: &Rc<Link>) {
        self.board.borrow_mut().lost(link, Instant::now());
        let _ = self.revisits.send(Revisit::Everything);
    }
}

/// A question that somebody waits for.
struct OnBoard<'a> {
    streams: &'a Streams,
    number: u64,
}

impl Drop for OnBoard<'_> {
    fn drop(&mut self) {
        self.streams.board.borrow_mut().forget(self.number);
    }
}
