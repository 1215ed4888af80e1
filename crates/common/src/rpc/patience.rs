//! How long an answer is waited for before somebody else is asked as well: three times the slowest
//! hundredth of the last minute, within bounds.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Never longer than this, however slow answers have been.
const MOST: Duration = Duration::from_millis(500);
/// Two windows of this length, one filling and one full, are the last minute.
const WINDOW: u64 = 30_000;
/// How often the figure is worked out anew.
const HOLDS: u64 = 1_000;
/// Fewer answers tell nothing about a hundredth.
const ENOUGH: u64 = 100;
/// Four steps to each doubling, up to more than an hour in microseconds.
const STEPS: usize = 128;

/// Learns from the time that answers take. Shared without locks: every question looks at it.
#[derive(Debug)]
pub struct Patience {
    start: Instant,
    least: Duration,
    windows: [[AtomicU32; STEPS]; 2],
    /// Which window is filling, counted from the start.
    turn: AtomicU64,
    /// When the figure is worked out again, in milliseconds from the start.
    due: AtomicU64,
    /// The figure, in microseconds.
    now: AtomicU64,
}

impl Patience {
    /// `least` is where it begins.
    pub fn new(least: Duration) -> Self {
        Self {
            start: Instant::now(),
            least,
            windows: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU32::new(0))),
            turn: AtomicU64::new(0),
            due: AtomicU64::new(0),
            now: AtomicU64::new(micros(least)),
        }
    }

    /// An answer took this long.
    pub fn observe(&self, took: Duration) {
        self.observe_at(self.elapsed(), took);
    }

    /// How long to wait now.
    pub fn now(&self) -> Duration {
        self.at(self.elapsed())
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn observe_at(&self, at: u64, took: Duration) {
        let turn = at / WINDOW;
        let before = self.turn.swap(turn, Ordering::Relaxed);
        if turn > before {
            self.clear(turn);
            if turn > before + 1 {
                self.clear(turn + 1);
            }
        }
        if let Some(count) = self.window(turn).get(step(took)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn at(&self, at: u64) -> Duration {
        if at >= self.due.load(Ordering::Relaxed) {
            self.due.store(at + HOLDS, Ordering::Relaxed);
            let slowest = self.slowest_hundredth().unwrap_or_default();
            let most = MOST.max(self.least);
            let now = slowest.saturating_mul(3).clamp(self.least, most);
            self.now.store(micros(now), Ordering::Relaxed);
        }
        Duration::from_micros(self.now.load(Ordering::Relaxed))
    }

    fn slowest_hundredth(&self) -> Option<Duration> {
        let [one, two] = &self.windows;
        let counts = one.iter().zip(two).map(|(one, two)| {
            u64::from(one.load(Ordering::Relaxed)) + u64::from(two.load(Ordering::Relaxed))
        });
        let counts: Vec<u64> = counts.collect();
        let all: u64 = counts.iter().sum();
        if all < ENOUGH {
            return None;
        }
        let mut left = all - all / 100;
        let found = counts.iter().position(|count| {
            left = left.saturating_sub(*count);
            left == 0
        })?;
        Some(ceiling(found))
    }

    fn window(&self, turn: u64) -> &[AtomicU32; STEPS] {
        let [even, odd] = &self.windows;
        if turn.is_multiple_of(2) { even } else { odd }
    }

    fn clear(&self, turn: u64) {
        for count in self.window(turn) {
            count.store(0, Ordering::Relaxed);
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Which step a time falls into.
fn step(took: Duration) -> usize {
    let micros = micros(took).max(4);
    let power = micros.ilog2();
    let quarter = (micros >> (power - 2)) & 3;
    let step = u64::from(power - 2) * 4 + quarter;
    usize::try_from(step).unwrap_or(STEPS).min(STEPS - 1)
}

/// The longest time that falls into a step.
fn ceiling(step: usize) -> Duration {
    let (power, quarter) = (step / 4, u64::try_from(step % 4).unwrap_or(0));
    let power = u32::try_from(power).unwrap_or(0);
    Duration::from_micros((quarter + 5) << power)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEAST: Duration = Duration::from_millis(300);

    fn milliseconds(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn three_times_the_slowest_hundredth_within_bounds() {
        let patience = Patience::new(LEAST);
        assert_eq!(patience.at(0), LEAST);
        for _ in 0..1000 {
            patience.observe_at(10, milliseconds(2));
        }
        assert_eq!(patience.at(2_000), LEAST, "never less");
        for _ in 0..20 {
            patience.observe_at(2_000, milliseconds(120));
        }
        let slow = patience.at(4_000);
        assert!(
            (milliseconds(360)..milliseconds(460)).contains(&slow),
            "{slow:?}"
        );
        for _ in 0..20 {
            patience.observe_at(4_000, milliseconds(5_000));
        }
        assert_eq!(patience.at(4_500), slow, "worked out once a second");
        assert_eq!(patience.at(6_000), MOST, "never more");
        // A minute later all of that is forgotten.
        patience.observe_at(95_000, milliseconds(2));
        assert_eq!(patience.at(95_000), LEAST);
    }

    #[test]
    fn a_few_answers_tell_nothing() {
        let patience = Patience::new(LEAST);
        for _ in 0..99 {
            patience.observe_at(0, milliseconds(400));
        }
        assert_eq!(patience.at(1_000), LEAST);
    }

    proptest! {
        #[test]
        fn a_time_lies_within_its_step(micros in 4_u64..4_000_000_000) {
            let took = Duration::from_micros(micros);
            let step = step(took);
            prop_assert!(took < ceiling(step));
            prop_assert!(step == 0 || took >= ceiling(step - 1));
        }
    }
}
