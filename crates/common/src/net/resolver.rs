//! Names to addresses: the hosts file, then DNS, with deadlines and the records' own TTL.
//!
//! Nothing is cached here: whoever needs an address often keeps it for its TTL. The system's
//! `resolv.conf` and hosts file are read again once a minute, as containers change them.
//!
//! glibc's resolver would work too, but it blocks a thread, tells no TTL and has no deadline.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures::future::{BoxFuture, FutureExt as _};
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig,
    ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, TokioResolver};

use crate::config::{DnsOptions, DnsServer, DnsTransport, LookupFamily};

/// How often the system's files are read again.
const REREAD: Duration = Duration::from_secs(60);
/// How long an answer holds that does not come from DNS.
const NOT_FROM_DNS: Duration = REREAD;
/// On top of the time that the queries themselves may take.
const SLACK: Duration = Duration::from_secs(1);

/// Looks names up; clones share the state. Its sockets belong to the runtime that makes the
/// look-up, so use one resolver per runtime.
#[derive(Clone)]
pub struct Resolver {
    shared: Arc<Shared>,
}

struct Shared {
    options: ArcSwap<DnsOptions>,
    resolv_conf: PathBuf,
    hosts: PathBuf,
    loaded: ArcSwap<Loaded>,
}

struct Loaded {
    dns: TokioResolver,
    hosts: Hosts,
    at: Instant,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver")
            .field("options", &self.options())
            .finish_non_exhaustive()
    }
}

/// The addresses of a name, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// In the order of preference.
    pub addresses: Vec<IpAddr>,
    /// How long the answer holds; `None` for an address that was written as one.
    pub ttl: Option<Duration>,
}

/// A name has no addresses, or nobody could say.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The name does not exist or has no address of the wanted family.
    #[error("{name} does not resolve: {reason}")]
    NoAddress {
        /// The name as it was asked for.
        name: String,
        /// What the name server said.
        reason: String,
    },
    /// No usable answer from any name server.
    #[error("no answer about {name} from the name servers: {reason}")]
    NoAnswer {
        /// The name as it was asked for.
        name: String,
        /// What happened instead.
        reason: String,
    },
    /// Not a DNS name at all.
    #[error("{name} is no host name")]
    BadName {
        /// What was given.
        name: String,
    },
    /// The resolver itself cannot be set up.
    #[error("cannot set name resolution up")]
    Setup(#[source] NetError),
}

impl Resolver {
    /// Reads the system's files and follows `options`.
    pub fn new(options: DnsOptions) -> Result<Self, LookupError> {
        Self::with_files(options, "/etc/resolv.conf".into(), "/etc/hosts".into())
    }

    fn with_files(
        options: DnsOptions,
        resolv_conf: PathBuf,
        hosts: PathBuf,
    ) -> Result<Self, LookupError> {
        let loaded = load(&options, &resolv_conf, &hosts).map_err(LookupError::Setup)?;
        Ok(Self {
            shared: Arc::new(Shared {
                options: ArcSwap::from_pointee(options),
                resolv_conf,
                hosts,
                loaded: ArcSwap::from_pointee(loaded),
            }),
        })
    }

    /// The options it follows.
    pub fn options(&self) -> Arc<DnsOptions> {
        self.shared.options.load_full()
    }

    /// Follows other options from the next look-up on, and so do all clones.
    pub fn configure(&self, options: DnsOptions) -> Result<(), LookupError> {
        let shared = &self.shared;
        let loaded =
            load(&options, &shared.resolv_conf, &shared.hosts).map_err(LookupError::Setup)?;
        shared.options.store(Arc::new(options));
        shared.loaded.store(Arc::new(loaded));
        Ok(())
    }

    /// All addresses of `host`: a name, or an address (with or without brackets) that stands for
    /// itself.
    ///
    /// Boxed here, or every crate that asks compiles all of the resolver once more.
    pub fn lookup<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Addresses, LookupError>> {
        self.find(host).boxed()
    }

    async fn find(&self, host: &str) -> Result<Addresses, LookupError> {
        if let Some(address) = literal(host) {
            return Ok(Addresses {
                addresses: vec![address],
                ttl: None,
            });
        }
        let options = self.options();
        let family = options.lookup_family;
        if is_localhost(host) {
            return Ok(Addresses {
                addresses: loopback(family),
                ttl: None,
            });
        }
        let bad_name = || LookupError::BadName {
            name: host.to_owned(),
        };
        // An internationalised name is asked for in its ASCII form, as browsers do. Names that no
        // browser would take, such as `my_service` in a compose network, are asked for as they are.
        let name = Name::from_str_relaxed(host).map_err(|_| bad_name())?;
        let loaded = self.loaded();
        let from_file = hosts_entry(&loaded.hosts, &name);
        if !from_file.is_empty() {
            let addresses = of_family(from_file, family);
            let reason = "the hosts file has no address of the wanted family";
            return some(host, addresses, Some(NOT_FROM_DNS), reason);
        }
        let deadline = options
            .query_timeout
            .saturating_mul(options.query_tries.max(1))
            + SLACK;
        let answer = tokio::time::timeout(deadline, loaded.dns.lookup_ip(name)).await;
        match answer {
            Err(_) => Err(LookupError::NoAnswer {
                name: host.to_owned(),
                reason: format!("nothing within {deadline:?}"),
            }),
            Ok(Err(error)) if error.is_no_records_found() || error.is_nx_domain() => {
                Err(LookupError::NoAddress {
                    name: host.to_owned(),
                    reason: error.to_string(),
                })
            }
            Ok(Err(error)) => Err(LookupError::NoAnswer {
                name: host.to_owned(),
                reason: error.to_string(),
            }),
            Ok(Ok(found)) => {
                let ttl = found
                    .valid_until()
                    .saturating_duration_since(Instant::now());
                let addresses = of_family(found.iter().collect(), family);
                some(host, addresses, Some(ttl), "the answer holds no address")
            }
        }
    }

    /// The files as they were read at most a minute ago.
    fn loaded(&self) -> Arc<Loaded> {
        let shared = &self.shared;
        let loaded = shared.loaded.load_full();
        if loaded.at.elapsed() < REREAD {
            return loaded;
        }
        match load(&self.options(), &shared.resolv_conf, &shared.hosts) {
            Ok(new) => {
                let new = Arc::new(new);
                shared.loaded.store(Arc::clone(&new));
                new
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read resolv.conf; going on with what it said before");
                loaded
            }
        }
    }
}

fn some(
    host: &str,
    addresses: Vec<IpAddr>,
    ttl: Option<Duration>,
    reason: &str,
) -> Result<Addresses, LookupError> {
    if addresses.is_empty() {
        return Err(LookupError::NoAddress {
            name: host.to_owned(),
            reason: reason.to_owned(),
        });
    }
    Ok(Addresses { addresses, ttl })
}

/// An address that is written where a name could stand.
pub fn literal(host: &str) -> Option<IpAddr> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    bare.parse().ok()
}

/// RFC 6761: these names mean this machine and are never asked of anybody.
fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

fn loopback(family: LookupFamily) -> Vec<IpAddr> {
    let (v4, v6) = (
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    );
    match family {
        LookupFamily::V6Only => vec![v6],
        LookupFamily::All => vec![v4, v6],
        LookupFamily::Auto | LookupFamily::V4Only | LookupFamily::V4Preferred => vec![v4],
    }
}

/// Keeps what the family asks for, first seen first, each address once.
fn of_family(addresses: Vec<IpAddr>, family: LookupFamily) -> Vec<IpAddr> {
    let mut once: Vec<IpAddr> = Vec::with_capacity(addresses.len());
    for address in addresses {
        if !once.contains(&address) {
            once.push(address);
        }
    }
    let (v4, v6): (Vec<_>, Vec<_>) = once.into_iter().partition(IpAddr::is_ipv4);
    match family {
        LookupFamily::V4Preferred if v4.is_empty() => v6,
        LookupFamily::V4Only | LookupFamily::V4Preferred => v4,
        LookupFamily::Auto if v6.is_empty() => v4,
        LookupFamily::V6Only | LookupFamily::Auto => v6,
        LookupFamily::All => [v4, v6].concat(),
    }
}

/// What the hosts file says about a name. It is asked alone and first, for both families: DNS
/// need not know the name, and would be waited for.
fn hosts_entry(hosts: &Hosts, name: &Name) -> Vec<IpAddr> {
    let mut name = name.clone();
    name.set_fqdn(true);
    [RecordType::A, RecordType::AAAA]
        .into_iter()
        .filter_map(|kind| hosts.lookup_static_host(&Query::query(name.clone(), kind)))
        .flat_map(|found| {
            let records = found.answers().iter();
            records
                .filter_map(|record| record.data.ip_addr())
                .collect::<Vec<_>>()
        })
        .collect()
}

fn load(options: &DnsOptions, resolv_conf: &Path, hosts: &Path) -> Result<Loaded, NetError> {
    let (config, mut opts) = if options.resolvers.is_empty() {
        let (config, opts) = system(resolv_conf)?;
        match options.transport {
            DnsTransport::Udp => (config, opts),
            DnsTransport::Tcp => (over_tcp(config), opts),
        }
    } else {
        let (config, opts) = search(resolv_conf);
        let servers = options.resolvers.iter().map(|server| name_server(*server));
        (with_servers(config, servers.collect()), opts)
    };
    opts.timeout = options.query_timeout;
    opts.attempts = usize::try_from(options.query_tries.saturating_sub(1)).unwrap_or(0);
    opts.cache_size = 0;
    opts.use_hosts_file = ResolveHosts::Never;
    opts.edns0 = true;
    opts.ip_strategy = match options.lookup_family {
        LookupFamily::V4Only => LookupIpStrategy::Ipv4Only,
        LookupFamily::V6Only => LookupIpStrategy::Ipv6Only,
        // The second family is asked for only when the first has nothing: a name server that is
        // slow about it can't delay the answer.
        LookupFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
        LookupFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
        LookupFamily::All => LookupIpStrategy::Ipv4AndIpv6,
    };
    let provider = TokioRuntimeProvider::default();
    let dns = TokioResolver::builder_with_config(config, provider)
        .with_options(opts)
        .build()?;
    Ok(Loaded {
        dns,
        hosts: read_hosts(hosts),
        at: Instant::now(),
    })
}

/// Without `resolv.conf` (an empty container image) the C library asks this machine; so do we.
fn system(resolv_conf: &Path) -> Result<(ResolverConfig, ResolverOpts), NetError> {
    match std::fs::read(resolv_conf) {
        Ok(text) => parse_resolv_conf(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let here = NameServerConfig::udp_and_tcp(IpAddr::V4(Ipv4Addr::LOCALHOST));
            Ok((
                ResolverConfig::from_name_servers(vec![here]),
                ResolverOpts::default(),
            ))
        }
        Err(error) => Err(error.into()),
    }
}

/// What `resolv.conf` says beside its servers: in which domains a short name is looked for. Where
/// that cannot be read, names are taken as they are.
fn search(resolv_conf: &Path) -> (ResolverConfig, ResolverOpts) {
    let mut text = std::fs::read(resolv_conf).unwrap_or_else(|error| {
        if error.kind() != std::io::ErrorKind::NotFound {
            tracing::warn!(%error, "cannot read resolv.conf; short names are not searched for");
        }
        Vec::new()
    });
    // The parser refuses a file without any; others take its place.
    text.extend_from_slice(b"\nnameserver 127.0.0.1\n");
    parse_resolv_conf(text).unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read resolv.conf; short names are not searched for");
        (ResolverConfig::default(), ResolverOpts::default())
    })
}

fn over_tcp(config: ResolverConfig) -> ResolverConfig {
    let servers = config.name_servers().iter();
    let servers = servers
        .map(|server| NameServerConfig::tcp(server.ip))
        .collect();
    with_servers(config, servers)
}

/// The same search list, with other servers.
fn with_servers(config: ResolverConfig, servers: Vec<NameServerConfig>) -> ResolverConfig {
    let (domain, search, _) = config.into_parts();
    ResolverConfig::from_parts(domain, search, servers)
}

/// A server that was configured for UDP is asked by TCP too when an answer does not fit.
fn name_server(server: DnsServer) -> NameServerConfig {
    let at_port = |mut connection: ConnectionConfig| {
        connection.port = server.address.port();
        connection
    };
    let connections = match server.transport {
        DnsTransport::Udp => vec![
            at_port(ConnectionConfig::udp()),
            at_port(ConnectionConfig::tcp()),
        ],
        DnsTransport::Tcp => vec![at_port(ConnectionConfig::tcp())],
    };
    NameServerConfig::new(server.address.ip(), true, connections)
}

fn read_hosts(path: &Path) -> Hosts {
    let mut hosts = Hosts::default();
    match std::fs::File::open(path) {
        Ok(file) => {
            if let Err(error) = hosts.read_hosts_conf(file) {
                tracing::warn!(%error, "the hosts file is not readable to its end");
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, "cannot read the hosts file"),
    }
    hosts
}

#[cfg(test)]
mod tests;
