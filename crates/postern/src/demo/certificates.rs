//! A throw-away certificate authority, for machines that have no `mkcert`.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};

use super::files::{WriteError, write_private, write_public};

/// Files of a certificate authority and of one certificate that it issued.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot make a certificate for {names:?}")]
    Make {
        names: Vec<String>,
        #[source]
        source: rcgen::Error,
    },
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Makes an authority and a certificate for `names` in `directory`; both are valid for years, as
/// nobody renews them. Files that exist are kept, so that a browser has to be told only once.
pub fn ensure(directory: &Path, names: &[String]) -> Result<CertificateFiles, CertificateError> {
    let files = CertificateFiles {
        authority: directory.join("ca.pem"),
        certificate: directory.join("certificate.pem"),
        key: directory.join("certificate-key.pem"),
    };
    if files.authority.exists() && files.certificate.exists() && files.key.exists() {
        return Ok(files);
    }
    let made = make(names).map_err(|source| CertificateError::Make {
        names: names.to_vec(),
        source,
    })?;
    write_public(&files.authority, &made.authority)?;
    write_public(&files.certificate, &made.certificate)?;
    write_private(&files.key, &made.key)?;
    Ok(files)
}

struct Pem {
    authority: String,
    certificate: String,
    key: String,
}

fn make(names: &[String]) -> Result<Pem, rcgen::Error> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.distinguished_name = named("Postern throw-away CA");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;

    let mut leaf = CertificateParams::new(names.to_vec())?;
    leaf.distinguished_name = named(names.first().map_or("postern", String::as_str));
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = leaf.signed_by(&key, &authority)?;
    Ok(Pem {
        authority: authority.pem(),
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exists_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let names = ["localhost".to_owned(), "*.localhost".to_owned()];
        let first = ensure(directory.path(), &names).unwrap();
        let before = std::fs::read(&first.certificate).unwrap();
        ensure(directory.path(), &names).unwrap();
        assert_eq!(std::fs::read(&first.certificate).unwrap(), before);
    }
}
