//! One route: read, checked, compiled.

pub(super) mod access;
mod from;
mod headers;
mod matcher;
mod target;
mod tls;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use regex::Regex;

use super::super::diagnostic::{Diagnostic, Severity, code};
use super::super::keys::{GLOBAL, ROUTE};
use super::super::options::{
    BearerTokenFormat, IssuerFormat, JwtVerifier, MtlsEnforcement, PathNormalization,
    ProviderOptions,
};
use super::super::place::At;
use super::super::route::{
    ErrorDetails, FromScheme, PassIdentity, PathMatcher, PathRewrite, ResponseHeaders, Route,
    RouteBearer, RouteFrom, RouteId, RouteIdentity, RouteTarget, Secret, UpstreamEndpoint,
    UpstreamProtocol,
};
use super::super::source::{Node, Value};
use super::reader::{Load, Section, check_keys, scalar};
use super::{checksum, http, sign_in};

/// What routes take over from the rest of the configuration.
pub struct Defaults<'a> {
    pub path: PathNormalization,
    pub upstream_timeout: Duration,
    pub max_data_age: Option<Duration>,
    pub response_headers: &'a [(::http::HeaderName, ::http::HeaderValue)],
    pub upgrades: Vec<String>,
    pub pass_identity: bool,
    pub issuer: IssuerFormat,
    pub bearer: BearerTokenFormat,
    pub verifiers: &'a std::collections::BTreeMap<String, JwtVerifier>,
    pub provider: Option<&'a ProviderOptions>,
    /// As written: part of a provider's id.
    pub authenticate_url: String,
    pub mtls: Option<MtlsEnforcement>,
}

/// A route and where it was written.
pub struct Placed {
    pub route: Arc<Route>,
    pub place: super::super::place::Place,
}

/// Every route of both lists, `policy` first. Mistakes in one do not hide those in the next.
pub fn routes(load: &mut Load<'_>, root: Section<'_>, defaults: &Defaults<'_>) -> Vec<Placed> {
    let mut found = Vec::new();
    for list in ["policy", "routes"] {
        let Some(node) = root.node(list) else {
            continue;
        };
        let Value::List(items) = &node.value else {
            root.wrong::<()>(load, list, node);
            continue;
        };
        for item in items {
            let Value::Map(map) = &item.value else {
                load.say(
                    Diagnostic::error(
                        code::WRONG_TYPE,
                        format!(
                            "a route is a map with `from` and `to`, but here is {}",
                            item.kind()
                        ),
                    )
                    .at(&item.place),
                );
                continue;
            };
            let place = map
                .key("from")
                .or_else(|| map.entries.first().map(|(key, _)| key))
                .map_or(&item.place, |key| &key.place);
            let section = Section {
                map,
                keys: ROUTE,
                prefix: "",
                place: Some(place),
            };
            check_keys(
                load,
                section,
                GLOBAL,
                "at the top of the file, not in a route",
            );
            if let Some(route) = route(load, section, item, defaults) {
                found.push(Placed {
                    route: Arc::new(route),
                    place: place.clone(),
                });
            }
        }
    }
    name_all(&mut found);
    found
}

fn route(
    load: &mut Load<'_>,
    section: Section<'_>,
    node: &Node,
    defaults: &Defaults<'_>,
) -> Option<Route> {
    if left_out(load, section) {
        return None;
    }
    let errors = load.diagnostics.count(Severity::Error);
    let from = from::from(load, section);
    let matcher = matcher::matcher(load, section, from.as_ref(), defaults.path);
    let kubernetes_token = kubernetes_token(load, section);
    let special = kubernetes_token.is_some()
        || from
            .as_ref()
            .is_some_and(|from| matches!(from.scheme, FromScheme::Tcp { .. }));
    let target = target::target(load, section, defaults, special);
    if let (Some(from), Some(target)) = (&from, &target) {
        tunnel_speaks_http1(load, section, from, target);
    }
    let policy = access::policy(load, section, node, defaults.mtls);
    let max_data_age = access::max_data_age(load, section, defaults.max_data_age);
    let request_headers = headers::request_headers(load, section);
    let response_headers = ResponseHeaders {
        set: headers::merged_response_headers(load, section, defaults.response_headers),
        rewrite: headers::rewrites(load, section),
    };
    let pass = section
        .flag(load, "pass_identity_headers")
        .unwrap_or(defaults.pass_identity);
    let identity = RouteIdentity {
        headers: if pass {
            PassIdentity::Yes
        } else {
            PassIdentity::No
        },
        issuer: http::issuer_format(load, section).unwrap_or(defaults.issuer),
        groups_filter: texts(section.list(load, "jwt_groups_filter")),
    };
    let bearer = bearer(load, section, defaults);
    let client = provider_client(load, section, defaults);
    let details = section.flag(load, "show_error_details").unwrap_or(false);
    let depends_on = depends_on(load, section);
    let mut text = |name| section.text(load, name).map(|text| text.value);
    let (id, name, description, logo_url) = (
        text("id"),
        text("name"),
        text("description"),
        text("logo_url"),
    );
    let (from, matcher, target, policy) = (from?, matcher?, target?, policy?);
    if load.diagnostics.count(Severity::Error) > errors {
        return None;
    }
    let provider_id = client
        .as_ref()
        .zip(defaults.provider)
        .map(|(client, provider)| sign_in::id_of(provider, client, &defaults.authenticate_url));
    Some(Route {
        id: RouteId(id.unwrap_or_else(|| checksum::route_id(section.map)).into()),
        checksum: checksum::route_checksum(section.map, provider_id.as_deref()),
        name: name.unwrap_or_default(),
        description: description.unwrap_or_default(),
        logo_url,
        from,
        matcher,
        target,
        policy,
        max_data_age,
        error_details: if details {
            ErrorDetails::Show
        } else {
            ErrorDetails::Hide
        },
        depends_on,
        identity,
        provider_client: client,
        provider_id,
        bearer,
        request_headers,
        response_headers,
        kubernetes_token,
    })
}

/// CONNECT goes to another proxy over HTTP/1.1.
fn tunnel_speaks_http1(
    load: &mut Load<'_>,
    section: Section<'_>,
    from: &RouteFrom,
    target: &RouteTarget,
) {
    let (FromScheme::Tcp { .. }, RouteTarget::Upstream(target)) = (&from.scheme, target) else {
        return;
    };
    let h2c = |to: &UpstreamEndpoint| to.protocol == UpstreamProtocol::H2c;
    if target.endpoints.iter().any(h2c)
        && let Some(place) = section.place("to").cloned()
    {
        load.invalid(
            &place,
            "a tcp+https route leads to tcp://, or to another proxy by http:// or https://, not to h2c://",
        );
    }
}

/// Kinds of routes that Pomerium has and Postern not yet: told, and left out, so that the rest of
/// the file still serves.
fn left_out(load: &mut Load<'_>, section: Section<'_>) -> bool {
    let foreign = |text: &At<String>, schemes: &[&str]| {
        let scheme = text
            .value
            .trim()
            .split_once("://")
            .map_or("", |(scheme, _)| scheme);
        schemes
            .contains(&scheme)
            .then(|| (scheme.to_owned(), text.place.clone()))
    };
    let from = section.node("from").and_then(scalar);
    let to: Vec<At<String>> = match section.node("to") {
        Some(Node {
            value: Value::List(items),
            ..
        }) => items.iter().filter_map(scalar).collect(),
        Some(node) => scalar(node).into_iter().collect(),
        None => Vec::new(),
    };
    let found = from
        .iter()
        .find_map(|from| foreign(from, &["ssh", "udp+https"]))
        .or_else(|| {
            to.iter()
                .find_map(|to| foreign(to, &["ssh", "udp", "unix", "https+unix"]))
        });
    let Some((scheme, place)) = found else {
        return false;
    };
    load.say(
        Diagnostic::warning(
            code::UNSUPPORTED,
            format!("this route is left out: {scheme} is not supported yet"),
        )
        .at(&place),
    );
    true
}

fn texts(list: Option<Vec<At<String>>>) -> Vec<String> {
    list.unwrap_or_default()
        .into_iter()
        .map(|item| item.value)
        .collect()
}

fn kubernetes_token(load: &mut Load<'_>, section: Section<'_>) -> Option<Secret> {
    let file = section.node("kubernetes_service_account_token_file");
    if let (Some(_), Some(file)) = (section.node("kubernetes_service_account_token"), file) {
        load.say(
            Diagnostic::error(
                code::CONFLICT,
                "`kubernetes_service_account_token` and its `_file` can't both be set",
            )
            .at(&file.place),
        );
        return None;
    }
    section
        .text_or_file(load, "kubernetes_service_account_token")
        .map(|token| Secret::new(token.value))
}

fn bearer(load: &mut Load<'_>, section: Section<'_>, defaults: &Defaults<'_>) -> RouteBearer {
    let format = sign_in::bearer_format(load, section).unwrap_or(defaults.bearer);
    let audiences = section
        .list(load, "idp_access_token_allowed_audiences")
        .map(|list| texts(Some(list)));
    let verifiers = section.list(load, "identity_providers").unwrap_or_default();
    if let Some(first) = verifiers
        .first()
        .filter(|_| format != BearerTokenFormat::Jwt)
    {
        load.invalid(
            &first.place,
            "`identity_providers` of a route needs `bearer_token_format: jwt`",
        );
    }
    for name in &verifiers {
        if !defaults
            .verifiers
            .contains_key(&name.value.to_ascii_lowercase())
        {
            load.invalid(
                &name.place,
                format!(
                    "there is no entry `{}` in the global `identity_providers`",
                    name.value
                ),
            );
        }
    }
    if format == BearerTokenFormat::Jwt
        && defaults.verifiers.is_empty()
        && let Some(place) = section.place("bearer_token_format").cloned()
    {
        load.invalid(
            &place,
            "`bearer_token_format: jwt` needs an entry in the global `identity_providers`",
        );
    }
    let audiences = audiences.or_else(|| {
        let provider = defaults.provider?;
        provider.access_token_audiences.clone()
    });
    // Without one, a token made for any other client of the provider would open this route.
    if format == BearerTokenFormat::IdpAccessToken && audiences.as_ref().is_none_or(Vec::is_empty) {
        let mut diagnostic = Diagnostic::error(
            code::MISSING_KEY,
            "`bearer_token_format: idp_access_token` needs `idp_access_token_allowed_audiences`",
        )
        .help("name the audiences that access tokens for this route have, here or at the top of the file");
        diagnostic.place = section.place("bearer_token_format").cloned();
        load.say(diagnostic);
    }
    RouteBearer {
        format,
        audiences,
        verifiers: verifiers
            .into_iter()
            .map(|name| name.value.to_ascii_lowercase())
            .collect(),
    }
}

fn provider_client(
    load: &mut Load<'_>,
    section: Section<'_>,
    defaults: &Defaults<'_>,
) -> Option<super::super::options::ClientCredentials> {
    let id = section.text(load, "idp_client_id");
    let secret = section.text(load, "idp_client_secret");
    if id.is_none() && secret.is_none() {
        return None;
    }
    let place = section
        .place("idp_client_id")
        .or_else(|| section.place("idp_client_secret"))
        .cloned();
    let Some(global) = defaults.provider else {
        if let Some(place) = place {
            load.invalid(
                &place,
                "a route has an OAuth client of its own, but `idp_provider` is not set",
            );
        }
        return None;
    };
    Some(super::super::options::ClientCredentials {
        id: id.map_or_else(|| global.client.id.clone(), |id| id.value),
        secret: secret.map_or_else(|| global.client.secret.clone(), |secret| secret.value),
    })
}

/// At most five hosts; URLs are reduced to theirs.
fn depends_on(load: &mut Load<'_>, section: Section<'_>) -> Vec<String> {
    let written = section.list(load, "depends_on").unwrap_or_default();
    if let Some(sixth) = written.get(5) {
        load.invalid(&sixth.place, "`depends_on` can name at most five hosts");
    }
    let mut hosts = Vec::new();
    for entry in written.iter().take(5) {
        if !entry.value.contains('/') {
            hosts.push(entry.value.to_ascii_lowercase());
            continue;
        }
        match url::Url::parse(&entry.value)
            .ok()
            .and_then(|url| url.host_str().map(str::to_owned))
        {
            Some(host) => hosts.push(host),
            None => {
                load.invalid(
                    &entry.place,
                    format!("`{}` is neither a host nor a URL", entry.value),
                );
            }
        }
    }
    hosts
}

/// A regular expression that has to cover a whole text.
pub fn whole_match(load: &mut Load<'_>, name: &str, text: &At<String>) -> Option<Regex> {
    // Compiled alone first, so that an unbalanced bracket can't reach our own.
    expression(load, name, text)?;
    Regex::new(&format!("^(?:{})$", text.value)).ok()
}

pub fn expression(load: &mut Load<'_>, name: &str, text: &At<String>) -> Option<Regex> {
    match Regex::new(&text.value) {
        Ok(regex) => Some(regex),
        Err(error) => {
            let reason = match &error {
                // The library draws the expression over several lines; the last one tells why.
                regex::Error::Syntax(text) => text
                    .lines()
                    .last()
                    .unwrap_or_default()
                    .trim_start_matches("error: ")
                    .to_owned(),
                other => other.to_string(),
            };
            load.say(
                Diagnostic::error(
                    code::INVALID_VALUE,
                    format!("`{name}` is no regular expression: {reason}"),
                )
                .at(&text.place)
                .help("the syntax is that of RE2: no look-around, no back-references"),
            );
            None
        }
    }
}

/// Names for routes that have none: the shortest beginning of the host that is unique, and the
/// path where several share a host.
fn name_all(routes: &mut [Placed]) {
    // How many routes a host has, and how many hosts share a beginning.
    let mut per_host: HashMap<String, usize> = HashMap::new();
    for placed in &*routes {
        *per_host.entry(placed.route.from.host.clone()).or_default() += 1;
    }
    let mut shared: HashMap<String, usize> = HashMap::new();
    for beginning in per_host.keys().flat_map(|host| beginnings(host)) {
        *shared.entry(beginning.to_owned()).or_default() += 1;
    }
    for placed in routes
        .iter_mut()
        .filter(|placed| placed.route.name.is_empty())
    {
        let host = &placed.route.from.host;
        let short = beginnings(host)
            .find(|beginning| shared.get(*beginning) == Some(&1))
            .unwrap_or(host);
        let path = match &placed.route.matcher {
            PathMatcher::Prefix(path) | PathMatcher::Exact(path)
                if per_host.get(host).is_some_and(|count| *count > 1) =>
            {
                path.as_str()
            }
            _ => "",
        };
        let name = format!("{short}{path}");
        if let Some(route) = Arc::get_mut(&mut placed.route) {
            route.name = name;
        }
    }
}

/// `a`, `a.corp`, `a.corp.test`
fn beginnings(host: &str) -> impl Iterator<Item = &str> {
    let dots = host
        .match_indices('.')
        .filter_map(|(dot, _)| host.get(..dot));
    dots.chain(std::iter::once(host))
}

/// `to` without a slash at the end, for the note on how Pomerium differs.
pub fn join_difference(target: &RouteTarget) -> Option<&str> {
    match target {
        RouteTarget::Upstream(upstream) => match &upstream.rewrite {
            PathRewrite::Join(path) if !path.ends_with('/') => Some(path),
            _ => None,
        },
        RouteTarget::Redirect(_) | RouteTarget::Response(_) => None,
    }
}
