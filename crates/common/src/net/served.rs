//! A connection that a server of ours serves, to its end.

use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Duration;

use super::in_use::{InUse, Patience};
use crate::lifecycle::{Lifecycle, Phase};

/// What is left of an idle connection after it was told to go is closed without a farewell.
const FAREWELL: Duration = Duration::from_secs(20);

/// When a connection is told to go in a drain: at once, if it was open when the drain began; one
/// that was opened after that is served until idle connections are closed.
pub fn told_at(lifecycle: &Lifecycle) -> Phase {
    if lifecycle.phase() >= Phase::Draining {
        Phase::IdleClosed
    } else {
        Phase::Draining
    }
}

/// Runs a connection. From `phase` on, or when nobody has used it for too long, it takes nothing
/// new (`shut`) and finishes what it has begun.
pub async fn run<C>(
    mut connection: Pin<&mut C>,
    shut: impl FnOnce(Pin<&mut C>),
    phase: Phase,
    (in_use, patience): (&InUse, Patience),
    lifecycle: &Lifecycle,
) -> Result<(), String>
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let idle = tokio::select! {
        ended = &mut connection => return ended.map_err(|error| error.to_string()),
        () = lifecycle.reached(phase) => false,
        () = in_use.idle(patience) => true,
    };
    shut(connection.as_mut());
    let farewell = async {
        if idle {
            tokio::time::sleep(FAREWELL).await;
        } else {
            pending::<()>().await;
        }
    };
    tokio::select! {
        ended = &mut connection => ended.map_err(|error| error.to_string()),
        () = lifecycle.stopping().cancelled_owned() => Err("stopped".to_owned()),
        () = farewell => Err("idle".to_owned()),
    }
}
