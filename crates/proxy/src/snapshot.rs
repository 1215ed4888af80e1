//! What a configuration means to the data plane, built once and read by every request.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use http::StatusCode;
use postern_common::authz::Scheme;
use postern_common::config::{
    Config, HostHeader, LoadBalancing, PathRewrite, Route, RouteId, RouteTarget, ServerTls,
    Service, Upgrades, UpstreamEndpoint, UpstreamProtocol, UpstreamTarget, UpstreamTls,
};
use postern_common::crypto::keys::SecretKey;
use postern_common::route::{Authority, Found, RouteTable, Target, table::IncomingPorts};
use postern_common::web::page::Look;
use postern_common::web::redirect::Targets;
use url::Url;

use crate::access_log::Fields;
use crate::forward::headers::HeaderRules;
use crate::metrics::{ProxyMetrics, RouteMetrics};
use crate::refuse::Stop;
use crate::tls::{PublicTls, TlsError};
use crate::upstream::Cluster;
use crate::upstream::directory::{Directory, Settings};
use crate::upstream::tls::Names;

/// One configuration, ready for use.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub config: Arc<Config>,
    pub routes: RouteTable,
    pub headers: Arc<HeaderRules>,
    /// `None`: clear text.
    pub tls: Option<Arc<PublicTls>>,
    pub authenticate: AuthenticateHost,
    /// How our own pages look.
    pub look: Look,
    pub log_fields: Arc<Fields>,
    /// Where a redirect may lead.
    pub redirect_targets: Targets,
    prepared: HashMap<RouteId, Arc<Prepared>>,
}

/// A route with where it leads.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub route: Arc<Route>,
    /// `upstream-cluster` of the access log: `<name or "route">-<id>`.
    pub cluster_name: Arc<str>,
    pub metrics: Arc<RouteMetrics>,
    /// `None` for redirects and fixed responses.
    pub cluster: Option<Destination>,
}

/// Where a route leads.
#[derive(Debug)]
pub(crate) enum Destination {
    Cluster(Cluster),
    /// What is wrong with it; every request gets 503.
    Broken(String),
}

/// The host that people sign in at.
#[derive(Debug)]
pub(crate) struct AuthenticateHost {
    /// `None` if the URL has no host that a request could name.
    pub authority: Option<Authority>,
    pub way: AuthenticateWay,
}

/// How requests to it are answered.
#[derive(Debug)]
pub(crate) enum AuthenticateWay {
    /// By a call.
    InProcess,
    /// By the built-in route.
    BuiltIn(Arc<UpstreamTarget>, Box<Destination>),
    /// By the routes that name the host; without a question to authorize.
    Route,
}

impl Snapshot {
    /// Builds it. `before` lends what has not changed.
    pub(crate) fn build(
        config: Arc<Config>,
        before: Option<&Self>,
        directory: &Directory,
        settings: &Settings,
        metrics: &ProxyMetrics,
        authenticate_in_process: bool,
    ) -> Result<Self, TlsError> {
        let ports = IncomingPorts::from_flag(config.flags.match_any_incoming_port);
        let prepare = |route: &Arc<Route>| {
            let name = if route.name.is_empty() {
                "route"
            } else {
                &route.name
            };
            let cluster_name: Arc<str> = format!("{name}-{}", route.id).into();
            let cluster = match &route.target {
                RouteTarget::Upstream(target) => Some(destination(
                    directory,
                    &cluster_name,
                    target,
                    Names::One,
                    settings,
                )),
                RouteTarget::Redirect(_) | RouteTarget::Response(_) => None,
            };
            let stat_name = match route.name.as_str() {
                "" => format!("route-{}", route.id),
                name => name.to_owned(),
            };
            let known = before
                .and_then(|before| before.prepared.get(&route.id))
                .map(|prepared| &prepared.metrics)
                .filter(|known| known.stat_name() == stat_name);
            let prepared = Prepared {
                route: Arc::clone(route),
                cluster_name,
                metrics: known.map_or_else(|| metrics.route(&stat_name), Arc::clone),
                cluster,
            };
            (route.id.clone(), Arc::new(prepared))
        };
        Ok(Self {
            routes: RouteTable::new(&config.routes, ports),
            prepared: config.routes.iter().map(prepare).collect(),
            headers: Arc::new(HeaderRules::new(
                &config.cookie.name,
                config.identity.claims_headers.iter().map(|(name, _)| name),
                config.http.append_forwarded_for,
                config.http.trusted_hops,
            )),
            tls: public_tls(&config, before)?,
            look: Look::new(&config.branding),
            log_fields: Arc::new(Fields::new(config.log.access_fields.as_deref())),
            redirect_targets: Targets::of(&config),
            authenticate: authenticate(&config, directory, settings, authenticate_in_process),
            config,
        })
    }

    /// The route of a request.
    pub(crate) fn route(&self, target: &Target) -> Option<&Arc<Prepared>> {
        match self.routes.find(target) {
            Found::Route(route) => self.prepared.get(&route.id),
            Found::NoPath | Found::UnknownHost => None,
        }
    }

    /// The route that leads to authenticate, where that is how its host is served. It has to name
    /// the host: a wildcard that merely covers it is an application like any other, with its own
    /// policy.
    pub(crate) fn authenticate_route(&self, target: &Target) -> Option<&Arc<Prepared>> {
        if !matches!(self.authenticate.way, AuthenticateWay::Route)
            || !self.is_authenticate(&target.authority)
        {
            return None;
        }
        let named = |prepared: &&Arc<Prepared>| {
            let from = &prepared.route.from;
            from.host == target.authority.name()
                && (from.port.is_none() || from.port == target.authority.port())
        };
        self.route(target).filter(named)
    }

    /// The newest form of a route that a request was let through on.
    pub(crate) fn route_by_id(&self, id: &RouteId) -> Option<&Arc<Prepared>> {
        self.prepared.get(id)
    }

    /// The secret that signs links of ours.
    pub(crate) fn shared_secret(&self) -> Result<&SecretKey, Stop> {
        // Loading refuses a configuration without one; without it nothing may be signed.
        self.config.secrets.shared.first().ok_or_else(|| {
            let text = "Signing in is not possible just now.";
            Stop::new(StatusCode::SERVICE_UNAVAILABLE, "no_shared_secret", text)
        })
    }

    /// Whether a request is for the host that people sign in at.
    pub(crate) fn is_authenticate(&self, authority: &Authority) -> bool {
        self.authenticate.authority.as_ref() == Some(authority)
    }
}

fn destination(
    directory: &Directory,
    name: &Arc<str>,
    target: &UpstreamTarget,
    names: Names,
    settings: &Settings,
) -> Destination {
    match directory.cluster(Arc::clone(name), target, names, settings) {
        Ok(cluster) => Destination::Cluster(cluster),
        Err(error) => {
            let reason = postern_common::telemetry::log::chain(&error);
            tracing::error!(
                upstream_cluster = &**name,
                reason,
                "a route cannot be served"
            );
            Destination::Broken(reason)
        }
    }
}

/// The same certificates keep the same TLS state, and with it the tickets that clients hold.
fn public_tls(
    config: &Config,
    before: Option<&Snapshot>,
) -> Result<Option<Arc<PublicTls>>, TlsError> {
    let ServerTls::Certificates(certificates) = &config.server_tls else {
        return Ok(None);
    };
    let kept = before
        .and_then(|before| before.tls.as_ref())
        .filter(|tls| tls.serves(certificates, config));
    if let Some(tls) = kept {
        return Ok(Some(Arc::clone(tls)));
    }
    PublicTls::new(certificates, config).map(|tls| Some(Arc::new(tls)))
}

fn authenticate(
    config: &Config,
    directory: &Directory,
    settings: &Settings,
    in_process: bool,
) -> AuthenticateHost {
    let url = &config.urls.authenticate;
    let way = if in_process {
        AuthenticateWay::InProcess
    } else if let Some(target) = config
        .urls
        .authenticate_internal
        .as_ref()
        .filter(|_| !config.services.contains(Service::Authenticate))
        .and_then(|internal| authenticate_target(internal, url, config))
    {
        let name: Arc<str> = "pomerium-authenticate".into();
        let destination = destination(directory, &name, &target, Names::OrHost, settings);
        AuthenticateWay::BuiltIn(Arc::new(target), Box::new(destination))
    } else {
        AuthenticateWay::Route
    };
    AuthenticateHost {
        authority: authority_of(url),
        way,
    }
}

/// The host and port that a browser names when it opens this URL.
pub(crate) fn authority_of(url: &Url) -> Option<Authority> {
    let host = url.host_str()?;
    match url.port() {
        Some(port) => Authority::parse(&format!("{host}:{port}"), Scheme::Https).ok(),
        None => Authority::parse(host, Scheme::Https).ok(),
    }
}

/// The built-in route to authenticate: the browser's host is kept, because signed URLs are checked
/// against it, and it is the name that authenticate's certificate is for.
fn authenticate_target(internal: &Url, external: &Url, config: &Config) -> Option<UpstreamTarget> {
    let protocol = match internal.scheme() {
        "http" => UpstreamProtocol::Http,
        _ => UpstreamProtocol::Https,
    };
    let host = internal.host_str()?.to_owned();
    let port = internal.port_or_known_default()?;
    let timeout = config.http.default_upstream_timeout;
    Some(UpstreamTarget {
        endpoints: vec![UpstreamEndpoint {
            protocol,
            authority: format!("{host}:{port}"),
            host,
            port,
            weight: 1,
        }],
        rewrite: PathRewrite::None,
        host: HostHeader::Preserve,
        balancing: LoadBalancing::RoundRobin,
        upgrades: Upgrades::default(),
        timeout: (timeout > Duration::ZERO).then_some(timeout),
        idle_timeout: None,
        tls: UpstreamTls {
            server_name: external.host_str().map(str::to_owned),
            ..UpstreamTls::default()
        },
    })
}
