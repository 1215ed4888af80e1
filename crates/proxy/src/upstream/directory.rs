//! Endpoints by what they are, over all configurations: a reload that leaves an endpoint as it is
//! keeps its addresses and, on every core, its connections.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use http::HeaderValue;
use postern_common::config::{
    UpstreamEndpoint, UpstreamProtocol, UpstreamTarget, UpstreamTls, UpstreamVerification,
};
use postern_common::net::Resolver;
use postern_common::tls::Trust;
use tokio::sync::watch;

use super::tls::{Names, UpstreamConnector, UpstreamTlsError};
use super::{Addresses, Cluster, Endpoint, Member, balance};

/// So many endpoints are kept without looking whether they are still used.
const FEW: usize = 16;

/// All endpoints that any configuration in use names.
#[derive(Debug)]
pub(crate) struct Directory {
    known: Mutex<Known>,
    /// DNS runs there, not on the cores.
    control: tokio::runtime::Handle,
}

#[derive(Debug, Default)]
struct Known {
    endpoints: HashMap<Key, Weak<Endpoint>>,
    next_id: u64,
    /// With so many it is time to look for those that no configuration names any more.
    many: usize,
}

/// What makes an endpoint this one and no other. Two routes that differ in any of it never share
/// a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    protocol: UpstreamProtocol,
    host: String,
    port: u16,
    tls: Option<TlsKey>,
    /// The generation of trust and resolver settings.
    settings: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct TlsKey {
    skip_verify: bool,
    server_name: Option<String>,
    names: Names,
    roots: Option<Vec<Vec<u8>>>,
    client: Option<Vec<Vec<u8>>>,
}

/// What all endpoints of a configuration share.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Changes when the fields below do.
    pub generation: u64,
    pub trust: Trust,
    pub resolver: Resolver,
}

impl Directory {
    pub(crate) fn new(control: tokio::runtime::Handle) -> Self {
        Self {
            known: Mutex::default(),
            control,
        }
    }

    /// The endpoints of a route.
    pub(crate) fn cluster(
        &self,
        name: Arc<str>,
        target: &UpstreamTarget,
        names: Names,
        settings: &Settings,
    ) -> Result<Cluster, UpstreamTlsError> {
        let mut members = Vec::with_capacity(target.endpoints.len());
        for endpoint in &target.endpoints {
            members.push(Member {
                endpoint: self.endpoint(endpoint, &target.tls, names, settings)?,
                authority: HeaderValue::try_from(&endpoint.authority)
                    .unwrap_or_else(|_| HeaderValue::from_static("")),
                weight: endpoint.weight.max(1),
            });
        }
        Ok(Cluster {
            name,
            members,
            choice: balance::Choice::new(target.balancing),
        })
    }

    fn endpoint(
        &self,
        wanted: &UpstreamEndpoint,
        tls: &UpstreamTls,
        names: Names,
        settings: &Settings,
    ) -> Result<Arc<Endpoint>, UpstreamTlsError> {
        let is_tls = wanted.protocol == UpstreamProtocol::Https;
        let key = Key {
            protocol: wanted.protocol,
            host: wanted.host.clone(),
            port: wanted.port,
            tls: is_tls.then(|| TlsKey::of(tls, names)),
            settings: settings.generation,
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoint) = known.endpoints.get(&key).and_then(Weak::upgrade) {
            return Ok(endpoint);
        }
        let connector = is_tls
            .then(|| UpstreamConnector::new(&wanted.host, tls, names, &settings.trust))
            .transpose()?;
        if is_tls && tls.verification == UpstreamVerification::Skip {
            tracing::warn!(
                upstream = wanted.authority,
                "tls_skip_verify: the certificate of this upstream is not verified"
            );
        }
        known.next_id += 1;
        let endpoint = Arc::new(Endpoint {
            id: known.next_id,
            protocol: wanted.protocol,
            name: format!("{}:{}", wanted.host, wanted.port),
            tls: connector,
            addresses: self.follow(&wanted.host, wanted.port, &settings.resolver),
        });
        if known.endpoints.len() >= known.many {
            known
                .endpoints
                .retain(|_, endpoint| endpoint.strong_count() > 0);
            known.many = 2 * known.endpoints.len() + FEW;
        }
        known.endpoints.insert(key, Arc::downgrade(&endpoint));
        Ok(endpoint)
    }

    /// Addresses of a host, kept fresh until nobody listens.
    fn follow(&self, host: &str, port: u16, resolver: &Resolver) -> watch::Receiver<Addresses> {
        if let Some(ip) = postern_common::net::resolver::literal(host) {
            let only: Arc<[SocketAddr]> = Arc::new([SocketAddr::new(ip, port)]);
            return watch::channel(Addresses::Known(only)).1;
        }
        let (sender, receiver) = watch::channel(Addresses::Resolving);
        self.control.spawn(super::resolve::follow(
            host.to_owned(),
            port,
            resolver.clone(),
            sender,
        ));
        receiver
    }
}

impl TlsKey {
    fn of(tls: &UpstreamTls, names: Names) -> Self {
        let der = |certs: &[rustls::pki_types::CertificateDer<'static>]| {
            certs
                .iter()
                .map(|cert| cert.as_ref().to_vec())
                .collect::<Vec<_>>()
        };
        Self {
            skip_verify: tls.verification == UpstreamVerification::Skip,
            server_name: tls.server_name.clone(),
            names,
            roots: tls
                .custom_roots
                .as_ref()
                .map(|roots| der(&roots.certificates)),
            client: tls.client.as_ref().map(|client| der(&client.chain)),
        }
    }
}
