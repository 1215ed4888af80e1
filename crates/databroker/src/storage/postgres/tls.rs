//! TLS towards Postgres: which certificates are believed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::settings::{SslMode, Tls};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {key} {file}: {reason}")]
    File {
        key: &'static str,
        file: PathBuf,
        reason: String,
    },
    #[error("sslcert and sslkey go together; one of them is missing")]
    HalfAPair,
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] Error),
    #[error("no root certificates: the system has none; name a file with sslrootcert")]
    NoRoots,
}

pub(super) fn connector(tls: &Tls) -> Result<MakeRustlsConnect, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let trust = match (tls.mode, &tls.root_cert) {
        (SslMode::Disable | SslMode::Allow | SslMode::Prefer, None) => Trust::Anybody(provider),
        (SslMode::VerifyFull, _) | (SslMode::Require, None) => {
            Trust::Named(verifier(tls.root_cert.as_deref(), provider)?)
        }
        _ => Trust::Chain(verifier(tls.root_cert.as_deref(), provider)?),
    };
    let builder = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(trust));
    let config = match (&tls.client_cert, &tls.client_key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(certificate), Some(key)) => builder
            .with_client_auth_cert(certificates("sslcert", certificate)?, private_key(key)?)?,
        _ => return Err(TlsError::HalfAPair),
    };
    Ok(MakeRustlsConnect::new(config))
}

fn verifier(
    root_cert: Option<&Path>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    match root_cert {
        Some(file) => {
            for certificate in certificates("sslrootcert", file)? {
                roots.add(certificate)?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| TlsError::Rustls(Error::General(error.to_string())))
}

fn certificates(key: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |reason: String| TlsError::File {
        key,
        file: file.to_owned(),
        reason,
    };
    let found: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| failed(error.to_string()))?;
    if found.is_empty() {
        Err(failed("there is no certificate in it".to_owned()))
    } else {
        Ok(found)
    }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(file).map_err(|error| TlsError::File {
        key: "sslkey",
        file: file.to_owned(),
        reason: error.to_string(),
    })
}

/// Whom to believe.
#[derive(Debug)]
enum Trust {
    /// Encryption against those who only listen.
    Anybody(Arc<CryptoProvider>),
    /// The chain must lead to a root; the name may be any.
    Chain(Arc<WebPkiServerVerifier>),
    Named(Arc<WebPkiServerVerifier>),
}

impl ServerCertVerifier for Trust {
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
