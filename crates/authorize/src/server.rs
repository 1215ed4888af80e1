//! Answers proxies over one long stream each (`postern.authorize.v1`). Only translates.
//!
//! What waits goes into one message, in both directions. Nearly every question is answered at
//! once; one that has to wait for the databroker does not hold up those behind it.

use std::pin::Pin;
use std::sync::Arc;

use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use postern_common::authz::{Revisit, wire};
use postern_common::rpc::stubs::authorize as proto;
use postern_common::rpc::stubs::authorize::decisions_server::Decisions;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::contacts::{Contact, Contacts};
use crate::local::Local;

/// Questions of one stream that wait for the databroker. No more are read until some are answered.
const WAITING: usize = 1024;

/// Messages that wait for the network. A proxy that does not read is not asked for more.
const OUTGOING: usize = 16;

/// Answers in one message.
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
        loop {
            let batch = tokio::select! {
                // What changed goes out before answers that may rest on it.
                biased;
                revisit = self.revisits.recv() => self.changed(revisit),
                Some(answer) = waiting.next() => Some(answers(vec![answer])),
                received = questions.message(), if waiting.len() < WAITING => match received {
                    Ok(Some(batch)) => {
                        let (ready, later) = self.begin(batch);
                        waiting.extend(later);
                        (!ready.is_empty()).then(|| answers(ready))
                    }
                    // The proxy has left, or its connection.
                    Ok(None) | Err(_) => return,
                },
                () = self.outgoing.closed() => return,
            };
            let Some(mut batch) = batch else { continue };
            while batch.answers.len() < BATCH
                && let Some(Some(answer)) = waiting.next().now_or_never()
            {
                batch.answers.push(answer);
            }
            if self.outgoing.send(Ok(batch)).await.is_err() {
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

    fn changed(&self, revisit: Result<Revisit, RecvError>) -> Option<proto::AnswerBatch> {
        let revisit = match revisit {
            Ok(revisit) => revisit,
            // Too many to tell one by one.
            Err(RecvError::Lagged(_)) => Revisit::Everything,
            // The sender lives as long as `local`.
            Err(RecvError::Closed) => return None,
        };
        Some(proto::AnswerBatch {
            // A new configuration comes with a revisit of everything.
            hello: (revisit == Revisit::Everything).then(|| self.hello()),
            revisits: vec![wire::revisit(&revisit)],
            ..proto::AnswerBatch::default()
        })
    }
}

fn answers(answers: Vec<proto::Answer>) -> proto::AnswerBatch {
    proto::AnswerBatch {
        answers,
        ..proto::AnswerBatch::default()
    }
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
    let age = local.replica().age(Timestamp::now()).unwrap_or_default();
    let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    wire::answer(number, &request.subject, &decided, age)
}
