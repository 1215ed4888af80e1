//! Whether a connection is in use: what tells a client that works from one that only holds a place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How long a connection may have no open call.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Before its first call.
    pub first_call: Duration,
    /// After its last one.
    pub idle: Duration,
}

/// The calls of one connection.
#[derive(Debug)]
pub struct InUse {
    since: Instant,
    open: AtomicUsize,
    /// Milliseconds after `since` at which the last call ended that was not refused; zero: none.
    last: AtomicU64,
    /// A call was made that not everybody may make.
    known: AtomicBool,
}

impl InUse {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            since: Instant::now(),
            open: AtomicUsize::new(0),
            last: AtomicU64::new(0),
            known: AtomicBool::new(false),
        })
    }

    /// A call that lasts until what is returned is dropped.
    pub fn call(self: &Arc<Self>) -> Call {
        self.open.fetch_add(1, Ordering::Relaxed);
        Call {
            of: Arc::clone(self),
            counts: true,
        }
    }

    /// Returns when the connection has had no open call for longer than `patience`.
    pub async fn idle(&self, patience: Patience) {
        while let Some(at) = self.look_again(self.since.elapsed(), patience) {
            tokio::time::sleep_until(self.since + at).await;
        }
    }

    /// When to look whether it is idle, both counted from its beginning; `None`: it is. Looks now
    /// and then, so that calls don't have to tell.
    fn look_again(&self, now: Duration, patience: Patience) -> Option<Duration> {
        if self.open.load(Ordering::Relaxed) > 0 {
            return Some(now + patience.idle.min(patience.first_call) / 4);
        }
        let ends = match self.last.load(Ordering::Relaxed) {
            0 => patience.first_call,
            last => Duration::from_millis(last) + patience.idle,
        };
        (ends > now).then_some(ends)
    }

    fn ended(&self, now: Duration) {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.last.fetch_max(now.max(1), Ordering::Relaxed);
    }
}

/// An open call.
#[derive(Debug)]
pub struct Call {
    of: Arc<InUse>,
    counts: bool,
}

impl Call {
    /// Not everybody may make this one.
    pub fn is_of_somebody_known(&self) {
        self.of.known.store(true, Ordering::Relaxed);
    }

    /// Anybody may make it, so it counts only on the connection of somebody known.
    pub fn of_anybody(self) -> Option<Self> {
        if self.of.known.load(Ordering::Relaxed) {
            return Some(self);
        }
        self.refused();
        None
    }

    /// It was refused. Whoever may not call does not keep a connection by trying.
    pub fn refused(mut self) {
        self.counts = false;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.counts {
            self.of.ended(self.of.since.elapsed());
        }
        self.of.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        first_call: Duration::from_secs(60),
        idle: Duration::from_secs(300),
    };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_connection_without_calls_is_idle() {
        let connection = InUse::new();
        let look = |now| connection.look_again(seconds(now), PATIENCE);
        assert_eq!(look(0), Some(seconds(60)));
        assert_eq!(look(59), Some(seconds(60)));
        assert_eq!(look(60), None);
    }

    #[test]
    fn refused_calls_are_none() {
        let connection = InUse::new();
        for _ in 0..5 {
            connection.call().refused();
        }
        assert_eq!(connection.look_again(seconds(60), PATIENCE), None);
    }

    #[test]
    fn it_is_idle_some_time_after_its_last_call() {
        let connection = InUse::new();
        let long = connection.call();
        let look = |now| connection.look_again(seconds(now), PATIENCE);
        assert_eq!(look(3600), Some(seconds(3615)));
        drop(long);
        connection.ended(seconds(3600));
        assert_eq!(look(3899), Some(seconds(3900)));
        assert_eq!(look(3900), None);
        drop(connection.call());
        assert_eq!(look(3600), Some(seconds(3900)), "time does not go back");
    }

    #[test]
    fn s17_what_anybody_may_ask_counts_only_for_those_who_are_known() {
        let connection = InUse::new();
        let look = |now| connection.look_again(seconds(now), PATIENCE);
        assert!(connection.call().of_anybody().is_none());
        assert_eq!(look(60), None);
        connection.call().is_of_somebody_known();
        let watch = connection.call().of_anybody();
        assert_eq!(look(3600), Some(seconds(3615)));
        drop(watch);
    }

    #[tokio::test]
    async fn whoever_waits_is_told() {
        let connection = InUse::new();
        let soon = Patience {
            first_call: Duration::from_millis(1),
            idle: Duration::from_millis(1),
        };
        tokio::time::timeout(seconds(10), connection.idle(soon))
            .await
            .unwrap();
        let call = connection.call();
        let open = connection.idle(soon);
        assert!(
            tokio::time::timeout(Duration::from_millis(20), open)
                .await
                .is_err()
        );
        drop(call);
        connection.idle(soon).await;
    }
}
