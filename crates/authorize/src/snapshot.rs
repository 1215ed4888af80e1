//! A configuration made ready for decisions: everything that depends on it alone is worked out
//! here, once.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashMap;
use http::Method;
use postern_common::authz::CheckRequest;
use postern_common::config::{
    Config, IssuerFormat, PassIdentity, Route, RouteChecksum, RouteId, TemplatePart,
};
use postern_common::route::table::IncomingPorts;
use postern_common::route::{Authority, RouteTable, Target, TargetForm};
use postern_common::web::credentials::OwnNames;
use postern_common::web::page::Look;
use postern_policy::Fact;

use crate::bearer::Reading;
use crate::certificate::CertificateExaminer;
use crate::handles::Handles;
use crate::records::{KeepTokens, record_type};

/// One loaded configuration.
#[derive(Debug)]
pub struct Snapshot {
    pub config: Arc<Config>,
    /// Tells this load from every other one of this process.
    pub generation: u64,
    /// Whether sessions have to keep the provider's tokens.
    pub keep_tokens: KeepTokens,
    pub certificates: CertificateExaminer,
    pub handles: Handles,
    /// How refusals look that are answered from here, for Envoy.
    pub look: Look,
    /// What Envoy has to keep from upstreams.
    pub own_names: OwnNames,
    /// Types of records that routes look up one by one, because no copy of them is kept.
    pub looked_up: BTreeSet<String>,
    routes: HashMap<RouteId, Arc<LoadedRoute>>,
    table: RouteTable,
    provider_ids: Vec<Arc<str>>,
}

/// A route and what follows from it.
#[derive(Debug)]
pub struct LoadedRoute {
    pub route: Arc<Route>,
    /// Of whose sessions count here. Empty: no provider is configured.
    pub provider_id: Option<Arc<str>>,
    /// Global and own, together; empty: no filter.
    pub groups_filter: Vec<String>,
    /// The upstream, or one of its headers, gets an assertion.
    pub needs_assertion: bool,
    pub needs_devices: bool,
    pub record_types: Vec<String>,
}

impl Snapshot {
    pub fn new(config: Arc<Config>, generation: u64) -> Self {
        let routes: HashMap<_, _> = config
            .routes
            .iter()
            .map(|route| (route.id.clone(), Arc::new(LoadedRoute::new(route, &config))))
            .collect();
        let of_routes = routes
            .values()
            .filter_map(|route| route.provider_id.clone());
        let provider_ids: BTreeSet<_> = of_routes.chain(config.provider_id.clone()).collect();
        let ports = IncomingPorts::from_flag(config.flags.match_any_incoming_port);
        Self {
            generation,
            keep_tokens: keep_tokens(&config),
            certificates: CertificateExaminer::new(config.downstream_mtls.as_ref()),
            handles: Handles::new(&config.secrets.shared),
            look: Look::new(&config.branding),
            own_names: OwnNames::new(
                &config.cookie.name,
                config.identity.claims_headers.iter().map(|(name, _)| name),
            ),
            looked_up: routes.values().flat_map(|route| looked_up(route)).collect(),
            routes,
            table: RouteTable::new(&config.routes, ports),
            provider_ids: provider_ids.into_iter().collect(),
            config,
        }
    }

    pub fn route(&self, id: &RouteId, checksum: RouteChecksum) -> Option<&Arc<LoadedRoute>> {
        self.routes
            .get(id)
            .filter(|loaded| loaded.route.checksum == checksum)
    }

    /// The route that this configuration has for a request, whatever the proxy matched.
    pub fn find(&self, request: &CheckRequest) -> Option<&Arc<LoadedRoute>> {
        let route = self.table.find(&target(request)?).route()?;
        self.routes.get(&route.id)
    }

    /// Ids of the providers whose sessions count on our own endpoints: of all routes, because an
    /// endpoint belongs to its host and not to one of them.
    pub fn provider_ids(&self) -> &[Arc<str>] {
        &self.provider_ids
    }

    /// How tokens are read on our own endpoints: by the global keys.
    pub fn tokens(&self) -> Reading<'_> {
        Reading {
            route: None,
            provider_id: self.config.provider_id.as_deref(),
            bearer: &self.config.bearer,
        }
    }
}

fn looked_up(route: &LoadedRoute) -> impl Iterator<Item = String> {
    const DEVICES: [&str; 2] = [
        record_type::DEVICE_CREDENTIAL,
        record_type::DEVICE_ENROLLMENT,
    ];
    let devices = DEVICES.into_iter().filter(|_| route.needs_devices);
    let records = route.record_types.iter().cloned();
    records.chain(devices.map(str::to_owned))
}

/// Whether any route hands a provider's token to its upstream.
fn keep_tokens(config: &Config) -> KeepTokens {
    let wants_token =
        |part: &TemplatePart| matches!(part, TemplatePart::AccessToken | TemplatePart::IdToken);
    let any = config.routes.iter().any(|route| {
        let mut templates = route.request_headers.set.iter();
        templates.any(|(_, template)| template.0.iter().any(wants_token))
    });
    if any { KeepTokens::Yes } else { KeepTokens::No }
}

impl LoadedRoute {
    fn new(route: &Arc<Route>, config: &Config) -> Self {
        let templates = &route.request_headers.set;
        let wants_jwt = templates
            .iter()
            .any(|(_, template)| template.0.contains(&TemplatePart::Jwt));
        let mut groups_filter = config.identity.groups_filter.clone();
        groups_filter.extend(route.identity.groups_filter.iter().cloned());
        let needs = route.policy.needs();
        Self {
            provider_id: config.provider_id(Some(route)).cloned(),
            groups_filter,
            needs_assertion: route.identity.headers == PassIdentity::Yes
                || wants_jwt
                || route.kubernetes_token.is_some(),
            needs_devices: needs.reads(Fact::Devices),
            record_types: needs.record_types().map(str::to_owned).collect(),
            route: Arc::clone(route),
        }
    }

    /// How tokens are read on this route.
    pub fn tokens(&self) -> Reading<'_> {
        Reading {
            route: Some(&self.route.id),
            provider_id: self.provider_id.as_deref(),
            bearer: &self.route.bearer,
        }
    }

    pub fn issuer(&self) -> IssuerFormat {
        self.route.identity.issuer
    }
}

/// A question's target in the form that route tables look up. It is in normal form already.
fn target(request: &CheckRequest) -> Option<Target> {
    let authority = Authority::parse(&request.host, request.scheme).ok()?;
    let form = if request.method == Method::CONNECT && request.path.is_empty() {
        let port = authority.port().unwrap_or(443);
        TargetForm::Tunnel {
            host_and_port: format!("{}:{port}", authority.name()).into(),
        }
    } else {
        TargetForm::Resource {
            path: Arc::clone(&request.path),
            query: request.query.clone(),
        }
    };
    Some(Target {
        scheme: request.scheme,
        authority,
        form,
    })
}
