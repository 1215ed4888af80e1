//! What a process tells about itself: log lines and metrics.

mod collectors;
pub mod log;
pub mod metrics;
pub mod rate_limit;
mod text_format;

pub use rate_limit::RateLimit;
