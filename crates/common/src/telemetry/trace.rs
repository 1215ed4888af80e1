//! Spans: what one request did in each service, told to a collector by OTLP.
//!
//! Off unless the configuration says where spans go. Then [`on`] is `None`, every [`Span`] is empty,
//! and nothing is allocated or sent. On, a span is put into a bounded queue when it ends; one task
//! sends what is there ([`export`]). A collector that is slow or away costs spans, never a request.
//!
//! A request gets its [`Place`] in a trace at the edge. From there the place travels with it: to
//! authorize with the question, to databroker in the metadata of calls, to upstreams as `traceparent`.
//! Spans hold what the access log holds by default, and never a query, a header or a claim.

mod calls;
mod export;
mod place;
mod span;

use std::pin::pin;
use std::sync::OnceLock;
use std::task::Poll;

use opentelemetry::proto::trace::v1 as proto;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;

use crate::rpc::stubs::opentelemetry;

pub use calls::{TRACEPARENT, TRACESTATE, mark, pass_on, serve};
pub use export::{ExportError, start};
pub use place::Place;
pub use span::{Kind, Span, Value};

use place::Sampler;

/// Once a process, like the log.
static TRACER: OnceLock<Tracer> = OnceLock::new();

tokio::task_local! {
    /// What the current task works for, where that is traced.
    static CURRENT: Place;
}

/// Where spans go when they end.
#[derive(Debug)]
pub struct Tracer {
    sampler: Sampler,
    queue: mpsc::Sender<proto::Span>,
    /// Spans for which the queue had no room.
    overflowed: Counter,
    /// Bytes of a text in a span.
    longest_value: usize,
}

/// Whether this process traces.
pub fn on() -> Option<&'static Tracer> {
    TRACER.get()
}

/// What the current task works for, if that is traced.
pub fn current() -> Option<Place> {
    on()?;
    CURRENT.try_with(|place| *place).ok()
}

/// Does `work` for the span at `place`; calls to other services tell it on.
pub async fn within<F: Future>(place: Option<Place>, work: F) -> F::Output {
    let mut work = pin!(work);
    std::future::poll_fn(|context| match place {
        None => work.as_mut().poll(context),
        Some(place) => CURRENT.sync_scope(place, || -> Poll<_> { work.as_mut().poll(context) }),
    })
    .await
}
