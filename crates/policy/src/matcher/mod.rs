//! What criteria compare with.

pub(crate) mod list;
pub(crate) mod operand;
pub(crate) mod string;
