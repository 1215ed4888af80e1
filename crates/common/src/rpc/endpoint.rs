//! The state of one endpoint as a pure machine: what happened goes in, what it is now comes out.
//! The driver in `connection` makes it true.

use std::fmt;
use std::time::{Duration, Instant};

/// First pause before another attempt to connect; it doubles with each failure in a row.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause. With the limits of an attempt it decides how soon a peer is found again after the
/// network has lost everything for a while: see `found_again_within_two_seconds`.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Where an endpoint is. Only [`State::Ready`] gets calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// A connection is being opened.
    Connecting {
        /// Failures in a row before this attempt.
        failures: u32,
    },
    /// The next attempt is due later.
    Waiting {
        /// Failures in a row.
        failures: u32,
        /// When the next attempt is due.
        until: Instant,
        /// What went wrong last.
        why: String,
    },
    /// Connected; it has not said yet how it is. (The kernel of a frozen process still accepts.)
    Probing {
        /// Failures in a row before.
        failures: u32,
    },
    /// Connected, and says that it serves.
    Ready,
    /// Connected, but must not get calls.
    Refusing {
        /// Why not.
        why: String,
    },
}

/// What can happen to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The pause is over.
    Due,
    /// The connection is open.
    Connected,
    /// The connection could not be opened.
    Failed(String),
    /// The connection has ended, or the peer is going away (GOAWAY).
    Lost(String),
    /// The peer says that it serves.
    Serving,
    /// The peer says that it does not serve.
    NotServing,
    /// The peer does not answer on an open connection.
    Silent,
    /// The peer does not accept us.
    Rejected(String),
}

impl State {
    /// A new endpoint connects at once.
    pub fn new() -> Self {
        Self::Connecting { failures: 0 }
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

/// The state after `event`. `jitter` (0 to 1) spreads the attempts of many clients. Events that
/// do not fit the state change nothing.
pub fn next(state: State, event: Event, now: Instant, jitter: f64) -> State {
    let wait = |failures: u32, why: String| State::Waiting {
        failures,
        until: now + pause(failures, jitter),
        why,
    };
    match (state, event) {
        (State::Waiting { failures, .. }, Event::Due) => State::Connecting { failures },
        (State::Connecting { failures }, Event::Connected) => State::Probing { failures },
        (State::Connecting { failures }, Event::Failed(why)) => {
            wait(failures.saturating_add(1), why)
        }
        (State::Probing { failures }, Event::Lost(why)) => wait(failures.saturating_add(1), why),
        (State::Probing { failures }, Event::Silent) => {
            wait(failures.saturating_add(1), SILENT.to_owned())
        }
        (State::Ready | State::Refusing { .. }, Event::Lost(why)) => wait(1, why),
        (State::Ready | State::Refusing { .. }, Event::Silent) => wait(1, SILENT.to_owned()),
        (State::Probing { .. } | State::Ready | State::Refusing { .. }, Event::Serving) => {
            State::Ready
        }
        (State::Probing { .. } | State::Ready | State::Refusing { .. }, Event::NotServing) => {
            State::Refusing {
                why: "says that it does not serve".to_owned(),
            }
        }
        (State::Probing { .. } | State::Ready | State::Refusing { .. }, Event::Rejected(why)) => {
            State::Refusing { why }
        }
        (state, _) => state,
    }
}

const SILENT: &str = "does not answer on an open connection";

/// 100 ms, 200 ms, … up to half a second, each a fifth more or less.
fn pause(failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(8);
    let pause = FIRST_PAUSE
        .saturating_mul(1 << doublings)
        .min(LONGEST_PAUSE);
    pause.mul_f64(0.8 + 0.4 * jitter.clamp(0.0, 1.0))
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting { .. } => f.write_str("connecting"),
            Self::Waiting { failures, why, .. } => {
                write!(f, "unreachable ({failures} in a row): {why}")
            }
            Self::Probing { .. } => f.write_str("connected, health not known yet"),
            Self::Ready => f.write_str("ready"),
            Self::Refusing { why } => f.write_str(why),
        }
    }
}

/// How much an endpoint is burdened, for the choice between two.
#[derive(Debug, Clone, Copy)]
pub struct Penalty {
    points: f64,
    at: Instant,
}

impl Penalty {
    /// A failure weighs as much as this many calls in flight …
    const FAILURE: f64 = 10.0;
    const MOST: f64 = 200.0;
    /// … and half of it is forgotten after this time. An endpoint that fails fast always has few
    /// calls in flight; without this it would draw all of them.
    const HALF_LIFE: Duration = Duration::from_secs(2);

    /// None.
    pub fn new(now: Instant) -> Self {
        Self {
            points: 0.0,
            at: now,
        }
    }

    /// One more failure.
    pub fn add(&mut self, now: Instant) {
        self.points = (self.points(now) + Self::FAILURE).min(Self::MOST);
        self.at = now;
    }

    /// What is left of it.
    pub fn points(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.at).as_secs_f64();
        self.points * (-age / Self::HALF_LIFE.as_secs_f64()).exp2()
    }
}

#[cfg(test)]
mod tests;
