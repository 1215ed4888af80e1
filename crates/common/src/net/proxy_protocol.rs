//! The PROXY protocol, versions 1 and 2: who the client is, told by a load balancer in front.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Longest header of version 1, line end included.
const MAX_V1: usize = 107;

/// Longest header of version 2 that is read, extensions included.
const MAX: usize = 4096;

/// A header is small and comes at once; this is waited between two looks at a part of one.
const PAUSE: Duration = Duration::from_millis(5);

/// What the bytes so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// A header of this length. The client is `None` when the balancer speaks for itself.
    Header {
        length: usize,
        client: Option<SocketAddr>,
    },
    Incomplete,
}

/// Whether a connection has to begin with one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    Required,
    /// What does not begin with one is left as it is.
    Optional,
}

/// The connection does not begin with a PROXY header, though `use_proxy_protocol` is set.
#[derive(Debug, thiserror::Error)]
pub enum ProxyHeaderError {
    /// Something else.
    #[error("it does not begin with a PROXY header, which use_proxy_protocol demands")]
    Malformed,
    /// The connection broke.
    #[error("its PROXY header cannot be read")]
    Io(#[from] io::Error),
}

/// Takes the header off a connection, and tells who the client is if the header does. It waits for
/// bytes as long as none come.
///
/// # Errors
///
/// The connection broke, or it has no header that can be read where one is required.
pub async fn read(
    stream: &mut TcpStream,
    header: Header,
) -> Result<Option<SocketAddr>, ProxyHeaderError> {
    let mut seen = vec![0; MAX];
    loop {
        let n = stream.peek(&mut seen).await?;
        let bytes = seen.get(..n).unwrap_or_default();
        match parse(bytes) {
            Some(Parsed::Header { length, client }) => {
                seen.truncate(length);
                stream.read_exact(&mut seen).await?;
                return Ok(client);
            }
            Some(Parsed::Incomplete) if n > 0 && n < MAX => tokio::time::sleep(PAUSE).await,
            Some(Parsed::Incomplete) | None => {
                return match header {
                    Header::Required => Err(ProxyHeaderError::Malformed),
                    Header::Optional => Ok(None),
                };
            }
        }
    }
}

/// Looks at the bytes that have come so far. `None`: whatever follows, this is no PROXY header.
pub fn parse(bytes: &[u8]) -> Option<Parsed> {
    let begins = |whole: &[u8]| {
        let n = whole.len().min(bytes.len());
        bytes.get(..n) == whole.get(..n)
    };
    if begins(SIGNATURE) {
        return version2(bytes);
    }
    if begins(b"PROXY ") {
        return version1(bytes);
    }
    None
}

fn version1(bytes: &[u8]) -> Option<Parsed> {
    let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else {
        return (bytes.len() < MAX_V1).then_some(Parsed::Incomplete);
    };
    let length = end + 2;
    if length > MAX_V1 {
        return None;
    }
    let line = std::str::from_utf8(bytes.get(..end)?).ok()?;
    let mut words = line.split(' ');
    let (_, family) = (words.next()?, words.next()?);
    if family == "UNKNOWN" {
        return Some(Parsed::Header {
            length,
            client: None,
        });
    }
    let (source, _, port, _) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let ip: IpAddr = match family {
        "TCP4" => IpAddr::V4(source.parse().ok()?),
        "TCP6" => IpAddr::V6(source.parse().ok()?),
        _ => return None,
    };
    if words.next().is_some() {
        return None;
    }
    let client = Some(SocketAddr::new(ip, port.parse().ok()?));
    Some(Parsed::Header { length, client })
}

fn version2(bytes: &[u8]) -> Option<Parsed> {
    let Some(fixed) = bytes.get(12..16) else {
        return Some(Parsed::Incomplete);
    };
    let [version_command, family, high, low] = *fixed else {
        return None;
    };
    let length = 16 + usize::from(u16::from_be_bytes([high, low]));
    if length > MAX {
        return None;
    }
    let Some(addresses) = bytes.get(16..length) else {
        return Some(Parsed::Incomplete);
    };
    let client = match version_command {
        // LOCAL: the balancer's own health check.
        0x20 => None,
        0x21 => match family {
            0x11 => Some(address::<4>(addresses, 8)?),
            0x21 => Some(address::<16>(addresses, 32)?),
            _ => None,
        },
        _ => return None,
    };
    Some(Parsed::Header { length, client })
}

fn address<const N: usize>(addresses: &[u8], port_at: usize) -> Option<SocketAddr> {
    let port = addresses.get(port_at..port_at + 2)?;
    let port = u16::from_be_bytes(port.try_into().ok()?);
    let source = addresses.get(..N)?;
    let ip = match N {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(source).ok()?)),
        _ => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(source).ok()?)),
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client(bytes: &[u8]) -> Option<SocketAddr> {
        match parse(bytes) {
            Some(Parsed::Header { client, length }) => {
                assert!(length <= bytes.len());
                client
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn version_one() {
        let line = b"PROXY TCP4 203.0.113.5 10.0.0.1 4711 443\r\nGET /";
        assert_eq!(client(line), Some("203.0.113.5:4711".parse().unwrap()));
        let line = b"PROXY TCP6 2001:db8::1 ::1 4711 443\r\n";
        assert_eq!(client(line), Some("[2001:db8::1]:4711".parse().unwrap()));
        assert_eq!(client(b"PROXY UNKNOWN\r\n"), None);
        assert_eq!(parse(b"PROXY TCP4 203.0.113.5"), Some(Parsed::Incomplete));
        for bad in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 99999 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
            b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
            b"\x16\x03\x01",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn version_two() {
        let mut header = SIGNATURE.to_vec();
        header.extend_from_slice(&[
            0x21, 0x11, 0, 12, 203, 0, 113, 5, 10, 0, 0, 1, 0x12, 0x67, 1, 187,
        ]);
        assert_eq!(client(&header), Some("203.0.113.5:4711".parse().unwrap()));
        assert_eq!(parse(&header[..20]), Some(Parsed::Incomplete));
        let mut local = SIGNATURE.to_vec();
        local.extend_from_slice(&[0x20, 0, 0, 0]);
        assert_eq!(client(&local), None);
        let mut wrong = SIGNATURE.to_vec();
        wrong.extend_from_slice(&[0x31, 0x11, 0, 0]);
        assert_eq!(parse(&wrong), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = parse(&bytes);
            let _ = parse(&[&SIGNATURE[..], &bytes].concat());
            let _ = parse(&[b"PROXY ", &bytes[..]].concat());
        }
    }
}
