//! Answers proxies over one long stream each (`postern.authorize.v1`). Only translates.
//!
//! What waits goes into one message, in both directions. Nearly every question is answered at
//! once; one that has to wait for the databroker does not hold up those behind it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use postern_common::authz::{Revisit, wire};
use postern_common::rpc::server::Peer;
use postern_common::rpc::stubs::authorize as proto;
use postern_common::rpc::stubs::authorize::decisions_server::Decisions;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::Sleep;
use tonic::{Request, Response, Status, Streaming};

use crate::contacts::{Contact, Contacts};
use crate::local::Local;

/// Questions of one stream that wait for the databroker. No more are read until some are answered.
const WAITING: usize = 1024;

/// Streams on one connection. A proxy has one on each; who opens many must not multiply what may
/// wait by them.
const STREAMS: usize = 4;

/// A stream ends by then. Proxies open the next one before they leave the old one, by themselves
/// and sooner; who does not must not outlive a secret that was replaced.
const MAX_AGE: Duration = Duration::from_secs(65 * 60);

/// Answers in one message, and revisits.
const BATCH: usize = 64;

/// The service on the network.
#[derive(Debug, Clone)]
pub struct Server {
    local: Arc<Local>,
    contacts: Arc<Contacts>,
    streams: Arc<Streams>,
}

impl Server {
    pub fn new(local: Arc<Local>, contacts: Arc<Contacts>) -> Self {
        Self {
            local,
            contacts,
            streams: Arc::default(),
        }
    }
}

/// How many streams each connection has, by the address of its client.
#[derive(Debug, Default)]
struct Streams(Mutex<HashMap<SocketAddr, usize>>);

/// One of a connection's streams, until it is dropped. Without a connection there is nothing to count.
#[derive(Debug)]
struct Stream {
    streams: Arc<Streams>,
    peer: Option<SocketAddr>,
}

impl Streams {
    /// `None` when the connection has as many as it may.
    fn open(self: &Arc<Self>, peer: Option<SocketAddr>) -> Option<Stream> {
        if let Some(peer) = peer {
            let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let count = open.entry(peer).or_default();
            if *count >= STREAMS {
                return None;
            }
            *count += 1;
        }
        Some(Stream {
            streams: Arc::clone(self),
            peer,
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let Some(peer) = self.peer else { return };
        let mut open = self
            .streams
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                open.remove(&peer);
            }
        }
    }
}

type Answers = Pin<Box<dyn futures::Stream<Item = Result<proto::AnswerBatch, Status>> + Send>>;

type Work = Pin<Box<dyn Future<Output = proto::Answer> + Send>>;

#[tonic::async_trait]
impl Decisions for Server {
    type DecideStream = Answers;

    async fn decide(
        &self,
        request: Request<Streaming<proto::QuestionBatch>>,
    ) -> Result<Response<Answers>, Status> {
        let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
        let Some(stream) = self.streams.open(peer) else {
            let why = format!("a connection may have {STREAMS} streams of decisions");
            return Err(Status::resource_exhausted(why));
        };
        let conversation = Conversation {
            _stream: stream,
            revisits: self.local.revisits_now(),
            local: Arc::clone(&self.local),
            contact: self.contacts.begin(),
            questions: request.into_inner(),
            waiting: FuturesUnordered::new(),
            end: Box::pin(tokio::time::sleep(MAX_AGE)),
            stage: Stage::Begin,
        };
        // Driven by whoever writes the answers, so a proxy that does not read them is not asked for
        // more. Ends when the proxy leaves, or its connection.
        let answers = futures::stream::unfold(conversation, |mut conversation| async {
            let next = conversation.next().await?;
            Some((next, conversation))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

/// One proxy's stream.
struct Conversation {
    _stream: Stream,
    local: Arc<Local>,
    contact: Contact,
    revisits: broadcast::Receiver<Revisit>,
    questions: Streaming<proto::QuestionBatch>,
    waiting: FuturesUnordered<Work>,
    end: Pin<Box<Sleep>>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// The first message is still to come.
    Begin,
    Open,
    Over,
}

impl Conversation {
    /// The next message. `None` when there will be no more.
    async fn next(&mut self) -> Option<Result<proto::AnswerBatch, Status>> {
        match self.stage {
            Stage::Begin => {
                self.stage = Stage::Open;
                return Some(Ok(proto::AnswerBatch {
                    hello: Some(self.hello()),
                    ..proto::AnswerBatch::default()
                }));
            }
            Stage::Open => {}
            Stage::Over => return None,
        }
        loop {
            let mut batch = proto::AnswerBatch::default();
            let event = tokio::select! {
                // What changed goes out before answers that may rest on it.
                biased;
                revisit = self.revisits.recv() => Event::Changed(revisit),
                Some(answer) = self.waiting.next() => Event::Answered(answer),
                received = self.questions.message(), if self.waiting.len() < WAITING => {
                    Event::Received(received)
                }
                () = &mut self.end => {
                    self.stage = Stage::Over;
                    let why = "the stream has lasted long enough; open the next one";
                    return Some(Err(Status::unavailable(why)));
                }
            };
            let received = match event {
                Event::Changed(revisit) => {
                    // The sender lives as long as `local`.
                    let revisits = waiting_revisits(revisit, &mut self.revisits)?;
                    // A new configuration comes with a revisit of everything.
                    let everything = revisits.contains(&Revisit::Everything);
                    batch.hello = everything.then(|| self.hello());
                    batch.revisits = revisits.iter().map(wire::revisit).collect();
                    // However much changes, each message also has room for answers. They are
                    // decided after the change.
                    let room = self.waiting.len() < WAITING;
                    room.then(|| self.questions.message().now_or_never())
                        .flatten()
                }
                Event::Answered(answer) => {
                    batch.answers.push(answer);
                    None
                }
                Event::Received(received) => Some(received),
            };
            match received {
                None => {}
                Some(Ok(Some(asked))) => {
                    let (ready, later) = self.begin(asked);
                    batch.answers.extend(ready);
                    self.waiting.extend(later);
                }
                // The proxy has left, or its connection.
                Some(Ok(None) | Err(_)) => return None,
            }
            while batch.answers.len() < BATCH
                && let Some(Some(answer)) = self.waiting.next().now_or_never()
            {
                batch.answers.push(answer);
            }
            if !batch.answers.is_empty() || !batch.revisits.is_empty() {
                return Some(Ok(batch));
            }
        }
    }

    fn hello(&self) -> proto::Hello {
        proto::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config_hash: format!("{:016x}", self.local.snapshot().config.checksum),
            features: Vec::new(),
        }
    }

    /// Answers what can be answered at once, and returns the rest as work.
    fn begin(&mut self, batch: proto::QuestionBatch) -> (Vec<proto::Answer>, Vec<Work>) {
        if let Some(hello) = batch.hello {
            self.contact.runs(&hello.config_hash);
        }
        let mut ready = Vec::with_capacity(batch.questions.len());
        let mut later = Vec::new();
        for question in batch.questions {
            let mut answer: Work = Box::pin(answer(Arc::clone(&self.local), question));
            match answer.as_mut().now_or_never() {
                Some(answer) => ready.push(answer),
                None => later.push(answer),
            }
        }
        (ready, later)
    }
}

/// What a conversation waits for.
enum Event {
    Changed(Result<Revisit, RecvError>),
    Answered(proto::Answer),
    Received(Result<Option<proto::QuestionBatch>, Status>),
}

/// The first revisit and those behind it, for one message. `None` when there will be no more.
fn waiting_revisits(
    first: Result<Revisit, RecvError>,
    more: &mut broadcast::Receiver<Revisit>,
) -> Option<Vec<Revisit>> {
    let mut revisits = vec![match first {
        Ok(revisit) => revisit,
        // Too many to tell one by one.
        Err(RecvError::Lagged(_)) => Revisit::Everything,
        Err(RecvError::Closed) => return None,
    }];
    while revisits.len() < BATCH {
        match more.try_recv() {
            Ok(revisit) if revisits.contains(&revisit) => {}
            Ok(revisit) => revisits.push(revisit),
            Err(TryRecvError::Lagged(_)) => revisits.push(Revisit::Everything),
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        }
    }
    if revisits.contains(&Revisit::Everything) {
        return Some(vec![Revisit::Everything]);
    }
    Some(revisits)
}

async fn answer(local: Arc<Local>, question: proto::Question) -> proto::Answer {
    let number = question.number;
    let request = match wire::check_request(question) {
        Ok(request) => request,
        Err(error) => {
            return proto::Answer {
                number,
                outcome: Some(proto::answer::Outcome::Unavailable(proto::Unavailable {
                    reason: error.to_string(),
                })),
                ..proto::Answer::default()
            };
        }
    };
    let decided = local.decide(&request).await;
    let age = local.replica().age().unwrap_or_default();
    let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    wire::answer(number, &request.subject, &decided, age)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(n: usize) -> Revisit {
        Revisit::Session(format!("s{n}"))
    }

    #[test]
    fn a_connection_has_a_few_streams_and_gets_them_back() {
        let streams = Arc::new(Streams::default());
        let (one, other) = (
            Some(SocketAddr::from(([127, 0, 0, 1], 1))),
            Some(SocketAddr::from(([127, 0, 0, 1], 2))),
        );
        let mut open: Vec<_> = (0..STREAMS).map(|_| streams.open(one).unwrap()).collect();
        assert!(streams.open(one).is_none());
        assert!(streams.open(other).is_some());
        open.pop();
        open.push(streams.open(one).unwrap());
        assert!(streams.open(one).is_none());
        open.clear();
        assert!(streams.0.lock().unwrap().is_empty());
    }

    #[test]
    fn revisits_that_wait_go_into_one_message() {
        let (sender, mut receiver) = broadcast::channel(1024);
        let next = |receiver: &mut broadcast::Receiver<Revisit>| {
            let first = receiver.try_recv().map_err(|_| RecvError::Closed);
            waiting_revisits(first, receiver)
        };
        for n in 0..100 {
            sender.send(session(n)).unwrap();
            sender.send(session(n)).unwrap();
        }
        let first = next(&mut receiver).unwrap();
        assert_eq!(first, (0..BATCH).map(session).collect::<Vec<_>>());
        let second = next(&mut receiver).unwrap();
        assert_eq!(second.last(), Some(&session(99)));
        assert_eq!(next(&mut receiver), None);
        // Everything is everything, and what can't be told one by one is, too.
        sender.send(session(1)).unwrap();
        sender.send(Revisit::Everything).unwrap();
        assert_eq!(next(&mut receiver), Some(vec![Revisit::Everything]));
        sender.send(session(1)).unwrap();
        let lagged = waiting_revisits(Err(RecvError::Lagged(7)), &mut receiver);
        assert_eq!(lagged, Some(vec![Revisit::Everything]));
    }
}
