//! A program under test: its output is kept, and shown when the test fails.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::wait;

pub struct Process {
    pub name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, with its output in `directory`.
    pub fn start(name: &str, directory: &Path, command: Command) -> Self {
        Self::start_with(name, directory, command, Stdio::null())
    }

    /// The same with something to read from.
    pub fn start_with(name: &str, directory: &Path, mut command: Command, stdin: Stdio) -> Self {
        let log = directory.join(format!("{name}.log"));
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("the log can be written");
        let child = command
            .stdin(stdin)
            .stdout(output.try_clone().expect("a file can be shared"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self {
            name: name.to_owned(),
            child,
            log,
        }
    }

    /// As the kernel numbers it.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(self.child.id().to_string())
            .status()
            .expect("kill runs");
        assert!(status.success(), "kill -{signal} {}", self.name);
    }

    /// Where it listens for TCP connections, as the kernel tells it.
    pub fn listens_on(&self) -> BTreeSet<SocketAddr> {
        const LISTENS: &str = "0A";
        let of_process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let sockets: BTreeSet<String> = std::fs::read_dir(of_process.join("fd"))
            .expect("a running process")
            .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
            .filter_map(|link| {
                let link = link.to_str()?.strip_prefix("socket:[")?;
                Some(link.strip_suffix(']')?.to_owned())
            })
            .collect();
        ["net/tcp", "net/tcp6"]
            .iter()
            .flat_map(|table| {
                let table = std::fs::read_to_string(of_process.join(table)).unwrap_or_default();
                let rows = table.lines().skip(1);
                rows.map(str::to_owned).collect::<Vec<_>>()
            })
            .filter_map(|row| {
                let fields: Vec<_> = row.split_whitespace().collect();
                let ours = *fields.get(3)? == LISTENS && sockets.contains(*fields.get(9)?);
                ours.then(|| address(fields[1]))
            })
            .collect()
    }

    /// The most memory that it has had, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes =
            peak.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kilobytes.unwrap_or_default() * 1024
    }

    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked")
    }

    pub async fn ended(&mut self) -> ExitStatus {
        let name = self.name.clone();
        wait::until(
            &format!("{name} to end"),
            Duration::from_secs(30),
            async || {
                self.child
                    .try_wait()
                    .expect("a child can be asked")
                    .ok_or("running")
            },
        )
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("──── output of {} ────\n{}", self.name, self.output());
        }
    }
}

/// `0100007F:1F90` is 127.0.0.1:8080: words of the machine's order, in hexadecimal digits.
fn address(text: &str) -> SocketAddr {
    let (ip, port) = text.split_once(':').expect("an address and a port");
    let port = u16::from_str_radix(port, 16).expect("a port");
    let bytes: Vec<u8> = ip
        .as_bytes()
        .chunks(8)
        .flat_map(|word| {
            let word = std::str::from_utf8(word).expect("hexadecimal digits");
            let word = u32::from_str_radix(word, 16).expect("hexadecimal digits");
            word.to_ne_bytes()
        })
        .collect();
    if let Ok(v4) = <[u8; 4]>::try_from(bytes.as_slice()) {
        (Ipv4Addr::from(v4), port).into()
    } else {
        let v6: [u8; 16] = bytes.try_into().expect("an IPv6 address");
        (Ipv6Addr::from(v6), port).into()
    }
}
