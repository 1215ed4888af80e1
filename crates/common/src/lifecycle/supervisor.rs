//! What systemd is told (`sd_notify`): ready, reloading, stopping, and that the process is alive.
//!
//! On a thread of its own. A ping for the watchdog goes out only when every runtime that serves has
//! just run a task, so a process whose cores hang is restarted although its other threads go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;

use super::{Lifecycle, Parts, Phase};

/// How often systemd hears of a start or an end that takes longer, where the watchdog does not ask
/// for more.
const EVERY: Duration = Duration::from_secs(5);

/// One ping may be late, or get lost, without harm.
const PINGS_IN_TIME: u32 = 3;

/// Changes come many at a time.
const SPACING: Duration = Duration::from_millis(100);

/// What an end takes beyond the steps of the drain.
const MARGIN: Duration = Duration::from_secs(5);

/// Says things to whoever supervises this process; nothing where nobody wants to hear them.
#[derive(Debug, Clone, Default)]
pub struct Supervisor {
    shared: Option<Arc<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// READY=1 has been said.
    ready: AtomicBool,
}

/// A reload is going on; it is over when this is dropped.
#[derive(Debug)]
pub struct Reloading {
    supervisor: Supervisor,
}

impl Supervisor {
    /// Begins to tell, if `NOTIFY_SOCKET` says where.
    pub fn start(lifecycle: &Lifecycle) -> std::io::Result<Self> {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok(Self::default());
        }
        let shared = Arc::new(Shared::default());
        let (told, lifecycle) = (Arc::clone(&shared), lifecycle.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        std::thread::Builder::new()
            .name("supervisor".to_owned())
            .spawn(move || {
                let watchdog = sd_notify::watchdog_enabled();
                runtime.block_on(tell(&lifecycle, &told, watchdog, say));
            })?;
        Ok(Self {
            shared: Some(shared),
        })
    }

    /// The configuration is being read again.
    pub fn reloading(&self) -> Reloading {
        if self.is_ready() {
            let mut said = vec![NotifyState::Reloading];
            said.extend(NotifyState::monotonic_usec_now().ok());
            say(&said);
        }
        Reloading {
            supervisor: self.clone(),
        }
    }

    fn is_ready(&self) -> bool {
        let shared = self.shared.as_ref();
        shared.is_some_and(|shared| shared.ready.load(Ordering::Relaxed))
    }
}

impl Drop for Reloading {
    fn drop(&mut self) {
        if self.supervisor.is_ready() {
            say(&[NotifyState::Ready]);
        }
    }
}

/// Until the process ends. `watchdog`: without a ping for so long it is taken for dead.
async fn tell(
    lifecycle: &Lifecycle,
    shared: &Shared,
    watchdog: Option<Duration>,
    say: impl Fn(&[NotifyState<'_>]),
) {
    let every = watchdog.map_or(EVERY, |limit| (limit / PINGS_IN_TIME).min(EVERY));
    let mut changes = lifecycle.parts().changes();
    let mut told = String::new();
    let mut phase = Phase::Running;
    loop {
        changes.mark_unchanged();
        let mut said = Vec::new();
        let before = std::mem::replace(&mut phase, lifecycle.phase());
        let status = status(phase, lifecycle.parts());
        if phase > Phase::Running && before == Phase::Running {
            said.push(NotifyState::Stopping);
            said.push(extension(lifecycle.timing().longest() + MARGIN));
        } else if !shared.ready.load(Ordering::Relaxed) {
            if lifecycle.is_ready() {
                shared.ready.store(true, Ordering::Relaxed);
                said.push(NotifyState::Ready);
            } else if phase == Phase::Running && lifecycle.parts().started() {
                // Whatever it waits for, another start would have to wait for as well.
                said.push(extension(every * PINGS_IN_TIME));
            }
        }
        if status != told {
            told.clone_from(&status);
            said.push(NotifyState::Status(&status));
        }
        let stuck = lifecycle.runtimes().stuck().await;
        if stuck.is_empty() {
            if watchdog.is_some() {
                said.push(NotifyState::Watchdog);
            }
        } else {
            tracing::error!(
                runtimes = stuck.join(", "),
                "stuck: no sign of life to systemd"
            );
        }
        say(&said);
        let next = if phase == Phase::Running {
            Phase::Draining
        } else {
            Phase::Stopping
        };
        tokio::time::sleep(SPACING).await;
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            _ = changes.changed() => {}
            () = lifecycle.reached(next) => {}
        }
        if lifecycle.phase() == Phase::Stopping {
            say(&[NotifyState::Stopping]);
            return;
        }
    }
}

fn extension(time: Duration) -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))
}

/// A line for people.
fn status(phase: Phase, parts: &Parts) -> String {
    if phase > Phase::Running {
        return phase.to_string();
    }
    let waits: Vec<_> = parts
        .list()
        .into_iter()
        .filter(|(_, part)| !part.is_ready())
        .map(|(name, part)| match part.error {
            Some(error) => format!("{name}: {error}"),
            None => format!("{name}: starting"),
        })
        .collect();
    if waits.is_empty() {
        "running".to_owned()
    } else {
        // One line is all that there is room for.
        waits.join("; ").replace('\n', " ")
    }
}

/// Nobody is there to be told that telling failed.
fn say(states: &[NotifyState<'_>]) {
    if !states.is_empty() {
        let _ = sd_notify::notify(states);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::DrainTiming;

    #[test]
    fn the_status_says_what_is_waited_for() {
        let lifecycle = Lifecycle::new(DrainTiming::immediate());
        let say = || status(lifecycle.phase(), lifecycle.parts());
        let guard = lifecycle.not_ready("authorize.replica");
        assert_eq!(say(), "authorize.replica: starting");
        guard.because("no databroker\nreachable");
        assert_eq!(say(), "authorize.replica: no databroker reachable");
        drop(guard);
        assert_eq!(say(), "running");
        lifecycle.drain();
        assert_eq!(say(), "draining");
    }

    /// What is said, as systemd would read it, until `enough`.
    fn hear(receiver: &std::sync::mpsc::Receiver<String>, enough: &str) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            let line = receiver.recv_timeout(Duration::from_secs(10));
            let line = line.unwrap_or_else(|_| panic!("{enough} after {heard:?}"));
            heard.push(line);
            if heard.last().is_some_and(|line| line.starts_with(enough)) {
                return heard;
            }
        }
    }

    #[test]
    fn a_process_whose_cores_hang_is_not_called_alive() {
        let lifecycle = Lifecycle::new(DrainTiming::immediate());
        let part = lifecycle.not_ready("proxy");
        part.because("waits for its certificate");
        let core = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let _turning = lifecycle.runtimes().watch("core", core.handle().clone());
        let (said, receiver) = std::sync::mpsc::channel();
        let (told, telling) = (lifecycle.clone(), Shared::default());
        let watchdog = Some(Duration::from_millis(300));
        let teller = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap();
            let say = |states: &[NotifyState<'_>]| {
                for state in states {
                    said.send(state.to_string()).unwrap();
                }
            };
            runtime.block_on(tell(&told, &telling, watchdog, say));
        });
        let starting = hear(&receiver, "WATCHDOG=1");
        assert!(starting.contains(&"STATUS=proxy: waits for its certificate".to_owned()));
        assert!(starting.contains(&"EXTEND_TIMEOUT_USEC=300000".to_owned()));
        assert!(!starting.contains(&"READY=1".to_owned()), "{starting:?}");
        drop(part);
        hear(&receiver, "READY=1");
        hear(&receiver, "WATCHDOG=1");

        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let (entered, inside) = std::sync::mpsc::channel();
        core.spawn(async move {
            entered.send(()).unwrap();
            let _ = blocked.recv();
        });
        inside.recv().unwrap();
        // A look that began before may still end well; the next ones do not.
        let long = 3 * super::super::runtimes::ANSWER;
        let late: Vec<_> = std::iter::from_fn(|| receiver.recv_timeout(long).ok())
            .take(3)
            .collect();
        assert!(late.len() <= 1, "{late:?}");
        release.send(()).unwrap();
        hear(&receiver, "WATCHDOG=1");

        lifecycle.drain();
        let stopping = hear(&receiver, "STATUS=draining");
        assert!(stopping.contains(&"STOPPING=1".to_owned()), "{stopping:?}");
        lifecycle.stop();
        teller.join().unwrap();
    }
}
