//! An endpoint that is connected and says that it serves, but whose calls fail again and again, is
//! left out for a while: longer each time, and never more than half of the endpoints. Pure.

use std::time::{Duration, Instant};

/// Failures in a row.
const ROW: u32 = 5;
/// The first time lasts this long; each further one twice as long …
const FIRST: Duration = Duration::from_secs(5);
/// … up to this.
const LONGEST: Duration = Duration::from_secs(60);

/// What is remembered of an endpoint's calls.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Outlier {
    in_a_row: u32,
    times: u32,
    until: Option<Instant>,
}

impl Outlier {
    /// A call failed. Returns whether the endpoint should be left out now.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.in_a_row >= ROW && !self.is_out(now)
    }

    /// A call was answered. A good while later nothing is held against it any more.
    pub(super) fn answered(&mut self, now: Instant) {
        self.in_a_row = 0;
        if self.until.is_some_and(|until| now > until + LONGEST) {
            *self = Self::default();
        }
    }

    /// Leaves it out, and returns for how long.
    pub(super) fn leave_out(&mut self, now: Instant) -> Duration {
        let pause = FIRST.saturating_mul(1 << self.times.min(8)).min(LONGEST);
        self.times = self.times.saturating_add(1);
        self.in_a_row = 0;
        self.until = Some(now + pause);
        pause
    }

    pub(super) fn is_out(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// Whether one more of `all` may be left out when `out` are already.
pub(super) fn has_room(out: usize, all: usize) -> bool {
    (out + 1) * 2 <= all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn left_out_after_failures_in_a_row_and_longer_each_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut outlier = Outlier::default();
        for _ in 0..3 {
            for _ in 1..ROW {
                assert!(!outlier.failed(start));
            }
            outlier.answered(start);
        }
        for _ in 1..ROW {
            assert!(!outlier.failed(start));
        }
        assert!(outlier.failed(start));
        assert_eq!(outlier.leave_out(start), FIRST);
        assert!(outlier.is_out(at(4)) && !outlier.is_out(at(5)));
        assert_eq!(outlier.leave_out(at(5)), FIRST * 2);
        for _ in 0..20 {
            outlier.leave_out(at(15));
        }
        assert_eq!(outlier.leave_out(at(15)), LONGEST);
        outlier.answered(at(76));
        assert_eq!(outlier.leave_out(at(77)), LONGEST, "not forgotten yet");
        outlier.answered(at(200));
        assert_eq!(outlier.leave_out(at(201)), FIRST);
    }

    #[test]
    fn half_of_them_at_most() {
        assert!(!has_room(0, 1));
        assert!(has_room(0, 2) && !has_room(1, 2));
        assert!(!has_room(1, 3));
        assert!(has_room(1, 4) && !has_room(2, 4));
    }
}
