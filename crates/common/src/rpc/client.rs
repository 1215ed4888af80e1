//! Calls to a service that runs elsewhere: its URLs become endpoints, its endpoints a transport.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use rustls::ClientConfig;
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use url::Url;

use super::balance::Balancer;
use super::connection::Endpoint;
use super::discovery::{Discovery, Lookup, Target, TargetError};
use super::driver::{Probing, drive};
use super::endpoint::State;
use super::meters::Meters;
use super::token::TokenKeys;
use super::version::{Skew, skew};
use crate::lifecycle::{NotReady, Parts};
use crate::net::Resolver;
use crate::telemetry::RateLimit;
use crate::telemetry::metrics::{Labels, Metrics};

/// One line a peer about failures in this time …
const FAILURE_LINES: Duration = Duration::from_secs(10);
/// … and about peers that do not accept us.
const REJECTED_LINES: Duration = Duration::from_secs(30);
/// … about peers of another version …
const VERSION_LINES: Duration = Duration::from_secs(600);
/// … and about databrokers that do not share their records.
const SPLIT_LINES: Duration = Duration::from_secs(60);
/// A new configuration of peers counts after this time, whether one takes calls or not.
const REPLACE: Duration = Duration::from_secs(5);
const OUR_VERSION: &str = env!("CARGO_PKG_VERSION");
/// How often the ages of look-ups are told.
const TELL_AGAIN: Duration = Duration::from_secs(5);

/// A service that runs elsewhere.
#[derive(Debug, Clone)]
pub struct RemoteConfig {
    /// Its URLs; all addresses of all of them are endpoints of equal weight.
    pub urls: Vec<Url>,
    /// For https URLs; ALPN must be h2.
    pub tls: Arc<ClientConfig>,
    /// `override_certificate_name`
    pub certificate_name: Option<String>,
    /// The name that health is asked for: `pomerium-databroker`, `pomerium-authorize`.
    pub service: String,
    /// With these, an endpoint whose shared secret differs gets no calls.
    pub keys: Option<TokenKeys>,
    /// How names become addresses.
    pub resolver: Resolver,
    /// Deadlines of calls.
    pub calls: CallTiming,
    /// How often peers are asked how they are.
    pub probes: ProbeTiming,
    /// Where retries and endpoints are counted.
    pub metrics: CallMetrics,
    /// Where `/status` tells about the endpoints, as the part `rpc.<service>`.
    pub parts: Parts,
}

/// Deadlines of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallTiming {
    /// How long a call waits for an endpoint to become ready.
    pub wait_for_endpoint: Duration,
    /// After this time a call that may be made twice is.
    pub second_question: Duration,
    /// Longest time to the begin of an answer, whatever the caller says.
    pub answer: Duration,
}

impl Default for CallTiming {
    fn default() -> Self {
        Self {
            wait_for_endpoint: Duration::from_secs(1),
            second_question: Duration::from_millis(300),
            answer: Duration::from_secs(30),
        }
    }
}

/// How often peers are asked how they are, and how long an answer may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeTiming {
    /// The first question on a new connection.
    pub first_patience: Duration,
    /// Peers that say they are a Postern.
    pub quick_interval: Duration,
    /// A Postern that takes longer counts as gone.
    pub quick_patience: Duration,
    /// All others: as Pomerium's own clients do.
    pub slow_interval: Duration,
    /// Another that takes longer counts as gone.
    pub slow_patience: Duration,
    /// How often databrokers are asked for the version of their records.
    pub records_interval: Duration,
}

impl Default for ProbeTiming {
    fn default() -> Self {
        Self {
            first_patience: Duration::from_secs(1),
            quick_interval: Duration::from_millis(500),
            quick_patience: Duration::from_secs(1),
            slow_interval: Duration::from_secs(10),
            slow_patience: Duration::from_secs(10),
            records_interval: Duration::from_secs(10),
        }
    }
}

/// Counters for all transports of a process; made once, shared by clones. The default counts
/// where nobody looks.
#[derive(Debug, Clone, Default)]
pub struct CallMetrics {
    moved: Family<Labels, Counter>,
    hedged: Family<Labels, Counter>,
    nobody: Family<Labels, Counter>,
    endpoints: Family<Labels, Gauge>,
    ready: Family<Labels, Gauge>,
    lookup_age: Family<Labels, Gauge>,
    other_versions: Family<Labels, Gauge>,
    records: Family<Labels, Gauge>,
    meters: Meters,
}

impl CallMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            moved: metrics.add(
                "postern_rpc_calls_moved",
                "Calls and decisions that went to another endpoint because the first broke",
                Family::default(),
            ),
            hedged: metrics.add(
                "postern_rpc_calls_hedged",
                "Calls and decisions that were asked at a second endpoint because the first was slow",
                Family::default(),
            ),
            nobody: metrics.add(
                "postern_rpc_calls_without_endpoint",
                "Calls that failed because no endpoint was ready, and decisions that nobody answered",
                Family::default(),
            ),
            endpoints: metrics.add(
                "postern_rpc_endpoints",
                "Addresses that DNS tells for a service",
                Family::default(),
            ),
            ready: metrics.add(
                "postern_rpc_endpoints_ready",
                "Addresses of a service that take calls",
                Family::default(),
            ),
            lookup_age: metrics.add(
                "postern_rpc_lookup_age_seconds",
                "How long ago DNS last confirmed the addresses behind a URL, seconds",
                Family::default(),
            ),
            other_versions: metrics.add(
                "postern_rpc_endpoints_other_version",
                "Addresses of a service that run another version of Postern than this process",
                Family::default(),
            ),
            records: metrics.add(
                "postern_rpc_record_sets",
                "Distinct sets of records behind one service; more than one is a split brain",
                Family::default(),
            ),
            meters: Meters::new(metrics),
        }
    }

    fn of(&self, service: &str) -> CallCounts {
        let labels = vec![("service", service.to_owned())];
        CallCounts {
            moved: self.moved.get_or_create_owned(&labels),
            hedged: self.hedged.get_or_create_owned(&labels),
            nobody: self.nobody.get_or_create_owned(&labels),
            endpoints: self.endpoints.get_or_create_owned(&labels),
            ready: self.ready.get_or_create_owned(&labels),
            lookup_age: self.lookup_age.clone(),
            other_versions: self.other_versions.get_or_create_owned(&labels),
            records: self.records.get_or_create_owned(&labels),
        }
    }
}

/// The counters of one service.
#[derive(Debug, Clone)]
pub(super) struct CallCounts {
    moved: Counter,
    hedged: Counter,
    nobody: Counter,
    endpoints: Gauge,
    ready: Gauge,
    lookup_age: Family<Labels, Gauge>,
    other_versions: Gauge,
    records: Gauge,
}

impl CallCounts {
    pub(super) fn moved(&self) {
        self.moved.inc();
    }

    pub(super) fn hedged(&self) {
        self.hedged.inc();
    }

    pub(super) fn nobody(&self) {
        self.nobody.inc();
    }
}

/// A running set of endpoints; dropping it ends its tasks.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) balancer: Arc<Balancer>,
    discovery: Arc<Discovery>,
    _running: DropGuard,
}

/// How one endpoint stands, for `/status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointStatus {
    /// Where it is.
    pub address: SocketAddr,
    /// What it is doing.
    pub state: State,
    /// Since when.
    pub since: Timestamp,
}

impl Remote {
    /// Must be called inside of a tokio runtime; the endpoints live on it.
    /// Changes are told by `changes`, which outlives it.
    fn start(config: RemoteConfig, changes: &watch::Sender<u64>) -> Result<Self, TargetError> {
        let name = config.certificate_name.as_deref();
        let targets = config
            .urls
            .iter()
            .map(|url| Target::new(url, &config.tls, name));
        let targets = targets.collect::<Result<Vec<_>, _>>()?;
        let told = targets
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        let counts = config.metrics.of(&config.service);
        let stop = CancellationToken::new();
        let told_in = Told {
            parts: config.parts,
            name: format!("rpc.{}", config.service),
            service: config.service.clone(),
            held: Mutex::default(),
            // Both sides of a split have been asked again before it is told.
            split_patience: config.probes.records_interval * 3 / 2,
            lines: RateLimit::new(SPLIT_LINES),
            replaced: stop.clone(),
        };
        let balancer = Arc::new(Balancer::new(told, config.calls, counts, changes.clone()));
        let discovery = Arc::new(Discovery::new(targets, config.resolver));
        let probing = Arc::new(Probing {
            service: config.service,
            keys: config.keys,
            timing: config.probes,
        });
        let keeper = Keeper {
            meters: config.metrics.meters.clone(),
            balancer: Arc::clone(&balancer),
            discovery: Arc::clone(&discovery),
            probing,
            log: Arc::new(PeerLog::new()),
            told_in: Arc::new(told_in),
            moved: Arc::default(),
            stop: stop.clone(),
        };
        let following = Arc::clone(&discovery).run();
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = following => {}
                () = keeper.run() => {}
            }
        });
        Ok(Self {
            balancer,
            discovery,
            _running: stop.drop_guard(),
        })
    }

    fn is_ready(&self) -> bool {
        let endpoints = self.balancer.endpoints.load();
        endpoints.iter().any(|endpoint| endpoint.ready().is_some())
    }

    pub(super) fn status(&self) -> Vec<EndpointStatus> {
        let endpoints = self.balancer.endpoints.load();
        let status = endpoints.iter().map(|endpoint| {
            let (state, since) = endpoint.state();
            EndpointStatus {
                address: endpoint.address,
                state,
                since,
            }
        });
        status.collect()
    }

    pub(super) fn lookups(&self) -> Vec<(String, Lookup)> {
        let lookups = self.discovery.lookups().into_iter();
        lookups
            .map(|(target, lookup)| (target.to_string(), lookup))
            .collect()
    }
}

/// A service that runs elsewhere, under whatever configuration is newest.
#[derive(Debug)]
pub(super) struct Switch {
    current: ArcSwap<Remote>,
    changes: watch::Sender<u64>,
}

impl Switch {
    pub(super) fn start(config: RemoteConfig) -> Result<Self, TargetError> {
        let changes = watch::Sender::new(0);
        Ok(Self {
            current: ArcSwap::from_pointee(Remote::start(config, &changes)?),
            changes,
        })
    }

    pub(super) fn current(&self) -> Arc<Remote> {
        self.current.load_full()
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Takes another configuration over: as soon as an endpoint takes calls under it, but after
    /// [`REPLACE`] in any case. Calls under way are finished where they are.
    pub(super) async fn replace(&self, config: RemoteConfig) -> Result<(), TargetError> {
        let new = Remote::start(config, &self.changes)?;
        let mut changes = self.changes();
        let ready = async {
            while !new.is_ready() {
                // The sender lives in `self`.
                let _ = changes.changed().await;
            }
        };
        if tokio::time::timeout(REPLACE, ready).await.is_err() {
            tracing::warn!(
                target_url = new.balancer.name,
                "no endpoint takes calls under the new configuration; it counts all the same"
            );
        }
        self.current.store(Arc::new(new));
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }
}

/// Keeps the endpoints equal to what discovery finds.
struct Keeper {
    balancer: Arc<Balancer>,
    discovery: Arc<Discovery>,
    probing: Arc<Probing>,
    log: Arc<PeerLog>,
    told_in: Arc<Told>,
    meters: Meters,
    /// An endpoint's state has changed.
    moved: Arc<Notify>,
    stop: CancellationToken,
}

/// Where the state of the endpoints is shown.
struct Told {
    parts: Parts,
    name: String,
    service: String,
    held: Mutex<Held>,
    split_patience: Duration,
    lines: RateLimit,
    /// Others tell now.
    replaced: CancellationToken,
}

/// What is told as a fault for as long as it lasts. Its lock makes one step of looking and telling:
/// endpoints change on several threads, and who looked first must not tell last.
#[derive(Debug, Default)]
struct Held {
    /// While no endpoint takes calls.
    nobody: Option<NotReady>,
    split: Split,
}

/// Databrokers under one name that do not share their records.
#[derive(Debug, Default)]
enum Split {
    #[default]
    None,
    /// They may have been asked on both sides of a failover of their database.
    Suspected(Instant),
    Told(#[expect(dead_code, reason = "held for as long as it lasts")] NotReady),
}

impl Told {
    fn publish(&self, balancer: &Balancer, discovery: &Discovery) {
        if self.replaced.is_cancelled() {
            return;
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let endpoints = balancer.endpoints.load();
        let ready = endpoints
            .iter()
            .filter(|endpoint| endpoint.ready().is_some())
            .count();
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        balancer.counts.endpoints.set(number(endpoints.len()));
        balancer.counts.ready.set(number(ready));
        if ready > 0 {
            held.nobody = None;
        } else {
            held.nobody
                .get_or_insert_with(|| self.parts.degraded(&self.name, "no endpoint is ready"));
        }
        let mut facts = BTreeMap::new();
        for endpoint in endpoints.iter() {
            let (state, since) = endpoint.state();
            let mut fact = format!("{state}, since {since}");
            if endpoint.is_out() {
                fact.push_str("; left out, as its calls fail");
            }
            if let Some(version) = endpoint.about().version
                && skew(OUR_VERSION, &version) != Skew::Same
            {
                let _ = write!(fact, "; runs version {version}");
            }
            facts.insert(endpoint.address.to_string(), fact);
        }
        self.compare(balancer, &endpoints, &mut held.split);
        for (target, lookup) in discovery.lookups() {
            let confirmed = lookup.confirmed;
            let age = confirmed.map(|at| Timestamp::now().duration_since(at).as_secs());
            let labels = vec![
                ("service", self.service.clone()),
                ("url", target.to_string()),
            ];
            let never = i64::MAX;
            balancer
                .counts
                .lookup_age
                .get_or_create(&labels)
                .set(age.unwrap_or(never));
            if let Some(why) = lookup.failing {
                let told = match confirmed {
                    Some(at) => format!("last confirmed {at}; {why}"),
                    None => format!("never resolved; {why}"),
                };
                facts.insert(target.to_string(), told);
            }
        }
        self.parts.tell_all(&self.name, facts);
        balancer.changes.send_modify(|count| *count += 1);
    }

    /// Endpoints that DNS does not name any more, for longer than it takes to connect to others.
    fn tell_kept(&self, target_url: &str, kept: &[SocketAddr]) {
        if let Some(held_back) = self.lines.pass("kept", Instant::now()) {
            tracing::warn!(
                target_url,
                ?kept,
                held_back,
                "none of the addresses that DNS names takes calls; going on with those it named before"
            );
        }
    }

    /// What only shows when endpoints are seen side by side.
    fn compare(&self, balancer: &Balancer, endpoints: &[Arc<Endpoint>], split: &mut Split) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let other = endpoints.iter().filter(|endpoint| {
            let version = endpoint.about().version;
            version.is_some_and(|version| version != OUR_VERSION)
        });
        balancer.counts.other_versions.set(number(other.count()));
        let mut records: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for endpoint in endpoints.iter().filter(|one| one.ready().is_some()) {
            if let Some(version) = endpoint.about().records {
                let holders = records.entry(version).or_default();
                holders.push(endpoint.address.to_string());
            }
        }
        balancer.counts.records.set(number(records.len()));
        if records.len() < 2 {
            *split = Split::None;
            return;
        }
        let now = Instant::now();
        match split {
            Split::None => *split = Split::Suspected(now),
            Split::Suspected(since) if now - *since < self.split_patience => {}
            Split::Suspected(_) | Split::Told(_) => {
                let holders: Vec<_> = records.into_values().map(|them| them.join(", ")).collect();
                let why = format!(
                    "split brain: databrokers under one name have different records ({}); do they \
                     keep memory or file storage each, or use different databases?",
                    holders.join(" | ")
                );
                if let Some(held_back) = self.lines.pass("split", now) {
                    tracing::error!(target_url = balancer.name, held_back, "{why}");
                }
                if let Split::Suspected(_) = split {
                    *split = Split::Told(self.parts.degraded(&self.name, &why));
                }
            }
        }
    }
}

impl Keeper {
    async fn run(self) {
        let mut found = self.discovery.endpoints();
        let mut running: HashMap<SocketAddr, (Arc<Endpoint>, CancellationToken)> = HashMap::new();
        loop {
            let set = Arc::clone(&found.borrow_and_update());
            let named_ready = running
                .iter()
                .any(|(address, (it, _))| set.contains_key(address) && it.ready().is_some());
            // What DNS says may be wrong: what takes calls makes way for what takes calls only.
            let mut kept = Vec::new();
            running.retain(|address, (endpoint, removed)| {
                let named = set.contains_key(address);
                if !named && !named_ready && endpoint.ready().is_some() {
                    kept.push(*address);
                    return true;
                }
                if !named {
                    tracing::info!(service = %self.balancer.name, %address, "endpoint removed");
                    removed.cancel();
                    self.meters.forget(&self.told_in.service, *address);
                }
                named
            });
            for (address, target) in set.iter() {
                running.entry(*address).or_insert_with(|| {
                    tracing::info!(service = %self.balancer.name, %address, "endpoint added");
                    let meters = self.meters.of(&self.told_in.service, *address);
                    let endpoint = Arc::new(Endpoint::new(*address, Arc::clone(target), meters));
                    let removed = self.stop.child_token();
                    tokio::spawn(self.drive(Arc::clone(&endpoint), removed.clone()));
                    (endpoint, removed)
                });
            }
            let endpoints = running
                .values()
                .map(|(endpoint, _)| Arc::clone(endpoint))
                .collect();
            self.balancer.endpoints.store(Arc::new(endpoints));
            self.told_in.publish(&self.balancer, &self.discovery);
            tokio::select! {
                changed = found.changed() => if changed.is_err() { return },
                () = self.moved.notified(), if !kept.is_empty() => {}
                // The age of the look-ups is told anew even when nothing changes.
                () = tokio::time::sleep(TELL_AGAIN) => {
                    if !kept.is_empty() {
                        self.told_in.tell_kept(&self.balancer.name, &kept);
                    }
                }
            }
        }
    }

    fn drive(
        &self,
        endpoint: Arc<Endpoint>,
        removed: CancellationToken,
    ) -> impl Future<Output = ()> + use<> {
        let (balancer, discovery) = (Arc::clone(&self.balancer), Arc::clone(&self.discovery));
        let (log, told_in) = (Arc::clone(&self.log), Arc::clone(&self.told_in));
        let moved = Arc::clone(&self.moved);
        drive(
            endpoint,
            Arc::clone(&self.probing),
            removed,
            self.stop.clone(),
            move |endpoint, state| {
                log.tell(&balancer.name, endpoint, state);
                if matches!(state, State::Waiting { .. }) {
                    discovery.look_again();
                }
                told_in.publish(&balancer, &discovery);
                moved.notify_one();
            },
        )
    }
}

/// Tells about peers, but not every second.
#[derive(Debug)]
struct PeerLog {
    failures: RateLimit,
    rejected: RateLimit,
    versions: RateLimit,
}

impl PeerLog {
    fn new() -> Self {
        Self {
            failures: RateLimit::new(FAILURE_LINES),
            rejected: RateLimit::new(REJECTED_LINES),
            versions: RateLimit::new(VERSION_LINES),
        }
    }

    fn tell(&self, service: &str, endpoint: &Endpoint, state: &State) {
        let now = Instant::now();
        let key = endpoint.address.to_string();
        if let Some(version) = endpoint.about().version
            && *state == State::Ready
            && version != OUR_VERSION
            && let Some(held_back) = self.versions.pass(&key, now)
        {
            tracing::warn!(
                target_url = service,
                peer = key,
                version,
                ours = OUR_VERSION,
                held_back,
                "a peer runs another version; that works during an upgrade, and should not last"
            );
        }
        match state {
            State::Waiting { why, failures, .. } => {
                if let Some(held_back) = self.failures.pass(&key, now) {
                    tracing::warn!(
                        target_url = service,
                        peer = key,
                        why,
                        failures,
                        held_back,
                        "endpoint lost"
                    );
                }
            }
            State::Refusing { why } => {
                if let Some(held_back) = self.rejected.pass(&key, now) {
                    tracing::warn!(
                        target_url = service,
                        peer = key,
                        why,
                        held_back,
                        "endpoint gets no calls"
                    );
                }
            }
            State::Ready => tracing::info!(target_url = service, peer = key, "endpoint ready"),
            State::Connecting { .. } | State::Probing { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests;
