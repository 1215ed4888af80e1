//! A compiled policy.

use std::fmt;

use jiff::Timestamp;

use crate::criterion::Criterion;
use crate::needs::Needs;
use crate::notes::Note;

/// A compiled policy: rules that allow and rules that deny. The default one has none and so allows
/// nobody.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Policy {
    pub(crate) rules: Vec<Rule>,
    pub(crate) needs: Needs,
    pub(crate) notes: Vec<Note>,
}

/// One operator of a rule. Several operators and several rules are joined by or, so that this is
/// all there is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rule {
    pub(crate) action: Action,
    pub(crate) operator: Operator,
    /// Never empty.
    pub(crate) criteria: Vec<Criterion>,
    pub(crate) origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Allow,
    Deny,
}

impl Action {
    pub(crate) const NAMES: [&'static str; 2] = ["allow", "deny"];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Allow, Self::Deny]
            .into_iter()
            .find(|action| action.as_str() == name)
    }
}

/// How the criteria of a rule are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// All are true.
    And,
    /// At least one is true.
    Or,
    /// None is true.
    Not,
    /// Not all are true.
    Nor,
}

impl Operator {
    pub(crate) const NAMES: [&'static str; 4] = ["and", "or", "not", "nor"];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::And => "and",
            Self::Or => "or",
            Self::Not => "not",
            Self::Nor => "nor",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::And, Self::Or, Self::Not, Self::Nor]
            .into_iter()
            .find(|operator| operator.as_str() == name)
    }

    /// Each criterion counts with its opposite.
    pub const fn negates(self) -> bool {
        matches!(self, Self::Not | Self::Nor)
    }

    /// All of them must count, not only one.
    pub const fn needs_all(self) -> bool {
        matches!(self, Self::And | Self::Not)
    }
}

/// Where a rule comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// JSON pointer to the operator in the policy.
    Policy(Box<str>),
    /// The route's own keys, such as `allowed_users`.
    RouteKeys,
    /// The default deny of `downstream_mtls`.
    ClientCertificates,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(pointer) => f.write_str(pointer),
            Self::RouteKeys => f.write_str("route keys"),
            Self::ClientCertificates => f.write_str("downstream_mtls"),
        }
    }
}

impl Policy {
    /// Which facts [`evaluate`](Self::evaluate) reads. Facts that it does not read may be left out
    /// of the [`Input`](crate::Input).
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// Remarks on what compiles, but may not mean what was meant.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// The next instant at which a verdict may change by time alone. All facts else being equal,
    /// verdicts are the same until just before it. `None`: never.
    pub fn next_time_boundary(&self, now: Timestamp) -> Option<Timestamp> {
        self.rules
            .iter()
            .flat_map(|rule| &rule.criteria)
            .filter_map(|criterion| criterion.next_time_boundary(now))
            .min()
    }

    pub(crate) fn push(&mut self, rule: Rule) {
        for criterion in &rule.criteria {
            criterion.add_needs(&mut self.needs);
        }
        self.rules.push(rule);
    }
}
