//! TLS for both directions: reading PEM, choosing certificates, trusting peers, and saying in
//! words why a peer was not trusted.
//!
//! There is one crypto provider (aws-lc-rs), given explicitly each time; nothing depends on a
//! process-wide default. TLS 1.2 and 1.3 only; the provider's suites are ECDHE with AES-GCM or
//! ChaCha20-Poly1305.

pub mod certificates;
pub mod derived;
pub mod peer_error;
pub mod pem;
pub mod tickets;

use std::sync::{Arc, LazyLock};

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    NoServerSessionStorage, ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

pub use certificates::{Certificate, Certificates, SwapCertificates};
pub use peer_error::PeerError;
pub use pem::PemError;

/// The crypto provider of the whole program.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
}

/// Protocols that an end offers, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// Only HTTP/2: gRPC.
    H2,
    /// Only HTTP/1.1.
    Http1,
    /// Both, HTTP/2 first.
    H2OrHttp1,
    /// None is offered.
    None,
}

impl Alpn {
    fn protocols(self) -> Vec<Vec<u8>> {
        let (h2, http1) = (b"h2".to_vec(), b"http/1.1".to_vec());
        match self {
            Self::H2 => vec![h2],
            Self::Http1 => vec![http1],
            Self::H2OrHttp1 => vec![h2, http1],
            Self::None => Vec::new(),
        }
    }
}

/// TLS cannot be set up as configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate authority cannot be used as one.
    #[error("{origin}: certificate {number} cannot serve as a certificate authority")]
    Authority {
        /// Which key or file it comes from.
        origin: String,
        /// Its place, counted from 1.
        number: usize,
        /// What is wrong with it.
        #[source]
        source: rustls::Error,
    },
    /// There is nobody to trust.
    #[error(
        "no trusted certificate authority: the system has none and none is configured \
         (certificate_authority, certificate_authority_file)"
    )]
    NobodyTrusted,
    /// Certificates of clients cannot be verified.
    #[error("certificates of clients cannot be verified")]
    Clients(#[source] VerifierBuilderError),
    /// rustls refuses the combination.
    #[error("cannot set TLS up")]
    Setup(#[source] rustls::Error),
}

/// Whom we trust, and in words where that trust comes from.
#[derive(Debug, Clone)]
pub struct Trust {
    roots: Arc<RootCertStore>,
    told: String,
}

impl Trust {
    /// The system's authorities; Mozilla's, compiled in, where the system has none (an empty
    /// container image). `SSL_CERT_FILE` and `SSL_CERT_DIR` are respected.
    pub fn system() -> Self {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        let (added, _unreadable) = roots.add_parsable_certificates(found.certs);
        let told = if added > 0 {
            "the system's authorities"
        } else {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            "the built-in authorities"
        };
        Self {
            roots: Arc::new(roots),
            told: told.to_owned(),
        }
    }

    /// Nobody yet: for `tls_custom_ca`, which replaces the system's authorities.
    pub fn nobody() -> Self {
        Self {
            roots: Arc::new(RootCertStore::empty()),
            told: String::new(),
        }
    }

    /// Also trusts `authorities`, which come from `origin` (a key or file, for messages).
    pub fn and(
        mut self,
        authorities: &[CertificateDer<'static>],
        origin: &str,
    ) -> Result<Self, TlsError> {
        if authorities.is_empty() {
            return Ok(self);
        }
        let roots = Arc::make_mut(&mut self.roots);
        for (index, authority) in authorities.iter().enumerate() {
            roots
                .add(authority.clone())
                .map_err(|source| TlsError::Authority {
                    origin: origin.to_owned(),
                    number: index + 1,
                    source,
                })?;
        }
        if !self.told.is_empty() {
            self.told.push_str(" and ");
        }
        self.told.push_str(origin);
        Ok(self)
    }

    /// Where the trust comes from: `the system's authorities and /t/ca.pem`.
    pub fn told(&self) -> &str {
        &self.told
    }

    /// The authorities themselves.
    pub fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }
}

/// For connections that we open. The peer's chain and name are always verified.
pub fn client_config(
    trust: &Trust,
    alpn: Alpn,
    identity: Option<Arc<CertifiedKey>>,
) -> Result<Arc<ClientConfig>, TlsError> {
    if trust.roots.is_empty() {
        return Err(TlsError::NobodyTrusted);
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(trust.roots.clone(), provider())
        .build()
        .map_err(|error| TlsError::Setup(rustls::Error::General(error.to_string())))?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_webpki_verifier(verifier);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(key) => {
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)))
        }
    };
    config.alpn_protocols = alpn.protocols();
    Ok(Arc::new(config))
}

/// Clients must show a certificate of one of `authorities` that none of `revocation_lists` (DER)
/// revokes. A list says nothing about certificates of issuers that it is not of.
pub fn require_clients_of(
    authorities: &[CertificateDer<'static>],
    revocation_lists: &[Vec<u8>],
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let roots = Trust::nobody()
        .and(authorities, "client certificates")?
        .roots;
    let lists = revocation_lists.iter();
    let lists = lists.map(|der| CertificateRevocationListDer::from(der.clone()));
    WebPkiClientVerifier::builder_with_provider(roots, provider())
        .with_crls(lists)
        .only_check_end_entity_revocation()
        .allow_unknown_revocation_status()
        .enforce_revocation_expiration()
        .build()
        .map_err(TlsError::Clients)
}

/// For connections that we accept. Sessions are resumed by stateless tickets, one for each
/// handshake: with none at all, clients without `TCP_NODELAY` wait 40 ms.
pub fn server_config(
    certificates: Arc<dyn ResolvesServerCert>,
    alpn: Alpn,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(verifier),
    };
    let mut config = builder.with_cert_resolver(certificates);
    config.alpn_protocols = alpn.protocols();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(TlsError::Setup)?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

#[cfg(test)]
pub(crate) mod tests;
