//! Names to addresses, connections to them, ports to listen on, and connections that come in.

pub mod accept;
pub mod connect;
pub mod given;
pub mod in_use;
pub mod listen;
mod local;
pub mod resolver;
pub mod served;
#[cfg(test)]
pub(crate) mod test_dns;
pub mod to_https;

pub use connect::{ConnectError, Stream};
pub use local::LocalExecutor;
pub use resolver::{Addresses, LookupError, Resolver};
