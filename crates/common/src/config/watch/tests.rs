use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::*;
use crate::config::load::tests::base;

/// A running watch on a directory of its own.
struct Running {
    directory: tempfile::TempDir,
    receiver: watch::Receiver<Arc<Config>>,
    outcomes: Arc<Mutex<Vec<ReloadOutcome>>>,
    stop: CancellationToken,
}

impl Running {
    fn start(file: &str, prepare: impl Fn(&Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        prepare(directory.path());
        let origin = Origin {
            file: Some(directory.path().join(file)),
            ..Origin::default()
        };
        let process = Arc::new(ProcessSecrets::default());
        let Loaded {
            config,
            diagnostics,
            files,
        } = load(&origin, &process);
        let config = config.unwrap_or_else(|| panic!("{diagnostics}"));
        let (watch, receiver) = Watch::new(origin, process, config, files);
        let outcomes = Arc::new(Mutex::new(Vec::new()));
        let stop = CancellationToken::new();
        let told = Arc::clone(&outcomes);
        let hangup = signal(SignalKind::hangup()).unwrap();
        tokio::spawn(watch.run(
            stop.clone(),
            hangup,
            || (),
            move |outcome| {
                told.lock().unwrap().push(outcome.clone());
            },
        ));
        Self {
            directory,
            receiver,
            outcomes,
            stop,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn cookie(&self) -> String {
        self.receiver.borrow().cookie.name.clone()
    }

    /// Waits for a cookie name to be in use.
    async fn until(&mut self, name: &str) {
        let wanted = self.receiver.wait_for(|config| config.cookie.name == name);
        tokio::time::timeout(Duration::from_secs(5), wanted)
            .await
            .unwrap_or_else(|_| panic!("{name} never came"))
            .unwrap();
    }

    /// Waits for so many rejections.
    async fn rejected(&self, count: usize) -> String {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        loop {
            let rejections: Vec<String> = {
                let outcomes = self.outcomes.lock().unwrap();
                outcomes
                    .iter()
                    .filter_map(|outcome| match outcome {
                        ReloadOutcome::Rejected { diagnostics } => Some(diagnostics.to_string()),
                        ReloadOutcome::Applied { .. } => None,
                    })
                    .collect()
            };
            if rejections.len() >= count {
                return rejections.last().cloned().unwrap_or_default();
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "not rejected: {:?}",
                self.outcomes
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn named(cookie: &str) -> String {
    format!("{}cookie_name: {cookie}\n", base())
}

#[tokio::test]
async fn c58_every_way_of_writing_a_file_is_noticed() {
    let mut running = Running::start("config.yaml", |dir| {
        std::fs::write(dir.join("config.yaml"), named("one")).unwrap();
    });
    assert_eq!(running.cookie(), "one");
    let file = running.path("config.yaml");

    std::fs::write(&file, named("in_place")).unwrap();
    running.until("in_place").await;

    std::fs::write(running.path("new"), named("renamed")).unwrap();
    std::fs::rename(running.path("new"), &file).unwrap();
    running.until("renamed").await;

    std::fs::write(&file, "routes: [").unwrap();
    let why = running.rejected(1).await;
    assert!(why.contains("no valid YAML"), "{why}");
    std::fs::write(&file, "").unwrap();
    let why = running.rejected(2).await;
    assert!(why.contains("is empty now"), "{why}");
    std::fs::remove_file(&file).unwrap();
    running.rejected(3).await;
    assert_eq!(running.cookie(), "renamed");

    std::fs::write(&file, named("again")).unwrap();
    running.until("again").await;
    // Whoever reads from it would wait for ever.
    let pipe = running.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    std::fs::rename(&pipe, &file).unwrap();
    let why = running.rejected(4).await;
    assert!(why.contains("named pipe"), "{why}");
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, named("repaired")).unwrap();
    running.until("repaired").await;
}

#[tokio::test]
async fn c58_symbolic_links_are_followed() {
    let prepare = |dir: &Path| {
        for (version, cookie) in [("v1", "one"), ("v2", "two")] {
            std::fs::create_dir(dir.join(version)).unwrap();
            std::fs::write(dir.join(version).join("config.yaml"), named(cookie)).unwrap();
        }
        std::os::unix::fs::symlink("v1", dir.join("data")).unwrap();
        std::os::unix::fs::symlink("data/config.yaml", dir.join("config.yaml")).unwrap();
    };
    let mut running = Running::start("config.yaml", prepare);
    assert_eq!(running.cookie(), "one");
    std::os::unix::fs::symlink("v2", running.path("next")).unwrap();
    std::fs::rename(running.path("next"), running.path("data")).unwrap();
    running.until("two").await;
}

#[tokio::test]
async fn c56_files_that_the_configuration_names_are_watched() {
    let pair = |name: &str| {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    };
    let write = |dir: &Path, (cert, key): (String, String)| {
        std::fs::write(dir.join("key.pem"), key).unwrap();
        std::fs::write(dir.join("cert.pem"), cert).unwrap();
    };
    let prepare = |dir: &Path| {
        write(dir, pair("one.test"));
        let tls = base().replace(
            "insecure_server: true\n",
            &format!(
                "certificate_file: {0}/cert.pem\ncertificate_key_file: {0}/key.pem\n",
                dir.display()
            ),
        );
        std::fs::write(dir.join("config.yaml"), tls).unwrap();
    };
    let mut running = Running::start("config.yaml", prepare);
    let names = |config: &Config| match &config.server_tls {
        crate::config::ServerTls::Certificates(list) => list[0].names.clone(),
        crate::config::ServerTls::Off => Vec::new(),
    };
    assert_eq!(names(&running.receiver.borrow()), ["one.test"]);

    let dir = running.directory.path().to_owned();
    std::fs::write(dir.join("cert.pem"), pair("mismatch.test").0).unwrap();
    let why = running.rejected(1).await;
    assert!(why.contains("does not belong to the certificate"), "{why}");
    std::fs::write(dir.join("cert.pem"), "garbage").unwrap();
    running.rejected(2).await;
    assert_eq!(names(&running.receiver.borrow()), ["one.test"]);

    write(&dir, pair("two.test"));
    let renewed = running
        .receiver
        .wait_for(|config| names(config) == ["two.test"]);
    tokio::time::timeout(Duration::from_secs(5), renewed)
        .await
        .unwrap()
        .unwrap();
}
