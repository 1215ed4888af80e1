//! Authorize beside a real databroker in memory: following it, answering proxies, bearer tokens.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests may panic"
)]

mod bearer;
mod follow;
mod stream;
mod world;
