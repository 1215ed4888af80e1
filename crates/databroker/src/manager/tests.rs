//! The manager with a real databroker in memory, a provider inside the test, and a clock that
//! runs as fast as nothing happens: hours take seconds.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use futures::FutureExt as _;
use http::{Request, Response};
use jiff::SignedDuration;
use postern_common::config::ProviderKind;
use postern_common::crypto::keys::{SecretKey, SigningKeys};
use postern_common::rpc::stubs::databroker::{GetRequest, PutRequest, Record};
use postern_common::rpc::stubs::session::{IdToken, OAuthToken, Session};
use postern_common::rpc::stubs::user::User;
use postern_common::telemetry::metrics::Metrics;
use postern_identity::claims::{flatten, to_list_values};
use postern_identity::{HttpClient, HttpError, ProviderSettings};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::intent::NoIntent;
use super::record::{SESSION, USER, any};
use super::*;
use crate::storage::local::Local;
use crate::storage::{Storage, timestamp};
use crate::tidy::Housekeeping;

const ISSUER: &str = "https://idp.corp.test";
const BEGIN: i64 = 1_767_225_600;
/// Of a session, in seconds.
const LIFETIME: i64 = 9000;
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A provider that hands out tokens of five minutes.
struct Idp {
    /// Answers of token endpoint and user info that take the place of the honest ones.
    token_instead: Option<(u16, String)>,
    info_instead: Option<(u16, String)>,
    down: bool,
    delay: Duration,
    /// Each refresh token works once; a second use ends the family.
    rotates: bool,
    spent: HashSet<String>,
    family_revoked: bool,
    /// Refresh tokens as they came, and at what second.
    refreshed: Vec<(String, i64)>,
    info_asked: usize,
    revoked: Vec<String>,
    /// Null: user info leaves them out.
    groups: Value,
    /// Claims of a new ID token at each refresh.
    id_token: Option<Value>,
}

#[derive(Clone)]
struct World {
    idp: Arc<Mutex<Idp>>,
    signing: Arc<SigningKeys>,
    begin: Instant,
    storage: Arc<dyn Storage>,
    keys: TokenKeys,
    stop: CancellationToken,
    client: Client,
    databroker: Databroker,
}

impl World {
    fn new() -> Self {
        let storage: Arc<dyn Storage> = Arc::new(Local::in_memory().unwrap());
        let keys = TokenKeys::new(vec![SecretKey::random()]);
        let stop = CancellationToken::new();
        let databroker =
            Databroker::start(Arc::clone(&storage), Housekeeping::default(), stop.clone());
        let transport = Transport::local(databroker.routes(keys.clone()));
        let idp = Idp {
            token_instead: None,
            info_instead: None,
            down: false,
            delay: Duration::ZERO,
            rotates: false,
            spent: HashSet::new(),
            family_revoked: false,
            refreshed: Vec::new(),
            info_asked: 0,
            revoked: Vec::new(),
            groups: json!(["eng", "ops"]),
            id_token: None,
        };
        Self {
            idp: Arc::new(Mutex::new(idp)),
            signing: Arc::new(SigningKeys::derived_from(&SecretKey::random()).unwrap()),
            begin: Instant::now(),
            client: DataBrokerServiceClient::with_interceptor(transport, keys.for_client()),
            storage,
            keys,
            stop,
            databroker,
        }
    }

    fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.begin.elapsed()).unwrap();
        Timestamp::from_second(BEGIN).unwrap() + passed
    }

    fn set(&self, change: impl FnOnce(&mut Idp)) {
        change(&mut self.idp.lock().unwrap());
    }

    fn refreshes(&self) -> usize {
        self.idp.lock().unwrap().refreshed.len()
    }

    fn http(&self) -> HttpClient {
        let world = self.clone();
        HttpClient::new(move |request| {
            let world = world.clone();
            async move {
                let (down, delay) = {
                    let idp = world.idp.lock().unwrap();
                    (idp.down, idp.delay)
                };
                if down {
                    return Err(HttpError::Transport("connection refused".into()));
                }
                let answer = world.answer(&request);
                if request.uri().path() == "/token" {
                    sleep(delay).await;
                }
                Ok(answer)
            }
            .boxed()
        })
    }

    fn answer(&self, request: &Request<Vec<u8>>) -> Response<Vec<u8>> {
        let now = self.now().as_second();
        let mut idp = self.idp.lock().unwrap();
        let (status, body) = match request.uri().path() {
            "/.well-known/openid-configuration" => (
                200,
                json!({
                    "issuer": ISSUER, "jwks_uri": format!("{ISSUER}/jwks"),
                    "authorization_endpoint": format!("{ISSUER}/authorize"),
                    "token_endpoint": format!("{ISSUER}/token"),
                    "userinfo_endpoint": format!("{ISSUER}/userinfo"),
                    "revocation_endpoint": format!("{ISSUER}/revoke"),
                    "id_token_signing_alg_values_supported": ["ES256"],
                    "token_endpoint_auth_methods_supported": ["client_secret_basic"],
                })
                .to_string(),
            ),
            "/jwks" => (200, self.signing.jwks().body.clone()),
            "/token" => idp.token(&form(request), now, &self.signing),
            "/userinfo" => {
                idp.info_asked += 1;
                idp.info_instead.clone().unwrap_or_else(|| {
                    let mut info = json!({"sub": "ann", "email": "ann@corp.test"});
                    if !idp.groups.is_null() {
                        info["groups"] = idp.groups.clone();
                    }
                    (200, info.to_string())
                })
            }
            "/revoke" => {
                idp.revoked.push(form(request)["token"].clone());
                (200, String::new())
            }
            _ => (404, String::new()),
        };
        let unauthorized = status == 401;
        let mut response = Response::builder().status(status);
        if unauthorized {
            response = response.header("www-authenticate", "Bearer error=\"invalid_token\"");
        }
        response.body(body.into_bytes()).unwrap()
    }

    fn providers(&self) -> Arc<Providers> {
        let settings = ProviderSettings {
            id: "idp".into(),
            kind: ProviderKind::Oidc,
            url: Some(ISSUER.into()),
            client_id: "client".into(),
            client_secret: "secret".into(),
            scopes: Vec::new(),
            request_params: Vec::new(),
        };
        Arc::new(Providers::new([settings], &self.http(), None))
    }

    fn clock(&self) -> Now {
        let world = self.clone();
        Arc::new(move || world.now())
    }

    fn worker(&self) -> Worker {
        Worker {
            client: self.client.clone(),
            databroker: self.databroker.clone(),
            providers: watch::channel(self.providers()).1,
            now: self.clock(),
        }
    }

    fn start_manager(&self) {
        self.start_manager_on(self.databroker.clone());
    }

    /// A manager on a databroker of its own over the same storage.
    fn start_another_manager(&self) {
        let storage = Arc::clone(&self.storage);
        let stop = self.stop.child_token();
        self.start_manager_on(Databroker::start(storage, Housekeeping::default(), stop));
    }

    fn start_manager_on(&self, databroker: Databroker) {
        let manager = Manager {
            databroker,
            keys: self.keys.clone(),
            providers: watch::channel(self.providers()).1,
            id_token_expiry: IdTokenExpiry::Counts,
            now: self.clock(),
            metrics: ManagerMetrics::new(&Metrics::default(), "test"),
        };
        tokio::spawn(manager.run(self.stop.child_token()));
    }

    fn session(&self) -> Session {
        let now = self.now();
        let after = |seconds| Some(timestamp(now + SignedDuration::from_secs(seconds)));
        let payload = json!({"iss": ISSUER, "sub": "ann", "name": "Ann", "aud": "client"});
        let raw = format!("e30.{}.sig", base64(payload.to_string()));
        let claims = json!({"sub": "ann", "name": "Ann", "email": "ann@corp.test", "groups": ["eng", "ops"]});
        Session {
            id: "s1".into(),
            user_id: "ann".into(),
            idp_id: "idp".into(),
            issued_at: after(0),
            expires_at: after(LIFETIME),
            oauth_token: Some(OAuthToken {
                access_token: "access".into(),
                token_type: "Bearer".into(),
                refresh_token: "refresh-0".into(),
                expires_at: after(300),
            }),
            id_token: Some(IdToken {
                issuer: ISSUER.into(),
                subject: "ann".into(),
                issued_at: after(0),
                expires_at: after(3600),
                raw,
            }),
            claims: to_list_values(&flatten(claims.as_object().unwrap())),
            ..Session::default()
        }
    }

    async fn put(&self, kind: &str, id: &str, message: &impl prost::Message) {
        let record = Record {
            r#type: kind.into(),
            id: id.into(),
            data: Some(any(kind, message)),
            ..Record::default()
        };
        self.client
            .clone()
            .put(PutRequest {
                records: vec![record],
            })
            .await
            .unwrap();
    }

    async fn sign_in(&self) {
        self.put(SESSION, "s1", &self.session()).await;
        let user = User {
            id: "ann".into(),
            name: "Ann".into(),
            email: "ann@corp.test".into(),
            device_credential_ids: vec!["device".into()],
            claims: self.session().claims,
            ..User::default()
        };
        self.put(USER, "ann", &user).await;
    }

    async fn record(&self, kind: &str, id: &str) -> Option<Record> {
        let request = GetRequest {
            r#type: kind.into(),
            id: id.into(),
        };
        self.client
            .clone()
            .get(request)
            .await
            .ok()?
            .into_inner()
            .record
    }

    async fn stored(&self) -> Option<Session> {
        record::session(&self.record(SESSION, "s1").await?)
    }

    async fn user(&self) -> User {
        let data = self.record(USER, "ann").await.unwrap().data.unwrap();
        User::decode(data.value.as_slice()).unwrap()
    }
}

impl Idp {
    fn token(
        &mut self,
        form: &HashMap<String, String>,
        now: i64,
        signing: &SigningKeys,
    ) -> (u16, String) {
        let token = form["refresh_token"].clone();
        self.refreshed.push((token.clone(), now));
        if let Some(instead) = &self.token_instead {
            return instead.clone();
        }
        if self.rotates && !self.spent.insert(token) {
            self.family_revoked = true;
        }
        if self.family_revoked {
            return (400, json!({"error": "invalid_grant"}).to_string());
        }
        let mut body = json!({"access_token": format!("access-{now}"), "expires_in": 300});
        if self.rotates {
            body["refresh_token"] = json!(format!("refresh-{}", self.spent.len()));
        }
        if let Some(claims) = &self.id_token {
            let mut claims = claims.clone();
            claims["iat"] = json!(now);
            claims["exp"] = json!(now + 3600);
            body["id_token"] = json!(signing.sign(&claims).unwrap());
        }
        (200, body.to_string())
    }
}

fn form(request: &Request<Vec<u8>>) -> HashMap<String, String> {
    url::form_urlencoded::parse(request.body())
        .into_owned()
        .collect()
}

fn base64(text: String) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
}

#[tokio::test(start_paused = true)]
async fn c19_neither_id_token_nor_refresh_token_at_refresh() {
    let world = World::new();
    world.sign_in().await;
    world.start_manager();
    sleep(2 * HOUR).await;

    let before = world.session();
    let session = world.stored().await.expect("it lives");
    let count = world.refreshes();
    assert!((25..=32).contains(&count), "{count} refreshes in two hours");
    assert_eq!(session.oauth_token.unwrap().refresh_token, "refresh-0");
    assert_eq!(session.id_token.unwrap().raw, before.id_token.unwrap().raw);
    let times: Vec<i64> = world
        .idp
        .lock()
        .unwrap()
        .refreshed
        .iter()
        .map(|(_, t)| *t)
        .collect();
    let rests: Vec<i64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        rests.iter().filter(|rest| **rest < 200).count() <= 1,
        "{rests:?}"
    );

    sleep(29 * MINUTE).await;
    assert!(world.stored().await.is_some(), "until cookie_expire");
    sleep(2 * MINUTE).await;
    assert!(world.stored().await.is_none(), "and not longer");
}

#[tokio::test(start_paused = true)]
async fn c18_rotating_tokens_a_slow_provider_two_managers() {
    let world = World::new();
    world.set(|idp| (idp.rotates, idp.delay) = (true, Duration::from_secs(40)));
    world.sign_in().await;
    world.start_manager();
    world.start_another_manager();
    sleep(HOUR).await;

    let session = world.stored().await.expect("it lives");
    let idp = world.idp.lock().unwrap();
    assert!(!idp.family_revoked);
    let tokens: HashSet<_> = idp.refreshed.iter().map(|(token, _)| token).collect();
    assert_eq!(
        tokens.len(),
        idp.refreshed.len(),
        "each token was seen once"
    );
    assert!(idp.refreshed.len() >= 12, "{}", idp.refreshed.len());
    let newest = format!("refresh-{}", idp.spent.len());
    assert_eq!(session.oauth_token.unwrap().refresh_token, newest);
}

/// The holder dies in the middle of a refresh: the next one waits until that can't come back.
#[tokio::test(start_paused = true)]
async fn c18_nobody_refreshes_what_another_may_be_refreshing() {
    let world = World::new();
    world.sign_in().await;
    let (first, second) = (world.worker(), world.worker());
    let intent = first.claim("s1").await.unwrap();
    let Err(NoIntent::Taken { until }) = second.claim("s1").await else {
        panic!("taken twice")
    };
    assert_eq!(until, world.now() + SignedDuration::from_secs(70));
    assert_eq!(
        second.run("s1", schedule::Task::Refresh).await,
        job::Outcome::Later(until)
    );
    assert_eq!(world.refreshes(), 0);

    sleep(Duration::from_secs(71)).await;
    let taken_over = second
        .claim("s1")
        .await
        .expect("the first one has had its time");
    // The first one wakes up: it can't give back what is no longer its own.
    first.finish(intent).await;
    assert!(matches!(
        first.claim("s1").await,
        Err(NoIntent::Taken { .. })
    ));
    second.finish(taken_over).await;
    assert!(first.claim("s1").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn w6_w7_an_outage_costs_nobody_a_session() {
    type Outage = fn(&mut Idp);
    let outages: [Outage; 6] = [
        |idp| idp.down = true,
        |idp| idp.token_instead = Some((503, "{\"error\":\"invalid_grant\"}".into())),
        |idp| idp.token_instead = Some((429, String::new())),
        |idp| idp.token_instead = Some((200, "<html>sign in to the hotel</html>".into())),
        |idp| idp.token_instead = Some((401, "{\"error\":\"invalid_client\"}".into())),
        |idp| idp.delay = Duration::from_secs(600),
    ];
    let all = outages.map(|outage| async move {
        let world = World::new();
        world.sign_in().await;
        world.start_manager();
        sleep(MINUTE).await;
        world.set(outage);
        sleep(40 * MINUTE).await;
        assert!(world.stored().await.is_some());
        let tried = world.refreshes();
        assert!(tried <= 16, "{tried} attempts: pauses must grow");

        world.set(|idp| {
            (idp.down, idp.token_instead, idp.delay) = (false, None, Duration::ZERO);
        });
        sleep(8 * MINUTE).await;
        let token = world.stored().await.unwrap().oauth_token.unwrap();
        assert!(
            token.access_token.starts_with("access-"),
            "refreshed by itself"
        );
    });
    futures::future::join_all(all).await;
}

#[tokio::test(start_paused = true)]
async fn a_definite_refusal_ends_the_session() {
    let world = World::new();
    world.sign_in().await;
    world.set(|idp| idp.token_instead = Some((400, json!({"error": "invalid_grant"}).to_string())));
    world.start_manager();
    sleep(3 * MINUTE).await;
    assert!(world.stored().await.is_some());
    sleep(2 * MINUTE).await;
    assert!(world.stored().await.is_none());
    assert_eq!(world.refreshes(), 1);
}

/// Read again first: the token that was refused is not the session's any more.
#[tokio::test(start_paused = true)]
async fn a_refusal_of_an_old_token_ends_nothing() {
    let world = World::new();
    world.sign_in().await;
    world.set(|idp| {
        idp.token_instead = Some((400, json!({"error": "invalid_grant"}).to_string()));
        idp.delay = Duration::from_secs(5);
    });
    let worker = world.worker();
    let refresh = worker.run("s1", schedule::Task::Refresh);
    let meanwhile = async {
        sleep(Duration::from_secs(1)).await;
        let mut session = world.session();
        session.oauth_token.as_mut().unwrap().refresh_token = "newer".into();
        world.put(SESSION, "s1", &session).await;
    };
    let (outcome, ()) = tokio::join!(refresh, meanwhile);
    assert!(matches!(outcome, job::Outcome::Done { .. }), "{outcome:?}");
    assert_eq!(
        world
            .stored()
            .await
            .unwrap()
            .oauth_token
            .unwrap()
            .refresh_token,
        "newer"
    );
}

/// Signed out while the refresh was under way: it stays signed out, and the new tokens are taken back.
#[tokio::test(start_paused = true)]
async fn a_refresh_does_not_bring_back_a_session() {
    let world = World::new();
    world.sign_in().await;
    world.set(|idp| (idp.rotates, idp.delay) = (true, Duration::from_secs(5)));
    let worker = world.worker();
    let refresh = worker.run("s1", schedule::Task::Refresh);
    let meanwhile = async {
        sleep(Duration::from_secs(1)).await;
        let record = Record {
            deleted_at: Some(timestamp(world.now())),
            ..world.record(SESSION, "s1").await.unwrap()
        };
        world
            .client
            .clone()
            .put(PutRequest {
                records: vec![record],
            })
            .await
            .unwrap();
    };
    let (outcome, ()) = tokio::join!(refresh, meanwhile);
    assert_eq!(outcome, job::Outcome::Gone);
    assert!(world.stored().await.is_none());
    assert_eq!(
        world.idp.lock().unwrap().revoked,
        ["refresh-1".to_owned(), format!("access-{BEGIN}")]
    );
}

#[tokio::test(start_paused = true)]
async fn c28_groups_taken_away_are_gone_after_the_next_user_info() {
    let world = World::new();
    world.sign_in().await;
    let mut session = world.session();
    session.oauth_token.as_mut().unwrap().expires_at =
        Some(timestamp(world.now() + SignedDuration::from_hours(10)));
    session.id_token.as_mut().unwrap().expires_at =
        session.oauth_token.as_ref().unwrap().expires_at;
    world.put(SESSION, "s1", &session).await;
    world.start_manager();
    world.set(|idp| idp.groups = json!(["ops"]));
    sleep(11 * MINUTE).await;

    let groups = |claims: &HashMap<String, prost_types::ListValue>| claims["groups"].values.len();
    let stored = world.stored().await.unwrap();
    assert_eq!(groups(&stored.claims), 1);
    assert_eq!(
        stored.claims["name"].values.len(),
        1,
        "the ID token's claims stay"
    );
    let user = world.user().await;
    assert_eq!(groups(&user.claims), 1);
    assert_eq!(
        user.device_credential_ids,
        ["device"],
        "only claims are touched"
    );
    assert_eq!(world.refreshes(), 0);

    // Nothing changed, nothing is written.
    let version = world.record(SESSION, "s1").await.unwrap().version;
    sleep(HOUR).await;
    assert!((5..=8).contains(&world.idp.lock().unwrap().info_asked));
    assert_eq!(world.record(SESSION, "s1").await.unwrap().version, version);
}

/// The last group is taken, and user info has no `groups` any more. The ID token of the sign-in
/// still does, and the refreshes bring no other.
#[tokio::test(start_paused = true)]
async fn c28_groups_that_user_info_leaves_out_are_gone() {
    let world = World::new();
    world.sign_in().await;
    let mut session = world.session();
    let payload = json!({"iss": ISSUER, "sub": "ann", "name": "Ann", "groups": ["eng", "ops"]});
    session.id_token.as_mut().unwrap().raw = format!("e30.{}.sig", base64(payload.to_string()));
    session.user_info_claims = ["sub", "email", "groups"].map(str::to_owned).to_vec();
    world.put(SESSION, "s1", &session).await;
    world.start_manager();
    sleep(11 * MINUTE).await;
    assert_eq!(
        world.stored().await.unwrap().claims["groups"].values.len(),
        2
    );

    world.set(|idp| idp.groups = Value::Null);
    // Also while user info may not be asked, and after.
    for instead in [None, Some((403, String::new())), None] {
        world.set(|idp| idp.info_instead = instead);
        sleep(11 * MINUTE).await;
        let stored = world.stored().await.unwrap();
        assert!(!stored.claims.contains_key("groups"), "{:?}", stored.claims);
        assert!(stored.claims.contains_key("name"));
        assert!(!world.user().await.claims.contains_key("groups"));
    }
    assert!(world.refreshes() > 3);

    let version = world.record(USER, "ann").await.unwrap().version;
    sleep(30 * MINUTE).await;
    assert_eq!(world.record(USER, "ann").await.unwrap().version, version);
}

#[tokio::test(start_paused = true)]
async fn a_new_id_token_renews_its_claims() {
    let world = World::new();
    world.sign_in().await;
    world.set(|idp| {
        idp.id_token = Some(json!({"iss": ISSUER, "aud": "client", "sub": "ann", "name": "Anna"}));
    });
    world.start_manager();
    sleep(5 * MINUTE).await;
    let stored = world.stored().await.unwrap();
    assert_ne!(
        stored.id_token.unwrap().raw,
        world.session().id_token.unwrap().raw
    );
    assert_eq!(world.user().await.name, "Anna");
    let name = stored.claims["name"].values[0].kind.clone();
    assert_eq!(
        name,
        Some(prost_types::value::Kind::StringValue("Anna".into()))
    );
    assert!(!stored.claims.contains_key("aud") || stored.claims["aud"].values.len() == 1);
}

/// An access token that is no longer accepted: with a refresh token that one decides, without
/// it the provider has said no.
#[tokio::test(start_paused = true)]
async fn a_revoked_access_token() {
    let refused = |idp: &mut Idp| idp.info_instead = Some((401, String::new()));
    let world = World::new();
    world.sign_in().await;
    world.set(refused);
    world.start_manager();
    sleep(30 * MINUTE).await;
    assert!(world.stored().await.is_some());

    let world = World::new();
    let mut session = world.session();
    session.oauth_token = Some(OAuthToken {
        access_token: "access".into(),
        ..OAuthToken::default()
    });
    world.put(SESSION, "s1", &session).await;
    world.start_manager();
    sleep(30 * MINUTE).await;
    assert!(world.stored().await.is_some());
    world.set(|idp| idp.info_instead = Some((503, String::new())));
    sleep(30 * MINUTE).await;
    assert!(world.stored().await.is_some());
    world.set(refused);
    sleep(11 * MINUTE).await;
    assert!(world.stored().await.is_none());
}

/// Fields that a newer version wrote survive a refresh by this one (C85).
#[tokio::test(start_paused = true)]
async fn c85_unknown_fields_survive() {
    let world = World::new();
    world.sign_in().await;
    let mut record = world.record(SESSION, "s1").await.unwrap();
    // Field 999, text "new".
    let unknown = [0xba, 0x3e, 3, b'n', b'e', b'w'];
    record.data.as_mut().unwrap().value.extend(unknown);
    world
        .client
        .clone()
        .put(PutRequest {
            records: vec![record],
        })
        .await
        .unwrap();
    world.start_manager();
    sleep(5 * MINUTE).await;
    assert_eq!(world.refreshes(), 1);
    let bytes = world
        .record(SESSION, "s1")
        .await
        .unwrap()
        .data
        .unwrap()
        .value;
    assert!(bytes.windows(unknown.len()).any(|w| w == unknown));
}

#[tokio::test(start_paused = true)]
async fn sessions_that_cannot_be_refreshed_live_until_their_end() {
    let world = World::new();
    let mut foreign = world.session();
    foreign.idp_id = "of an older configuration".into();
    let mut program = world.session();
    program.refresh_disabled = true;
    let mut bare = world.session();
    (bare.oauth_token, bare.id_token) = (None, None);
    for (id, session) in [
        ("foreign", &foreign),
        ("program", &program),
        ("bare", &bare),
    ] {
        world.put(SESSION, id, session).await;
    }
    world.start_manager();
    sleep(2 * HOUR).await;
    for id in ["foreign", "program", "bare"] {
        assert!(world.record(SESSION, id).await.is_some(), "{id}");
    }
    assert_eq!(
        (world.refreshes(), world.idp.lock().unwrap().info_asked),
        (0, 0)
    );
    sleep(31 * MINUTE).await;
    for id in ["foreign", "program", "bare"] {
        assert!(world.record(SESSION, id).await.is_none(), "{id}");
    }
}

/// Many sessions that are due together: all are refreshed, a few at a time.
#[tokio::test(start_paused = true)]
async fn many_at_once_are_bounded() {
    let world = World::new();
    for n in 0..100 {
        let mut session = world.session();
        session.oauth_token.as_mut().unwrap().refresh_token = format!("refresh-of-{n}");
        world.put(SESSION, &n.to_string(), &session).await;
    }
    world.set(|idp| idp.delay = Duration::from_secs(1));
    world.start_manager();
    sleep(5 * MINUTE).await;
    let idp = world.idp.lock().unwrap();
    let mut a_second: HashMap<i64, usize> = HashMap::new();
    for (_, second) in &idp.refreshed {
        *a_second.entry(*second).or_default() += 1;
    }
    assert_eq!(idp.refreshed.len(), 100);
    assert!(a_second.values().all(|n| *n <= MAX_JOBS), "{a_second:?}");
}
