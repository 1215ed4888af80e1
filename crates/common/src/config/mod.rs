//! Configuration: one file, the environment over it, and the typed [`Config`] that services read.
//!
//! | step | here |
//! |---|---|
//! | every key there is | [`keys`] |
//! | what was written, with places | [`source`] |
//! | what it means, with everything there is to say about it | [`load()`], [`diagnostic`] |
//! | the result | [`Config`], [`Route`] |
//! | again when a file changes | [`watch`] |

pub mod diagnostic;
pub mod keys;
mod libpq;
mod load;
mod options;
pub mod place;
mod route;
pub mod source;
pub mod watch;

pub use libpq::keywords;
pub use load::{
    DEFAULT_FILE, DurationError, Loaded, Origin, Places, ProcessSecrets, health_address,
    listener_address, load, load_text, parse_bool, parse_duration,
};
pub use options::*;
pub use route::*;

/// A valid all-in-one configuration with something added, for tests of this crate.
#[cfg(test)]
pub(crate) fn test_config(added: &str) -> std::sync::Arc<Config> {
    load::tests::config(added)
}
