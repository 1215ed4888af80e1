//! Secret keys: read, derived, named in logs without being told.

mod jwk;
mod pem;
mod scalar;
mod signing;

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroize;

pub use jwk::Jwks;
pub(crate) use scalar::p256_key;
pub use signing::{SignError, SigningKeyError, SigningKeys};

/// 32 secret bytes: `shared_secret`, `cookie_secret`, or a key derived from one of them.
///
/// Has no `Display`; `Debug` shows the fingerprint only; the bytes are wiped when it is dropped.
#[derive(Clone)]
pub struct SecretKey([u8; 32]);

/// Why a text is no [`SecretKey`]. Never holds the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error(
        "not standard base64 (letters, digits, + and /, with = at the end); make a key with: head -c32 /dev/urandom | base64"
    )]
    NotBase64,
    #[error("{0} bytes, but 32 are needed; make a key with: head -c32 /dev/urandom | base64")]
    WrongLength(usize),
}

impl SecretKey {
    /// Reads the text form of a configuration file: standard base64 of 32 bytes. White space
    /// around it is ignored, as files end with a newline.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        let mut decoded = STANDARD
            .decode(text.trim())
            .map_err(|_| KeyError::NotBase64)?;
        let key = <[u8; 32]>::try_from(decoded.as_slice())
            .map(Self)
            .map_err(|_| KeyError::WrongLength(decoded.len()));
        decoded.zeroize();
        key
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A fresh key, for all-in-one without configured secrets, and for tests.
    pub fn random() -> Self {
        Self(super::random::bytes())
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The text form that [`SecretKey::from_base64`] reads. For handing a key on, never for logs.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// A key for one purpose: HKDF-SHA-256 (RFC 5869) without salt, `label` as info. Every use of
    /// a secret that is no fact of the wire has a label of its own, so that a value made for one
    /// purpose is worthless for another.
    pub fn derive(&self, label: &str) -> Self {
        let mut out = [0; 32];
        self.expand(label, &mut out);
        Self(out)
    }

    /// HKDF-SHA-256 of this key into `out`, at most 8,160 bytes.
    pub(crate) fn expand(&self, label: &str, out: &mut [u8]) {
        expand(&self.0, label, out);
    }

    /// Names a key in logs and on `/status` without telling it: 16 hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        let derived = self.derive("postern/fingerprint");
        hex::encode(derived.0.iter().copied().take(8).collect::<Vec<_>>())
    }
}

/// HKDF-SHA-256 without salt.
pub(crate) fn expand(secret: &[u8], label: &str, out: &mut [u8]) {
    // Fails only above 255 blocks; no caller asks for more than two.
    if Hkdf::<Sha256>::new(None, secret)
        .expand(label.as_bytes(), out)
        .is_err()
    {
        debug_assert!(false, "HKDF output of {} bytes", out.len());
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.fingerprint())
    }
}

impl PartialEq for SecretKey {
    fn eq(&self, other: &Self) -> bool {
        super::equal(&self.0, &other.0)
    }
}

impl Eq for SecretKey {}

/// Whether this secret stands on a public page, for instance in the example of the High
/// Availability page: everybody knows it, so a start with it must warn loudly.
pub fn is_published(key: &SecretKey) -> bool {
    let fingerprint = key.fingerprint();
    PUBLISHED_SECRETS.iter().any(|known| *known == fingerprint)
}

/// Fingerprints of secrets that are printed publicly. The secrets themselves stand in the tests.
const PUBLISHED_SECRETS: [&str; 4] = [
    // cookie_secret and shared_secret of the High Availability page
    "317df17d9e9c6c84",
    "b20f12ac4015800e",
    // all zeros, and 0 … 31: what people type when they try something out
    "58f09353f4039eb0",
    "57d350b3cf93f8d4",
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn s21_wrong_length_is_refused() {
        for length in [0, 1, 16, 31, 33, 64] {
            let text = STANDARD.encode(vec![7; length]);
            assert_eq!(
                SecretKey::from_base64(&text),
                Err(KeyError::WrongLength(length))
            );
        }
        assert_eq!(
            SecretKey::from_base64("not base64!"),
            Err(KeyError::NotBase64)
        );
        let unpadded = STANDARD.encode([7; 32]).trim_end_matches('=').to_owned();
        assert_eq!(SecretKey::from_base64(&unpadded), Err(KeyError::NotBase64));
        SecretKey::from_base64(&format!(" {}\n", STANDARD.encode([7; 32]))).unwrap();
    }

    #[test]
    fn s21_published_secrets_are_known() {
        let published = [
            "WwMtDXWaRDMBQCylle8OJ+w4kLIDIGd8W3cB4/zFFtg=",
            "9OkZR6hwfmVD3a7Sfmgq58lUbFJGGz4hl/R9xbHFCAg=",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        ];
        let fingerprints: Vec<String> = published
            .map(|text| SecretKey::from_base64(text).unwrap().fingerprint())
            .to_vec();
        assert_eq!(fingerprints, PUBLISHED_SECRETS);
        assert!(
            published
                .iter()
                .all(|text| is_published(&SecretKey::from_base64(text).unwrap()))
        );
        assert!(!is_published(&SecretKey::random()));
    }

    #[test]
    fn s16_debug_tells_no_secret() {
        let key = SecretKey::random();
        let shown = format!("{key:?}");
        assert!(!shown.contains(&key.to_base64()));
        assert!(!shown.contains(&hex::encode(key.as_bytes())));
        let error = SecretKey::from_base64("c2VjcmV0").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("c2VjcmV0"));
    }

    #[test]
    fn labels_give_different_keys() {
        let key = SecretKey::random();
        assert_eq!(key.derive("a"), key.derive("a"));
        assert_ne!(key.derive("a"), key.derive("b"));
        assert_ne!(key.derive("a"), key);
    }

    proptest! {
        #[test]
        fn text_form_returns(bytes: [u8; 32]) {
            let key = SecretKey::from_bytes(bytes);
            prop_assert_eq!(SecretKey::from_base64(&key.to_base64()).unwrap(), key);
        }

        #[test]
        fn reading_never_panics(text in ".{0,100}") {
            let _ = SecretKey::from_base64(&text);
        }
    }
}
