//! What at least two of Postern's services need, and nothing else.
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

pub mod authz;
pub mod config;
pub mod crypto;
pub mod free;
pub mod http_client;
pub mod launch;
pub mod lifecycle;
pub mod net;
pub mod route;
pub mod rpc;
pub mod session;
pub mod telemetry;
pub mod tls;
pub mod web;
