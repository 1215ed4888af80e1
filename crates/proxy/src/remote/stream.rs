//! Keeps the stream to one replica open: opens it again when it breaks, when nothing comes over its
//! connection any more, and once in a while all the same.

use std::future::{Future, pending};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use postern_common::lifecycle::Phase;
use postern_common::rpc::stubs::authorize as proto;
use postern_common::rpc::stubs::authorize::decisions_client::DecisionsClient;
use postern_common::rpc::{Line, TransportError};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::Streams;
use super::link::{Link, Outgoing, Standing};

/// Questions in one message.
const BATCH: usize = 64;

/// Questions that wait for the network. A replica with more gets no more.
const OUTGOING: usize = 1024;

/// Opening a connection and a stream on it, to the first byte of the answer.
const OPEN: Duration = Duration::from_secs(1);

/// A connection that owes an answer is tried for so long before it counts as dead.
const TRY: Duration = Duration::from_millis(200);

/// The shortest and the longest pause before a stream is opened again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// A stream that lasted so long is opened again after the shortest pause.
const LASTED: Duration = Duration::from_secs(5);

/// A stream is followed by another after this time, and up to as much again, so that none outlives
/// a secret that was replaced.
const AGE: Duration = Duration::from_secs(30 * 60);

/// Before one that could not be followed is tried again to be.
const AGED_PAUSE: Duration = Duration::from_secs(10);

/// An open stream.
pub(super) struct Stream {
    line: Line,
    outgoing: mpsc::Sender<Outgoing>,
    answers: Streaming<proto::AnswerBatch>,
    /// The configuration that it was greeted with.
    pub(super) greeted: u64,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("it could not be opened within {OPEN:?}")]
    Late,
    #[error("no connection")]
    Connection(#[source] TransportError),
    #[error("it could not be opened, or broke")]
    Status(#[source] Box<Status>),
    #[error("authorize ended it")]
    Ended,
}

impl Streams {
    async fn open(&self, link: &Link) -> Result<Stream, Broken> {
        let opening = async {
            let line = link.replica.dial(OPEN).await.map_err(Broken::Connection)?;
            let (outgoing, questions) = mpsc::channel(OUTGOING);
            let (hello, greeted) = self.hello();
            // There is room: nothing has been sent yet.
            let _ = outgoing.try_send(Outgoing::Hello(hello));
            let batches = ReceiverStream::new(questions)
                .ready_chunks(BATCH)
                .map(batch);
            let keys = self.remote.keys.for_client();
            let mut client = DecisionsClient::with_interceptor(line.clone(), keys);
            let answers = client.decide(batches).await;
            let answers = answers.map_err(|status| Broken::Status(Box::new(status)))?;
            Ok(Stream {
                line,
                outgoing,
                answers: answers.into_inner(),
                greeted,
            })
        };
        timeout(OPEN, opening).await.unwrap_or(Err(Broken::Late))
    }
}

/// Everything that waits goes into one message.
fn batch(waiting: Vec<Outgoing>) -> proto::QuestionBatch {
    let mut batch = proto::QuestionBatch {
        hello: None,
        questions: Vec::with_capacity(waiting.len()),
    };
    for outgoing in waiting {
        match outgoing {
            Outgoing::Hello(hello) => batch.hello = Some(hello),
            Outgoing::Question(number, request) => {
                let question = postern_common::authz::wire::question(number, &request);
                batch.questions.push(question);
            }
        }
    }
    batch
}

type Work<T> = Option<Pin<Box<dyn Future<Output = T>>>>;

/// Keeps `link` open until it leaves.
pub(super) struct Driver {
    streams: Rc<Streams>,
    link: Rc<Link>,
    current: Option<Current>,
    /// The stream that follows, or the first.
    next: Work<Result<Stream, Broken>>,
    /// Whether something comes over the connection.
    trial: Work<bool>,
    pause: Duration,
}

/// The stream in use.
struct Current {
    line: Line,
    answers: Streaming<proto::AnswerBatch>,
    opened: Instant,
    aged: Pin<Box<Sleep>>,
}

enum Event {
    Received(Result<proto::AnswerBatch, Broken>),
    Opened(Result<Stream, Broken>),
    Tried(bool),
    Aged,
    /// Of the link.
    Changed,
}

impl Driver {
    pub(super) fn new(streams: Rc<Streams>, link: Rc<Link>) -> Self {
        Self {
            streams,
            link,
            current: None,
            next: None,
            trial: None,
            pause: PAUSE.0,
        }
    }

    pub(super) async fn run(mut self) {
        self.open_after(Duration::ZERO);
        while !self.is_done() {
            match self.event().await {
                Event::Received(Ok(batch)) => {
                    self.lives();
                    self.streams.received(&self.link, batch);
                }
                Event::Received(Err(broken)) => self.broken(&broken),
                Event::Opened(Ok(stream)) => self.opened(stream),
                Event::Opened(Err(broken)) => self.not_opened(&broken),
                Event::Tried(true) => {
                    self.lives();
                    self.streams.heard(&self.link);
                }
                Event::Tried(false) => {
                    self.link.silent();
                    self.open_after(Duration::ZERO);
                }
                Event::Aged => self.open_after(Duration::ZERO),
                Event::Changed => self.try_connection(),
            }
        }
        if self.current.is_some() {
            self.streams.lost(&self.link);
        }
        self.streams.board.borrow_mut().part(&self.link);
    }

    async fn event(&mut self) -> Event {
        let alone = self.next.is_none() && !self.link.is_leaving();
        let (received, aged) = match &mut self.current {
            Some(current) => {
                let received = current.answers.message().right_future();
                let aged = current.aged.as_mut().right_future();
                (received, aged)
            }
            None => (pending().left_future(), pending().left_future()),
        };
        tokio::select! {
            biased;
            received = received => Event::Received(match received {
                Ok(Some(batch)) => Ok(batch),
                Ok(None) => Err(Broken::Ended),
                Err(status) => Err(Broken::Status(Box::new(status))),
            }),
            opened = finish(&mut self.next) => Event::Opened(opened),
            alive = finish(&mut self.trial) => Event::Tried(alive),
            () = aged, if alone => Event::Aged,
            () = self.link.changed.notified() => Event::Changed,
        }
    }

    /// It has left, and nobody waits for it or has nobody else to ask.
    fn is_done(&self) -> bool {
        let idle = || self.link.open() == 0 && !self.streams.board.borrow().needs(&self.link);
        self.link.is_leaving()
            && (self.current.is_none() || self.link.standing() == Standing::Silent || idle())
    }

    fn open_after(&mut self, pause: Duration) {
        if self.next.is_some() || self.link.is_leaving() {
            return;
        }
        let (streams, link) = (Rc::clone(&self.streams), Rc::clone(&self.link));
        let open = async move {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            streams.open(&link).await
        };
        self.next = Some(open.boxed_local());
    }

    /// Between half of the pause and all of it; the next one is longer.
    fn longer_pause(&mut self) -> Duration {
        let [random] = postern_common::crypto::random::bytes();
        let pause = self.pause * (256 + u32::from(random)) / 512;
        self.pause = (self.pause * 2).min(PAUSE.1);
        pause
    }

    fn opened(&mut self, stream: Stream) {
        if self.current.take().is_some() {
            self.streams.lost(&self.link);
        }
        self.trial = None;
        let [random] = postern_common::crypto::random::bytes();
        self.current = Some(Current {
            line: stream.line,
            answers: stream.answers,
            opened: Instant::now(),
            aged: Box::pin(sleep(AGE + AGE * u32::from(random) / 255)),
        });
        self.streams
            .opened(&self.link, stream.outgoing, stream.greeted);
    }

    fn not_opened(&mut self, broken: &Broken) {
        self.tell(broken);
        let pause = self.longer_pause();
        // One that is old but well stays; one that has been heard of again needs no other.
        let well = self.link.standing() <= Standing::Doubtful;
        match &self.current {
            Some(current) if well && !current.aged.is_elapsed() => {}
            Some(_) if well => self.open_after(AGED_PAUSE),
            _ => self.open_after(pause),
        }
    }

    fn broken(&mut self, broken: &Broken) {
        let lasted = self.current.take().map(|current| current.opened.elapsed());
        self.trial = None;
        self.tell(broken);
        if lasted.is_some_and(|lasted| lasted > LASTED) {
            self.pause = PAUSE.0;
        }
        self.streams.lost(&self.link);
        let pause = self.longer_pause();
        self.open_after(pause);
    }

    /// Something came over the connection: it needs neither a trial nor, unless it is old, another.
    fn lives(&mut self) {
        self.trial = None;
        let young = |current: &Current| !current.aged.is_elapsed();
        if self.next.is_some() && self.current.as_ref().is_some_and(young) {
            self.next = None;
        }
    }

    /// An answer is overdue: that may be the question's fault or the connection's.
    fn try_connection(&mut self) {
        if self.link.standing() != Standing::Doubtful || self.trial.is_some() {
            return;
        }
        let Some(line) = self.current.as_ref().map(|current| current.line.clone()) else {
            return;
        };
        let alive = async move { timeout(TRY, line.answers()).await.unwrap_or(false) };
        self.trial = Some(alive.boxed_local());
    }

    fn tell(&self, broken: &Broken) {
        if self.link.is_leaving() || self.streams.lifecycle.phase() >= Phase::StreamsEnded {
            return;
        }
        let now = std::time::Instant::now();
        if let Some(suppressed) = self.streams.told.pass("", now) {
            let reason = postern_common::telemetry::log::chain(broken);
            tracing::warn!(
                peer = self.link.peer(),
                reason,
                suppressed,
                "a stream of decisions from authorize broke"
            );
        }
    }
}

/// Waits for work that there may be none of; afterwards there is none.
async fn finish<T>(work: &mut Work<T>) -> T {
    let Some(running) = work else {
        return pending().await;
    };
    let done = running.await;
    *work = None;
    done
}
