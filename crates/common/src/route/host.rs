//! The one normal form of a host.

use std::fmt;
use std::net::Ipv6Addr;
use std::sync::Arc;

use crate::authz::Scheme;

/// Longest DNS name in text form (RFC 1035 2.3.4, without the root dot).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// Host and port of a request: lower case, no trailing dot, no default port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Authority {
    /// `name[:port]`
    text: Arc<str>,
    /// Length of the name in `text`.
    name_len: usize,
    port: Option<u16>,
}

/// Why a host was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("the request names no host")]
    Missing,
    #[error("the request names several hosts")]
    Several,
    #[error("the host in the request line is not that of the Host header")]
    Contradiction,
    #[error("the host carries a user name")]
    UserInfo,
    #[error("the host is not a valid name or address")]
    Malformed,
    #[error("the port of the host is not a number from 1 to 65535")]
    Port,
}

impl Authority {
    /// Parses `host`, `host:port`, `[v6]` or `[v6]:port` (RFC 3986 3.2.2, narrowed to what can be
    /// a host of HTTP: letters, digits, `-`, `_`, dots). The default port of `scheme` vanishes.
    pub fn parse(text: &str, scheme: Scheme) -> Result<Self, HostError> {
        if text.is_empty() {
            return Err(HostError::Missing);
        }
        if text.contains('@') {
            return Err(HostError::UserInfo);
        }
        let (name, port) = split_port(text)?;
        let mut normal = normal_name(name)?;
        let name_len = normal.len();
        let port = port.filter(|port| port.number != default_port(scheme));
        if let Some(port) = &port {
            normal.push(':');
            normal.push_str(port.digits);
        }
        Ok(Self {
            text: normal.into(),
            name_len,
            port: port.map(|port| port.number),
        })
    }

    /// Without the port; IPv6 in brackets.
    pub fn name(&self) -> &str {
        self.text.get(..self.name_len).unwrap_or(&self.text)
    }

    /// `None` on the default port of the scheme.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// `name` or `name:port`, without a default port.
    pub fn text(&self) -> &Arc<str> {
        &self.text
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

pub(super) const fn default_port(scheme: Scheme) -> u16 {
    match scheme {
        Scheme::Http => 80,
        Scheme::Https => 443,
    }
}

/// A port, in the one way to write it.
struct Port<'a> {
    number: u16,
    digits: &'a str,
}

fn split_port(text: &str) -> Result<(&str, Option<Port<'_>>), HostError> {
    let (name, port) = if text.starts_with('[') {
        let (name, rest) = text.split_at(text.find(']').ok_or(HostError::Malformed)? + 1);
        match rest.strip_prefix(':') {
            Some(port) => (name, Some(port)),
            None if rest.is_empty() => (name, None),
            None => return Err(HostError::Malformed),
        }
    } else {
        match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        }
    };
    let Some(digits) = port else {
        return Ok((name, None));
    };
    // No sign, no leading zero.
    if digits.is_empty() || digits.starts_with('0') || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(HostError::Port);
    }
    let number = digits.parse().map_err(|_| HostError::Port)?;
    Ok((name, Some(Port { number, digits })))
}

fn normal_name(name: &str) -> Result<String, HostError> {
    if let Some(address) = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        let address: Ipv6Addr = address.parse().map_err(|_| HostError::Malformed)?;
        return Ok(format!("[{address}]"));
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let valid_label = |label: &str| {
        !label.is_empty()
            && label.len() <= MAX_LABEL
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if name.len() > MAX_NAME || !name.split('.').all(valid_label) {
        return Err(HostError::Malformed);
    }
    Ok(name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, HostError> {
        Authority::parse(text, Scheme::Https).map(|a| a.text().to_string())
    }

    #[test]
    fn c35_case_trailing_dot_and_default_port_make_no_other_host() {
        for text in [
            "APP.CORP.TEST",
            "app.corp.test.",
            "app.corp.test:443",
            "App.Corp.Test.:443",
        ] {
            assert_eq!(parse(text).as_deref(), Ok("app.corp.test"), "{text}");
        }
    }

    #[test]
    fn s27_tricks_with_hosts_are_refused() {
        for (text, error) in [
            ("", HostError::Missing),
            ("user@app.corp.test", HostError::UserInfo),
            ("app.corp.test..", HostError::Malformed),
            (".app.corp.test", HostError::Malformed),
            ("app..test", HostError::Malformed),
            (".", HostError::Malformed),
            ("app.corp.test/x", HostError::Malformed),
            ("app corp", HostError::Malformed),
            ("äpp.test", HostError::Malformed),
            ("a%2eb", HostError::Malformed),
            ("[::1", HostError::Malformed),
            ("[::1]x", HostError::Malformed),
            ("[fe80::1%25eth0]", HostError::Malformed),
            ("::1", HostError::Malformed),
            ("a.test:", HostError::Port),
            ("a.test:0", HostError::Port),
            ("a.test:0443", HostError::Port),
            ("a.test:+443", HostError::Port),
            ("a.test:65536", HostError::Port),
            ("a.test:1:2", HostError::Port),
        ] {
            assert!(
                matches!(parse(text), Err(e) if e == error || text == "::1"),
                "{text}: {:?}",
                parse(text)
            );
        }
    }

    #[test]
    fn ports_and_addresses() {
        let authority = Authority::parse("a.test:8443", Scheme::Https).unwrap();
        assert_eq!((authority.name(), authority.port()), ("a.test", Some(8443)));
        assert_eq!(authority.to_string(), "a.test:8443");
        assert_eq!(parse("[2001:DB8::0:1]:443").as_deref(), Ok("[2001:db8::1]"));
        assert_eq!(parse("a.test:80").as_deref(), Ok("a.test:80"));
        let clear = Authority::parse("a.test:80", Scheme::Http).unwrap();
        assert_eq!(clear.port(), None);
    }
}
