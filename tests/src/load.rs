//! Constant load, signed in, with every single answer checked.
//!
//! Requests are due at fixed times whatever became of the ones before, and a request's time counts
//! from when it was due. The upstream checks on its side that nothing reaches it without an allow.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request as Arrived, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use postern_common::telemetry::log::chain;

use crate::person::{Person, trusting};
use crate::site::Server;
use crate::world::World;

/// A request without an answer for so long has failed. Postern itself gives up after
/// `grpc_client_timeout`, which is 10 s.
const PATIENCE: Duration = Duration::from_secs(15);

/// Connections that are kept: with HTTP/1.1, more of them where answers take long, and with HTTP/2.
const KEPT: usize = 10;
const SHARED: usize = 4;

/// How often a request is sent that no server has seen.
const TRIES: usize = 3;

/// The route that asks for the group eng, and the one that is open.
const GUARDED: &str = "load";
const PUBLIC: &str = "free";

/// Of whoever signs in; the claim reaches the upstream.
const ANN: &str = "ann@corp.test";

/// Who asks. The first may, the next two must not, on the same route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Ann,
    /// Signed in, and not in the group.
    Bob,
    /// Not signed in.
    Nobody,
    /// Not signed in, on the public route.
    Anybody,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Ann => "ann",
            Self::Bob => "bob",
            Self::Nobody => "nobody",
            Self::Anybody => "anybody",
        }
    }

    fn host(self) -> &'static str {
        if self == Self::Anybody {
            PUBLIC
        } else {
            GUARDED
        }
    }
}

/// On which connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// HTTP/1.1, kept between requests.
    Kept,
    /// HTTP/2, shared.
    Shared,
    /// A new one for this request, HTTP/1.1.
    Fresh,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As it has to be.
    Right,
    /// 503.
    Unavailable,
    /// Anything else that is not what this person has to get.
    Failed(String),
    /// Somebody got what they must not have, or somebody else's.
    Wrong(String),
}

/// One request, answered or given up.
#[derive(Debug, Clone)]
pub struct Answered {
    /// When it was due, from the start of the load.
    pub at: Duration,
    /// From then to the last byte.
    pub took: Duration,
    pub who: Who,
    pub connection: Connection,
    pub outcome: Outcome,
}

/// The upstream behind the load's routes.
pub struct Witness {
    pub server: Server,
    seen: Arc<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    count: AtomicUsize,
    /// How long it takes over a request.
    takes: Mutex<Duration>,
    wrong: Mutex<Vec<String>>,
}

impl Witness {
    pub async fn start() -> Self {
        let seen = Arc::new(Seen::default());
        let router = Router::new()
            .fallback(witness)
            .with_state(Arc::clone(&seen));
        Self {
            server: Server::start(router).await,
            seen,
        }
    }

    /// The load's routes, for a cluster's configuration.
    pub fn routes(&self) -> String {
        let to = self.server.url();
        format!(
            "- {{from: 'https://{GUARDED}.corp.test:{{PORT}}', to: '{to}', policy: [{{allow: {{and: [{{claim/groups: eng}}]}}}}]}}\n\
             - {{from: 'https://{PUBLIC}.corp.test:{{PORT}}', to: '{to}', allow_public_unauthenticated_access: true}}\n"
        )
    }

    /// From now on it takes so long over a request.
    pub fn take(&self, time: Duration) {
        *self.seen.takes.lock().expect("no test panics here") = time;
    }

    /// How many requests reached it.
    pub fn count(&self) -> usize {
        self.seen.count.load(Ordering::Relaxed)
    }

    /// Requests that must not have reached it.
    pub fn wrong(&self) -> Vec<String> {
        self.seen.wrong.lock().expect("no test panics here").clone()
    }
}

/// Echoes the path and who it was told that asks.
async fn witness(State(seen): State<Arc<Seen>>, request: Arrived) -> Response {
    seen.count.fetch_add(1, Ordering::Relaxed);
    let path = request.uri().path().to_owned();
    let email = request
        .headers()
        .get("x-pomerium-claim-email")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let allowed = match path.split('/').nth(1) {
        Some("ann") => email == ANN,
        Some("anybody") => true,
        // Bob and nobody must not come here.
        _ => false,
    };
    if !allowed {
        let what = format!("{path} as {email:?}");
        seen.wrong.lock().expect("no test panics here").push(what);
    }
    let takes = *seen.takes.lock().expect("no test panics here");
    if !takes.is_zero() {
        tokio::time::sleep(takes).await;
    }
    format!("{path} {email}").into_response()
}

/// Load that goes on until it is stopped.
pub struct Load {
    begun: Instant,
    shared: Arc<Shared>,
    driver: JoinHandle<()>,
}

struct Shared {
    client: Client,
    ann: String,
    bob: String,
    port: u16,
    answers: Mutex<Vec<Answered>>,
    /// The latest that a request was sent after it was due: the machine's fault.
    stall: Mutex<Duration>,
    /// Requests a second; 0 for a pause, `None` for the end.
    rate: watch::Sender<Option<u32>>,
}

impl Load {
    /// Signs in and begins, `rate` requests a second.
    pub async fn start(world: &World, rate: u32) -> Self {
        let url = world.cluster.url(GUARDED, "/ann/first");
        let (ann, bob) = (world.cluster.browser(), world.cluster.browser());
        let page = world.sign_in(&ann, &url, "ann").await;
        assert_eq!(page.status, StatusCode::OK, "{}", page.text());
        let page = world
            .sign_in(&bob, &world.cluster.url(GUARDED, "/bob/first"), "bob")
            .await;
        assert_eq!(page.status, StatusCode::FORBIDDEN, "{}", page.text());
        let host = format!("{GUARDED}.corp.test");
        let cookie = |person: &Person| person.cookie_header(&host);
        let shared = Arc::new(Shared {
            client: Client::new(world),
            ann: cookie(&ann),
            bob: cookie(&bob),
            port: world.cluster.port,
            answers: Mutex::default(),
            stall: Mutex::default(),
            rate: watch::Sender::new(Some(rate)),
        });
        let begun = Instant::now();
        Self {
            begun,
            driver: tokio::spawn(drive(Arc::clone(&shared), begun)),
            shared,
        }
    }

    /// The time on the load's clock.
    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// From now on so many requests a second; 0 is a pause.
    pub fn set_rate(&self, rate: u32) {
        self.shared.rate.send_replace(Some(rate));
    }

    /// What came until now.
    pub fn so_far(&self) -> Report {
        let answers = self.shared.answers.lock().expect("no test panics here");
        Report {
            answers: answers.clone(),
            stall: *self.shared.stall.lock().expect("no test panics here"),
        }
    }

    /// Sends no more, and waits for what is under way.
    pub async fn stop(self) -> Report {
        self.shared.rate.send_replace(None);
        self.driver.await.expect("the load's driver does not panic");
        let shared = &self.shared;
        Report {
            answers: std::mem::take(&mut *shared.answers.lock().expect("no test panics here")),
            stall: *shared.stall.lock().expect("no test panics here"),
        }
    }
}

async fn drive(shared: Arc<Shared>, begun: Instant) {
    let mut rates = shared.rate.subscribe();
    let mut under_way = JoinSet::new();
    let mut due = begun;
    let mut number = 0_usize;
    loop {
        let rate = *rates.borrow_and_update();
        let Some(rate) = rate else { break };
        if rate == 0 {
            // The sender lives in `shared`.
            let _ = rates.changed().await;
            due = Instant::now();
            continue;
        }
        tokio::select! {
            biased;
            _ = rates.changed() => {
                due = Instant::now();
                continue;
            }
            () = tokio::time::sleep_until(due.into()) => {}
        }
        {
            let mut stall = shared.stall.lock().expect("no test panics here");
            *stall = due.elapsed().max(*stall);
        }
        while under_way.try_join_next().is_some() {}
        let shared = Arc::clone(&shared);
        let this = due;
        under_way.spawn(async move { shared.request(number, begun, this).await });
        number += 1;
        due += Duration::from_secs(1) / rate;
    }
    under_way.join_all().await;
}

impl Shared {
    async fn request(&self, number: usize, begun: Instant, due: Instant) {
        let who = match number % 10 {
            0 => Who::Bob,
            1 => Who::Nobody,
            2 => Who::Anybody,
            _ => Who::Ann,
        };
        let connection = match (number / 10) % 5 {
            0 | 1 => Connection::Kept,
            2 | 3 => Connection::Shared,
            _ => Connection::Fresh,
        };
        let host = format!("{}.corp.test", who.host());
        let path = format!("/{}/{number}", who.name());
        let cookie = match who {
            Who::Ann => self.ann.as_str(),
            Who::Bob => self.bob.as_str(),
            Who::Nobody | Who::Anybody => "",
        };
        let answer = self.client.ask(connection, number, || {
            let authority = format!("{host}:{}", self.port);
            let mut request = Request::builder().header(header::ACCEPT, "application/json");
            if connection == Connection::Shared {
                request = request.uri(format!("https://{authority}{path}"));
            } else {
                request = request.uri(&path).header(header::HOST, authority);
            }
            if !cookie.is_empty() {
                request = request.header(header::COOKIE, cookie);
            }
            request.body(Empty::new()).expect("a request")
        });
        let outcome = match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => judge(who, &path, &answer),
            Ok(Err(error)) => Outcome::Failed(chain(&*error)),
            Err(_) => Outcome::Failed(format!("no answer within {PATIENCE:?}")),
        };
        let answered = Answered {
            at: due.duration_since(begun),
            took: due.elapsed(),
            who,
            connection,
            outcome,
        };
        self.answers
            .lock()
            .expect("no test panics here")
            .push(answered);
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// What an answer is worth.
fn judge(who: Who, path: &str, answer: &Answer) -> Outcome {
    let text = String::from_utf8_lossy(&answer.body);
    let short: String = text.chars().take(120).collect();
    let said = || format!("{} {short}", answer.status);
    match (who, answer.status) {
        (Who::Ann, StatusCode::OK) if text == format!("{path} {ANN}") => Outcome::Right,
        (Who::Anybody, StatusCode::OK) if text == format!("{path} ") => Outcome::Right,
        (_, StatusCode::OK) => Outcome::Wrong(said()),
        (Who::Bob, StatusCode::FORBIDDEN) | (Who::Nobody, StatusCode::UNAUTHORIZED) => {
            Outcome::Right
        }
        (_, StatusCode::SERVICE_UNAVAILABLE) if answer.headers.contains_key("retry-after") => {
            Outcome::Unavailable
        }
        _ => Outcome::Failed(said()),
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;
type Question = Request<Empty<Bytes>>;

/// Connections to where clients go.
struct Client {
    address: SocketAddr,
    one: TlsConnector,
    two: TlsConnector,
    kept: Vec<Mutex<Vec<http1::SendRequest<Empty<Bytes>>>>>,
    shared: Vec<tokio::sync::Mutex<Option<http2::SendRequest<Empty<Bytes>>>>>,
}

impl Client {
    fn new(world: &World) -> Self {
        let authority = &world.cluster.site.certificates.authority;
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], world.cluster.port)),
            one: trusting(authority, &["http/1.1"]),
            two: trusting(authority, &["h2"]),
            kept: (0..KEPT).map(|_| Mutex::default()).collect(),
            shared: (0..SHARED).map(|_| tokio::sync::Mutex::default()).collect(),
        }
    }

    /// Sends a request again only as long as no server can have seen it.
    async fn ask(
        &self,
        connection: Connection,
        number: usize,
        question: impl Fn() -> Question,
    ) -> Result<Answer, Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            let answer = match connection {
                Connection::Kept => self.on_kept(number, question()).await,
                Connection::Shared => self.on_shared(number, question()).await,
                Connection::Fresh => self.on_fresh(question()).await,
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(Unanswered::Unsent(_)) if tries < TRIES => {}
                Err(Unanswered::Unsent(error) | Unanswered::Lost(error)) => return Err(error),
            }
        }
    }

    async fn on_kept(&self, number: usize, question: Question) -> Result<Answer, Unanswered> {
        let place = &self.kept[number % KEPT];
        let idle = place.lock().expect("no test panics here").pop();
        let mut sender = match idle.filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => self.http1().await?,
        };
        sender.ready().await.map_err(Unanswered::unsent)?;
        let answer = read(sender.try_send_request(question).await?).await?;
        place.lock().expect("no test panics here").push(sender);
        Ok(answer)
    }

    async fn on_shared(&self, number: usize, question: Question) -> Result<Answer, Unanswered> {
        let mut place = self.shared[number % SHARED].lock().await;
        let open = place.as_ref().filter(|sender| !sender.is_closed());
        let mut sender = if let Some(sender) = open {
            sender.clone()
        } else {
            let sender = self.http2().await?;
            place.insert(sender).clone()
        };
        drop(place);
        sender.ready().await.map_err(Unanswered::unsent)?;
        read(sender.try_send_request(question).await?).await
    }

    async fn on_fresh(&self, question: Question) -> Result<Answer, Unanswered> {
        let mut sender = self.http1().await?;
        read(sender.try_send_request(question).await?).await
    }

    async fn http1(&self) -> Result<http1::SendRequest<Empty<Bytes>>, Unanswered> {
        let stream = connect(&self.one, self.address).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(Unanswered::lost)?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn http2(&self) -> Result<http2::SendRequest<Empty<Bytes>>, Unanswered> {
        let stream = connect(&self.two, self.address).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(Unanswered::lost)?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// A connection that can't be made is a failure as a browser's user sees it.
async fn connect(
    tls: &TlsConnector,
    address: SocketAddr,
) -> Result<TlsStream<TcpStream>, Unanswered> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(Unanswered::lost)?;
    stream.set_nodelay(true).map_err(Unanswered::lost)?;
    let name = ServerName::try_from("load.corp.test").expect("a name");
    tls.connect(name, stream).await.map_err(Unanswered::lost)
}

async fn read(response: Response<Incoming>) -> Result<Answer, Unanswered> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(Unanswered::lost)?.to_bytes();
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body,
    })
}

enum Unanswered {
    /// No server has seen the request.
    Unsent(Error),
    Lost(Error),
}

impl Unanswered {
    fn unsent(error: impl Into<Error>) -> Self {
        Self::Unsent(error.into())
    }

    fn lost(error: impl Into<Error>) -> Self {
        Self::Lost(error.into())
    }
}

impl From<TrySendError<Question>> for Unanswered {
    fn from(mut error: TrySendError<Question>) -> Self {
        let unsent = error.take_message().is_some();
        let error: Error = error.into_error().into();
        if unsent || is_unprocessed(&*error) {
            Self::Unsent(error)
        } else {
            Self::Lost(error)
        }
    }
}

/// Whether the server said that it has not looked at the request: it refused the stream, or its
/// GOAWAY names an earlier one as the last (RFC 9113, 6.8 and 8.7).
fn is_unprocessed(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<h2::Error>())
        .any(|error| match error.reason() {
            Some(h2::Reason::REFUSED_STREAM) => true,
            Some(h2::Reason::NO_ERROR) => error.is_go_away() && error.is_remote(),
            _ => false,
        })
}

/// What became of the requests.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub answers: Vec<Answered>,
    /// The latest that a request was sent after it was due: then the machine was too busy.
    pub stall: Duration,
}

impl Report {
    /// Those that were due in this time.
    pub fn between(&self, from: Duration, to: Duration) -> Self {
        self.filtered(|it| from <= it.at && it.at < to)
    }

    /// Those that were answered in this time.
    pub fn answered_between(&self, from: Duration, to: Duration) -> Self {
        self.filtered(|it| from <= it.at + it.took && it.at + it.took < to)
    }

    /// Those that were told to come back later.
    pub fn unavailable(&self) -> Self {
        self.filtered(|it| it.outcome == Outcome::Unavailable)
    }

    fn filtered(&self, keep: impl Fn(&Answered) -> bool) -> Self {
        let answers = self.answers.iter().filter(|it| keep(it)).cloned();
        Self {
            answers: answers.collect(),
            stall: self.stall,
        }
    }

    pub fn sent(&self) -> usize {
        self.answers.len()
    }

    /// Everything that is not right.
    pub fn failed(&self) -> usize {
        self.count(|outcome| *outcome != Outcome::Right)
    }

    pub fn wrong(&self) -> usize {
        self.count(|outcome| matches!(outcome, Outcome::Wrong(_)))
    }

    /// Neither right nor a clear 503.
    pub fn unclear(&self) -> usize {
        self.count(|outcome| matches!(outcome, Outcome::Wrong(_) | Outcome::Failed(_)))
    }

    fn count(&self, wanted: impl Fn(&Outcome) -> bool) -> usize {
        self.answers.iter().filter(|it| wanted(&it.outcome)).count()
    }

    pub fn slowest(&self) -> Duration {
        self.answers
            .iter()
            .map(|it| it.took)
            .max()
            .unwrap_or_default()
    }

    /// Of those that are right: so many percent took no longer.
    pub fn percentile(&self, percent: usize) -> Duration {
        self.percentile_of(&Outcome::Right, percent)
    }

    /// The same of those with another outcome.
    pub fn percentile_of(&self, outcome: &Outcome, percent: usize) -> Duration {
        let these = self.answers.iter().filter(|it| it.outcome == *outcome);
        let mut times: Vec<_> = these.map(|it| it.took).collect();
        times.sort_unstable();
        let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
        times.get(index).copied().unwrap_or_default()
    }

    /// How long after `since` the first right answer came, or the last other one if that was later;
    /// `None` when no right one came.
    pub fn back_after(&self, since: Duration) -> Option<Duration> {
        let ends = |right: bool| {
            let these = self.answers.iter();
            these
                .filter(move |it| (it.outcome == Outcome::Right) == right)
                .map(|it| it.at + it.took)
                .filter(move |end| *end >= since)
        };
        let first = ends(true).min()?;
        let last = ends(false).max().unwrap_or(first);
        first.max(last).checked_sub(since)
    }

    /// What went wrong, each kind of it once with how often.
    pub fn problems(&self) -> Vec<String> {
        let mut kinds: BTreeMap<String, (usize, Duration)> = BTreeMap::new();
        for it in &self.answers {
            let what = match &it.outcome {
                Outcome::Right => continue,
                Outcome::Unavailable => "503".to_owned(),
                Outcome::Failed(what) => what.clone(),
                Outcome::Wrong(what) => format!("WRONG {what}"),
            };
            let kind = format!("{:?} on {:?}: {what}", it.who, it.connection);
            let entry = kinds.entry(kind).or_insert((0, it.at));
            entry.0 += 1;
        }
        let line = |(kind, (count, at)): (String, (usize, Duration))| {
            format!("{count} × {kind} (first at {:.2} s)", at.as_secs_f64())
        };
        kinds.into_iter().map(line).collect()
    }
}
