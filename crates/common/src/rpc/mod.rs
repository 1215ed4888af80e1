//! How Postern's services find and call each other.

mod balance;
pub mod client;
mod connection;
mod dial;
pub mod discovery;
mod driver;
pub mod endpoint;
pub mod fault;
mod line;
pub mod look;
mod meters;
mod outlier;
mod patience;
pub mod server;
mod speaks;
pub mod stubs;
pub mod token;
pub mod transport;
mod version;
mod write_id;

#[cfg(test)]
mod test_service;

pub use balance::Budget;
pub use client::RemoteConfig;
pub use line::Line;
pub use patience::Patience;
pub use transport::{Outcome, Transport, TransportError};
pub use write_id::WriteId;

/// Every answer of a Postern server carries this header with its version, so that a client knows
/// that it may watch health closely. (Pomerium's servers say `x-pomerium-version`.)
pub const VERSION_HEADER: &str = "x-postern-version";
