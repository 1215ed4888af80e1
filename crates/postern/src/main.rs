//! `postern`: all services in one process, and the command line around them.

use std::path::PathBuf;
use std::process::{ExitCode, Termination};

use clap::Parser;
use postern::check::{Explain, Strictness, check};
use postern::demo::{self, DemoArgs};
use postern::doctor::examine;
use postern::kubernetes_secrets::{self, SecretsArgs};
use postern_common::config::Origin;
use postern_common::launch::{self, HealthArgs};
use postern_common::telemetry::log::chain;

/// A request is many small allocations. Not in the services: an idle proxy would be 1.8 MiB larger.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Identity-aware access proxy, compatible with Pomerium Core
///
/// Without a command it runs the services that the configuration names in `services`, all four
/// unless told otherwise.
#[derive(Debug, Parser)]
#[command(name = "postern", version)]
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
    /// Try Postern on this machine: an identity provider, an application and a URL to open
    Demo(DemoArgs),
    /// Say everything that is wrong with a configuration, at once
    Check(CheckArgs),
    /// Look at everything that a configuration names, and say what is wrong and what to do
    Doctor(DoctorArgs),
    /// Make the Secrets of a deployment on Kubernetes that are not there yet; the Helm chart's Job
    KubernetesSecrets(SecretsArgs),
    /// Ask the process on this host whether it is ready; for container health checks
    Health(HealthArgs),
}

#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// The configuration; without it, what a start would read
    file: Option<PathBuf>,
    /// Warnings are errors too, except of what is exposed by choice
    #[arg(long)]
    strict: bool,
    /// Tell routes and their policies in words
    #[arg(long)]
    explain: bool,
}

#[derive(Debug, clap::Args)]
struct DoctorArgs {
    /// The configuration; without it, what a start would read
    file: Option<PathBuf>,
    /// For programs, in a shape that stays
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse_from(launch::command_line());
    match arguments.command {
        None => launch::process(arguments.config, None, |launched| {
            std::future::ready(postern::run::run(launched))
        }),
        Some(Command::Demo(args)) => block_on(demo::run(args)),
        Some(Command::KubernetesSecrets(args)) => block_on(kubernetes_secrets::run(args)),
        Some(Command::Check(args)) => run_check(args, arguments.config),
        Some(Command::Doctor(args)) => run_doctor(args, arguments.config),
        Some(Command::Health(args)) => args.run(arguments.config),
    }
}

#[expect(clippy::print_stdout, reason = "this is the output of the command")]
fn run_check(args: CheckArgs, config: Option<PathBuf>) -> ExitCode {
    let strictness = if args.strict {
        Strictness::Strict
    } else {
        Strictness::AsStart
    };
    let explain = if args.explain {
        Explain::Yes
    } else {
        Explain::No
    };
    let origin = Origin::of_process(args.file.or(config), None);
    let report = check(&origin, strictness, explain);
    println!("{}", report.text.trim_end());
    if report.valid {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[expect(clippy::print_stdout, reason = "this is the output of the command")]
fn run_doctor(args: DoctorArgs, config: Option<PathBuf>) -> ExitCode {
    let origin = Origin::of_process(args.file.or(config), None);
    block_on(async {
        let report = examine(&origin).await;
        let text = if args.json {
            report.json()?
        } else {
            report.text()
        };
        println!("{}", text.trim_end());
        Ok::<_, serde_json::Error>(if report.is_healthy() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    })
}

#[expect(
    clippy::print_stderr,
    reason = "a command tells its user what went wrong"
)]
fn block_on<Done: Termination, E: std::error::Error + 'static>(
    command: impl Future<Output = Result<Done, E>>,
) -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(command) {
        Ok(done) => done.report(),
        Err(error) => {
            eprintln!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}
