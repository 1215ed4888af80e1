//! Postern as one process, and its command line.
//!
//! [`run`] is the only file that knows all four services; [`demo`] is everything around them that
//! it takes to try them.
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

mod authority;
pub mod check;
pub mod demo;
pub mod doctor;
pub mod kubernetes_secrets;
pub mod run;
