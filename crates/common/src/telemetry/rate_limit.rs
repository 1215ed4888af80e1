//! At most one log line a key in an interval.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Keys remembered at a time; when more are in use, the oldest is forgotten.
const MAX_KEYS: usize = 1024;

/// Lets one line a key pass in each interval and counts what it held back.
#[derive(Debug)]
pub struct RateLimit {
    interval: Duration,
    seen: Mutex<HashMap<String, Seen>>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    last: Instant,
    held_back: u64,
}

impl RateLimit {
    /// One line a key in each `interval`.
    pub fn new(interval: Duration) -> Self {
        Self {
            interval,
            seen: Mutex::default(),
        }
    }

    /// `Some(n)`: write the line now; `n` lines of this key were held back since the last one.
    pub fn pass(&self, key: &str, now: Instant) -> Option<u64> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = seen.get_mut(key) {
            if now.saturating_duration_since(entry.last) < self.interval {
                entry.held_back += 1;
                return None;
            }
            let held_back = entry.held_back;
            *entry = Seen {
                last: now,
                held_back: 0,
            };
            return Some(held_back);
        }
        if seen.len() >= MAX_KEYS {
            let oldest = seen.iter().min_by_key(|(_, entry)| entry.last);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                seen.remove(&oldest);
            }
        }
        seen.insert(
            key.to_owned(),
            Seen {
                last: now,
                held_back: 0,
            },
        );
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_key_and_interval() {
        let limit = RateLimit::new(Duration::from_secs(10));
        let start = Instant::now();
        assert_eq!(limit.pass("10.0.0.1", start), Some(0));
        assert_eq!(limit.pass("10.0.0.1", start + Duration::from_secs(3)), None);
        assert_eq!(limit.pass("10.0.0.1", start + Duration::from_secs(9)), None);
        assert_eq!(
            limit.pass("10.0.0.2", start + Duration::from_secs(9)),
            Some(0)
        );
        assert_eq!(
            limit.pass("10.0.0.1", start + Duration::from_secs(10)),
            Some(2)
        );
        assert_eq!(
            limit.pass("10.0.0.1", start + Duration::from_secs(20)),
            Some(0)
        );
    }

    #[test]
    fn keys_are_bounded() {
        let limit = RateLimit::new(Duration::from_secs(10));
        let start = Instant::now();
        for key in 0..5000_u32 {
            let _ = limit.pass(&key.to_string(), start + Duration::from_millis(key.into()));
        }
        assert_eq!(limit.seen.lock().unwrap().len(), MAX_KEYS);
    }
}
