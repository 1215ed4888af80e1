//! `signing_key`: the private keys under which the assertion for upstreams is signed.

use std::fmt;

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
        ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        RSA_PKCS1_SHA256, RsaKeyPair,
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use p256::elliptic_curve::sec1::ToEncodedPoint as _;

use super::{SecretKey, jwk::Jwks, jwk::Public, p256_key, pem};
use crate::crypto::base64url;

/// `kid` of the signing key in the example of the High Availability page.
const PUBLISHED_KIDS: [&str; 1] =
    ["9b8d8cbaafcfe26effecc0eff939959171f69589cdecd586525ffd14454f103e"];

/// Private keys for the assertion: the first signs, all are published, so that verifiers know the
/// next key before it is used and the last one for as long as they meet it.
#[derive(Debug)]
pub struct SigningKeys {
    first: SigningKey,
    others: Vec<SigningKey>,
    jwks: Jwks,
}

/// Why `signing_key` can't be used. Blocks are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SigningKeyError {
    #[error("neither PEM nor base64 of PEM")]
    NotPem,
    #[error("PEM block {0} is damaged, not closed, or encrypted")]
    Damaged(usize),
    #[error(
        "PEM block {block} ({label}) is not a private key that can sign: EC P-256, P-384 or P-521, RSA of at least 2048 bits, or Ed25519, as SEC1, PKCS#1 or PKCS#8"
    )]
    Unsupported { block: usize, label: String },
}

/// The signature could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("signing with key {kid} failed")]
pub struct SignError {
    pub kid: String,
}

impl SigningKeys {
    /// Reads PEM, or base64 of PEM, with one or more private keys.
    pub fn from_text(text: &str) -> Result<Self, SigningKeyError> {
        let text = text.trim();
        let blocks = if text.contains("-----BEGIN ") {
            pem::blocks(text)
        } else {
            let packed: String = text.split_whitespace().collect();
            let decoded = STANDARD
                .decode(packed)
                .map_err(|_| SigningKeyError::NotPem)?;
            let decoded = zeroize::Zeroizing::new(
                String::from_utf8(decoded).map_err(|_| SigningKeyError::NotPem)?,
            );
            pem::blocks(&decoded)
        }
        .map_err(SigningKeyError::Damaged)?;
        let mut keys = Vec::new();
        for (index, block) in blocks.into_iter().enumerate() {
            keys.push(
                SigningKey::from_der(&block.der).ok_or(SigningKeyError::Unsupported {
                    block: index + 1,
                    label: block.label,
                })?,
            );
        }
        let mut keys = keys.into_iter();
        let first = keys.next().ok_or(SigningKeyError::NotPem)?;
        Ok(Self::new(first, keys.collect()))
    }

    /// The key that is used when `signing_key` is not set: every service that knows the shared
    /// secret comes to the same one.
    pub fn derived_from(shared: &SecretKey) -> Option<Self> {
        derived(shared.as_bytes()).map(|key| Self::new(key, Vec::new()))
    }

    /// Several configured entries, each read by [`SigningKeys::from_text`], as one set.
    pub fn join(sets: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut keys = sets
            .into_iter()
            .flat_map(|set| std::iter::once(set.first).chain(set.others));
        let first = keys.next()?;
        Some(Self::new(first, keys.collect()))
    }

    fn new(first: SigningKey, others: Vec<SigningKey>) -> Self {
        let jwks = Jwks::new(
            std::iter::once(&first)
                .chain(&others)
                .map(|key| key.jwk.as_str()),
        );
        Self {
            first,
            others,
            jwks,
        }
    }

    /// A compact JWS over `payload`, its members in alphabetical order, by the first key.
    pub fn sign(&self, payload: &serde_json::Value) -> Result<String, SignError> {
        let key = &self.first;
        let message = format!(
            "{}.{}",
            key.header,
            base64url(crate::crypto::jws::canonical(payload))
        );
        let signature = key.pair.sign(message.as_bytes()).ok_or_else(|| SignError {
            kid: key.kid.clone(),
        })?;
        Ok(format!("{message}.{}", base64url(signature)))
    }

    /// What is published at `/.well-known/pomerium/jwks.json`.
    pub fn jwks(&self) -> &Jwks {
        &self.jwks
    }

    /// Name of the key that signs.
    pub fn kid(&self) -> &str {
        &self.first.kid
    }

    /// Whether one of these keys stands on a public page.
    pub fn any_published(&self) -> bool {
        std::iter::once(&self.first)
            .chain(&self.others)
            .any(|key| PUBLISHED_KIDS.contains(&key.kid.as_str()))
    }
}

struct SigningKey {
    pair: Pair,
    kid: String,
    /// The JWS header, encoded.
    header: String,
    jwk: String,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.kid)
    }
}

impl SigningKey {
    /// Tries every encoding, whatever the label of the block said.
    fn from_der(der: &[u8]) -> Option<Self> {
        for (curve, algorithm) in [
            (&P256, &ECDSA_P256_SHA256_FIXED_SIGNING),
            (&P384, &ECDSA_P384_SHA384_FIXED_SIGNING),
            (&P521, &ECDSA_P521_SHA512_FIXED_SIGNING),
        ] {
            if let Ok(pair) = EcdsaKeyPair::from_private_key_der(algorithm, der) {
                return Self::ec(curve, pair);
            }
        }
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            let public = pair.public_key().as_ref().to_vec();
            return Some(Self::new(
                Pair::Ed25519(pair),
                "EdDSA",
                &Public::Ed25519(&public),
            ));
        }
        let pair = RsaKeyPair::from_pkcs8(der)
            .or_else(|_| RsaKeyPair::from_der(der))
            .ok()?;
        let public = pair.public_key();
        let modulus = public.modulus().big_endian_without_leading_zero().to_vec();
        let exponent = public.exponent().big_endian_without_leading_zero().to_vec();
        let public = Public::Rsa {
            modulus: &modulus,
            exponent: &exponent,
        };
        Some(Self::new(Pair::Rsa(Box::new(pair)), "RS256", &public))
    }

    fn ec(curve: &Curve, pair: EcdsaKeyPair) -> Option<Self> {
        let point = pair.public_key().as_ref().to_vec();
        let (x, y) = point.strip_prefix(&[4])?.split_at_checked(curve.size)?;
        let public = Public::Ec {
            curve: curve.name,
            x,
            y,
        };
        Some(Self::new(Pair::Ec(pair), curve.alg, &public))
    }

    fn new(pair: Pair, alg: &str, public: &Public<'_>) -> Self {
        let kid = public.kid();
        let header = base64url(format!(r#"{{"alg":"{alg}","kid":"{kid}","typ":"JWT"}}"#));
        let jwk = public.jwk(&kid, alg);
        Self {
            pair,
            kid,
            header,
            jwk,
        }
    }
}

struct Curve {
    name: &'static str,
    alg: &'static str,
    /// Length of a coordinate in bytes.
    size: usize,
}

const P256: Curve = Curve {
    name: "P-256",
    alg: "ES256",
    size: 32,
};
const P384: Curve = Curve {
    name: "P-384",
    alg: "ES384",
    size: 48,
};
const P521: Curve = Curve {
    name: "P-521",
    alg: "ES512",
    size: 66,
};

enum Pair {
    Ec(EcdsaKeyPair),
    Rsa(Box<RsaKeyPair>),
    Ed25519(Ed25519KeyPair),
}

impl Pair {
    fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        match self {
            Self::Ec(pair) => pair
                .sign(&random, message)
                .ok()
                .map(|s| s.as_ref().to_vec()),
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .ok()?;
                Some(signature)
            }
            Self::Ed25519(pair) => pair.try_sign(message).ok().map(|s| s.as_ref().to_vec()),
        }
    }
}

fn derived(secret: &[u8]) -> Option<SigningKey> {
    let mut wide = zeroize::Zeroizing::new([0; 40]);
    super::expand(secret, "derived-jwt-signing-key", wide.as_mut());
    let key = p256_key(&wide)?;
    let point = key.public_key().to_encoded_point(false);
    let pair = EcdsaKeyPair::from_private_key_and_public_key(
        &ECDSA_P256_SHA256_FIXED_SIGNING,
        zeroize::Zeroizing::new(key.to_bytes()).as_ref(),
        point.as_bytes(),
    )
    .ok()?;
    SigningKey::ec(&P256, pair)
}

#[cfg(test)]
mod tests;
