//! Leases: who may do something that only one may do. Free, over, or already one's own: then it can be taken.
//!
//! A lease does not stop a holder that was frozen and wakes up late; whoever must not act twice writes under a
//! version check besides ([`crate::Databroker::put_if`]).

use std::time::Duration;

use postern_common::crypto::random;

use crate::storage::length;
use crate::writer::MAX_NAME;

/// The longest lease.
const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    #[error("a lease needs a name and an id of at most {MAX_NAME} bytes, without NUL")]
    Name,
    #[error("a lease needs a duration above 0 and of at most a day")]
    Duration,
}

pub fn names(name: &str, id: &str) -> Result<(), LeaseError> {
    let fits = |text: &str| !text.is_empty() && text.len() <= MAX_NAME && !text.contains('\0');
    if fits(name) && fits(id) {
        Ok(())
    } else {
        Err(LeaseError::Name)
    }
}

pub fn duration(duration: Option<&prost_types::Duration>) -> Result<Duration, LeaseError> {
    duration
        .and_then(length)
        .filter(|duration| !duration.is_zero() && *duration <= MAX_DURATION)
        .ok_or(LeaseError::Duration)
}

pub fn new_id() -> String {
    random::uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_above_nothing_and_at_most_a_day() {
        let read = |seconds, nanos| duration(Some(&prost_types::Duration { seconds, nanos }));
        assert_eq!(read(30, 0), Ok(Duration::from_secs(30)));
        assert_eq!(read(0, 1), Ok(Duration::from_nanos(1)));
        for (seconds, nanos) in [
            (0, 0),
            (-1, 0),
            (0, -1),
            (86_401, 0),
            (30, 1_000_000_000),
            (i64::MAX, i32::MAX),
            (i64::MIN, i32::MIN),
        ] {
            assert_eq!(
                read(seconds, nanos),
                Err(LeaseError::Duration),
                "{seconds} {nanos}"
            );
        }
        assert_eq!(duration(None), Err(LeaseError::Duration));
    }
}
