//! What generated clients call: servers in this process, or balanced endpoints elsewhere.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::{Service, ServiceExt as _};

use super::client::{EndpointStatus, Remote, RemoteConfig, Switch};
use super::connection::Endpoint;
use super::discovery::{Lookup, TargetError};
use super::line::Line;
use crate::telemetry::trace;

/// Carries the calls of any generated client: `DataBrokerServiceClient::new(transport)`.
#[derive(Debug, Clone)]
pub struct Transport {
    way: Way,
}

#[derive(Debug, Clone)]
enum Way {
    Local(Routes),
    Remote(Arc<Switch>),
    /// One endpoint of the remote service.
    One(Arc<Remote>, Arc<Endpoint>),
}

/// A call that got no answer from a server. The server's own refusals are a [`Status`] without
/// this in its chain; see [`TransportError::behind`].
#[derive(Debug)]
pub struct TransportError {
    /// What happened.
    pub failure: Failure,
    /// The endpoint that was asked, if one was.
    pub peer: Option<SocketAddr>,
    detail: String,
    /// Tells tonic which code to give the caller.
    status: Status,
}

/// How a question inside of a stream went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered after this time.
    Answered(Duration),
    /// It was not, or somebody else was sooner.
    Failed,
    /// It was asked here too, because another was slow.
    AskedElsewhere,
    /// It was lost here and went elsewhere.
    Moved,
    /// No endpoint could be asked.
    Nobody,
}

/// How a call failed before a server answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No endpoint was ready in time.
    NoEndpoint,
    /// The connection could not take the call; no server has seen it.
    NotSent,
    /// The connection broke while the answer was outstanding.
    Broken,
    /// No answer within the deadline.
    Deadline,
    /// The request is larger than what may be sent.
    TooLarge,
}

impl TransportError {
    pub(super) fn new(
        failure: Failure,
        peer: Option<SocketAddr>,
        detail: impl Into<String>,
    ) -> Self {
        let detail = detail.into();
        let code = match failure {
            Failure::NoEndpoint | Failure::NotSent | Failure::Broken => Code::Unavailable,
            Failure::Deadline => Code::DeadlineExceeded,
            Failure::TooLarge => Code::ResourceExhausted,
        };
        let status = Status::new(code, detail.clone());
        Self {
            failure,
            peer,
            detail,
            status,
        }
    }

    /// The transport's failure behind a status that a client returned, if that is what it was.
    pub fn behind(status: &Status) -> Option<&Self> {
        let mut source = std::error::Error::source(status);
        while let Some(error) = source {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            source = error.source();
        }
        None
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer {
            Some(peer) => write!(f, "{peer}: {}", self.detail),
            None => f.write_str(&self.detail),
        }
    }
}

impl std::error::Error for TransportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.status)
    }
}

impl From<Infallible> for TransportError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl Transport {
    /// Calls servers in this process: no socket, no balancing, the same clients.
    pub fn local(routes: Routes) -> Self {
        Self {
            way: Way::Local(routes.prepare()),
        }
    }

    /// Calls a service that runs elsewhere, balanced over all its addresses. Must be called
    /// inside of a tokio runtime, on which the connections then live.
    pub fn remote(config: RemoteConfig) -> Result<Self, TargetError> {
        Ok(Self {
            way: Way::Remote(Arc::new(Switch::start(config)?)),
        })
    }

    /// Calls from now on go by another configuration, on this transport and all its clones; those
    /// under way are finished where they are. Returns once endpoints are there, or after a while.
    pub async fn replace(&self, config: RemoteConfig) -> Result<(), TargetError> {
        match &self.way {
            Way::Remote(switch) => switch.replace(config).await,
            // What runs in this process, and an endpoint that somebody has chosen, stay.
            Way::Local(_) | Way::One(..) => Ok(()),
        }
    }

    /// One transport for each endpoint that takes calls now, for those who keep a stream to every
    /// one; for a server in this process the same transport again. Calls on them are never moved
    /// to another endpoint.
    pub fn each(&self) -> Vec<Self> {
        match &self.way {
            Way::Local(_) => vec![self.clone()],
            Way::One(_, endpoint) => {
                let ready = endpoint.ready().map(|_| self.clone());
                ready.into_iter().collect()
            }
            Way::Remote(switch) => {
                let remote = switch.current();
                let endpoints = remote.balancer.endpoints.load();
                let ready = endpoints
                    .iter()
                    .filter(|endpoint| endpoint.ready().is_some());
                let one = |endpoint| Way::One(Arc::clone(&remote), Arc::clone(endpoint));
                ready.map(|endpoint| Self { way: one(endpoint) }).collect()
            }
        }
    }

    /// The address behind a transport that [`Self::each`] returned.
    pub fn peer(&self) -> Option<SocketAddr> {
        match &self.way {
            Way::One(_, endpoint) => Some(endpoint.address),
            Way::Local(_) | Way::Remote(_) => None,
        }
    }

    /// Opens a connection of one's own to the endpoint behind a transport that [`Self::each`]
    /// returned, all within `limit`. Its tasks run on the `LocalSet` of the caller.
    pub async fn dial(&self, limit: Duration) -> Result<Line, TransportError> {
        match &self.way {
            Way::Local(routes) => Ok(Line::local(routes.clone())),
            Way::One(_, endpoint) => Line::dial(endpoint, limit).await,
            Way::Remote(_) => Err(TransportError::new(
                Failure::NotSent,
                None,
                "a connection leads to one endpoint, and this transport to many",
            )),
        }
    }

    /// Whether the endpoint behind a transport that [`Self::each`] returned is left out, because its
    /// calls fail.
    pub fn is_left_out(&self) -> bool {
        match &self.way {
            Way::One(_, endpoint) => endpoint.is_out(),
            Way::Local(_) | Way::Remote(_) => false,
        }
    }

    /// Whether both are transports that [`Self::each`] returned for the same endpoint, known since
    /// the same configuration.
    pub fn is_same_endpoint(&self, other: &Self) -> bool {
        match (&self.way, &other.way) {
            (Way::One(_, one), Way::One(_, other)) => Arc::ptr_eq(one, other),
            (Way::Local(_), Way::Local(_)) => true,
            _ => false,
        }
    }

    /// Whether `one`, which [`Self::each`] returned, is still an endpoint by DNS and the configuration,
    /// whether it takes calls or not.
    pub fn knows(&self, one: &Self) -> bool {
        match (&self.way, &one.way) {
            (Way::Remote(switch), Way::One(_, endpoint)) => {
                let endpoints = switch.current().balancer.endpoints.load_full();
                endpoints.iter().any(|known| Arc::ptr_eq(known, endpoint))
            }
            _ => self.is_same_endpoint(one),
        }
    }

    /// Takes note of how a question inside of a stream went, which only its asker can tell. All but
    /// the last mean something on transports that [`Self::each`] returned.
    pub fn note(&self, outcome: Outcome) {
        match (&self.way, outcome) {
            (Way::One(_, endpoint), Outcome::Answered(took)) => endpoint.answered(took),
            (Way::One(remote, endpoint), Outcome::Failed) => remote.balancer.failed(endpoint),
            (Way::One(remote, _), Outcome::AskedElsewhere) => remote.balancer.counts.hedged(),
            (Way::One(remote, _), Outcome::Moved) => remote.balancer.counts.moved(),
            (Way::Remote(switch), Outcome::Nobody) => switch.current().balancer.counts.nobody(),
            _ => {}
        }
    }

    /// Whether a call would find an endpoint without waiting.
    pub fn is_ready(&self) -> bool {
        matches!(self.way, Way::Local(_)) || !self.each().is_empty()
    }

    /// Changes whenever an endpoint comes, goes, or changes its state; `None` for a server in
    /// this process.
    pub fn changes(&self) -> Option<watch::Receiver<u64>> {
        match &self.way {
            Way::Local(_) => None,
            Way::Remote(switch) => Some(switch.changes()),
            Way::One(remote, _) => Some(remote.balancer.changes.subscribe()),
        }
    }

    /// How the endpoints stand; empty for a server in this process.
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        match &self.way {
            Way::Local(_) => Vec::new(),
            Way::Remote(switch) => switch.current().status(),
            Way::One(remote, _) => remote.status(),
        }
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> Option<super::client::CallCounts> {
        match &self.way {
            Way::Local(_) => None,
            Way::Remote(switch) => Some(switch.current().balancer.counts.clone()),
            Way::One(remote, _) => Some(remote.balancer.counts.clone()),
        }
    }

    /// How the look-up of each URL stands; empty for a server in this process.
    pub fn lookups(&self) -> Vec<(String, Lookup)> {
        match &self.way {
            Way::Local(_) => Vec::new(),
            Way::Remote(switch) => switch.current().lookups(),
            Way::One(remote, _) => remote.lookups(),
        }
    }
}

impl Service<Request<Body>> for Transport {
    type Response = Response<Body>;
    type Error = TransportError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, TransportError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        trace::mark(request.headers_mut());
        match &self.way {
            Way::Local(routes) => {
                let routes = routes.clone();
                Box::pin(call_local(routes, request))
            }
            Way::Remote(switch) => {
                let remote = switch.current();
                Box::pin(async move { remote.balancer.call(request).await })
            }
            Way::One(remote, endpoint) => {
                let (remote, endpoint) = (Arc::clone(remote), Arc::clone(endpoint));
                Box::pin(async move { remote.balancer.call_at(endpoint, request).await })
            }
        }
    }
}

pub(super) async fn call_local(
    routes: Routes,
    request: Request<Body>,
) -> Result<Response<Body>, TransportError> {
    let deadline = grpc_timeout(request.headers());
    let answer = routes.oneshot(request);
    match deadline {
        None => Ok(answer.await?),
        Some(deadline) => match tokio::time::timeout(deadline, answer).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(TransportError::new(
                Failure::Deadline,
                None,
                format!("no answer within {deadline:?}"),
            )),
        },
    }
}

/// The deadline that a client states, by the gRPC specification: up to eight digits and a unit.
/// What cannot be read counts as none.
pub(super) fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::stubs::registry::registry_client::RegistryClient;
    use super::super::test_service::{Named, all, slow};
    use super::*;

    #[tokio::test]
    async fn generated_clients_call_servers_in_this_process() {
        let service = Named::new("here");
        let mut client = RegistryClient::new(Transport::local(service.routes()));
        let list = client.list(all()).await.unwrap().into_inner();
        assert_eq!(list.services[0].endpoint, "here");
        let mut stream = client.watch(all()).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
        let mut request = tonic::Request::new(slow());
        request.set_timeout(Duration::from_millis(20));
        let late = client.list(request).await.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded);
    }

    #[test]
    fn deadlines_are_read_as_the_specification_writes_them() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            grpc_timeout(&headers)
        };
        assert_eq!(read("10S"), Some(Duration::from_secs(10)));
        assert_eq!(
            read("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        for bad in ["", "S", "1", "123456789S", "-1S", "1.5S", "1s", "1 S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_failure_can_be_told_from_a_refusal() {
        let error = TransportError::new(Failure::Broken, None, "connection reset");
        let status = Status::from_error(Box::new(error));
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(
            TransportError::behind(&status).unwrap().failure,
            Failure::Broken
        );
        assert!(TransportError::behind(&Status::unavailable("draining")).is_none());
    }
}
