//! `postgres://user:password@host:port,host:port/database?key=value`.

use super::SettingsError;

const SYNTAX: fn(&'static str) -> SettingsError = SettingsError::Syntax;

/// The parameters of a URI.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>, SettingsError> {
    let (_, rest) = text.split_once("://").ok_or(SYNTAX("there is no ://"))?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    // The last @: one in a password should be %40, but is often not.
    let (user_info, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));

    let mut pairs = Vec::new();
    let mut push = |key: &str, value: &str| -> Result<(), SettingsError> {
        if !value.is_empty() {
            pairs.push((key.to_owned(), decode(value)?));
        }
        Ok(())
    };
    let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
    push("user", user)?;
    push("password", password)?;
    push("dbname", database)?;
    let (names, ports) = split_hosts(hosts)?;
    push("host", &names)?;
    push("port", &ports)?;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or(SYNTAX("a parameter after ? has no ="))?;
        let key = decode(key)?;
        // An old form that JDBC made popular.
        match (key.as_str(), value) {
            ("ssl", "true") => pairs.push(("sslmode".to_owned(), "require".to_owned())),
            _ => pairs.push((key, decode(value)?)),
        }
    }
    Ok(pairs)
}

/// `a:1,[::1]:2` as `a,::1` and `1,2`.
fn split_hosts(hosts: &str) -> Result<(String, String), SettingsError> {
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for host in hosts.split(',') {
        let (name, port) = if let Some(rest) = host.strip_prefix('[') {
            let (name, rest) = rest.split_once(']').ok_or(SYNTAX("a [ is not closed"))?;
            let port = match rest {
                "" => "",
                rest => rest
                    .strip_prefix(':')
                    .ok_or(SYNTAX("something but a port follows a ]"))?,
            };
            (name, port)
        } else {
            host.split_once(':').unwrap_or((host, ""))
        };
        names.push(name);
        ports.push(port);
    }
    let ports = if ports.iter().all(|port| port.is_empty()) {
        Vec::new()
    } else {
        ports
    };
    Ok((names.join(","), ports.join(",")))
}

fn decode(text: &str) -> Result<String, SettingsError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let value = digit(rest.next())
            .zip(digit(rest.next()))
            .map(|(high, low)| high * 16 + low);
        let value = value
            .and_then(|value| u8::try_from(value).ok())
            .filter(|byte| *byte != 0);
        bytes.push(value.ok_or(SYNTAX("a % is not followed by two hexadecimal digits"))?);
    }
    String::from_utf8(bytes).map_err(|_| SYNTAX("%-escapes do not give UTF-8"))
}
