//! Keys and the formats that are made with them.
//!
//! Everything here is a pure function of its arguments: the time and random bytes come in from
//! outside, the latter from [`random`], the only place that asks the system for them. The formats
//! are facts of the wire, shared with Pomerium's services and clients; the tests hold them to
//! known answers.

pub mod bearer_id;
pub mod binding;
pub mod form;
pub mod handle;
pub(crate) mod jws;
pub mod keys;
pub mod provider_id;
pub mod random;
pub mod seal;
pub mod signed_url;
pub mod state;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

/// base64url with padding, as Pomerium writes signatures and sealed values.
pub(crate) const B64_URL_PADDED: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// Compares in time that depends on the lengths only.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    subtle::ConstantTimeEq::ct_eq(a, b).into()
}

/// base64url without padding (RFC 7515 section 2), as JOSE and our own values use it.
pub(crate) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads what [`base64url`] writes.
pub(crate) fn from_base64url(text: &str) -> Option<Vec<u8>> {
    base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(text)
        .ok()
}

#[cfg(test)]
pub(crate) mod vectors {
    //! The inputs that the known answers share.

    use super::keys::SecretKey;

    /// 2026-01-01 00:00:00 UTC.
    pub(crate) const T: i64 = 1_767_225_600;

    /// The shared key: bytes 00 … 1f.
    pub(crate) fn k() -> SecretKey {
        SecretKey::from_base64("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap()
    }

    /// The cookie key: bytes 40 … 5f.
    pub(crate) fn c() -> SecretKey {
        SecretKey::from_base64("QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXWFlaW1xdXl8=").unwrap()
    }

    /// The nonce: bytes 80 … 97.
    pub(crate) fn nonce() -> [u8; 24] {
        std::array::from_fn(|i| 0x80 + u8::try_from(i).unwrap())
    }

    pub(crate) fn at(seconds: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(seconds).unwrap()
    }
}
