//! One stream of questions and answers, opened again whenever it breaks, and once in a while before
//! it does.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use postern_common::authz::{AuthorizeError, CheckRequest, Decision, Revisit, wire};
use postern_common::config::Config;
use postern_common::lifecycle::{Lifecycle, Phase};
use postern_common::rpc::Transport;
use postern_common::rpc::stubs::authorize as proto;
use postern_common::rpc::stubs::authorize::decisions_client::DecisionsClient;
use postern_common::rpc::token::TokenKeys;
use postern_common::telemetry::RateLimit;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Questions that wait for a stream. More are refused at once.
const WAITING: usize = 1000;

/// Questions in one message.
const BATCH: usize = 64;

/// Messages that wait for the network.
const OUTGOING: usize = 4;

/// Opening a stream, to the first byte of the answer.
const OPEN: Duration = Duration::from_secs(3);

/// A stream with an open question that says nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(2);

/// The shortest and the longest pause before a stream is opened again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// A stream is followed by another after this time, and up to as much again, so that authorizers
/// that came later get their share and no stream outlives a secret that was replaced.
const AGE: Duration = Duration::from_secs(30 * 60);

/// Before the next one is tried again to be opened.
const NEXT_PAUSE: Duration = Duration::from_secs(10);

/// One line about a broken stream in this time.
const LINES: Duration = Duration::from_secs(10);

type Answer = Result<Decision, AuthorizeError>;

/// The handle on a stream.
#[derive(Debug)]
pub(super) struct Stream {
    questions: mpsc::Sender<Ask>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    open: AtomicBool,
    load: AtomicUsize,
}

/// A question on its way, and who waits for the answer.
#[derive(Debug)]
struct Ask {
    request: Arc<CheckRequest>,
    answer: oneshot::Sender<Answer>,
}

/// Counts a question for as long as somebody waits for it.
struct Load<'a>(&'a State);

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Stream {
    pub(super) fn open(
        transport: Transport,
        keys: TokenKeys,
        config: watch::Receiver<Arc<Config>>,
        revisits: broadcast::Sender<Revisit>,
        lifecycle: &Lifecycle,
    ) -> Self {
        let (questions, waiting) = mpsc::channel(WAITING);
        let state = Arc::new(State::default());
        let driver = Driver {
            opener: Opener {
                transport,
                keys,
                config: config.clone(),
            },
            config,
            revisits,
            waiting,
            pending: HashMap::new(),
            next_number: 0,
            state: Arc::clone(&state),
            told: RateLimit::new(LINES),
        };
        lifecycle.spawn(driver.run(lifecycle.clone()));
        Self { questions, state }
    }

    pub(super) fn is_open(&self) -> bool {
        self.state.open.load(Ordering::Relaxed)
    }

    /// Questions that wait for an answer.
    pub(super) fn load(&self) -> usize {
        self.state.load.load(Ordering::Relaxed)
    }

    /// Asks; the caller has the deadline.
    pub(super) async fn ask(&self, request: Arc<CheckRequest>) -> Answer {
        let unreachable = |reason: &str| AuthorizeError::Unreachable {
            reason: reason.to_owned(),
        };
        self.state.load.fetch_add(1, Ordering::Relaxed);
        let _load = Load(&self.state);
        let (answer, answered) = oneshot::channel();
        self.questions
            .try_send(Ask { request, answer })
            .map_err(|_| unreachable("too many questions wait for authorize"))?;
        answered
            .await
            .unwrap_or_else(|_| Err(unreachable("the process ends")))
    }
}

/// What keeps the stream going.
struct Driver {
    opener: Opener,
    config: watch::Receiver<Arc<Config>>,
    revisits: broadcast::Sender<Revisit>,
    waiting: mpsc::Receiver<Ask>,
    pending: HashMap<u64, Ask>,
    next_number: u64,
    state: Arc<State>,
    told: RateLimit,
}

/// Opens streams.
#[derive(Clone)]
struct Opener {
    transport: Transport,
    keys: TokenKeys,
    config: watch::Receiver<Arc<Config>>,
}

/// An open stream.
struct Link {
    outgoing: mpsc::Sender<proto::QuestionBatch>,
    answers: Streaming<proto::AnswerBatch>,
}

/// How a stream ends.
enum Over {
    Broken(Broken),
    /// It is old, and the next one is open.
    Old(Box<Link>),
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("it could not be opened in time")]
    Late,
    #[error("it could not be opened, or broke")]
    Status(#[source] Box<Status>),
    #[error("authorize ended it")]
    Ended,
    #[error("a question was unanswered for {SILENCE:?}, and nothing else came")]
    Silent,
}

impl Opener {
    async fn open(&self) -> Result<Link, Broken> {
        let (outgoing, stream) = mpsc::channel(OUTGOING);
        let mut client =
            DecisionsClient::with_interceptor(self.transport.clone(), self.keys.for_client());
        let hello = proto::QuestionBatch {
            hello: Some(self.hello()),
            questions: Vec::new(),
        };
        // There is room: nothing has been sent yet.
        let _ = outgoing.try_send(hello);
        let opening = client.decide(ReceiverStream::new(stream));
        match timeout(OPEN, opening).await {
            Ok(Ok(response)) => Ok(Link {
                outgoing,
                answers: response.into_inner(),
            }),
            Ok(Err(status)) => Err(Broken::Status(Box::new(status))),
            Err(_) => Err(Broken::Late),
        }
    }

    /// The stream that follows one that has become old, open.
    async fn next(self) -> Link {
        let [random] = postern_common::crypto::random::bytes();
        sleep(AGE + AGE * u32::from(random) / 255).await;
        loop {
            match self.open().await {
                Ok(link) => return link,
                Err(_) => sleep(NEXT_PAUSE).await,
            }
        }
    }

    fn hello(&self) -> proto::Hello {
        proto::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config_hash: format!("{:016x}", self.config.borrow().checksum),
            features: Vec::new(),
        }
    }
}

impl Driver {
    async fn run(mut self, lifecycle: Lifecycle) {
        let mut pause = PAUSE.0;
        let mut before = false;
        loop {
            let opened = Instant::now();
            let broken = tokio::select! {
                // Requests that are finished during a drain are still asked about.
                () = lifecycle.reached(Phase::Stopping) => return,
                broken = self.converse(before) => broken,
            };
            if self.state.open.swap(false, Ordering::Relaxed) {
                // From here on changes are missed, so nothing that is open stands unless it is
                // confirmed: by another stream, or by this one if it comes back soon enough.
                let _ = self.revisits.send(Revisit::Everything);
            }
            if self.waiting.is_closed() {
                // Nobody can ask any more: the authorizer is gone.
                return;
            }
            before = true;
            if lifecycle.phase() < Phase::StreamsEnded
                && let Some(suppressed) = self.told.pass("", std::time::Instant::now())
            {
                let reason = postern_common::telemetry::log::chain(&broken);
                tracing::warn!(
                    reason,
                    suppressed,
                    "a stream of decisions from authorize broke"
                );
            }
            // One that lived for a while may be opened at once.
            if opened.elapsed() > Duration::from_secs(5) {
                pause = PAUSE.0;
            }
            let jitter = u32::from(postern_common::crypto::random::bytes::<1>()[0]);
            sleep(pause * (192 + jitter / 2) / 256).await;
            pause = (pause * 2).min(PAUSE.1);
            if matches!(broken, Broken::Ended) {
                pause = PAUSE.0;
            }
        }
    }

    /// One stream and those that follow it, until one breaks.
    async fn converse(&mut self, again: bool) -> Broken {
        self.config.mark_unchanged();
        let mut link = match self.opener.open().await {
            Ok(link) => link,
            Err(broken) => return broken,
        };
        self.state.open.store(true, Ordering::Relaxed);
        if again {
            // What changed in between has been missed.
            let _ = self.revisits.send(Revisit::Everything);
        }
        loop {
            match self.exchange(link).await {
                Over::Broken(broken) => return broken,
                Over::Old(next) => link = *next,
            }
            // Another authorizer may have told already, to others, what the last one had still to tell.
            let _ = self.revisits.send(Revisit::Everything);
            // What was loaded since it was opened.
            let hello = Some(self.opener.hello());
            let _ = link.outgoing.try_send(proto::QuestionBatch {
                hello,
                questions: Vec::new(),
            });
        }
    }

    async fn exchange(&mut self, link: Link) -> Over {
        let Link {
            outgoing,
            mut answers,
        } = link;
        let mut next = pin!(self.opener.clone().next());
        let mut unsent: Vec<u64> = self.pending.keys().copied().collect();
        let mut fresh = Vec::with_capacity(BATCH);
        let mut heard = Instant::now();
        let mut ticks = interval(SILENCE / 4);
        let mut config_lives = true;
        loop {
            tokio::select! {
                biased;
                received = answers.message() => match received {
                    Ok(Some(batch)) => {
                        heard = Instant::now();
                        self.received(batch);
                    }
                    Ok(None) => return Over::Broken(Broken::Ended),
                    Err(status) => return Over::Broken(Broken::Status(Box::new(status))),
                },
                permit = outgoing.reserve(), if !unsent.is_empty() => match permit {
                    Ok(permit) => {
                        let rest = unsent.split_off(unsent.len().min(BATCH));
                        permit.send(self.questions(&unsent));
                        unsent = rest;
                    }
                    Err(_) => return Over::Broken(Broken::Ended),
                },
                // Everything that waits goes into one message.
                n = self.waiting.recv_many(&mut fresh, BATCH), if unsent.len() < BATCH => {
                    if n == 0 {
                        return Over::Broken(Broken::Ended);
                    }
                    for ask in fresh.drain(..).filter(|ask| !ask.answer.is_closed()) {
                        let number = self.next_number;
                        self.next_number += 1;
                        self.pending.insert(number, ask);
                        unsent.push(number);
                    }
                }
                changed = self.config.changed(), if config_lives => {
                    config_lives = changed.is_ok();
                    let hello = Some(self.opener.hello());
                    let _ = outgoing.try_send(proto::QuestionBatch { hello, questions: Vec::new() });
                }
                link = &mut next => return Over::Old(Box::new(link)),
                _ = ticks.tick() => {
                    self.pending.retain(|_, ask| !ask.answer.is_closed());
                    if self.pending.is_empty() {
                        heard = Instant::now();
                    } else if heard.elapsed() > SILENCE {
                        return Over::Broken(Broken::Silent);
                    }
                }
            }
        }
    }

    fn questions(&self, numbers: &[u64]) -> proto::QuestionBatch {
        let question = |number: &u64| {
            let ask = self.pending.get(number)?;
            Some(wire::question(*number, &ask.request))
        };
        proto::QuestionBatch {
            hello: None,
            questions: numbers.iter().filter_map(question).collect(),
        }
    }

    fn received(&mut self, batch: proto::AnswerBatch) {
        // What changed comes before answers that may rest on it.
        for revisit in batch.revisits {
            // Without a listener there is nothing open.
            let _ = self.revisits.send(wire::read_revisit(revisit));
        }
        for answer in batch.answers {
            // Answered twice, or nobody waits any more.
            let Some(ask) = self.pending.remove(&answer.number) else {
                continue;
            };
            let decision = wire::decision(answer, &ask.request.subject).unwrap_or_else(|error| {
                Err(AuthorizeError::DataUnavailable {
                    reason: error.to_string(),
                })
            });
            let _ = ask.answer.send(drop_stale(decision));
        }
    }
}

/// An answer that has run out on its way is none.
fn drop_stale(answer: Answer) -> Answer {
    match &answer {
        Ok(Decision::Allow(allow)) if allow.valid_until.is_some_and(|t| t <= Timestamp::now()) => {
            Err(AuthorizeError::DataUnavailable {
                reason: "the decision had run out when it came; are the clocks right?".to_owned(),
            })
        }
        _ => answer,
    }
}
