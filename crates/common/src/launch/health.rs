//! `health`: the container's health check, by the binary itself.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use crate::lifecycle::health::DEFAULT_ADDRESS;

/// For each step of asking.
const PATIENCE: Duration = Duration::from_secs(2);
/// More than the answer ever has.
const MAX_ANSWER: u64 = 64 * 1024;

#[derive(Debug, clap::Args)]
pub struct HealthArgs {
    /// Where the process answers for its health
    #[arg(short, long, env = "HEALTH_CHECK_ADDR", default_value = DEFAULT_ADDRESS)]
    addr: String,
}

impl HealthArgs {
    /// Prints what the process says; the exit code is 0 only when it is ready.
    #[expect(clippy::print_stdout, reason = "this is the output of the command")]
    pub fn run(&self) -> ExitCode {
        match ask(&self.addr) {
            Ok((ready, body)) => {
                println!("{}", body.trim_end());
                if ready {
                    ExitCode::SUCCESS
                } else {
                    ExitCode::FAILURE
                }
            }
            Err(error) => {
                println!("no answer from {}: {error}", self.addr);
                ExitCode::FAILURE
            }
        }
    }
}

/// Needs no runtime: a check that runs every few seconds should cost little.
fn ask(address: &str) -> std::io::Result<(bool, String)> {
    let invalid = |reason: &str| std::io::Error::new(std::io::ErrorKind::InvalidInput, reason);
    // Where a process listens on every interface it also answers on loopback.
    let address: SocketAddr = match address.strip_prefix(':') {
        Some(port) => format!("127.0.0.1:{port}"),
        None => address.replacen("0.0.0.0", "127.0.0.1", 1),
    }
    .parse()
    .map_err(|_| invalid("not an address such as 127.0.0.1:28080"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let question = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(question.as_bytes())?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| invalid("the answer is no HTTP"))?;
    Ok((head.starts_with("HTTP/1.1 200"), body.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn answering(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        address
    }

    #[test]
    fn only_200_is_ready() {
        let ready = answering("HTTP/1.1 200 OK\r\n\r\n{}");
        assert_eq!(ask(&ready).unwrap(), (true, "{}".to_owned()));
        let unready = answering("HTTP/1.1 503 Service Unavailable\r\n\r\nstorage");
        assert_eq!(ask(&unready).unwrap(), (false, "storage".to_owned()));
        assert!(ask(&answering("SSH-2.0-hello\r\n")).is_err());
        assert!(ask("nowhere").is_err());
    }
}
