//! How old the copy is. Clocks of two machines need not agree for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// When the copy last had everything.
#[derive(Debug)]
pub struct CurrentAt {
    begun: Instant,
    /// Milliseconds after `begun`, plus one; 0: never.
    at: AtomicU64,
}

impl CurrentAt {
    pub fn never(begun: Instant) -> Self {
        Self {
            begun,
            at: AtomicU64::new(0),
        }
    }

    /// Never goes back.
    pub fn set(&self, at: Instant) {
        let millis = at.saturating_duration_since(self.begun).as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX - 1);
        self.at.fetch_max(millis + 1, Ordering::Relaxed);
    }

    /// `None` when the copy never had everything.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let at = self.at.load(Ordering::Relaxed).checked_sub(1)?;
        let now = now.saturating_duration_since(self.begun);
        Some(now.saturating_sub(Duration::from_millis(at)))
    }
}

/// The heartbeats of one stream.
///
/// Each says when the databroker looked, by its own clock. What lies between that and the beat's
/// arrival by ours is the distance of the clocks and the way here. The shortest that was seen is
/// nearly the distance alone, so a beat that took longer than that is so much older.
#[derive(Debug)]
pub struct Beats {
    begun: Instant,
    shortest: Option<i64>,
}

impl Beats {
    pub fn new(begun: Instant) -> Self {
        Self {
            begun,
            shortest: None,
        }
    }

    /// The time, by our clock, up to which the copy has everything.
    pub fn heard(&mut self, as_of: Timestamp, now: Instant) -> Instant {
        let arrived = now.saturating_duration_since(self.begun).as_millis();
        let arrived = i64::try_from(arrived).unwrap_or(i64::MAX);
        let between = arrived.saturating_sub(as_of.as_millisecond());
        let shortest = self.shortest.map_or(between, |it| it.min(between));
        self.shortest = Some(shortest);
        let late = u64::try_from(between.saturating_sub(shortest)).unwrap_or(0);
        now.checked_sub(Duration::from_millis(late))
            .unwrap_or(self.begun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn age_counts_from_the_last_time_that_all_was_there() {
        let begun = Instant::now();
        let current = CurrentAt::never(begun);
        assert_eq!(current.age(begun + seconds(5)), None);
        current.set(begun);
        assert_eq!(current.age(begun + seconds(5)), Some(seconds(5)));
        current.set(begun + seconds(4));
        current.set(begun + seconds(2));
        assert_eq!(current.age(begun + seconds(5)), Some(seconds(1)));
        assert_eq!(current.age(begun), Some(Duration::ZERO));
    }

    /// A databroker whose clock is ten minutes ahead, or behind, makes nothing younger or older.
    #[test]
    fn clocks_need_not_agree() {
        let begun = Instant::now();
        for ahead in [-600, 0, 600] {
            let mut beats = Beats::new(begun);
            let at = |second: i64| Timestamp::from_second(1_767_225_600 + ahead + second).unwrap();
            assert_eq!(beats.heard(at(1), begun + seconds(1)), begun + seconds(1));
            assert_eq!(beats.heard(at(2), begun + seconds(2)), begun + seconds(2));
            // It waited somewhere for 30 seconds: that is how old it is.
            assert_eq!(beats.heard(at(3), begun + seconds(33)), begun + seconds(3));
            // The databroker has not been able to look for 20 seconds.
            assert_eq!(
                beats.heard(at(14), begun + seconds(34)),
                begun + seconds(14)
            );
            assert_eq!(
                beats.heard(at(35), begun + seconds(35)),
                begun + seconds(35)
            );
        }
    }
}
