//! One task writes: everything that waits goes into one transaction.
//!
//! Commits queue behind the row that gives out versions, so it is the number of transactions that costs, not the
//! number of records in them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_common::rpc::stubs::databroker::Record;
use postern_common::telemetry::RateLimit;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::feed::Feed;
use crate::storage::{Operation, Refused, Storage, StorageError};

/// Largest record, in bytes.
pub const MAX_RECORD: usize = 1 << 20;
/// Most bytes that go into one transaction, and most that one request may write.
pub const MAX_BATCH: usize = 4 << 20;
/// Longest `type` and `id`, in bytes: they are keys of indices.
pub const MAX_NAME: usize = 1_024;
/// How many requests may wait to be written.
const MAX_WAITING: usize = 256;
/// How long a transaction may take before its writers are told that nothing is known.
const DEADLINE: Duration = Duration::from_secs(10);

/// One line about writes that failed in this time.
const LINES: Duration = Duration::from_secs(10);

/// Why something was not written. After `Storage` it may have been written all the same.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    #[error("record {id:?} has {size} bytes, at most {MAX_RECORD} are allowed")]
    RecordTooLarge { id: String, size: usize },
    #[error("the request has {0} bytes of records, at most {MAX_BATCH} are allowed; split it")]
    RequestTooLarge(usize),
    #[error("{MAX_WAITING} requests are already waiting to be written")]
    Busy,
    #[error("a record needs a type and an id of at most {MAX_NAME} bytes, without NUL: {0:?}")]
    Name(String),
    #[error("{0}")]
    Refused(#[from] Refused),
    #[error("{0}")]
    Storage(Arc<StorageError>),
    #[error("the databroker is stopping")]
    Stopping,
}

/// What was written, with the versions it got.
#[derive(Debug)]
pub struct Receipt {
    pub server_version: u64,
    pub records: Vec<Record>,
}

#[derive(Clone)]
pub struct Writer {
    queue: mpsc::Sender<Job>,
}

struct Job {
    operation: Operation,
    size: usize,
    reply: oneshot::Sender<Result<Receipt, WriteError>>,
}

impl Writer {
    /// The writer, and the task that has to be run for it.
    pub fn new(
        storage: Arc<dyn Storage>,
        feed: Feed,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, jobs) = mpsc::channel(MAX_WAITING);
        (Self { queue }, run(storage, feed, jobs, stop))
    }

    /// Writes, all or nothing.
    pub async fn write(&self, operation: Operation) -> Result<Receipt, WriteError> {
        let size = measure(&operation)?;
        let (reply, answer) = oneshot::channel();
        self.queue
            .try_send(Job {
                operation,
                size,
                reply,
            })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => WriteError::Busy,
                mpsc::error::TrySendError::Closed(_) => WriteError::Stopping,
            })?;
        // The task answers within its deadline, or ends and drops the sender.
        answer.await.unwrap_or(Err(WriteError::Stopping))
    }
}

async fn run(
    storage: Arc<dyn Storage>,
    feed: Feed,
    mut jobs: mpsc::Receiver<Job>,
    stop: CancellationToken,
) {
    let mut next = None;
    let told = RateLimit::new(LINES);
    loop {
        let first = if let Some(job) = next.take() {
            job
        } else {
            let job = tokio::select! {
                biased;
                () = stop.cancelled() => None,
                job = jobs.recv() => job,
            };
            let Some(job) = job else { return };
            job
        };
        let mut size = first.size;
        let mut batch = vec![first];
        while let Ok(job) = jobs.try_recv() {
            if size + job.size > MAX_BATCH {
                next = Some(job);
                break;
            }
            size += job.size;
            batch.push(job);
        }
        write(&*storage, &feed, batch, &told).await;
    }
}

async fn write(storage: &dyn Storage, feed: &Feed, batch: Vec<Job>, told: &RateLimit) {
    let (operations, replies): (Vec<_>, Vec<_>) = batch
        .into_iter()
        .map(|job| (job.operation, job.reply))
        .unzip();
    let written = tokio::time::timeout(DEADLINE, storage.write(operations))
        .await
        .unwrap_or(Err(StorageError::Deadline(DEADLINE)));
    // A caller that went away does not want its answer any more.
    match written {
        Ok(written) => {
            let server_version = written.server_version;
            let records = written.results.iter().flatten().flatten();
            feed.committed(server_version, records.cloned().map(Arc::new).collect());
            for (reply, result) in replies.into_iter().zip(written.results) {
                let result = result.map(|records| Receipt {
                    server_version,
                    records,
                });
                let _ = reply.send(result.map_err(WriteError::Refused));
            }
        }
        Err(error) => {
            let error = Arc::new(error);
            if let Some(held_back) = told.pass("", Instant::now()) {
                tracing::warn!(
                    error = &*error as &dyn std::error::Error,
                    requests = replies.len(),
                    held_back,
                    "records were not written"
                );
            }
            for reply in replies {
                let _ = reply.send(Err(WriteError::Storage(Arc::clone(&error))));
            }
        }
    }
}

/// The bytes of an operation, if it is within the limits.
fn measure(operation: &Operation) -> Result<usize, WriteError> {
    let records = operation.records();
    let mut total = 0;
    for record in records {
        for name in [&record.r#type, &record.id] {
            if name.is_empty() || name.len() > MAX_NAME || name.contains('\0') {
                let shown = name.chars().take(80).collect();
                return Err(WriteError::Name(shown));
            }
        }
        let size = record.encoded_len();
        if size > MAX_RECORD {
            return Err(WriteError::RecordTooLarge {
                id: record.id.clone(),
                size,
            });
        }
        total += size;
    }
    if total > MAX_BATCH {
        return Err(WriteError::RequestTooLarge(total));
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::local::Local;

    fn record(id: &str, bytes: usize) -> Record {
        Record {
            r#type: "t".to_owned(),
            id: id.to_owned(),
            data: Some(prost_types::Any {
                type_url: "t".to_owned(),
                value: vec![0; bytes],
            }),
            ..Record::default()
        }
    }

    fn start(storage: Arc<dyn Storage>) -> (Writer, impl Future<Output = ()> + Send) {
        let stop = CancellationToken::new();
        let (feed, _) = Feed::new(Arc::clone(&storage), stop.clone());
        Writer::new(storage, feed, stop)
    }

    #[test]
    fn limits_are_checked_before_the_queue() {
        let put = |records| measure(&Operation::Put(records));
        assert!(put(vec![record("a", 1_000)]).is_ok());
        assert!(matches!(
            put(vec![record("a", MAX_RECORD)]),
            Err(WriteError::RecordTooLarge { .. })
        ));
        let many = (0..5)
            .map(|n| record(&n.to_string(), MAX_RECORD - 100))
            .collect();
        assert!(matches!(put(many), Err(WriteError::RequestTooLarge(_))));
        for id in ["", "a\0b", &"x".repeat(MAX_NAME + 1)] {
            assert!(
                matches!(put(vec![record(id, 1)]), Err(WriteError::Name(_))),
                "{id:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_refused_request_does_not_touch_the_others_of_its_batch() {
        let storage: Arc<dyn Storage> = Arc::new(Local::in_memory().unwrap());
        let (writer, task) = start(storage);
        let bad = Operation::PutIf {
            record: record("a", 1),
            version: Some(77),
        };
        let (good, bad, other) = (
            writer.write(Operation::Put(vec![record("b", 1)])),
            writer.write(bad),
            writer.write(Operation::Put(vec![record("c", 1)])),
        );
        // All three wait before the task begins, so they share a transaction.
        let (good, bad, other, ()) = tokio::join!(good, bad, other, async {
            tokio::spawn(task);
        });
        assert_eq!(good.unwrap().records[0].version, 1);
        assert!(matches!(
            bad,
            Err(WriteError::Refused(Refused::Conflict { .. }))
        ));
        assert_eq!(other.unwrap().records[0].version, 2);
    }

    #[tokio::test]
    async fn more_than_the_queue_holds_is_refused_at_once() {
        let storage: Arc<dyn Storage> = Arc::new(Local::in_memory().unwrap());
        let (writer, _task) = start(storage);
        let mut waiting = Vec::new();
        for n in 0..MAX_WAITING {
            let mut write = Box::pin({
                let writer = writer.clone();
                async move {
                    writer
                        .write(Operation::Put(vec![record(&n.to_string(), 1)]))
                        .await
                }
            });
            assert!(futures::poll!(&mut write).is_pending());
            waiting.push(write);
        }
        let one_more = writer.write(Operation::Put(vec![record("x", 1)])).await;
        assert!(matches!(one_more, Err(WriteError::Busy)));
    }
}
