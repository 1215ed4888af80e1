//! The one place that asks for randomness.
//!
//! Everything else takes random bytes as an argument, so that it can be tested, and so that a
//! reader finds every use of randomness by the callers of this file.

use rand::RngCore as _;

/// Random bytes from a generator that the system seeds and that is fit for keys and nonces.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the place that everybody else is sent to"
)]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    rand::rng().fill_bytes(&mut out);
    out
}

/// A random UUID (version 4), in its usual text form.
pub fn uuid() -> String {
    let uuid = uuid::Builder::from_random_bytes(bytes()).into_uuid();
    let mut text = uuid::Uuid::encode_buffer();
    uuid.hyphenated().encode_lower(&mut text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_differ() {
        assert_ne!(bytes::<16>(), bytes::<16>());
        let id = uuid();
        assert_eq!(uuid::Uuid::parse_str(&id).unwrap().get_version_num(), 4);
    }
}
