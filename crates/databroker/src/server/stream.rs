//! `SyncLatest` and `Sync`: everything there is, and every change after it.

use std::time::Duration;

use postern_common::crypto::random;
use postern_common::rpc::stubs::databroker::{
    Record, SyncLatestRequest, SyncLatestResponse, SyncRequest, SyncResponse, TypedOptions,
    Versions, sync_latest_response, sync_response,
};
use prost::Message as _;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};

use super::{Service, deadline, kind};
use crate::feed::{Page, State};
use crate::storage::{Changes, PageStart, timestamp};

/// Ask by this metadata to be told, about once a second, that the stream is alive and current.
pub const HEARTBEAT: &str = "x-postern-heartbeat";

/// How many messages wait for a slow client before its stream waits.
const BUFFER: usize = 64;
/// How many changes are read at once, and how many records at first.
const PAGE: usize = 64;
/// How many bytes a page of records should have, and its bounds in records. Large pages make a first sync quick;
/// large records must not make it large.
const PAGE_BYTES: usize = 1 << 20;
const PAGE_BOUNDS: std::ops::RangeInclusive<usize> = 8..=1_024;
/// How many pages are read at once for all that copy: fewer than there are connections to Postgres, so that writers
/// and streams find one when every follower starts anew.
pub(crate) const COPIES: usize = 3;
/// A client that takes nothing for this long is given up.
const STALLED: Duration = Duration::from_secs(60);
/// How long a stream waits before it looks again for a storage that was away.
const RETRY: Duration = Duration::from_millis(500);
/// Streams end after this time, plus up to as much again, so that they spread over replicas that came later.
const MAX_AGE: Duration = Duration::from_secs(30 * 60);
/// Our own followers open the next stream before they leave the old one, all by themselves and by this time.
const MAX_AGE_OF_OURS: Duration = Duration::from_secs(65 * 60);

type Sender<T> = mpsc::Sender<Result<T, Status>>;

pub(super) async fn sync_latest(
    service: &Service,
    request: SyncLatestRequest,
) -> Result<ReceiverStream<Result<SyncLatestResponse, Status>>, Status> {
    let kind = kind(request.r#type)?;
    // Before the records: changes made while they are read come again in the Sync that follows.
    let head = deadline(service.storage.head()).await?;
    let (sender, receiver) = mpsc::channel(BUFFER);
    let service = service.clone();
    tokio::spawn(async move {
        let versions = Versions {
            server_version: head.server_version,
            latest_record_version: head.latest,
        };
        let ended = tokio::select! {
            () = service.stop.cancelled() => Err(stopping()),
            ended = send_latest(&service, kind, versions, &sender) => ended,
        };
        finish(&sender, ended).await;
    });
    Ok(ReceiverStream::new(receiver))
}

async fn send_latest(
    service: &Service,
    kind: Option<String>,
    versions: Versions,
    sender: &Sender<SyncLatestResponse>,
) -> Result<(), Status> {
    use sync_latest_response::Response;
    let message = |response| SyncLatestResponse {
        response: Some(response),
    };

    let read = async |start: PageStart, limit: usize| {
        // Never closed. However many copy at once, others have their turn in between.
        let _turn = service.copies.acquire().await;
        deadline(service.storage.page(kind.clone(), start, limit)).await
    };
    let send_page = async |page: Vec<Record>| {
        for record in page {
            send(sender, message(Response::Record(record))).await?;
        }
        Ok::<_, Status>(())
    };
    let mut limit = PAGE;
    let start = PageStart::After {
        kind: String::new(),
        version: 0,
    };
    let mut page = read(start, limit).await?;
    while page.len() == limit
        && let Some(last) = page.last()
    {
        let start = PageStart::After {
            kind: last.r#type.clone(),
            version: last.version,
        };
        limit = next_limit(&page);
        // The storage reads the next page while this one is on its way.
        let (next, ()) = futures::try_join!(read(start, limit), send_page(page))?;
        page = next;
    }
    send_page(page).await?;
    for options in options(service, kind.as_deref()).await? {
        send(sender, message(Response::Options(options))).await?;
    }
    let head = deadline(service.storage.head()).await?;
    if head.server_version != versions.server_version {
        return Err(other_data_set());
    }
    send(sender, message(Response::Versions(versions))).await
}

/// As many records as make about [`PAGE_BYTES`], going by those of the last page.
fn next_limit(page: &[Record]) -> usize {
    let bytes: usize = page.iter().map(Record::encoded_len).sum();
    let each = bytes / page.len().max(1);
    (PAGE_BYTES / each.max(1)).clamp(*PAGE_BOUNDS.start(), *PAGE_BOUNDS.end())
}

pub(super) async fn sync(
    service: &Service,
    request: Request<SyncRequest>,
) -> Result<ReceiverStream<Result<SyncResponse, Status>>, Status> {
    let heartbeat = request.metadata().contains_key(HEARTBEAT);
    let request = request.into_inner();
    let mut follower = Follower {
        service: service.clone(),
        kind: kind(request.r#type)?,
        server_version: request.server_version,
        cursor: request.record_version,
        wait: request.wait.unwrap_or(true),
        heartbeat,
    };
    // Refused before anything is sent, if it has to be.
    let first = follower.read().await?;
    let (sender, receiver) = mpsc::channel(BUFFER);
    tokio::spawn(async move {
        let stop = follower.service.stop.clone();
        let ended = tokio::select! {
            () = stop.cancelled() => Err(stopping()),
            ended = follower.run(first, &sender) => ended,
        };
        finish(&sender, ended).await;
    });
    Ok(ReceiverStream::new(receiver))
}

/// One `Sync` stream.
struct Follower {
    service: Service,
    kind: Option<String>,
    server_version: u64,
    /// Version of the last change that was sent, or that the client had.
    cursor: u64,
    wait: bool,
    heartbeat: bool,
}

impl Follower {
    async fn run(&mut self, first: Changes, sender: &Sender<SyncResponse>) -> Result<(), Status> {
        let end = tokio::time::sleep(age(self.heartbeat));
        tokio::pin!(end);
        for options in options(&self.service, self.kind.as_deref()).await? {
            send(sender, message(sync_response::Response::Options(options))).await?;
        }
        self.send_all(first.records, sender).await?;

        let mut state = self.service.feed.state();
        loop {
            // Subscribed before the log is read: what is committed in between comes from both, and once is enough.
            let mut channel = self.service.feed.subscribe(self.kind.clone());
            self.catch_up(sender).await?;
            if !self.wait {
                return Ok(());
            }
            loop {
                tokio::select! {
                    // Changes go before the heartbeat that says that they were all.
                    biased;
                    page = channel.recv() => match page {
                        Ok(page) if page.is_empty() => break,
                        Ok(page) => self.send_page(&page, sender).await?,
                        // Too slow for the channel: the log has it all.
                        Err(RecvError::Lagged(_)) => break,
                        Err(RecvError::Closed) => return Err(stopping()),
                    },
                    changed = state.changed(), if self.heartbeat => {
                        changed.map_err(|_| stopping())?;
                        let as_of = match &*state.borrow_and_update() {
                            State::Current { as_of } => *as_of,
                            State::Behind { .. } => continue,
                        };
                        let heartbeat = sync_response::Response::Heartbeat(timestamp(as_of));
                        send(sender, message(heartbeat)).await?;
                    }
                    () = sender.closed() => return Ok(()),
                    () = &mut end => {
                        return Err(Status::unavailable("the stream has lasted long enough; open the next one"));
                    }
                }
            }
        }
    }

    /// Sends what is in the log behind the cursor. Who wants to wait also waits for a storage that is away.
    async fn catch_up(&mut self, sender: &Sender<SyncResponse>) -> Result<(), Status> {
        loop {
            let changes = match self.read().await {
                Err(status) if self.wait && status.code() == Code::Unavailable => {
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => continue,
                        () = sender.closed() => return Ok(()),
                    }
                }
                read => read?,
            };
            let full = changes.records.len() == PAGE;
            self.send_all(changes.records, sender).await?;
            if !full {
                return Ok(());
            }
        }
    }

    /// The next changes of the log, if it goes on where the cursor is.
    async fn read(&self) -> Result<Changes, Status> {
        let storage = &self.service.storage;
        let changes = deadline(storage.changes(self.kind.clone(), self.cursor, PAGE)).await?;
        if changes.server_version != self.server_version {
            return Err(other_data_set());
        }
        if self.cursor < changes.forgotten {
            return Err(Status::aborted(
                "changes after this version have left the log; start again with SyncLatest",
            ));
        }
        if self.cursor > changes.latest {
            return Err(Status::aborted(
                "there is no such version yet; start again with SyncLatest",
            ));
        }
        Ok(changes)
    }

    /// Sends what the log has not told already.
    async fn send_page(
        &mut self,
        page: &Page,
        sender: &Sender<SyncResponse>,
    ) -> Result<(), Status> {
        for record in page.iter() {
            if record.version > self.cursor {
                self.send(Record::clone(record), sender).await?;
            }
        }
        Ok(())
    }

    async fn send_all(
        &mut self,
        records: Vec<Record>,
        sender: &Sender<SyncResponse>,
    ) -> Result<(), Status> {
        for record in records {
            self.send(record, sender).await?;
        }
        Ok(())
    }

    async fn send(&mut self, record: Record, sender: &Sender<SyncResponse>) -> Result<(), Status> {
        let version = record.version;
        send(sender, message(sync_response::Response::Record(record))).await?;
        self.cursor = version;
        Ok(())
    }
}

fn message(response: sync_response::Response) -> SyncResponse {
    SyncResponse {
        response: Some(response),
    }
}

/// Of the type asked for, or of every type that has some.
async fn options(service: &Service, kind: Option<&str>) -> Result<Vec<TypedOptions>, Status> {
    let all = deadline(service.storage.options()).await?;
    Ok(all
        .into_iter()
        .filter(|(it, _)| kind.is_none_or(|kind| kind == it))
        .map(|(type_url, options)| TypedOptions {
            type_url,
            options: Some(options),
        })
        .collect())
}

async fn send<T>(sender: &Sender<T>, message: T) -> Result<(), Status> {
    match tokio::time::timeout(STALLED, sender.send(Ok(message))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Status::cancelled("the client went away")),
        Err(_) => Err(Status::unavailable("the client took nothing for a minute")),
    }
}

/// Tells why the stream ends, to whom is still there.
async fn finish<T>(sender: &Sender<T>, ended: Result<(), Status>) {
    if let Err(status) = ended {
        let _ = tokio::time::timeout(STALLED, sender.send(Err(status))).await;
    }
}

/// Only our own followers ask for heartbeats.
fn age(heartbeat: bool) -> Duration {
    if heartbeat {
        return MAX_AGE_OF_OURS;
    }
    MAX_AGE.mul_f64(1.0 + f64::from(u16::from_be_bytes(random::bytes())) / f64::from(u16::MAX))
}

fn other_data_set() -> Status {
    Status::aborted("the data set is another one; start again with SyncLatest")
}

fn stopping() -> Status {
    Status::unavailable("this databroker is stopping; follow another one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_about_a_megabyte() {
        let of = |bytes: usize| Record {
            id: "x".repeat(bytes),
            ..Record::default()
        };
        assert_eq!(next_limit(&[]), 1_024);
        assert_eq!(next_limit(&vec![of(100); 64]), 1_024);
        assert_eq!(next_limit(&[of(4_000), of(4_192)]), 255);
        assert_eq!(next_limit(&[of(1 << 20)]), 8);
    }
}
