//! Housekeeping: forgets old changes, deletes what is past its time to live, seals anew after a change of keys.
//! Every replica does it; each round is a short transaction.

use std::sync::Arc;
use std::time::Duration;

use postern_common::crypto::random;
use tokio_util::sync::CancellationToken;

use crate::options;
use crate::storage::{Storage, StorageError};

/// How long the change log reaches back, and how often it is trimmed.
#[derive(Debug, Clone, Copy)]
pub struct Housekeeping {
    /// A follower that was away for longer starts again with `SyncLatest`.
    pub retention: Duration,
    pub every: Duration,
}

impl Default for Housekeeping {
    fn default() -> Self {
        Self {
            retention: Duration::from_secs(60 * 60),
            every: Duration::from_secs(60),
        }
    }
}

/// How long a round may take.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) async fn run(storage: Arc<dyn Storage>, plan: Housekeeping, stop: CancellationToken) {
    let work = async {
        set_defaults(&*storage).await;
        loop {
            // Jittered, so that replicas that started together do not meet every time.
            let jitter = f64::from(u16::from_be_bytes(random::bytes())) / f64::from(u16::MAX);
            tokio::time::sleep(plan.every.mul_f64(0.8 + 0.4 * jitter)).await;
            if let Err(error) = rounds(&*storage, plan.retention).await {
                tracing::warn!(
                    reason = crate::causes(&error),
                    "housekeeping failed; it is tried again"
                );
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// Rounds until there is nothing left to do.
async fn rounds(storage: &dyn Storage, retention: Duration) -> Result<(), StorageError> {
    loop {
        let done = tokio::time::timeout(DEADLINE, storage.tidy(retention))
            .await
            .unwrap_or(Err(StorageError::Deadline(DEADLINE)))?;
        if done == crate::storage::Tidied::default() {
            return Ok(());
        }
        tracing::debug!(done.forgotten, done.expired, done.resealed, "housekeeping");
    }
}

/// Sets the options that we want, when the storage can be reached.
async fn set_defaults(storage: &dyn Storage) {
    let mut wait = Duration::from_millis(500);
    while let Err(error) = try_set_defaults(storage).await {
        tracing::debug!(reason = crate::causes(&error), "options are not set yet");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(30));
    }
}

async fn try_set_defaults(storage: &dyn Storage) -> Result<(), StorageError> {
    let present = storage.options().await?;
    for wanted in options::defaults() {
        if !present.contains(&wanted) {
            storage.set_options(wanted.0, wanted.1).await?;
        }
    }
    Ok(())
}
