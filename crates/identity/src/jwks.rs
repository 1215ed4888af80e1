//! A provider's public keys (RFC 7517).

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde::Deserialize;

use crate::error::ProviderError;

/// More keys than this are not looked at.
const MAX_KEYS: usize = 64;

/// The signature keys of a provider. Symmetric keys and keys of unknown kinds are left out: what
/// everybody can read can't prove anything, and what we can't use must not spoil the rest.
#[derive(Debug, Default)]
pub(crate) struct Jwks(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    /// The only algorithm that this key is for, when the set says so.
    algorithm: Option<String>,
    curve: Option<EllipticCurve>,
    decoding: DecodingKey,
}

impl Jwks {
    pub fn parse(body: &[u8]) -> Result<Self, ProviderError> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_slice(body)
            .map_err(|e| ProviderError::invalid(format!("the key set is unreadable: {e}")))?;
        let keys = set.keys.into_iter().filter_map(Key::parse).take(MAX_KEYS);
        Ok(Self(keys.collect()))
    }

    /// The keys that a signature with this header can have been made with.
    pub fn candidates(&self, algorithm: Algorithm, id: Option<&str>) -> Vec<&DecodingKey> {
        self.0
            .iter()
            .filter(|key| id.is_none() || key.id.is_none() || key.id.as_deref() == id)
            .filter(|key| key.suits(algorithm))
            .map(|key| &key.decoding)
            .collect()
    }
}

impl Key {
    fn parse(value: serde_json::Value) -> Option<Self> {
        // Read here: the typed form knows fewer algorithms than providers publish.
        let text = |name: &str| value.get(name).and_then(|v| v.as_str()).map(str::to_owned);
        let (id, algorithm) = (text("kid"), text("alg"));
        let mut bare = value;
        if let Some(members) = bare.as_object_mut() {
            members.retain(|name, _| {
                matches!(name.as_str(), "kty" | "n" | "e" | "crv" | "x" | "y" | "use")
            });
        }
        let jwk: Jwk = serde_json::from_value(bare).ok()?;
        if matches!(jwk.common.public_key_use, Some(ref u) if *u != PublicKeyUse::Signature) {
            return None;
        }
        let curve = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => None,
            AlgorithmParameters::EllipticCurve(p) => Some(p.curve.clone()),
            AlgorithmParameters::OctetKeyPair(p) => Some(p.curve.clone()),
            _ => return None,
        };
        let decoding = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Self {
            id,
            algorithm,
            curve,
            decoding,
        })
    }

    fn suits(&self, algorithm: Algorithm) -> bool {
        let kind = match algorithm {
            Algorithm::RS256
            | Algorithm::RS384
            | Algorithm::RS512
            | Algorithm::PS256
            | Algorithm::PS384
            | Algorithm::PS512 => self.decoding.family() == AlgorithmFamily::Rsa,
            Algorithm::ES256 => self.curve == Some(EllipticCurve::P256),
            Algorithm::ES384 => self.curve == Some(EllipticCurve::P384),
            Algorithm::EdDSA => self.curve == Some(EllipticCurve::Ed25519),
            _ => false,
        };
        kind && self
            .algorithm
            .as_deref()
            .is_none_or(|only| only == name(algorithm))
    }
}

/// Algorithms that are accepted at all: asymmetric ones only.
pub(crate) const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// An algorithm's name in a JOSE header (RFC 7518 3.1).
pub(crate) fn name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::RS256 => "RS256",
        Algorithm::RS384 => "RS384",
        Algorithm::RS512 => "RS512",
        Algorithm::PS256 => "PS256",
        Algorithm::PS384 => "PS384",
        Algorithm::PS512 => "PS512",
        Algorithm::ES256 => "ES256",
        Algorithm::ES384 => "ES384",
        Algorithm::EdDSA => "EdDSA",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const X: &str = "oLZD26lGXDHQBhafGelEfD7e6f3iDcYROV7TlYHtquc";
    const Y: &str = "DxP4R8IH2jHKgDxZRY58iayK2mtXgpWBNs0SkgTXeaU";

    #[test]
    fn only_public_signature_keys_of_the_right_kind() {
        let set = json!({"keys": [
            {"kty": "EC", "crv": "P-256", "x": X, "y": Y, "kid": "a", "x5c": 7},
            {"kty": "EC", "crv": "P-256", "x": X, "y": Y, "kid": "enc", "use": "enc"},
            {"kty": "EC", "crv": "P-256", "x": X, "y": Y, "kid": "alg", "alg": "ES512"},
            {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"},
            {"kty": "AKP", "kid": "new"},
        ]});
        let keys = Jwks::parse(set.to_string().as_bytes()).unwrap();
        assert_eq!(keys.candidates(Algorithm::ES256, Some("a")).len(), 1);
        assert_eq!(keys.candidates(Algorithm::ES256, None).len(), 1);
        for (algorithm, id) in [
            (Algorithm::ES256, "enc"),
            (Algorithm::ES256, "alg"),
            (Algorithm::ES384, "a"),
            (Algorithm::RS256, "a"),
            (Algorithm::HS256, "a"),
            (Algorithm::HS256, "shared"),
        ] {
            assert!(
                keys.candidates(algorithm, Some(id)).is_empty(),
                "{algorithm:?} {id}"
            );
        }
    }
}
