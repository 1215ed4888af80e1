//! An OpenID provider that this project did not write: PyPI's `oidc-provider-mock`.

use std::process::Command;
use std::time::Duration;

use crate::form::Form;
use crate::person::{Answer, Person};
use crate::ports;
use crate::process::Process;
use crate::python;
use crate::wait;

pub struct Independent {
    port: u16,
    _process: Process,
    _directory: tempfile::TempDir,
}

impl Independent {
    pub async fn start() -> Self {
        let port = ports::row(1);
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(python::interpreter());
        command.args(["-W", "ignore", "-m", "oidc_provider_mock", "--port"]);
        command.arg(port.to_string());
        command.args([
            "--user-claims",
            r#"{"sub": "ann@corp.test", "email": "ann@corp.test", "name": "Ann"}"#,
        ]);
        let process = Process::start("oidc-provider-mock", directory.path(), command);
        wait::until(
            "the independent provider",
            Duration::from_secs(30),
            async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await,
        )
        .await;
        Self {
            port,
            _process: process,
            _directory: directory,
        }
    }

    pub fn issuer(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    /// Fills in its form: the subject is all that it asks for.
    pub async fn choose(&self, person: &Person, page: &Answer, subject: &str) -> Answer {
        Form::of(page).send(person, &[("sub", subject)]).await
    }
}
