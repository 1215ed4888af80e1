//! wrk and h2load: how they are called, and what they say.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::subject::Subject;

/// What a tool saw. Latencies are in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    pub rate: f64,
    pub requests: u64,
    pub p50: f64,
    pub p99: f64,
    /// Errors, and answers other than 200.
    pub wrong: u64,
}

pub const CONNECTIONS: u32 = 32;

/// What becomes of a connection after its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    KeepAlive,
    Close,
}

/// HTTP/1.1.
pub fn wrk(subject: &Subject, load: Duration, reuse: Reuse) -> Seen {
    let mut command = wrk_command(subject, load);
    command.args(["-H", &format!("Cookie: {}", subject.cookie)]);
    if reuse == Reuse::Close {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(format!("https://127.0.0.1:{}/", subject.port));
    read_wrk(&output(&mut command))
}

/// The same with the cookies of several people, one after the other.
pub fn wrk_in_turn(
    subject: &Subject,
    load: Duration,
    cookies: &[String],
    directory: &Path,
) -> Seen {
    let lines = directory.join("cookies.txt");
    std::fs::write(&lines, cookies.join("\n")).expect("a file can be written");
    let script = directory.join("in-turn.lua");
    std::fs::write(&script, IN_TURN).expect("a file can be written");
    let mut command = wrk_command(subject, load);
    command.arg("-s").arg(script);
    command.arg(format!("https://127.0.0.1:{}/", subject.port));
    command.arg("--").arg(lines);
    read_wrk(&output(&mut command))
}

/// For wrk: a request for each line of the file that it is given.
const IN_TURN: &str = r#"
local requests, next = {}, 0
function init(arguments)
  for cookie in io.lines(arguments[1]) do
    wrk.headers["Cookie"] = cookie
    requests[#requests + 1] = wrk.format("GET", "/")
  end
end
function request()
  next = next % #requests + 1
  return requests[next]
end
"#;

fn wrk_command(subject: &Subject, load: Duration) -> Command {
    let mut command = Command::new("wrk");
    command.args(["-t1", "--latency", "--timeout", "10s"]);
    command.arg(format!("-c{CONNECTIONS}"));
    command.arg(format!("-d{}s", load.as_secs()));
    command.args(["-H", &format!("Host: {}", subject.authority)]);
    command
}

/// HTTP/2, one request at a time on each connection: as many at once as over HTTP/1.1.
pub fn h2load(subject: &Subject, load: Duration, directory: &Path) -> Seen {
    let log = directory.join("h2load.tsv");
    // It appends.
    let _ = std::fs::remove_file(&log);
    let mut command = Command::new("h2load");
    command.arg(format!("-c{CONNECTIONS}"));
    command.args(["-t1", "-m1", "--warm-up-time=0"]);
    command.arg(format!("--duration={}", load.as_secs()));
    command.arg(format!("--connect-to=127.0.0.1:{}", subject.port));
    command.arg(format!("--log-file={}", log.display()));
    command.args(["-H", &format!("cookie: {}", subject.cookie)]);
    command.arg(format!("https://{}/", subject.authority));
    let said = output(&mut command);
    let log = std::fs::read_to_string(&log).expect("h2load writes its log");
    read_h2load(&said, &log)
}

fn output(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; run bench/prepare.sh"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

fn read_wrk(said: &str) -> Seen {
    let after = |label: &str| {
        said.lines()
            .find_map(|line| line.trim().strip_prefix(label))
            .map(str::trim)
    };
    let requests = said.lines().find_map(|line| {
        let (count, rest) = line.trim().split_once(" requests in ")?;
        rest.contains("read").then(|| count.parse().ok())?
    });
    let errors: u64 = after("Socket errors:").map_or(0, |list| {
        let words = list.split([' ', ',']);
        words.filter_map(|word| word.parse::<u64>().ok()).sum()
    });
    let refused: u64 =
        after("Non-2xx or 3xx responses:").map_or(0, |count| count.parse().expect("wrk counts"));
    let milliseconds = |label| after(label).map(duration).unwrap_or_default();
    Seen {
        rate: after("Requests/sec:")
            .and_then(|rate| rate.parse().ok())
            .unwrap_or_else(|| panic!("wrk said: {said}")),
        requests: requests.unwrap_or_else(|| panic!("wrk said: {said}")),
        p50: milliseconds("50%"),
        p99: milliseconds("99%"),
        wrong: errors + refused,
    }
}

/// `1.20ms`, `870.00us`, `1.01s` in milliseconds.
fn duration(text: &str) -> f64 {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let value: f64 = digits.parse().expect("a number");
    match &text[digits.len()..] {
        "us" => value / 1e3,
        "ms" => value,
        "s" => value * 1e3,
        unit => panic!("an unknown unit {unit}"),
    }
}

/// The log has a line for each answer: when, status, how many microseconds it took.
fn read_h2load(said: &str, log: &str) -> Seen {
    let rate = said.lines().find_map(|line| {
        let (_, rest) = line.strip_prefix("finished in ")?.split_once(", ")?;
        rest.split(' ').next()?.parse().ok()
    });
    let mut wrong = 0;
    let mut took: Vec<f64> = Vec::new();
    for line in log.lines() {
        let mut fields = line.split('\t').skip(1);
        let status = fields.next();
        let microseconds: f64 = fields.next().and_then(|it| it.parse().ok()).unwrap_or(0.0);
        wrong += u64::from(status != Some("200"));
        took.push(microseconds / 1e3);
    }
    took.sort_by(f64::total_cmp);
    Seen {
        rate: rate.unwrap_or_else(|| panic!("h2load said: {said}")),
        requests: took.len() as u64,
        p50: percentile(&took, 50),
        p99: percentile(&took, 99),
        wrong,
    }
}

/// Of sorted values.
pub fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let at = sorted.len().saturating_sub(1) * percent / 100;
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_wrk_says() {
        let said = "Running 3s test @ https://127.0.0.1:1/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.53ms    1.18ms  23.04ms   90.11%
    Req/Sec    21.95k     1.27k   24.54k    66.67%
  Latency Distribution
     50%    1.20ms
     75%    1.71ms
     90%  870.00us
     99%    1.01s 
  65432 requests in 3.01s, 78.04MB read
  Socket errors: connect 1, read 2, write 0, timeout 3
  Non-2xx or 3xx responses: 7
Requests/sec:  21738.20
Transfer/sec:     25.93MB
";
        let seen = read_wrk(said);
        assert_eq!(seen.requests, 65432);
        assert!((seen.rate - 21738.2).abs() < 0.01);
        assert!((seen.p50 - 1.2).abs() < 1e-9 && (seen.p99 - 1010.0).abs() < 1e-9);
        assert_eq!(seen.wrong, 13);
    }

    #[test]
    fn reads_what_h2load_says() {
        let said = "finished in 3.00s, 31999.00 req/s, 37.9MB/s\nrequests: 3 total\n";
        let log = "1\t200\t100\n2\t302\t300\n3\t200\t200\n";
        let seen = read_h2load(said, log);
        assert!((seen.rate - 31999.0).abs() < 1e-9);
        assert_eq!((seen.requests, seen.wrong), (3, 1));
        assert!((seen.p50 - 0.2).abs() < 1e-9);
    }
}
