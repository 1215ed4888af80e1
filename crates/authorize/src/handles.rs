//! Verified session handles, so that a client's next request costs no signature.
//!
//! A handle says which session somebody means and nothing about whether it lives; that is read of
//! the records with every request. So what was verified holds for as long as the secrets do, and
//! the snapshot that has the secrets owns this.

use std::sync::Arc;

use postern_common::crypto::handle::Handle;
use postern_common::crypto::keys::SecretKey;

/// Bytes of handles that are kept.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// Verifies handles, and remembers the good ones.
#[derive(Debug)]
pub struct Handles {
    secrets: Vec<SecretKey>,
    verified: moka::sync::Cache<Arc<str>, Arc<Handle>>,
}

impl Handles {
    pub fn new(secrets: &[SecretKey]) -> Self {
        Self {
            secrets: secrets.to_vec(),
            verified: moka::sync::Cache::builder()
                .max_capacity(CACHE_BYTES)
                .weigher(weight)
                .build(),
        }
    }

    /// The handle that `token` is, if one of the secrets signed it.
    pub fn verify(&self, token: &str) -> Option<Arc<Handle>> {
        if let Some(known) = self.verified.get(token) {
            return Some(known);
        }
        let handle = Arc::new(Handle::decode(&self.secrets, token).ok()?);
        self.verified.insert(token.into(), Arc::clone(&handle));
        Some(handle)
    }
}

/// The text of a token holds all that its handle does.
fn weight(token: &Arc<str>, _: &Arc<Handle>) -> u32 {
    const OVERHEAD: usize = 500;
    u32::try_from(OVERHEAD + 2 * token.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s05_only_what_was_signed_is_remembered() {
        let secret = SecretKey::random();
        let handles = Handles::new(std::slice::from_ref(&secret));
        let handle = Handle {
            id: "s".to_owned(),
            ..Handle::default()
        };
        let token = handle.encode(&secret);
        let forged = handle.encode(&SecretKey::random());
        for _ in 0..2 {
            assert_eq!(handles.verify(&token).as_deref(), Some(&handle));
            assert_eq!(handles.verify(&forged), None);
            assert_eq!(handles.verify(&token[..token.len() - 1]), None);
        }
        let others = Handles::new(&[SecretKey::random()]);
        assert_eq!(others.verify(&token), None);
    }
}
