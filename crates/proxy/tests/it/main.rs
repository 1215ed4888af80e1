//! The data plane with real sockets: clients, TLS and upstreams are real, authorize is scripted.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::large_futures,
    clippy::pedantic,
    reason = "tests may panic"
)]

mod support;

mod drain;
mod forwarding;
mod hostile;
mod overload;
mod own_endpoints;
mod remote;
mod replicas;
mod sign_in;
mod tls;
mod upgrades;
