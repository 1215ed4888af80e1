//! The data plane: takes requests of browsers and programs, asks authorize about each of them,
//! and forwards what holds a permit.
//!
//! Read [`serve`] first: the life of a request, top to bottom. The runtime model stands in
//! [`run`]: a current-thread runtime a core, on which a connection, its requests and its
//! connections to upstreams stay.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        reason = "tests may panic"
    )
)]

mod access_log;
mod address;
mod admission;
mod alarm;
mod authenticate;
mod begin;
mod body;
mod callback;
mod connection;
mod core;
mod deciding;
pub mod examine;
mod forward;
mod guarded;
mod http1;
mod internal;
mod limits;
mod listener;
mod metrics;
mod open;
mod permit;
mod refuse;
mod remote;
mod request;
mod respond;
mod revisit;
mod run;
mod serve;
mod sign_in_loop;
mod snapshot;
mod stream;
mod tls;
mod tunnel;
mod upgrade;
mod upstream;
mod websocket;

pub use address::Address;
pub use deciding::Deciding;
pub use forward::headers::{Forwarding, HeaderRules, Receiver};
pub use listener::{BindError, Listeners};
pub use remote::{Remote, Streams};
pub use run::{PART, Peers, RunError, cores, run_on, start};
