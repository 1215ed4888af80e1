//! Certificates and keys out of PEM text, with errors that say which block of which file.

use rustls::pki_types::pem::{self, PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What is wrong with PEM text. `origin` is the key or file that it comes from.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// The text is no PEM.
    #[error("{origin}: block {number} is not readable as PEM")]
    Syntax {
        /// Where the text comes from.
        origin: String,
        /// The block, counted from 1.
        number: usize,
        /// What the parser says.
        #[source]
        source: pem::Error,
    },
    /// No block of the kind that is needed.
    #[error("{origin}: no {wanted} in it; found: {found}")]
    Missing {
        /// Where the text comes from.
        origin: String,
        /// What was looked for.
        wanted: &'static str,
        /// What was there instead.
        found: String,
    },
    /// A certificate that cannot be parsed.
    #[error("{origin}: block {number} is no valid certificate: {reason}")]
    Certificate {
        /// Where the text comes from.
        origin: String,
        /// The block, counted from 1.
        number: usize,
        /// What the parser says.
        reason: String,
    },
    /// A key that is locked with a passphrase.
    #[error("{origin}: the private key is encrypted; store it without a passphrase")]
    Encrypted {
        /// Where the text comes from.
        origin: String,
    },
    /// A key of a kind that is not known.
    #[error(
        "{origin}: the private key cannot be used; RSA, ECDSA P-256/P-384/P-521 and Ed25519 work"
    )]
    Key {
        /// Where the text comes from.
        origin: String,
        /// What the library says.
        #[source]
        source: rustls::Error,
    },
    /// The key belongs to another certificate.
    #[error("the private key in {key} does not belong to the certificate in {certificate}")]
    Mismatch {
        /// Where the certificate comes from.
        certificate: String,
        /// Where the key comes from.
        key: String,
    },
}

fn blocks(text: &[u8], origin: &str) -> Result<Vec<(SectionKind, Vec<u8>)>, PemError> {
    let blocks = <(SectionKind, Vec<u8>)>::pem_slice_iter(text).enumerate();
    blocks
        .map(|(index, block)| {
            block.map_err(|source| PemError::Syntax {
                origin: origin.to_owned(),
                number: index + 1,
                source,
            })
        })
        .collect()
}

fn found(blocks: &[(SectionKind, Vec<u8>)]) -> String {
    if blocks.is_empty() {
        return "nothing".to_owned();
    }
    let kinds: Vec<_> = blocks.iter().map(|(kind, _)| name(*kind)).collect();
    kinds.join(", ")
}

fn name(kind: SectionKind) -> &'static str {
    match kind {
        SectionKind::Certificate => "certificate",
        SectionKind::PublicKey => "public key",
        SectionKind::RsaPrivateKey | SectionKind::PrivateKey | SectionKind::EcPrivateKey => {
            "private key"
        }
        SectionKind::Crl => "revocation list",
        SectionKind::Csr => "certificate request",
        _ => "something else",
    }
}

/// All certificates of `text`, at least one, in order. Other blocks are passed over.
pub fn certificates(text: &[u8], origin: &str) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let blocks = blocks(text, origin)?;
    let mut certificates = Vec::new();
    for (index, (kind, der)) in blocks.iter().enumerate() {
        if *kind != SectionKind::Certificate {
            continue;
        }
        X509Certificate::from_der(der).map_err(|error| PemError::Certificate {
            origin: origin.to_owned(),
            number: index + 1,
            reason: error.to_string(),
        })?;
        certificates.push(CertificateDer::from(der.clone()));
    }
    if certificates.is_empty() {
        return Err(PemError::Missing {
            origin: origin.to_owned(),
            wanted: "certificate",
            found: found(&blocks),
        });
    }
    Ok(certificates)
}

/// The first private key of `text`.
pub fn private_key(text: &[u8], origin: &str) -> Result<PrivateKeyDer<'static>, PemError> {
    const ENCRYPTED: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
    const LEGACY: &[u8] = b"Proc-Type: 4,ENCRYPTED";
    let contains = |mark: &[u8]| text.windows(mark.len()).any(|window| window == mark);
    if contains(ENCRYPTED) || contains(LEGACY) {
        return Err(PemError::Encrypted {
            origin: origin.to_owned(),
        });
    }
    let blocks = blocks(text, origin)?;
    let key = blocks
        .iter()
        .find_map(|(kind, der)| PrivateKeyDer::from_pem(*kind, der.clone()));
    key.ok_or_else(|| PemError::Missing {
        origin: origin.to_owned(),
        wanted: "private key",
        found: found(&blocks),
    })
}

/// All revocation lists of `text`, at least one.
pub fn revocation_lists(
    text: &[u8],
    origin: &str,
) -> Result<Vec<CertificateRevocationListDer<'static>>, PemError> {
    let blocks = blocks(text, origin)?;
    let lists: Vec<_> = blocks
        .iter()
        .filter(|(kind, _)| *kind == SectionKind::Crl)
        .map(|(_, der)| CertificateRevocationListDer::from(der.clone()))
        .collect();
    if lists.is_empty() {
        return Err(PemError::Missing {
            origin: origin.to_owned(),
            wanted: "revocation list",
            found: found(&blocks),
        });
    }
    Ok(lists)
}
