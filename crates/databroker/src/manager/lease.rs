//! One manager among many: the lease `identity_manager`.

use std::time::Duration;

use futures::future::BoxFuture;
use postern_common::crypto::random;
use postern_common::rpc::stubs::databroker::{ReleaseLeaseRequest, RenewLeaseRequest};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{Client, random_fraction};

pub(crate) const NAME: &str = "identity_manager";
/// How long the lease lasts without being renewed.
const TTL: Duration = Duration::from_secs(30);
/// How often the holder renews it.
const RENEW: Duration = Duration::from_secs(10);
/// How often the others try to get it.
const TRY: Duration = Duration::from_secs(15);
/// A holder that could not renew for this long stops, before another can begin.
const GIVE_UP: Duration = Duration::from_secs(25);
/// How long one call may take.
const CALL: Duration = Duration::from_secs(4);

/// Runs `work` whenever the lease is held, and cancels the token it was given when it is lost;
/// returns after `stop`.
pub(crate) async fn while_held(
    mut client: Client,
    stop: CancellationToken,
    work: impl Fn(CancellationToken) -> BoxFuture<'static, ()>,
) {
    // Our own id and `RenewLease`, which takes a free lease as well: a call whose answer was lost
    // can be repeated, while `AcquireLease` would then say that somebody else holds it.
    let id = random::uuid();
    while !stop.is_cancelled() {
        match renew(&mut client, &id).await {
            Ok(()) => {
                let held = stop.child_token();
                // Whichever ends first, ends the other.
                tokio::join!(
                    async {
                        work(held.clone()).await;
                        held.cancel();
                    },
                    async {
                        keep(&mut client, &id, &held).await;
                        held.cancel();
                    }
                );
                release(&mut client, &id).await;
            }
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => {
                tracing::warn!(%status, "the identity manager's lease could not be asked for");
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(TRY.mul_f64(0.8 + 0.4 * random_fraction())) => {}
        }
    }
}

/// Renews until the lease is lost or `held` is cancelled.
async fn keep(client: &mut Client, id: &str, held: &CancellationToken) {
    let mut last = Instant::now();
    let mut pause = RENEW;
    loop {
        tokio::select! {
            () = held.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let began = Instant::now();
        match renew(client, id).await {
            Ok(()) => (last, pause) = (began, RENEW),
            Err(status) if status.code() == Code::AlreadyExists => {
                tracing::warn!("another databroker runs the identity manager now");
                return;
            }
            Err(status) if last.elapsed() + CALL >= GIVE_UP => {
                tracing::warn!(%status, "the identity manager's lease could not be renewed in time");
                return;
            }
            Err(_) => pause = Duration::from_secs(2),
        }
    }
}

async fn renew(client: &mut Client, id: &str) -> Result<(), Status> {
    let seconds = i64::try_from(TTL.as_secs()).unwrap_or(30);
    let request = RenewLeaseRequest {
        name: NAME.to_owned(),
        id: id.to_owned(),
        duration: Some(prost_types::Duration { seconds, nanos: 0 }),
    };
    within(client.renew_lease(request)).await.map(|_| ())
}

async fn release(client: &mut Client, id: &str) {
    let request = ReleaseLeaseRequest {
        name: NAME.to_owned(),
        id: id.to_owned(),
    };
    // If it fails, the lease ends by itself.
    let _ = within(client.release_lease(request)).await;
}

async fn within<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(CALL, call)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer from the databroker")))
}
