//! The body of an answer, with what has to live until its last byte: the log record, the entry in
//! the registry of open requests, the lease of the upstream's connection, and the deadlines.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use postern_common::lifecycle::Busy;

use crate::access_log::Record;
use crate::connection::Client;
use crate::forward::exchange::{Progress, TimedOut, Timeouts};
use crate::guarded::Active;
use crate::open::{Closed, Open};
use crate::respond;
use crate::upstream::pool::Lease;

/// What goes to a client.
#[derive(Debug)]
pub(crate) struct Body {
    source: Source,
    watch: Option<Box<Watch>>,
}

#[derive(Debug)]
enum Source {
    Full(Bytes),
    Upstream(Incoming),
    InProcess(axum::body::Body),
    End,
}

/// What watches over a body, and is let go with its last byte or when the client goes away.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    pub exchange: Option<Exchange>,
    pub open: Option<Open>,
    pub life: Option<Life>,
}

/// The upstream's side of it.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub lease: Option<Lease>,
    pub progress: Rc<Progress>,
    pub timeouts: Timeouts,
    pub grpc: bool,
}

/// The client's side of it. The record is written when this is dropped.
#[derive(Debug)]
pub(crate) struct Life {
    pub record: Record,
    pub active: Active,
    /// Keeps the connection's place among those that clients may have, also when it has become a
    /// tunnel.
    pub _client: Rc<Client>,
    pub _busy: Busy,
}

/// Why a body ends before its end. The client sees a broken answer, never a short one.
#[derive(Debug)]
pub(crate) enum BodyError {
    Upstream(hyper::Error),
    InProcess(axum::Error),
    TimedOut(TimedOut),
    Closed(Closed),
    Panicked,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Upstream(_) => f.write_str("the upstream broke off its answer"),
            Self::InProcess(_) => f.write_str("authenticate broke off its answer"),
            Self::TimedOut(which) => write!(f, "the limit {} was reached", which.key()),
            Self::Closed(why) => write!(f, "ended by proxy: {}", why.as_str()),
            Self::Panicked => f.write_str("a defect in proxy"),
        }
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Upstream(error) => Some(error),
            Self::InProcess(error) => Some(error),
            Self::TimedOut(_) | Self::Closed(_) | Self::Panicked => None,
        }
    }
}

impl BodyError {
    fn details(&self) -> &'static str {
        match self {
            Self::Upstream(_) | Self::InProcess(_) => "upstream_reset_after_response_started",
            Self::TimedOut(which) => which.details(),
            Self::Closed(why) => why.as_str(),
            Self::Panicked => "panic",
        }
    }
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self {
            source: Source::End,
            watch: None,
        }
    }

    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let source = if bytes.is_empty() {
            Source::End
        } else {
            Source::Full(bytes)
        };
        Self {
            source,
            watch: None,
        }
    }

    /// An upstream's answer, let through under `open`.
    pub(crate) fn upstream(incoming: Incoming, exchange: Exchange, open: Open) -> Self {
        open.entry()
            .answers_within(Rc::clone(&exchange.progress), exchange.timeouts);
        let mut body = Self {
            source: Source::Upstream(incoming),
            watch: Some(Box::new(Watch {
                exchange: Some(exchange),
                open: Some(open),
                life: None,
            })),
        };
        body.complete_if_ended();
        body
    }

    /// What authenticate answered in this process.
    pub(crate) fn in_process(body: axum::body::Body) -> Self {
        Self {
            source: Source::InProcess(body),
            watch: None,
        }
    }

    /// Ties the request's life to the body.
    pub(crate) fn with_life(mut self, mut life: Life) -> Self {
        if self.is_end_stream() {
            // hyper does not ask for a body that has none.
            life.record.complete();
        }
        let watch = self.watch.get_or_insert_default();
        if let Some(open) = &watch.open {
            open.entry().answers_on(life.active.activity());
        }
        watch.life = Some(life);
        self
    }

    fn complete_if_ended(&mut self) {
        if self.is_end_stream()
            && let Some(watch) = &mut self.watch
        {
            watch.complete();
        }
    }
}

impl Watch {
    /// The upstream's answer has been read to its end.
    fn complete(&mut self) {
        if let Some(exchange) = &mut self.exchange
            && let Some(lease) = exchange.lease.take()
        {
            // While the client is still sending, the connection is not free.
            if exchange.progress.request_is_done() {
                lease.complete();
            }
        }
        if let Some(life) = &mut self.life {
            life.record.complete();
        }
    }

    /// Whether somebody wants the body to end now.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Option<BodyError> {
        if let Some(open) = &self.open
            && let Poll::Ready(why) = open.poll_closed(cx)
        {
            return Some(BodyError::Closed(why));
        }
        None
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Option<BodyError> {
        let exchange = self.exchange.as_mut()?;
        let (at, which) = exchange.progress.deadline(&exchange.timeouts)?;
        // Without the lease the answer has ended, and nobody waits for more of it.
        let alarm = &mut exchange.lease.as_mut()?.alarm;
        alarm
            .poll(cx, at)
            .is_ready()
            .then_some(BodyError::TimedOut(which))
    }

    fn is_grpc(&self) -> bool {
        self.exchange.as_ref().is_some_and(|exchange| exchange.grpc)
    }
}

impl Drop for Watch {
    /// Whoever reset the stream could not say why here.
    fn drop(&mut self) {
        if let (Some(exchange), Some(life)) = (&self.exchange, &self.life)
            && exchange.progress.request_is_done()
        {
            life.active.request_is_read();
        }
        if let (Some(open), Some(life)) = (&self.open, &mut self.life)
            && let Some(why @ Closed::TimedOut(_)) = open.entry().closed()
        {
            life.record.ended(why.as_str());
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        // A panic here costs this answer, not the other requests of the connection.
        let polled = catch_unwind(AssertUnwindSafe(|| this.poll(cx)));
        match polled {
            Ok(polled) => polled,
            Err(_) => this.fail(BodyError::Panicked),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::End => true,
            Source::Full(_) => false,
            Source::Upstream(incoming) => incoming.is_end_stream(),
            Source::InProcess(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::End => SizeHint::with_exact(0),
            Source::Full(bytes) => SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(0)),
            Source::Upstream(incoming) => incoming.size_hint(),
            Source::InProcess(body) => body.size_hint(),
        }
    }
}

impl Body {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(error) = self.watch.as_mut().and_then(|watch| watch.poll_end(cx)) {
            return self.fail(error);
        }
        let polled = match &mut self.source {
            Source::End => Poll::Ready(None),
            Source::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.source = Source::End;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Source::Upstream(incoming) => Pin::new(incoming)
                .poll_frame(cx)
                .map_err(BodyError::Upstream),
            Source::InProcess(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::InProcess),
        };
        match polled {
            Poll::Pending => {
                match self
                    .watch
                    .as_mut()
                    .and_then(|watch| watch.poll_deadline(cx))
                {
                    Some(error) => self.fail(error),
                    None => Poll::Pending,
                }
            }
            Poll::Ready(Some(Err(error))) => self.fail(error),
            Poll::Ready(Some(Ok(frame))) => {
                let frame = self.pass(frame);
                self.complete_if_ended();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.source = Source::End;
                self.complete_if_ended();
                Poll::Ready(None)
            }
        }
    }

    fn pass(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        if let Some(watch) = &mut self.watch {
            if let Some(exchange) = &watch.exchange {
                exchange.progress.byte();
            }
            if let (Some(life), Some(data)) = (&mut watch.life, frame.data_ref()) {
                life.record.sent(data.len());
            }
        }
        match frame.into_trailers() {
            Err(data) => data,
            Ok(mut trailers) => {
                let forbidden: Vec<_> = trailers
                    .keys()
                    .filter(|n| !respond::may_trail(n))
                    .cloned()
                    .collect();
                for name in forbidden {
                    trailers.remove(name);
                }
                Frame::trailers(trailers)
            }
        }
    }

    /// Ends the body badly. gRPC can say so in its trailers; everybody else sees it break.
    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.source = Source::End;
        let Some(watch) = &mut self.watch else {
            return Poll::Ready(Some(Err(error)));
        };
        if let Some(exchange) = &mut watch.exchange {
            exchange.lease = None;
        }
        if let Some(life) = &mut watch.life {
            life.record.cut(error.details(), &error);
        }
        match (&error, watch.is_grpc()) {
            (BodyError::TimedOut(which), true) => {
                Poll::Ready(Some(Ok(Frame::trailers(grpc_trailers(4, which.key())))))
            }
            (BodyError::Closed(why), true) => Poll::Ready(Some(Ok(Frame::trailers(
                grpc_trailers(why.grpc(), why.text()),
            )))),
            _ => Poll::Ready(Some(Err(error))),
        }
    }
}

fn grpc_trailers(status: u8, message: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(u16::from(status)));
    trailers.insert("grpc-message", HeaderValue::from_static(message));
    trailers
}
