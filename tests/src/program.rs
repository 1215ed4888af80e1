//! One of the programs by itself, with a configuration of the test's own.

use std::ffi::OsStr;
use std::process::Command;
use std::time::Duration;

use crate::binaries::binary;
use crate::person::{Answer, Person};
use crate::ports;
use crate::process::Process;
use crate::site::Site;
use crate::wait;

pub struct Program {
    pub process: Process,
    health: u16,
    nobody: Person,
}

impl Program {
    /// `{SITE}` in the configuration stands for the site's directory.
    pub fn start(site: &Site, name: &str, config: &str, environment: &[(&str, &str)]) -> Self {
        Self::start_under(&[], site, name, config, environment)
    }

    /// The same by a command that runs another, such as `setpriv` or `prlimit` with arguments.
    pub fn start_under(
        runner: &[&str],
        site: &Site,
        name: &str,
        config: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        let path = site.path("config.yaml");
        let text = config.replace("{SITE}", &site.directory.path().display().to_string());
        std::fs::write(&path, text).expect("the configuration is written");
        let health = ports::row(1);
        let program = binary(name);
        let mut words = runner.iter().map(OsStr::new).chain([program.as_os_str()]);
        let mut command = Command::new(words.next().expect("at least the program"));
        command
            .args(words)
            .arg("--config")
            .arg(path)
            .env("HEALTH_CHECK_ADDR", format!("127.0.0.1:{health}"))
            .envs(environment.iter().copied());
        Self {
            process: Process::start(name, site.directory.path(), command),
            health,
            nobody: Person::program(&site.certificates.authority),
        }
    }

    /// Waits for its end; what it said, and its exit code.
    pub async fn refused(mut self) -> (String, Option<i32>) {
        let status = self.process.ended().await;
        (self.process.output(), status.code())
    }

    pub fn health_address(&self) -> String {
        format!("127.0.0.1:{}", self.health)
    }

    pub async fn health(&self, path: &str) -> Result<Answer, String> {
        let url = format!("http://127.0.0.1:{}{path}", self.health);
        self.nobody.try_get(&url).await
    }

    /// Waits until `/readyz` gives an answer that `wanted` accepts, and gives it.
    pub async fn until_ready_says(
        &mut self,
        what: &str,
        wanted: impl Fn(&Answer) -> bool,
    ) -> Answer {
        let name = self.process.name.clone();
        wait::until(
            &format!("{name}: {what}"),
            Duration::from_secs(30),
            async || {
                assert!(self.process.has_ended().is_none(), "{name} ended");
                match self.health("/readyz").await {
                    Ok(answer) if wanted(&answer) => Ok(answer),
                    Ok(answer) => Err(format!("{} {}", answer.status, answer.text())),
                    Err(error) => Err(error),
                }
            },
        )
        .await
    }
}
