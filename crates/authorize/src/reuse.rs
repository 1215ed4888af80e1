//! Keeps what was made lately, within a bound.
//!
//! Two generations: when the younger one is full it becomes the older one, and what nobody asked for
//! since the time before goes. So a look-up is one probe, and nothing has to be kept in order.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{PoisonError, RwLock};

const SHARDS: usize = 16;

/// Values by key. Callers hash, so that they can do it as their keys allow.
#[derive(Debug)]
pub struct Reuse<K, V> {
    shards: [RwLock<Generations<K, V>>; SHARDS],
    /// What one generation of a shard may weigh.
    limit: usize,
}

#[derive(Debug)]
struct Generations<K, V> {
    young: Map<K, V>,
    weight: usize,
    old: Map<K, V>,
}

type Map<K, V> = HashMap<u64, Kept<K, V>, BuildHasherDefault<AsItIs>>;

#[derive(Debug)]
struct Kept<K, V> {
    key: K,
    value: V,
    weight: usize,
}

impl<K, V: Clone> Reuse<K, V> {
    /// Holds what weighs up to `limit` together.
    pub fn new(limit: usize) -> Self {
        let generations = || Generations {
            young: Map::default(),
            weight: 0,
            old: Map::default(),
        };
        Self {
            shards: std::array::from_fn(|_| RwLock::new(generations())),
            limit: limit / SHARDS / 2,
        }
    }

    fn shard(&self, hash: u64) -> &RwLock<Generations<K, V>> {
        let [first, ..] = &self.shards;
        // Tables use the lowest and the highest bits. Always within, so the fallback is never taken.
        let index = usize::try_from((hash >> 40) % SHARDS as u64).unwrap_or_default();
        self.shards.get(index).unwrap_or(first)
    }

    /// The value whose key is the one meant.
    pub fn get(&self, hash: u64, is_meant: impl Fn(&K) -> bool) -> Option<V> {
        let shard = self.shard(hash);
        {
            let read = shard.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(kept) = read.young.get(&hash) {
                return is_meant(&kept.key).then(|| kept.value.clone());
            }
            read.old.get(&hash).filter(|kept| is_meant(&kept.key))?;
        }
        let mut write = shard.write().unwrap_or_else(PoisonError::into_inner);
        let kept = write.old.remove(&hash)?;
        let value = is_meant(&kept.key).then(|| kept.value.clone());
        let gone = write.add(hash, kept, self.limit);
        drop(write);
        // Frees many at once; others need not wait for it.
        drop(gone);
        value
    }

    pub fn insert(&self, hash: u64, key: K, value: V, weight: usize) {
        let kept = Kept { key, value, weight };
        let mut write = self
            .shard(hash)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let gone = write.add(hash, kept, self.limit);
        drop(write);
        drop(gone);
    }
}

impl<K, V> Generations<K, V> {
    /// Returns the generation that went.
    fn add(&mut self, hash: u64, kept: Kept<K, V>, limit: usize) -> Map<K, V> {
        let mut gone = Map::default();
        if self.weight + kept.weight > limit {
            gone = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
            self.weight = 0;
        }
        self.weight += kept.weight;
        if let Some(before) = self.young.insert(hash, kept) {
            self.weight = self.weight.saturating_sub(before.weight);
        }
        gone
    }
}

/// For keys that are hashes.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(reuse: &Reuse<u64, u64>, key: u64) -> Option<u64> {
        reuse.get(key, |known| *known == key)
    }

    #[test]
    fn it_stays_within_its_bound_and_keeps_what_is_used() {
        // Ten in each generation of the one shard that small numbers go to.
        let reuse = Reuse::new(10 * 2 * SHARDS);
        for key in 0..1_000 {
            reuse.insert(key, key, key + 1, 1);
            assert_eq!(get(&reuse, key), Some(key + 1));
            assert_eq!(get(&reuse, 0), Some(1), "used all the while");
        }
        let kept = (0..1_000).filter(|key| get(&reuse, *key).is_some()).count();
        assert!((10..=20).contains(&kept), "{kept}");
    }

    #[test]
    fn another_key_of_the_same_hash_is_not_found() {
        let reuse = Reuse::new(1_000);
        reuse.insert(7, "one", 1, 1);
        assert_eq!(reuse.get(7, |key| *key == "other"), None);
        assert_eq!(reuse.get(7, |key| *key == "one"), Some(1));
        reuse.insert(7, "other", 2, 1);
        assert_eq!(reuse.get(7, |key| *key == "one"), None);
    }

    #[test]
    fn what_is_heavier_than_all_else_does_not_stay_for_ever() {
        let reuse = Reuse::new(2 * SHARDS);
        reuse.insert(1, 1, 1, 1_000);
        reuse.insert(2, 2, 2, 1);
        reuse.insert(3, 3, 3, 1);
        assert_eq!(reuse.get(1, |key| *key == 1), None);
    }
}
