//! Where databroker keeps its records.

use std::path::PathBuf;

use super::super::diagnostic::{Diagnostic, code};
use super::super::libpq::keywords;
use super::super::options::{Service, Services, StorageOptions};
use super::super::source::Environment;
use super::reader::{Load, Section};

#[derive(Clone, Copy)]
enum Kind {
    Memory,
    File,
    Postgres,
}

/// Only databroker opens it; for the others a file that is not mounted there is no mistake.
pub fn storage(
    load: &mut Load<'_>,
    root: Section<'_>,
    services: &Services,
) -> Option<StorageOptions> {
    if !services.contains(Service::Databroker) {
        return Some(StorageOptions::Memory);
    }
    let written = root.text(load, "databroker_storage_type");
    if let Some(kind) = written
        .as_ref()
        .filter(|kind| kind.value.eq_ignore_ascii_case("redis"))
    {
        load.say(
            Diagnostic::error(code::REMOVED_KEY, "`databroker_storage_type: redis` does not exist any more")
                .at(&kind.place)
                .help("use postgres, with `databroker_storage_connection_string: postgres://user:password@host/database`"),
        );
        return None;
    }
    let kind = match written {
        Some(_) => root.choice(
            load,
            "databroker_storage_type",
            &[
                ("memory", Kind::Memory),
                ("file", Kind::File),
                ("postgres", Kind::Postgres),
            ],
        )?,
        None => Kind::Memory,
    };
    let connection = root.text_or_file(load, "databroker_storage_connection_string");
    match kind {
        Kind::Memory => Some(StorageOptions::Memory),
        Kind::File => {
            let directory = match &connection {
                Some(text) => directory(&text.value, load.environment),
                None => Some(default_directory(load.environment)),
            };
            if directory.is_none()
                && let Some(text) = &connection
            {
                load.say(
                    Diagnostic::error(
                        code::INVALID_VALUE,
                        "this is no directory for `databroker_storage_type: file`",
                    )
                    .at(&text.place)
                    .help("write it like file:///var/lib/postern"),
                );
            }
            Some(StorageOptions::File {
                directory: directory?,
            })
        }
        Kind::Postgres => {
            let Some(text) = connection else {
                if !root.has("databroker_storage_connection_string_file") {
                    let mut diagnostic = Diagnostic::error(
                        code::MISSING_KEY,
                        "`databroker_storage_connection_string` is not set, but `databroker_storage_type` is postgres",
                    )
                    .help("set it like postgres://user:password@host/database");
                    if let Some(place) = root.place("databroker_storage_type") {
                        diagnostic = diagnostic.at(place);
                    }
                    load.say(diagnostic);
                }
                return None;
            };
            if let Err(problem) = well_formed(&text.value) {
                // Never the value itself: it holds a password.
                load.say(
                    Diagnostic::error(code::INVALID_VALUE, format!("`databroker_storage_connection_string`: {problem}"))
                        .at(&text.place)
                        .help("write it like postgres://user:password@host-a,host-b/database?target_session_attrs=read-write"),
                );
                return None;
            }
            Some(StorageOptions::Postgres {
                connection_string: text.value,
            })
        }
    }
}

/// `file:///dir`, `file:/dir` or a bare absolute path; `file:` and `file://` are the default one.
fn directory(text: &str, environment: &Environment) -> Option<PathBuf> {
    let path = text
        .strip_prefix("file:")
        .map_or(text, |rest| rest.strip_prefix("//").unwrap_or(rest));
    match path {
        "" => Some(default_directory(environment)),
        path if path.starts_with('/') => Some(PathBuf::from(path)),
        _ => None,
    }
}

fn default_directory(environment: &Environment) -> PathBuf {
    let data = environment.get("XDG_DATA_HOME").map(PathBuf::from);
    let home = || {
        environment
            .get("HOME")
            .map(|home| PathBuf::from(home).join(".local/share"))
    };
    data.or_else(home)
        .unwrap_or_else(|| PathBuf::from("/var/lib"))
        .join("postern/databroker")
}

/// The outer form of a libpq connection string; databroker reads the rest.
fn well_formed(text: &str) -> Result<(), &'static str> {
    let Some(rest) = text
        .strip_prefix("postgres://")
        .or_else(|| text.strip_prefix("postgresql://"))
    else {
        return match keywords(text) {
            Ok(pairs) if !pairs.is_empty() => Ok(()),
            Err(problem) if text.contains('=') => Err(problem),
            _ => Err("this is neither a postgres:// URL nor a list of key=value"),
        };
    };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let hosts = authority
        .rsplit_once('@')
        .map_or(authority, |(_, hosts)| hosts);
    for host in hosts.split(',') {
        let port = match host.rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => port,
            _ => "",
        };
        if !port.is_empty() && port.parse::<u16>().is_err() {
            return Err(
                "a port is not a number from 1 to 65535; a password with `:`, `/` or `@` must be percent-encoded",
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories() {
        for (text, expected) in [
            ("file:///var/x", Some("/var/x")),
            ("/var/x", Some("/var/x")),
            ("file:/var/x", Some("/var/x")),
            ("relative", None),
        ] {
            assert_eq!(
                directory(text, &Environment::default()),
                expected.map(PathBuf::from),
                "{text}"
            );
        }
    }

    #[test]
    fn connection_strings() {
        for good in [
            "postgres://p:pw@pg-a,pg-b:5433,pg-c/postern?sslmode=disable&target_session_attrs=read-write",
            "postgresql://host",
            "postgres:///db?host=/run/postgresql",
            "host=a user=b password=c",
            "host=pg password='my secret'",
            r"host = pg password = 'it\'s = \\ fine'  dbname=",
            "host=a\n  user=b\n",
            "postgres://u@[::1]:5432/db",
        ] {
            assert_eq!(well_formed(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "mysql://x",
            "postgres://u:p/w@host/db",
            "postgres://host:port/db",
            "host=pg password",
            "host=pg password='my secret",
            "=a",
            "  ",
        ] {
            assert!(well_formed(bad).is_err(), "{bad}");
        }
    }
}
