//! Where cargo put the programs under test.

use std::path::PathBuf;

/// The binary `name` of the same profile as this test; `cargo build --workspace --bins` made it.
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a test has a path");
    let directory = own.parent().expect("a file is in a directory");
    // Tests live in target/PROFILE/deps, programs such as the benchmark beside the others.
    let profile = match directory.file_name() {
        Some(name) if name == "deps" => directory.parent().expect("deps is in a profile"),
        _ => directory,
    };
    let path = profile.join(name);
    assert!(
        path.exists(),
        "{} is not built; run `cargo build --workspace --bins` first, as `just test` does",
        path.display()
    );
    path
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the repository")
        .to_owned()
}
