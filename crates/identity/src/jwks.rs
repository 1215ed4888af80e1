//! A provider's public keys (RFC 7517).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use openidconnect::core::{CoreJsonWebKey, CoreJwsSigningAlgorithm};
use serde::Deserialize;
use serde_json::Value;

use crate::error::ProviderError;

/// More keys than this are not looked at.
const MAX_KEYS: usize = 64;

/// Shorter RSA keys prove nothing any more (NIST SP 800-131A).
const MIN_RSA_BITS: usize = 2048;

/// The signature keys of a provider. Symmetric keys and keys of unknown kinds are left out: what
/// everybody can read can't prove anything, and what we can't use must not spoil the rest.
#[derive(Debug, Default)]
pub(crate) struct Jwks(Vec<Key>);

#[derive(Debug)]
pub(crate) struct Key {
    id: Option<String>,
    /// The only algorithm that this key is for, when the set says so.
    algorithm: Option<String>,
    curve: Option<EllipticCurve>,
    pub decoding: DecodingKey,
    /// The parameters that make the key.
    members: Value,
}

impl Jwks {
    pub fn parse(body: &[u8]) -> Result<Self, ProviderError> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(body)
            .map_err(|e| ProviderError::invalid(format!("the key set is unreadable: {e}")))?;
        let keys = set.keys.into_iter().filter_map(Key::parse).take(MAX_KEYS);
        Ok(Self(keys.collect()))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The keys that a signature with this header can have been made with.
    pub fn candidates(&self, algorithm: Algorithm, id: Option<&str>) -> Vec<&Key> {
        self.0
            .iter()
            .filter(|key| id.is_none() || key.id.is_none() || key.id.as_deref() == id)
            .filter(|key| key.suits(algorithm))
            .collect()
    }
}

impl Key {
    fn parse(value: Value) -> Option<Self> {
        // Read here: the typed form knows fewer algorithms than providers publish.
        let text = |name: &str| value.get(name).and_then(|v| v.as_str()).map(str::to_owned);
        let (id, algorithm) = (text("kid"), text("alg"));
        let mut bare = value;
        if let Some(members) = bare.as_object_mut() {
            members.retain(|name, _| {
                matches!(name.as_str(), "kty" | "n" | "e" | "crv" | "x" | "y" | "use")
            });
        }
        let jwk = Jwk::deserialize(&bare).ok()?;
        if matches!(jwk.common.public_key_use, Some(ref u) if *u != PublicKeyUse::Signature) {
            return None;
        }
        let curve = match &jwk.algorithm {
            AlgorithmParameters::RSA(p) if modulus_bits(&p.n) < MIN_RSA_BITS => return None,
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
            members: bare,
        })
    }

    /// The key as openidconnect knows it, under the name that a token uses for it.
    pub fn openid(&self, id: Option<&str>) -> Option<CoreJsonWebKey> {
        let mut members = self.members.clone();
        if let (Some(id), Some(members)) = (id, members.as_object_mut()) {
            members.insert("kid".into(), id.into());
        }
        serde_json::from_value(members).ok()
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

fn modulus_bits(n: &str) -> usize {
    let bytes = URL_SAFE_NO_PAD.decode(n).unwrap_or_default();
    let mut significant = bytes.iter().skip_while(|byte| **byte == 0);
    let first = significant
        .next()
        .map_or(0, |byte| 8 - byte.leading_zeros() as usize);
    first + 8 * significant.count()
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

/// An algorithm as openidconnect knows it; `None` for what is never accepted.
pub(crate) fn openid(algorithm: Algorithm) -> Option<CoreJwsSigningAlgorithm> {
    Some(match algorithm {
        Algorithm::RS256 => CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
        Algorithm::RS384 => CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
        Algorithm::RS512 => CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
        Algorithm::PS256 => CoreJwsSigningAlgorithm::RsaSsaPssSha256,
        Algorithm::PS384 => CoreJwsSigningAlgorithm::RsaSsaPssSha384,
        Algorithm::PS512 => CoreJwsSigningAlgorithm::RsaSsaPssSha512,
        Algorithm::ES256 => CoreJwsSigningAlgorithm::EcdsaP256Sha256,
        Algorithm::ES384 => CoreJwsSigningAlgorithm::EcdsaP384Sha384,
        Algorithm::EdDSA => CoreJwsSigningAlgorithm::EdDsa,
        _ => return None,
    })
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

    #[test]
    fn s12_short_rsa_keys_prove_nothing() {
        let count = |bytes: Vec<u8>| {
            let n = URL_SAFE_NO_PAD.encode(bytes);
            let set = json!({"keys": [{"kty": "RSA", "n": n, "e": "AQAB"}]});
            let keys = Jwks::parse(set.to_string().as_bytes()).unwrap();
            keys.candidates(Algorithm::RS256, None).len()
        };
        assert_eq!(count(vec![0xff; 256]), 1);
        assert_eq!(count(vec![0xff; 128]), 0);
        let padded = [vec![0; 128], vec![0xff; 128]].concat();
        assert_eq!(count(padded), 0);
    }

    /// Both libraries mean the same by each name.
    #[test]
    fn algorithms_have_one_name() {
        for algorithm in ALGORITHMS {
            let known = serde_json::to_value(openid(algorithm).unwrap()).unwrap();
            assert_eq!(known, json!(name(algorithm)));
        }
        assert_eq!(openid(Algorithm::HS256), None);
    }
}
