//! `postern demo`, as somebody tries it who has just cloned the repository.

use std::process::Command;
use std::time::Duration;

use http::StatusCode;
use postern_tests::binaries::binary;
use postern_tests::form::Form;
use postern_tests::person::{Answer, Person};
use postern_tests::ports;
use postern_tests::process::Process;
use postern_tests::wait;

struct Demo {
    process: Process,
    port: u16,
    directory: tempfile::TempDir,
}

impl Demo {
    async fn start(services: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = ports::row(10);
        let process = Self::launch(&directory, port, services);
        let mut demo = Self {
            process,
            port,
            directory,
        };
        demo.ready().await;
        demo
    }

    fn launch(directory: &tempfile::TempDir, port: u16, services: &str) -> Process {
        let mut command = Command::new(binary("postern"));
        command
            .arg("demo")
            .args(["--services", services, "--port", &port.to_string()])
            .arg("--write")
            .arg(directory.path());
        Process::start("demo", directory.path(), command)
    }

    async fn ready(&mut self) {
        wait::until("the demo's text", Duration::from_secs(60), async || {
            let output = self.process.output();
            assert!(self.process.has_ended().is_none(), "{output}");
            if output.contains("Ctrl-C ends it") {
                Ok(())
            } else {
                Err(output)
            }
        })
        .await;
    }

    fn browser(&self) -> Person {
        Person::browser(&self.directory.path().join("ca.pem"))
    }

    fn url(&self, name: &str) -> String {
        format!("https://{name}.localhost:{}/", self.port)
    }

    async fn sign_in(&self, person: &Person, url: &str, name: &str) -> Answer {
        let page = person.follow(url).await.pop().unwrap();
        let chosen = Form::of(&page).send(person, &[("person", name)]).await;
        let next = chosen.location().unwrap();
        person.follow(next.as_str()).await.pop().unwrap()
    }

    async fn ends(&mut self) {
        self.process.signal("TERM");
        let status = self.process.ended().await;
        assert_eq!(status.code(), Some(0), "{}", self.process.output());
        for port in self.port..self.port + 10 {
            let open = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
            assert!(open.is_err(), "somebody is left behind on {port}");
        }
    }
}

async fn everything(services: &str) {
    let mut demo = Demo::start(services).await;
    let said = demo.process.output();
    for part in [
        demo.url("hello").trim_end_matches('/'),
        demo.url("engineering").trim_end_matches('/'),
        demo.url("public").trim_end_matches('/'),
        "config.yaml",
        "ca.pem",
        "Ann, Bob or Eve",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }

    let ann = demo.browser();
    let greeted = demo.sign_in(&ann, &demo.url("hello"), "ann").await;
    assert_eq!(greeted.status, StatusCode::OK, "{}", greeted.text());
    assert!(greeted.text().contains("Hello, Ann"), "{}", greeted.text());
    let engineering = ann.follow(&demo.url("engineering")).await.pop().unwrap();
    assert_eq!(engineering.status, StatusCode::OK);

    let bob = demo.browser();
    let greeted = demo.sign_in(&bob, &demo.url("hello"), "bob").await;
    assert!(greeted.text().contains("Hello, Bob"), "{}", greeted.text());
    let engineering = bob.follow(&demo.url("engineering")).await.pop().unwrap();
    assert_eq!(engineering.status, StatusCode::FORBIDDEN);

    let nobody = demo.browser();
    let public = nobody.get(&demo.url("public")).await;
    assert_eq!(public.status, StatusCode::OK, "{}", public.text());

    // The printed command, with what curl sends by itself unless told otherwise.
    let curl = said.lines().find(|line| line.contains("curl ")).unwrap();
    let accept = curl.split('\'').find_map(|it| it.strip_prefix("Accept: "));
    let program = Person::program(&demo.directory.path().join("ca.pem"))
        .with_header("accept", accept.unwrap_or("*/*"));
    let refused = program.get(&demo.url("hello")).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{curl}");
    assert!(refused.json()["sign_in_url"].is_string(), "{curl}");

    // What was written is the configuration in use, and says so when it is edited.
    let file = demo.directory.path().join("config.yaml");
    let check = Command::new(binary("postern"))
        .arg("check")
        .arg(&file)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success(), "{told}");
    let text = std::fs::read_to_string(&file).unwrap();
    let edited = text.replace("claim/groups: eng", "claim/groups: sales");
    assert_ne!(edited, text);
    std::fs::write(&file, &edited).unwrap();
    wait::until(
        "the edit to take effect",
        Duration::from_secs(5),
        async || match bob.get(&demo.url("engineering")).await {
            answer if answer.status == StatusCode::OK => Ok(()),
            answer => Err(answer.status),
        },
    )
    .await;
    demo.ends().await;

    // The edit is still there for the next start.
    demo.process = Demo::launch(&demo.directory, demo.port, services);
    wait::until("the demo again", Duration::from_secs(60), async || {
        let nobody = demo.browser();
        match nobody.try_get(&demo.url("public")).await {
            Ok(answer) if answer.status == StatusCode::OK => Ok(()),
            other => Err(other),
        }
    })
    .await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), edited);
    demo.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_one_process() {
    everything("all").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_four_processes() {
    everything("split").await;
}

/// A second demo on the same ports says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_said() {
    let mut demo = Demo::start("all").await;
    let other = tempfile::tempdir().unwrap();
    let mut second = Demo::launch(&other, demo.port, "all");
    let status = second.ended().await;
    assert_eq!(status.code(), Some(1));
    let said = second.output();
    assert!(
        said.contains("cannot listen on") && said.contains("--port"),
        "{said}"
    );
    demo.ends().await;
}
