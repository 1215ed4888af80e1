//! Finds the route of a request.
//!
//! Every exact host has a table of its own; a host that has one never falls through to wildcards.
//! Wildcards share one table. Within a table the first route in file order wins whose path
//! condition holds, whatever its policy says.

use std::sync::Arc;

use hashbrown::HashMap;
use url::Url;

use super::host::Authority;
use super::target::{Target, TargetForm};
use crate::config::{FromScheme, PathMatcher, PathNormalization, Route, RouteFrom, RouteId};

/// All routes, arranged for look-up. Built once per configuration.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Vec<Arc<Route>>,
    by_id: HashMap<RouteId, usize>,
    hosts: HashMap<Box<str>, Host>,
    /// CONNECT authorities, `host:port`.
    tunnels: HashMap<Box<str>, usize>,
    /// `*.corp.test` under `corp.test`: the common kind, found without trying every pattern.
    suffixes: HashMap<Box<str>, Vec<usize>>,
    /// Other patterns, and CONNECT patterns.
    patterns: Vec<usize>,
    tunnel_patterns: Vec<(Box<str>, usize)>,
    ports: IncomingPorts,
}

/// Runtime flag `match_any_incoming_port`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IncomingPorts {
    /// A route on the default port of its scheme answers whatever port the client names.
    #[default]
    Any,
    /// Only its own.
    Own,
}

impl IncomingPorts {
    pub fn from_flag(match_any_incoming_port: bool) -> Self {
        if match_any_incoming_port {
            Self::Any
        } else {
            Self::Own
        }
    }
}

/// Routes of one exact host, by what port they were written for. Indices are in file order.
#[derive(Debug, Default)]
struct Host {
    default_port: Vec<usize>,
    by_port: Vec<(u16, Vec<usize>)>,
}

/// What [`RouteTable::find`] met.
#[derive(Debug, Clone, Copy)]
pub enum Found<'a> {
    Route(&'a Arc<Route>),
    /// A route names this host, but none of its paths fits.
    NoPath,
    UnknownHost,
}

impl<'a> Found<'a> {
    pub fn route(self) -> Option<&'a Arc<Route>> {
        match self {
            Self::Route(route) => Some(route),
            Self::NoPath | Self::UnknownHost => None,
        }
    }
}

impl RouteTable {
    pub fn new(routes: &[Arc<Route>], ports: IncomingPorts) -> Self {
        let mut table = Self {
            routes: routes.to_vec(),
            ports,
            ..Self::default()
        };
        for (index, route) in routes.iter().enumerate() {
            table.by_id.entry(route.id.clone()).or_insert(index);
            table.insert(index, &route.from);
        }
        table
    }

    fn insert(&mut self, index: usize, from: &RouteFrom) {
        if let FromScheme::Tcp { authorities } = &from.scheme {
            for authority in authorities {
                let authority = authority.to_ascii_lowercase().into_boxed_str();
                if authority.contains('*') {
                    self.tunnel_patterns.push((authority, index));
                } else {
                    self.tunnels.entry(authority).or_insert(index);
                }
            }
            return;
        }
        for host in std::iter::once(&from.host).chain(&from.also) {
            let host = host.to_ascii_lowercase();
            match host.strip_prefix("*.") {
                Some(suffix) if !suffix.contains('*') => {
                    self.suffixes.entry(suffix.into()).or_default().push(index);
                }
                _ if host.contains('*') => self.patterns.push(index),
                _ => self
                    .hosts
                    .entry(host.into())
                    .or_default()
                    .insert(index, from.port),
            }
        }
    }

    /// The route of a request, in time that depends on the routes of its host only.
    pub fn find(&self, target: &Target) -> Found<'_> {
        match &target.form {
            TargetForm::Tunnel { host_and_port } => self.find_tunnel(host_and_port),
            TargetForm::Resource { path, .. } => self.find_resource(&target.authority, path),
        }
    }

    /// The route of a GET for `url`.
    pub fn find_url(&self, url: &Url, rules: PathNormalization) -> Option<&Arc<Route>> {
        self.find(&Target::of_url(url, rules).ok()?).route()
    }

    /// Whether any route answers on this host.
    pub fn knows_host(&self, authority: &Authority) -> bool {
        match self.exact(authority) {
            Some(routes) => !routes.is_empty(),
            None => self.wildcards(authority, |_| true).is_some(),
        }
    }

    pub fn by_id(&self, id: &RouteId) -> Option<&Arc<Route>> {
        self.routes.get(*self.by_id.get(id)?)
    }

    /// In file order.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    fn find_tunnel(&self, host_and_port: &str) -> Found<'_> {
        let index = self.tunnels.get(host_and_port).copied().or_else(|| {
            let mut patterns = self.tunnel_patterns.iter();
            patterns
                .find(|(pattern, _)| glob(pattern, host_and_port))
                .map(|(_, index)| *index)
        });
        index
            .and_then(|index| self.routes.get(index))
            .map_or(Found::UnknownHost, Found::Route)
    }

    fn find_resource(&self, authority: &Authority, path: &str) -> Found<'_> {
        let Some(routes) = self.exact(authority) else {
            return match self.wildcards(authority, |route| route.matcher.matches(path)) {
                Some(route) => Found::Route(route),
                None if self.wildcards(authority, |_| true).is_some() => Found::NoPath,
                None => Found::UnknownHost,
            };
        };
        let mut routes = routes.iter().filter_map(|index| self.routes.get(*index));
        routes
            .find(|route| route.matcher.matches(path))
            .map_or(Found::NoPath, Found::Route)
    }

    /// The table of an exact host, if there is one for this port.
    fn exact(&self, authority: &Authority) -> Option<&[usize]> {
        let host = self.hosts.get(authority.name())?;
        let own = |port| host.by_port.iter().find(|(known, _)| *known == port);
        match authority.port() {
            Some(port) => match own(port) {
                Some((_, routes)) => Some(routes),
                None if self.ports == IncomingPorts::Any => host.default(),
                None => None,
            },
            None => host.default(),
        }
    }

    /// The first wildcard route, in file order, that covers the host and satisfies `condition`.
    fn wildcards(
        &self,
        authority: &Authority,
        condition: impl Fn(&Route) -> bool,
    ) -> Option<&Arc<Route>> {
        let fits = |index: &&usize| {
            self.routes
                .get(**index)
                .is_some_and(|route| self.port_fits(&route.from, authority) && condition(route))
        };
        let name = authority.name();
        let suffixes = name
            .match_indices('.')
            .filter_map(|(dot, _)| name.get(dot + 1..));
        let by_suffix = suffixes
            .filter_map(|suffix| self.suffixes.get(suffix))
            .filter_map(|routes| routes.iter().find(fits));
        let mut patterns = self.patterns.iter();
        let by_pattern = patterns.find(|index| {
            self.routes.get(**index).is_some_and(|route| {
                let mut hosts = std::iter::once(&route.from.host).chain(&route.from.also);
                hosts.any(|pattern| pattern.contains('*') && glob(pattern, name))
            }) && fits(index)
        });
        let first = by_suffix.chain(by_pattern).min()?;
        self.routes.get(*first)
    }

    fn port_fits(&self, from: &RouteFrom, authority: &Authority) -> bool {
        match (from.port, authority.port()) {
            (Some(own), Some(port)) => own == port,
            (Some(_), None) => false,
            (None, Some(_)) => self.ports == IncomingPorts::Any,
            (None, None) => true,
        }
    }
}

impl Host {
    fn insert(&mut self, index: usize, port: Option<u16>) {
        let Some(port) = port else {
            self.default_port.push(index);
            return;
        };
        match self.by_port.iter_mut().find(|(known, _)| *known == port) {
            Some((_, routes)) => routes.push(index),
            None => self.by_port.push((port, vec![index])),
        }
    }

    fn default(&self) -> Option<&[usize]> {
        (!self.default_port.is_empty()).then_some(&self.default_port)
    }
}

impl PathMatcher {
    /// Whether a path in normal form satisfies this condition.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Prefix(prefix) => path.starts_with(prefix.as_str()),
            Self::Exact(exact) => path == exact,
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

/// Whether `text` fits `pattern`, in which each `*` stands for any text, dots included.
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part).and_then(|at| rest.get(at + part.len()..)) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    true
}
#[cfg(test)]
mod tests;
