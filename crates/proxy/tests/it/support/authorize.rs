//! An authorize service at the other end of streams.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::StreamExt as _;
use http::{HeaderMap, Method};
use postern_common::authz::{Authorizer as _, CheckRequest, CheckSubject, Scheme, wire};
use postern_common::config::{RouteChecksum, RouteId};
use postern_common::rpc::stubs::authorize as proto;
use postern_common::rpc::stubs::authorize::decisions_server::Decisions;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::authorizer::Scripted;

/// An authorize service that answers by a script and can be broken.
#[derive(Clone)]
pub struct Service {
    pub script: Arc<Scripted>,
    /// Never answers what it is asked.
    pub silent: Arc<AtomicBool>,
    /// Answers later.
    pub held: watch::Sender<bool>,
    /// Takes no stream.
    pub down: Arc<AtomicBool>,
    /// How many have been opened.
    pub streams: Arc<AtomicUsize>,
    /// How many are open.
    pub open: Arc<AtomicUsize>,
    pub batches: Arc<AtomicUsize>,
    pub cut: broadcast::Sender<()>,
}

impl Service {
    pub fn new(script: Arc<Scripted>) -> Self {
        Self {
            script,
            silent: Arc::default(),
            held: watch::Sender::new(false),
            down: Arc::default(),
            streams: Arc::default(),
            open: Arc::default(),
            batches: Arc::default(),
            cut: broadcast::channel(4).0,
        }
    }
}

#[tonic::async_trait]
impl Decisions for Service {
    type DecideStream =
        Pin<Box<dyn futures::Stream<Item = Result<proto::AnswerBatch, Status>> + Send>>;

    async fn decide(
        &self,
        request: Request<Streaming<proto::QuestionBatch>>,
    ) -> Result<Response<Self::DecideStream>, Status> {
        if self.down.load(Ordering::SeqCst) {
            return Err(Status::unavailable("down"));
        }
        self.streams.fetch_add(1, Ordering::SeqCst);
        let open = Open::new(&self.open);
        let this = self.clone();
        let mut cut = self.cut.subscribe();
        let mut revisits = self.script.revisits();
        let mut questions = request.into_inner();
        let (answers, stream) = mpsc::channel(16);
        tokio::spawn(async move {
            let _open = open;
            loop {
                let batch = tokio::select! {
                    _ = cut.recv() => return,
                    Ok(revisit) = revisits.recv() => proto::AnswerBatch {
                        revisits: vec![wire::revisit(&revisit)],
                        ..Default::default()
                    },
                    batch = questions.next() => {
                        let Some(Ok(batch)) = batch else { return };
                        this.batches.fetch_add(1, Ordering::SeqCst);
                        if this.silent.load(Ordering::SeqCst) {
                            continue;
                        }
                        let mut held = this.held.subscribe();
                        held.wait_for(|held| !*held).await.unwrap();
                        let answer = |question: proto::Question| {
                            let number = question.number;
                            let request = Arc::new(wire::check_request(question).unwrap());
                            let decided = this.script.answer(&request);
                            wire::answer(number, &request.subject, &decided, 0)
                        };
                        proto::AnswerBatch {
                            answers: batch.questions.into_iter().map(answer).collect(),
                            ..Default::default()
                        }
                    }
                };
                if answers.send(Ok(batch)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// Counts a stream while it is open.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// About a route.
pub fn question(id: &str) -> Arc<CheckRequest> {
    Arc::new(CheckRequest {
        request_id: "r".into(),
        subject: CheckSubject::Route {
            id: RouteId(id.into()),
            checksum: RouteChecksum(7),
        },
        method: Method::GET,
        scheme: Scheme::Https,
        host: "app.corp.test".into(),
        path: "/".into(),
        query: None,
        headers: HeaderMap::new(),
        client_address: SocketAddr::from(([127, 0, 0, 1], 1)).ip(),
        client_certificate: None,
        trace: None,
    })
}
