//! Where databroker keeps its records.

use std::path::Path;

use postern_common::config::StorageOptions;
use postern_common::telemetry::log::chain;
use postern_common::tls::PeerError;
use postern_databroker::storage::postgres::AttemptError;
use postern_databroker::storage::postgres::examine::{Database, Schema, Server, State};

use super::code;
use super::finding::{Cause, Check, Finding, Level};
use super::site::{Site, clock};

const KEY: &str = "databroker_storage_connection_string";
/// The first with all that is used.
const OLDEST: i32 = 13;

pub async fn check(site: &Site) -> Vec<Finding> {
    match &site.config.storage {
        StorageOptions::Memory => Vec::new(),
        StorageOptions::File { directory } => vec![file(directory)],
        StorageOptions::Postgres { .. } => {
            match postern_databroker::examine(&site.config).await {
                Ok(servers) => servers.as_deref().map(told).unwrap_or_default(),
                // `check` says what cannot even be tried.
                Err(_) => Vec::new(),
            }
        }
    }
}

fn file(directory: &Path) -> Finding {
    let subject = directory.display().to_string();
    let writable = rustix::fs::access(
        directory,
        rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
    );
    match writable {
        Ok(()) => Finding::ok(Check::Storage, subject, "can be written to"),
        // It is made at the first start.
        Err(rustix::io::Errno::NOENT) => {
            Finding::ok(Check::Storage, subject, "is made at the first start")
        }
        Err(error) => {
            let cause = Cause::new(
                code::STORAGE_NO_RIGHTS,
                format!("cannot be written to: {error}"),
            )
            .help("give the directory to the user that databroker runs as");
            Finding::error(Check::Storage, subject, cause)
        }
    }
    .key("databroker_storage_connection_string")
}

fn told(servers: &[Server]) -> Vec<Finding> {
    let writable = servers
        .iter()
        .any(|server| matches!(server.state, State::Primary(_)));
    let standby = servers
        .iter()
        .any(|server| matches!(server.state, State::Standby));
    let mut findings: Vec<_> = servers
        .iter()
        .flat_map(|server| one(server, writable))
        .collect();
    if standby && !writable {
        let cause = Cause::new(
            code::STORAGE_READ_ONLY,
            "every server that answers is a standby and can only be read from",
        )
        .help("promote one, or name the primary in the connection string");
        findings.push(Finding::error(Check::Storage, "Postgres", cause).key(KEY));
    }
    findings
}

fn one(server: &Server, another_works: bool) -> Vec<Finding> {
    let subject = match &server.address {
        Some(address) if *address != server.name => format!("{} ({address})", server.name),
        _ => server.name.clone(),
    };
    let failed = |cause| {
        let level = if another_works {
            Level::Warning
        } else {
            Level::Error
        };
        vec![Finding::new(level, Check::Storage, &subject, cause).key(KEY)]
    };
    match &server.state {
        State::Unresolved(error) => failed(Cause::from(error)),
        State::Unanswered(after) => failed(
            Cause::new(
                code::NAME_SERVER_SILENT,
                format!("its name was not resolved within {after:?}"),
            )
            .help("let this host reach its name servers"),
        ),
        State::Unusable(error) => failed(unusable(error)),
        State::Standby => vec![
            Finding::ok(
                Check::Storage,
                subject,
                "is a standby, for when it is promoted",
            )
            .key(KEY),
        ],
        State::Primary(database) => primary(&subject, database),
    }
}

fn unusable(error: &AttemptError) -> Cause {
    match error {
        AttemptError::Unreachable(error)
            if error.kind() == std::io::ErrorKind::ConnectionRefused =>
        {
            Cause::new(code::REFUSED, "nobody listens there: connection refused")
                .help("start Postgres there, or correct host and port in the connection string")
        }
        AttemptError::Unreachable(error) => {
            Cause::new(code::UNREACHABLE, format!("it cannot be reached: {error}"))
                .help("look at routes, firewalls and network policies between here and there")
        }
        AttemptError::Silent(after) => {
            Cause::new(code::SILENT, format!("no answer within {after:?}"))
                .help("it is stuck, or a firewall drops packets on the way")
        }
        AttemptError::Postgres(cause) => {
            if let Some(reason) = PeerError::find(cause) {
                return Cause::from(&reason);
            }
            let words = chain(cause);
            match error.sql_state() {
                Some("3D000") => Cause::new(code::STORAGE_NO_DATABASE, words)
                    .help("make the database, or correct its name in the connection string"),
                // Class 28: invalid authorization.
                Some(state) if state.starts_with("28") => Cause::new(code::STORAGE_LOGIN, words)
                    .help(
                        "correct user and password in the connection string, or pg_hba.conf there",
                    ),
                Some("42501") => Cause::new(code::STORAGE_NO_RIGHTS, words)
                    .help("as the owner of the database run GRANT CONNECT ON DATABASE … TO …"),
                _ => Cause::new(code::STORAGE_FAILS, words),
            }
        }
        AttemptError::Name(_) | AttemptError::Closed | AttemptError::ReadOnly => {
            Cause::new(code::STORAGE_FAILS, error.to_string())
        }
    }
}

fn primary(subject: &str, database: &Database) -> Vec<Finding> {
    let major = database.version / 10_000;
    let old = (major < OLDEST).then(|| {
        let message = format!("it is PostgreSQL {major}, and {OLDEST} is the oldest that works");
        Cause::new(code::STORAGE_TOO_OLD, message).help("upgrade it")
    });
    let schema = match &database.schema {
        Schema::Usable | Schema::ToBeMade => None,
        Schema::MustNotBeMade => Some(
            Cause::new(
                code::STORAGE_NO_RIGHTS,
                "the schema postern is not there, and this user must not make it",
            )
            .help("as the owner of the database run GRANT CREATE ON DATABASE … TO …, once"),
        ),
        Schema::NoRights(parts) => Some(
            Cause::new(
                code::STORAGE_NO_RIGHTS,
                format!("this user has not all rights on {}", parts.join(", ")),
            )
            .help(
                "as its owner run GRANT USAGE ON SCHEMA postern TO … and GRANT ALL ON ALL TABLES IN \
                 SCHEMA postern TO …",
            ),
        ),
        Schema::Newer(version) => Some(
            Cause::new(
                code::STORAGE_NEWER,
                format!("a newer Postern made the schema postern (version {version} of it)"),
            )
            .help("start that version again, or restore a backup from before the upgrade"),
        ),
        Schema::OtherKey(words) => Some(
            Cause::new(code::STORAGE_OTHER_KEY, words.clone())
                .help("give `databroker_storage_keys`, or without them `shared_secret`, also the old key"),
        ),
        Schema::Unknown(why) => Some(Cause::new(code::STORAGE_FAILS, why.clone())),
    };
    let mut findings: Vec<_> = old
        .into_iter()
        .chain(schema)
        .map(|cause| Finding::error(Check::Storage, subject, cause))
        .chain(clock(Check::Storage, subject, database.clock))
        .collect();
    if findings.is_empty() {
        let message = format!("is PostgreSQL {major} and can be written to");
        findings.push(Finding::ok(Check::Storage, subject, message));
    }
    findings
        .into_iter()
        .map(|finding| finding.key(KEY))
        .collect()
}
