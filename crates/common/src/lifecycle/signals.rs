//! SIGTERM and SIGINT: the first drains, the second stops.

use tokio::signal::unix::{SignalKind, signal};

use super::Lifecycle;

pub(super) fn listen(lifecycle: &Lifecycle) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let watched = lifecycle.clone();
    // Not on the tracker: it ends last, and nothing has to wait for it.
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                () = watched.shared.stopping.cancelled() => return,
            };
            if watched.shared.draining.is_cancelled() {
                tracing::warn!(signal = name, "second signal: stopping at once");
                watched.stop();
                return;
            }
            tracing::info!(signal = name, "draining");
            watched.drain();
        }
    });
    Ok(())
}
