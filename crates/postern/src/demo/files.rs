//! What the demo writes to disk: its configuration, ready to edit.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use askama::Template;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use postern_common::crypto::random;

use super::Places;

#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct WriteError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The demo's `config.yaml`. Comments in it tell what can be tried.
#[derive(Template)]
#[template(path = "demo-config.yaml", escape = "none")]
struct ConfigFile<'a> {
    places: &'a Places,
    split: bool,
    cookie_secret: String,
    shared_secret: String,
}

/// Writes `config.yaml` into `directory`, unless somebody has edited one there already.
pub fn ensure_config(
    directory: &Path,
    places: &Places,
    split: bool,
) -> Result<PathBuf, WriteError> {
    let path = directory.join("config.yaml");
    if path.exists() {
        return Ok(path);
    }
    let text = ConfigFile {
        places,
        split,
        cookie_secret: STANDARD.encode(random::bytes::<32>()),
        shared_secret: STANDARD.encode(random::bytes::<32>()),
    }
    .render()
    .map_err(|error| WriteError {
        path: path.clone(),
        source: io::Error::other(error),
    })?;
    write_private(&path, &text)?;
    Ok(path)
}

/// For everybody's eyes.
pub fn write_public(path: &Path, text: &str) -> Result<(), WriteError> {
    write(path, text, 0o644)
}

/// For this user's eyes.
pub fn write_private(path: &Path, text: &str) -> Result<(), WriteError> {
    write(path, text, 0o600)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), WriteError> {
    use std::os::unix::fs::OpenOptionsExt;

    let result = path
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| {
            fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(mode)
                .open(path)
        })
        .and_then(|mut file| file.write_all(text.as_bytes()));
    result.map_err(|source| WriteError {
        path: path.to_owned(),
        source,
    })
}
