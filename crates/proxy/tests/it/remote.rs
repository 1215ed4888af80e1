//! Authorize across the network: streams that break, peers that fall silent.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use http::{HeaderMap, Method};
use postern_common::authz::{
    AuthorizeError, Authorizer, CheckRequest, CheckSubject, Decision, DenyKind, Revisit, Scheme,
    wire,
};
use postern_common::config::{RouteChecksum, RouteId};
use postern_common::lifecycle::{DrainTiming, Lifecycle};
use postern_common::rpc::Transport;
use postern_common::rpc::stubs::authorize as proto;
use postern_common::rpc::stubs::authorize::decisions_server::{Decisions, DecisionsServer};
use postern_common::rpc::token::TokenKeys;
use postern_proxy::Remote;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::support::authorizer::{Scripted, allow, deny};
use crate::support::{eventually, soon};

/// An authorize service that answers by a script and can be broken.
#[derive(Clone)]
struct Service {
    script: Arc<Scripted>,
    silent: Arc<AtomicBool>,
    /// Takes no stream.
    down: Arc<AtomicBool>,
    /// Only the first stream is.
    first_silent: Arc<AtomicBool>,
    streams: Arc<AtomicUsize>,
    batches: Arc<AtomicUsize>,
    cut: broadcast::Sender<()>,
}

impl Service {
    fn new(script: Arc<Scripted>) -> Self {
        Self {
            script,
            silent: Arc::default(),
            down: Arc::default(),
            first_silent: Arc::default(),
            streams: Arc::default(),
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
        let number = self.streams.fetch_add(1, Ordering::SeqCst);
        let this = self.clone();
        let mut cut = self.cut.subscribe();
        let mut revisits = self.script.revisits();
        let mut questions = request.into_inner();
        let (answers, stream) = mpsc::channel(16);
        tokio::spawn(async move {
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
                        let first = number == 0 && this.first_silent.load(Ordering::SeqCst);
                        if first || this.silent.load(Ordering::SeqCst) {
                            continue;
                        }
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

fn question(id: &str) -> Arc<CheckRequest> {
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
    })
}

fn remote(service: &Service, added: &str) -> (Arc<dyn Authorizer>, Lifecycle) {
    let routes = tonic::service::Routes::new(DecisionsServer::new(service.clone()));
    let config =
        crate::support::proxy::config(&format!("insecure_server: true\nroutes: []\n{added}"));
    let keys = TokenKeys::new(config.secrets.shared.clone());
    let (sender, receiver) = watch::channel(config);
    // It lives as long as the test.
    std::mem::forget(sender);
    let lifecycle = Lifecycle::new(DrainTiming::immediate());
    let transport = Transport::local(routes);
    (
        Remote::connect(&transport, &keys, receiver, 2, &lifecycle),
        lifecycle,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_answered_in_batches() {
    let service = Service::new(Scripted::new(|request| match request.subject {
        CheckSubject::Route { ref id, .. } if id.as_str() == "no" => Ok(deny(DenyKind::Forbidden)),
        _ => Ok(allow("s1", &[("x-a", "b")])),
    }));
    let (remote, _lifecycle) = remote(&service, "");
    let Decision::Allow(allow) = soon("a decision", remote.check(question("yes")))
        .await
        .unwrap()
    else {
        panic!("not allowed");
    };
    assert_eq!(allow.session.unwrap().session_id, "s1");
    assert_eq!(allow.set_headers.len(), 1);
    let no = soon("a decision", remote.check(question("no")))
        .await
        .unwrap();
    assert!(matches!(no, Decision::Deny(_)));
    let before = service.batches.load(Ordering::SeqCst);
    let many = (0..500).map(|_| remote.check(question("yes")));
    let all = soon("500 decisions", futures::future::join_all(many)).await;
    assert!(
        all.iter()
            .all(|decision| matches!(decision, Ok(Decision::Allow(_))))
    );
    let batches = service.batches.load(Ordering::SeqCst) - before;
    assert!(batches < 250, "{batches} messages for 500 questions");
}

#[tokio::test(flavor = "multi_thread")]
async fn c02_a_broken_stream_is_opened_again_and_asked_again() {
    let service = Service::new(Scripted::allowing());
    let (remote, _lifecycle) = remote(&service, "");
    soon("a decision", remote.check(question("r")))
        .await
        .unwrap();
    let mut revisits = remote.revisits();
    eventually(
        "both streams",
        || service.streams.load(Ordering::SeqCst),
        |n| *n >= 2,
    )
    .await;
    service.silent.store(true, Ordering::SeqCst);
    let asked = {
        let remote = Arc::clone(&remote);
        tokio::spawn(async move { remote.check(question("r")).await })
    };
    eventually(
        "it is on its way",
        || service.batches.load(Ordering::SeqCst),
        |n| *n >= 4,
    )
    .await;
    service.silent.store(false, Ordering::SeqCst);
    service.cut.send(()).unwrap();
    let decision = soon("a decision", asked).await.unwrap();
    assert!(matches!(decision, Ok(Decision::Allow(_))), "{decision:?}");
    // What changed meanwhile was missed, so everything open is asked about again.
    assert_eq!(
        soon("a revisit", revisits.recv()).await.unwrap(),
        Revisit::Everything
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn c66_a_break_is_told_while_authorize_stays_away() {
    let service = Service::new(Scripted::allowing());
    let (remote, _lifecycle) = remote(&service, "");
    soon("a decision", remote.check(question("r")))
        .await
        .unwrap();
    let mut revisits = remote.revisits();
    service.down.store(true, Ordering::SeqCst);
    service.cut.send(()).unwrap();
    // Open requests have to find out that nothing vouches for them any more.
    assert_eq!(
        soon("a revisit", revisits.recv()).await.unwrap(),
        Revisit::Everything
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn c66_silence_is_an_error_within_the_deadline() {
    let service = Service::new(Scripted::allowing());
    service.silent.store(true, Ordering::SeqCst);
    let (remote, _lifecycle) = remote(&service, "grpc_client_timeout: 1s\n");
    let begin = Instant::now();
    let decision = soon("an error", remote.check(question("r"))).await;
    assert!(
        matches!(decision, Err(AuthorizeError::Unreachable { .. })),
        "{decision:?}"
    );
    // The default is ten.
    assert!(begin.elapsed() < Duration::from_secs(8));
    service.silent.store(false, Ordering::SeqCst);
    let recovered = Instant::now();
    while soon("a decision", remote.check(question("r")))
        .await
        .is_err()
    {
        assert!(
            recovered.elapsed() < Duration::from_secs(20),
            "recovered in time"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_configuration_is_asked_about_until_it_is_known() {
    let known = Arc::new(AtomicBool::new(false));
    let knows = Arc::clone(&known);
    let service = Service::new(Scripted::new(move |request| {
        if knows.load(Ordering::SeqCst) {
            Ok(allow("s1", &[]))
        } else {
            let CheckSubject::Route { id, .. } = &request.subject else {
                unreachable!()
            };
            Err(AuthorizeError::UnknownConfiguration { route: id.clone() })
        }
    }));
    let (remote, _lifecycle) = remote(&service, "");
    let asked = {
        let remote = Arc::clone(&remote);
        tokio::spawn(async move { remote.check(question("r")).await })
    };
    eventually(
        "it is asked twice",
        || service.script.questions(),
        |n| *n >= 2,
    )
    .await;
    known.store(true, Ordering::SeqCst);
    assert!(soon("a decision", asked).await.unwrap().is_ok());
    known.store(false, Ordering::SeqCst);
    let never = soon("an error", remote.check(question("r"))).await;
    assert!(
        matches!(never, Err(AuthorizeError::UnknownConfiguration { .. })),
        "{never:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_handed_on() {
    let service = Service::new(Scripted::allowing());
    let (remote, _lifecycle) = remote(&service, "");
    let mut revisits = remote.revisits();
    soon("a decision", remote.check(question("r")))
        .await
        .unwrap();
    service.script.revisit(Revisit::Session("s1".into()));
    assert_eq!(
        soon("it", revisits.recv()).await.unwrap(),
        Revisit::Session("s1".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_stream_is_made_up_for_by_another() {
    let service = Service::new(Scripted::allowing());
    service.first_silent.store(true, Ordering::SeqCst);
    let (remote, _lifecycle) = remote(&service, "");
    eventually(
        "both streams",
        || service.streams.load(Ordering::SeqCst),
        |n| *n >= 2,
    )
    .await;
    for _ in 0..5 {
        // The silent one alone would end in an error.
        let decision = soon("a decision", remote.check(question("r"))).await;
        assert!(decision.is_ok(), "{decision:?}");
    }
}

/// A stream is left for the next one only when that is open, and what another authorizer may know is asked about.
#[tokio::test(start_paused = true)]
async fn streams_are_followed_by_others_within_the_hour() {
    let service = Service::new(Scripted::new(|_| Ok(allow("s1", &[]))));
    let (remote, _lifecycle) = remote(&service, "");
    let mut revisits = remote.revisits();
    assert!(remote.check(question("a")).await.is_ok());
    let begun = tokio::time::Instant::now();
    let streams = || service.streams.load(Ordering::SeqCst);
    while streams() < 4 {
        // Never without an open stream.
        assert!(remote.check(question("a")).await.is_ok());
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(begun.elapsed() < Duration::from_secs(61 * 60));
    }
    assert!(begun.elapsed() > Duration::from_secs(29 * 60));
    for _ in 0..2 {
        assert_eq!(revisits.recv().await.unwrap(), Revisit::Everything);
    }
    assert!(remote.check(question("a")).await.is_ok());
}
