//! Situations that go through the whole crate.
