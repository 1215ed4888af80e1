//! Being woken by commits of other databrokers. Only a hint: the feed looks every second anyway.

use std::future::poll_fn;
use std::pin::pin;

use tokio_postgres::AsyncMessage;

use super::{FIRST_PAUSE, LONGEST_PAUSE, Shared};

/// Sent inside each writing transaction.
pub(super) const CHANNEL: &str = "postern_changes";

pub(super) async fn run(shared: &Shared) {
    let mut pause = FIRST_PAUSE;
    loop {
        match listen(shared, &mut pause).await {
            Ok(()) => {
                tracing::warn!("the connection that listens for changes ended; opening another");
            }
            Err(reason) => tracing::warn!(%reason, "listening for changes failed; trying again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Listens until the connection ends.
async fn listen(shared: &Shared, pause: &mut std::time::Duration) -> Result<(), String> {
    let (client, mut driver) = shared
        .pool
        .connect()
        .await
        .map_err(|error| error.to_string())?;
    let listen = format!("LISTEN {CHANNEL}");
    let mut listening = pin!(client.batch_execute(&listen));
    let mut done = false;
    loop {
        tokio::select! {
            listened = &mut listening, if !done => {
                listened.map_err(|error| crate::causes(&error))?;
                done = true;
                *pause = FIRST_PAUSE;
                // Something may have been committed before.
                shared.changed.notify_one();
            }
            message = poll_fn(|cx| driver.poll_message(cx)) => match message {
                None => return Ok(()),
                Some(Err(error)) => return Err(crate::causes(&error)),
                Some(Ok(AsyncMessage::Notification(_))) => shared.changed.notify_one(),
                Some(Ok(_)) => {}
            },
        }
    }
}
