//! Signed URLs: how proxy, authorize and authenticate pass a browser on to each other.
//!
//! HMAC-SHA-512/256 under the shared secret covers scheme, host, path, every parameter and both
//! times. Whoever handles such a request reads its parameters from the [`Verified`] that
//! [`verify`] returns, never from the body or from the query again.

use base64::Engine as _;
use hmac::{Hmac, Mac as _};
use jiff::{SignedDuration, Timestamp};
use sha2::Sha512_256;
use url::Url;

use super::{B64_URL_PADDED, form, keys::SecretKey};

/// Names of the parameters that travel in signed URLs.
pub mod param {
    pub const ISSUED: &str = "pomerium_issued";
    pub const EXPIRY: &str = "pomerium_expiry";
    pub const SIGNATURE: &str = "pomerium_signature";
    pub const REDIRECT_URI: &str = "pomerium_redirect_uri";
    pub const CALLBACK_URI: &str = "pomerium_callback_uri";
    pub const IDP_ID: &str = "pomerium_idp_id";
    pub const ADDITIONAL_HOSTS: &str = "pomerium_additional_hosts";
    pub const SESSION_ENCRYPTED: &str = "pomerium_session_encrypted";
    pub const PROGRAMMATIC: &str = "pomerium_programmatic";
    pub const TRACEPARENT: &str = "pomerium_traceparent";
    pub const TRACESTATE: &str = "pomerium_tracestate";
    /// The handle, handed to a program.
    pub const JWT: &str = "pomerium_jwt";
    /// Postern's own: ties a callback to the browser that began, see [`crate::crypto::binding`].
    pub const BINDING: &str = "pomerium_binding";
    pub const BINDING_NONCE: &str = "pomerium_binding_nonce";
    /// Postern's own: bindings of the further hosts, in their order.
    pub const HOP_BINDINGS: &str = "pomerium_hop_bindings";
    /// Postern's own, on the way to sign-out: which session and which provider end.
    pub const SESSION_ID: &str = "pomerium_session_id";
}

/// How long a signed URL may be used.
pub const LIFETIME: SignedDuration = SignedDuration::from_mins(5);

/// How far the clocks of two services may differ.
pub const LEEWAY: SignedDuration = SignedDuration::from_secs(60);

/// Why a URL is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("the link is not signed")]
    Missing,
    #[error("the link is damaged: its query can't be read, or repeats what may occur once")]
    Malformed,
    #[error("the link's signature is not of this deployment, or the link was changed")]
    Signature,
    #[error("the link has expired")]
    Expired,
    #[error("the link is from the future: clocks differ")]
    NotYet,
}

/// The parameters of a URL whose signature held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified(Vec<(String, String)>);

impl Verified {
    /// The first value of a parameter. An empty one counts as absent, as it does for Pomerium.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
            .filter(|v| !v.is_empty())
    }

    /// All parameters, in the order of the URL, without the signature.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }
}

/// Signs `url` for the next five minutes. Times and signature it already had are replaced, a
/// fragment is dropped, as it never reaches a server.
pub fn sign(key: &SecretKey, url: &Url, now: Timestamp) -> Url {
    let issued = now.as_second();
    let expiry = issued + LIFETIME.as_secs();
    let (issued_text, expiry_text) = (issued.to_string(), expiry.to_string());
    let mut pairs: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(name, _)| ![param::ISSUED, param::EXPIRY, param::SIGNATURE].contains(&&**name))
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    pairs.push((param::ISSUED.to_owned(), issued_text.clone()));
    pairs.push((param::EXPIRY.to_owned(), expiry_text.clone()));
    let mut signed = url.clone();
    signed.set_fragment(None);
    signed.set_query(None);
    let text = message(
        signed.as_str(),
        borrowed(&pairs),
        &issued_text,
        &expiry_text,
    );
    let tag = mac(key.as_bytes(), &text).finalize().into_bytes();
    pairs.push((param::SIGNATURE.to_owned(), B64_URL_PADDED.encode(tag)));
    signed.set_query(Some(&form::encode_sorted(borrowed(&pairs))));
    signed
}

/// Verifies a URL that is at hand as one. For a request, use [`verify_received`].
pub fn verify(keys: &[SecretKey], url: &Url, now: Timestamp) -> Result<Verified, SignatureError> {
    let mut base = url.clone();
    base.set_fragment(None);
    base.set_query(None);
    verify_parts(keys, base.as_str(), url.query().unwrap_or_default(), now)
}

/// Verifies the URL of a request from what was received: the authority of its `Host`, its path
/// and its query, byte for byte. The scheme is always https, as TLS may end in front of us.
pub fn verify_received(
    keys: &[SecretKey],
    host: &str,
    path: &str,
    query: &str,
    now: Timestamp,
) -> Result<Verified, SignatureError> {
    // Only what an authority is made of, so that no text can be read both ways.
    if !host
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.:[]".contains(&b))
    {
        return Err(SignatureError::Malformed);
    }
    let base = format!("https://{}{path}", host.to_ascii_lowercase());
    verify_parts(keys, &base, query, now)
}

fn verify_parts(
    keys: &[SecretKey],
    base: &str,
    query: &str,
    now: Timestamp,
) -> Result<Verified, SignatureError> {
    let mut pairs = form::parse(query).map_err(|_| SignatureError::Malformed)?;
    let (issued, expiry, signature) = (
        single(&pairs, param::ISSUED)?,
        single(&pairs, param::EXPIRY)?,
        single(&pairs, param::SIGNATURE)?,
    );
    let tag = B64_URL_PADDED
        .decode(&signature)
        .map_err(|_| SignatureError::Malformed)?;
    pairs.retain(|(name, _)| name != param::SIGNATURE);
    let text = message(base, borrowed(&pairs), &issued, &expiry);
    if !keys
        .iter()
        .any(|key| mac(key.as_bytes(), &text).verify_slice(&tag).is_ok())
    {
        return Err(SignatureError::Signature);
    }
    let issued = seconds(&issued)?;
    let expiry = seconds(&expiry)?;
    let (now, leeway) = (now.as_second(), LEEWAY.as_secs());
    if now > expiry.saturating_add(leeway) {
        return Err(SignatureError::Expired);
    }
    if issued > now.saturating_add(leeway) {
        return Err(SignatureError::NotYet);
    }
    Ok(Verified(pairs))
}

/// The value of a parameter that must occur exactly once.
fn single(pairs: &[(String, String)], name: &str) -> Result<String, SignatureError> {
    let mut values = pairs.iter().filter(|(n, _)| n == name).map(|(_, v)| v);
    match (values.next(), values.next()) {
        (None, _) => Err(SignatureError::Missing),
        (Some(value), None) => Ok(value.clone()),
        (Some(_), Some(_)) => Err(SignatureError::Malformed),
    }
}

fn seconds(text: &str) -> Result<i64, SignatureError> {
    text.parse().map_err(|_| SignatureError::Malformed)
}

/// What is signed: the URL with its query sorted, directly followed by both times.
fn message<'a>(
    base: &str,
    pairs: impl Iterator<Item = (&'a str, &'a str)>,
    issued: &str,
    expiry: &str,
) -> String {
    format!("{base}?{}{issued} {expiry}", form::encode_sorted(pairs))
}

fn borrowed(pairs: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
    pairs.iter().map(|(n, v)| (n.as_str(), v.as_str()))
}

fn mac(key: &[u8], message: &str) -> Hmac<Sha512_256> {
    // A key of up to 128 bytes fits in a block, so the block form never fails; ours have 32.
    let mut block = hmac::digest::Key::<Hmac<Sha512_256>>::default();
    for (to, from) in block.iter_mut().zip(key) {
        *to = *from;
    }
    let mut mac = Hmac::<Sha512_256>::new(&block);
    mac.update(message.as_bytes());
    mac
}

#[cfg(test)]
mod tests;
