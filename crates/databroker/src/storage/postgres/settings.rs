//! Connection strings as libpq and pgx understand them: URI or `key=value`, several hosts, PG* variables. Pure.

mod uri;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use postern_common::config::keywords;

/// Where Postgres is and how to talk to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Never empty.
    pub hosts: Vec<Host>,
    pub user: String,
    pub password: Option<String>,
    /// Where a password is looked up when there is none.
    pub passfile: Option<PathBuf>,
    pub database: String,
    pub application_name: String,
    /// `options`, with unknown parameters appended as settings of the session.
    pub options: String,
    /// For each address.
    pub connect_timeout: Option<Duration>,
    pub tls: Tls,
    pub pool: PoolSettings,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Tcp {
        name: String,
        address: Option<IpAddr>,
        port: u16,
    },
    /// A socket in this directory.
    Unix { directory: PathBuf, port: u16 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    /// Clear text, else TLS without verification.
    Allow,
    /// TLS without verification, else clear text.
    Prefer,
    /// TLS, verified: with `sslrootcert` as `verify-ca`, else as `verify-full`. (libpq verifies nothing without
    /// `sslrootcert`; whoever asks for TLS here gets a peer that is known.)
    Require,
    VerifyCa,
    VerifyFull,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub mode: SslMode,
    /// `None`, or `system`: the roots of the system.
    pub root_cert: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSettings {
    /// `pool_max_conns`; beside them one connection listens.
    pub max: usize,
    /// `pool_max_conn_lifetime`
    pub max_lifetime: Duration,
    /// `pool_max_conn_idle_time`
    pub max_idle: Duration,
}

/// What is wrong with a connection string. Never holds a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("the connection string is neither a postgres:// URI nor key=value pairs: {0}")]
    Syntax(&'static str),
    #[error("{key} = {value:?} is not {expected}")]
    Value {
        key: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error("{hosts} hosts, but {others} {key}s; give one of them, or as many as hosts")]
    Count {
        key: &'static str,
        hosts: usize,
        others: usize,
    },
    #[error("no user: name one in the connection string or in PGUSER")]
    NoUser,
    #[error(
        "target_session_attrs={0:?} cannot work: the databroker writes, so only read-write, primary or any can be asked for"
    )]
    ReadOnly(String),
    #[error("sslmode={0:?} needs no encrypted private key; keys with a password are not supported")]
    KeyPassword(&'static str),
}

impl Settings {
    /// `env` gives environment variables.
    pub fn parse(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let given = if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            uri::pairs(text)?
        } else {
            keywords(text).map_err(SettingsError::Syntax)?
        };
        from_pairs(&given, env)
    }
}

/// Parameters that have a meaning here, and the variable that sets each.
const KNOWN: [(&str, Option<&str>); 25] = [
    ("host", Some("PGHOST")),
    ("hostaddr", Some("PGHOSTADDR")),
    ("port", Some("PGPORT")),
    ("dbname", Some("PGDATABASE")),
    ("user", Some("PGUSER")),
    ("password", Some("PGPASSWORD")),
    ("passfile", Some("PGPASSFILE")),
    ("application_name", Some("PGAPPNAME")),
    ("fallback_application_name", None),
    ("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    ("options", Some("PGOPTIONS")),
    ("sslmode", Some("PGSSLMODE")),
    ("sslrootcert", Some("PGSSLROOTCERT")),
    ("sslcert", Some("PGSSLCERT")),
    ("sslkey", Some("PGSSLKEY")),
    ("sslpassword", None),
    ("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    ("pool_max_conns", None),
    ("pool_max_conn_lifetime", None),
    ("pool_max_conn_idle_time", None),
    // Understood, and without meaning for this client.
    ("pool_min_conns", None),
    ("pool_min_idle_conns", None),
    ("pool_max_conn_lifetime_jitter", None),
    ("pool_health_check_period", None),
    ("client_encoding", Some("PGCLIENTENCODING")),
];

/// Parameters of libpq and pgx that this client need not obey.
const IGNORED: [&str; 18] = [
    "sslsni",
    "sslcompression",
    "sslnegotiation",
    "channel_binding",
    "gssencmode",
    "krbsrvname",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "load_balance_hosts",
    "min_protocol_version",
    "max_protocol_version",
    "default_query_exec_mode",
    "statement_cache_capacity",
    "description_cache_capacity",
    "statement_cache_mode",
];

fn from_pairs(
    given: &[(String, String)],
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Settings, SettingsError> {
    // The last one of a name counts; empty ones are as if not given.
    let get = |key: &str| {
        let given = given
            .iter()
            .rev()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.clone());
        let variable = KNOWN
            .iter()
            .find_map(|(name, variable)| (*name == key).then_some(*variable));
        given
            .or_else(|| env(variable??))
            .filter(|value| !value.is_empty())
    };
    let user = get("user")
        .or_else(|| env("USER"))
        .ok_or(SettingsError::NoUser)?;
    if let Some(attributes) = get("target_session_attrs")
        && !["any", "read-write", "primary"].contains(&attributes.as_str())
    {
        return Err(SettingsError::ReadOnly(attributes));
    }
    if get("sslpassword").is_some() {
        return Err(SettingsError::KeyPassword("sslpassword"));
    }
    let mut options = get("options").unwrap_or_default();
    for (key, value) in given {
        let known = KNOWN.iter().any(|(name, _)| name == key) || IGNORED.contains(&key.as_str());
        if !known {
            // As pgx does: a setting of the session, which the server refuses if it knows none of that name.
            let value = value.replace('\\', "\\\\").replace(' ', "\\ ");
            options.extend([" -c ", key, "=", &value]);
        }
    }
    Ok(Settings {
        hosts: hosts(get("host"), get("hostaddr"), get("port"))?,
        database: get("dbname").unwrap_or_else(|| user.clone()),
        user,
        password: get("password"),
        passfile: get("passfile")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(env("HOME")?).join(".pgpass"))),
        application_name: get("application_name")
            .or_else(|| get("fallback_application_name"))
            .unwrap_or_else(|| "postern-databroker".to_owned()),
        options: options.trim().to_owned(),
        connect_timeout: get("connect_timeout")
            .map(|it| seconds("connect_timeout", it))
            .transpose()?,
        tls: Tls {
            mode: get("sslmode").map_or(Ok(SslMode::Prefer), ssl_mode)?,
            root_cert: get("sslrootcert")
                .filter(|it| it != "system")
                .map(PathBuf::from),
            client_cert: get("sslcert").map(PathBuf::from),
            client_key: get("sslkey").map(PathBuf::from),
        },
        pool: pool(&get)?,
    })
}

fn hosts(
    names: Option<String>,
    addresses: Option<String>,
    ports: Option<String>,
) -> Result<Vec<Host>, SettingsError> {
    let list = |text: Option<String>| -> Vec<String> {
        text.map(|text| text.split(',').map(|it| it.trim().to_owned()).collect())
            .unwrap_or_default()
    };
    let (names, addresses, ports) = (list(names), list(addresses), list(ports));
    let count = names.len().max(addresses.len()).max(1);
    for (key, others) in [("hostaddr", addresses.len()), ("port", ports.len())] {
        if others > 1 && others != count || key == "hostaddr" && others == 1 && count > 1 {
            return Err(SettingsError::Count {
                key,
                hosts: count,
                others,
            });
        }
    }
    if !names.is_empty() && names.len() != count {
        return Err(SettingsError::Count {
            key: "host",
            hosts: count,
            others: names.len(),
        });
    }
    (0..count)
        .map(|at| {
            let port = ports
                .get(at)
                .or_else(|| ports.first())
                .filter(|it| !it.is_empty());
            let port = port.map_or(Ok(5432), |text| {
                text.parse()
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or_else(|| SettingsError::Value {
                        key: "port",
                        value: text.clone(),
                        expected: "a port",
                    })
            })?;
            let address = addresses.get(at).filter(|it| !it.is_empty());
            let address = address
                .map(|text| {
                    text.parse::<IpAddr>().map_err(|_| SettingsError::Value {
                        key: "hostaddr",
                        value: text.clone(),
                        expected: "an IP address",
                    })
                })
                .transpose()?;
            let name = names.get(at).filter(|it| !it.is_empty()).cloned();
            Ok(match (name, address) {
                (Some(name), _) if name.starts_with('/') => Host::Unix {
                    directory: PathBuf::from(name),
                    port,
                },
                (Some(name), address) => Host::Tcp {
                    name,
                    address,
                    port,
                },
                (None, Some(address)) => Host::Tcp {
                    name: address.to_string(),
                    address: Some(address),
                    port,
                },
                (None, None) => Host::Tcp {
                    name: "localhost".to_owned(),
                    address: None,
                    port,
                },
            })
        })
        .collect()
}

fn ssl_mode(text: String) -> Result<SslMode, SettingsError> {
    Ok(match text.as_str() {
        "disable" => SslMode::Disable,
        "allow" => SslMode::Allow,
        "prefer" => SslMode::Prefer,
        "require" => SslMode::Require,
        "verify-ca" => SslMode::VerifyCa,
        "verify-full" => SslMode::VerifyFull,
        _ => {
            return Err(SettingsError::Value {
                key: "sslmode",
                value: text,
                expected: "disable, allow, prefer, require, verify-ca or verify-full",
            });
        }
    })
}

fn pool(get: &dyn Fn(&str) -> Option<String>) -> Result<PoolSettings, SettingsError> {
    let max = get("pool_max_conns").map_or(Ok(8), |text| {
        text.parse()
            .ok()
            .filter(|max| (2..=1_000).contains(max))
            .ok_or(SettingsError::Value {
                key: "pool_max_conns",
                value: text,
                expected: "a number from 2 to 1000",
            })
    })?;
    let time = |key, default| {
        get(key).map_or(Ok(default), |text| {
            go_duration(&text).ok_or(SettingsError::Value {
                key,
                value: text,
                expected: "a duration such as 30m",
            })
        })
    };
    Ok(PoolSettings {
        max,
        max_lifetime: time("pool_max_conn_lifetime", Duration::from_secs(60 * 60))?,
        max_idle: time("pool_max_conn_idle_time", Duration::from_secs(30 * 60))?,
    })
}

/// 0 is libpq's "for ever", which we do not wait.
fn seconds(key: &'static str, text: String) -> Result<Duration, SettingsError> {
    let seconds: Option<u64> = text.parse().ok().filter(|it| (1..=300).contains(it));
    let expected = "a number of seconds from 1 to 300";
    seconds
        .map(Duration::from_secs)
        .ok_or(SettingsError::Value {
            key,
            value: text,
            expected,
        })
}

/// Go's notation, in which the `pool_*` durations are written: `1h30m`, `90s`, `500ms`.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = rest.split_at_checked(digits)?;
        let end = unit
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(unit.len());
        let (unit, after) = unit.split_at_checked(end)?;
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        let millis = number.parse::<u64>().ok()?.checked_mul(millis)?;
        total = total.checked_add(Duration::from_millis(millis))?;
        rest = after;
    }
    (!total.is_zero()).then_some(total)
}

impl fmt::Debug for Settings {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("hosts", &self.hosts)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("database", &self.database)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// The password that a `.pgpass` file has for a connection: `host:port:database:user:password`, `*` stands for
/// anything, `\` escapes `:` and `\`.
pub fn password_in(
    passfile: &str,
    host: &str,
    port: u16,
    database: &str,
    user: &str,
) -> Option<String> {
    let port = port.to_string();
    let wanted = [host, port.as_str(), database, user];
    passfile
        .lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let fields = split_escaped(line);
            let (password, pattern) = fields.split_last()?;
            let fits = pattern.len() == wanted.len()
                && pattern
                    .iter()
                    .zip(wanted)
                    .all(|(pattern, value)| pattern == "*" || pattern == value);
            fits.then(|| password.clone())
        })
}

fn split_escaped(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (c, fields.last_mut()) {
            // The password is the rest of the line, colons included as they are escaped too.
            (':', _) => fields.push(String::new()),
            ('\\', Some(field)) => field.extend(chars.next()),
            (c, Some(field)) => field.push(c),
            (_, None) => {}
        }
    }
    fields
}

#[cfg(test)]
mod tests;
