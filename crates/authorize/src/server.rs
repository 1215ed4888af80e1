//! Answers proxies over one long stream each (`postern.authorize.v1`). Only translates.
//!
//! What waits goes into one message, in both directions. Nearly every question is answered at
//! once; one that has to wait for the databroker does not hold up those behind it.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use postern_common::authz::{Revisit, wire};
use postern_common::rpc::stubs::authorize as proto;
use postern_common::rpc::stubs::authorize::decisions_server::Decisions;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::contacts::{Contact, Contacts};
use crate::local::Local;

/// Questions of one stream that wait for the databroker. No more are read until some are answered.
const WAITING: usize = 1024;

/// Messages that wait for the network. A proxy that does not read is not asked for more.
const OUTGOING: usize = 16;

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
}

impl Server {
    pub fn new(local: Arc<Local>, contacts: Arc<Contacts>) -> Self {
        Self { local, contacts }
    }
}

type Answers = Pin<Box<dyn futures::Stream<Item = Result<proto::AnswerBatch, Status>> + Send>>;

#[tonic::async_trait]
impl Decisions for Server {
    type DecideStream = Answers;

    async fn decide(
        &self,
        request: Request<Streaming<proto::QuestionBatch>>,
    ) -> Result<Response<Answers>, Status> {
        let (outgoing, stream) = mpsc::channel(OUTGOING);
        let conversation = Conversation {
            revisits: self.local.revisits_now(),
            local: Arc::clone(&self.local),
            contact: self.contacts.begin(),
            outgoing,
        };
        // Ends with the stream: when the proxy leaves, or when this server has no more to send to.
        tokio::spawn(conversation.hold(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// One proxy's stream.
struct Conversation {
    local: Arc<Local>,
    contact: Contact,
    revisits: broadcast::Receiver<Revisit>,
    outgoing: mpsc::Sender<Result<proto::AnswerBatch, Status>>,
}

impl Conversation {
    async fn hold(mut self, mut questions: Streaming<proto::QuestionBatch>) {
        let hello = proto::AnswerBatch {
            hello: Some(self.hello()),
            ..proto::AnswerBatch::default()
        };
        if self.outgoing.send(Ok(hello)).await.is_err() {
            return;
        }
        let mut waiting = FuturesUnordered::new();
        let mut end = pin!(tokio::time::sleep(MAX_AGE));
        loop {
            let mut batch = proto::AnswerBatch::default();
            let event = tokio::select! {
                // What changed goes out before answers that may rest on it.
                biased;
                revisit = self.revisits.recv() => Event::Changed(revisit),
                Some(answer) = waiting.next() => Event::Answered(answer),
                received = questions.message(), if waiting.len() < WAITING => {
                    Event::Received(received)
                }
                () = self.outgoing.closed() => return,
                () = &mut end => {
                    let old = Status::unavailable("the stream has lasted long enough; open the next one");
                    // Whoever does not read it has left.
                    let _ = self.outgoing.try_send(Err(old));
                    return;
                }
            };
            let received = match event {
                Event::Changed(revisit) => {
                    let Some(revisits) = waiting_revisits(revisit, &mut self.revisits) else {
                        // The sender lives as long as `local`.
                        return;
                    };
                    // A new configuration comes with a revisit of everything.
                    let everything = revisits.contains(&Revisit::Everything);
                    batch.hello = everything.then(|| self.hello());
                    batch.revisits = revisits.iter().map(wire::revisit).collect();
                    // However much changes, each message also has room for answers. They are
                    // decided after the change.
                    let room = waiting.len() < WAITING;
                    room.then(|| questions.message().now_or_never()).flatten()
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
                    waiting.extend(later);
                }
                // The proxy has left, or its connection.
                Some(Ok(None) | Err(_)) => return,
            }
            while batch.answers.len() < BATCH
                && let Some(Some(answer)) = waiting.next().now_or_never()
            {
                batch.answers.push(answer);
            }
            let empty = batch.answers.is_empty() && batch.revisits.is_empty();
            if !empty && self.outgoing.send(Ok(batch)).await.is_err() {
                return;
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
    fn begin(
        &mut self,
        batch: proto::QuestionBatch,
    ) -> (
        Vec<proto::Answer>,
        Vec<impl Future<Output = proto::Answer> + Send + use<>>,
    ) {
        if let Some(hello) = batch.hello {
            self.contact.runs(&hello.config_hash);
        }
        let mut ready = Vec::with_capacity(batch.questions.len());
        let mut later = Vec::new();
        for question in batch.questions {
            let mut answer = Box::pin(answer(Arc::clone(&self.local), question));
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
