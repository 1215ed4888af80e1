//! From what was written to a [`Config`], with everything there is to say about it.
//!
//! Loading never stops at the first mistake. What can fail because of configuration fails here:
//! certificates are parsed, expressions and policies compiled, URLs split, secrets measured.

mod certificates;
mod checksum;
mod dns;
mod health;
mod http;
mod mask;
mod mtls;
mod observe;
mod places;
mod reader;
mod relations;
mod route;
mod scalars;
mod secrets;
mod services;
mod shadow;
mod sign_in;
mod storage;
mod traces;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use health::{health_address, listener_address};
pub use places::Places;
pub use scalars::{DurationError, parse_bool, parse_duration};
pub use secrets::ProcessSecrets;

pub(super) use self::reader::read_bounded;
use self::reader::{Load, Section, check_keys, remedy, unreadable};
use super::diagnostic::{Diagnostic, Diagnostics, code};
use super::keys::{GLOBAL, ROUTE};
use super::options::{BearerTokenFormat, Config, IssuerFormat, Service};
use super::place::{Place, SourceText};
use super::source::{self, Environment, Map};
use crate::web::redirect::Targets;

/// Where a configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// `None`: the environment only.
    pub file: Option<PathBuf>,
    pub environment: Environment,
    /// The one service that this program has; `None` for all-in-one.
    pub only: Option<Service>,
}

/// Where the configuration of a container is mounted.
pub const DEFAULT_FILE: &str = "/pomerium/config.yaml";

impl Origin {
    /// The file that was named on the command line, else [`DEFAULT_FILE`] if there is one; over it
    /// the environment of this process.
    pub fn of_process(named: Option<PathBuf>, only: Option<Service>) -> Self {
        let default = || Some(PathBuf::from(DEFAULT_FILE)).filter(|file| file.exists());
        Self {
            file: named.or_else(default),
            environment: Environment::of_process(),
            only,
        }
    }
}

/// What loading gave.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// `None` if there is any error among the diagnostics.
    pub config: Option<Arc<Config>>,
    pub diagnostics: Diagnostics,
    /// The configuration and every file that it names, to be watched.
    pub files: Vec<PathBuf>,
}

/// Loads a configuration. Reads files, opens nothing else.
pub fn load(origin: &Origin, process: &ProcessSecrets) -> Loaded {
    let mut diagnostics = Diagnostics::default();
    let mut files = Vec::new();
    let map = match &origin.file {
        None => Some(Map::default()),
        Some(path) => {
            files.push(path.clone());
            read_file(path, &mut diagnostics)
                .and_then(|source| source::parse(path, &source, &mut diagnostics))
        }
    };
    finish(map, diagnostics, files, origin, process)
}

/// Loads a text as if it were the file of this name.
pub fn load_text(
    name: &Path,
    text: &str,
    environment: &Environment,
    process: &ProcessSecrets,
) -> Loaded {
    let mut diagnostics = Diagnostics::default();
    let source = SourceText::new(name.display().to_string(), text);
    let map = source::parse(name, &source, &mut diagnostics);
    let origin = Origin {
        environment: environment.clone(),
        ..Origin::default()
    };
    finish(map, diagnostics, Vec::new(), &origin, process)
}

fn read_file(path: &Path, diagnostics: &mut Diagnostics) -> Option<Arc<SourceText>> {
    let shown = path.display().to_string();
    match read_bounded(path) {
        Ok(bytes) => {
            if let Ok(text) = String::from_utf8(bytes) {
                Some(SourceText::new(shown, text))
            } else {
                diagnostics.push(Diagnostic::error(
                    code::FILE,
                    format!("{shown} is not text in UTF-8"),
                ));
                None
            }
        }
        Err(error) => {
            let mut diagnostic = Diagnostic::error(code::FILE, unreadable(path, &error));
            if let Some(help) = remedy(path, &error) {
                diagnostic = diagnostic.help(help);
            }
            diagnostics.push(diagnostic);
            None
        }
    }
}

fn finish(
    map: Option<Map>,
    diagnostics: Diagnostics,
    files: Vec<PathBuf>,
    origin: &Origin,
    process: &ProcessSecrets,
) -> Loaded {
    let mut load = Load {
        diagnostics,
        files,
        digests: BTreeMap::new(),
        process,
        environment: &origin.environment,
    };
    let config = map.and_then(|mut map| {
        mask::secrets(&map);
        source::overlay(&mut map, &origin.environment, &mut load.diagnostics);
        mask::secrets(&map);
        config(&mut load, &map, origin)
    });
    let Load {
        mut diagnostics,
        files,
        ..
    } = load;
    diagnostics.sort();
    let config = config.filter(|_| !diagnostics.has_errors()).map(Arc::new);
    Loaded {
        config,
        diagnostics,
        files,
    }
}

fn config(load: &mut Load<'_>, map: &Map, origin: &Origin) -> Option<Config> {
    let whole = origin.file.as_deref().map(Place::file);
    let root = Section {
        map,
        keys: GLOBAL,
        prefix: "",
        place: whole.as_ref(),
    };
    check_keys(load, root, ROUTE, "in an entry of `routes`");
    let services = services::services(load, root, origin.only)?;
    let secrets = secrets::secrets(load, root, &services);
    let derived = certificates::derived(load, root, secrets.as_ref());
    let shown = certificates::shown(load, root, &services, derived.as_ref());
    let server_tls = shown
        .as_ref()
        .and_then(|shown| shown.public(load, root, &services));
    // Where TLS failed the rest is still read, as if it had not.
    let tls = server_tls.clone().unwrap_or(super::options::ServerTls::Off);
    let listen = services::listen(load, root, &services, &tls);
    let process = services::process(load, root);
    let mut certificate_authorities = certificates::authorities(load, root);
    certificate_authorities.extend(derived.into_iter().flat_map(|derived| derived.authorities));
    let urls = services::urls(load, root, &services);
    let grpc = services::grpc(load, root, &services, shown.as_ref());
    let signing_keys = secrets::signing_keys(load, root, secrets.as_ref(), &services);
    let provider = sign_in::provider(load, root, &services);
    let jwt_verifiers = sign_in::verifiers(load, root);
    let cookie = sign_in::cookie(load, root);
    let programs = sign_in::programs(load, root);
    let storage = storage::storage(load, root, &services);
    let http = http::http(load, root, &tls);
    let identity = http::identity(load, root);
    let dns = dns::dns(load, root);
    let downstream_mtls = mtls::downstream_mtls(load, root, &services);
    let log = observe::log(load, root);
    let metrics = observe::metrics(load, root);
    let traces = traces::traces(load, root);
    services::clashes(load, root, listen.as_ref(), metrics.as_ref());
    let branding = observe::branding(load, root);
    let flags = observe::flags(load, root);

    // As written: a slash at the end is part of a provider's id.
    let authenticate_url = root
        .text(load, "authenticate_service_url")
        .map_or_else(String::new, |text| text.value);
    let upgrades = root.list(load, "allow_upgrades").unwrap_or_default();
    let defaults = route::Defaults {
        path: http.path,
        upstream_timeout: http.default_upstream_timeout,
        max_data_age: route::access::max_data_age(load, root, None),
        response_headers: &http.set_response_headers,
        upgrades: upgrades
            .into_iter()
            .map(|token| token.value.to_ascii_lowercase())
            .collect(),
        pass_identity: root.flag(load, "pass_identity_headers").unwrap_or(false),
        issuer: http::issuer_format(load, root).unwrap_or(IssuerFormat::HostOnly),
        bearer: sign_in::bearer_format(load, root).unwrap_or(BearerTokenFormat::Default),
        verifiers: &jwt_verifiers,
        provider: provider.as_ref(),
        authenticate_url: authenticate_url.clone(),
        mtls: downstream_mtls.as_ref().map(|mtls| mtls.enforcement),
    };
    let mut routes = route::routes(load, root, &defaults);
    let provider_id = provider
        .as_ref()
        .map(|provider| sign_in::id_of(provider, &provider.client, &authenticate_url));
    if let Some(urls) = &urls {
        let served = routes.iter().map(|placed| &*placed.route);
        let targets = Targets::new(&urls.authenticate, served, &flags, &programs);
        relations::depends_on(load, &mut routes, &targets);
        relations::check(load, &routes, urls, &services, &cookie);
    }
    Some(Config {
        // Read before the first `?`, so that whatever is wrong with it is said.
        signout_redirect_url: root.url(load, "signout_redirect_url").map(|url| url.value),
        bearer: sign_in::own_bearer(defaults.bearer, provider.as_ref(), &jwt_verifiers),
        services,
        listen: listen?,
        process,
        server_tls: server_tls?,
        certificate_authorities,
        urls: urls?,
        grpc: grpc?,
        secrets: secrets?,
        signing_keys: signing_keys?,
        provider,
        provider_id,
        jwt_verifiers,
        cookie,
        storage: storage?,
        identity,
        programs,
        http,
        dns,
        downstream_mtls,
        log,
        metrics,
        traces,
        branding,
        flags,
        routes: routes.into_iter().map(|placed| placed.route).collect(),
        checksum: checksum::config_checksum(map, &load.digests),
    })
}

#[cfg(test)]
pub(crate) mod tests;
