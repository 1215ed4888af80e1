//! The runtime model, and what happens beside requests.
//!
//! Each core has a current-thread runtime with a listener of its own (`SO_REUSEPORT`). A
//! connection, its requests and the connections to upstreams stay on it, so nothing on the path of
//! a request is shared or sent between threads. Everything else (configuration, DNS, authenticate
//! in this process) runs on the multi-thread runtime that called [`run`].

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arc_swap::ArcSwap;
use postern_common::config::{Config, DnsOptions};
use postern_common::free;
use postern_common::lifecycle::{Lifecycle, NotReady, Phase, descriptors};
use postern_common::net::accept::Failures;
use postern_common::net::to_https;
use postern_common::net::{LookupError, Resolver};
use postern_common::rpc::Transport;
use postern_common::rpc::token::TokenKeys;
use postern_common::telemetry::metrics::Metrics;
use postern_common::tls::{TlsError, Trust};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::admission::Queue;
use crate::core::{Core, Shared};
use crate::deciding::Deciding;
use crate::listener::{BindError, Listeners};
use crate::metrics::ProxyMetrics;
use crate::open::Registry;
use crate::revisit::Pace;
use crate::snapshot::Snapshot;
use crate::upstream::directory::{Directory, Settings};
use crate::upstream::pool::Pool;
use crate::{limits, listener, revisit};

/// Name of this part for readiness and health.
pub const PART: &str = "proxy";

/// Whom proxy talks to.
pub struct Peers {
    pub authorizer: Deciding,
    /// For the user's own page only.
    pub databroker: Transport,
    /// Signs calls to it.
    pub keys: TokenKeys,
    /// Authenticate's handler, where it runs in this process.
    pub authenticate: Option<axum::Router>,
    pub metrics: Metrics,
}

/// The data plane could not start, or a core of it ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No listener.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// No names.
    #[error("names of upstreams cannot be resolved")]
    Resolver(#[source] LookupError),
    /// No TLS towards clients.
    #[error("TLS of the public listener cannot be set up")]
    Tls(#[from] crate::tls::TlsError),
    /// No trust.
    #[error("certificate_authority cannot be used")]
    Trust(#[source] TlsError),
    /// No runtime.
    #[error("core {core}: its runtime cannot be started")]
    Runtime {
        /// Counted from 0.
        core: usize,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A defect.
    #[error("core {core} ended by itself")]
    CoreEnded {
        /// Counted from 0.
        core: usize,
    },
}

/// Binds the listeners; serves in the background until the process has drained.
pub fn start(
    config: watch::Receiver<Arc<Config>>,
    peers: Peers,
    lifecycle: &Lifecycle,
) -> Result<(), RunError> {
    let listeners = Listeners::bind(&config.borrow(), cores())?;
    let (starting, life) = (lifecycle.not_ready(PART), lifecycle.clone());
    lifecycle.spawn_critical(PART, async move {
        run_on(listeners, config, peers, &life, starting).await
    });
    Ok(())
}

/// As many as the machine, or the container, has.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Serves on listeners that are bound already; `starting` is dropped once each core does and has
/// found authorize, or has waited for a while.
pub async fn run_on(
    listeners: Listeners,
    mut config: watch::Receiver<Arc<Config>>,
    peers: Peers,
    lifecycle: &Lifecycle,
    starting: NotReady,
) -> Result<(), RunError> {
    let control = Handle::current();
    let directory = Directory::new(control.clone());
    let metrics = Arc::new(ProxyMetrics::new(&peers.metrics));
    let first = Arc::clone(&config.borrow_and_update());
    let mut settings = settings(&first, 0)?;
    let in_process = peers.authenticate.is_some();
    let snapshot = Snapshot::build(first, None, &directory, &settings, &metrics, in_process)?;
    let max_connections = descriptors::connections(limits::CLIENT_CONNECTIONS);
    let cores = listeners.public.len();
    let shared = Arc::new(Shared {
        snapshot: ArcSwap::from_pointee(snapshot),
        deciding: peers.authorizer,
        databroker: peers.databroker,
        keys: peers.keys,
        authenticate: peers.authenticate,
        lifecycle: lifecycle.clone(),
        metrics,
        control,
        connections: AtomicUsize::new(0),
        max_connections,
        upstream_requests: limits::upstream_requests(max_connections, cores),
        accept_failures: Failures::new("proxy"),
    });
    let address = listeners.address();
    if let Some(listener) = listeners.redirect {
        let (config, life) = (config.clone(), lifecycle.clone());
        lifecycle.spawn(async move { to_https::serve(listener, config, &life).await });
    }
    let mut ended = Vec::new();
    let starting = Arc::new(starting);
    for (index, listener) in listeners.public.into_iter().enumerate() {
        let starting = Arc::clone(&starting);
        ended.push(start_core(index, listener, Arc::clone(&shared), starting)?);
    }
    tracing::info!(%address, cores = ended.len(), "proxy listens");
    drop(starting);
    let mut all_ended = std::pin::pin!(futures::future::join_all(ended));
    let results = loop {
        tokio::select! {
            results = &mut all_ended => break results,
            changed = config.changed() => {
                if changed.is_err() {
                    break all_ended.await;
                }
                let new = Arc::clone(&config.borrow_and_update());
                reload(&shared, new, &directory, &mut settings, in_process);
            }
        }
    };
    match results.iter().position(Result::is_err) {
        Some(core) => Err(RunError::CoreEnded { core }),
        None => Ok(()),
    }
}

/// Takes a new configuration over. Requests under way keep the one they began with.
fn reload(
    shared: &Shared,
    config: Arc<Config>,
    directory: &Directory,
    settings: &mut Settings,
    in_process: bool,
) {
    let before = shared.snapshot.load_full();
    let same = same_dns(&before.config.dns, &config.dns)
        && before.config.certificate_authorities == config.certificate_authorities;
    if !same {
        match self::settings(&config, settings.generation + 1) {
            Ok(new) => *settings = new,
            Err(error) => {
                let reason = postern_common::telemetry::log::chain(&error);
                tracing::error!(reason, "a configuration cannot be taken over by proxy");
                return;
            }
        }
    }
    let metrics = &shared.metrics;
    let new = Snapshot::build(
        config,
        Some(&before),
        directory,
        settings,
        metrics,
        in_process,
    );
    let new = match new {
        Ok(new) => new,
        Err(error) => {
            let reason = postern_common::telemetry::log::chain(&error);
            tracing::error!(reason, "a configuration cannot be taken over by proxy");
            return;
        }
    };
    let checksum = new.config.checksum;
    shared.snapshot.store(Arc::new(new));
    free::apart(before);
    tracing::info!(checksum, "proxy has taken a new configuration over");
}

fn settings(config: &Config, generation: u64) -> Result<Settings, RunError> {
    let trust = Trust::system()
        .and(&config.certificate_authorities, "certificate_authority")
        .map_err(RunError::Trust)?;
    let resolver = Resolver::new(config.dns.clone()).map_err(RunError::Resolver)?;
    Ok(Settings {
        generation,
        trust,
        resolver,
    })
}

fn same_dns(a: &DnsOptions, b: &DnsOptions) -> bool {
    a.lookup_family == b.lookup_family
        && a.refresh_rate == b.refresh_rate
        && a.failure_refresh_rate == b.failure_refresh_rate
        && a.query_timeout == b.query_timeout
        && a.query_tries == b.query_tries
        && a.transport == b.transport
        && a.resolvers == b.resolvers
}

/// Starts a core's thread. The receiver tells when it has ended, an error that it panicked.
fn start_core(
    index: usize,
    listener: std::net::TcpListener,
    shared: Arc<Shared>,
    starting: Arc<NotReady>,
) -> Result<oneshot::Receiver<()>, RunError> {
    let failed = |source| RunError::Runtime {
        core: index,
        source,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let (done, ended) = oneshot::channel();
    let running = (shared.lifecycle.tasks().token(), shared.lifecycle.serving());
    std::thread::Builder::new()
        .name(format!("proxy-{index}"))
        .spawn(move || {
            let runtimes = shared.lifecycle.runtimes();
            let _turning = runtimes.watch(&format!("proxy-{index}"), runtime.handle().clone());
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, serve_core(listener, shared, starting));
            drop(running);
            // The receiver is gone only when the process ends anyway.
            let _ = done.send(());
        })
        .map_err(failed)?;
    Ok(ended)
}

/// A core's life: accept until the listeners close, finish what runs, end.
async fn serve_core(listener: std::net::TcpListener, shared: Arc<Shared>, starting: Arc<NotReady>) {
    let (phase_sender, phase) = watch::channel(shared.lifecycle.phase());
    let core = Rc::new(Core {
        pool: Pool::new(shared.upstream_requests),
        open: Rc::new(Registry::default()),
        undecided: Queue::new(),
        pace: Pace::default(),
        phase,
        tasks: TaskTracker::new(),
        authorizer: shared.deciding.on_this_core(&shared.lifecycle),
        shared: Arc::clone(&shared),
    });
    let lifecycle = shared.lifecycle.clone();
    tokio::task::spawn_local(async move {
        for phase in [
            Phase::Draining,
            Phase::ListenersClosed,
            Phase::IdleClosed,
            Phase::StreamsEnded,
            Phase::Stopping,
        ] {
            lifecycle.reached(phase).await;
            phase_sender.send_replace(lifecycle.phase());
        }
        // Kept, so that those who watch are not told that it is gone.
        std::future::pending::<()>().await;
    });
    let found = Rc::clone(&core);
    tokio::task::spawn_local(async move {
        // A balancer is not to send requests that nobody could decide just because we are new.
        let _ = timeout(limits::AUTHORIZE_FOUND, found.authorizer.found()).await;
        drop(starting);
    });
    tokio::task::spawn_local(sweep(Rc::clone(&core)));
    tokio::task::spawn_local(revisit::follow(Rc::clone(&core)));
    match TcpListener::from_std(listener) {
        Ok(listener) => listener::accept(&core, listener).await,
        Err(error) => {
            tracing::error!(%error, "a core cannot listen");
            return;
        }
    }
    core.tasks.close();
    let mut phase = core.phase.clone();
    tokio::select! {
        () = core.tasks.wait() => {}
        _ = phase.wait_for(|phase| *phase == Phase::Stopping) => {}
    }
}

async fn sweep(core: Rc<Core>) {
    let mut interval = tokio::time::interval(limits::UPSTREAM_IDLE / 4);
    loop {
        interval.tick().await;
        core.pool.sweep();
    }
}
