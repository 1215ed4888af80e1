//! End to end: Postern as its users meet it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::allow_attributes,
    reason = "tests may panic"
)]

mod architecture;
mod compose;
mod sign_in;
