//! How this process reaches what runs elsewhere, always by the newest configuration.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::Launched;
use crate::config::{Config, Service};
use crate::http_client::HttpsClient;
use crate::lifecycle::Parts;
use crate::net::{LookupError, Resolver};
use crate::rpc::Transport;
use crate::rpc::client::{CallMetrics, CallTiming, ProbeTiming, RemoteConfig};
use crate::rpc::discovery::TargetError;
use crate::rpc::token::TokenKeys;
use crate::telemetry::log::chain;
use crate::tls::{self, Alpn, TlsError, Trust};

/// What connections to other services and to providers have in common.
pub struct Peers {
    ways: Arc<Ways>,
    trust: Trust,
}

struct Ways {
    resolver: Resolver,
    keys: TokenKeys,
    calls: CallMetrics,
    parts: Parts,
    /// What follows the configuration.
    open: Mutex<Vec<Way>>,
}

#[derive(Clone)]
enum Way {
    Transport(Service, Transport),
    Client(HttpsClient),
}

#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    #[error("names cannot be resolved")]
    Resolver(#[from] LookupError),
    #[error("certificate_authority cannot be used")]
    Trust(#[from] TlsError),
    #[error("{service}_service_url cannot be used")]
    Url {
        service: Service,
        #[source]
        source: TargetError,
    },
    #[error("{service}_service_url is not set, and this process does not run {service}")]
    NoUrl { service: Service },
}

impl Peers {
    /// As the configuration says, now and after each reload; `/status` tells how the endpoints
    /// stand.
    pub fn of(launched: &Launched) -> Result<Self, PeersError> {
        let config = Arc::clone(&launched.config.borrow());
        let ways = Arc::new(Ways {
            resolver: Resolver::new(config.dns.clone())?,
            keys: launched.keys.clone(),
            calls: CallMetrics::new(&launched.metrics),
            parts: launched.lifecycle.parts().clone(),
            open: Mutex::default(),
        });
        let follow = follow(Arc::clone(&ways), launched.config.clone());
        let stop = launched.lifecycle.stopping();
        launched
            .lifecycle
            .spawn(stop.run_until_cancelled_owned(follow));
        Ok(Self {
            ways,
            trust: trust(&config)?,
        })
    }

    /// For calls to identity providers.
    pub fn https_client(&self) -> Result<HttpsClient, PeersError> {
        let client = HttpsClient::new(self.ways.resolver.clone(), &self.trust)?;
        self.ways.add(Way::Client(client.clone()));
        Ok(client)
    }

    /// All addresses of all URLs of a service, balanced.
    pub fn transport(&self, config: &Config, service: Service) -> Result<Transport, PeersError> {
        let remote = self.ways.remote(config, service, &self.trust)?;
        let transport =
            Transport::remote(remote).map_err(|source| PeersError::Url { service, source })?;
        self.ways.add(Way::Transport(service, transport.clone()));
        Ok(transport)
    }
}

impl Ways {
    fn add(&self, way: Way) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push(way);
    }

    fn remote(
        &self,
        config: &Config,
        service: Service,
        trust: &Trust,
    ) -> Result<RemoteConfig, PeersError> {
        let (urls, health) = match service {
            Service::Authorize => (&config.urls.authorize, "pomerium-authorize"),
            _ => (&config.urls.databroker, "pomerium-databroker"),
        };
        if urls.is_empty() {
            return Err(PeersError::NoUrl { service });
        }
        Ok(RemoteConfig {
            urls: urls.clone(),
            tls: tls::client_config(trust, Alpn::H2, None)?,
            certificate_name: config.grpc.override_certificate_name.clone(),
            service: health.to_owned(),
            keys: Some(self.keys.clone()),
            resolver: self.resolver.clone(),
            calls: CallTiming::default(),
            probes: ProbeTiming::default(),
            metrics: self.calls.clone(),
            parts: self.parts.clone(),
        })
    }

    /// Takes over what differs.
    async fn change(&self, old: &Config, new: &Config) -> Result<(), PeersError> {
        if old.dns != new.dns {
            self.resolver.configure(new.dns.clone())?;
        }
        let trust = trust(new)?;
        let trusts = old.certificate_authorities != new.certificate_authorities;
        let renamed = old.grpc.override_certificate_name != new.grpc.override_certificate_name;
        let open = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.clone()
        };
        for way in open {
            match way {
                Way::Client(client) if trusts => client.trust(&trust)?,
                Way::Client(_) => {}
                Way::Transport(service, transport) => {
                    let moved = match service {
                        Service::Authorize => old.urls.authorize != new.urls.authorize,
                        _ => old.urls.databroker != new.urls.databroker,
                    };
                    if trusts || renamed || moved {
                        let remote = self.remote(new, service, &trust)?;
                        let replaced = transport.replace(remote).await;
                        replaced.map_err(|source| PeersError::Url { service, source })?;
                        tracing::info!(%service, "reached by the new configuration");
                    }
                }
            }
        }
        Ok(())
    }
}

async fn follow(ways: Arc<Ways>, mut config: watch::Receiver<Arc<Config>>) {
    let mut old = Arc::clone(&config.borrow_and_update());
    while config.changed().await.is_ok() {
        let new = Arc::clone(&config.borrow_and_update());
        match ways.change(&old, &new).await {
            Ok(()) => old = new,
            Err(error) => tracing::error!(
                error = chain(&error),
                "other services are reached as before; the new configuration cannot be used for that"
            ),
        }
    }
}

fn trust(config: &Config) -> Result<Trust, TlsError> {
    Trust::system().and(&config.certificate_authorities, "certificate_authority")
}
