//! What depends on the configuration only, built once for each.

use std::sync::Arc;

use postern_common::config::{Config, SameSite};
use postern_common::crypto::keys::SecretKey;
use postern_common::web::cookie::Scope;
use postern_common::web::cookie::suffix;
use postern_common::web::page::Look;
use postern_common::web::redirect::Targets;
use postern_identity::{HttpClient, ProviderSettings, Providers};
use url::Url;

/// One configuration, as authenticate needs it.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub config: Arc<Config>,
    pub providers: Providers,
    pub targets: Targets,
    pub look: Look,
    /// Names of the cookies.
    pub cookies: Cookies,
    /// `host[:port]` that browsers see, and that of the internal URL.
    pub external: String,
    pub internal: Option<String>,
}

/// Names of authenticate's cookies. None of them ever has a `Domain`.
#[derive(Debug)]
pub(crate) struct Cookies {
    /// The handle of the browser's session here.
    pub session: String,
    pub csrf: String,
    /// Where to go from the signed-out page, where the provider can't be told.
    pub signed_out: String,
}

/// Paths under the external URL.
pub(crate) mod path {
    pub(crate) const CALLBACK: &str = "/oauth2/callback";
    pub(crate) const SIGN_IN: &str = "/.pomerium/sign_in";
    pub(crate) const SIGN_OUT: &str = "/.pomerium/sign_out";
    pub(crate) const SIGNED_OUT: &str = "/.pomerium/signed_out";
}

impl Snapshot {
    pub(crate) fn new(
        config: Arc<Config>,
        http: &HttpClient,
        previous: Option<&Providers>,
    ) -> Self {
        let name = &config.cookie.name;
        let internal = config.urls.authenticate_internal.as_ref().map(authority);
        let external = authority(&config.urls.authenticate);
        Self {
            providers: Providers::new(ProviderSettings::all(&config), http, previous),
            targets: Targets::of(&config),
            look: Look::new(&config.branding),
            cookies: Cookies {
                session: format!("{name}{}", suffix::AUTHENTICATE),
                csrf: format!("{name}{}", suffix::CSRF),
                signed_out: format!("{name}{}", suffix::SIGNED_OUT),
            },
            internal: internal.filter(|internal| *internal != external),
            external,
            config,
        }
    }

    /// K: all verify and open, the first signs and seals.
    pub(crate) fn shared(&self) -> &[SecretKey] {
        &self.config.secrets.shared
    }

    /// C.
    pub(crate) fn cookie_keys(&self) -> &[SecretKey] {
        &self.config.secrets.cookie
    }

    /// A URL of this service, as browsers see it.
    pub(crate) fn url(&self, path: &str, query: Option<&str>) -> Url {
        let mut url = self.config.urls.authenticate.clone();
        url.set_path(path);
        url.set_query(query.filter(|query| !query.is_empty()));
        url.set_fragment(None);
        url
    }

    /// Scope of the session cookie here. `Strict` would keep it from the browser that comes back
    /// from the provider, so it is `Lax` at most.
    pub(crate) fn session_scope(&self) -> Scope<'static> {
        let same_site = match self.config.cookie.same_site {
            SameSite::Strict | SameSite::Lax => SameSite::Lax,
            SameSite::None => SameSite::None,
        };
        Scope {
            http_only: self.config.cookie.http_only,
            same_site: Some(same_site),
            ..Scope::HOST
        }
    }
}

/// `host[:port]` of a URL, without a default port.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}
