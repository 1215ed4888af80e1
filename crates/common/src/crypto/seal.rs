//! Sealing: XChaCha20-Poly1305, the nonce at the end.

use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};

use base64::Engine as _;

use super::{B64_URL_PADDED, keys::SecretKey};

/// Length of a nonce in bytes.
pub const NONCE: usize = 24;

/// The value was not sealed by this key, or with other additional data, or was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("sealed value can't be opened: made with another key, or changed since")]
pub struct OpenError;

/// Encrypts `plain` and binds it to `aad`: ciphertext ‖ tag ‖ random nonce.
pub fn seal(key: &SecretKey, plain: &[u8], aad: &[u8]) -> Vec<u8> {
    seal_with_nonce(key, &super::random::bytes(), plain, aad)
}

/// [`seal`] with a nonce of the caller's, who must never use one twice under a key.
pub fn seal_with_nonce(key: &SecretKey, nonce: &[u8; NONCE], plain: &[u8], aad: &[u8]) -> Vec<u8> {
    let cipher = XChaCha20Poly1305::new(key.as_bytes().into());
    let sealed = cipher.encrypt(XNonce::from_slice(nonce), Payload { msg: plain, aad });
    // Fails only for more than 256 GiB. An empty value can be opened by nobody, so it is safe.
    let mut out = sealed.unwrap_or_default();
    out.extend_from_slice(nonce);
    out
}

/// Opens what [`seal`] made with the same key and `aad`.
pub fn open(key: &SecretKey, sealed: &[u8], aad: &[u8]) -> Result<Vec<u8>, OpenError> {
    let at = sealed.len().checked_sub(NONCE).ok_or(OpenError)?;
    let (msg, nonce) = sealed.split_at_checked(at).ok_or(OpenError)?;
    XChaCha20Poly1305::new(key.as_bytes().into())
        .decrypt(XNonce::from_slice(nonce), Payload { msg, aad })
        .map_err(|_| OpenError)
}

/// [`open`] with the first key that fits.
pub fn open_any(keys: &[SecretKey], sealed: &[u8], aad: &[u8]) -> Result<Vec<u8>, OpenError> {
    keys.iter()
        .find_map(|key| open(key, sealed, aad).ok())
        .ok_or(OpenError)
}

/// [`seal`] in the text form that travels in URLs, such as `pomerium_session_encrypted`.
pub fn seal_text(key: &SecretKey, plain: &[u8]) -> String {
    B64_URL_PADDED.encode(seal(key, plain, b""))
}

/// Opens what [`seal_text`] made with one of `keys`.
pub fn open_text(keys: &[SecretKey], text: &str) -> Result<Vec<u8>, OpenError> {
    let sealed = B64_URL_PADDED.decode(text).map_err(|_| OpenError)?;
    open_any(keys, &sealed, b"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::vectors;
    use proptest::prelude::*;

    #[test]
    fn known_answer() {
        let sealed = seal_with_nonce(&vectors::k(), &vectors::nonce(), b"postern", b"");
        assert_eq!(
            hex::encode(&sealed),
            "32812a2d82e62d985d404e322e66ca26c03a0faceaf932808182838485868788898a8b8c8d8e8f9091929394959697"
        );
        assert_eq!(open(&vectors::k(), &sealed, b"").unwrap(), b"postern");
        let text = "MoEqLYLmLZhdQE4yLmbKJsA6D6zq-TKAgYKDhIWGh4iJiouMjY6PkJGSk5SVlpc=";
        assert_eq!(open_text(&[vectors::k()], text).unwrap(), b"postern");
        assert_eq!(open_text(&[vectors::k()], "%%"), Err(OpenError));
        let again = seal_text(&vectors::k(), b"postern");
        assert_ne!(again, text);
        assert_eq!(open_text(&[vectors::k()], &again).unwrap(), b"postern");
    }

    #[test]
    fn rotation_opens_with_the_old_key() {
        let (old, new) = (SecretKey::random(), SecretKey::random());
        let sealed = seal(&old, b"x", b"");
        assert_eq!(open_any(&[new.clone(), old], &sealed, b"").unwrap(), b"x");
        assert_eq!(open_any(&[new], &sealed, b""), Err(OpenError));
        assert_eq!(open_any(&[], &sealed, b""), Err(OpenError));
    }

    proptest! {
        #[test]
        fn opens_what_it_sealed(key: [u8; 32], plain: Vec<u8>, aad: Vec<u8>) {
            let key = SecretKey::from_bytes(key);
            prop_assert_eq!(open(&key, &seal(&key, &plain, &aad), &aad).unwrap(), plain);
        }

        #[test]
        fn any_change_is_noticed(plain: Vec<u8>, at: prop::sample::Index, bit in 0..8_u32) {
            let key = SecretKey::from_bytes([1; 32]);
            let mut sealed = seal(&key, &plain, b"aad");
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert_eq!(open(&key, &sealed, b"aad"), Err(OpenError));
        }

        #[test]
        fn opening_never_panics(sealed: Vec<u8>) {
            prop_assert_eq!(open(&SecretKey::from_bytes([1; 32]), &sealed, b""), Err(OpenError));
        }
    }
}
