//! Situations that go through the whole crate.

mod arbitrary;
mod cases;
mod criteria;
mod facts;
mod mistakes;
mod outcome;
mod reference;
mod time;
mod words;
