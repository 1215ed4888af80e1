//! Compact JWS (RFC 7515) under HS256, the only algorithm of handles and service tokens.

use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use super::{base64url, from_base64url, keys::SecretKey};

/// `{"alg":"HS256","typ":"JWT"}`.
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";

/// Longest token that is looked at. Headers and cookies are bounded before, this holds elsewhere.
const MAX_LENGTH: usize = 16 * 1024;

/// Why a token is refused. Which of the keys it was not is nobody's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwsError {
    #[error("not a compact JWS, or too long")]
    Malformed,
    #[error("signed with another algorithm than HS256")]
    Algorithm,
    #[error("signature of none of the shared secrets")]
    Signature,
}

/// The payload as bytes, members of every object in alphabetical order.
pub(crate) fn canonical(payload: &serde_json::Value) -> Vec<u8> {
    // serde_json's own map is sorted; a test notices if a dependency turns that off.
    payload.to_string().into_bytes()
}

pub(crate) fn sign(key: &SecretKey, payload: &serde_json::Value) -> String {
    let message = format!("{HEADER}.{}", base64url(canonical(payload)));
    let tag = mac(key, message.as_bytes()).finalize().into_bytes();
    format!("{message}.{}", base64url(tag))
}

/// Checks algorithm and signature, and returns the payload's bytes.
pub(crate) fn verify(keys: &[SecretKey], token: &str) -> Result<Vec<u8>, JwsError> {
    if token.len() > MAX_LENGTH {
        return Err(JwsError::Malformed);
    }
    let (message, signature) = token.rsplit_once('.').ok_or(JwsError::Malformed)?;
    let (header, payload) = message.split_once('.').ok_or(JwsError::Malformed)?;
    let header = from_base64url(header).ok_or(JwsError::Malformed)?;
    let header: Header = serde_json::from_slice(&header).map_err(|_| JwsError::Malformed)?;
    if header.alg != "HS256" || header.crit.is_some() {
        return Err(JwsError::Algorithm);
    }
    let signature = from_base64url(signature).ok_or(JwsError::Malformed)?;
    if !keys.iter().any(|key| {
        mac(key, message.as_bytes())
            .verify_slice(&signature)
            .is_ok()
    }) {
        return Err(JwsError::Signature);
    }
    from_base64url(payload).ok_or(JwsError::Malformed)
}

#[derive(serde::Deserialize)]
struct Header {
    alg: String,
    crit: Option<serde_json::Value>,
}

fn mac(key: &SecretKey, message: &[u8]) -> Hmac<Sha256> {
    mac_of(key.as_bytes(), message)
}

/// HMAC-SHA-256 over `message`.
pub(crate) fn mac_of(key: &[u8; 32], message: &[u8]) -> Hmac<Sha256> {
    // A key of 32 bytes fits in a block, so the block form never fails and needs no error.
    let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
    for (to, from) in block.iter_mut().zip(key) {
        *to = *from;
    }
    let mut mac = Hmac::<Sha256>::new(&block);
    mac.update(message);
    mac
}
