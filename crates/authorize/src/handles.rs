//! Verified session handles, so that a client's next request costs no signature.
//!
//! A handle says which session somebody means and nothing about whether it lives; that is read of
//! the records with every request. So what was verified holds for as long as the secrets do, and
//! the snapshot that has the secrets owns this.

use std::sync::Arc;

use postern_common::crypto::handle::Handle;
use postern_common::crypto::keys::SecretKey;

use crate::reuse::Reuse;

/// Bytes of handles that are kept.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// Verifies handles, and remembers the good ones.
#[derive(Debug)]
pub struct Handles {
    secrets: Vec<SecretKey>,
    verified: Reuse<Box<str>, Arc<Handle>>,
}

impl Handles {
    pub fn new(secrets: &[SecretKey]) -> Self {
        Self {
            secrets: secrets.to_vec(),
            verified: Reuse::new(CACHE_BYTES),
        }
    }

    /// The handle that `token` is, if one of the secrets signed it.
    pub fn verify(&self, token: &str) -> Option<Arc<Handle>> {
        let hash = hash(token);
        if let Some(known) = self.verified.get(hash, |known| **known == *token) {
            return Some(known);
        }
        let handle = Arc::new(Handle::decode(&self.secrets, token).ok()?);
        let kept = Arc::clone(&handle);
        self.verified
            .insert(hash, token.into(), kept, weight(token));
        Some(handle)
    }
}

/// A good handle ends in its signature, which is as good as random and nobody can choose.
fn hash(token: &str) -> u64 {
    const ODD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
    let end = token.as_bytes().last_chunk().copied().unwrap_or_default();
    let mixed = u128::from_le_bytes(end).wrapping_mul(ODD);
    u64::try_from(mixed >> 64).unwrap_or_default()
}

/// The text of a token holds all that its handle does.
fn weight(token: &str) -> usize {
    const OVERHEAD: usize = 500;
    OVERHEAD + 2 * token.len()
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
