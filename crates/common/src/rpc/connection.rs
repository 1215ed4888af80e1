//! One endpoint as callers see it: an address, whether it takes calls, how burdened it is.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Request, Response, Uri};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http2};
use jiff::Timestamp;
use tonic::body::Body;
use tower::Service;

use super::balance::is_unavailable;
use super::discovery::Target;
use super::endpoint::{Penalty, State};
use super::meters::EndpointMeters;
use super::outlier::Outlier;
use super::transport::{Failure, TransportError};
use crate::telemetry::log::chain;

/// One address of a service.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    pub(super) target: Arc<Target>,
    shown: Mutex<Shown>,
    in_flight: AtomicUsize,
    record: Mutex<Record>,
    meters: EndpointMeters,
}

/// What its calls have been like.
#[derive(Debug)]
struct Record {
    penalty: Penalty,
    outlier: Outlier,
}

/// What a peer has told about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct About {
    /// Of its Postern.
    pub(super) version: Option<String>,
    /// Of its records (a databroker): equal on all that share a storage.
    pub(super) records: Option<u64>,
}

#[derive(Debug)]
struct Shown {
    state: State,
    since: Timestamp,
    about: About,
    sender: Option<http2::SendRequest<Body>>,
}

impl Endpoint {
    pub(super) fn new(address: SocketAddr, target: Arc<Target>, meters: EndpointMeters) -> Self {
        let now = std::time::Instant::now();
        meters.state(&State::new());
        Self {
            address,
            target,
            shown: Mutex::new(Shown {
                state: State::new(),
                since: Timestamp::now(),
                about: About::default(),
                sender: None,
            }),
            in_flight: AtomicUsize::new(0),
            record: Mutex::new(Record {
                penalty: Penalty::new(now),
                outlier: Outlier::default(),
            }),
            meters,
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
        let in_flight = u32::try_from(self.in_flight.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        f64::from(in_flight) + self.record().penalty.points(std::time::Instant::now())
    }

    /// A call has been answered.
    pub(super) fn answered(&self, took: Duration) {
        self.meters.answered(took);
        self.record().outlier.answered(std::time::Instant::now());
    }

    /// A call has failed, or somebody else had to be asked. Returns whether so many have in a row
    /// that it should be left out.
    pub(super) fn failed(&self) -> bool {
        let now = std::time::Instant::now();
        self.meters.failed();
        let mut record = self.record();
        record.penalty.add(now);
        record.outlier.failed(now)
    }

    /// Whether it is left out because of its calls.
    pub(super) fn is_out(&self) -> bool {
        self.record().outlier.is_out(std::time::Instant::now())
    }

    /// Leaves it out, and returns for how long.
    pub(super) fn leave_out(&self) -> Duration {
        self.meters.left_out();
        self.record().outlier.leave_out(std::time::Instant::now())
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn about(&self) -> About {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.about.clone()
    }

    pub(super) fn tell_about(&self, about: About) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.about = about;
    }

    pub(super) fn show(&self, state: &State, sender: Option<http2::SendRequest<Body>>) {
        self.meters.state(state);
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
        let begin = Instant::now();
        let mut direct = Direct {
            sender,
            target: Arc::clone(&self.target),
        };
        match direct.send(request).await {
            Ok(response) => {
                if !is_unavailable(&response) {
                    self.answered(begin.elapsed());
                }
                Ok(response.map(|body| Body::new(Answering { body, counted })))
            }
            Err(mut failed) => {
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
