//! From a commit to every stream.
//!
//! ```text
//! commit ─▶ storage wakes the tail reader ─▶ reads the change log from its cursor ─▶ one channel a kind ─▶ streams
//! ```
//!
//! What was written here comes to the tail reader by itself ([`Feed::committed`]). It takes that where it goes on from
//! its cursor without a gap, and reads from the log whatever else there is.
//!
//! There is one tail reader per databroker, however many streams follow. Each stream has a cursor of its own: it
//! first reads the log itself, then listens to its channel, and goes back to the log when it was too slow for the
//! channel. So a channel may drop things; a stream never skips any.
//!
//! The reader also looks at the log every second without being woken. That finds what a lost notification would
//! have told, and the time of the last look ([`State::as_of`]) tells how old a follower's data can be at most.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use postern_common::rpc::stubs::databroker::Record;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::storage::{Changes, Storage, StorageError};

/// How often the log is looked at without being woken.
const POLL: Duration = Duration::from_secs(1);
/// How long a look may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How many changes are read at once.
const PAGE: usize = 64;
/// How many transactions of our own may wait for the tail reader; it reads the log for the rest.
const COMMITTED: usize = 8;
/// How many pages a channel keeps for streams that are slow.
const CHANNEL: usize = 64;

/// Changes of one kind (or of all), in order. An empty page says: look at the log yourself.
pub type Page = Arc<[Arc<Record>]>;

/// `None`: changes of every kind.
type Kind = Option<String>;

/// What the tail reader knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The storage has not answered yet, or does not any more.
    Behind {
        since: Timestamp,
        reason: String,
        last: Option<Timestamp>,
    },
    /// Everything committed before this time has been handed to the channels.
    Current { as_of: Timestamp },
}

impl State {
    /// Everything committed before this time has been handed to the channels.
    pub fn as_of(&self) -> Option<Timestamp> {
        match self {
            Self::Behind { last, .. } => *last,
            Self::Current { as_of } => Some(*as_of),
        }
    }
}

#[derive(Clone)]
pub struct Feed {
    shared: Arc<Shared>,
}

struct Shared {
    storage: Arc<dyn Storage>,
    channels: Mutex<HashMap<Kind, broadcast::Sender<Page>>>,
    state: watch::Sender<State>,
    committed: mpsc::Sender<Committed>,
}

/// Records as a transaction of our own left them.
struct Committed {
    server_version: u64,
    records: Vec<Arc<Record>>,
}

impl Feed {
    /// The feed, and the tail reader that has to be run for it.
    pub fn new(
        storage: Arc<dyn Storage>,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let state = State::Behind {
            since: Timestamp::now(),
            reason: "the storage has not been read yet".to_owned(),
            last: None,
        };
        let (committed, waiting) = mpsc::channel(COMMITTED);
        let shared = Arc::new(Shared {
            storage,
            channels: Mutex::default(),
            state: watch::Sender::new(state),
            committed,
        });
        let reader = TailReader {
            shared: Arc::clone(&shared),
            committed: waiting,
            position: None,
        };
        (Self { shared }, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = reader.run() => {}
            }
        })
    }

    /// Changes from now on. Read the log *after* subscribing, and again after each empty page, so that nothing falls
    /// in between.
    pub fn subscribe(&self, kind: Kind) -> broadcast::Receiver<Page> {
        let mut channels = self.shared.channels();
        channels
            .entry(kind)
            .or_insert_with(|| broadcast::Sender::new(CHANNEL))
            .subscribe()
    }

    /// Tells what was just committed here, so that it need not be read again. Only a shortcut: the log has it too.
    pub fn committed(&self, server_version: u64, records: Vec<Arc<Record>>) {
        let committed = Committed {
            server_version,
            records,
        };
        // When too much waits already, the log is read.
        let _ = self.shared.committed.try_send(committed);
    }

    pub fn state(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }
}

impl Shared {
    fn channels(&self) -> std::sync::MutexGuard<'_, HashMap<Kind, broadcast::Sender<Page>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct TailReader {
    shared: Arc<Shared>,
    committed: mpsc::Receiver<Committed>,
    position: Option<Position>,
}

/// How far the log has been read.
#[derive(Clone, Copy)]
struct Position {
    server_version: u64,
    version: u64,
}

impl TailReader {
    async fn run(mut self) {
        loop {
            let started = Timestamp::now();
            while let Ok(committed) = self.committed.try_recv() {
                self.take_over(committed);
            }
            match self.read().await {
                // A full page: there may be more.
                Ok(PAGE..) => continue,
                Ok(_) => self.became_current(started),
                Err(error) => self.fell_behind(&error),
            }
            let storage = Arc::clone(&self.shared.storage);
            let mut woken = pin!(tokio::time::timeout(POLL, storage.changed().notified()));
            loop {
                tokio::select! {
                    _ = &mut woken => break,
                    Some(committed) = self.committed.recv() => self.take_over(committed),
                }
            }
        }
    }

    /// Hands on what goes on from the cursor without a gap: a version is one change and no other.
    fn take_over(&mut self, committed: Committed) {
        let Some(position) = &mut self.position else {
            return;
        };
        if committed.server_version != position.server_version {
            return;
        }
        let mut records = committed.records;
        records.retain(|record| {
            let is_next = record.version == position.version + 1;
            position.version += u64::from(is_next);
            is_next
        });
        for page in records.chunks(PAGE) {
            self.hand_on(&page.into());
        }
    }

    /// Reads one page and hands it on; returns its length.
    async fn read(&mut self) -> Result<usize, StorageError> {
        let Some(position) = self.position else {
            let head = deadline(self.shared.storage.head()).await?;
            self.position = Some(Position {
                server_version: head.server_version,
                version: head.latest,
            });
            // Whoever looked at the log before this moment may not have seen all that lies before the cursor.
            self.shared
                .channels()
                .retain(|_, channel| channel.send(Page::default()).is_ok());
            return Ok(0);
        };
        let changes = deadline(self.shared.storage.changes(None, position.version, PAGE)).await?;
        if !continues(position, &changes) {
            tracing::warn!(
                from = position.version,
                latest = changes.latest,
                server_version_before = position.server_version,
                server_version = changes.server_version,
                "the data set is another one, or changes were lost; followers start again"
            );
            self.position = None;
            return Ok(PAGE);
        }
        let length = changes.records.len();
        if let Some(last) = changes.records.last() {
            self.position = Some(Position {
                version: last.version,
                ..position
            });
            self.hand_on(&changes.records.into_iter().map(Arc::new).collect());
        }
        Ok(length)
    }

    fn hand_on(&self, records: &Page) {
        let mut channels = self.shared.channels();
        channels.retain(|kind, channel| {
            let page: Page = match kind {
                None => Arc::clone(records),
                Some(kind) => records
                    .iter()
                    .filter(|it| it.r#type == *kind)
                    .cloned()
                    .collect(),
            };
            // Fails when nobody listens any more; then the channel is not needed either.
            page.is_empty() || channel.send(page).is_ok()
        });
    }

    fn became_current(&self, as_of: Timestamp) {
        let before = self.shared.state.send_replace(State::Current { as_of });
        if let State::Behind {
            since,
            last: Some(_),
            ..
        } = before
        {
            tracing::info!(%since, "the storage answers again");
        }
    }

    fn fell_behind(&self, error: &StorageError) {
        let reason = crate::causes(error);
        self.shared.state.send_modify(|state| {
            let last = state.as_of();
            let since = match state {
                State::Behind { since, .. } => *since,
                State::Current { .. } => {
                    tracing::error!(%reason, "the storage does not answer; followers keep what they have");
                    Timestamp::now()
                }
            };
            *state = State::Behind { since, reason, last };
        });
    }
}

/// Whether the log goes on where the cursor is.
fn continues(position: Position, changes: &Changes) -> bool {
    changes.server_version == position.server_version
        && changes.forgotten <= position.version
        && position.version <= changes.latest
}

async fn deadline<T>(
    reading: impl Future<Output = Result<T, StorageError>>,
) -> Result<T, StorageError> {
    tokio::time::timeout(DEADLINE, reading)
        .await
        .unwrap_or(Err(StorageError::Deadline(DEADLINE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(server_version: u64, forgotten: u64, latest: u64) -> Changes {
        Changes {
            server_version,
            latest,
            forgotten,
            records: Vec::new(),
        }
    }

    #[test]
    fn a_cursor_goes_on_only_in_the_same_log() {
        let position = Position {
            server_version: 1,
            version: 10,
        };
        assert!(continues(position, &changes(1, 0, 10)));
        assert!(continues(position, &changes(1, 10, 15)));
        // Another data set or timeline; changes forgotten before they were read; a log that is behind the cursor.
        assert!(!continues(position, &changes(2, 0, 10)));
        assert!(!continues(position, &changes(1, 11, 15)));
        assert!(!continues(position, &changes(1, 0, 9)));
    }
}
