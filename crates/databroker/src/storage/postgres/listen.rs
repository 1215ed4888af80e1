//! A connection of its own that listens for commits of other databrokers, and feels the server's pulse.
//!
//! Being woken is only a hint: the feed looks every second anyway. The pulse finds a server that keeps its
//! connections and says nothing any more; no load of ours can hold it up.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_postgres::{AsyncMessage, Client};

use super::{FIRST_PAUSE, LONGEST_PAUSE, Shared};

/// Sent inside each writing transaction.
pub(super) const CHANNEL: &str = "postern_changes";

/// How often the pulse is felt.
const PULSE: Duration = Duration::from_secs(1);
/// How long it may take, counted in moments in which we ourselves were there to hear it: a process that had no
/// processor for a while must not blame the server.
const PATIENCE: u32 = 12;
const MOMENT: Duration = Duration::from_millis(250);

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
async fn listen(shared: &Shared, pause: &mut Duration) -> Result<(), String> {
    let (client, mut driver) = shared
        .pool
        .connect()
        .await
        .map_err(|error| error.to_string())?;
    let mut beating = pin!(beating(&client, shared, pause));
    loop {
        tokio::select! {
            stopped = &mut beating => {
                let Err(error) = stopped;
                if matches!(error, Pulse::Silent) {
                    // Everything else that waits for this server waits in vain.
                    shared.pool.give_up();
                }
                return Err(error.to_string());
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

/// Begins to listen, and goes on for as long as the server answers.
async fn beating(
    client: &Client,
    shared: &Shared,
    pause: &mut Duration,
) -> Result<Infallible, Pulse> {
    let listen = format!("LISTEN {CHANNEL}");
    answered(client.batch_execute(&listen)).await?;
    *pause = FIRST_PAUSE;
    // Something may have been committed before.
    shared.changed.notify_one();
    let mut ticks = tokio::time::interval(PULSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        answered(client.batch_execute("")).await?;
    }
}

/// Why there is no pulse.
#[derive(Debug, thiserror::Error)]
enum Pulse {
    #[error("the server has not answered for {:?}", MOMENT * PATIENCE)]
    Silent,
    #[error("{0}")]
    Failed(String),
}

async fn answered(
    asked: impl Future<Output = Result<(), tokio_postgres::Error>>,
) -> Result<(), Pulse> {
    let mut asked = pin!(asked);
    for _ in 0..PATIENCE {
        if let Ok(answer) = tokio::time::timeout(MOMENT, &mut asked).await {
            return answer.map_err(|error| Pulse::Failed(crate::causes(&error)));
        }
    }
    Err(Pulse::Silent)
}
