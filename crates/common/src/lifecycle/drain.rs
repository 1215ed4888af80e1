//! The order in which a process goes away without losing a request.
//!
//! Measured with restarts under load: closing the listener at once loses fresh connections, and
//! closing idle connections at once loses requests that are already on their way. So each of
//! the two has a phase of its own in which nothing is refused.

use std::fmt;
use std::time::Duration;

use super::{Exit, Lifecycle};
use crate::config::DrainOptions;

/// Where the process is on its way from start to end. Ordered: a phase never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Running,
    /// Reported as not ready; listeners still accept. HTTP/1.1 answers carry
    /// `Connection: close`, HTTP/2 connections get GOAWAY.
    Draining,
    /// Listeners are closed; open connections are still served.
    ListenersClosed,
    /// Connections without a request in flight are closed; what runs is finished.
    IdleClosed,
    /// Our own long streams are ended by the server with UNAVAILABLE.
    StreamsEnded,
    /// Everything ends now.
    Stopping,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Draining => "draining",
            Self::ListenersClosed => "listeners closed",
            Self::IdleClosed => "idle connections closed",
            Self::StreamsEnded => "long streams ended",
            Self::Stopping => "stopping",
        })
    }
}

/// How long each step of a drain takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainTiming {
    /// Not ready, but still accepting: as long as balancers need to notice. May be zero.
    pub delay: Duration,
    /// Listeners closed, idle connections still served.
    pub settle: Duration,
    /// At most this long for requests in flight.
    pub timeout: Duration,
    /// At most this long for connections to end after long streams were ended.
    pub streams: Duration,
    /// At most this long for tasks to end once everything is told to stop.
    pub stop: Duration,
}

impl Default for DrainTiming {
    fn default() -> Self {
        Self::from(DrainOptions::default())
    }
}

impl From<DrainOptions> for DrainTiming {
    fn from(options: DrainOptions) -> Self {
        Self {
            delay: options.delay,
            settle: Duration::from_secs(2),
            timeout: options.timeout,
            streams: Duration::from_secs(1),
            stop: Duration::from_secs(2),
        }
    }
}

impl DrainTiming {
    /// From the signal to the end, if every step takes as long as it may.
    pub fn longest(&self) -> Duration {
        self.delay + self.settle + self.timeout + self.streams + self.stop
    }

    /// No pauses: for tests and for commands that serve for a moment.
    pub fn immediate() -> Self {
        Self {
            delay: Duration::ZERO,
            settle: Duration::ZERO,
            ..Self::default()
        }
    }
}

/// See [`Lifecycle::run_to_end`].
pub(super) async fn run(lifecycle: &Lifecycle) -> Exit {
    lifecycle.reached(Phase::Draining).await;
    let shared = &lifecycle.shared;
    let timing = lifecycle.timing();
    shared.tasks.close();
    shared.work.close();
    shared.connections.close();

    let steps = async {
        tokio::time::sleep(timing.delay).await;
        lifecycle.advance(Phase::ListenersClosed);
        tokio::time::sleep(timing.settle).await;
        lifecycle.advance(Phase::IdleClosed);
        let finished = tokio::time::timeout(timing.timeout, shared.work.wait()).await;
        lifecycle.advance(Phase::StreamsEnded);
        // Nobody loses anything by one that stays: all that it has to carry is finished.
        let _ = tokio::time::timeout(timing.streams, shared.connections.wait()).await;
        finished.is_ok()
    };
    let drained = tokio::select! {
        drained = steps => drained,
        () = shared.stopping.cancelled() => shared.work.is_empty() && shared.tasks.is_empty(),
    };
    lifecycle.advance(Phase::Stopping);
    let stopped = tokio::time::timeout(timing.stop, shared.tasks.wait()).await;
    if stopped.is_err() {
        tracing::warn!(left = shared.tasks.len(), "tasks did not end in time");
    }
    match shared.crash.get() {
        Some((task, cause)) => Exit::Crashed {
            task: task.clone(),
            cause: cause.clone(),
        },
        None if drained && stopped.is_ok() => Exit::Drained,
        None => Exit::Cut,
    }
}
