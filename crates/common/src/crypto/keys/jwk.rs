//! Public keys in their published form (RFC 7517), byte for byte as Pomerium publishes them.

use sha2::{Digest as _, Sha256};

use crate::crypto::base64url;

/// The key set at `/.well-known/pomerium/jwks.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jwks {
    /// JSON text, without a newline.
    pub body: String,
    /// Value of the `ETag` header, with its quotes.
    pub etag: String,
}

impl Jwks {
    pub(super) fn new<'a>(keys: impl Iterator<Item = &'a str>) -> Self {
        let body = format!(r#"{{"keys":[{}]}}"#, keys.collect::<Vec<_>>().join(","));
        let etag = etag(body.as_bytes());
        Self { body, etag }
    }
}

/// FNV-1 with 64 bits, in hexadecimal without leading zeros, quoted.
pub(super) fn etag(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        hash.wrapping_mul(0x0100_0000_01b3) ^ u64::from(*byte)
    });
    format!("\"{hash:x}\"")
}

/// A public key, as far as a JWK shows it.
pub(super) enum Public<'a> {
    Ec {
        curve: &'static str,
        x: &'a [u8],
        y: &'a [u8],
    },
    Rsa {
        modulus: &'a [u8],
        exponent: &'a [u8],
    },
    Ed25519(&'a [u8]),
}

impl Public<'_> {
    /// `kid`: the RFC 7638 thumbprint (SHA-256), in lower-case hexadecimal.
    pub(super) fn kid(&self) -> String {
        let canonical = match self {
            Self::Ec { curve, x, y } => format!(
                r#"{{"crv":"{curve}","kty":"EC","x":"{}","y":"{}"}}"#,
                base64url(x),
                base64url(y)
            ),
            Self::Rsa { modulus, exponent } => format!(
                r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#,
                base64url(exponent),
                base64url(modulus)
            ),
            Self::Ed25519(x) => {
                format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, base64url(x))
            }
        };
        hex::encode(Sha256::digest(canonical))
    }

    /// The JWK, members in the order that Pomerium has.
    pub(super) fn jwk(&self, kid: &str, alg: &str) -> String {
        match self {
            Self::Ec { curve, x, y } => format!(
                r#"{{"use":"sig","kty":"EC","kid":"{kid}","crv":"{curve}","alg":"{alg}","x":"{}","y":"{}"}}"#,
                base64url(x),
                base64url(y)
            ),
            Self::Rsa { modulus, exponent } => format!(
                r#"{{"use":"sig","kty":"RSA","kid":"{kid}","alg":"{alg}","n":"{}","e":"{}"}}"#,
                base64url(modulus),
                base64url(exponent)
            ),
            Self::Ed25519(x) => format!(
                r#"{{"use":"sig","kty":"OKP","kid":"{kid}","crv":"Ed25519","alg":"{alg}","x":"{}"}}"#,
                base64url(x)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::from_base64url;

    #[test]
    fn known_kid() {
        let x = from_base64url("oLZD26lGXDHQBhafGelEfD7e6f3iDcYROV7TlYHtquc").unwrap();
        let y = from_base64url("DxP4R8IH2jHKgDxZRY58iayK2mtXgpWBNs0SkgTXeaU").unwrap();
        assert_eq!(
            Public::Ec {
                curve: "P-256",
                x: &x,
                y: &y
            }
            .kid(),
            "d591aa6e01e57ea8b80f349dc5de8517aa7b1f12f77700d89cbdba83938c0c61"
        );
    }

    #[test]
    fn etag_has_no_leading_zeros() {
        assert_eq!(etag(b""), "\"cbf29ce484222325\"");
        // FNV-1 64 of "a", from the test suite of the algorithm's authors
        assert_eq!(etag(b"a"), "\"af63bd4c8601b7be\"");
    }
}
