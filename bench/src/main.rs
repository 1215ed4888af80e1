//! Measures Postern beside nginx, HAProxy and Envoy: in one run, on one machine, in turn.
//!
//! Everything shares the cores: the load, the upstream and whoever is measured. Only ratios count.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    clippy::allow_attributes,
    reason = "a benchmark that cannot go on stops, figures are rounded, and clients are threads"
)]

mod always_yes;
mod checks;
mod client;
mod echo;
mod peers;
mod people;
mod plot;
mod postern;
mod procfs;
mod sections;
mod stage;
mod subject;
mod table;
mod tools;
mod train;

use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use crate::sections::Section;
use crate::stage::Stage;
use crate::subject::Who;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// Only these sections
    #[arg(long = "section", value_enum)]
    sections: Vec<Section>,
    /// Only these, beside nginx
    #[arg(long = "subject", value_enum)]
    subjects: Vec<Who>,
    /// Three rounds of a second: to see that it works
    #[arg(long)]
    quick: bool,
    /// Rounds; medians are printed
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of load for each subject in each round
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Sessions where there should be many [default: 100000; with --quick 10000]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1_000..))]
    sessions: Option<u32>,
    /// Figures as JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Draw the section scale into this file, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum Part {
    /// Start everything, say how to reach it, and wait for Ctrl-C: to profile by hand
    Stage,
    /// Run the load that profiles are taken from, as `just profile` does
    Train,
    /// An ext_authz server that always says yes
    #[command(hide = true)]
    AlwaysYes { port: u16 },
}

/// How long, how often.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    pub rounds: u32,
    pub load: Duration,
    /// How many sessions are many.
    pub sessions: usize,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    match arguments.part {
        None => {}
        Some(Part::AlwaysYes { port }) => return always_yes::serve(port).await,
        Some(Part::Train) => return train::run().await,
        Some(Part::Stage) => return wait_on_stage().await,
    }
    let sessions = |usual| arguments.sessions.unwrap_or(usual) as usize;
    let effort = if arguments.quick {
        Effort {
            rounds: 3,
            load: Duration::from_secs(1),
            sessions: sessions(10_000),
        }
    } else {
        Effort {
            rounds: arguments.rounds,
            load: Duration::from_secs(arguments.seconds),
            sessions: sessions(100_000),
        }
    };
    let sections = if arguments.sections.is_empty() {
        Section::ALL.to_vec()
    } else {
        arguments.sections
    };
    if arguments.plot.is_some() && !sections.contains(&Section::Scale) {
        let message = "--plot draws the section scale, which is not among those asked for";
        Arguments::command()
            .error(ErrorKind::ArgumentConflict, message)
            .exit();
    }
    let mut stage = Stage::set().await;
    if !arguments.subjects.is_empty() {
        let wanted = arguments.subjects;
        stage
            .subjects
            .retain(|subject| subject.who == Who::Nginx || wanted.contains(&subject.who));
    }
    let mut tables = Vec::new();
    for section in sections {
        eprintln!("… {}", section.title());
        let table = section.run(&mut stage, effort).await;
        if !arguments.json {
            println!("{table}");
        }
        tables.push(table);
    }
    if arguments.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&tables).expect("figures are JSON")
        );
    }
    if let Some(file) = &arguments.plot {
        let rows: Vec<_> = tables.iter().flat_map(|table| &table.rows).collect();
        std::fs::write(file, plot::svg(&rows))
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
    let wrong: u64 = tables.iter().map(table::Table::wrong).sum();
    if wrong > 0 {
        eprintln!("{wrong} wrong answers");
        std::process::exit(1);
    }
}

async fn wait_on_stage() {
    let stage = Stage::set().await;
    for subject in &stage.subjects {
        println!("{}: {:?}", subject.who, subject.processes);
        println!(
            "  wrk -t1 -c32 -d10s --latency -H 'Host: {}' -H 'Cookie: {}' https://127.0.0.1:{}/",
            subject.authority, subject.cookie, subject.port
        );
    }
    let _ = tokio::signal::ctrl_c().await;
}
