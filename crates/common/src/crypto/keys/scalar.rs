//! A private key on P-256 out of derived bytes.

use p256::elliptic_curve::{
    Curve as _,
    bigint::{Encoding as _, NonZero, U256, U320},
};

/// 40 bytes, as a big-endian number modulo (order − 1), plus 1, are the private scalar: the way
/// of all derived keys of Pomerium.
pub(crate) fn p256_key(wide: &[u8; 40]) -> Option<p256::SecretKey> {
    let modulus: U320 = (&p256::NistP256::ORDER.wrapping_sub(&U256::ONE)).into();
    let modulus = Option::<NonZero<U320>>::from(NonZero::new(modulus))?;
    let scalar: U256 = (&U320::from_be_slice(wide).rem(&modulus)).into();
    let scalar = zeroize::Zeroizing::new(scalar.wrapping_add(&U256::ONE).to_be_bytes());
    p256::SecretKey::from_slice(scalar.as_ref()).ok()
}
