//! All providers that a configuration names, by provider id.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::watch;

use postern_common::config::{ClientCredentials, Config, ProviderKind, ProviderOptions};

use crate::client_auth::Client;
use crate::error::ProviderError;
use crate::http_client::HttpClient;
use crate::issuer::Issuer;
use crate::oidc::Oidc;
use crate::provider::Provider;
use crate::providers::{default_url, flavor, github::GitHub};

/// One client at one provider, as configured.
#[derive(Clone, PartialEq, Eq)]
pub struct ProviderSettings {
    /// `postern_common::crypto::provider_id` of what follows and the authenticate URL.
    pub id: String,
    /// `idp_provider`.
    pub kind: ProviderKind,
    /// `idp_provider_url`.
    pub url: Option<String>,
    pub client_id: String,
    pub client_secret: String,
    /// `idp_scopes`; empty: the provider's defaults.
    pub scopes: Vec<String>,
    /// `idp_request_params`; empty: the provider's defaults.
    pub request_params: Vec<(String, String)>,
}

impl std::fmt::Debug for ProviderSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProviderSettings")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("url", &self.url)
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

impl ProviderSettings {
    /// The global client, then those of routes; empty when no provider is configured.
    pub fn all(config: &Config) -> Vec<Self> {
        let Some(options) = &config.provider else {
            return Vec::new();
        };
        let global = config.provider_id.iter().map(|id| (id, &options.client));
        let routes = config.routes.iter().filter_map(|route| {
            route
                .provider_id
                .as_ref()
                .zip(route.provider_client.as_ref())
        });
        global
            .chain(routes)
            .map(|(id, client)| Self::new(id, options, client))
            .collect()
    }

    fn new(id: &str, options: &ProviderOptions, client: &ClientCredentials) -> Self {
        Self {
            id: id.to_owned(),
            kind: options.kind,
            url: options.url.clone(),
            client_id: client.id.clone(),
            client_secret: client.secret.clone(),
            scopes: options.scopes.clone(),
            request_params: options.request_params.clone().into_iter().collect(),
        }
    }
}

/// Why there is no provider to use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    #[error(
        "no identity provider is configured (idp_provider, idp_provider_url, idp_client_id, idp_client_secret)"
    )]
    NotConfigured,
    #[error(
        "no identity provider with the id {0:?} is configured here; its idp_* keys must be the \
         same on every node, and sessions made before a change of them must sign in again"
    )]
    Unknown(String),
    #[error("idp_provider {} needs idp_provider_url", .0.name())]
    UrlMissing(ProviderKind),
    #[error("idp_client_id is missing")]
    ClientMissing,
    #[error(transparent)]
    Unusable(ProviderError),
}

type Entry = Result<Arc<dyn Provider>, RegistryError>;

/// One provider per provider id. What can't be built costs nobody a start: asking for it gives
/// the reason.
#[derive(Default)]
pub struct Providers {
    default: Option<String>,
    entries: HashMap<String, (ProviderSettings, Entry)>,
    issuers: HashMap<(ProviderKind, String), Arc<Issuer>>,
}

impl std::fmt::Debug for Providers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map()
            .entries(
                self.entries
                    .iter()
                    .map(|(id, (settings, _))| (id, settings)),
            )
            .finish()
    }
}

impl Providers {
    /// The first of `settings` is the global provider, the others come from routes. Begins to
    /// read discovery documents in the background, so it needs a tokio runtime. What `previous`
    /// knows of the same issuers and clients is kept.
    pub fn new(
        settings: impl IntoIterator<Item = ProviderSettings>,
        http: &HttpClient,
        previous: Option<&Self>,
    ) -> Self {
        let mut new = Self::default();
        for settings in settings {
            new.default.get_or_insert_with(|| settings.id.clone());
            if new.entries.contains_key(&settings.id) {
                continue;
            }
            let kept = previous
                .and_then(|p| p.entries.get(&settings.id))
                .filter(|(old, entry)| *old == settings && entry.is_ok());
            let entry = match kept {
                Some((_, entry)) => entry.clone(),
                None => new.build(&settings, http, previous),
            };
            if let Err(error) = &entry {
                tracing::error!(%error, client_id = %settings.client_id, "an identity provider cannot be used");
            }
            new.entries.insert(settings.id.clone(), (settings, entry));
        }
        if let Some(previous) = previous {
            // Kept clients hold the issuer they were built with: let later ones share it.
            for (key, issuer) in &previous.issuers {
                let used = new
                    .entries
                    .values()
                    .any(|(s, e)| e.is_ok() && issuer_key(s).as_ref() == Some(key));
                if used {
                    new.issuers
                        .entry(key.clone())
                        .or_insert_with(|| Arc::clone(issuer));
                }
            }
        }
        new
    }

    /// The provider with this id.
    pub fn get(&self, id: &str) -> Result<Arc<dyn Provider>, RegistryError> {
        match self.entries.get(id) {
            Some((_, entry)) => entry.clone(),
            None if self.entries.is_empty() => Err(RegistryError::NotConfigured),
            None => Err(RegistryError::Unknown(id.to_owned())),
        }
    }

    /// The global provider.
    pub fn global(&self) -> Result<Arc<dyn Provider>, RegistryError> {
        match &self.default {
            Some(id) => self.get(id),
            None => Err(RegistryError::NotConfigured),
        }
    }

    /// The global provider's public side; `None` where it publishes none.
    pub(crate) fn issuer(&self) -> Option<Arc<Issuer>> {
        let (settings, _) = self.entries.get(self.default.as_ref()?)?;
        self.issuers.get(&issuer_key(settings)?).cloned()
    }

    /// What can't be used, and why: one entry per provider id.
    pub fn problems(&self) -> impl Iterator<Item = (&ProviderSettings, &RegistryError)> {
        self.entries
            .values()
            .filter_map(|(s, e)| Some((s, e.as_ref().err()?)))
    }

    fn build(
        &mut self,
        settings: &ProviderSettings,
        http: &HttpClient,
        previous: Option<&Self>,
    ) -> Entry {
        let kind = settings.kind;
        if settings.client_id.is_empty() {
            return Err(RegistryError::ClientMissing);
        }
        let client = Client::new(settings.client_id.clone(), settings.client_secret.clone());
        let Some(flavor) = flavor(kind) else {
            let url = settings
                .url
                .as_deref()
                .or(default_url(kind))
                .unwrap_or_default();
            let github = GitHub::new(
                settings.id.clone(),
                url,
                client,
                &settings.scopes,
                http.clone(),
            )
            .map_err(RegistryError::Unusable)?;
            return Ok(Arc::new(github));
        };
        let (_, url) = issuer_key(settings).ok_or(RegistryError::UrlMissing(kind))?;
        let key = (kind, url);
        let known = self
            .issuers
            .get(&key)
            .or_else(|| previous?.issuers.get(&key));
        let issuer = match known {
            Some(issuer) => Arc::clone(issuer),
            None => Issuer::start(key.1.clone(), flavor, http.clone())
                .map_err(RegistryError::Unusable)?,
        };
        self.issuers.insert(key, Arc::clone(&issuer));
        Ok(Arc::new(Oidc::new(
            settings.id.clone(),
            issuer,
            client,
            &settings.scopes,
            &settings.request_params,
        )))
    }
}

/// Providers that follow the configuration, for everyone in this process. The task behind it ends
/// with the configuration's sender or the last receiver.
pub fn follow(
    mut config: watch::Receiver<Arc<Config>>,
    http: HttpClient,
) -> watch::Receiver<Arc<Providers>> {
    let first = Providers::new(
        ProviderSettings::all(&config.borrow_and_update()),
        &http,
        None,
    );
    let (sender, receiver) = watch::channel(Arc::new(first));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = config.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
            let settings = ProviderSettings::all(&config.borrow_and_update());
            let previous = Arc::clone(&sender.borrow());
            let next = Providers::new(settings, &http, Some(&previous));
            sender.send_replace(Arc::new(next));
        }
    });
    receiver
}

/// Kind and issuer of an OpenID Connect provider.
fn issuer_key(settings: &ProviderSettings) -> Option<(ProviderKind, String)> {
    let flavor = flavor(settings.kind)?;
    let url = settings
        .url
        .as_deref()
        .filter(|u| !u.is_empty())
        .or(flavor.default_url)?;
    Some((settings.kind, (flavor.issuer)(url)))
}
