//! What targets have in common: how an input is cut up, one configuration, one key, one time.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use postern_common::config::{
    Config, EscapedSlashes, PathNormalization, ProcessSecrets, load_text,
};
use postern_common::crypto::keys::SecretKey;

/// Secrets that no text of an input holds, so that they can be looked for in what is said about it.
pub const SHARED_SECRET: &str = "yM8aAeZc3VOSnmgCcCIKVmz6kSC5YtULfKQr2LDIFeY=";
pub const CLIENT_SECRET: &str = "Zx9-only-in-the-environment";

/// 2025-06-01T12:00:00Z
pub fn now() -> Timestamp {
    Timestamp::constant(1_748_779_200, 0)
}

pub fn keys() -> [SecretKey; 1] {
    [key()]
}

pub fn key() -> SecretKey {
    SecretKey::from_bytes([7; 32])
}

/// The lines of an input; what is missing is empty, and the last one keeps its line ends.
pub fn lines<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut lines = data.splitn(N, |byte| *byte == b'\n');
    [(); N].map(|()| lines.next().unwrap_or_default())
}

/// Rules for paths, by the first byte of a line: all sixteen can be met.
pub fn rules(line: &[u8]) -> PathNormalization {
    let bits = line.first().copied().unwrap_or_default();
    PathNormalization {
        merge_slashes: bits & 1 != 0,
        dot_segments: bits & 2 != 0,
        escaped_slashes: match (bits >> 2) & 3 {
            0 => EscapedSlashes::Reject,
            1 => EscapedSlashes::Keep,
            2 => EscapedSlashes::UnescapeAndRedirect,
            _ => EscapedSlashes::UnescapeAndForward,
        },
    }
}

pub static PROCESS: LazyLock<ProcessSecrets> = LazyLock::new(ProcessSecrets::default);

/// A configuration with routes of every kind.
pub static CONFIG: LazyLock<Option<Arc<Config>>> = LazyLock::new(|| {
    let text = include_str!("routes.yaml");
    let loaded = load_text(
        Path::new("config.yaml"),
        text,
        &[
            ("SHARED_SECRET", SHARED_SECRET),
            ("COOKIE_SECRET", SHARED_SECRET),
        ]
        .into_iter()
        .collect(),
        &PROCESS,
    );
    assert!(loaded.config.is_some(), "{}", loaded.diagnostics);
    loaded.config
});
