//! Payloads at rest: sealed with XChaCha20-Poly1305, bound to the record's type, id and version.
//!
//! In clear stay type, id, version and times; what a filter looks up is kept as a keyed hash.
//! Sealed form: format (1 byte, 1) ‖ key id (8 bytes) ‖ ciphertext ‖ tag ‖ nonce.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use hmac::{Hmac, Mac as _};
use postern_common::crypto::keys::SecretKey;
use postern_common::crypto::seal;
use prost::Message as _;
use prost_types::Any;
use sha2::Sha256;

const FORMAT: u8 = 1;

/// Tells which key sealed something, without telling the key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyId([u8; 8]);

impl KeyId {
    fn of(key: &SecretKey) -> Self {
        let derived = key.derive("postern/at-rest/key-id");
        let mut id = [0; 8];
        for (to, from) in id.iter_mut().zip(derived.as_bytes()) {
            *to = *from;
        }
        Self(id)
    }

    pub fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The keyed hash of a field's value.
pub type FieldHash = Vec<u8>;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error(
        "record {kind} {id:?} is sealed with key {key}, which is not among those configured; add it to \
         databroker_storage_keys (or, if that is unset, the old secret to shared_secret)"
    )]
    UnknownKey {
        kind: String,
        id: String,
        key: KeyId,
    },
    #[error(
        "record {kind} {id:?} does not open: it was changed in the storage, or moved from another record"
    )]
    Broken { kind: String, id: String },
    #[error(
        "what is stored was sealed with key {found}, which is not among those configured ({configured}); nothing was \
         read or written. Add that key to databroker_storage_keys (or, if that is unset, the old secret to \
         shared_secret)"
    )]
    OtherKeys { found: KeyId, configured: String },
}

/// How payloads are kept. Clones share the keys; a new configuration replaces them.
#[derive(Clone)]
pub struct Payloads(Form);

#[derive(Clone)]
enum Form {
    /// As they are: in memory.
    Clear,
    Sealed(Arc<ArcSwap<Vec<StorageKey>>>),
}

/// A configured key and what is derived from it.
struct StorageKey {
    id: KeyId,
    seal: SecretKey,
    index: SecretKey,
}

impl Payloads {
    pub fn clear() -> Self {
        Self(Form::Clear)
    }

    /// The first key seals; all of them open. `storage` is `databroker_storage_keys`, `shared` is `shared_secret`,
    /// from which a key is derived that opens what was written before there were storage keys, and that seals when
    /// there are none.
    pub fn sealed(storage: &[SecretKey], shared: &[SecretKey]) -> Self {
        Self(Form::Sealed(Arc::new(ArcSwap::from_pointee(derive(
            storage, shared,
        )))))
    }

    /// Takes over other keys.
    pub fn replace(&self, storage: &[SecretKey], shared: &[SecretKey]) {
        if let Form::Sealed(keys) = &self.0 {
            keys.store(Arc::new(derive(storage, shared)));
        }
    }

    /// The key that seals now.
    pub fn current(&self) -> Option<KeyId> {
        match &self.0 {
            Form::Clear => None,
            Form::Sealed(keys) => keys.load().first().map(|key| key.id),
        }
    }

    /// Refuses a storage that was sealed with a key we do not have, before anything is read or written.
    pub fn accept(&self, found: KeyId) -> Result<(), SealError> {
        let Form::Sealed(keys) = &self.0 else {
            return Ok(());
        };
        let keys = keys.load();
        if keys.iter().any(|key| key.id == found) {
            return Ok(());
        }
        let configured: Vec<_> = keys.iter().map(|key| key.id.to_string()).collect();
        Err(SealError::OtherKeys {
            found,
            configured: configured.join(", "),
        })
    }

    /// The stored form of a payload; nothing for no payload.
    pub fn encode(&self, kind: &str, id: &str, version: u64, data: Option<&Any>) -> Vec<u8> {
        let Some(data) = data else {
            return Vec::new();
        };
        let plain = data.encode_to_vec();
        let Form::Sealed(keys) = &self.0 else {
            return plain;
        };
        keys.load().first().map_or_else(Vec::new, |key| {
            let mut out = vec![FORMAT];
            out.extend_from_slice(key.id.as_bytes());
            out.extend(seal::seal(&key.seal, &plain, &aad(kind, id, version)));
            out
        })
    }

    pub fn decode(
        &self,
        kind: &str,
        id: &str,
        version: u64,
        stored: &[u8],
    ) -> Result<Option<Any>, SealError> {
        let broken = || SealError::Broken {
            kind: kind.to_owned(),
            id: id.to_owned(),
        };
        if stored.is_empty() {
            return Ok(None);
        }
        let plain = match &self.0 {
            Form::Clear => stored.to_vec(),
            Form::Sealed(keys) => {
                let (key_id, sealed) = split(stored).ok_or_else(broken)?;
                let keys = keys.load();
                let key = keys.iter().find(|key| key.id == key_id).ok_or_else(|| {
                    SealError::UnknownKey {
                        kind: kind.to_owned(),
                        id: id.to_owned(),
                        key: key_id,
                    }
                })?;
                seal::open(&key.seal, sealed, &aad(kind, id, version)).map_err(|_| broken())?
            }
        };
        Any::decode(plain.as_slice())
            .map(Some)
            .map_err(|_| broken())
    }

    /// Which key made a stored form.
    pub fn key_of(stored: &[u8]) -> Option<KeyId> {
        split(stored).map(|(key, _)| key)
    }

    /// Whether the stored form should be made anew, because another key than the first made it.
    pub fn is_stale(&self, stored: &[u8]) -> bool {
        self.current()
            .zip(Self::key_of(stored))
            .is_some_and(|(current, key)| key != current)
    }

    /// What is kept in the index for the value of a field.
    pub fn field_hash(&self, kind: &str, path: &str, value: &str) -> FieldHash {
        self.field_hashes(kind, path, value).swap_remove(0)
    }

    /// What may be in the index for the value of a field, the first key's first; never empty.
    pub fn field_hashes(&self, kind: &str, path: &str, value: &str) -> Vec<FieldHash> {
        let hash = |key: &[u8]| field_hash(key, kind, path, value);
        // In memory a hash hides nothing; it only makes keys of one length.
        let plain = || vec![hash(&[0; 32])];
        match &self.0 {
            Form::Clear => plain(),
            Form::Sealed(keys) => match keys.load().as_slice() {
                [] => plain(),
                keys => keys.iter().map(|key| hash(key.index.as_bytes())).collect(),
            },
        }
    }
}

fn derive(storage: &[SecretKey], shared: &[SecretKey]) -> Vec<StorageKey> {
    let derived = shared.iter().map(|key| key.derive("postern/at-rest"));
    storage
        .iter()
        .cloned()
        .chain(derived)
        .map(|key| StorageKey {
            id: KeyId::of(&key),
            index: key.derive("postern/at-rest/index"),
            seal: key,
        })
        .collect()
}

fn split(stored: &[u8]) -> Option<(KeyId, &[u8])> {
    let (format, rest) = stored.split_first()?;
    let (key, sealed) = rest.split_at_checked(8)?;
    (*format == FORMAT).then_some((KeyId::from_bytes(key)?, sealed))
}

/// Lengths in front, so that no two records share it.
fn aad(kind: &str, id: &str, version: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(kind.len() + id.len() + 24);
    for part in [kind, id] {
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(&version.to_be_bytes());
    out
}

fn field_hash(key: &[u8], kind: &str, path: &str, value: &str) -> FieldHash {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        // HMAC takes keys of any length.
        return FieldHash::new();
    };
    for part in [kind, path, value] {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part.as_bytes());
    }
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any() -> Any {
        Any {
            type_url: "type.googleapis.com/session.Session".to_owned(),
            value: b"token".to_vec(),
        }
    }

    #[test]
    fn s19_a_wrong_key_or_place_gives_an_error_never_garbage() {
        let (one, two) = (SecretKey::random(), SecretKey::random());
        let sealed = Payloads::sealed(std::slice::from_ref(&one), &[]);
        let stored = sealed.encode("t", "i", 7, Some(&any()));
        assert!(!stored.windows(5).any(|it| it == b"token"));
        assert_eq!(sealed.decode("t", "i", 7, &stored), Ok(Some(any())));

        let other = Payloads::sealed(&[two], std::slice::from_ref(&one));
        assert!(matches!(
            other.decode("t", "i", 7, &stored),
            Err(SealError::UnknownKey { .. })
        ));
        assert!(other.accept(sealed.current().unwrap()).is_err());
        for (kind, id, version) in [("t", "i", 8), ("t", "j", 7), ("ti", "", 7)] {
            let got = sealed.decode(kind, id, version, &stored);
            assert!(matches!(got, Err(SealError::Broken { .. })), "{got:?}");
        }
        for at in 0..stored.len() {
            let mut changed = stored.clone();
            changed[at] ^= 1;
            assert!(sealed.decode("t", "i", 7, &changed).is_err(), "byte {at}");
            assert!(
                sealed.decode("t", "i", 7, &stored[..at]).is_err() || at == 0,
                "cut at {at}"
            );
        }
    }

    #[test]
    fn s19_keys_rotate_with_the_old_ones_still_readable() {
        let (old, new) = (SecretKey::random(), SecretKey::random());
        let before = Payloads::sealed(std::slice::from_ref(&old), &[]);
        let after = Payloads::sealed(&[new, old], &[]);
        let stored = before.encode("t", "i", 1, Some(&any()));
        assert_eq!(after.decode("t", "i", 1, &stored), Ok(Some(any())));
        assert!(after.is_stale(&stored) && !before.is_stale(&stored));
        assert!(
            after
                .field_hashes("t", "f", "v")
                .contains(&before.field_hash("t", "f", "v"))
        );
    }

    #[test]
    fn what_the_shared_secret_sealed_stays_readable_after_storage_keys_are_set() {
        let shared = [SecretKey::random()];
        let before = Payloads::sealed(&[], &shared);
        let stored = before.encode("t", "i", 1, Some(&any()));
        let after = Payloads::sealed(&[SecretKey::random()], &shared);
        assert_eq!(after.decode("t", "i", 1, &stored), Ok(Some(any())));
        // The secret itself is not the key.
        assert!(
            Payloads::sealed(&shared, &[])
                .decode("t", "i", 1, &stored)
                .is_err()
        );
    }

    #[test]
    fn hashes_keep_type_field_and_value_apart() {
        let payloads = Payloads::sealed(&[SecretKey::random()], &[]);
        let all = [
            ("a", "b", "c"),
            ("ab", "", "c"),
            ("a", "bc", ""),
            ("a", "b", "d"),
            ("x", "b", "c"),
        ];
        let hashes: std::collections::HashSet<_> = all
            .iter()
            .map(|(kind, path, value)| payloads.field_hash(kind, path, value))
            .collect();
        assert_eq!(hashes.len(), all.len());
    }
}
