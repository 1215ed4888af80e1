//! TLS towards Postgres: which certificates are believed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use postern_common::tls::{self, Trust};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::settings::{SslMode, Tls};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {key} {file}")]
    File {
        key: &'static str,
        file: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Pem(#[from] tls::pem::PemError),
    #[error(transparent)]
    Trust(#[from] tls::TlsError),
    #[error("sslcert and sslkey go together; one of them is missing")]
    HalfAPair,
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] Error),
}

pub(super) fn connector(settings: &Tls) -> Result<MakeRustlsConnect, TlsError> {
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?;
    let root_cert = settings.root_cert.as_deref();
    let trust = match (settings.mode, root_cert) {
        (SslMode::Disable | SslMode::Allow | SslMode::Prefer, None) => {
            Believe::Anybody(tls::provider())
        }
        (SslMode::VerifyFull, _) | (SslMode::Require, None) => Believe::Named(verifier(root_cert)?),
        _ => Believe::Chain(verifier(root_cert)?),
    };
    let builder = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(trust));
    let config = match (&settings.client_cert, &settings.client_key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(certificate), Some(key)) => builder
            .with_client_auth_cert(certificates("sslcert", certificate)?, private_key(key)?)?,
        _ => return Err(TlsError::HalfAPair),
    };
    Ok(MakeRustlsConnect::new(config))
}

fn verifier(root_cert: Option<&Path>) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let trust = match root_cert {
        None => Trust::system(),
        Some(file) => Trust::nobody().and(&certificates("sslrootcert", file)?, "sslrootcert")?,
    };
    WebPkiServerVerifier::builder_with_provider(Arc::clone(trust.roots()), tls::provider())
        .build()
        .map_err(|error| TlsError::Rustls(Error::General(error.to_string())))
}

fn certificates(key: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    Ok(tls::pem::certificates(&read(key, file)?, key)?)
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    Ok(tls::pem::private_key(&read("sslkey", file)?, "sslkey")?)
}

fn read(key: &'static str, file: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(file).map_err(|source| TlsError::File {
        key,
        file: file.to_owned(),
        source,
    })
}

/// Whom to believe.
#[derive(Debug)]
enum Believe {
    /// Encryption against those who only listen.
    Anybody(Arc<CryptoProvider>),
    /// The chain must lead to a root; the name may be any.
    Chain(Arc<WebPkiServerVerifier>),
    Named(Arc<WebPkiServerVerifier>),
}

impl ServerCertVerifier for Believe {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify = |verifier: &WebPkiServerVerifier| {
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        };
        match self {
            Self::Anybody(_) => Ok(ServerCertVerified::assertion()),
            Self::Named(verifier) => verify(verifier),
            // The name is checked after the chain, so this error means that the chain is good.
            Self::Chain(verifier) => match verify(verifier) {
                Err(Error::InvalidCertificate(
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. },
                )) => Ok(ServerCertVerified::assertion()),
                verified => verified,
            },
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self {
            Self::Anybody(provider) => {
                let algorithms = &provider.signature_verification_algorithms;
                verify_tls12_signature(message, cert, dss, algorithms)
            }
            Self::Chain(it) | Self::Named(it) => it.verify_tls12_signature(message, cert, dss),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self {
            Self::Anybody(provider) => {
                let algorithms = &provider.signature_verification_algorithms;
                verify_tls13_signature(message, cert, dss, algorithms)
            }
            Self::Chain(it) | Self::Named(it) => it.verify_tls13_signature(message, cert, dss),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        match self {
            Self::Anybody(provider) => provider
                .signature_verification_algorithms
                .supported_schemes(),
            Self::Chain(it) | Self::Named(it) => it.supported_verify_schemes(),
        }
    }
}
