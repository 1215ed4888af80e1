//! What is due next, over all sessions. Holds times only, never a token.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::job::Outcome;
use super::schedule::{Facts, History, IdTokenExpiry, Task, next};

#[derive(Debug)]
struct Entry {
    facts: Facts,
    history: History,
    /// Its place in the queue; `None` while it is worked on, or when nothing is due.
    queued: Option<(Timestamp, Task)>,
    running: bool,
}

#[derive(Debug)]
pub(crate) struct Table {
    rule: IdTokenExpiry,
    /// Of a hash table, growth would move every entry at once: a quarter of a second for half a million.
    entries: BTreeMap<String, Entry>,
    queue: BTreeSet<(Timestamp, String)>,
}

impl Table {
    pub fn new(rule: IdTokenExpiry) -> Self {
        Self {
            rule,
            entries: BTreeMap::new(),
            queue: BTreeSet::new(),
        }
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// All sessions there are, as found on taking over or after a break.
    pub fn replace(&mut self, sessions: Vec<(String, Facts)>, now: Timestamp) {
        let mut gone: BTreeSet<String> = self.entries.keys().cloned().collect();
        for (id, facts) in sessions {
            gone.remove(&id);
            let spread = share_of_ten_minutes(&id);
            self.update(&id, facts, History::new(now, spread));
        }
        for id in gone {
            self.remove(&id);
        }
    }

    /// A session was made or changed.
    pub fn put(&mut self, id: &str, facts: Facts, now: Timestamp) {
        self.update(id, facts, History::new(now, SignedDuration::from_mins(10)));
    }

    fn update(&mut self, id: &str, facts: Facts, fresh: History) {
        let entry = self.entries.entry(id.to_owned()).or_insert(Entry {
            facts,
            history: fresh,
            queued: None,
            running: false,
        });
        entry.facts = facts;
        self.requeue(id);
    }

    pub fn remove(&mut self, id: &str) {
        if let Some(entry) = self.entries.remove(id)
            && let Some((at, _)) = entry.queued
        {
            self.queue.remove(&(at, id.to_owned()));
        }
    }

    /// Something that is due now, to be worked on until [`Table::finished`].
    pub fn take_due(&mut self, now: Timestamp) -> Option<(String, Task)> {
        let (at, _) = self.queue.first()?;
        if *at > now {
            return None;
        }
        let (_, id) = self.queue.pop_first()?;
        let entry = self.entries.get_mut(&id)?;
        let (_, task) = entry.queued.take()?;
        entry.running = true;
        if task == Task::Refresh {
            entry.history.attempt = Some(now);
        }
        Some((id, task))
    }

    /// How long until something is due.
    pub fn pause(&self, now: Timestamp) -> Option<Duration> {
        let (at, _) = self.queue.first()?;
        Some(Duration::try_from(now.duration_until(*at)).unwrap_or_default())
    }

    pub fn finished(
        &mut self,
        id: &str,
        task: Task,
        outcome: Outcome,
        now: Timestamp,
        jitter: f64,
    ) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        entry.running = false;
        let history = &mut entry.history;
        match (outcome, task) {
            (Outcome::Done { facts }, Task::Refresh) => {
                history.succeeded(now);
                history.user_info_done(now);
                // The change feed says the same a moment later; until then the old times would
                // make it due again.
                entry.facts = facts.unwrap_or(entry.facts);
            }
            (Outcome::Done { facts }, _) => {
                history.user_info_done(now);
                entry.facts = facts.unwrap_or(entry.facts);
            }
            (Outcome::RefreshNow, _) => {
                history.user_info_done(now);
                entry.facts.access_expires_at = Some(now);
            }
            (Outcome::Later(at), _) => history.not_before = Some(at),
            // A user info call that failed is made again in ten minutes.
            (Outcome::Failed { .. }, Task::UserInfo) => history.user_info_done(now),
            (Outcome::Failed { wish }, Task::Expire) => {
                history.failed(now, wish, jitter);
                // Else it would be due at once; it is the deletion that has to be tried again.
                entry.facts.expires_at = history.not_before;
            }
            (Outcome::Failed { wish }, Task::Refresh) => history.failed(now, wish, jitter),
            (Outcome::Gone, _) => {
                self.remove(id);
                return;
            }
        }
        self.requeue(id);
    }

    /// Nobody knows what came of the work under way: it is as if it had failed.
    pub fn forget_running(&mut self, now: Timestamp) {
        let running: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.running)
            .map(|(id, _)| id.clone())
            .collect();
        for id in running {
            self.finished(&id, Task::Refresh, Outcome::Failed { wish: None }, now, 0.5);
        }
    }

    fn requeue(&mut self, id: &str) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        if let Some((at, _)) = entry.queued.take() {
            self.queue.remove(&(at, id.to_owned()));
        }
        if entry.running {
            return;
        }
        entry.queued = next(&entry.facts, &entry.history, self.rule);
        if let Some((at, _)) = entry.queued {
            self.queue.insert((at, id.to_owned()));
        }
    }
}

/// Always the same for a session, evenly spread over sessions.
fn share_of_ten_minutes(id: &str) -> SignedDuration {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    let share = hasher.finish() % 600_000;
    SignedDuration::from_millis(i64::try_from(share).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn facts(access_ends: i64) -> Facts {
        Facts {
            expires_at: Some(at(50_000)),
            issued_at: None,
            access_expires_at: Some(at(access_ends)),
            id_token_expires_at: None,
            refreshable: true,
            has_access_token: true,
        }
    }

    fn table() -> Table {
        Table::new(IdTokenExpiry::Counts)
    }

    #[test]
    fn the_earliest_first_and_each_once() {
        let mut table = table();
        table.put("late", facts(400), at(0));
        table.put("soon", facts(200), at(0));
        assert_eq!(table.pause(at(0)), Some(Duration::from_secs(140)));
        assert_eq!(table.take_due(at(100)), None);
        assert_eq!(
            table.take_due(at(500)),
            Some(("soon".into(), Task::Refresh))
        );
        // A change that arrives meanwhile does not start it a second time.
        table.put("soon", facts(210), at(500));
        assert_eq!(
            table.take_due(at(500)),
            Some(("late".into(), Task::Refresh))
        );
        assert_eq!(table.take_due(at(500)), None);
        let failed = Outcome::Failed { wish: None };
        table.finished("soon", Task::Refresh, failed, at(500), 0.5);
        assert_eq!(table.take_due(at(509)), None);
        assert_eq!(
            table.take_due(at(510)),
            Some(("soon".into(), Task::Refresh))
        );
    }

    #[test]
    fn a_break_forgets_what_is_gone_and_keeps_what_was_learned() {
        let mut table = table();
        table.put("a", facts(200), at(0));
        table.put("b", facts(200), at(0));
        assert!(table.take_due(at(200)).is_some());
        table.finished(
            "a",
            Task::Refresh,
            Outcome::Failed { wish: None },
            at(200),
            0.5,
        );
        table.replace(vec![("a".into(), facts(200))], at(201));
        assert_eq!(table.take_due(at(209)), None);
        assert_eq!(table.take_due(at(210)), Some(("a".into(), Task::Refresh)));
    }

    #[test]
    fn user_info_of_many_is_spread_on_taking_over() {
        let mut table = table();
        table.replace(
            (0..1000).map(|n| (n.to_string(), facts(40_000))).collect(),
            at(0),
        );
        let mut early = 0;
        while table.take_due(at(300)).is_some() {
            early += 1;
        }
        assert!((350..650).contains(&early), "{early}");
    }
}
