//! A document that a provider publishes: fetched when needed, the last good one kept.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::time::Instant;

use crate::error::ProviderError;

type Fetched<T> = Result<Arc<T>, ProviderError>;
type Fetch<T> = dyn Fn() -> BoxFuture<'static, Result<T, ProviderError>> + Send + Sync;

/// One document. Callers that want it at the same time share one attempt, attempts keep a
/// distance, and no lock is held while one runs: a provider that hangs costs each caller at most
/// the deadline of the attempt.
pub(crate) struct Document<T> {
    fetch: Box<Fetch<T>>,
    /// Least time between the starts of two attempts.
    distance: Duration,
    state: Arc<Mutex<State<T>>>,
}

struct State<T> {
    good: Option<Arc<T>>,
    good_since: Option<Instant>,
    last_error: Option<ProviderError>,
    last_start: Option<Instant>,
    /// The start of the last attempt out of doubt.
    last_renewal: Option<Instant>,
    running: Option<Shared<BoxFuture<'static, Fetched<T>>>>,
}

/// Why an attempt is wanted. Each cause keeps its own distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// There is none, or it is time for a new one.
    Need,
    /// The one that is there, however fresh, does not do.
    Doubt,
}

impl<T: Send + Sync + 'static> Document<T> {
    pub fn new<F>(distance: Duration, fetch: F) -> Self
    where
        F: Fn() -> BoxFuture<'static, Result<T, ProviderError>> + Send + Sync + 'static,
    {
        Self {
            fetch: Box::new(fetch),
            distance,
            state: Arc::new(Mutex::new(State {
                good: None,
                good_since: None,
                last_error: None,
                last_start: None,
                last_renewal: None,
                running: None,
            })),
        }
    }

    /// The last good document, however old.
    pub fn good(&self) -> Option<Arc<T>> {
        self.lock().good.clone()
    }

    /// How old the last good document is.
    pub fn age(&self) -> Option<Duration> {
        self.lock().good_since.map(|since| since.elapsed())
    }

    /// The last good document, or the outcome of an attempt to get one.
    pub async fn get(&self) -> Fetched<T> {
        match self.good() {
            Some(good) => Ok(good),
            None => self.refresh().await,
        }
    }

    /// A new attempt, or the one that runs; too soon after the last one, what that one left.
    pub async fn refresh(&self) -> Fetched<T> {
        match self.attempt(Cause::Need) {
            Ok(attempt) => attempt.await,
            Err(known) => known,
        }
    }

    /// A new attempt even if the last good document has just come: the provider may have published
    /// another since. Too soon after the last one made for that reason, what is there.
    pub async fn renew(&self) -> Fetched<T> {
        match self.attempt(Cause::Doubt) {
            Ok(attempt) => attempt.await,
            Err(known) => known,
        }
    }

    fn attempt(&self, cause: Cause) -> Result<Shared<BoxFuture<'static, Fetched<T>>>, Fetched<T>> {
        let mut state = self.lock();
        if let Some(running) = &state.running {
            return Ok(running.clone());
        }
        let last = match cause {
            Cause::Need => state.last_start,
            Cause::Doubt => state.last_renewal,
        };
        if last.is_some_and(|start| start.elapsed() < self.distance) {
            return Err(match (&state.good, &state.last_error) {
                (Some(good), _) => Ok(Arc::clone(good)),
                (None, Some(error)) => Err(error.clone()),
                (None, None) => Err(ProviderError::invalid("no document yet")),
            });
        }
        let fetch = (self.fetch)();
        let cell = Arc::clone(&self.state);
        // A task of its own: the attempt must end, and be noted, though all who wait go away.
        let task = tokio::spawn(async move {
            let fetched = fetch.await.map(Arc::new);
            let mut state = cell.lock().unwrap_or_else(PoisonError::into_inner);
            state.running = None;
            match &fetched {
                Ok(good) => {
                    state.good = Some(Arc::clone(good));
                    state.good_since = Some(Instant::now());
                    state.last_error = None;
                }
                Err(error) => state.last_error = Some(error.clone()),
            }
            fetched
        });
        let cell = Arc::clone(&self.state);
        let running = async move {
            task.await.unwrap_or_else(|_| {
                cell.lock().unwrap_or_else(PoisonError::into_inner).running = None;
                Err(ProviderError::invalid("reading the document broke off"))
            })
        }
        .boxed()
        .shared();
        let now = Instant::now();
        state.last_start = Some(now);
        if cause == Cause::Doubt {
            state.last_renewal = Some(now);
        }
        state.running = Some(running.clone());
        Ok(running)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn counting(fails_first: usize) -> (Arc<AtomicUsize>, Document<usize>) {
        let calls = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&calls);
        let document = Document::new(Duration::from_secs(2), move || {
            let n = seen.fetch_add(1, Ordering::SeqCst);
            async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                if n < fails_first {
                    Err(ProviderError::invalid("down"))
                } else {
                    Ok(n)
                }
            }
            .boxed()
        });
        (calls, document)
    }

    #[tokio::test(start_paused = true)]
    async fn one_attempt_for_all_who_wait() {
        let (calls, document) = counting(0);
        let all = futures::future::join_all((0..20).map(|_| document.get())).await;
        assert!(all.iter().all(|r| **r.as_ref().unwrap() == 0));
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_keep_their_distance_and_the_good_one_is_kept() {
        let (calls, document) = counting(1);
        assert!(document.get().await.is_err());
        assert!(document.get().await.is_err());
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(*document.get().await.unwrap(), 1);
        assert_eq!(*document.refresh().await.unwrap(), 1);
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }
}
