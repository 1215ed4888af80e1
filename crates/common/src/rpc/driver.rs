//! Keeps an endpoint's connection and state true: opens it, asks the peer how it is, and feeds the
//! machine in `endpoint` with what happens.
//!
//! No HTTP/2 PING is ever sent, because Pomerium's servers punish it; a peer's silence shows in
//! the health `Check` that goes over the same connection. A peer is asked twice a second only
//! when its answers say that it is a Postern, else each ten seconds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use hyper::client::conn::http2;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::body::Body;
use tonic::service::Interceptor as _;
use tonic::{Code, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::VERSION_HEADER;
use super::client::ProbeTiming;
use super::connection::{About, Direct, Endpoint};
use super::dial::open;
use super::discovery::Target;
use super::endpoint::{Event, State, next};
use super::fault::PeerFault;
use super::speaks::FirstBytes;
use super::stubs::databroker::data_broker_service_client::DataBrokerServiceClient;
use super::token::TokenKeys;
use super::transport::TransportError;
use super::version::{Skew, skew};
use crate::telemetry::log::chain;

/// TCP, TLS and the HTTP/2 preface together.
pub(super) const CONNECT: Duration = Duration::from_secs(2);
/// How long calls may go on over a connection that the configuration has replaced.
const FAREWELL: Duration = Duration::from_secs(30);
/// Answers of a Pomerium carry this.
const POMERIUM_VERSION: &str = "x-pomerium-version";
const DATABROKER: &str = "pomerium-databroker";
const AUTHORIZE: &str = "pomerium-authorize";
/// No such method exists: a server that accepts our token says so, one that does not refuses.
const GREETING: &str = "/postern.rpc.v1.Greeting/Greet";

/// What the driver of an endpoint needs to know.
#[derive(Debug)]
pub(super) struct Probing {
    /// The name that health is asked for.
    pub(super) service: String,
    /// To see whether the peer accepts our token.
    pub(super) keys: Option<TokenKeys>,
    pub(super) timing: ProbeTiming,
}

/// Runs an endpoint until it is removed; `changed` is called after each change of its state.
///
/// `removed`: it is no longer one of the endpoints. `replaced`: all of them have made way for
/// others, and what still runs over its connection gets a while to end.
pub(super) async fn drive(
    endpoint: Arc<Endpoint>,
    probing: Arc<Probing>,
    removed: CancellationToken,
    replaced: CancellationToken,
    changed: impl Fn(&Endpoint, &State),
) {
    let mut state = State::new();
    let mut live = None;
    loop {
        let event = tokio::select! {
            biased;
            () = removed.cancelled() => break,
            event = event(&endpoint, &state, &mut live, &probing) => event,
        };
        let before = state.clone();
        let [byte] = crate::crypto::random::bytes();
        state = next(
            state,
            event,
            std::time::Instant::now(),
            f64::from(byte) / 255.0,
        );
        if matches!(state, State::Waiting { .. }) {
            // Whatever is still outstanding on it fails now and is asked elsewhere.
            live = None;
        }
        let about = live
            .as_ref()
            .map_or_else(About::default, |live: &Live| live.about.clone());
        let told = endpoint.about() != about;
        endpoint.tell_about(about);
        if state != before || told {
            let sender = live.as_ref().map(|live: &Live| live.sender.clone());
            endpoint.show(&state, sender);
            changed(&endpoint, &state);
        }
    }
    // Answers that are under way are finished: they hold the connection by themselves.
    if let Some(live) = live {
        let cut = live.leave();
        if replaced.is_cancelled() {
            tokio::spawn(async move {
                tokio::time::sleep(FAREWELL).await;
                drop(cut);
            });
        } else if let Some(cut) = cut {
            cut.disarm();
        }
    }
    endpoint.show(
        &State::Refusing {
            why: "no longer in DNS".to_owned(),
        },
        None,
    );
    changed(&endpoint, &state);
}

/// Waits for the next thing to happen in this state.
async fn event(
    endpoint: &Endpoint,
    state: &State,
    live: &mut Option<Live>,
    probing: &Probing,
) -> Event {
    match (state, live.as_mut()) {
        (State::Waiting { until, .. }, _) => {
            tokio::time::sleep_until((*until).into()).await;
            Event::Due
        }
        (State::Connecting { .. }, _) => match Live::open(endpoint.address, &endpoint.target).await
        {
            Ok(opened) => {
                *live = Some(opened);
                Event::Connected
            }
            Err(fault) => Event::Failed(fault.to_string()),
        },
        (State::Probing { .. } | State::Ready | State::Refusing { .. }, Some(live)) => {
            match live.event(probing).await {
                Event::Lost(why) => Event::Lost(live.explain(why).to_string()),
                event => event,
            }
        }
        (State::Probing { .. } | State::Ready | State::Refusing { .. }, None) => {
            Event::Lost("no connection".to_owned())
        }
    }
}

/// How closely a peer may be watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Not known yet.
    First,
    /// It is a Postern.
    Quick,
    /// It may be a Pomerium.
    Slow,
}

/// An open connection.
pub(super) struct Live {
    sender: http2::SendRequest<Body>,
    target: Arc<Target>,
    /// Ends when the connection does, or when the peer says GOAWAY.
    running: JoinHandle<String>,
    /// Cuts the connection, and with it all calls on it.
    cut: Option<DropGuard>,
    watch: Option<Streaming<HealthCheckResponse>>,
    pace: Pace,
    next_check: Instant,
    accepted: bool,
    first: FirstBytes,
    pub(super) about: About,
    /// What its clock said in its last answer.
    pub(super) date: Option<Timestamp>,
    /// When a databroker is asked for the version of its records again.
    next_records: Instant,
}

impl Live {
    pub(super) async fn open(address: SocketAddr, target: &Arc<Target>) -> Result<Self, PeerFault> {
        let opened = open(address, target, TokioExecutor::new(), CONNECT).await?;
        let connection = opened.connection;
        let running = tokio::spawn(async move {
            match connection.await {
                Ok(()) => "the peer closed the connection".to_owned(),
                Err(error) => chain(&error),
            }
        });
        Ok(Self {
            sender: opened.sender,
            target: Arc::clone(target),
            running,
            cut: Some(opened.cut),
            watch: None,
            pace: Pace::First,
            next_check: Instant::now(),
            accepted: false,
            first: opened.first,
            about: About::default(),
            date: None,
            next_records: Instant::now(),
        })
    }

    /// Takes no part in the connection any more, and gives away what cuts it.
    fn leave(self) -> Option<DropGuard> {
        self.cut
    }

    /// With what the peer's first bytes tell about the cause.
    pub(super) fn explain(&self, why: String) -> PeerFault {
        match self.first.told() {
            Some(speaks) => PeerFault::OtherProtocol { speaks, why },
            None => PeerFault::Broken(why),
        }
    }

    fn health(&self) -> HealthClient<Direct> {
        HealthClient::new(Direct {
            sender: self.sender.clone(),
            target: Arc::clone(&self.target),
        })
    }

    async fn event(&mut self, probing: &Probing) -> Event {
        loop {
            let told = async {
                match self.watch.as_mut() {
                    Some(watch) => watch.message().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ended = &mut self.running => {
                    // After GOAWAY the answers under way are still coming: don't cut them.
                    if let Some(cut) = self.cut.take() {
                        cut.disarm();
                    }
                    return Event::Lost(ended.unwrap_or_else(|error| error.to_string()));
                }
                told = told => match told {
                    Ok(Some(told)) if self.accepted => return verdict(told.status),
                    Ok(Some(_)) => {}
                    // The stream has ended; checks go on.
                    Ok(None) | Err(_) => self.watch = None,
                },
                () = tokio::time::sleep_until(self.next_check) => return self.check(probing).await,
            }
        }
    }

    /// One round of questions to the peer.
    async fn check(&mut self, probing: &Probing) -> Event {
        let timing = probing.timing;
        let patience = match self.pace {
            Pace::First => timing.first_patience,
            Pace::Quick => timing.quick_patience,
            Pace::Slow => timing.slow_patience,
        };
        let event = tokio::time::timeout(patience, self.questions(probing)).await;
        let interval = match self.pace {
            Pace::First | Pace::Quick => timing.quick_interval,
            Pace::Slow => timing.slow_interval,
        };
        self.next_check = Instant::now() + interval;
        event.unwrap_or(Event::Silent)
    }

    async fn questions(&mut self, probing: &Probing) -> Event {
        match self.ask(probing).await {
            Ok(event) => event,
            Err(Unasked::Lost(why)) => Event::Lost(why),
            Err(Unasked::Rejected(fault)) => Event::Rejected(fault.to_string()),
        }
    }

    /// Whether it serves, and all that makes it a peer that may get calls.
    pub(super) async fn ask(&mut self, probing: &Probing) -> Result<Event, Unasked> {
        let request = HealthCheckRequest {
            service: probing.service.clone(),
        };
        let checked = self.health().check(request.clone()).await;
        let metadata = match &checked {
            Ok(answer) => answer.metadata(),
            Err(status) => status.metadata(),
        };
        let text = |name| metadata.get(name).and_then(|value| value.to_str().ok());
        let version = text(VERSION_HEADER);
        let date = text("date").and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
        self.date = date.map(|date| date.timestamp());
        self.pace = if version.is_some() {
            Pace::Quick
        } else {
            Pace::Slow
        };
        self.about.version = version.map(str::to_owned);
        let foreign = metadata.contains_key(POMERIUM_VERSION);
        let event = match checked {
            Ok(answer) => verdict(answer.into_inner().status),
            // It has no health service: what it answers is a sign of life all the same.
            Err(status) if status.code() == Code::Unimplemented => Event::Serving,
            Err(status) => {
                return Err(match TransportError::behind(&status) {
                    Some(error) => Unasked::Lost(error.to_string()),
                    None => PeerFault::Health(status.message().to_owned()).into(),
                });
            }
        };
        self.is_fit(probing, foreign)?;
        if !self.accepted {
            if let Some(keys) = &probing.keys {
                self.greet(keys).await?;
            }
            self.accepted = true;
        }
        if self.pace == Pace::Quick && self.watch.is_none() {
            // Only a shortcut: whether it can be opened does not matter.
            self.watch = self
                .health()
                .watch(request)
                .await
                .ok()
                .map(tonic::Response::into_inner);
        }
        if let Some(keys) = &probing.keys
            && probing.service == DATABROKER
            && self.next_records <= Instant::now()
        {
            self.next_records = Instant::now() + probing.timing.records_interval;
            let mut client = DataBrokerServiceClient::with_interceptor(
                Direct {
                    sender: self.sender.clone(),
                    target: Arc::clone(&self.target),
                },
                keys.for_client(),
            );
            // One that cannot tell just now has told nothing else.
            if let Ok(info) = client.server_info(()).await {
                self.about.records = Some(info.into_inner().server_version);
            }
        }
        Ok(event)
    }

    /// Whether a peer that answers may get calls.
    fn is_fit(&self, probing: &Probing, foreign: bool) -> Result<(), PeerFault> {
        let ours = env!("CARGO_PKG_VERSION");
        match &self.about.version {
            Some(theirs) if skew(ours, theirs) == Skew::Far => Err(PeerFault::Version {
                theirs: theirs.clone(),
                ours,
            }),
            None if foreign && probing.service == AUTHORIZE => Err(PeerFault::ForeignAuthorize),
            _ => Ok(()),
        }
    }

    /// Whether the peer accepts our token.
    async fn greet(&self, keys: &TokenKeys) -> Result<(), PeerFault> {
        let request = keys
            .for_client()
            .call(tonic::Request::new(()))
            .map_err(|status| PeerFault::Token(status.message().to_owned()))?;
        let direct = Direct {
            sender: self.sender.clone(),
            target: Arc::clone(&self.target),
        };
        let mut client = tonic::client::Grpc::new(direct);
        let path = PathAndQuery::from_static(GREETING);
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        match client.unary(request, path, codec).await {
            Err(status) if status.code() == Code::Unauthenticated => {
                let told = status.message().to_owned();
                Err(if told.contains("expired") {
                    PeerFault::Clocks(told)
                } else {
                    PeerFault::Secrets(told)
                })
            }
            _ => Ok(()),
        }
    }
}

/// Why a peer could not be asked, or why it must not get calls.
pub(super) enum Unasked {
    Lost(String),
    Rejected(PeerFault),
}

impl From<PeerFault> for Unasked {
    fn from(fault: PeerFault) -> Self {
        Self::Rejected(fault)
    }
}

fn verdict(status: i32) -> Event {
    if status == i32::from(ServingStatus::Serving) {
        Event::Serving
    } else {
        Event::NotServing
    }
}
