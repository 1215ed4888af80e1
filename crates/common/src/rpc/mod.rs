//! How Postern's services find and call each other.

pub mod stubs;
pub mod token;
