//! A databroker, an authorize that follows it, and people with sessions.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::Request;
use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method};
use postern_authorize::{Authorize, Local};
use postern_common::authz::{
    Allow, AuthorizeError, Authorizer as _, CheckRequest, CheckSubject, Decision, Deny, Scheme,
};
use postern_common::config::source::Environment;
use postern_common::config::{Config, ProcessSecrets, load_text};
use postern_common::crypto::handle::{Handle, Purpose};
use postern_common::lifecycle::{DrainTiming, Lifecycle};
use postern_common::rpc::Transport;
use postern_common::rpc::stubs::databroker::data_broker_service_client::DataBrokerServiceClient;
use postern_common::rpc::stubs::databroker::{PutRequest, Record};
use postern_common::rpc::stubs::{session, user};
use postern_common::rpc::token::{ClientToken, TokenKeys};
use postern_common::telemetry::metrics::Metrics;
use postern_databroker::Databroker;
use postern_databroker::storage::local::Local as Storage;
use postern_databroker::tidy::Housekeeping;
use postern_identity::{HttpClient, HttpError};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use tonic::codegen::Service as _;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;

pub const SESSION: &str = "type.googleapis.com/session.Session";
pub const USER: &str = "type.googleapis.com/user.User";
pub const SERVICE_ACCOUNT: &str = "type.googleapis.com/user.ServiceAccount";

const BASE: &str = "
authenticate_service_url: https://auth.corp.test
idp_provider: oidc
idp_provider_url: https://idp.corp.test
idp_client_id: postern
idp_client_secret: for-tests-only
insecure_server: true
shared_secret: yM8aAeZc3VOSnmgCcCIKVmz6kSC5YtULfKQr2LDIFeY=
cookie_secret: 1pvXsrWdiTKPnNv3x6ehRzqrOYLM9TMmvE3tKmXQ9vM=
";

pub fn config(routes: &str) -> Arc<Config> {
    let text = format!("{BASE}routes:\n{routes}");
    let loaded = load_text(
        Path::new("config.yaml"),
        &text,
        &Environment::default(),
        &ProcessSecrets::default(),
    );
    loaded
        .config
        .unwrap_or_else(|| panic!("{}", loaded.diagnostics))
}

type Client = DataBrokerServiceClient<InterceptedService<Transport, ClientToken>>;

pub struct World {
    pub authorize: Arc<Local>,
    pub routes: Routes,
    pub config: watch::Sender<Arc<Config>>,
    pub lifecycle: Lifecycle,
    pub metrics: Metrics,
    databroker: Client,
    keys: TokenKeys,
    /// What authorize's calls go to, in turn.
    backends: Arc<Backends>,
    brokers: Mutex<Vec<Broker>>,
}

/// A databroker, with its own memory, and what ends it.
struct Broker {
    storage: Arc<Storage>,
    _stop: DropGuard,
}

#[derive(Default)]
struct Backends {
    /// While true, every new call is answered with UNAVAILABLE.
    away: AtomicBool,
    routers: Mutex<Vec<axum::Router>>,
    next: AtomicUsize,
}

impl Backends {
    fn next(&self) -> Option<axum::Router> {
        if self.away.load(Ordering::Relaxed) {
            return None;
        }
        let routers = self.routers.lock().unwrap();
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        routers.get(next % routers.len().max(1)).cloned()
    }

    fn routes(self: &Arc<Self>) -> Routes {
        let backends = Arc::clone(self);
        let answer = move |request: Request| {
            let router = backends.next();
            async move {
                match router {
                    Some(mut router) => router.call(request).await.unwrap(),
                    None => Status::unavailable("away").into_http(),
                }
            }
        };
        Routes::from(axum::Router::new().fallback(answer))
    }
}

impl World {
    pub async fn new(routes: &str) -> Self {
        Self::with_provider(routes, |_| Err(HttpError::Transport("no network".into()))).await
    }

    /// `provider` answers what the identity provider is asked.
    pub async fn with_provider<F>(routes: &str, provider: F) -> Self
    where
        F: Fn(http::Request<Vec<u8>>) -> Result<http::Response<Vec<u8>>, HttpError>
            + Send
            + Sync
            + 'static,
    {
        let config = config(routes);
        let keys = TokenKeys::new(config.secrets.shared.clone());
        let (broker, router) = start(Arc::new(Storage::in_memory().unwrap()), &keys);
        let databroker = DataBrokerServiceClient::with_interceptor(
            Transport::local(Routes::from(router.clone())),
            keys.for_client(),
        );
        let backends = Arc::new(Backends::default());
        backends.routers.lock().unwrap().push(router);
        let transport = Transport::local(backends.routes());
        let lifecycle = Lifecycle::new(DrainTiming::default());
        let metrics = Metrics::default();
        let http = HttpClient::new(move |request| {
            let answer = provider(request);
            async move { answer }.boxed()
        });
        let (sender, receiver) = watch::channel(config);
        let authorize = Authorize::new(receiver, transport, http, &metrics, &lifecycle);
        assert!(!lifecycle.is_ready(), "not before the first copy");
        let world = Self {
            authorize: authorize.local(),
            routes: authorize.routes(),
            config: sender,
            databroker,
            keys,
            backends,
            brokers: Mutex::new(vec![broker]),
            lifecycle: lifecycle.clone(),
            metrics,
        };
        lifecycle.spawn(authorize.run());
        wait("ready", || lifecycle.is_ready()).await;
        world
    }

    pub fn set_away(&self, away: bool) {
        self.backends.away.store(away, Ordering::Relaxed);
    }

    /// One more databroker behind the same name, with a memory of its own.
    pub fn add_databroker(&self) {
        let (broker, router) = start(Arc::new(Storage::in_memory().unwrap()), &self.keys);
        self.brokers.lock().unwrap().push(broker);
        self.backends.routers.lock().unwrap().push(router);
    }

    /// Ends all databrokers.
    pub fn stop_databrokers(&self) {
        self.set_away(true);
        for broker in self.brokers.lock().unwrap().iter_mut() {
            // Its guard is dropped.
            *broker = start(Arc::clone(&broker.storage), &self.keys).0;
        }
    }

    /// Ends all databrokers and starts them again on the memory that each has.
    pub fn restart_databrokers(&self) {
        let mut routers = Vec::new();
        for broker in self.brokers.lock().unwrap().iter_mut() {
            let (started, router) = start(Arc::clone(&broker.storage), &self.keys);
            *broker = started;
            routers.push(router);
        }
        *self.backends.routers.lock().unwrap() = routers;
        self.set_away(false);
    }

    /// A fact that `/status` tells about the copy.
    pub fn told(&self, fact: &str) -> Option<String> {
        let parts = self.lifecycle.parts().list();
        parts.get("authorize.data")?.attributes.get(fact).cloned()
    }

    /// What `/status` says to be wrong with the copy.
    pub fn remark(&self) -> Option<String> {
        self.lifecycle
            .parts()
            .list()
            .get("authorize.data")?
            .error
            .clone()
    }

    pub fn databroker(&self) -> Client {
        self.databroker.clone()
    }

    pub async fn put(&self, kind: &str, id: &str, message: &impl prost::Message) -> (u64, u64) {
        self.write(Record {
            r#type: kind.to_owned(),
            id: id.to_owned(),
            data: Some(prost_types::Any {
                type_url: kind.to_owned(),
                value: message.encode_to_vec(),
            }),
            ..Record::default()
        })
        .await
    }

    pub async fn delete(&self, kind: &str, id: &str) {
        self.write(Record {
            r#type: kind.to_owned(),
            id: id.to_owned(),
            deleted_at: Some(prost_types::Timestamp::default()),
            ..Record::default()
        })
        .await;
    }

    async fn write(&self, record: Record) -> (u64, u64) {
        let request = PutRequest {
            records: vec![record],
        };
        let response = self.databroker().put(request).await.unwrap().into_inner();
        (response.server_version, response.records[0].version)
    }

    /// Signs somebody in, as authenticate does: user first, then session. Returns the cookie.
    pub async fn sign_in(&self, name: &str, groups: &[&str]) -> String {
        let user_id = format!("user-{name}");
        let user = user::User {
            email: format!("{name}@corp.test"),
            ..user::User::default()
        };
        self.put(USER, &user_id, &user).await;
        let session = session(&user_id, groups);
        let (server_version, record_version) = self
            .put(SESSION, &format!("session-{name}"), &session)
            .await;
        let handle = Handle {
            id: format!("session-{name}"),
            subject: user_id,
            audience: vec!["app.corp.test".to_owned()],
            idp_id: self.provider_id(),
            purpose: Some(Purpose::Browser),
            server_version,
            record_version,
            ..Handle::default()
        };
        format!("_pomerium={}", self.encode(&handle))
    }

    pub fn provider_id(&self) -> String {
        self.config
            .borrow()
            .provider_id
            .as_deref()
            .unwrap()
            .to_owned()
    }

    pub fn encode(&self, handle: &Handle) -> String {
        handle.encode(&self.config.borrow().secrets.shared[0])
    }

    /// A request to the first route.
    pub fn request(&self, headers: &[(&'static str, &str)]) -> CheckRequest {
        self.request_to(0, headers)
    }

    pub fn request_to(&self, route: usize, headers: &[(&'static str, &str)]) -> CheckRequest {
        let config = self.config.borrow();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        CheckRequest {
            request_id: "request-1".into(),
            subject: CheckSubject::Route {
                id: config.routes[route].id.clone(),
                checksum: config.routes[route].checksum,
            },
            method: Method::GET,
            scheme: Scheme::Https,
            host: "app.corp.test".into(),
            path: "/x".into(),
            query: None,
            headers: map,
            client_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            client_certificate: None,
            trace: None,
        }
    }

    pub async fn ask(&self, headers: &[(&'static str, &str)]) -> Result<Decision, AuthorizeError> {
        self.authorize.check(Arc::new(self.request(headers))).await
    }

    pub async fn allowed(&self, headers: &[(&'static str, &str)]) -> Allow {
        match self.ask(headers).await.unwrap() {
            Decision::Allow(allow) => *allow,
            Decision::Deny(deny) => panic!("{deny:?}"),
        }
    }

    /// Returns once a request is allowed, such as when the copy has caught up.
    pub async fn until_allowed(&self, headers: &[(&'static str, &str)]) {
        let begun = Instant::now();
        loop {
            let decision = self.ask(headers).await;
            if let Ok(Decision::Allow(_)) = decision {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(5), "{decision:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Returns once the copy has a session: its handle is accepted while the databroker is away.
    pub async fn until_session(&self, id: &str) {
        let handle = Handle {
            id: id.to_owned(),
            idp_id: self.provider_id(),
            ..Handle::default()
        };
        let cookie = format!("_pomerium={}", self.encode(&handle));
        self.set_away(true);
        let begun = Instant::now();
        while self.ask(&[("cookie", &cookie)]).await.is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(5),
                "the copy never got {id}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.set_away(false);
    }

    pub async fn denied(&self, headers: &[(&'static str, &str)]) -> Deny {
        match self.ask(headers).await.unwrap() {
            Decision::Deny(deny) => *deny,
            Decision::Allow(allow) => panic!("{allow:?}"),
        }
    }
}

pub fn session(user_id: &str, groups: &[&str]) -> session::Session {
    session::Session {
        user_id: user_id.to_owned(),
        expires_at: Some(prost_types::Timestamp {
            seconds: 4_000_000_000,
            nanos: 0,
        }),
        claims: [("groups".to_owned(), list(groups))].into(),
        ..session::Session::default()
    }
}

pub fn list(values: &[&str]) -> prost_types::ListValue {
    let text = |text: &&str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue((*text).to_owned())),
    };
    prost_types::ListValue {
        values: values.iter().map(text).collect(),
    }
}

fn start(storage: Arc<Storage>, keys: &TokenKeys) -> (Broker, axum::Router) {
    let stop = CancellationToken::new();
    let databroker = Databroker::start(
        Arc::clone(&storage) as _,
        Housekeeping::default(),
        stop.clone(),
    );
    let router = databroker.routes(keys.clone()).into_axum_router();
    let broker = Broker {
        storage,
        _stop: stop.drop_guard(),
    };
    (broker, router)
}

/// Waits until something holds, and says what did not when it gives up.
pub async fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "gave up waiting: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
