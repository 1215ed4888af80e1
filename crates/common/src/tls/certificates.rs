//! Our own certificates: what they say about themselves, and which one a client is shown.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{Error as RustlsError, InconsistentKeys};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::pem::{self, PemError};

/// A certificate with its key, and what it says about itself.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// For rustls.
    pub key: Arc<CertifiedKey>,
    /// What the leaf says.
    pub facts: Facts,
    /// The key or file it comes from, for messages.
    pub origin: String,
}

/// What a certificate says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// DNS names, lower case, wildcards as written; the common name where it has no others.
    pub names: Vec<String>,
    /// IP addresses.
    pub addresses: Vec<IpAddr>,
    /// Not valid before.
    pub not_before: Timestamp,
    /// Not valid after.
    pub not_after: Timestamp,
}

impl Facts {
    /// Reads a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
        let (mut names, mut addresses) = (Vec::new(), Vec::new());
        let alternatives = parsed
            .subject_alternative_name()
            .map_err(|error| error.to_string())?;
        for name in alternatives
            .iter()
            .flat_map(|extension| &extension.value.general_names)
        {
            match name {
                GeneralName::DNSName(name) => names.push(name.to_ascii_lowercase()),
                GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                _ => {}
            }
        }
        if names.is_empty() && addresses.is_empty() {
            let common = parsed.subject().iter_common_name();
            names.extend(
                common
                    .filter_map(|name| name.as_str().ok())
                    .map(str::to_ascii_lowercase),
            );
        }
        let time = |seconds| Timestamp::from_second(seconds).map_err(|error| error.to_string());
        Ok(Self {
            names,
            addresses,
            not_before: time(parsed.validity().not_before.timestamp())?,
            not_after: time(parsed.validity().not_after.timestamp())?,
        })
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

impl Certificate {
    /// A chain and its key from PEM text; both `origin`s go into messages. Fails when they don't
    /// belong together.
    pub fn from_pem(
        chain: &[u8],
        chain_origin: &str,
        key: &[u8],
        key_origin: &str,
    ) -> Result<Self, PemError> {
        let chain = pem::certificates(chain, chain_origin)?;
        let key = pem::private_key(key, key_origin)?;
        Self::from_der(chain, chain_origin, key, key_origin)
    }

    /// As [`Self::from_pem`], from parsed parts.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        chain_origin: &str,
        key: PrivateKeyDer<'static>,
        key_origin: &str,
    ) -> Result<Self, PemError> {
        let bad = |reason| PemError::Certificate {
            origin: chain_origin.to_owned(),
            number: 1,
            reason,
        };
        let leaf = chain
            .first()
            .ok_or_else(|| bad("the chain is empty".to_owned()))?;
        let facts = Facts::of(leaf).map_err(bad)?;
        let key = CertifiedKey::from_der(chain, key, &super::provider());
        let key = key.map_err(|error| match error {
            RustlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => PemError::Mismatch {
                certificate: chain_origin.to_owned(),
                key: key_origin.to_owned(),
            },
            source => PemError::Key {
                origin: key_origin.to_owned(),
                source,
            },
        })?;
        Ok(Self {
            key: Arc::new(key),
            facts,
            origin: chain_origin.to_owned(),
        })
    }
}

/// Several certificates, ready to be chosen from by the name that a client asks for.
#[derive(Debug, Default)]
pub struct Certificates {
    /// Several for a name: of different kinds of key.
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// By what follows the first label: `*.dev.corp.test` is kept as `dev.corp.test`.
    wildcard: HashMap<String, Vec<Arc<CertifiedKey>>>,
    first: Option<Arc<CertifiedKey>>,
}

/// How a certificate was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// It has this very name.
    Exact,
    /// A wildcard of it covers the name.
    Wildcard,
    /// None has the name, or none was asked for: the first that was configured.
    First,
}

impl Certificates {
    /// In the order of the configuration.
    pub fn new<'a>(list: impl IntoIterator<Item = (&'a [String], Arc<CertifiedKey>)>) -> Self {
        let mut all = Self::default();
        for (names, key) in list {
            for name in names {
                let name = name.to_ascii_lowercase();
                let keys = match name.strip_prefix("*.") {
                    Some(rest) => all.wildcard.entry(rest.to_owned()).or_default(),
                    None => all.exact.entry(name).or_default(),
                };
                keys.push(Arc::clone(&key));
            }
            all.first.get_or_insert(key);
        }
        all
    }

    /// Exact before wildcard (one label) before the first configured. `fits` tells whether the
    /// client can use a key; among several for one name the first that fits is taken.
    pub fn choose(
        &self,
        name: Option<&str>,
        fits: impl Fn(&CertifiedKey) -> bool,
    ) -> Option<(Arc<CertifiedKey>, Choice)> {
        let pick = |keys: &Vec<Arc<CertifiedKey>>| {
            keys.iter()
                .find(|key| fits(key))
                .or_else(|| keys.first())
                .cloned()
        };
        let name = name.map(str::to_ascii_lowercase);
        let name = name.as_deref().map(|name| name.trim_end_matches('.'));
        let exact = name.and_then(|name| self.exact.get(name)).and_then(pick);
        if let Some(key) = exact {
            return Some((key, Choice::Exact));
        }
        let parent = name
            .and_then(|name| name.split_once('.'))
            .map(|(_, parent)| parent);
        let wildcard = parent
            .and_then(|parent| self.wildcard.get(parent))
            .and_then(pick);
        if let Some(key) = wildcard {
            return Some((key, Choice::Wildcard));
        }
        self.first.clone().map(|key| (key, Choice::First))
    }
}

/// Certificates that can be replaced while connections come in: the next handshake uses the new.
#[derive(Debug, Default)]
pub struct SwapCertificates {
    current: ArcSwap<Certificates>,
}

impl SwapCertificates {
    /// Starts with `certificates`.
    pub fn new(certificates: Certificates) -> Arc<Self> {
        Arc::new(Self {
            current: ArcSwap::from_pointee(certificates),
        })
    }

    /// Uses `certificates` from the next handshake on.
    pub fn replace(&self, certificates: Certificates) {
        self.current.store(Arc::new(certificates));
    }
}

impl ResolvesServerCert for SwapCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        let schemes = hello.signature_schemes();
        let fits = |key: &CertifiedKey| key.key.choose_scheme(schemes).is_some();
        let chosen = self.current.load().choose(name, fits);
        let choice = chosen.as_ref().map(|(_, choice)| choice);
        tracing::debug!(sni = name.unwrap_or(""), ?choice, "certificate");
        chosen.map(|(key, _)| key)
    }
}
