//! Listening sockets that were opened outside: systemd's socket activation (`LISTEN_FDS`).
//!
//! They stay open while the process restarts, so that nobody is refused meanwhile. A socket belongs
//! to the key whose address it listens on; where it is named after a key, it must.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};

use listenfd::ListenFd;
use socket2::SockRef;

/// A socket that was handed over cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GivenError {
    /// Not a TCP socket, or nothing listens on it.
    #[error(
        "{socket} was handed over (LISTEN_FDS) and is no listening TCP socket; give a port as \
         ListenStream= in the socket unit"
    )]
    NotListening {
        /// Which one.
        socket: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No key has its address.
    #[error(
        "{socket} was handed over (LISTEN_FDS) and listens on {address}, where this process is told \
         to listen nowhere ({wanted}); change the key or ListenStream= in the socket unit"
    )]
    Unwanted {
        /// Which one.
        socket: String,
        /// Its address.
        address: SocketAddr,
        /// Keys and addresses.
        wanted: String,
    },
    /// It is named after a key that has another address.
    #[error(
        "{socket} was handed over (LISTEN_FDS) and listens on {address}, but {key} is {configured}; \
         make them equal"
    )]
    Differs {
        /// Which one.
        socket: String,
        /// Its address.
        address: SocketAddr,
        /// The key.
        key: &'static str,
        /// The key's address.
        configured: SocketAddr,
    },
    /// A key has one socket already.
    #[error(
        "two sockets were handed over (LISTEN_FDS) for {key}; give one, for both families with \
         BindIPv6Only=both in the socket unit"
    )]
    Twice {
        /// The key.
        key: &'static str,
    },
}

/// Those that were handed over and not used yet, by key. The kernel hands them to the process, so
/// there is one set a process.
static GIVEN: Mutex<BTreeMap<&'static str, TcpListener>> = Mutex::new(BTreeMap::new());

/// Takes what was handed over, for the listeners that this process is told to have. Called once,
/// before there is a second thread.
pub fn adopt(wanted: &[(&'static str, SocketAddr)]) -> Result<(), GivenError> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    // Empty, unless LISTEN_PID says that they are for this process.
    let mut sockets = ListenFd::from_env();
    let mut given = Vec::new();
    for index in 0..sockets.len() {
        let name = names.split(':').nth(index).unwrap_or_default();
        let socket = described(index, name);
        let taken = sockets.take_tcp_listener(index).and_then(|listener| {
            let listener = listener.ok_or(io::ErrorKind::NotFound)?;
            if !SockRef::from(&listener).is_listener()? {
                return Err(io::Error::other("nothing listens on it"));
            }
            SockRef::from(&listener).set_cloexec(true)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        });
        let (listener, address) =
            taken.map_err(|source| GivenError::NotListening { socket, source })?;
        let socket = described(index, name);
        let key = assign(&socket, name, address, wanted)?;
        given.push((key, listener));
    }
    let mut all = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for (key, listener) in given {
        if all.insert(key, listener).is_some() {
            return Err(GivenError::Twice { key });
        }
    }
    Ok(())
}

/// The socket that was handed over for `key`, once.
pub fn take(key: &'static str) -> Option<TcpListener> {
    let mut all = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let listener = all.remove(key)?;
    tracing::info!(key, "listens on a socket that was handed over");
    Some(listener)
}

fn described(index: usize, name: &str) -> String {
    match name {
        "" | "unknown" => format!("socket {index}"),
        name => format!("socket {index} (`{name}`)"),
    }
}

/// The key that a socket belongs to.
fn assign(
    socket: &str,
    name: &str,
    address: SocketAddr,
    wanted: &[(&'static str, SocketAddr)],
) -> Result<&'static str, GivenError> {
    if let Some((key, configured)) = wanted.iter().find(|(key, _)| *key == name) {
        return if is_same(address, *configured) {
            Ok(key)
        } else {
            Err(GivenError::Differs {
                socket: socket.to_owned(),
                address,
                key,
                configured: *configured,
            })
        };
    }
    let found = wanted.iter().find(|(_, other)| is_same(address, *other));
    found.map(|(key, _)| *key).ok_or_else(|| {
        let wanted = wanted.iter().map(|(key, at)| format!("{key} {at}"));
        GivenError::Unwanted {
            socket: socket.to_owned(),
            address,
            wanted: wanted.collect::<Vec<_>>().join(", "),
        }
    })
}

/// Every interface is the same in both families: on machines without IPv6 there is only one.
fn is_same(a: SocketAddr, b: SocketAddr) -> bool {
    let both_any = a.ip().is_unspecified() && b.ip().is_unspecified();
    a.port() == b.port() && (a.ip() == b.ip() || both_any)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_socket_belongs_to_the_key_with_its_address() {
        let wanted = [
            ("address", at("[::]:443")),
            ("http_redirect_addr", at("[::]:80")),
            ("health_check_addr", at("127.0.0.1:28080")),
        ];
        let assign = |name, address| assign("socket 0", name, at(address), &wanted);
        for (name, address, key) in [
            ("unknown", "[::]:443", "address"),
            ("postern.socket", "0.0.0.0:80", "http_redirect_addr"),
            ("", "127.0.0.1:28080", "health_check_addr"),
            ("address", "0.0.0.0:443", "address"),
        ] {
            assert_eq!(assign(name, address).unwrap(), key, "{name} {address}");
        }
        let said = assign("postern.socket", "[::]:8443").unwrap_err();
        assert!(
            said.to_string().contains(
                "listens on [::]:8443, where this process is told to listen nowhere \
                 (address [::]:443, http_redirect_addr [::]:80, health_check_addr 127.0.0.1:28080)"
            ),
            "{said}"
        );
        let said = assign("address", "[::]:80").unwrap_err();
        assert!(
            said.to_string()
                .contains("listens on [::]:80, but address is [::]:443"),
            "{said}"
        );
        // Narrower than what the key says: refused, as somebody would not be served.
        assign("", "127.0.0.1:443").unwrap_err();
    }
}
