//! End to end: Postern as its users meet it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::allow_attributes,
    clippy::print_stdout,
    reason = "tests may panic, and say what they saw"
)]

mod architecture;
mod bad_input;
mod checklist;
mod compose;
mod demo;
mod depends_on;
mod doctor;
mod drain;
mod listeners;
mod outage;
mod process;
mod provider;
mod rego;
mod session;
mod sign_in;
mod sockets;
mod traces;
mod tunnel;
