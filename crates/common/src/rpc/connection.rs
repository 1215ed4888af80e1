//! One endpoint as callers see it: an address, whether it takes calls, how burdened it is.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Request, Response, Uri};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http2};
use jiff::Timestamp;
use tonic::body::Body;
use tower::Service;

use super::discovery::Target;
use super::endpoint::{Penalty, State};
use super::transport::{Failure, TransportError};
use crate::telemetry::log::chain;

/// One address of a service.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    pub(super) target: Arc<Target>,
    shown: Mutex<Shown>,
    in_flight: AtomicUsize,
    penalty: Mutex<Penalty>,
}

#[derive(Debug)]
struct Shown {
    state: State,
    since: Timestamp,
    sender: Option<http2::SendRequest<Body>>,
}

impl Endpoint {
    pub(super) fn new(address: SocketAddr, target: Arc<Target>) -> Self {
        Self {
            address,
            target,
            shown: Mutex::new(Shown {
                state: State::new(),
                since: Timestamp::now(),
                sender: None,
            }),
            in_flight: AtomicUsize::new(0),
            penalty: Mutex::new(Penalty::new(std::time::Instant::now())),
        }
    }

    /// Its connection, if it takes calls.
    pub(super) fn ready(&self) -> Option<http2::SendRequest<Body>> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = shown
            .sender
            .as_ref()
            .filter(|_| shown.state == State::Ready)?;
        (!sender.is_closed()).then(|| sender.clone())
    }

    pub(super) fn state(&self) -> (State, Timestamp) {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        (shown.state.clone(), shown.since)
    }

    /// Calls in flight, and what recent failures weigh.
    pub(super) fn load(&self) -> f64 {
        let penalty = *self.penalty.lock().unwrap_or_else(PoisonError::into_inner);
        let in_flight = u32::try_from(self.in_flight.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        f64::from(in_flight) + penalty.points(std::time::Instant::now())
    }

    fn fail(&self) {
        let mut penalty = self.penalty.lock().unwrap_or_else(PoisonError::into_inner);
        penalty.add(std::time::Instant::now());
    }

    pub(super) fn show(&self, state: &State, sender: Option<http2::SendRequest<Body>>) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::discriminant(&shown.state) != std::mem::discriminant(state) {
            shown.since = Timestamp::now();
        }
        shown.state = state.clone();
        shown.sender = sender;
    }

    /// Sends one call. A call that was not sent comes back with the error.
    pub(super) async fn send(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> Result<Response<Body>, (TransportError, Option<Request<Body>>)> {
        let error = |failure, detail| TransportError::new(failure, Some(self.address), detail);
        let Some(sender) = self.ready() else {
            let error = error(Failure::NotSent, "the connection is gone".to_owned());
            return Err((error, Some(request)));
        };
        let counted = Counted::new(&self);
        let mut direct = Direct {
            sender,
            target: Arc::clone(&self.target),
        };
        match direct.send(request).await {
            Ok(response) => {
                let unavailable = response.headers().get("grpc-status");
                if unavailable.is_some_and(|status| status == "14") {
                    self.fail();
                }
                Ok(response.map(|body| Body::new(Answering { body, counted })))
            }
            Err(mut failed) => {
                self.fail();
                let detail = chain(failed.error());
                let failure = match failed.take_message() {
                    Some(unsent) => {
                        return Err((error(Failure::NotSent, detail), Some(unsent)));
                    }
                    None => Failure::Broken,
                };
                Err((error(failure, detail), None))
            }
        }
    }
}

/// Counts a call as in flight until its answer has ended.
#[derive(Debug)]
struct Counted(Arc<Endpoint>);

impl Counted {
    fn new(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(endpoint))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer; a connection that breaks shows as a failure of the transport.
struct Answering {
    body: Incoming,
    counted: Counted,
}

impl http_body::Body for Answering {
    type Data = Bytes;
    type Error = TransportError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TransportError>>> {
        let this = self.get_mut();
        Pin::new(&mut this.body)
            .poll_frame(context)
            .map_err(|error| {
                let address = Some(this.counted.0.address);
                TransportError::new(Failure::Broken, address, chain(&error))
            })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection without balancing.
#[derive(Debug, Clone)]
pub(super) struct Direct {
    pub(super) sender: http2::SendRequest<Body>,
    pub(super) target: Arc<Target>,
}

impl Direct {
    async fn send(
        &mut self,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
        let path = request.uri().path_and_query().cloned();
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.target.scheme());
        parts.authority = Some(self.target.authority.clone());
        parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
        *request.version_mut() = http::Version::HTTP_2;
        self.sender.try_send_request(request).await
    }
}

impl Service<Request<Body>> for Direct {
    type Response = Response<Body>;
    type Error = TransportError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, TransportError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut direct = self.clone();
        Box::pin(async move {
            match direct.send(request).await {
                Ok(response) => Ok(response.map(Body::new)),
                Err(failed) => Err(TransportError::new(
                    Failure::Broken,
                    None,
                    chain(failed.error()),
                )),
            }
        })
    }
}
