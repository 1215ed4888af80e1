//! That nothing is skipped to be fast: who may pass does, with an assertion that holds; who may not
//! is told so, also at full load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use postern_tests::cluster::Cluster;
use serde_json::Value;

use crate::client::Connector;
use crate::subject::Subject;

/// Between two questions of somebody who may not pass.
const PAUSE: Duration = Duration::from_millis(50);

/// Panics unless the subject answers with the upstream's 1 KiB.
pub fn answers(connector: &Connector, subject: &Subject) {
    let head = subject.request("GET", "/") + "\r\n";
    let answer = connector
        .connect(subject.port, &subject.authority)
        .and_then(|mut connection| connection.body(&head))
        .unwrap_or_else(|error| panic!("{}: {error}", subject.who));
    assert!(
        answer.0 == 200 && answer.1.len() == 1024,
        "{}: {} {}",
        subject.who,
        answer.0,
        String::from_utf8_lossy(&answer.1)
    );
}

/// Whether the assertion that reaches the upstream is about ann, for this host, and signed with a
/// key that Postern publishes.
pub async fn assertion_holds(connector: &Connector, subject: &Subject, cluster: &Cluster) -> bool {
    let keys = cluster
        .program()
        .get(&cluster.url("app", "/.well-known/pomerium/jwks.json"))
        .await;
    let keys: JwkSet = serde_json::from_slice(&keys.body).expect("a key set");
    let head = subject.request("GET", "/assertion") + "\r\n";
    let Ok((200, token)) = connector
        .connect(subject.port, &subject.authority)
        .and_then(|mut connection| connection.body(&head))
    else {
        return false;
    };
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_audience(&["app.corp.test"]);
    let claims = keys.keys.iter().find_map(|key| {
        let key = DecodingKey::from_jwk(key).ok()?;
        jsonwebtoken::decode::<Value>(&token, &key, &validation).ok()
    });
    claims.is_some_and(|token| token.claims["email"] == "ann@corp.test")
}

/// Asks again and again for somebody who may not pass, until it is dropped.
pub struct Refused {
    stop: Arc<AtomicBool>,
    asking: thread::JoinHandle<(u64, u64)>,
}

impl Refused {
    /// `None` where everybody may pass.
    pub fn ask(connector: &Connector, subject: &Subject) -> Option<Self> {
        let refused = Subject {
            cookie: subject.refused.clone()?,
            ..subject.clone()
        };
        let mut connection = connector
            .connect(refused.port, &refused.authority)
            .expect("a connection");
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let asking = thread::spawn(move || {
            let head = refused.request("GET", "/") + "\r\n";
            let (mut asked, mut wrong) = (0, 0);
            while !until.load(Ordering::Relaxed) {
                asked += 1;
                let answer = connection.exchange(&head);
                wrong += u64::from(!answer.is_ok_and(|answer| answer.status == 403));
                thread::sleep(PAUSE);
            }
            (asked, wrong)
        });
        Some(Self { stop, asking })
    }

    /// How often the answer was not 403.
    pub fn wrong(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let (asked, wrong) = self
            .asking
            .join()
            .expect("it asks until it is told to stop");
        assert!(asked > 0, "nobody was refused");
        wrong
    }
}
