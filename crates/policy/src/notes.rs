//! Remarks for `check`: what works, but not as somebody might expect.

use crate::criterion::Criterion;
use crate::error::{Place, Report};
use crate::policy::{Action, Operator, Rule};

/// A remark about a policy that compiles: mostly where Pomerium would behave differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// JSON pointer, like that of [`PolicyError`](crate::PolicyError).
    pub pointer: String,
    pub message: String,
}

/// Remarks on one operator of a rule.
pub(crate) fn on_rule(rule: &Rule, place: &Place, report: &mut Report) {
    for (index, criterion) in rule.criteria.iter().enumerate() {
        if !criterion.is_about_person() {
            continue;
        }
        let negated = rule.operator.negates() != criterion.is_negative();
        match rule.action {
            Action::Allow if negated => report.note(
                &place.index(index),
                "says who may not, so in an allow rule it lets in only people who are signed in; \
                 in Pomerium it can be true of everybody",
            ),
            Action::Deny if negated => report.note(
                &place.index(index),
                "is true of everybody who is not signed in: they are asked to sign in, \
                 on a public route too",
            ),
            Action::Allow | Action::Deny => {}
        }
    }
}

/// Remarks on a policy as a whole.
pub(crate) fn on_rules(rules: &[(Rule, Place)], report: &mut Report) {
    let public = rules.iter().any(|(rule, _)| {
        let accepts = |criterion: &Criterion| *criterion == Criterion::Accept;
        rule.action == Action::Allow
            && match rule.operator {
                Operator::Or => rule.criteria.iter().any(accepts),
                Operator::And => rule.criteria.iter().all(accepts),
                Operator::Not | Operator::Nor => false,
            }
    });
    if !public {
        return;
    }
    for (rule, place) in rules {
        if rule.action != Action::Deny {
            continue;
        }
        for (index, criterion) in rule.criteria.iter().enumerate() {
            if criterion.is_about_person() && rule.operator.negates() == criterion.is_negative() {
                report.note(
                    &place.index(index),
                    "the route is public, so people who are not signed in pass this deny rule; \
                     Pomerium would ask them to sign in",
                );
            }
        }
    }
}
