//! Letting go of what is large without holding anybody up.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// How long others may go on using it before it is theirs to free: longer than a decision may wait.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);

/// Frees `large` on a thread where no request runs, once those who still read it are done: a copy of
/// a million records takes most of a second. Needs a tokio runtime.
pub fn apart<T: Send + Sync + 'static>(large: Arc<T>) {
    tokio::spawn(async move {
        let begun = Instant::now();
        while Arc::strong_count(&large) > 1 && begun.elapsed() < PATIENCE {
            tokio::time::sleep(PAUSE).await;
        }
        tokio::task::spawn_blocking(move || drop(large));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_reads_on_does_not_free_it() {
        struct Told(std::sync::mpsc::Sender<std::thread::ThreadId>);
        impl Drop for Told {
            fn drop(&mut self) {
                self.0.send(std::thread::current().id()).unwrap();
            }
        }
        let (sender, freed) = std::sync::mpsc::channel();
        let large = Arc::new(Told(sender));
        apart(Arc::clone(&large));
        assert!(freed.try_recv().is_err(), "somebody reads it");
        drop(large);
        let by = tokio::task::spawn_blocking(move || freed.recv().unwrap());
        assert_ne!(by.await.unwrap(), std::thread::current().id());
    }
}
