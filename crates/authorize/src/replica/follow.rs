//! Keeps the copy current: copy everything, follow every change, and again from the start when the
//! databroker has forgotten where we are.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use postern_common::crypto::random;
use postern_common::free;
use postern_common::lifecycle::NotReady;
use postern_common::rpc::stubs::databroker::{
    SyncLatestRequest, SyncRequest, SyncResponse, sync_latest_response, sync_response,
};
use tokio::sync::watch;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status, Streaming};

use super::Replica;
use super::age::Beats;
use super::data::Data;
use crate::records::KeepTokens;

/// Asks a Postern databroker to say every second that its feed is current.
const HEARTBEAT_METADATA: &str = "x-postern-heartbeat";

/// A stream that beats is dead when it has been silent for so long.
const SILENCE: Duration = Duration::from_secs(10);

/// The first copy ends when nothing comes for so long.
const FILL_SILENCE: Duration = Duration::from_secs(30);

/// Waiting between attempts doubles up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

/// After a change of the data set every follower copies anew. Spread over this time, while decisions
/// go on from the old copy.
const SPREAD: Duration = Duration::from_millis(1500);

/// A stream is followed by another after this time, and up to as much again, so that databrokers
/// that came later get their share and no stream outlives a secret that was replaced.
const STREAM_AGE: Duration = Duration::from_secs(30 * 60);

/// How often the databrokers are asked which data they have.
const COMPARE: Duration = Duration::from_secs(5);
/// How long two different answers may come from a move from one data set to another.
const MOVING: Duration = Duration::from_secs(3);
/// So many equal answers, one a second, and they agree again.
const AGREE: u32 = 30;
/// While they disagree, how long the databroker of the present copy is waited for before another's
/// data counts.
const FAITH: Duration = Duration::from_secs(30);

impl Replica {
    /// Follows the databroker for ever. Every status is tried again. `ready` is dropped with the
    /// first copy.
    pub async fn follow(&self, keep_tokens: watch::Receiver<KeepTokens>, ready: NotReady) {
        tokio::select! {
            never = self.keep_current(keep_tokens, ready) => match never {},
            never = self.compare() => match never {},
        }
    }

    async fn keep_current(
        &self,
        mut keep_tokens: watch::Receiver<KeepTokens>,
        ready: NotReady,
    ) -> Infallible {
        let mut ready = Some(ready);
        let mut wait = Backoff::default();
        loop {
            let keep = *keep_tokens.borrow_and_update();
            let begun = Instant::now();
            self.metrics.sync_latest.inc();
            let mut data = Data::new(keep);
            let copied = self.copy(&mut data).await;
            let data = Arc::new(data);
            if let Err(status) = copied {
                // It may have nearly all.
                free::apart(data);
                self.metrics.sync_latest_failures.inc();
                if let Some(not_ready) = &ready {
                    not_ready.because(&format!(
                        "the databroker's records could not be copied yet: {}",
                        status.message()
                    ));
                }
                self.complain("copy of all records", &status);
                wait.pause().await;
                continue;
            }
            wait = Backoff::default();
            tracing::info!(
                server_version = data.server_version,
                record_version = data.version(),
                sessions = data.sessions.len(),
                users = data.users.len(),
                took = ?begun.elapsed(),
                "copied the databroker's records"
            );
            self.install(Arc::clone(&data), begun);
            drop(ready.take());
            self.follow_copy(&data, &mut keep_tokens).await;
        }
    }

    /// Keeps `data` current until it has to be replaced.
    async fn follow_copy(&self, data: &Arc<Data>, keep_tokens: &mut watch::Receiver<KeepTokens>) {
        let mut wait = Backoff::default();
        let mut followed = Instant::now();
        loop {
            let before = data.version();
            let status = tokio::select! {
                status = self.sync(data, &mut followed) => status,
                () = wants_tokens(keep_tokens, data.keep_tokens) => return,
            };
            if status.code() == Code::Aborted {
                // The next try may reach one that has our data.
                if self.is_split() && followed.elapsed() < FAITH {
                    wait.pause().await;
                    continue;
                }
                tracing::info!(
                    reason = status.message(),
                    "the databroker has other data or a gap; copying all records again"
                );
                tokio::time::sleep(SPREAD.mul_f64(random_fraction())).await;
                return;
            }
            self.metrics.sync_failures.inc();
            self.complain("stream of changes", &status);
            if data.version() != before {
                wait = Backoff::default();
            }
            wait.pause().await;
        }
    }

    /// Copies everything.
    async fn copy(&self, data: &mut Data) -> Result<(), Status> {
        let mut client = self.client.clone();
        let request = Request::new(SyncLatestRequest::default());
        let mut stream = in_time(FILL_SILENCE, client.sync_latest(request))
            .await?
            .into_inner();
        loop {
            let Some(message) = in_time(FILL_SILENCE, stream.message()).await? else {
                return Err(Status::unavailable("the copy ended before it was complete"));
            };
            match message.response {
                Some(sync_latest_response::Response::Record(record)) => {
                    self.apply(data, &record);
                }
                Some(sync_latest_response::Response::Versions(versions)) => {
                    data.server_version = versions.server_version;
                    data.restart_at(versions.latest_record_version);
                    return Ok(());
                }
                Some(sync_latest_response::Response::Options(_)) | None => {}
            }
        }
    }

    /// Takes over changes until the stream ends; returns why it did. Tells when it was open.
    async fn sync(&self, data: &Data, followed: &mut Instant) -> Status {
        let stream = match self.open(data).await {
            Ok(stream) => stream,
            Err(status) => return status,
        };
        let ended = self.take_over(data, stream, stream_age()).await;
        *followed = Instant::now();
        match ended {
            Ok(()) => Status::unavailable("the databroker ended the stream"),
            Err(status) => status,
        }
    }

    /// A stream of the changes that `data` does not have.
    async fn open(&self, data: &Data) -> Result<Streaming<SyncResponse>, Status> {
        self.metrics.sync.inc();
        let mut request = Request::new(SyncRequest {
            server_version: data.server_version,
            record_version: data.version(),
            r#type: String::new(),
            wait: None,
        });
        let metadata = request.metadata_mut();
        metadata.insert(HEARTBEAT_METADATA, MetadataValue::from_static("1"));
        let mut client = self.client.clone();
        let stream = in_time(FILL_SILENCE, client.sync(request)).await?;
        Ok(stream.into_inner())
    }

    /// The stream that follows one that has become old. The old one serves until it is open.
    async fn successor(&self, data: &Data, age: Duration) -> Streaming<SyncResponse> {
        let mut wait = age;
        loop {
            tokio::time::sleep(wait).await;
            match self.open(data).await {
                Ok(stream) => return stream,
                Err(status) => self.complain("next stream of changes", &status),
            }
            wait = SILENCE;
        }
    }

    async fn take_over(
        &self,
        data: &Data,
        mut stream: Streaming<SyncResponse>,
        age: Duration,
    ) -> Result<(), Status> {
        let mut beats = None;
        let mut successor = pin!(self.successor(data, age));
        loop {
            let message = async {
                if beats.is_some() {
                    in_time(SILENCE, stream.message()).await
                } else {
                    stream.message().await
                }
            };
            let message = tokio::select! {
                message = message => message?,
                next = &mut successor => {
                    // What both streams tell is taken over once.
                    stream = next;
                    beats = None;
                    successor.set(self.successor(data, stream_age()));
                    continue;
                }
            };
            let Some(message) = message else {
                return Ok(());
            };
            match message.response {
                Some(sync_response::Response::Record(record)) => {
                    self.changed(data, &record);
                }
                Some(sync_response::Response::Heartbeat(time)) => {
                    let now = Instant::now();
                    let beats = beats.get_or_insert_with(|| Beats::new(now));
                    if let Ok(as_of) = Timestamp::new(time.seconds, time.nanos) {
                        self.current_at.set(beats.heard(as_of, now));
                    }
                }
                Some(sync_response::Response::Options(_)) | None => {}
            }
        }
    }

    /// Finds databrokers behind the one name that keep different data, such as two that each have
    /// memory storage of their own.
    ///
    /// Calls are spread over all of them, so sooner or later another answers than the one whose
    /// changes are followed. That both have different data for a moment is normal, when one has
    /// heard of a new primary or a `Clear` before the other. If the one that is followed goes on to
    /// confirm our copy after that moment, they are two.
    async fn compare(&self) -> Infallible {
        let mut agreed = 0;
        loop {
            tokio::time::sleep(if self.is_split() { MOVING / 3 } else { COMPARE }).await;
            let (Some(theirs), Some(ours)) = (self.any_data_set().await, self.data()) else {
                continue;
            };
            if theirs == ours.server_version {
                agreed += 1;
                if agreed >= AGREE && self.split.swap(false, Ordering::Relaxed) {
                    self.metrics.split.set(0);
                    tracing::info!("the databrokers behind databroker_service_url agree again");
                }
                continue;
            }
            agreed = 0;
            tokio::time::sleep(MOVING).await;
            let stayed = self.data().is_some_and(|now| Arc::ptr_eq(&ours, &now));
            if stayed && self.age().is_some_and(|age| age < MOVING) {
                self.found_split(ours.server_version, theirs);
            }
        }
    }

    /// The data set that one of the databrokers has.
    async fn any_data_set(&self) -> Option<u64> {
        let mut client = self.client.clone();
        let mut request = Request::new(());
        request.set_timeout(MOVING);
        let answer = in_time(MOVING, client.server_info(request)).await.ok()?;
        Some(answer.into_inner().server_version)
    }

    fn found_split(&self, followed: u64, other: u64) {
        self.split.store(true, Ordering::Relaxed);
        self.metrics.split.set(1);
        if let Some(held_back) = self.splits.pass("", Instant::now()) {
            tracing::error!(
                followed,
                other,
                held_back,
                "the databrokers behind databroker_service_url keep different data, probably each its own memory or \
                 file storage; give them one Postgres, or run one only. The copy stays with the one that it follows, \
                 and what that one does not know is refused with 503"
            );
        }
    }

    /// One line a kind of trouble in ten seconds.
    fn complain(&self, what: &'static str, status: &Status) {
        if let Some(held_back) = self.complaints.pass(what, Instant::now()) {
            tracing::warn!(
                code = ?status.code(),
                reason = status.message(),
                held_back,
                "the databroker's {what} broke; trying again"
            );
        }
    }
}

/// Returns when tokens are wanted, or no longer, which needs a new copy.
async fn wants_tokens(wanted: &mut watch::Receiver<KeepTokens>, have: KeepTokens) {
    if wanted.wait_for(|wanted| *wanted != have).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn in_time<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("silent for {limit:?}"))))
}

/// Growing pauses with jitter, so that many followers of one databroker don't come back as one.
#[derive(Debug)]
struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            next: SHORTEST_WAIT,
        }
    }
}

impl Backoff {
    async fn pause(&mut self) {
        tokio::time::sleep(self.next.mul_f64(0.5 + random_fraction())).await;
        self.next = (self.next * 2).min(LONGEST_WAIT);
    }
}

fn stream_age() -> Duration {
    STREAM_AGE.mul_f64(1.0 + random_fraction())
}

/// From 0 to 1.
fn random_fraction() -> f64 {
    f64::from(u16::from_be_bytes(random::bytes())) / f64::from(u16::MAX)
}
