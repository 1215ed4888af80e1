//! The running program, driven by a client that this project did not write, on each storage.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "tests may panic"
)]

#[path = "../../../../tests/src/postgres.rs"]
#[allow(dead_code, reason = "shared with the end-to-end tests")]
mod server;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use postern_common::crypto::keys::SecretKey;

struct Databroker {
    process: Child,
    address: String,
    secret: String,
}

impl Databroker {
    /// In clear text, so that the client needs no certificate.
    fn start(storage: &[(&str, &str)]) -> Self {
        let free = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().to_string()
        };
        let address = free();
        let secret = SecretKey::random().to_base64();
        let process = Command::new(env!("CARGO_BIN_EXE_postern-databroker"))
            .env_clear()
            .envs([
                ("GRPC_ADDRESS", address.as_str()),
                ("GRPC_INSECURE", "true"),
                ("SHARED_SECRET", &secret),
                ("HEALTH_CHECK_ADDR", &free()),
                (
                    "AUTHENTICATE_SERVICE_URL",
                    "https://authenticate.example.com",
                ),
            ])
            .envs(storage.iter().copied())
            .stdout(Stdio::inherit())
            .spawn()
            .unwrap();
        Self {
            process,
            address,
            secret,
        }
    }
}

impl Drop for Databroker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Generates a client from /proto and drives every method with it.
fn drive(databroker: &Databroker) {
    let python = repository().join(".tools/python/bin/python");
    assert!(
        python.exists(),
        "{} is missing; run `just prepare` first, as `just test` does",
        python.display()
    );
    let output = Command::new(python)
        .arg(repository().join("tests/python/databroker_client.py"))
        .args([&databroker.address, &databroker.secret])
        .arg(repository().join("proto").canonicalize().unwrap())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_generated_client_drives_memory_storage() {
    drive(&Databroker::start(&[("DATABROKER_STORAGE_TYPE", "memory")]));
}

#[test]
fn a_generated_client_drives_file_storage() {
    let directory = tempfile::tempdir().unwrap();
    drive(&Databroker::start(&[
        ("DATABROKER_STORAGE_TYPE", "file"),
        (
            "DATABROKER_STORAGE_CONNECTION_STRING",
            &format!("file://{}", directory.path().display()),
        ),
    ]));
}

#[test]
fn a_generated_client_drives_postgres() {
    let server = server::Postgres::start().unwrap();
    server.database("wire").unwrap();
    drive(&Databroker::start(&[
        ("DATABROKER_STORAGE_TYPE", "postgres"),
        ("DATABROKER_STORAGE_CONNECTION_STRING", &server.uri("wire")),
    ]));
}
