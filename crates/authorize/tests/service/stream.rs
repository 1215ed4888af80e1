//! The decision stream, as a proxy uses it.

use std::sync::Arc;
use std::time::Duration;

use postern_common::authz::{CheckRequest, CheckSubject, Decision, Revisit, wire};
use postern_common::config::{RouteChecksum, RouteId};
use postern_common::rpc::Transport;
use postern_common::rpc::stubs::authorize as proto;
use postern_common::rpc::stubs::authorize::decisions_client::DecisionsClient;
use postern_common::rpc::stubs::databroker::{PutRequest, Record};
use postern_common::rpc::stubs::ext_authz::authorization_client::AuthorizationClient;
use postern_common::rpc::token::TokenKeys;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::world::{SESSION, World};

const ENG: &str = "- {from: https://app.corp.test, to: http://up, \
    policy: [{allow: {and: [{claim/groups: eng}]}}]}\n";

const OTHER: &str =
    "- {from: https://other.corp.test, to: http://up, allow_any_authenticated_user: true}\n";

struct Proxy {
    questions: mpsc::Sender<proto::QuestionBatch>,
    answers: Streaming<proto::AnswerBatch>,
}

impl Proxy {
    async fn connect(world: &World) -> Self {
        let keys = TokenKeys::new(world.config.borrow().secrets.shared.clone());
        let transport = Transport::local(world.routes.clone());
        let mut client = DecisionsClient::with_interceptor(transport, keys.for_client());
        let (questions, stream) = mpsc::channel(8);
        let answers = client
            .decide(ReceiverStream::new(stream))
            .await
            .unwrap()
            .into_inner();
        Self { questions, answers }
    }

    async fn ask(&self, requests: &[CheckRequest]) {
        let questions = (1..)
            .zip(requests)
            .map(|(n, request)| wire::question(n, request));
        let batch = proto::QuestionBatch {
            hello: Some(proto::Hello {
                version: "test".into(),
                config_hash: "abc".into(),
                features: Vec::new(),
            }),
            questions: questions.collect(),
        };
        self.questions.send(batch).await.unwrap();
    }

    async fn next(&mut self) -> proto::AnswerBatch {
        tokio::time::timeout(Duration::from_secs(5), self.answers.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    }

    /// Reads on to the message that tells of a change.
    async fn told(&mut self, expected: &Revisit) -> proto::AnswerBatch {
        loop {
            let batch = self.next().await;
            let mut revisits = batch.revisits.iter().cloned().map(wire::read_revisit);
            if revisits.any(|revisit| revisit == *expected) {
                return batch;
            }
        }
    }

    /// The answers to so many questions, by number.
    async fn answers(&mut self, count: usize) -> Vec<proto::Answer> {
        let mut answers = Vec::new();
        while answers.len() < count {
            answers.extend(self.next().await.answers);
        }
        answers.sort_by_key(|answer| answer.number);
        answers
    }
}

#[tokio::test]
async fn many_questions_and_a_revisit() {
    let world = World::new(ENG).await;
    let (ann, bob) = (
        world.sign_in("ann", &["eng"]).await,
        world.sign_in("bob", &[]).await,
    );
    let mut proxy = Proxy::connect(&world).await;
    let hello = proxy.next().await.hello.unwrap();
    assert_eq!(
        hello.config_hash,
        format!("{:016x}", world.config.borrow().checksum)
    );
    assert_eq!(hello.version, env!("CARGO_PKG_VERSION"));

    let unknown = CheckRequest {
        subject: CheckSubject::Route {
            id: RouteId("unknown".into()),
            checksum: RouteChecksum(1),
        },
        ..world.request(&[])
    };
    let mut requests = vec![
        world.request(&[("cookie", &ann)]),
        world.request(&[("cookie", &bob)]),
        world.request(&[]),
        unknown,
    ];
    requests.extend((0..200).map(|_| world.request(&[("cookie", &ann)])));
    proxy.ask(&requests).await;
    let answers = proxy.answers(requests.len()).await;
    let decided: Vec<_> = answers
        .into_iter()
        .zip(&requests)
        .map(|(answer, request)| wire::decision(answer, &request.subject).unwrap())
        .collect();
    assert!(matches!(decided[0], Ok(Decision::Allow(_))));
    assert!(matches!(decided[1], Ok(Decision::Deny(_))));
    assert!(matches!(decided[2], Ok(Decision::Deny(_))));
    assert!(decided[3].is_err());
    assert!(
        decided[4..]
            .iter()
            .all(|decided| matches!(decided, Ok(Decision::Allow(_))))
    );

    world.delete(SESSION, "session-ann").await;
    proxy.told(&Revisit::Session("session-ann".into())).await;

    // A new configuration: a new hello, and everything is asked about again.
    world
        .config
        .send_replace(Arc::clone(&crate::world::config(OTHER)));
    let batch = proxy.told(&Revisit::Everything).await;
    assert!(batch.hello.is_some());
}

#[tokio::test]
async fn many_changes_do_not_starve_questions() {
    const CHANGES: usize = 3000;
    let world = World::new(ENG).await;
    let ann = world.sign_in("ann", &["eng"]).await;
    world.until_session("session-ann").await;
    let mut proxy = Proxy::connect(&world).await;
    proxy.next().await.hello.unwrap();
    let changed = Record {
        r#type: SESSION.to_owned(),
        deleted_at: Some(prost_types::Timestamp::default()),
        ..Record::default()
    };
    for from in (0..CHANGES).step_by(500) {
        let records = (from..from + 500).map(|n| Record {
            id: format!("session-{n}"),
            ..changed.clone()
        });
        let request = PutRequest {
            records: records.collect(),
        };
        world.databroker().put(request).await.unwrap();
    }
    proxy.ask(&[world.request(&[("cookie", &ann)])]).await;
    let (mut told, mut messages, mut answered) = (0, 0, false);
    while told < CHANGES || !answered {
        let batch = proxy.next().await;
        messages += 1;
        told += match batch.revisits.as_slice() {
            [one] if wire::read_revisit(one.clone()) == Revisit::Everything => CHANGES,
            revisits => revisits.len(),
        };
        answered |= !batch.answers.is_empty();
    }
    assert!(messages < CHANGES / 4, "{messages} messages");
}

#[tokio::test]
async fn one_slow_question_does_not_hold_up_others() {
    let world = World::new(ENG).await;
    let ann = world.sign_in("ann", &["eng"]).await;
    world.set_away(true);
    world.until_allowed(&[("cookie", &ann)]).await;
    let nobody = world.encode(&postern_common::crypto::handle::Handle {
        id: "unknown".into(),
        ..Default::default()
    });
    let nobody = format!("_pomerium={nobody}");
    let mut proxy = Proxy::connect(&world).await;
    proxy
        .ask(&[
            world.request(&[("cookie", &nobody)]),
            world.request(&[("cookie", &ann)]),
        ])
        .await;
    let answers = proxy.answers(2).await;
    assert!(matches!(
        answers[0].outcome,
        Some(proto::answer::Outcome::Unavailable(_))
    ));
    assert!(matches!(
        answers[1].outcome,
        Some(proto::answer::Outcome::Allow(_))
    ));
}

#[tokio::test]
async fn s17_nobody_asks_without_a_token() {
    let world = World::new(ENG).await;
    let transport = || Transport::local(world.routes.clone());
    let refused = DecisionsClient::new(transport())
        .decide(tokio_stream::empty())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let refused = AuthorizationClient::new(transport())
        .check(postern_common::rpc::stubs::ext_authz::CheckRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    // A person's handle, signed with the same key, is no service's token.
    let other = TokenKeys::new(vec![postern_common::crypto::keys::SecretKey::random()]);
    let refused = DecisionsClient::with_interceptor(transport(), other.for_client())
        .decide(tokio_stream::empty())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}
