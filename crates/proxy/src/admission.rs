//! More requests than can be served: those beyond get 503 at once, so that those inside are in time.
//!
//! Two bounds. Requests under way are no more than connections may be, as each may need a connection
//! of its own to an upstream. Requests that wait for a decision are no more than a queue that still
//! moves: once every decision of the last second has waited for long, the queue does not go
//! away by itself, and whoever joins it would only be late.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use crate::core::Core;
use crate::limits;
use crate::refuse::Stop;

/// Refuses a request when as many are under way as may be, over all cores.
pub(crate) fn check(core: &Core) -> Result<(), Stop> {
    let shared = &core.shared;
    // This one is among them.
    if shared.lifecycle.requests() <= shared.max_connections {
        return Ok(());
    }
    shared.metrics.shed_under_way.inc();
    Err(overloaded())
}

/// Joins those of this core that wait for a decision, until what is returned is dropped.
pub(crate) fn wait(core: &Core) -> Result<Waiting, Stop> {
    let (queue, now) = (&core.undecided, Instant::now());
    if queue.is_full() {
        core.shared.metrics.shed_undecided.inc();
        return Err(overloaded());
    }
    queue.waiting.set(queue.waiting.get() + 1);
    Ok(Waiting {
        queue: Rc::clone(queue),
        since: now,
    })
}

fn overloaded() -> Stop {
    let text = "There are more requests just now than can be served. Please try again in a moment.";
    Stop::new(StatusCode::SERVICE_UNAVAILABLE, "overload", text).grpc(14)
}

/// Requests of a core that wait for a decision.
#[derive(Debug)]
pub(crate) struct Queue {
    waiting: Cell<usize>,
    delay: RefCell<Delay>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Waiting {
    queue: Rc<Queue>,
    since: Instant,
}

impl Queue {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            waiting: Cell::new(0),
            delay: RefCell::new(Delay::new(Instant::now())),
        })
    }

    fn is_full(&self) -> bool {
        let most = if self.delay.borrow().stands {
            limits::UNDECIDED_LATE
        } else {
            limits::UNDECIDED
        };
        self.waiting.get() >= most
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let queue = &self.queue;
        queue.waiting.set(queue.waiting.get() - 1);
        let now = Instant::now();
        let mut delay = queue.delay.borrow_mut();
        delay.saw(now, now.duration_since(self.since));
    }
}

/// Whether a queue stands (as CoDel tells it, RFC 8289): not how long the slowest waits, which one
/// slow answer decides, but the quickest.
#[derive(Debug)]
struct Delay {
    window: Instant,
    least: Duration,
    stands: bool,
}

impl Delay {
    fn new(now: Instant) -> Self {
        Self {
            window: now,
            least: Duration::MAX,
            stands: false,
        }
    }

    fn saw(&mut self, now: Instant, waited: Duration) {
        self.least = self.least.min(waited);
        if now.duration_since(self.window) >= limits::DELAY_WINDOW {
            self.stands = self.least > limits::DELAY;
            self.window = now;
            self.least = Duration::MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_queue_stands_when_even_the_quickest_waits_for_long() {
        let begin = Instant::now();
        let mut delay = Delay::new(begin);
        let mut saw = |at, waited| {
            delay.saw(begin + ms(at), ms(waited));
            delay.stands
        };
        // A slow one among quick ones is no queue.
        assert!(!saw(100, 2_000));
        assert!(!saw(200, 5));
        assert!(!saw(1_010, 2_000));
        // Not before a whole window of slow ones.
        assert!(!saw(1_600, 350));
        assert!(saw(2_020, 500));
        assert!(saw(2_100, 500));
        // Over after a window in which one was quick.
        assert!(saw(2_200, 5));
        assert!(!saw(3_030, 500));
    }

    #[test]
    fn a_queue_that_stands_is_kept_short() {
        let queue = Queue::new();
        queue.waiting.set(limits::UNDECIDED - 1);
        assert!(!queue.is_full());
        queue.delay.borrow_mut().stands = true;
        assert!(queue.is_full());
        queue.waiting.set(limits::UNDECIDED_LATE - 1);
        assert!(!queue.is_full());
    }
}
