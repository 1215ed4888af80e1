//! What a process tells about itself: log lines, metrics and traces.

mod collectors;
pub mod log;
pub mod metrics;
pub mod rate_limit;
mod text_format;
pub mod trace;

pub use rate_limit::RateLimit;
