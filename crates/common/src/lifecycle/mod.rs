//! The life of a process: ready, draining, stopped, and how it is told from outside.
//!
//! One [`Lifecycle`] exists per process. Parts of the program take [`NotReady`] guards from it,
//! spawn their tasks on it, watch its [`Phase`], and hold a [`Busy`] guard for every request that
//! a drain has to wait for.

pub mod descriptors;
pub mod drain;
pub mod health;
pub mod ready;
pub mod runtimes;
pub mod side_server;
mod signals;
pub mod supervisor;

use std::future::Future;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

pub use drain::{DrainTiming, Phase};
pub use ready::{NotReady, PartStatus, Parts};
pub use runtimes::Runtimes;

/// Keeps a drain waiting while it lives: take one for each request, drop it after its last byte.
/// Streams that never end by themselves must not hold one.
#[derive(Debug)]
pub struct Busy {
    _token: TaskTrackerToken,
}

/// A connection to somebody that we serve, or several: when our long streams are ended it is given a
/// moment to end by itself, and no more is waited for.
#[derive(Debug)]
pub struct Serving {
    _token: TaskTrackerToken,
}

/// How the process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// Everything that ran was finished.
    Drained,
    /// A second signal or a deadline ended what was still running.
    Cut,
    /// A task that should run for ever ended by itself.
    Crashed {
        /// The name the task was spawned under.
        task: String,
        /// What is known about the end of it.
        cause: String,
    },
}

impl Exit {
    /// What the process returns to its supervisor: 1 for a crash, 0 otherwise.
    pub fn code(&self) -> ExitCode {
        match self {
            Self::Drained | Self::Cut => ExitCode::SUCCESS,
            Self::Crashed { .. } => ExitCode::FAILURE,
        }
    }
}

/// The one handle on the life of the process; clones share it.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    timing: Mutex<DrainTiming>,
    phase: watch::Sender<Phase>,
    draining: CancellationToken,
    stopping: CancellationToken,
    /// Requests in flight.
    work: TaskTracker,
    /// Connections that we serve.
    connections: TaskTracker,
    /// Everything spawned here.
    tasks: TaskTracker,
    parts: Parts,
    runtimes: Runtimes,
    crash: OnceLock<(String, String)>,
}

impl Lifecycle {
    /// A process that has just started.
    pub fn new(timing: DrainTiming) -> Self {
        Self {
            shared: Arc::new(Shared {
                timing: Mutex::new(timing),
                phase: watch::Sender::new(Phase::Running),
                draining: CancellationToken::new(),
                stopping: CancellationToken::new(),
                work: TaskTracker::new(),
                connections: TaskTracker::new(),
                tasks: TaskTracker::new(),
                parts: Parts::default(),
                runtimes: Runtimes::default(),
                crash: OnceLock::new(),
            }),
        }
    }

    /// How long the steps of a drain take.
    pub fn timing(&self) -> DrainTiming {
        *self.lock_timing()
    }

    /// Changes it for a drain that has not begun.
    pub fn set_timing(&self, timing: DrainTiming) {
        *self.lock_timing() = timing;
    }

    fn lock_timing(&self) -> MutexGuard<'_, DrainTiming> {
        let timing = self.shared.timing.lock();
        timing.unwrap_or_else(PoisonError::into_inner)
    }

    /// Cancelled when the drain begins.
    pub fn draining(&self) -> CancellationToken {
        self.shared.draining.clone()
    }

    /// Cancelled when everything must end at once.
    pub fn stopping(&self) -> CancellationToken {
        self.shared.stopping.clone()
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.shared.phase.borrow()
    }

    /// Returns when `phase`, or a later one, has been reached.
    pub async fn reached(&self, phase: Phase) {
        let mut watch = self.shared.phase.subscribe();
        // The sender lives in `shared`, so an error cannot happen while we are here.
        let _ = watch.wait_for(|now| *now >= phase).await;
    }

    /// Registers one request that a drain waits for.
    pub fn busy(&self) -> Busy {
        Busy {
            _token: self.shared.work.token(),
        }
    }

    /// Registers a connection, to be dropped when it has ended.
    pub fn serving(&self) -> Serving {
        Serving {
            _token: self.shared.connections.token(),
        }
    }

    /// How many requests are under way.
    pub fn requests(&self) -> usize {
        self.shared.work.len()
    }

    /// The parts of the process and whether they are ready.
    pub fn parts(&self) -> &Parts {
        &self.shared.parts
    }

    /// The runtimes that serve, for those who ask whether they turn.
    pub fn runtimes(&self) -> &Runtimes {
        &self.shared.runtimes
    }

    /// Declares that the part called `name` is not ready yet (or no longer); it becomes ready
    /// when the guard is dropped. The process is ready when no such guard is left.
    pub fn not_ready(&self, name: &str) -> NotReady {
        self.shared.parts.not_ready(name)
    }

    /// As [`Self::not_ready`], but only told in `/status` and in the part's own gRPC health:
    /// the process stays ready.
    pub fn degraded(&self, name: &str, reason: &str) -> NotReady {
        self.shared.parts.degraded(name, reason)
    }

    /// Ready to take new work: no part holds out, and no drain has begun.
    pub fn is_ready(&self) -> bool {
        self.phase() == Phase::Running && self.shared.parts.all_ready()
    }

    /// Spawns a task that the end of the process waits for. It may end whenever it likes, and
    /// must end soon after [`Self::stopping`].
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.shared.tasks.spawn(task)
    }

    /// The tracker behind [`Self::spawn`], for tasks that other runtimes spawn.
    pub fn tasks(&self) -> &TaskTracker {
        &self.shared.tasks
    }

    /// Spawns a task without which the process makes no sense. If it returns or panics before a
    /// drain has begun, the process ends with exit code 1 and a log line that names the task.
    pub fn spawn_critical<F>(&self, name: &str, task: F)
    where
        F: Future + Send + 'static,
        F::Output: std::fmt::Debug + Send + 'static,
    {
        let (lifecycle, name) = (self.clone(), name.to_owned());
        let running = self.shared.tasks.spawn(task);
        self.shared.tasks.spawn(async move {
            let cause = match running.await {
                Ok(output) => format!("it returned {output:?}"),
                Err(error) if error.is_panic() => {
                    format!("it panicked: {}", panic_text(error.into_panic().as_ref()))
                }
                Err(error) => error.to_string(),
            };
            if lifecycle.phase() == Phase::Running {
                lifecycle.crash(&name, &cause);
            }
        });
    }

    /// Ends the process with exit code 1, because `task` ended by itself.
    pub fn crash(&self, task: &str, cause: &str) {
        self.fail(task, cause);
        self.stop();
    }

    /// The same, but what runs is finished first: for a listener that takes no connections any more.
    pub fn give_up(&self, task: &str, cause: &str) {
        self.fail(task, cause);
        self.drain();
    }

    fn fail(&self, task: &str, cause: &str) {
        let first = self.shared.crash.set((task.to_owned(), cause.to_owned()));
        if first.is_ok() {
            tracing::error!(
                task,
                cause,
                "a task that must run for ever has ended; stopping"
            );
        }
    }

    /// Begins the drain, as the first SIGTERM does. Does nothing the second time.
    pub fn drain(&self) {
        self.advance(Phase::Draining);
    }

    /// Ends everything now, as the second SIGTERM does.
    pub fn stop(&self) {
        self.advance(Phase::Stopping);
    }

    /// SIGTERM and SIGINT drain, and stop the second time. Needs a tokio runtime with I/O.
    pub fn listen_for_signals(&self) -> std::io::Result<()> {
        signals::listen(self)
    }

    /// Runs until the process should end: waits for the drain to begin, takes it through its
    /// phases, and returns once all is finished or cut. The last thing `main` awaits.
    pub async fn run_to_end(&self) -> Exit {
        drain::run(self).await
    }

    /// Phases only ever move forward.
    fn advance(&self, to: Phase) {
        let moved = self.shared.phase.send_if_modified(|now| {
            let later = to > *now;
            if later {
                *now = to;
            }
            later
        });
        if !moved {
            return;
        }
        tracing::info!(phase = %to, "lifecycle");
        if to >= Phase::Draining {
            self.shared.draining.cancel();
        }
        if to == Phase::Stopping {
            self.shared.stopping.cancel();
        }
    }
}

/// What a panic said, where it said something.
pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests;
