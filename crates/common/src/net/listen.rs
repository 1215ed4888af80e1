//! Taking a port, and saying in words why it can't be had.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use super::given;

/// Waiting connections that the kernel holds, per socket.
const BACKLOG: i32 = 4096;

/// A port could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else has it.
    #[error("{key} {address}: the port is taken by another process; free it or set another {key}")]
    Taken {
        /// The configuration key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
    },
    /// A port below 1024 needs a right.
    #[error(
        "{key} {address}: no right to listen on port {}, as ports below 1024 need \
         CAP_NET_BIND_SERVICE: give it to the process (AmbientCapabilities= in systemd, cap_add in \
         Docker, or setcap 'cap_net_bind_service=+ep' on the binary), or set {key} to a port above \
         1023",
        address.port()
    )]
    Forbidden {
        /// The configuration key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("{key} {address}: cannot listen there")]
    Other {
        /// The configuration key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Whether several sockets listen on the port, of this process or of another one of its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// One socket.
    No,
    /// The kernel spreads connections over all of them.
    Yes,
}

/// Listens on `address`, which `key` gives, or takes the socket that was handed over for it. An unspecified IPv6 address stands for every interface
/// of both families, on machines without IPv6 too.
pub fn listen(
    key: &'static str,
    address: SocketAddr,
    share: Share,
) -> Result<TcpListener, ListenError> {
    if let Some(given) = given::take(key) {
        return Ok(given);
    }
    let bound = bind_any(key, address, share)?;
    let listening = bound.listen(BACKLOG);
    listening.map_err(|source| told(key, address, source))?;
    Ok(bound.into())
}

/// Whether [`listen`] could have `address`. Nobody can connect meanwhile.
pub fn try_port(key: &'static str, address: SocketAddr) -> Result<(), ListenError> {
    bind_any(key, address, Share::No).map(drop)
}

fn bind_any(key: &'static str, address: SocketAddr, share: Share) -> Result<Socket, ListenError> {
    let (any4, any6) = (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED);
    let bound = bind(address, share).or_else(|error| match address.ip() {
        IpAddr::V6(ip) if ip == any6 && is_without_ipv6(&error) => {
            bind(SocketAddr::new(any4, address.port()), share)
        }
        _ => Err(error),
    });
    bound.map_err(|source| told(key, address, source))
}

fn told(key: &'static str, address: SocketAddr, source: io::Error) -> ListenError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::Taken { key, address },
        io::ErrorKind::PermissionDenied => ListenError::Forbidden { key, address },
        _ => ListenError::Other {
            key,
            address,
            source,
        },
    }
}

fn bind(address: SocketAddr, share: Share) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if let SocketAddr::V6(v6) = address
        && v6.ip().is_unspecified()
    {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    if share == Share::Yes {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn is_without_ipv6(error: &io::Error) -> bool {
    let no_such_family = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(no_such_family)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_names_key_and_address() {
        let taken = listen("address", "127.0.0.1:0".parse().unwrap(), Share::No).unwrap();
        let address = taken.local_addr().unwrap();
        let again = listen("grpc_address", address, Share::No).unwrap_err();
        assert!(
            again
                .to_string()
                .starts_with(&format!("grpc_address {address}: the port is taken")),
            "{again}"
        );
        // TEST-NET-1 is on no machine.
        let nowhere = "192.0.2.1:8443".parse().unwrap();
        let error = listen("address", nowhere, Share::No).unwrap_err();
        assert!(matches!(error, ListenError::Other { .. }), "{error}");
        let error = ListenError::Forbidden {
            key: "address",
            address: "0.0.0.0:443".parse().unwrap(),
        };
        let said = error.to_string();
        assert!(said.contains("port 443, as ports below 1024 need CAP_NET_BIND_SERVICE"));
        assert!(!said.contains('\n') && !said.contains("  "), "{said}");
    }

    #[test]
    fn sockets_share_a_port_only_when_all_of_them_want_to() {
        let first = listen("address", "127.0.0.1:0".parse().unwrap(), Share::Yes).unwrap();
        let address = first.local_addr().unwrap();
        listen("address", address, Share::Yes).unwrap();
        let alone = listen("address", address, Share::No).unwrap_err();
        assert!(matches!(alone, ListenError::Taken { .. }), "{alone}");
    }
}
