//! TLS towards upstreams: whom to trust, what to show, and errors that say what is wrong.

use std::sync::Arc;

use postern_common::config::{UpstreamTls, UpstreamVerification};
use postern_common::tls::{PeerError, Trust};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

/// How to speak TLS with one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct UpstreamConnector {
    /// HTTP/2 or HTTP/1.1.
    pub any: Arc<ClientConfig>,
    /// HTTP/1.1 only, for upgrades.
    pub http1: Arc<ClientConfig>,
    pub name: ServerName<'static>,
    /// Which trust is used, for messages.
    trust: Arc<str>,
}

/// Why a connector could not be made; loading the configuration should have found it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamTlsError {
    #[error("{0:?} is no name that TLS can ask for; set tls_upstream_server_name")]
    Name(String),
    #[error("the client certificate of the route cannot be used")]
    ClientCertificate(#[source] rustls::Error),
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
    #[error("certificates of upstreams cannot be verified")]
    Verifier(#[source] VerifierBuilderError),
    #[error("tls_custom_ca cannot be used")]
    Roots(#[source] postern_common::tls::TlsError),
}

impl UpstreamConnector {
    /// For an endpoint on `host`. `trust` is in the system and in `certificate_authority`; a
    /// route's own authorities replace it.
    pub(crate) fn new(
        host: &str,
        tls: &UpstreamTls,
        names: Names,
        trust: &Trust,
    ) -> Result<Self, UpstreamTlsError> {
        let name = tls.server_name.as_deref().unwrap_or(host);
        let name = name
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let server_name =
            ServerName::try_from(name.clone()).map_err(|_| UpstreamTlsError::Name(name))?;
        let own = match &tls.custom_roots {
            None => trust.clone(),
            Some(custom) => Trust::nobody()
                .and(&custom.certificates, &custom.origin)
                .map_err(UpstreamTlsError::Roots)?,
        };
        let provider = postern_common::tls::provider();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(UpstreamTlsError::Setup)?;
        let builder = match tls.verification {
            UpstreamVerification::Verify => {
                let roots = Arc::clone(own.roots());
                let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(UpstreamTlsError::Verifier)?;
                let second = match names {
                    Names::One => None,
                    Names::OrHost => ServerName::try_from(host.to_owned()).ok(),
                };
                match second {
                    None => builder.with_webpki_verifier(verifier),
                    Some(second) => builder
                        .dangerous()
                        .with_custom_certificate_verifier(Arc::new(EitherName {
                            verifier,
                            second,
                        })),
                }
            }
            UpstreamVerification::Skip => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Unverified(provider))),
        };
        let mut http1 = match &tls.client {
            None => builder.with_no_client_auth(),
            Some(client) => builder
                .with_client_auth_cert(client.chain.clone(), client.key.clone_key())
                .map_err(UpstreamTlsError::ClientCertificate)?,
        };
        let mut any = http1.clone();
        any.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            any: Arc::new(any),
            http1: Arc::new(http1),
            name: server_name,
            trust: own.told().into(),
        })
    }

    /// What a failed handshake means, fit for a log line and for `show_error_details`.
    pub(crate) fn explain(&self, error: &std::io::Error) -> String {
        match PeerError::find(error) {
            Some(reason) => reason.explain(&self.trust),
            None => error.to_string(),
        }
    }
}

/// Which names the certificate may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Names {
    /// `tls_upstream_server_name`, else the host.
    One,
    /// That or the host. For authenticate, which may show the certificate of its public name.
    OrHost,
}

/// Accepts a certificate for either of two names; all else is verified as ever.
#[derive(Debug)]
struct EitherName {
    verifier: Arc<WebPkiServerVerifier>,
    second: ServerName<'static>,
}

impl ServerCertVerifier for EitherName {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let first = self
            .verifier
            .verify_server_cert(leaf, chain, name, ocsp, now);
        first.or_else(|error| {
            let second = &self.second;
            let other = self
                .verifier
                .verify_server_cert(leaf, chain, second, ocsp, now);
            other.map_err(|_| error)
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// `tls_skip_verify`: neither chain nor name are looked at, only that the peer has its key.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
