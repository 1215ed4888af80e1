//! One exchange with an upstream: how far it is, what it may take, and the body on its way there.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::headers::{HeaderRules, is_hop_by_hop};
use crate::limits;

/// What an exchange may take. `None`: no limit.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Timeouts {
    /// `timeout_read`: from the start of the request to its end.
    pub read: Option<Duration>,
    /// `timeout`: from the end of the request to the end of the response.
    pub total: Option<Duration>,
    /// `idle_timeout`: no byte either way.
    pub idle: Option<Duration>,
    /// `timeout_write`: from the start of the request to the end of the response.
    pub write: Option<Duration>,
}

impl Timeouts {
    /// Until the head of the answer: another proxy must open a tunnel in time, however long that
    /// may live.
    pub(crate) fn for_head(self, tunnel: bool) -> Self {
        Self {
            total: self.total.or(tunnel.then_some(limits::TUNNEL_ANSWER)),
            ..self
        }
    }
}

/// Which limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimedOut {
    /// `timeout_read`: the client did not finish its request.
    Read,
    Total,
    Idle,
    Write,
}

impl TimedOut {
    /// The configuration key behind it, for page, log and trailer.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Read => "timeout_read",
            Self::Total => "timeout",
            Self::Idle => "idle_timeout",
            Self::Write => "timeout_write",
        }
    }

    /// `response-code-details` of the access log.
    pub(crate) fn details(self) -> &'static str {
        match self {
            Self::Read => "request_overall_timeout",
            Self::Total => "upstream_response_timeout",
            Self::Idle => "stream_idle_timeout",
            Self::Write => "max_duration_timeout",
        }
    }
}

/// How far an exchange is; shared by the body going up and the body coming down.
#[derive(Debug)]
pub(crate) struct Progress {
    started: Instant,
    request_done: Cell<Option<Instant>>,
    last_byte: Cell<Instant>,
    broken_off: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Progress {
    pub(crate) fn new(started: Instant, has_body: bool) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            started,
            request_done: Cell::new((!has_body).then_some(now)),
            last_byte: Cell::new(now),
            broken_off: Cell::new(false),
            waker: RefCell::new(None),
        })
    }

    /// A byte went by.
    pub(crate) fn byte(&self) {
        self.last_byte.set(Instant::now());
    }

    /// The client broke off its request.
    pub(crate) fn request_is_broken_off(&self) -> bool {
        self.broken_off.get()
    }

    pub(crate) fn request_is_done(&self) -> bool {
        self.request_done.get().is_some()
    }

    /// The next limit that would be reached if nothing happened.
    pub(crate) fn deadline(&self, timeouts: &Timeouts) -> Option<(Instant, TimedOut)> {
        // Whoever is to blame for it, the client or an upstream that takes nothing.
        let (read, total) = match self.request_done.get() {
            None => (timeouts.read.map(|t| self.started + t), None),
            Some(done) => (None, timeouts.total.map(|t| done + t)),
        };
        let idle = timeouts.idle.map(|t| self.last_byte.get() + t);
        let write = timeouts.write.map(|t| self.started + t);
        [
            (read, TimedOut::Read),
            (total, TimedOut::Total),
            (idle, TimedOut::Idle),
            (write, TimedOut::Write),
        ]
        .into_iter()
        .filter_map(|(at, which)| Some((at?, which)))
        .min_by_key(|(at, _)| *at)
    }

    /// Wakes this task when the request has ended, well or badly.
    pub(crate) fn wake_me(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    fn done(&self) {
        if self.request_done.get().is_none() {
            self.request_done.set(Some(Instant::now()));
            self.wake();
        }
    }

    fn break_off(&self) {
        self.broken_off.set(true);
        self.wake();
    }
}

/// The client's body on its way to the upstream.
#[derive(Debug)]
pub(crate) struct RequestBody {
    incoming: Option<Incoming>,
    progress: Rc<Progress>,
    trailers: Trailers,
}

/// Which trailers of a request pass.
#[derive(Debug, Clone)]
pub(crate) enum Trailers {
    Drop,
    /// gRPC's, without the names that only we set.
    Pass(Arc<HeaderRules>),
}

impl RequestBody {
    pub(crate) fn new(incoming: Incoming, progress: Rc<Progress>, trailers: Trailers) -> Self {
        let incoming = (!incoming.is_end_stream()).then_some(incoming);
        Self {
            incoming,
            progress,
            trailers,
        }
    }

    pub(crate) fn empty(progress: Rc<Progress>) -> Self {
        Self {
            incoming: None,
            progress,
            trailers: Trailers::Drop,
        }
    }

    fn filter(&self, mut trailers: HeaderMap) -> Option<HeaderMap> {
        let Trailers::Pass(rules) = &self.trailers else {
            return None;
        };
        let forbidden: Vec<_> = trailers
            .keys()
            .filter(|n| is_hop_by_hop(n) || rules.forbids(n))
            .cloned()
            .collect();
        for name in forbidden {
            trailers.remove(name);
        }
        Some(trailers)
    }
}

/// The client's request ended early; the upstream must not take what came for all of it.
#[derive(Debug)]
pub(crate) struct RequestCut;

impl fmt::Display for RequestCut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client broke off its request")
    }
}

impl std::error::Error for RequestCut {}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = RequestCut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestCut>>> {
        let this = &mut *self;
        let Some(incoming) = &mut this.incoming else {
            return Poll::Ready(None);
        };
        match ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
            Some(Ok(frame)) => {
                this.progress.byte();
                if incoming.is_end_stream() {
                    this.progress.done();
                }
                match frame.into_trailers() {
                    Err(data) => Poll::Ready(Some(Ok(data))),
                    Ok(trailers) => {
                        this.progress.done();
                        Poll::Ready(this.filter(trailers).map(|t| Ok(Frame::trailers(t))))
                    }
                }
            }
            Some(Err(_)) => {
                this.incoming = None;
                this.progress.break_off();
                Poll::Ready(Some(Err(RequestCut)))
            }
            None => {
                this.incoming = None;
                this.progress.done();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c39_limits_run_from_where_their_keys_say() {
        let timeouts = Timeouts {
            read: Some(Duration::from_secs(400)),
            total: Some(Duration::from_secs(30)),
            idle: Some(Duration::from_secs(300)),
            write: None,
        };
        let start = Instant::now();
        let progress = Progress::new(start, true);
        progress.last_byte.set(start);
        let idle = progress.deadline(&timeouts).unwrap();
        assert_eq!(idle, (start + Duration::from_secs(300), TimedOut::Idle));
        // Bytes that go by do not put off the end of a request.
        let later = start + Duration::from_secs(200);
        progress.last_byte.set(later);
        let read = progress.deadline(&timeouts).unwrap();
        assert_eq!(read, (start + Duration::from_secs(400), TimedOut::Read));
        progress
            .request_done
            .set(Some(start + Duration::from_secs(10)));
        let total = progress.deadline(&timeouts).unwrap();
        assert_eq!(total, (start + Duration::from_secs(40), TimedOut::Total));
        let write = Timeouts {
            write: Some(Duration::from_secs(20)),
            ..timeouts
        };
        assert_eq!(progress.deadline(&write).unwrap().1, TimedOut::Write);
        assert_eq!(progress.deadline(&Timeouts::default()), None);
    }

    #[test]
    fn s23_request_trailers_cannot_forge() {
        let rules = Arc::new(HeaderRules::new("_pomerium", &[], true, 0));
        let progress = Progress::new(Instant::now(), false);
        let mut body = RequestBody::empty(progress);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        trailers.insert("x-pomerium-jwt-assertion", "forged".parse().unwrap());
        assert!(body.filter(trailers.clone()).is_none());
        body.trailers = Trailers::Pass(rules);
        let passed = body.filter(trailers).unwrap();
        assert_eq!(passed.len(), 1);
        assert!(passed.contains_key("grpc-status"));
    }
}
