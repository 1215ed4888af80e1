//! The runtimes that serve, and whether they turn.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;

/// A runtime that does not run a trivial task within this time is stuck.
pub const ANSWER: Duration = Duration::from_secs(1);

/// Every runtime that has work to do; clones share the same set.
#[derive(Debug, Clone, Default)]
pub struct Runtimes {
    watched: Arc<Mutex<Watched>>,
}

#[derive(Debug, Default)]
struct Watched {
    next: u64,
    handles: BTreeMap<u64, (String, Handle)>,
}

/// Keeps a runtime watched; dropped when the runtime ends.
#[derive(Debug)]
#[must_use = "dropping it ends the watch"]
pub struct Turning {
    runtimes: Runtimes,
    id: u64,
}

impl Runtimes {
    /// From now on this runtime is asked for a sign of life.
    pub fn watch(&self, name: &str, runtime: Handle) -> Turning {
        let mut watched = self.lock();
        let id = watched.next;
        watched.next += 1;
        watched.handles.insert(id, (name.to_owned(), runtime));
        drop(watched);
        Turning {
            runtimes: self.clone(),
            id,
        }
    }

    /// Runs a trivial task on each of them; names of those that don't run it within [`ANSWER`].
    pub async fn stuck(&self) -> Vec<String> {
        let asked: Vec<_> = {
            let watched = self.lock();
            let handles = watched.handles.values();
            handles
                .map(|(name, runtime)| (name.clone(), runtime.spawn(std::future::ready(()))))
                .collect()
        };
        let deadline = tokio::time::Instant::now() + ANSWER;
        let mut stuck = Vec::new();
        for (name, task) in asked {
            if !matches!(tokio::time::timeout_at(deadline, task).await, Ok(Ok(()))) {
                stuck.push(name);
            }
        }
        stuck
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turning {
    fn drop(&mut self) {
        self.runtimes.lock().handles.remove(&self.id);
    }
}
