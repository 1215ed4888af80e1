//! An authorizer that answers by a script and remembers what it was asked.

use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{HeaderName, HeaderValue};
use postern_common::authz::{
    Allow, AuthorizeError, Authorizer, CheckRequest, Decision, Deny, DenyKind, Revisit,
    SessionSummary,
};
use tokio::sync::broadcast;

pub type Answer = Result<Decision, AuthorizeError>;
type Script = Box<dyn Fn(&CheckRequest) -> Answer + Send + Sync>;

pub struct Scripted {
    script: Mutex<Script>,
    pub asked: Mutex<Vec<Arc<CheckRequest>>>,
    revisits: broadcast::Sender<Revisit>,
}

impl Scripted {
    pub fn new(script: impl Fn(&CheckRequest) -> Answer + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            script: Mutex::new(Box::new(script)),
            asked: Mutex::default(),
            revisits: broadcast::channel(64).0,
        })
    }

    /// Everybody is `ann` with session `s1`, or who the header `x-test-session` says.
    pub fn allowing() -> Arc<Self> {
        Self::new(|request| {
            let session = request.headers.get("x-test-session");
            let session = session.map_or("s1", |value| value.to_str().unwrap());
            Ok(allow(session, &[]))
        })
    }

    pub fn now(&self, script: impl Fn(&CheckRequest) -> Answer + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    pub fn revisit(&self, revisit: Revisit) {
        self.revisits.send(revisit).unwrap();
    }

    pub fn questions(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    pub fn last(&self) -> Arc<CheckRequest> {
        Arc::clone(self.asked.lock().unwrap().last().unwrap())
    }

    pub fn answer(&self, request: &Arc<CheckRequest>) -> Answer {
        self.asked.lock().unwrap().push(Arc::clone(request));
        (self.script.lock().unwrap())(request)
    }
}

impl Authorizer for Scripted {
    fn check(&self, request: Arc<CheckRequest>) -> BoxFuture<'_, Answer> {
        let answer = self.answer(&request);
        async move { answer }.boxed()
    }

    fn revisits(&self) -> broadcast::Receiver<Revisit> {
        self.revisits.subscribe()
    }
}

pub fn allow(session: &str, set: &[(&'static str, &str)]) -> Decision {
    Decision::Allow(Box::new(Allow {
        set_headers: set
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect(),
        session: Some(Arc::new(SessionSummary {
            session_id: session.to_owned(),
            user_id: "ann".to_owned(),
            email: "ann@corp.test".to_owned(),
        })),
        ..Allow::default()
    }))
}

pub fn deny(kind: DenyKind) -> Decision {
    Decision::Deny(Box::new(Deny {
        kind,
        message: "You may not.".to_owned(),
        reasons: vec!["email-unauthorized".to_owned()],
        headers: Vec::new(),
        details: Some("traces".to_owned()),
    }))
}
