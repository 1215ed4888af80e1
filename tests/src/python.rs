//! Clients and servers that this project did not write run in Python.

use std::path::PathBuf;
use std::process::Command;

use crate::binaries::repository;

/// The interpreter with the packages of tests/requirements.txt; `scripts/prepare.sh` made it.
pub fn interpreter() -> PathBuf {
    let path = repository().join(".tools/python/bin/python");
    assert!(
        path.exists(),
        "{} is missing; run `just prepare` first, as `just test` does",
        path.display()
    );
    path
}

/// Runs a script of tests/python and gives its standard output; panics with its errors when it fails.
pub fn run(script: &str, arguments: &[&str]) -> String {
    let output = Command::new(interpreter())
        .arg(repository().join("tests/python").join(script))
        .args(arguments)
        .output()
        .expect("Python runs");
    assert!(
        output.status.success(),
        "{script} {arguments:?} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
