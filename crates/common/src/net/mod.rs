//! Names to addresses, connections to them, ports to listen on, and connections that come in.

pub mod accept;
pub mod connect;
pub mod given;
pub mod in_use;
pub mod listen;
mod local;
pub mod proxy_protocol;
pub mod resolver;
pub mod served;
#[cfg(test)]
pub(crate) mod test_dns;
pub mod to_https;

pub use connect::{ConnectError, Stream};
pub use local::LocalExecutor;
pub use resolver::{Addresses, LookupError, Resolver};

/// A connection, whatever it is made of. Where a server takes both clear text and TLS, what serves it is
/// compiled once and not for each of them: that is most of what a server weighs.
pub trait Duplex: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send {}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Duplex for T {}

/// See [`Duplex`].
pub type AnyStream = Box<dyn Duplex>;
