//! A throw-away certificate authority, for machines that have no `mkcert`.

use std::path::{Path, PathBuf};

use super::files::{WriteError, write_private, write_public};
use crate::authority::issue;

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
    let made = issue("Postern throw-away CA", names).map_err(|source| CertificateError::Make {
        names: names.to_vec(),
        source,
    })?;
    write_public(&files.authority, &made.authority)?;
    write_public(&files.certificate, &made.certificate)?;
    write_private(&files.key, &made.key)?;
    Ok(files)
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
