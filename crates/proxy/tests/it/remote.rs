//! Authorize across the network, by one stream: it breaks, it falls silent, it grows old.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use postern_common::authz::{AuthorizeError, CheckSubject, Decision, DenyKind, Revisit};
use postern_common::lifecycle::{DrainTiming, Lifecycle};
use postern_common::rpc::Transport;
use postern_common::rpc::stubs::authorize::decisions_server::DecisionsServer;
use postern_common::rpc::token::TokenKeys;
use postern_proxy::{Remote, Streams};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};

use crate::support::authorize::{Service, question};
use crate::support::authorizer::{Scripted, allow, deny};
use crate::support::{eventually, soon};

/// The streams of a core to `service`, which runs in this process.
fn remote(service: &Service, added: &str) -> Rc<Streams> {
    let routes = tonic::service::Routes::new(DecisionsServer::new(service.clone()));
    let config =
        crate::support::proxy::config(&format!("insecure_server: true\nroutes: []\n{added}"));
    let keys = TokenKeys::new(config.secrets.shared.clone());
    let (_, config) = watch::channel(config);
    let lifecycle = Lifecycle::new(DrainTiming::immediate());
    Remote::new(Transport::local(routes), keys, config).open(&lifecycle)
}

/// Plays a core.
async fn on_core<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_answered_in_batches() {
    on_core(async {
        let service = Service::new(Scripted::new(|request| match request.subject {
            CheckSubject::Route { ref id, .. } if id.as_str() == "no" => {
                Ok(deny(DenyKind::Forbidden))
            }
            _ => Ok(allow("s1", &[("x-a", "b")])),
        }));
        let remote = remote(&service, "");
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
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c02_a_broken_stream_is_opened_again_and_asked_again() {
    on_core(async {
        let service = Service::new(Scripted::allowing());
        let remote = remote(&service, "");
        soon("a decision", remote.check(question("r")))
            .await
            .unwrap();
        let mut revisits = remote.revisits();
        service.silent.store(true, Ordering::SeqCst);
        let before = service.batches.load(Ordering::SeqCst);
        let asked = {
            let remote = Rc::clone(&remote);
            spawn_local(async move { remote.check(question("r")).await })
        };
        eventually(
            "it is on its way",
            || service.batches.load(Ordering::SeqCst),
            |n| *n > before,
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
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c66_a_break_is_told_while_authorize_stays_away() {
    on_core(async {
        let service = Service::new(Scripted::allowing());
        let remote = remote(&service, "");
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
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c66_no_answer_is_an_error_and_then_it_goes_on() {
    on_core(async {
        let service = Service::new(Scripted::allowing());
        service.silent.store(true, Ordering::SeqCst);
        let remote = remote(&service, "grpc_client_timeout: 1s\n");
        let decision = soon("an error", remote.check(question("r"))).await;
        assert!(
            matches!(decision, Err(AuthorizeError::Unreachable { .. })),
            "{decision:?}"
        );
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
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_configuration_is_asked_about_until_it_is_known() {
    on_core(async {
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
        let remote = remote(&service, "");
        let asked = {
            let remote = Rc::clone(&remote);
            spawn_local(async move { remote.check(question("r")).await })
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
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_handed_on() {
    on_core(async {
        let service = Service::new(Scripted::allowing());
        let remote = remote(&service, "");
        let mut revisits = remote.revisits();
        soon("a decision", remote.check(question("r")))
            .await
            .unwrap();
        service.script.revisit(Revisit::Session("s1".into()));
        assert_eq!(
            soon("it", revisits.recv()).await.unwrap(),
            Revisit::Session("s1".into())
        );
    })
    .await;
}

/// A stream is left for the next one only when that is open, and what it had still to tell is asked about.
#[tokio::test(start_paused = true)]
async fn a_stream_is_followed_by_another_within_the_hour() {
    on_core(async {
        let service = Service::new(Scripted::new(|_| Ok(allow("s1", &[]))));
        let remote = remote(&service, "");
        let mut revisits = remote.revisits();
        assert!(remote.check(question("a")).await.is_ok());
        let begun = tokio::time::Instant::now();
        let streams = || service.streams.load(Ordering::SeqCst);
        while streams() < 2 {
            // Never without an open stream.
            assert!(remote.check(question("a")).await.is_ok());
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert!(begun.elapsed() < Duration::from_secs(61 * 60));
        }
        assert!(begun.elapsed() > Duration::from_secs(29 * 60));
        assert_eq!(revisits.recv().await.unwrap(), Revisit::Everything);
        assert!(remote.check(question("a")).await.is_ok());
    })
    .await;
}
