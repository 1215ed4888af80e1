//! `health`: the container's health check, by the binary itself.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde::Deserialize;

use crate::config::{Origin, health_address, listener_address};

/// For each step of asking.
const PATIENCE: Duration = Duration::from_secs(2);
/// More than the answer ever has.
const MAX_ANSWER: u64 = 64 * 1024;
/// How often `watch` asks.
const WATCH: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub struct HealthArgs {
    /// Where the process answers for its health. Without it HEALTH_CHECK_ADDR, or
    /// `health_check_addr` of the configuration, or 127.0.0.1:28080
    #[arg(short, long)]
    addr: Option<String>,
    /// A check that need not be good; may be given several times
    #[arg(short, long, value_name = "CHECK")]
    exclude: Vec<String>,
    /// Print what is known of every check, also of those that readiness does not rest on
    #[arg(short, long)]
    verbose: bool,
    #[command(subcommand)]
    command: Option<HealthCommand>,
}

#[derive(Debug, clap::Subcommand)]
enum HealthCommand {
    /// Print each change until interrupted
    Watch,
}

impl HealthArgs {
    /// Prints what the process says; the exit code is 0 only when it is ready. `file` is the
    /// configuration that the command line names.
    pub fn run(&self, file: Option<PathBuf>) -> ExitCode {
        let address = match &self.addr {
            Some(text) => listener_address(text),
            None => health_address(&Origin::of_process(file, None)),
        };
        match address {
            Ok(address) => self.ask_at(reachable(address)),
            Err(problem) => {
                print(&format!(
                    "not an address such as 127.0.0.1:28080: {problem}"
                ));
                ExitCode::FAILURE
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "there is no runtime to block")]
    fn ask_at(&self, address: SocketAddr) -> ExitCode {
        let Some(HealthCommand::Watch) = self.command else {
            let (seen, said) = self.look(address);
            print(&said);
            return if matches!(seen, Seen::Answer { ready: true, .. }) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        };
        let mut before = None;
        loop {
            let (seen, said) = self.look(address);
            if before.as_ref() != Some(&seen) {
                print(&said);
                before = Some(seen);
            }
            std::thread::sleep(WATCH);
        }
    }

    /// What there is to see, and what there is to print.
    fn look(&self, address: SocketAddr) -> (Seen, String) {
        let asked = ask(address, "/readyz").and_then(|answer| {
            let told = if self.verbose {
                ask(address, "/status")?.body
            } else {
                answer.body.clone()
            };
            Ok((answer, told))
        });
        match asked {
            Ok((answer, told)) => {
                let checks = checks(&answer.body);
                let ready = answer.ok || self.all_good_but_excluded(&checks);
                (Seen::Answer { ready, checks }, told)
            }
            Err(error) => (Seen::Silence, format!("no answer from {address}: {error}")),
        }
    }

    fn all_good_but_excluded(&self, checks: &BTreeMap<String, Check>) -> bool {
        let mut rest = checks
            .iter()
            .filter(|(name, _)| !self.exclude.contains(name));
        !self.exclude.is_empty() && !checks.is_empty() && rest.all(|(_, check)| check.is_good())
    }
}

/// What `watch` tells a change by.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Answer {
        ready: bool,
        checks: BTreeMap<String, Check>,
    },
    Silence,
}

/// As far as a verdict rests on it.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Check {
    status: String,
    error: Option<String>,
}

impl Check {
    fn is_good(&self) -> bool {
        self.status == "RUNNING" && self.error.is_none()
    }
}

/// None where the answer is something else.
fn checks(body: &str) -> BTreeMap<String, Check> {
    serde_json::from_str(body).unwrap_or_default()
}

/// Where a process listens on every interface it also answers on loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    address
}

#[derive(Debug)]
struct Answer {
    ok: bool,
    body: String,
}

/// Needs no runtime: a check that runs every few seconds should cost little.
fn ask(address: SocketAddr, path: &str) -> std::io::Result<Answer> {
    let invalid = |reason: &str| std::io::Error::new(std::io::ErrorKind::InvalidInput, reason);
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let question = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(question.as_bytes())?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| invalid("the answer is no HTTP"))?;
    Ok(Answer {
        ok: head.starts_with("HTTP/1.1 200"),
        body: body.to_owned(),
    })
}

#[expect(clippy::print_stdout, reason = "this is the output of the command")]
fn print(text: &str) {
    println!("{}", text.trim_end());
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        health: HealthArgs,
    }

    fn arguments(line: &[&str]) -> HealthArgs {
        Line::parse_from([&["health"][..], line].concat()).health
    }

    /// Gives this answer to every question.
    fn answering(status: &'static str, body: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).unwrap();
                let answer = format!("{status}\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    fn is_ready(line: &[&str], address: SocketAddr) -> bool {
        let (seen, _) = arguments(line).look(address);
        matches!(seen, Seen::Answer { ready: true, .. })
    }

    #[test]
    fn only_200_is_ready() {
        assert!(is_ready(&[], answering("HTTP/1.1 200 OK", "{}")));
        let unready = answering("HTTP/1.1 503 Service Unavailable", "storage");
        assert!(!is_ready(&[], unready));
        assert_eq!(arguments(&[]).look(unready).1, "storage");
        let (seen, said) = arguments(&[]).look(answering("SSH-2.0-hello", ""));
        assert!(matches!(seen, Seen::Answer { ready: false, .. }), "{said}");
    }

    #[test]
    fn checks_that_are_left_out_need_not_be_good() {
        let unready = answering(
            "HTTP/1.1 503 Service Unavailable",
            r#"{"proxy": {"status": "RUNNING", "since": "x"},
                "authorize": {"status": "RUNNING", "since": "x", "error": "waits"},
                "databroker": {"status": "UNKNOWN", "since": "x"}}"#,
        );
        let both = ["-e", "authorize", "--exclude", "databroker"];
        assert!(is_ready(&both, unready));
        assert!(!is_ready(&["-e", "authorize"], unready));
        assert!(!is_ready(&["-e", "databroker"], unready));
        // Who answers nothing to judge by is not well.
        let silent = answering("HTTP/1.1 503 Service Unavailable", "");
        assert!(!is_ready(&both, silent));
    }

    #[test]
    fn c54_who_listens_everywhere_is_asked_on_loopback() {
        for (written, asked) in [
            (":9", "127.0.0.1:9"),
            ("0.0.0.0:9", "127.0.0.1:9"),
            ("localhost:9", "127.0.0.1:9"),
            ("[::]:9", "127.0.0.1:9"),
            ("[::1]:9", "[::1]:9"),
            ("192.0.2.1:9", "192.0.2.1:9"),
        ] {
            let address = reachable(listener_address(written).unwrap());
            assert_eq!(address.to_string(), asked, "{written}");
        }
    }

    #[test]
    fn the_command_line_is_pomeriums() {
        let watch = arguments(&["-a", "localhost:1", "-e", "a", "-e", "b", "-v", "watch"]);
        assert_eq!(watch.addr.as_deref(), Some("localhost:1"));
        assert_eq!(watch.exclude, ["a", "b"]);
        assert!(watch.verbose && watch.command.is_some());
        assert!(arguments(&[]).command.is_none());
    }
}
