//! From the command line to a running service: what every binary does in the same way.
//!
//! Configuration first, with everything that is wrong with it at once; then log, health and
//! metrics; then the service itself; at last the drain.

pub mod grpc;
mod health;
pub mod peers;

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::watch::{ReloadOutcome, Watch, log_all};
use crate::config::{Config, Origin, ProcessSecrets, ServerTls, Service, Supervision, load};
use crate::lifecycle::health::Health;
use crate::lifecycle::supervisor::Supervisor;
use crate::lifecycle::{DrainTiming, Lifecycle, descriptors};
use crate::net::given;
use crate::rpc::token::TokenKeys;
use crate::telemetry::log::{Levels, Log, chain};
use crate::telemetry::metrics::{self, ConfigMetrics, Metrics};
use crate::telemetry::trace;

pub use health::HealthArgs;

/// What a service gets to run with.
pub struct Launched {
    /// Always the newest good configuration.
    pub config: watch::Receiver<Arc<Config>>,
    pub lifecycle: Lifecycle,
    pub metrics: Metrics,
    pub health: Health,
    /// What calls between services are signed with; follows the configuration.
    pub keys: TokenKeys,
}

/// The command line of a binary that has one service.
#[derive(Debug, Parser)]
struct Arguments {
    /// The configuration: YAML, JSON or TOML. Without it, /pomerium/config.yaml if there is one,
    /// else the environment alone
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Ask the process on this host whether it is ready; for container health checks
    Health(HealthArgs),
}

/// `main` of a binary that has one service.
pub fn service<Run, Running, E>(service: Service, about: &'static str, run: Run) -> ExitCode
where
    Run: FnOnce(Launched) -> Running,
    Running: Future<Output = Result<(), E>>,
    E: std::error::Error + 'static,
{
    let command = <Arguments as clap::CommandFactory>::command()
        .name(service.program())
        .about(about)
        .version(env!("CARGO_PKG_VERSION"));
    let matches = command.get_matches_from(command_line());
    let arguments = match <Arguments as clap::FromArgMatches>::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    match arguments.command {
        Some(Command::Health(args)) => args.run(arguments.config),
        None => process(arguments.config, Some(service), run),
    }
}

/// The arguments of this process; `-config` and `-version` are read as Pomerium reads them.
pub fn command_line() -> Vec<std::ffi::OsString> {
    std::env::args_os()
        .map(|argument| match argument.to_str() {
            Some("-config") => "--config".into(),
            Some("-version") => "--version".into(),
            Some(text) if text.starts_with("-config=") => format!("-{text}").into(),
            _ => argument,
        })
        .collect()
}

/// Runs a process from its configuration to its exit code. `only` is the one service that this
/// program has, `None` for all of them.
pub fn process<Run, Running, E>(file: Option<PathBuf>, only: Option<Service>, run: Run) -> ExitCode
where
    Run: FnOnce(Launched) -> Running,
    Running: Future<Output = Result<(), E>>,
    E: std::error::Error + 'static,
{
    let origin = Origin::of_process(file, only);
    let secrets = Arc::new(ProcessSecrets::default());
    let loaded = load(&origin, &secrets);
    let Some(config) = loaded.config else {
        say(&loaded.diagnostics.to_string());
        return ExitCode::FAILURE;
    };
    // While there is one thread: it takes LISTEN_FDS out of the environment.
    if let Err(error) = given::adopt(&config.listeners()) {
        say(&chain(&error));
        return ExitCode::FAILURE;
    }
    let log = match Log::start(&config.services.label(), Levels::from(&config.log)) {
        Ok(log) => log,
        Err(error) => {
            say(&chain(&error));
            return ExitCode::FAILURE;
        }
    };
    log_all(&loaded.diagnostics);
    descriptors::raise();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .thread_name("control")
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(error = chain(&error), "cannot start");
            return ExitCode::FAILURE;
        }
    };
    let (watch, receiver) = Watch::new(origin, secrets, config, loaded.files);
    let code = runtime.block_on(live(watch, receiver, &log, run));
    // What still runs has been told to stop and was given its time.
    runtime.shutdown_background();
    drop(log);
    code
}

async fn live<Run, Running, E>(
    watch: Watch,
    config: watch::Receiver<Arc<Config>>,
    log: &Log,
    run: Run,
) -> ExitCode
where
    Run: FnOnce(Launched) -> Running,
    Running: Future<Output = Result<(), E>>,
    E: std::error::Error + 'static,
{
    let lifecycle = Lifecycle::new(DrainTiming::from(config.borrow().process.drain));
    let control = Handle::current();
    let _turning = lifecycle.runtimes().watch("control", control);
    let starting = async {
        // Health answers from now on, and is not to say "ready" before the parts have registered.
        let _not_ready = lifecycle.not_ready("start");
        let launched = prepare(watch, config, &lifecycle, log).map_err(|error| chain(&error))?;
        run(launched).await.map_err(|error| chain(&error))
    };
    if let Err(error) = starting.await {
        tracing::error!(error, "cannot start");
        lifecycle.stop();
        lifecycle.run_to_end().await;
        return ExitCode::FAILURE;
    }
    lifecycle.run_to_end().await.code()
}

#[derive(Debug, thiserror::Error)]
enum PrepareError {
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
    #[error("cannot start the thread that tells systemd")]
    Supervisor(#[source] std::io::Error),
    #[error(transparent)]
    Health(#[from] crate::lifecycle::side_server::SideServerError),
    #[error(transparent)]
    Metrics(#[from] metrics::EndpointError),
    #[error(transparent)]
    Traces(#[from] trace::ExportError),
}

/// Everything that is there before the service: signals, health, metrics, reload.
fn prepare(
    watch: Watch,
    receiver: watch::Receiver<Arc<Config>>,
    lifecycle: &Lifecycle,
    log: &Log,
) -> Result<Launched, PrepareError> {
    lifecycle
        .listen_for_signals()
        .map_err(PrepareError::Signals)?;
    // At once: a SIGHUP that nobody listens for ends the process.
    let hangup = signal(SignalKind::hangup()).map_err(PrepareError::Signals)?;
    let config = Arc::clone(&receiver.borrow());
    let health = Health::start(lifecycle, config.listen.health)?;

    let label = config.services.label();
    let metrics = Metrics::default();
    metrics.add_build_info(
        &label,
        env!("CARGO_PKG_VERSION"),
        option_env!("POSTERN_REVISION").unwrap_or("unknown"),
    );
    metrics.add_process(lifecycle.parts());
    trace::start(&config, &metrics, lifecycle)?;
    let reloads = ConfigMetrics::new(&metrics, &label);
    tell(&reloads, &config);
    let endpoint = config
        .metrics
        .as_ref()
        .map(|options| metrics::Endpoint::start(&metrics, options, lifecycle.stopping()))
        .transpose()?;

    let keys = TokenKeys::new(config.secrets.shared.clone());
    let supervisor = match config.process.supervision {
        Supervision::Told => Supervisor::start(lifecycle).map_err(PrepareError::Supervisor)?,
        Supervision::Off => Supervisor::default(),
    };
    let traces = config.traces.clone();
    let (levels, followed, living) = (log.levels(), keys.clone(), lifecycle.clone());
    lifecycle.spawn(watch.run(
        lifecycle.stopping(),
        hangup,
        move || supervisor.reloading(),
        move |outcome| match outcome {
            ReloadOutcome::Applied { config, .. } => {
                levels.set(Levels::from(&config.log));
                living.set_timing(DrainTiming::from(config.process.drain));
                followed.replace(config.secrets.shared.clone());
                if let (Some(endpoint), Some(options)) = (&endpoint, &config.metrics)
                    && let Err(error) = endpoint.follow(options)
                {
                    tracing::error!(error = chain(&error), "metrics keep their certificate");
                }
                if config.traces != traces {
                    tracing::warn!("otel_… differs; it counts from the next start on");
                }
                tell(&reloads, config);
            }
            ReloadOutcome::Rejected { .. } => reloads.refused(),
        },
    ));
    Ok(Launched {
        config: receiver,
        lifecycle: lifecycle.clone(),
        metrics,
        health,
        keys,
    })
}

/// What metrics say about a configuration that is in use from now on.
fn tell(metrics: &ConfigMetrics, config: &Config) {
    metrics.loaded(config.checksum, config.routes.len(), Timestamp::now());
    let certificates = match &config.server_tls {
        ServerTls::Off => &[][..],
        ServerTls::Certificates(list) => list,
    };
    metrics.certificates(certificates.iter().map(|certificate| {
        let name = certificate.names.first().map_or("", String::as_str);
        (name, certificate.not_after)
    }));
}

/// Before there is a log, people are told on the terminal.
#[expect(clippy::print_stderr, reason = "the log does not exist yet")]
fn say(text: &str) {
    eprintln!("{}", text.trim_end());
}
