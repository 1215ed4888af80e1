//! What a policy reads, so that only that must be gathered.

use std::collections::BTreeSet;

/// A kind of fact about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fact {
    /// Whether somebody is signed in, and who.
    Session,
    Email,
    Claims,
    /// The directory's groups.
    Groups,
    /// Devices of the session and their enrollments.
    Devices,
    ClientCertificate,
    /// The verdict changes with time: see
    /// [`next_time_boundary`](crate::Policy::next_time_boundary).
    Time,
}

/// What a policy reads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    facts: BTreeSet<Fact>,
    record_types: BTreeSet<Box<str>>,
}

impl Needs {
    pub fn reads(&self, fact: Fact) -> bool {
        self.facts.contains(&fact)
    }

    /// Types of databroker records that criteria ask for.
    pub fn record_types(&self) -> impl Iterator<Item = &str> {
        self.record_types.iter().map(AsRef::as_ref)
    }

    pub(crate) fn add(&mut self, fact: Fact) {
        self.facts.insert(fact);
    }

    pub(crate) fn add_record_type(&mut self, record_type: &str) {
        self.record_types.insert(record_type.into());
    }
}
