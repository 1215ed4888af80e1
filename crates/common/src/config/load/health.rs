//! `health_check_addr` alone, for who asks a running process how it is.

use std::net::SocketAddr;
use std::path::Path;

use super::Origin;
use super::reader::read_bounded;
use super::services::parse_address;
use crate::config::diagnostic::Diagnostics;
use crate::config::place::SourceText;
use crate::config::source::{self, Value};
use crate::lifecycle::health::DEFAULT_ADDRESS;

const KEY: &str = "health_check_addr";

/// Where a process of this origin answers for its health. Nothing else of the configuration is
/// looked at: it is asked every few seconds, and a file that was broken since the start does not
/// make the process ill. The error tells what is no address.
pub fn health_address(origin: &Origin) -> Result<SocketAddr, String> {
    let variable = origin.environment.get("HEALTH_CHECK_ADDR");
    let written = match variable {
        Some(text) => Some(text.to_owned()),
        None => origin.file.as_deref().and_then(in_file),
    };
    listener_address(written.as_deref().unwrap_or(DEFAULT_ADDRESS))
}

/// An address as `health_check_addr` may have it.
pub fn listener_address(text: &str) -> Result<SocketAddr, String> {
    parse_address(text.trim(), None)
}

fn in_file(path: &Path) -> Option<String> {
    let text = String::from_utf8(read_bounded(path).ok()?).ok()?;
    // Most files leave it as it is, and need not be taken apart.
    if !text.to_ascii_lowercase().contains(KEY) {
        return None;
    }
    let source = SourceText::new(path.display().to_string(), text);
    let map = source::parse(path, &source, &mut Diagnostics::default())?;
    match &map.get(KEY)?.value {
        Value::Scalar(scalar) if !scalar.text.is_empty() => Some(scalar.text.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c54_the_address_is_found_where_the_process_finds_it() {
        let folder = tempfile::tempdir().unwrap();
        let address = |variable: Option<&str>, file: Option<(&str, &str)>| {
            let file = file.map(|(name, text)| {
                let path = folder.path().join(name);
                std::fs::write(&path, text).unwrap();
                path
            });
            let variables = variable.map(|value| ("HEALTH_CHECK_ADDR", value));
            let origin = Origin {
                file,
                environment: variables.into_iter().collect(),
                only: None,
            };
            health_address(&origin).map(|address| address.to_string())
        };
        let yaml = Some(("c.yaml", "Health_Check_Addr: ':9999'\nroutes: []\n"));
        for (variable, file, expected) in [
            (None, None, "127.0.0.1:28080"),
            (Some(""), None, "127.0.0.1:28080"),
            (Some("localhost:1"), None, "127.0.0.1:1"),
            (Some("0.0.0.0:1"), None, "0.0.0.0:1"),
            (None, yaml, "[::]:9999"),
            (Some(""), yaml, "[::]:9999"),
            (Some("[::1]:1"), yaml, "[::1]:1"),
            (
                None,
                Some(("c.toml", "health_check_addr = ':8'\n")),
                "[::]:8",
            ),
            (
                None,
                Some(("d.yaml", "health_check_addr:\n")),
                "127.0.0.1:28080",
            ),
            (
                None,
                Some(("e.yaml", "health_check_addr: [\n")),
                "127.0.0.1:28080",
            ),
        ] {
            let found = address(variable, file);
            assert_eq!(found.as_deref(), Ok(expected), "{variable:?} {file:?}");
        }
        assert!(address(Some("nowhere"), yaml).is_err());
        assert!(address(Some("db.test:28080"), None).is_err());
    }
}
