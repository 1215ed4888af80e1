//! Which endpoint gets a call, and what happens when it does not answer.
//!
//! A call goes to the less burdened of two random ready endpoints; one whose calls fail again and
//! again is left out for a while. A call that no server has seen goes to another one. A call that may safely be made twice is also asked at a second endpoint
//! when the first does not answer soon, or breaks; the first answer counts. With no endpoint
//! ready a call waits a second, then fails: nothing is ever allowed for lack of an answer.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tonic::body::Body;

use super::client::CallTiming;
use super::connection::Endpoint;
use super::outlier;
use super::patience::Patience;
use super::transport::{Failure, TransportError, grpc_timeout};
use super::write_id::HEADER as WRITE_ID;

/// Calls that wait for an endpoint; one more fails at once.
const MAX_WAITING: usize = 1000;
/// A question that may be asked twice is kept until it is answered; larger ones are refused.
const MAX_KEPT: usize = 4 * 1024 * 1024;
/// How often one call is sent at most.
const MAX_SENT: usize = 3;

/// Unary calls, and streams that only read: asking them twice does no harm.
const REPEATABLE: &[&str] = &[
    "/databroker.DataBrokerService/Get",
    "/databroker.DataBrokerService/ListTypes",
    "/databroker.DataBrokerService/Query",
    "/databroker.DataBrokerService/RenewLease",
    "/databroker.DataBrokerService/ServerInfo",
    "/databroker.DataBrokerService/Sync",
    "/databroker.DataBrokerService/SyncLatest",
    "/envoy.service.auth.v3.Authorization/Check",
    "/grpc.health.v1.Health/Check",
    "/registry.Registry/List",
    "/registry.Registry/Watch",
];

/// Writes that do no harm when they are asked for twice, as long as they have a [`WriteId`].
///
/// [`WriteId`]: super::WriteId
const NAMED_WRITES: &[&str] = &[
    "/databroker.DataBrokerService/Patch",
    "/databroker.DataBrokerService/Put",
];

/// The index of the less burdened of two, each chosen at random from `loads`.
pub(super) fn choose(loads: &[f64], first: u32, second: u32) -> Option<usize> {
    let count = u32::try_from(loads.len()).ok().filter(|count| *count > 0)?;
    let one = first % count;
    // Another one, where there is another one.
    let two = if count == 1 {
        one
    } else {
        (one + 1 + second % (count - 1)) % count
    };
    let (one, two) = (usize::try_from(one).ok()?, usize::try_from(two).ok()?);
    let better = if loads.get(two)? < loads.get(one)? {
        two
    } else {
        one
    };
    Some(better)
}

/// Second questions are at most a fifth of the first ones, but 32 are always possible.
#[derive(Debug)]
pub struct Budget {
    tokens: f64,
}

impl Budget {
    const LEAST: f64 = 32.0;
    const SHARE: f64 = 0.2;
    const MOST: f64 = 1000.0;

    /// Full of the least.
    pub fn new() -> Self {
        Self {
            tokens: Self::LEAST,
        }
    }

    /// A first question was asked.
    pub fn earn(&mut self) {
        self.tokens = (self.tokens + Self::SHARE).min(Self::MOST);
    }

    /// Whether a second one may be.
    pub fn spend(&mut self) -> bool {
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new()
    }
}

/// Spreads calls over the endpoints of a service.
#[derive(Debug)]
pub(super) struct Balancer {
    /// For messages: the URLs.
    pub(super) name: String,
    pub(super) timing: CallTiming,
    pub(super) endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    /// Counts changes of the set and of any endpoint's state.
    pub(super) changes: watch::Sender<u64>,
    pub(super) counts: super::client::CallCounts,
    budget: Mutex<Budget>,
    patience: Patience,
    waiting: Semaphore,
}

type Answer = Result<Response<Body>, (TransportError, Option<Request<Body>>)>;
type Attempt = Pin<Box<dyn Future<Output = (Arc<Endpoint>, Answer)> + Send>>;

impl Balancer {
    pub(super) fn new(
        name: String,
        timing: CallTiming,
        counts: super::client::CallCounts,
        changes: watch::Sender<u64>,
    ) -> Self {
        Self {
            name,
            timing,
            endpoints: ArcSwap::default(),
            changes,
            counts,
            budget: Mutex::new(Budget::new()),
            patience: Patience::new(timing.second_question),
            waiting: Semaphore::new(MAX_WAITING),
        }
    }

    pub(super) async fn call(
        &self,
        request: Request<Body>,
    ) -> Result<Response<Body>, TransportError> {
        let deadline = self.deadline(&request);
        let call = async {
            if self.is_repeatable(&request) {
                self.call_repeatable(request).await
            } else {
                self.call_once(request).await
            }
        };
        let answer = tokio::time::timeout(deadline, call).await;
        answer.unwrap_or_else(|_| Err(self.late(deadline)))
    }

    fn is_repeatable(&self, request: &Request<Body>) -> bool {
        let path = request.uri().path();
        let named = NAMED_WRITES.contains(&path) && request.headers().contains_key(WRITE_ID);
        REPEATABLE.contains(&path) || (named && self.is_all_postern())
    }

    /// Others would write twice.
    fn is_all_postern(&self) -> bool {
        let endpoints = self.endpoints.load();
        let mut ready = endpoints.iter().filter(|one| one.ready().is_some());
        ready.all(|one| one.about().version.is_some())
    }

    /// A call to this endpoint and no other.
    pub(super) async fn call_at(
        &self,
        endpoint: Arc<Endpoint>,
        request: Request<Body>,
    ) -> Result<Response<Body>, TransportError> {
        let deadline = self.deadline(&request);
        let answer = tokio::time::timeout(deadline, self.send(&endpoint, request)).await;
        if let Ok(answer) = answer {
            return answer.map_err(|(error, _)| error);
        }
        self.failed(&endpoint);
        Err(self.late(deadline))
    }

    /// Sends a call, and takes note of how it went.
    async fn send(&self, endpoint: &Arc<Endpoint>, request: Request<Body>) -> Answer {
        let answer = Arc::clone(endpoint).send(request).await;
        self.note(endpoint, &answer);
        answer
    }

    fn note(&self, endpoint: &Endpoint, answer: &Answer) {
        if answer.as_ref().map_or(true, is_unavailable) {
            self.failed(endpoint);
        }
    }

    /// A call failed there, or was answered sooner elsewhere.
    pub(super) fn failed(&self, endpoint: &Endpoint) {
        if !endpoint.failed() {
            return;
        }
        let endpoints = self.endpoints.load();
        let ready = || endpoints.iter().filter(|one| one.ready().is_some());
        let out = ready().filter(|one| one.is_out()).count();
        if !outlier::has_room(out, ready().count()) {
            return;
        }
        let pause = endpoint.leave_out();
        tracing::warn!(
            target_url = self.name,
            peer = %endpoint.address,
            ?pause,
            "its calls fail again and again; it gets none for a while"
        );
    }

    fn deadline(&self, request: &Request<Body>) -> Duration {
        let stated = grpc_timeout(request.headers());
        stated.map_or(self.timing.answer, |stated| stated.min(self.timing.answer))
    }

    fn late(&self, deadline: Duration) -> TransportError {
        let detail = format!("no answer from {} within {deadline:?}", self.name);
        TransportError::new(Failure::Deadline, None, detail)
    }

    /// Sends a call on to another endpoint only as long as no server can have seen it.
    async fn call_once(
        &self,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, TransportError> {
        let mut avoid = Vec::new();
        loop {
            let endpoint = self.acquire(&avoid).await?;
            avoid.push(endpoint.address);
            match self.send(&endpoint, request).await {
                Ok(response) => return Ok(response),
                Err((_, Some(unsent))) if avoid.len() < MAX_SENT => {
                    self.counts.moved();
                    request = unsent;
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    async fn call_repeatable(
        &self,
        request: Request<Body>,
    ) -> Result<Response<Body>, TransportError> {
        let kept = Kept::new(request).await?;
        self.budget
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .earn();
        let first = self.acquire(&[]).await?;
        let mut asked = vec![first.address];
        // Those that have not answered yet.
        let mut open = vec![Arc::clone(&first)];
        let mut attempts: FuturesUnordered<Attempt> = FuturesUnordered::new();
        attempts.push(attempt(first, kept.request()));
        let begin = Instant::now();
        let mut hedge_at = begin + self.patience.now();
        loop {
            let answered = if asked.len() < MAX_SENT {
                tokio::time::timeout_at(hedge_at, attempts.next()).await
            } else {
                Ok(attempts.next().await)
            };
            match answered {
                // It takes long: also ask somebody else, who must be another.
                Err(_) => {
                    hedge_at = Instant::now() + self.patience.now().saturating_mul(2);
                    if let Some(other) = self.other(&asked) {
                        self.counts.hedged();
                        asked.push(other.address);
                        open.push(Arc::clone(&other));
                        attempts.push(attempt(other, kept.request()));
                    }
                }
                Ok(Some((by, answer))) => {
                    open.retain(|one| !Arc::ptr_eq(one, &by));
                    self.note(&by, &answer);
                    let (error, unsent) = match answer {
                        // It says that it cannot just now: perhaps another one can.
                        Ok(response) if is_unavailable(&response) => {
                            let Some(other) = self.other(&asked) else {
                                return Ok(response);
                            };
                            self.counts.moved();
                            asked.push(other.address);
                            open.push(Arc::clone(&other));
                            attempts.push(attempt(other, kept.request()));
                            continue;
                        }
                        Ok(response) => {
                            self.patience.observe(begin.elapsed());
                            for slow in open {
                                self.failed(&slow);
                            }
                            return Ok(response);
                        }
                        Err(failed) => failed,
                    };
                    // Broken: ask somebody else, unless another question is still under way.
                    if !attempts.is_empty() {
                        continue;
                    }
                    if asked.len() >= MAX_SENT || (unsent.is_none() && !self.may_ask_again()) {
                        return Err(error);
                    }
                    self.counts.moved();
                    let other = self.acquire(&asked).await.map_err(|_| error)?;
                    asked.push(other.address);
                    open.push(Arc::clone(&other));
                    attempts.push(attempt(other, kept.request()));
                }
                Ok(None) => return Err(self.nobody()),
            }
        }
    }

    /// One that has not been asked, as far as the budget goes.
    fn other(&self, asked: &[SocketAddr]) -> Option<Arc<Endpoint>> {
        if asked.len() >= MAX_SENT {
            return None;
        }
        self.pick(asked).filter(|_| self.may_ask_again())
    }

    fn may_ask_again(&self) -> bool {
        self.budget
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .spend()
    }

    /// A ready endpoint that is none of `avoid`.
    fn pick(&self, avoid: &[SocketAddr]) -> Option<Arc<Endpoint>> {
        let endpoints = self.endpoints.load();
        let mut ready: Vec<_> = endpoints
            .iter()
            .filter(|endpoint| !avoid.contains(&endpoint.address) && endpoint.ready().is_some())
            .collect();
        // Rather one that is left out than none.
        if !ready.iter().all(|endpoint| endpoint.is_out()) {
            ready.retain(|endpoint| !endpoint.is_out());
        }
        let loads: Vec<_> = ready.iter().map(|endpoint| endpoint.load()).collect();
        let random = u64::from_ne_bytes(crate::crypto::random::bytes());
        let (high, low) = ((random >> 32) as u32, (random & 0xffff_ffff) as u32);
        ready
            .get(choose(&loads, high, low)?)
            .map(|endpoint| Arc::clone(endpoint))
    }

    /// As `pick`, but rather one of `avoid` than none, and waits for one to become ready.
    async fn acquire(&self, avoid: &[SocketAddr]) -> Result<Arc<Endpoint>, TransportError> {
        let now = || self.pick(avoid).or_else(|| self.pick(&[]));
        if let Some(endpoint) = now() {
            return Ok(endpoint);
        }
        let _place = self.waiting.try_acquire().map_err(|_| self.nobody())?;
        let mut changes = self.changes.subscribe();
        let wait = async {
            loop {
                if let Some(endpoint) = now() {
                    return endpoint;
                }
                // The sender lives in `self`.
                let _ = changes.changed().await;
            }
        };
        let found = tokio::time::timeout(self.timing.wait_for_endpoint, wait).await;
        found.map_err(|_| self.nobody())
    }

    fn nobody(&self) -> TransportError {
        self.counts.nobody();
        let endpoints = self.endpoints.load();
        let states: Vec<_> = endpoints
            .iter()
            .map(|endpoint| format!("{} {}", endpoint.address, endpoint.state().0))
            .collect();
        let states = if states.is_empty() {
            "no address is known".to_owned()
        } else {
            states.join("; ")
        };
        let detail = format!("no endpoint of {} is ready: {states}", self.name);
        TransportError::new(Failure::NoEndpoint, None, detail)
    }
}

/// UNAVAILABLE, in an answer that is nothing else.
pub(super) fn is_unavailable<T>(response: &Response<T>) -> bool {
    let status = response.headers().get("grpc-status");
    status.is_some_and(|status| status == "14")
}

fn attempt(endpoint: Arc<Endpoint>, request: Request<Body>) -> Attempt {
    Box::pin(async move {
        let answer = Arc::clone(&endpoint).send(request).await;
        (endpoint, answer)
    })
}

/// A question that can be asked again.
struct Kept {
    head: http::request::Parts,
    body: Bytes,
}

impl Kept {
    async fn new(request: Request<Body>) -> Result<Self, TransportError> {
        let (head, body) = request.into_parts();
        let body = Limited::new(body, MAX_KEPT)
            .collect()
            .await
            .map_err(|error| {
                let failure = if error.is::<LengthLimitError>() {
                    Failure::TooLarge
                } else {
                    Failure::NotSent
                };
                TransportError::new(failure, None, format!("cannot read the request: {error}"))
            })?;
        Ok(Self {
            head,
            body: body.to_bytes(),
        })
    }

    fn request(&self) -> Request<Body> {
        let mut request = Request::new(Body::new(Full::new(self.body.clone())));
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.head.uri.clone();
        *request.headers_mut() = self.head.headers.clone();
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn of_two_the_less_burdened() {
        assert_eq!(choose(&[], 1, 2), None);
        assert_eq!(choose(&[7.0], 5, 9), Some(0));
        assert_eq!(choose(&[3.0, 1.0], 0, 0), Some(1));
        assert_eq!(choose(&[3.0, 1.0], 1, 0), Some(1));
    }

    proptest! {
        #[test]
        fn the_most_burdened_of_several_is_never_chosen(
            loads in prop::collection::vec(0.0..10.0, 2..9),
            first: u32,
            second: u32,
        ) {
            let mut loads: Vec<f64> = loads;
            loads.push(100.0);
            let chosen = choose(&loads, first, second).unwrap();
            prop_assert!(chosen < loads.len() - 1);
        }

        #[test]
        fn second_questions_are_a_fifth_and_a_few(asked in 0_u32..2000) {
            let mut budget = Budget::new();
            let mut second = 0_u32;
            for _ in 0..asked {
                budget.earn();
                while budget.spend() {
                    second += 1;
                }
            }
            prop_assert!(f64::from(second) <= 32.0 + f64::from(asked) * 0.2 + 1.0);
        }
    }
}
