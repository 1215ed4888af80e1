//! Names to addresses, and connections to them.

pub mod connect;
pub mod resolver;
#[cfg(test)]
pub(crate) mod test_dns;

pub use connect::{ConnectError, Stream};
pub use resolver::{Addresses, LookupError, Resolver};
