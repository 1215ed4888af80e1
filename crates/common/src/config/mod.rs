//! Configuration: one file, the environment over it, and the typed [`Config`] that services read.

mod options;
mod route;

pub use options::*;
pub use route::*;
