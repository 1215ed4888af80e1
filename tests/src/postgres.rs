//! A real Postgres of one's own, in a temporary directory, gone when dropped.
//!
//! Needs nothing but the standard library and `tempfile`, because the tests of databroker include this file too.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use tempfile::TempDir;

/// Whom the server runs as when the tests run as root, which Postgres refuses.
const SERVER_USER: &str = "postgres";

pub struct Postgres {
    binaries: PathBuf,
    directory: TempDir,
    port: u16,
}

impl Postgres {
    /// Makes a cluster and starts it. The error says what is missing.
    pub fn start() -> Result<Self, String> {
        let postgres = Self::prepare()?;
        run(postgres
            .as_server("initdb")
            .arg("-D")
            .arg(postgres.data())
            .args([
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ]))?;
        postgres.resume()?;
        Ok(postgres)
    }

    /// A directory and a port, without a cluster.
    fn prepare() -> Result<Self, String> {
        let binaries = binaries()
            .ok_or("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")?;
        let directory = tempfile::Builder::new()
            .prefix("postern-pg-")
            .tempdir()
            .map_err(|error| error.to_string())?;
        if is_root() {
            let path = directory.path();
            run(Command::new("chown").arg(SERVER_USER).arg(path))?;
        }
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))
            .and_then(|listener| listener.local_addr())
            .map_err(|error| error.to_string())?
            .port();
        Ok(Self {
            binaries,
            directory,
            port,
        })
    }

    /// A server that follows this one and can be read from, until it is promoted.
    pub fn standby(&self) -> Result<Self, String> {
        let standby = Self::prepare()?;
        let port = self.port.to_string();
        run(standby
            .as_server("pg_basebackup")
            .arg("-D")
            .arg(standby.data())
            .arg("-h")
            .arg(self.directory.path())
            .args([
                "-p",
                &port,
                "-U",
                "postgres",
                "-R",
                "-X",
                "stream",
                "-c",
                "fast",
                "--no-sync",
            ]))?;
        standby.resume()?;
        Ok(standby)
    }

    /// Makes a standby the primary of a new timeline.
    pub fn promote(&self) -> Result<(), String> {
        run(self
            .as_server("pg_ctl")
            .arg("-D")
            .arg(self.data())
            .args(["-w", "promote"]))?;
        Ok(())
    }

    /// Starts the server again after [`Self::stop`].
    pub fn resume(&self) -> Result<(), String> {
        let options = format!(
            "-p {} -k {} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=200 -c log_lock_waits=on",
            self.port,
            self.directory.path().display(),
        );
        run(self
            .as_server("pg_ctl")
            .arg("-D")
            .arg(self.data())
            .args(["-w", "-t", "60", "-l"])
            .arg(self.log_file())
            .arg("-o")
            .arg(options)
            .arg("start"))?;
        Ok(())
    }

    /// Ends every connection and the server, as a crash does.
    pub fn stop(&self) -> Result<(), String> {
        run(self.as_server("pg_ctl").arg("-D").arg(self.data()).args([
            "-w",
            "-m",
            "immediate",
            "stop",
        ]))?;
        Ok(())
    }

    /// Stops every process of the server where it stands, or lets them go on.
    pub fn freeze(&self, frozen: bool) -> Result<(), String> {
        let pid_file = std::fs::read_to_string(self.data().join("postmaster.pid"))
            .map_err(|error| error.to_string())?;
        let postmaster = pid_file.lines().next().unwrap_or_default();
        let children = Command::new("ps")
            .args(["--ppid", postmaster, "-o", "pid="])
            .output()
            .map_err(|error| error.to_string())?;
        let children = String::from_utf8_lossy(&children.stdout).into_owned();
        let signal = if frozen { "-STOP" } else { "-CONT" };
        run(Command::new("kill")
            .arg(signal)
            .arg(postmaster)
            .args(children.split_whitespace()))?;
        Ok(())
    }

    /// Makes a database and returns how to reach it through the file system.
    pub fn database(&self, name: &str) -> Result<String, String> {
        self.psql("postgres", &format!("CREATE DATABASE {name}"))?;
        Ok(self.connection_string(name))
    }

    pub fn connection_string(&self, database: &str) -> String {
        format!(
            "host={} port={} user=postgres dbname={database}",
            self.directory.path().display(),
            self.port
        )
    }

    /// The same as a URI over TCP.
    pub fn uri(&self, database: &str) -> String {
        format!(
            "postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable",
            self.port
        )
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs statements; returns what they print, without headings.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String, String> {
        let output = run(Command::new(self.binaries.join("psql")).args([
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            &self.connection_string(database),
            "-c",
            sql,
        ]))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// What pgbench says after it ran `script`, one transaction after another on each of `clients`.
    pub fn pgbench(
        &self,
        database: &str,
        script: &Path,
        clients: usize,
        time: Duration,
    ) -> Result<String, String> {
        let output = run(Command::new(self.binaries.join("pgbench"))
            .args(["--no-vacuum", "--jobs=1"])
            .arg(format!("--client={clients}"))
            .arg(format!("--time={}", time.as_secs().max(1)))
            .arg("--file")
            .arg(script)
            .arg(self.connection_string(database)))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes the server offer TLS with this certificate.
    pub fn enable_tls(&self, certificate: &str, key: &str) -> Result<(), String> {
        use std::os::unix::fs::PermissionsExt as _;
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = self.data().join(name);
            std::fs::write(&path, text).map_err(|error| error.to_string())?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
                .map_err(|error| error.to_string())?;
            if is_root() {
                run(Command::new("chown").arg(SERVER_USER).arg(&path))?;
            }
        }
        self.psql("postgres", "ALTER SYSTEM SET ssl = on")?;
        self.stop()?;
        self.resume()
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// One of Postgres' programs, as a user it accepts.
    fn as_server(&self, program: &str) -> Command {
        let program = self.binaries.join(program);
        let mut command = if is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", SERVER_USER, "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(self.directory.path());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// The newest installed version, or the one in the path.
fn binaries() -> Option<PathBuf> {
    let mut versions: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| {
            entries
                .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
                .collect()
        })
        .unwrap_or_default();
    versions.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    versions
        .into_iter()
        .rev()
        .chain(std::env::split_paths(&path))
        .find(|directory| {
            ["initdb", "pg_ctl", "psql"]
                .iter()
                .all(|it| directory.join(it).is_file())
        })
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn run(command: &mut Command) -> Result<Output, String> {
    let name = Path::new(command.get_program()).display().to_string();
    let output = command
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(format!(
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    ))
}
