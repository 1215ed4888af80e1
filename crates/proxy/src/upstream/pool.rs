//! A core's connections to upstreams. HTTP/1.1 connections wait in a list for the next request,
//! HTTP/2 connections are shared.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use hashbrown::HashMap;
use http::header::HOST;
use http::{HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use tokio::time::Instant;

use super::connect::{Connected, Needs, connect};
use super::{Endpoint, UpstreamError};
use crate::alarm::Alarm;
use crate::forward::exchange::{Progress, RequestBody};
use crate::limits;

/// All of them.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Requests at once to one address.
    most: usize,
    hosts: RefCell<HashMap<(u64, SocketAddr), Rc<Host>>>,
}

/// Those to one address of one endpoint.
#[derive(Debug, Default)]
struct Host {
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Rc<Shared>>>,
    /// One HTTP/2 connection at a time is opened; who waits shares it.
    opening: tokio::sync::Mutex<()>,
    /// Whether the last connection was HTTP/2.
    speaks_http2: Cell<bool>,
    requests: Cell<usize>,
    failed: Cell<Option<Instant>>,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<RequestBody>,
    alarm: Alarm,
    since: Instant,
}

#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    streams: Cell<usize>,
    last_used: Cell<Instant>,
}

/// The right to send one request over one connection. For HTTP/1.1 the connection returns to the
/// pool when the answer has been read to its end, see [`Lease::complete`]; else it is closed.
#[derive(Debug)]
pub(crate) struct Lease {
    host: Rc<Host>,
    way: Way,
    needs: Needs,
    /// For the limits of the exchange. It stays with an HTTP/1.1 connection: a timer that is set
    /// already, for an earlier exchange, serves the next without being touched.
    pub alarm: Alarm,
    /// The connection has carried requests before, so it may be dead without our knowing.
    pub reused: bool,
}

#[derive(Debug)]
enum Way {
    Http1(Option<http1::SendRequest<RequestBody>>),
    Http2(Rc<Shared>),
}

impl Pool {
    /// `most`: how many requests may be under way to one address.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            hosts: RefCell::default(),
        }
    }

    /// A connection to `address`: a waiting one, else a new one.
    pub(crate) async fn lease(
        &self,
        endpoint: &Arc<Endpoint>,
        address: SocketAddr,
        needs: Needs,
    ) -> Result<Lease, UpstreamError> {
        let host = self.host(endpoint.id, address);
        if let Some(lease) = host.reuse(needs) {
            return Ok(lease);
        }
        let _turn = if needs == Needs::Http && host.speaks_http2.get() {
            let turn = host.opening.lock().await;
            if let Some(lease) = host.reuse(needs) {
                return Ok(lease);
            }
            Some(turn)
        } else {
            None
        };
        // Boxed, so that requests that need no new connection have no room for one.
        let connected = Box::pin(connect(endpoint, address, needs)).await;
        host.failed.set(connected.is_err().then(Instant::now));
        let way = match connected? {
            Connected::Http1(sender) => {
                // An upgrade says nothing about what other requests are answered with.
                if needs == Needs::Http {
                    host.speaks_http2.set(false);
                }
                Way::Http1(Some(sender))
            }
            Connected::Http2(sender) => {
                host.speaks_http2.set(true);
                let shared = Rc::new(Shared {
                    sender,
                    streams: Cell::new(0),
                    last_used: Cell::new(Instant::now()),
                });
                host.shared.borrow_mut().push(Rc::clone(&shared));
                Way::Http2(shared)
            }
        };
        Ok(Lease::new(&host, way, needs, false))
    }

    /// Requests under way to an address.
    pub(crate) fn load(&self, endpoint: u64, address: SocketAddr) -> usize {
        let hosts = self.hosts.borrow();
        hosts
            .get(&(endpoint, address))
            .map_or(0, |host| host.requests.get())
    }

    /// Whether an address must get no more.
    pub(crate) fn is_full(&self, endpoint: u64, address: SocketAddr) -> bool {
        self.load(endpoint, address) >= self.most
    }

    /// Whether connecting to an address failed a moment ago.
    pub(crate) fn is_paused(&self, endpoint: u64, address: SocketAddr) -> bool {
        let hosts = self.hosts.borrow();
        hosts
            .get(&(endpoint, address))
            .and_then(|host| host.failed.get())
            .is_some_and(|at| at.elapsed() < limits::UPSTREAM_PAUSE)
    }

    /// A tunnel connects by itself; what it learns counts all the same.
    pub(crate) fn connected(&self, endpoint: u64, address: SocketAddr, well: bool) {
        let failed = (!well).then(Instant::now);
        self.host(endpoint, address).failed.set(failed);
    }

    /// Closes what nobody has used for a while, and forgets addresses without connections.
    pub(crate) fn sweep(&self) {
        self.hosts.borrow_mut().retain(|_, host| {
            let fresh = |since: Instant| since.elapsed() < limits::UPSTREAM_IDLE;
            host.idle
                .borrow_mut()
                .retain(|idle| fresh(idle.since) && !idle.sender.is_closed());
            host.shared.borrow_mut().retain(|shared| {
                let in_use = shared.streams.get() > 0 || fresh(shared.last_used.get());
                in_use && !shared.sender.is_closed()
            });
            let empty = host.idle.borrow().is_empty() && host.shared.borrow().is_empty();
            !empty || host.requests.get() > 0 || host.failed.get().is_some_and(fresh)
        });
    }

    fn host(&self, endpoint: u64, address: SocketAddr) -> Rc<Host> {
        let mut hosts = self.hosts.borrow_mut();
        Rc::clone(hosts.entry((endpoint, address)).or_default())
    }
}

impl Host {
    fn reuse(self: &Rc<Self>, needs: Needs) -> Option<Lease> {
        if needs == Needs::Http
            && let Some(shared) = self.shared_with_room()
        {
            return Some(Lease::new(self, Way::Http2(shared), needs, true));
        }
        let mut idle = self.idle.borrow_mut();
        // The youngest first: it is the least likely to be closed by the other end.
        while let Some(at) = idle.iter().rposition(|idle| idle.sender.is_ready()) {
            let taken = idle.remove(at);
            if taken.since.elapsed() < limits::UPSTREAM_IDLE && !taken.sender.is_closed() {
                let way = Way::Http1(Some(taken.sender));
                let mut lease = Lease::new(self, way, needs, true);
                lease.alarm = taken.alarm;
                return Some(lease);
            }
        }
        idle.retain(|idle| !idle.sender.is_closed());
        None
    }

    fn shared_with_room(&self) -> Option<Rc<Shared>> {
        let mut shared = self.shared.borrow_mut();
        shared.retain(|shared| !shared.sender.is_closed());
        let room = |shared: &&Rc<Shared>| shared.streams.get() < limits::UPSTREAM_STREAMS;
        shared.iter().find(room).cloned()
    }
}

impl Lease {
    fn new(host: &Rc<Host>, way: Way, needs: Needs, reused: bool) -> Self {
        host.requests.set(host.requests.get() + 1);
        if let Way::Http2(shared) = &way {
            shared.streams.set(shared.streams.get() + 1);
        }
        Self {
            host: Rc::clone(host),
            way,
            needs,
            alarm: Alarm::default(),
            reused,
        }
    }

    pub(crate) fn is_http2(&self) -> bool {
        matches!(self.way, Way::Http2(_))
    }

    /// Sends the request. An error gives it back if no byte of it was written.
    pub(crate) fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<>
    {
        match &mut self.way {
            Way::Http1(Some(sender)) => Sending::Http1(sender.try_send_request(request)),
            Way::Http1(None) => Sending::Gone,
            Way::Http2(shared) => Sending::Http2(shared.sender.clone().try_send_request(request)),
        }
        .wait()
    }

    /// Whether anybody is at the other end: any answer will do. Afterwards it is as it was.
    pub(crate) async fn answers(&mut self, authority: &HeaderValue) -> bool {
        let Some(question) = ping(self.is_http2(), authority) else {
            return false;
        };
        let Ok(response) = self.send(question).await else {
            return false;
        };
        let body = Limited::new(response.into_body(), limits::TRIAL_BYTES);
        if body.collect().await.is_err() {
            return false;
        }
        match &mut self.way {
            Way::Http1(Some(sender)) => sender.ready().await.is_ok(),
            Way::Http1(None) => false,
            Way::Http2(_) => true,
        }
    }

    /// The answer has been read to its end: the connection can carry the next request. Not one that
    /// was to become something else: whether both ends took the refusal for one is in doubt.
    pub(crate) fn complete(mut self) {
        if self.needs == Needs::Http
            && let Way::Http1(sender) = &mut self.way
            && let Some(sender) = sender.take()
            && !sender.is_closed()
        {
            let mut idle = self.host.idle.borrow_mut();
            if idle.len() < limits::UPSTREAM_IDLE_CONNECTIONS {
                idle.push(Idle {
                    sender,
                    alarm: std::mem::take(&mut self.alarm),
                    since: Instant::now(),
                });
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.host
            .requests
            .set(self.host.requests.get().saturating_sub(1));
        if let Way::Http2(shared) = &self.way {
            shared.streams.set(shared.streams.get().saturating_sub(1));
            shared.last_used.set(Instant::now());
        }
    }
}

fn ping(is_http2: bool, authority: &HeaderValue) -> Option<Request<RequestBody>> {
    let body = RequestBody::empty(Progress::new(Instant::now(), false));
    let request = if is_http2 {
        let authority = authority.to_str().ok()?;
        let request = Request::get(format!("https://{authority}/ping"));
        request.version(Version::HTTP_2)
    } else {
        Request::get("/ping").header(HOST, authority)
    };
    request.body(body).ok()
}

enum Sending<A, B> {
    Http1(A),
    Http2(B),
    Gone,
}

impl<A, B, T, E> Sending<A, B>
where
    A: Future<Output = Result<T, E>>,
    B: Future<Output = Result<T, E>>,
{
    async fn wait(self) -> Result<T, E> {
        match self {
            Self::Http1(sending) => sending.await,
            Self::Http2(sending) => sending.await,
            // A lease that was completed is consumed, so it cannot be asked again.
            Self::Gone => std::future::pending().await,
        }
    }
}
