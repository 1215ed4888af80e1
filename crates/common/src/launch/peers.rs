//! How this process reaches what runs elsewhere.

use super::Launched;
use crate::config::{Config, Service};
use crate::http_client::HttpsClient;
use crate::lifecycle::Parts;
use crate::net::{LookupError, Resolver};
use crate::rpc::Transport;
use crate::rpc::client::{CallMetrics, CallTiming, ProbeTiming, RemoteConfig};
use crate::rpc::discovery::TargetError;
use crate::rpc::token::TokenKeys;
use crate::tls::{self, Alpn, TlsError, Trust};

/// What connections to other services and to providers have in common.
pub struct Peers {
    resolver: Resolver,
    trust: Trust,
    keys: TokenKeys,
    calls: CallMetrics,
    parts: Parts,
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
    /// As the configuration at the start says; `/status` tells how the endpoints stand.
    pub fn of(launched: &Launched) -> Result<Self, PeersError> {
        let config = launched.config.borrow();
        Ok(Self {
            resolver: Resolver::new(config.dns.clone())?,
            trust: Trust::system().and(&config.certificate_authorities, "certificate_authority")?,
            keys: launched.keys.clone(),
            calls: CallMetrics::new(&launched.metrics),
            parts: launched.lifecycle.parts().clone(),
        })
    }

    /// For calls to identity providers.
    pub fn https_client(&self) -> Result<HttpsClient, PeersError> {
        Ok(HttpsClient::new(self.resolver.clone(), &self.trust)?)
    }

    /// All addresses of all URLs of a service, balanced.
    pub fn transport(&self, config: &Config, service: Service) -> Result<Transport, PeersError> {
        let (urls, health) = match service {
            Service::Authorize => (&config.urls.authorize, "pomerium-authorize"),
            _ => (&config.urls.databroker, "pomerium-databroker"),
        };
        if urls.is_empty() {
            return Err(PeersError::NoUrl { service });
        }
        Transport::remote(RemoteConfig {
            urls: urls.clone(),
            tls: tls::client_config(&self.trust, Alpn::H2, None)?,
            certificate_name: config.grpc.override_certificate_name.clone(),
            service: health.to_owned(),
            keys: Some(self.keys.clone()),
            resolver: self.resolver.clone(),
            calls: CallTiming::default(),
            probes: ProbeTiming::default(),
            metrics: self.calls.clone(),
            parts: self.parts.clone(),
        })
        .map_err(|source| PeersError::Url { service, source })
    }
}
