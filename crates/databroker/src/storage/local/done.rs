//! Ids of writes that were done lately.

use std::collections::{HashSet, VecDeque};

use jiff::Timestamp;
use postern_common::rpc::WriteId;

use crate::storage::REMEMBERED;

/// Of them at most, so that they take a few megabytes.
const MOST: usize = 100_000;

#[derive(Debug, Default)]
pub(super) struct Done {
    ids: HashSet<WriteId>,
    /// The oldest first.
    by_age: VecDeque<(Timestamp, WriteId)>,
}

impl Done {
    pub(super) fn has(&mut self, id: WriteId, now: Timestamp) -> bool {
        self.forget(now, MOST);
        self.ids.contains(&id)
    }

    pub(super) fn add(&mut self, id: WriteId, now: Timestamp) {
        self.forget(now, MOST - 1);
        if self.ids.insert(id) {
            self.by_age.push_back((now, id));
        }
    }

    /// Those that are too old, and the oldest of more than `most`.
    fn forget(&mut self, now: Timestamp, most: usize) {
        while let Some((done, id)) = self.by_age.front()
            && (self.by_age.len() > most || done.duration_until(now).unsigned_abs() > REMEMBERED)
        {
            self.ids.remove(id);
            self.by_age.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_remembered_for_an_hour_and_not_without_end() {
        let mut done = Done::default();
        let (one, other) = (WriteId::random(), WriteId::random());
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        done.add(one, at(0));
        done.add(other, at(10));
        assert!(done.has(one, at(3600)) && done.has(other, at(3600)));
        assert!(!done.has(one, at(3605)) && done.has(other, at(3605)));
        for _ in 0..MOST {
            done.add(WriteId::random(), at(3606));
        }
        assert!(!done.has(other, at(3606)));
        assert_eq!((done.ids.len(), done.by_age.len()), (MOST, MOST));
    }
}
