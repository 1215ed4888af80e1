//! Support for the end-to-end tests: real processes, sockets, TLS, browsers, containers.
//!
//! Tests speak as users do: a [`person::Person`] opens URLs with a cookie jar of their own, a
//! [`browser::Browser`] is chromium. A [`cluster::Cluster`] is Postern as its users start it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    clippy::allow_attributes,
    reason = "test support may panic: that is how a test fails"
)]

pub mod binaries;
pub mod browser;
pub mod cluster;
pub mod collector;
pub mod databroker;
pub mod docker;
pub mod form;
pub mod left_out;
pub mod lies;
pub mod load;
pub mod person;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod program;
pub mod provider;
pub mod python;
pub mod relay;
pub mod sign_ins;
pub mod site;
pub mod sockets;
pub mod upstream;
pub mod wait;
pub mod world;
