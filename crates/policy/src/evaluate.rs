//! From facts to a verdict. Nothing here allocates.

use std::sync::Arc;

use crate::criterion::Criterion;
use crate::input::Input;
use crate::policy::{Action, Policy, Rule};
use crate::reason::{Reason, Reasons};
use crate::truth::Finding;
use crate::verdict::{RuleResult, Verdict};

impl Policy {
    /// Decides.
    pub fn evaluate(&self, input: &Input<'_>) -> Verdict {
        let mut allow = Tally::default();
        let mut deny = Tally::default();
        for rule in &self.rules {
            let tally = match rule.action {
                Action::Allow => &mut allow,
                Action::Deny => &mut deny,
            };
            tally.add(rule.evaluate(input));
        }
        let (allow, deny) = (allow.result(), deny.result());
        let device_type = if allow.reasons.contains(Reason::DeviceUnauthenticated) && !deny.matched
        {
            self.missing_device(Action::Allow, input)
        } else if deny.reasons.contains(Reason::DeviceUnauthenticated) {
            self.missing_device(Action::Deny, input)
        } else {
            None
        };
        Verdict {
            allow,
            deny,
            device_type,
        }
    }

    fn missing_device(&self, action: Action, input: &Input<'_>) -> Option<Arc<str>> {
        self.rules
            .iter()
            .filter(|rule| rule.action == action)
            .flat_map(|rule| &rule.criteria)
            .find_map(|criterion| match criterion {
                Criterion::Device(device)
                    if device.evaluate(input).reason == Reason::DeviceUnauthenticated =>
                {
                    Some(device.device_type())
                }
                _ => None,
            })
    }
}

/// What one rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RuleFinding {
    /// It holds, whoever asks.
    Settled(Reasons),
    /// A deny rule that holds for a stranger and may not hold once they sign in.
    Pending(Reasons),
    Missed(Reasons),
}

impl Rule {
    pub(crate) fn evaluate(&self, input: &Input<'_>) -> RuleFinding {
        self.join(
            self.criteria
                .iter()
                .map(|criterion| criterion.evaluate(input)),
        )
    }

    /// Joins the findings of the criteria by the operator.
    fn join(&self, findings: impl Iterator<Item = Finding>) -> RuleFinding {
        let mut settled = Reasons::EMPTY;
        let mut pending = Reasons::EMPTY;
        let mut missed = Reasons::EMPTY;
        for finding in findings {
            let truth = if self.operator.negates() {
                finding.truth.negate()
            } else {
                finding.truth
            };
            if !truth.counts_in(self.action) {
                missed.insert(finding.reason);
            } else if finding.reason == Reason::UserUnauthenticated {
                pending.insert(finding.reason);
            } else {
                settled.insert(finding.reason);
            }
        }
        if self.operator.needs_all() {
            match (missed.is_empty(), pending.is_empty()) {
                (false, _) => RuleFinding::Missed(missed),
                (true, false) => RuleFinding::Pending(settled.union(pending)),
                (true, true) => RuleFinding::Settled(settled),
            }
        } else if !settled.is_empty() {
            RuleFinding::Settled(settled)
        } else if !pending.is_empty() {
            RuleFinding::Pending(pending)
        } else {
            RuleFinding::Missed(missed)
        }
    }
}

/// The rules of one kind, joined by or.
#[derive(Debug, Default)]
struct Tally {
    settled: Reasons,
    pending: Reasons,
    missed: Reasons,
}

impl Tally {
    fn add(&mut self, finding: RuleFinding) {
        let (sum, reasons) = match finding {
            RuleFinding::Settled(reasons) => (&mut self.settled, reasons),
            RuleFinding::Pending(reasons) => (&mut self.pending, reasons),
            RuleFinding::Missed(reasons) => (&mut self.missed, reasons),
        };
        *sum = sum.union(reasons);
    }

    fn result(self) -> RuleResult {
        let matched = !self.settled.is_empty() || !self.pending.is_empty();
        let reasons = if !self.settled.is_empty() {
            self.settled
        } else if !self.pending.is_empty() {
            self.pending
        } else {
            self.missed
        };
        RuleResult { matched, reasons }
    }
}
