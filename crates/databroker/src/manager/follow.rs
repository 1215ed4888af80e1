//! Every session there is, and every change of one.

use std::time::Duration;

use postern_common::rpc::stubs::databroker::{
    Record, SyncLatestRequest, SyncRequest, sync_latest_response, sync_response,
};
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::record::{SESSION, session};
use super::schedule::Facts;
use super::{Client, random_fraction};

#[derive(Debug)]
pub(crate) enum Event {
    /// These and no others.
    All(Vec<(String, Facts)>),
    Changed(String, Facts),
    Deleted(String),
}

/// How far the records have been read.
struct Cursor {
    server_version: u64,
    record_version: u64,
}

/// Tells everything to `events`, for ever; returns when nobody listens.
pub(crate) async fn sessions(mut client: Client, events: mpsc::Sender<Event>) {
    let mut cursor = None;
    let mut failures = 0_u32;
    while !events.is_closed() {
        let started = tokio::time::Instant::now();
        let outcome = match &mut cursor {
            None => latest(&mut client, &events)
                .await
                .map(|at| cursor = Some(at)),
            Some(at) => changes(&mut client, at, &events).await,
        };
        match outcome {
            Ok(()) => {
                failures = 0;
                continue;
            }
            // The data set is another one, or its log does not reach back far enough.
            Err(status) if status.code() == Code::Aborted => cursor = None,
            Err(status) => {
                tracing::warn!(%status, "the identity manager lost its view of the sessions; trying again");
            }
        }
        failures = if started.elapsed() > Duration::from_secs(30) {
            0
        } else {
            failures.saturating_add(1)
        };
        let pause = Duration::from_millis(200)
            .saturating_mul(1 << failures.min(7))
            .min(Duration::from_secs(15));
        tokio::time::sleep(pause.mul_f64(0.5 + random_fraction())).await;
    }
}

async fn latest(client: &mut Client, events: &mpsc::Sender<Event>) -> Result<Cursor, Status> {
    let request = SyncLatestRequest {
        r#type: SESSION.to_owned(),
    };
    let mut stream = client.sync_latest(request).await?.into_inner();
    let mut found = Vec::new();
    while let Some(message) = stream.message().await? {
        match message.response {
            Some(sync_latest_response::Response::Record(record)) => {
                if let Some(session) = read(&record) {
                    found.push(session);
                }
            }
            Some(sync_latest_response::Response::Versions(versions)) => {
                send(events, Event::All(found)).await?;
                return Ok(Cursor {
                    server_version: versions.server_version,
                    record_version: versions.latest_record_version,
                });
            }
            _ => {}
        }
    }
    Err(Status::unavailable(
        "the records ended without their version",
    ))
}

async fn changes(
    client: &mut Client,
    cursor: &mut Cursor,
    events: &mpsc::Sender<Event>,
) -> Result<(), Status> {
    let request = SyncRequest {
        server_version: cursor.server_version,
        record_version: cursor.record_version,
        r#type: SESSION.to_owned(),
        wait: Some(true),
    };
    let mut stream = client.sync(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        if let Some(sync_response::Response::Record(record)) = message.response {
            cursor.record_version = cursor.record_version.max(record.version);
            let event = if record.deleted_at.is_some() {
                Event::Deleted(record.id)
            } else if let Some(session) = read(&record) {
                Event::Changed(session.0, session.1)
            } else {
                continue;
            };
            send(events, event).await?;
        }
    }
    Err(Status::unavailable("the stream of changes ended"))
}

/// Only the times are kept: the rest of a session can be large, and is secret.
fn read(record: &Record) -> Option<(String, Facts)> {
    let session = session(record);
    if session.is_none() {
        tracing::warn!(id = %record.id, "a session record cannot be read; it is left alone");
    }
    session.map(|session| (record.id.clone(), Facts::of(&session)))
}

async fn send(events: &mpsc::Sender<Event>, event: Event) -> Result<(), Status> {
    events
        .send(event)
        .await
        .map_err(|_| Status::cancelled("nobody listens"))
}
