//! Faults under load: each line of docs/scale.md's table, with the figure that was reached.
//!
//! `just chaos` runs all of them. Without `--all` only those run that are quick and not bothered by
//! a busy machine, with less load and without a look at the clock; words pick lines by name.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::allow_attributes,
    clippy::print_stdout,
    reason = "tests may panic, and say what they saw"
)]

mod authorize;
mod databroker;
mod dns;
mod ended;
mod failover;
mod network;
mod overload;
mod reload;
mod restart;
mod stage;

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tokio::task::LocalSet;

use self::stage::{FULL, Figure, GENTLE, Terms};

/// One fault, and what must be so while and after it happens.
struct Line {
    name: &'static str,
    fault: &'static str,
    goal: &'static str,
    /// Whether it also runs in `just test`.
    quick: bool,
    run: fn(Terms) -> Pin<Box<dyn Future<Output = Figure>>>,
}

/// A line; `quick` before its name has it run in `just test` too.
macro_rules! line {
    ($module:ident::$name:ident, $fault:literal, $goal:literal) => {
        line!(@ false, $module::$name, $fault, $goal)
    };
    (quick $module:ident::$name:ident, $fault:literal, $goal:literal) => {
        line!(@ true, $module::$name, $fault, $goal)
    };
    (@ $quick:literal, $module:ident::$name:ident, $fault:literal, $goal:literal) => {
        Line {
            name: stringify!($name),
            fault: $fault,
            goal: $goal,
            quick: $quick,
            run: |terms| Box::pin($module::$name(terms)),
        }
    };
}

const LINES: &[Line] = &[
    line!(quick authorize::c02_authorize_killed, "kill -9 of one of two authorize", "0 failed"),
    line!(
        restart::c14_rolling_restart,
        "rolling restart of every service, one by one",
        "0 failed, sign-ins too"
    ),
    line!(
        authorize::authorize_frozen,
        "one of two authorize frozen",
        "0 failed, none over 1 s, ejected within 2 s"
    ),
    line!(
        databroker::databroker_frozen,
        "one of two databroker frozen",
        "0 failed, none over 1 s, every sign-in completes within 2 s"
    ),
    line!(
        restart::authenticate_frozen,
        "one of two authenticate frozen",
        "0 failed, none over 1 s, every sign-in completes within 2 s"
    ),
    line!(
        dns::c03_replica_added,
        "authorize added to DNS, TTL 2",
        "0 failed, traffic within 5 s, at least 30 %"
    ),
    line!(
        dns::c03_replica_added_ttl_0,
        "authorize added to DNS, TTL 0",
        "0 failed, traffic within 2 s, at least 30 %"
    ),
    line!(
        dns::c03_replica_removed,
        "authorize removed from DNS, TTL 2",
        "0 failed, nothing new there after 5 s, none over 1 s"
    ),
    line!(
        dns::c05_dns_lies,
        "DNS: NXDOMAIN, SERVFAIL, no answer, empty; then two other addresses",
        "0 failed, the new pair in use within 5 s"
    ),
    line!(
        databroker::c07_databrokers_down,
        "every databroker down, back elsewhere",
        "signed in: 0 failed; sign-in: clear 503, works within 5 s of return"
    ),
    line!(
        databroker::c15_postgres_down,
        "Postgres down",
        "signed in: 0 failed; sign-in: clear 503, works within 5 s of return"
    ),
    line!(quick databroker::databroker_killed, "kill -9 of one of two databroker during sign-ins", "every sign-in completes, 0 failed"),
    line!(
        failover::c11_failover,
        "Postgres primary fails over, its name gone",
        "writes within 2 s of promotion; no acknowledged record lost, no change skipped; signed in: 0 failed"
    ),
    line!(quick network::c66_cut, "network cut between proxy and authorize", "503 within 2 s, nothing reaches the upstream, back within 2 s"),
    line!(
        network::c66_silent,
        "the same, packets lost in silence",
        "503 within 2 s, nothing reaches the upstream, back within 2 s"
    ),
    line!(
        network::c01_forgotten_idle,
        "a device forgets the idle connections to authorize, then 100 requests",
        "0 failed, none over 1 s"
    ),
    line!(
        network::c01_forgotten_idle_alone,
        "the same with one authorize",
        "0 failed, none over 1 s"
    ),
    line!(
        network::c01_forgotten_in_use,
        "it forgets all of them in the midst of load",
        "0 failed, none over 1 s"
    ),
    line!(
        reload::c58_reload,
        "configuration reload, valid and broken",
        "0 failed, a broken one changes nothing"
    ),
    line!(
        ended::c27_ended_at_full_load,
        "a session ended, then a policy closed, at full load",
        "nobody let in who asks 1 s later"
    ),
    line!(
        overload::overload,
        "10 × overload",
        "beyond the limit a quick 503; inside p99 < 5 × normal; memory bounded"
    ),
];

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let all = arguments.iter().any(|it| it == "--all");
    let names: Vec<_> = arguments
        .iter()
        .filter(|it| !it.starts_with("--"))
        .collect();
    let chosen = LINES.iter().filter(|line| {
        names.iter().any(|name| line.name.contains(name.as_str()))
            || (names.is_empty() && (all || line.quick))
    });
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let timed = all || !names.is_empty();
    let done: Vec<_> = chosen
        .map(|line| (line, runtime.block_on(run(line, timed))))
        .collect();
    runtime.shutdown_timeout(Duration::from_secs(5));
    print_table(&done, timed);
    if done.iter().all(|(_, figure)| figure.reached) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// One line at a time: each has the machine for itself.
async fn run(line: &Line, timed: bool) -> Figure {
    println!("chaos: {} …", line.name);
    let begun = Instant::now();
    // What cannot go on panics, as every test does.
    let local = LocalSet::new();
    let terms = Terms {
        name: line.name,
        rate: if timed { FULL } else { GENTLE },
        timed,
    };
    let playing = local.spawn_local((line.run)(terms));
    let figure = match local.run_until(playing).await {
        Ok(figure) => figure,
        Err(error) => Figure::broken(error.to_string()),
    };
    let verdict = verdict(&figure, timed);
    let seconds = begun.elapsed().as_secs();
    println!(
        "chaos: {} {verdict} after {seconds} s: {}",
        line.name, figure.text
    );
    for note in &figure.notes {
        println!("    {note}");
    }
    figure
}

fn verdict(figure: &Figure, timed: bool) -> &'static str {
    match (figure.reached, timed) {
        (true, true) => "pass",
        (true, false) => "pass, times not judged",
        (false, _) => "FAIL",
    }
}

fn print_table(done: &[(&Line, Figure)], timed: bool) {
    println!("\n| fault | goal | reached | |\n|---|---|---|---|");
    for (line, figure) in done {
        let verdict = verdict(figure, timed);
        println!(
            "| {} | {} | {} | {verdict} |",
            line.fault, line.goal, figure.text
        );
    }
}
