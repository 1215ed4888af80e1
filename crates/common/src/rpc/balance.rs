//! Which endpoint gets a call, and what happens when it does not answer.
//!
//! A call goes to the less burdened of two random ready endpoints. A call that no server has seen
//! goes to another one. A call that may safely be made twice is also asked at a second endpoint
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
use super::transport::{Failure, TransportError, grpc_timeout};

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
pub(super) struct Budget {
    tokens: f64,
}

impl Budget {
    const LEAST: f64 = 32.0;
    const SHARE: f64 = 0.2;
    const MOST: f64 = 1000.0;

    pub(super) fn new() -> Self {
        Self {
            tokens: Self::LEAST,
        }
    }

    /// A first question was asked.
    pub(super) fn earn(&mut self) {
        self.tokens = (self.tokens + Self::SHARE).min(Self::MOST);
    }

    /// Whether a second one may be.
    pub(super) fn spend(&mut self) -> bool {
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
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
    waiting: Semaphore,
}

type Attempt = Pin<
    Box<
        dyn Future<
                Output = (
                    SocketAddr,
                    Result<Response<Body>, (TransportError, Option<Request<Body>>)>,
                ),
            > + Send,
    >,
>;

impl Balancer {
    pub(super) fn new(name: String, timing: CallTiming, counts: super::client::CallCounts) -> Self {
        Self {
            name,
            timing,
            endpoints: ArcSwap::default(),
            changes: watch::Sender::new(0),
            counts,
            budget: Mutex::new(Budget::new()),
            waiting: Semaphore::new(MAX_WAITING),
        }
    }

    pub(super) async fn call(
        &self,
        request: Request<Body>,
    ) -> Result<Response<Body>, TransportError> {
        let deadline = self.deadline(&request);
        let call = async {
            if REPEATABLE.contains(&request.uri().path()) {
                self.call_repeatable(request).await
            } else {
                self.call_once(request).await
            }
        };
        let answer = tokio::time::timeout(deadline, call).await;
        answer.unwrap_or_else(|_| Err(self.late(deadline)))
    }

    /// A call to this endpoint and no other.
    pub(super) async fn call_at(
        &self,
        endpoint: Arc<Endpoint>,
        request: Request<Body>,
    ) -> Result<Response<Body>, TransportError> {
        let deadline = self.deadline(&request);
        match tokio::time::timeout(deadline, endpoint.send(request)).await {
            Ok(answer) => answer.map_err(|(error, _)| error),
            Err(_) => Err(self.late(deadline)),
        }
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
            match endpoint.send(request).await {
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
        let mut attempts: FuturesUnordered<Attempt> = FuturesUnordered::new();
        attempts.push(attempt(first, kept.request()));
        let mut hedge_at = Instant::now() + self.timing.second_question;
        loop {
            let answered = if asked.len() < MAX_SENT {
                tokio::time::timeout_at(hedge_at, attempts.next()).await
            } else {
                Ok(attempts.next().await)
            };
            match answered {
                // It takes long: also ask somebody else, who must be another.
                Err(_) => {
                    hedge_at = Instant::now() + self.timing.second_question.saturating_mul(2);
                    if let Some(other) = self.pick(&asked).filter(|_| self.may_ask_again()) {
                        self.counts.hedged();
                        asked.push(other.address);
                        attempts.push(attempt(other, kept.request()));
                    }
                }
                Ok(Some((_, Ok(response)))) => return Ok(response),
                // Broken: ask somebody else, unless another question is still under way.
                Ok(Some((_, Err((error, unsent))))) => {
                    if !attempts.is_empty() {
                        continue;
                    }
                    if asked.len() >= MAX_SENT || (unsent.is_none() && !self.may_ask_again()) {
                        return Err(error);
                    }
                    self.counts.moved();
                    let other = self.acquire(&asked).await.map_err(|_| error)?;
                    asked.push(other.address);
                    attempts.push(attempt(other, kept.request()));
                }
                Ok(None) => return Err(self.nobody()),
            }
        }
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
        let ready: Vec<_> = endpoints
            .iter()
            .filter(|endpoint| !avoid.contains(&endpoint.address) && endpoint.ready().is_some())
            .collect();
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

fn attempt(endpoint: Arc<Endpoint>, request: Request<Body>) -> Attempt {
    Box::pin(async move { (endpoint.address, endpoint.send(request).await) })
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
