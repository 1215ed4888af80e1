//! People who are signed in without having gone to a provider: their records, written to the
//! databroker as authenticate writes them, and their cookies.

use std::ops::Range;
use std::time::Duration;

use futures::StreamExt;
use postern_common::crypto::handle::Handle;
use postern_common::rpc::stubs::databroker::Record;
use postern_common::rpc::stubs::session::{IdToken, OAuthToken, Session};
use postern_common::rpc::stubs::user::User;
use postern_tests::cluster::Cluster;
use postern_tests::databroker::{Databroker, SESSIONS, shared_secret};
use postern_tests::wait;
use prost::Message;

const USERS: &str = "type.googleapis.com/user.User";

/// Records in one `Put`.
const BATCH: usize = 100;

/// Calls under way at a time.
const CALLS: usize = 4;

const PATIENCE: Duration = Duration::from_secs(120);

fn record(kind: &str, id: String, message: &impl Message) -> Record {
    Record {
        r#type: kind.to_owned(),
        id,
        data: Some(prost_types::Any {
            type_url: kind.to_owned(),
            value: message.encode_to_vec(),
        }),
        ..Record::default()
    }
}

fn list(values: &[&str]) -> prost_types::ListValue {
    let text = |text: &&str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue((*text).to_owned())),
    };
    prost_types::ListValue {
        values: values.iter().map(text).collect(),
    }
}

/// When nobody measures any more.
const FAR: prost_types::Timestamp = prost_types::Timestamp {
    seconds: 4_000_000_000,
    nanos: 0,
};

/// Of about the size that sessions of an OpenID provider have: eight claims, five groups, tokens.
pub fn session(id: &str, user: &str, idp_id: &str) -> Record {
    let email = format!("{user}@corp.test");
    let claims: [(&str, &[&str]); 8] = [
        ("iss", &["https://idp.corp.test"]),
        ("aud", &["postern"]),
        ("sub", &[user]),
        ("email", &[&email]),
        ("email_verified", &["true"]),
        ("name", &["Somebody of some department"]),
        (
            "groups",
            &["eng", "staff", "berlin", "on-call", "everybody"],
        ),
        ("preferred_username", &[user]),
    ];
    let message = Session {
        id: id.to_owned(),
        user_id: user.to_owned(),
        idp_id: idp_id.to_owned(),
        expires_at: Some(FAR),
        id_token: Some(IdToken {
            issuer: "https://idp.corp.test".to_owned(),
            subject: user.to_owned(),
            raw: "t".repeat(800),
            ..IdToken::default()
        }),
        oauth_token: Some(OAuthToken {
            access_token: "a".repeat(64),
            refresh_token: "r".repeat(64),
            token_type: "bearer".to_owned(),
            expires_at: Some(FAR),
        }),
        claims: claims
            .map(|(name, values)| (name.to_owned(), list(values)))
            .into(),
        // Else the identity manager asks the provider about each of them, hundreds a second, and ends them.
        refresh_disabled: true,
        ..Session::default()
    };
    record(SESSIONS, id.to_owned(), &message)
}

fn user(id: &str) -> Record {
    let message = User {
        id: id.to_owned(),
        email: format!("{id}@corp.test"),
        name: "Somebody of some department".to_owned(),
        ..User::default()
    };
    record(USERS, id.to_owned(), &message)
}

/// Whoever signed in for real: what all cookies are made after.
#[derive(Debug, Clone)]
pub struct Pattern(Handle);

impl Pattern {
    /// From a `Cookie` header.
    pub fn of(cookie: &str) -> Self {
        let token = cookie.strip_prefix("_pomerium=").expect("our cookie");
        Self(Handle::decode(&[shared_secret()], token).expect("a handle of ours"))
    }

    pub fn idp_id(&self) -> &str {
        &self.0.idp_id
    }

    /// `Cookie` of the session `id` of `user`, on any host.
    pub fn cookie(&self, id: &str, user: &str) -> String {
        let handle = Handle {
            id: id.to_owned(),
            subject: user.to_owned(),
            purpose: None,
            record_version: 0,
            server_version: 0,
            ..self.0.clone()
        };
        format!("_pomerium={}", handle.encode(&shared_secret()))
    }

    /// The same person on any host.
    pub fn everywhere(&self) -> String {
        self.cookie(&self.0.id, &self.0.subject)
    }

    /// `Cookie` of the session of this number that [`write()`] wrote.
    pub fn of_person(&self, number: usize) -> String {
        self.cookie(&format!("session-{number}"), &format!("user-{number}"))
    }
}

/// Writes sessions of these numbers, each with a user of its own; the highest version that they got.
pub async fn write(databroker: &Databroker, idp_id: &str, numbers: Range<usize>) -> u64 {
    let users = numbers.end;
    write_of(databroker, idp_id, numbers, users).await
}

/// The same when only so many people have all these sessions.
pub async fn write_of(
    databroker: &Databroker,
    idp_id: &str,
    numbers: Range<usize>,
    users: usize,
) -> u64 {
    let starts = numbers.clone().step_by(BATCH);
    let calls = starts.map(|start| {
        let (mut databroker, idp_id) = (databroker.clone(), idp_id.to_owned());
        let batch = start..numbers.end.min(start + BATCH);
        async move {
            let new = batch.clone().filter(|number| *number < users);
            let new = new.map(|number| user(&format!("user-{number}")));
            let sessions = batch.clone().map(|number| {
                session(
                    &format!("session-{number}"),
                    &format!("user-{}", number % users),
                    &idp_id,
                )
            });
            let records = new.chain(sessions).collect();
            databroker.put_all(records).await.expect("it is written")
        }
    });
    futures::stream::iter(calls)
        .buffer_unordered(CALLS)
        .fold(0, async |highest: u64, version| highest.max(version))
        .await
}

/// Waits until the copy of an authorize is at a version.
pub async fn caught_up(cluster: &Cluster, authorize: &str, version: u64) {
    let url = cluster.health(authorize, "/status");
    let nobody = cluster.program();
    wait::until("authorize to have caught up", PATIENCE, async || {
        let status = nobody.try_get(&url).await?.json();
        let copy = &status["statuses"]["authorize.data"]["attributes"]["record_version"];
        match copy.as_str().and_then(|text| text.parse::<u64>().ok()) {
            Some(known) if known >= version => Ok(()),
            _ => Err(copy.to_string()),
        }
    })
    .await;
}
