//! Which addresses stand behind the service URLs, now.
//!
//! Each URL's host is looked up again when its TTL ends, and at once when an endpoint fails. An
//! answer that fails or is empty changes nothing: the last good set stays.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::uri::{Authority, Scheme};
use jiff::Timestamp;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::watch;
use url::Url;

use crate::config::DnsOptions;
use crate::net::Resolver;
use crate::net::connect::ClientTls;
use crate::telemetry::RateLimit;

/// Name servers are not asked more often than this about one name.
const FLOOR: Duration = Duration::from_secs(1);
/// Addresses of one URL that become endpoints: each costs a connection and series of metrics.
const MAX_ADDRESSES: usize = 256;

/// One service URL, taken apart.
#[derive(Debug, Clone)]
pub struct Target {
    /// What is looked up.
    pub host: String,
    /// The port of all its addresses.
    pub port: u16,
    /// `Some` for https.
    pub tls: Option<ClientTls>,
    /// What calls carry as `:authority`.
    pub authority: Authority,
}

/// A URL cannot be one of a service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("service URL {url}: {reason}")]
pub struct TargetError {
    /// The URL.
    pub url: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Target {
    /// Takes a URL apart. `certificate_name` is the name that certificates must have instead of
    /// the host's (`override_certificate_name`); a `*` in it is asked for as `example`.
    pub fn new(
        url: &Url,
        tls: &Arc<ClientConfig>,
        certificate_name: Option<&str>,
    ) -> Result<Self, TargetError> {
        let bad = |reason| TargetError {
            url: url.to_string(),
            reason,
        };
        let host = url.host_str().ok_or_else(|| bad("it needs a host"))?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let (default_port, secure) = match url.scheme() {
            "http" => (80, false),
            "https" => (443, true),
            _ => return Err(bad("the scheme must be http or https")),
        };
        let port = url.port().unwrap_or(default_port);
        let tls = if secure {
            let name =
                certificate_name.map_or(bare.to_owned(), |name| name.replace('*', "example"));
            let name = ServerName::try_from(name)
                .map_err(|_| bad("its name cannot stand in a certificate"))?;
            Some(ClientTls {
                config: Arc::clone(tls),
                name,
            })
        } else {
            None
        };
        let authority = if port == default_port {
            host.to_owned()
        } else {
            format!("{host}:{port}")
        };
        Ok(Self {
            host: bare.to_owned(),
            port,
            tls,
            authority: authority
                .parse()
                .map_err(|_| bad("its host is not valid"))?,
        })
    }

    /// What calls carry as `:scheme`.
    pub fn scheme(&self) -> Scheme {
        if self.tls.is_some() {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme(), self.authority)
    }
}

/// All addresses of all URLs; one that several URLs lead to belongs to the first of them.
pub type Endpoints = BTreeMap<SocketAddr, Arc<Target>>;

/// How the look-up of one URL stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lookup {
    /// The last good set.
    pub addresses: Vec<SocketAddr>,
    /// When it was last confirmed.
    pub confirmed: Option<Timestamp>,
    /// Why it was not confirmed since.
    pub failing: Option<String>,
}

/// Follows all URLs of a service.
#[derive(Debug)]
pub(super) struct Discovery {
    pub(super) targets: Vec<Arc<Target>>,
    resolver: Resolver,
    lookups: Mutex<Vec<Lookup>>,
    endpoints: watch::Sender<Arc<Endpoints>>,
    /// Counts the failures of endpoints.
    look_again: watch::Sender<u64>,
    limit: RateLimit,
}

impl Discovery {
    pub(super) fn new(targets: Vec<Target>, resolver: Resolver) -> Self {
        let targets: Vec<_> = targets.into_iter().map(Arc::new).collect();
        Self {
            lookups: Mutex::new(vec![Lookup::default(); targets.len()]),
            targets,
            resolver,
            endpoints: watch::Sender::default(),
            look_again: watch::Sender::new(0),
            limit: RateLimit::new(Duration::from_secs(10)),
        }
    }

    /// The set as it changes.
    pub(super) fn endpoints(&self) -> watch::Receiver<Arc<Endpoints>> {
        self.endpoints.subscribe()
    }

    /// An endpoint failed: its address may be gone.
    pub(super) fn look_again(&self) {
        self.look_again.send_modify(|count| *count += 1);
    }

    /// How each URL stands, in their order.
    pub(super) fn lookups(&self) -> Vec<(Arc<Target>, Lookup)> {
        let lookups = self.lookups.lock().unwrap_or_else(PoisonError::into_inner);
        self.targets
            .iter()
            .cloned()
            .zip(lookups.iter().cloned())
            .collect()
    }

    /// Runs for ever.
    pub(super) async fn run(self: Arc<Self>) {
        let all = (0..self.targets.len()).map(|index| Arc::clone(&self).follow(index));
        futures::future::join_all(all).await;
    }

    async fn follow(self: Arc<Self>, index: usize) {
        let Some(target) = self.targets.get(index).cloned() else {
            return;
        };
        let mut again = self.look_again.subscribe();
        loop {
            again.mark_unchanged();
            let found = self.resolver.lookup(&target.host).await;
            let options = self.resolver.options();
            let next = match found {
                Ok(found) => {
                    let addresses = found.addresses.iter();
                    let addresses = addresses
                        .map(|ip| SocketAddr::new(*ip, target.port))
                        .take(MAX_ADDRESSES)
                        .collect();
                    self.found(index, addresses);
                    found.ttl.map(|ttl| until_next(ttl, &options))
                }
                Err(error) => {
                    let reason = error.to_string();
                    let now = std::time::Instant::now();
                    if let Some(held_back) = self.limit.pass(&target.host, now) {
                        tracing::warn!(url = %target, reason, held_back, "keeping the last known addresses");
                    }
                    self.failed(index, reason);
                    Some(options.failure_refresh_rate)
                }
            };
            let Some(next) = next else {
                // Written as an address: nothing will ever change.
                return std::future::pending().await;
            };
            let due = tokio::time::Instant::now() + next;
            tokio::time::sleep(FLOOR.min(next)).await;
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                // The sender lives in `self`, so this never fails.
                _ = again.changed() => {}
            }
        }
    }

    fn found(&self, index: usize, addresses: Vec<SocketAddr>) {
        let endpoints = {
            let mut lookups = self.lookups.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(lookup) = lookups.get_mut(index) {
                *lookup = Lookup {
                    addresses,
                    confirmed: Some(Timestamp::now()),
                    failing: None,
                };
            }
            merge(&self.targets, &lookups)
        };
        self.endpoints.send_if_modified(|now| {
            let changed = !now.keys().eq(endpoints.keys());
            *now = Arc::new(endpoints);
            changed
        });
    }

    fn failed(&self, index: usize, reason: String) {
        let mut lookups = self.lookups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lookup) = lookups.get_mut(index) {
            lookup.failing = Some(reason);
        }
    }
}

fn merge(targets: &[Arc<Target>], lookups: &[Lookup]) -> Endpoints {
    let mut merged = Endpoints::new();
    for (target, lookup) in targets.iter().zip(lookups) {
        for address in &lookup.addresses {
            merged.entry(*address).or_insert_with(|| Arc::clone(target));
        }
    }
    merged
}

/// The TTL, but not longer than the configured rate and not shorter than the floor (or the rate,
/// where that is shorter still).
fn until_next(ttl: Duration, options: &DnsOptions) -> Duration {
    let ceiling = options.refresh_rate.max(Duration::from_millis(1));
    ttl.clamp(FLOOR.min(ceiling), ceiling)
}

#[cfg(test)]
mod tests;
