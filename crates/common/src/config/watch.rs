//! The configuration again, whenever one of its files changes.
//!
//! Files are looked at every [`POLL`]: size, times and inode behind symbolic links. Notifications of
//! the kernel miss links that are swapped further up and bind-mounted files, so polling is needed
//! anyway, and a dozen `stat` calls four times a second cost nothing that could be measured.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use twox_hash::XxHash3_64;

use super::diagnostic::{Diagnostic, Diagnostics, Severity, code};
use super::load::{Loaded, Origin, ProcessSecrets, load, read_bounded};
use super::options::{Config, GrpcListenerSecurity, ServerTls, Service};

/// How often files are looked at.
pub const POLL: Duration = Duration::from_millis(250);

/// A file that keeps changing is read after this time at the latest.
const MAX_SETTLE: Duration = Duration::from_secs(1);

/// What became of a change.
#[derive(Debug, Clone)]
pub enum ReloadOutcome {
    /// The new configuration is in use.
    Applied {
        config: Arc<Config>,
        diagnostics: Diagnostics,
        /// Keys that changed, but count only after a restart.
        needs_restart: Vec<&'static str>,
    },
    /// The old configuration stays in use.
    Rejected { diagnostics: Diagnostics },
}

/// Follows the files of a configuration.
pub struct Watch {
    origin: Arc<Origin>,
    process: Arc<ProcessSecrets>,
    sender: watch::Sender<Arc<Config>>,
    files: Vec<PathBuf>,
    seen: Vec<Option<Stamp>>,
    content: u64,
    /// Whether everything came from the environment at the start.
    began_empty: bool,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl Watch {
    /// `config` is what is in use, `files` what it was loaded from.
    pub fn new(
        origin: Origin,
        process: Arc<ProcessSecrets>,
        config: Arc<Config>,
        files: Vec<PathBuf>,
    ) -> (Self, watch::Receiver<Arc<Config>>) {
        let (sender, receiver) = watch::channel(config);
        let seen = stamps(&files);
        let content = content(&files);
        let began_empty = is_empty(&origin);
        (
            Self {
                began_empty,
                origin: Arc::new(origin),
                process,
                sender,
                files,
                seen,
                content,
            },
            receiver,
        )
    }

    /// Runs until `stop`; each `hangup` (SIGHUP) reloads, whatever the files look like, and what
    /// `asked` gives lives until that is done. `told` hears of every change, for metrics and logs of
    /// the caller; this function itself logs what happened and why.
    pub async fn run<Reloading: Send>(
        mut self,
        stop: CancellationToken,
        mut hangup: Signal,
        asked: impl Fn() -> Reloading + Send,
        mut told: impl FnMut(&ReloadOutcome) + Send,
    ) {
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let reloading = tokio::select! {
                () = stop.cancelled() => return,
                _ = poll.tick() => None,
                Some(()) = hangup.recv() => Some(asked()),
            };
            let outcome = if reloading.is_some() {
                self.reload(true).await
            } else if self.sender.borrow().flags.config_hot_reload && self.changed().await {
                self.settle().await;
                self.reload(false).await
            } else {
                None
            };
            if let Some(outcome) = outcome {
                log(&outcome);
                told(&outcome);
            }
            drop(reloading);
        }
    }

    async fn changed(&mut self) -> bool {
        let now = in_background(self.files.clone(), |files| stamps(&files)).await;
        now.is_some_and(|now| now != self.seen)
    }

    /// Waits until the files stand still: somebody may be writing.
    async fn settle(&mut self) {
        let start = tokio::time::Instant::now();
        loop {
            let before = in_background(self.files.clone(), |files| stamps(&files)).await;
            tokio::time::sleep(POLL / 2).await;
            let after = in_background(self.files.clone(), |files| stamps(&files)).await;
            if before == after || start.elapsed() > MAX_SETTLE {
                return;
            }
        }
    }

    /// `None` if nothing is different after all.
    async fn reload(&mut self, asked: bool) -> Option<ReloadOutcome> {
        // Looked at before reading: what changes meanwhile is found at the next look.
        let files = self.files.clone();
        let (seen, content) =
            in_background(files, |files| (stamps(&files), content(&files))).await?;
        self.seen = seen;
        if content == self.content && !asked {
            return None;
        }
        let (origin, process) = (Arc::clone(&self.origin), Arc::clone(&self.process));
        let emptied =
            !self.began_empty && in_background(Arc::clone(&origin), |it| is_empty(&it)).await?;
        if emptied {
            self.content = content;
            let mut diagnostics = Diagnostics::default();
            diagnostics.push(emptied_file(&origin));
            return Some(ReloadOutcome::Rejected { diagnostics });
        }
        let Loaded {
            config,
            diagnostics,
            files,
        } = in_background((origin, process), |(origin, process)| {
            load(&origin, &process)
        })
        .await?;
        self.content = content;
        let Some(config) = config else {
            // Files that a broken configuration does not come to are followed all the same.
            self.follow(merge(&self.files, files)).await;
            return Some(ReloadOutcome::Rejected { diagnostics });
        };
        self.follow(files).await;
        let needs_restart = needs_restart(&self.sender.borrow(), &config);
        self.sender.send_replace(Arc::clone(&config));
        Some(ReloadOutcome::Applied {
            config,
            diagnostics,
            needs_restart,
        })
    }

    async fn follow(&mut self, files: Vec<PathBuf>) {
        if files == self.files {
            return;
        }
        self.files = files;
        if let Some((seen, content)) = in_background(self.files.clone(), |files| {
            (stamps(&files), content(&files))
        })
        .await
        {
            self.seen = seen;
            self.content = content;
        }
    }
}

/// A disk that is full, or a write that was broken off, leaves a file without a byte. Where secrets and
/// URLs come from the environment it would be valid, and have no routes.
fn is_empty(origin: &Origin) -> bool {
    let file = origin.file.as_deref().map(read_bounded);
    matches!(file, Some(Ok(content)) if content.trim_ascii().is_empty())
}

fn emptied_file(origin: &Origin) -> Diagnostic {
    let file = origin.file.as_deref().unwrap_or(Path::new("")).display();
    Diagnostic::error(code::FILE, format!("{file} is empty now"))
        .help("to have no routes from now on, write `routes: []`")
}

async fn in_background<T: Send + 'static, R: Send + 'static>(
    input: T,
    work: impl FnOnce(T) -> R + Send + 'static,
) -> Option<R> {
    tokio::task::spawn_blocking(move || work(input)).await.ok()
}

fn merge(old: &[PathBuf], new: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut all = old.to_vec();
    all.extend(new.into_iter().filter(|file| !old.contains(file)));
    all
}

/// What tells a changed file, behind symbolic links.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    size: u64,
    modified: Option<SystemTime>,
    inode: (u64, u64),
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files.iter().map(|file| stamp(file)).collect()
}

fn stamp(file: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(file).ok()?;
    Some(Stamp {
        size: metadata.len(),
        modified: metadata.modified().ok(),
        inode: (metadata.dev(), metadata.ino()),
    })
}

fn content(files: &[PathBuf]) -> u64 {
    let hashes: Vec<u8> = files
        .iter()
        .flat_map(|file| {
            read_bounded(file)
                .map_or(0, |content| XxHash3_64::oneshot(&content))
                .to_le_bytes()
        })
        .collect();
    XxHash3_64::oneshot(&hashes)
}

fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let (was, is) = (&old.listen, &new.listen);
    let metrics = |config: &Config| {
        let options = config.metrics.as_ref()?;
        Some((options.address, options.tls.is_some()))
    };
    let tls = |config: &Config| {
        (
            matches!(config.server_tls, ServerTls::Off),
            matches!(config.grpc.listener, GrpcListenerSecurity::ClearText),
        )
    };
    let changed = [
        ("services", old.services != new.services),
        ("address", was.public != is.public),
        ("grpc_address", was.grpc != is.grpc),
        ("http_redirect_addr", was.http_redirect != is.http_redirect),
        ("health_check_addr", was.health != is.health),
        ("reuse_port", was.share != is.share),
        // Proxy follows it.
        (
            "insecure_server",
            tls(old).0 != tls(new).0 && !new.services.contains(Service::Proxy),
        ),
        ("grpc_insecure", tls(old).1 != tls(new).1),
        ("metrics_address", metrics(old) != metrics(new)),
    ];
    changed
        .into_iter()
        .filter(|(_, changed)| *changed)
        .map(|(name, _)| name)
        .collect()
}

fn log(outcome: &ReloadOutcome) {
    match outcome {
        ReloadOutcome::Applied {
            config,
            diagnostics,
            needs_restart,
        } => {
            log_all(diagnostics);
            tracing::info!(
                checksum = format!("{:016x}", config.checksum),
                "configuration reloaded"
            );
            for key in needs_restart {
                tracing::warn!(key, "this key changed, but counts only after a restart");
            }
        }
        ReloadOutcome::Rejected { diagnostics } => {
            log_all(diagnostics);
            tracing::error!(
                "the changed configuration has errors and is not used; the one before stays"
            );
        }
    }
}

/// One line for each diagnostic.
pub fn log_all(diagnostics: &Diagnostics) {
    for diagnostic in diagnostics {
        let line = diagnostic.one_line();
        match diagnostic.severity {
            Severity::Error => tracing::error!(code = diagnostic.code, "{line}"),
            Severity::Warning => tracing::warn!(code = diagnostic.code, "{line}"),
            Severity::Note => tracing::info!(code = diagnostic.code, "{line}"),
        }
    }
}

#[cfg(test)]
mod tests;
