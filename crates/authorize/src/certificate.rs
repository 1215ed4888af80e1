//! What a client's certificate says, and whether its chain is in order (`downstream_mtls`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use postern_common::authz::ClientCertificate;
use postern_common::config::{DownstreamMtls, SubjectAltNameKind, SubjectAltNameRule};
use postern_policy as policy;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use sha2::{Digest as _, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What a decision knows of the client's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateFact {
    /// No client CA is configured.
    NotAsked(Option<Arc<Leaf>>),
    Missing,
    Valid(Arc<Leaf>),
    Invalid(Arc<Leaf>),
}

impl Default for CertificateFact {
    fn default() -> Self {
        Self::NotAsked(None)
    }
}

/// What policies and header templates read of the client's own certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leaf {
    /// SHA-256 of the certificate, lower-case hexadecimal.
    pub fingerprint: String,
    /// SHA-256 of the public key's SubjectPublicKeyInfo, standard base64.
    pub spki_hash: String,
    pub san_dns: Vec<String>,
    pub san_email: Vec<String>,
    pub san_uri: Vec<String>,
    pub san_ip: Vec<String>,
    pub san_upn: Vec<String>,
}

impl CertificateFact {
    pub fn presented(&self) -> Option<&Leaf> {
        match self {
            Self::NotAsked(leaf) => leaf.as_deref(),
            Self::Missing => None,
            Self::Valid(leaf) | Self::Invalid(leaf) => Some(leaf),
        }
    }

    pub fn for_policy(&self) -> policy::ClientCertificate<'_> {
        match self {
            Self::NotAsked(leaf) => {
                policy::ClientCertificate::NotAsked(leaf.as_deref().map(Leaf::for_policy))
            }
            Self::Missing => policy::ClientCertificate::Missing,
            Self::Valid(leaf) => policy::ClientCertificate::Valid(leaf.for_policy()),
            Self::Invalid(leaf) => policy::ClientCertificate::Invalid(leaf.for_policy()),
        }
    }
}

impl Leaf {
    /// Reads a certificate. What can't be read stays empty; the fingerprint is always there.
    pub fn from_der(der: &[u8]) -> Self {
        let mut leaf = Self {
            fingerprint: hex::encode(Sha256::digest(der)),
            ..Self::default()
        };
        let Ok((_, certificate)) = X509Certificate::from_der(der) else {
            return leaf;
        };
        leaf.spki_hash = STANDARD.encode(Sha256::digest(certificate.public_key().raw));
        let names = certificate.subject_alternative_name().ok().flatten();
        for name in names
            .into_iter()
            .flat_map(|extension| &extension.value.general_names)
        {
            match name {
                GeneralName::DNSName(name) => leaf.san_dns.push((*name).to_owned()),
                GeneralName::RFC822Name(name) => leaf.san_email.push((*name).to_owned()),
                GeneralName::URI(name) => leaf.san_uri.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => leaf.san_ip.extend(ip_text(bytes)),
                GeneralName::OtherName(oid, value) if oid.to_id_string() == USER_PRINCIPAL_NAME => {
                    leaf.san_upn.extend(explicit_utf8(value));
                }
                _ => {}
            }
        }
        leaf
    }

    fn for_policy(&self) -> policy::Certificate<'_> {
        policy::Certificate {
            fingerprint: &self.fingerprint,
            spki_hash: &self.spki_hash,
            san_dns: &self.san_dns,
            san_email: &self.san_email,
            san_uri: &self.san_uri,
        }
    }

    fn meets(&self, rule: &SubjectAltNameRule) -> bool {
        let names = match rule.kind {
            SubjectAltNameKind::Dns => &self.san_dns,
            SubjectAltNameKind::Email => &self.san_email,
            SubjectAltNameKind::Uri => &self.san_uri,
            SubjectAltNameKind::IpAddress => &self.san_ip,
            SubjectAltNameKind::UserPrincipalName => &self.san_upn,
        };
        names.iter().any(|name| {
            rule.pattern
                .find(name)
                .is_some_and(|found| found.start() == 0 && found.end() == name.len())
        })
    }
}

/// id-ms-san-upn
const USER_PRINCIPAL_NAME: &str = "1.3.6.1.4.1.311.20.2.3";

fn ip_text(bytes: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    let v6 = <[u8; 16]>::try_from(bytes).ok()?;
    Some(std::net::Ipv6Addr::from(v6).to_string())
}

/// `[0] EXPLICIT UTF8String`, short form.
fn explicit_utf8(der: &[u8]) -> Option<String> {
    match der {
        [0xa0, _, 0x0c, length, text @ ..] if usize::from(*length) == text.len() => {
            String::from_utf8(text.to_vec()).ok()
        }
        _ => None,
    }
}

/// How long a verified chain counts without being verified again. Short, because certificates and
/// revocation lists expire.
const REMEMBER: Duration = Duration::from_secs(60);
const MOST_REMEMBERED: u64 = 1_000;

/// Examines client certificates under one configuration.
pub struct CertificateExaminer {
    /// `None`: no client CA is configured.
    rules: Option<Rules>,
    known: moka::sync::Cache<[u8; 32], CertificateFact>,
}

struct Rules {
    /// `None` when the configured CAs can't be used: then nothing is valid.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    subject_alt_names: Vec<SubjectAltNameRule>,
    max_intermediates: usize,
}

impl fmt::Debug for CertificateExaminer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateExaminer")
            .field("asks", &self.rules.is_some())
            .finish_non_exhaustive()
    }
}

impl CertificateExaminer {
    pub fn new(mtls: Option<&DownstreamMtls>) -> Self {
        Self {
            rules: mtls.map(|mtls| Rules {
                verifier: verifier(mtls),
                subject_alt_names: mtls.subject_alt_names.clone(),
                // Depth counts the certificates above the leaf, the root among them.
                max_intermediates: mtls
                    .max_depth
                    .map_or(usize::MAX, |depth| depth.saturating_sub(1)),
            }),
            known: moka::sync::Cache::builder()
                .max_capacity(MOST_REMEMBERED)
                .time_to_live(REMEMBER)
                .build(),
        }
    }

    pub fn examine(
        &self,
        certificate: Option<&ClientCertificate>,
        now: Timestamp,
    ) -> CertificateFact {
        let presented = certificate.and_then(|certificate| certificate.chain.split_first());
        let Some((leaf, above)) = presented else {
            return match self.rules {
                Some(_) => CertificateFact::Missing,
                None => CertificateFact::NotAsked(None),
            };
        };
        let key = chain_hash(leaf, above);
        if let Some(fact) = self.known.get(&key) {
            return fact;
        }
        let read = Arc::new(Leaf::from_der(leaf));
        let fact = match &self.rules {
            None => CertificateFact::NotAsked(Some(read)),
            Some(rules) if rules.are_met(&read, leaf, above, now) => CertificateFact::Valid(read),
            Some(_) => CertificateFact::Invalid(read),
        };
        self.known.insert(key, fact.clone());
        fact
    }
}

impl Rules {
    fn are_met(&self, read: &Leaf, leaf: &[u8], above: &[Vec<u8>], now: Timestamp) -> bool {
        let Some(verifier) = &self.verifier else {
            return false;
        };
        let Ok(seconds) = u64::try_from(now.as_second()) else {
            return false;
        };
        // RFC 8446 section 4.4.2: each certifies the one before it. A chain that is too long is
        // cut, and so has no way to the root.
        let intermediates: Vec<CertificateDer<'_>> = above
            .iter()
            .take(self.max_intermediates)
            .map(|der| CertificateDer::from(der.as_slice()))
            .collect();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let trusted = verifier
            .verify_client_cert(&CertificateDer::from(leaf), &intermediates, now)
            .is_ok();
        let named = self.subject_alt_names.is_empty()
            || self.subject_alt_names.iter().any(|rule| read.meets(rule));
        trusted && named
    }
}

fn verifier(mtls: &DownstreamMtls) -> Option<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(mtls.roots.iter().cloned());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if !mtls.revocation_lists.is_empty() {
        builder = builder
            .with_crls(
                mtls.revocation_lists
                    .iter()
                    .map(|der| CertificateRevocationListDer::from(der.clone())),
            )
            .only_check_end_entity_revocation()
            // A CA without a list revokes nothing; a list that has expired proves nothing.
            .allow_unknown_revocation_status()
            .enforce_revocation_expiration();
    }
    builder.build().ok()
}

fn chain_hash(leaf: &[u8], above: &[Vec<u8>]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for der in std::iter::once(leaf).chain(above.iter().map(Vec::as_slice)) {
        hash.update(u64::try_from(der.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(der);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests;
