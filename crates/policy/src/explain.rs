//! How each criterion of a policy came out for one request.

use std::fmt;

use crate::evaluate::RuleFinding;
use crate::input::Input;
use crate::policy::{Action, Operator, Origin, Policy, Rule};
use crate::reason::Reason;
use crate::truth::Truth;
use crate::verdict::{Outcome, Verdict};

/// How a policy came out for one request. `Display` shows it as an indented text.
///
/// It names values of claims, so it is for operators, and for users only where a route has
/// `show_error_details`.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    pub verdict: Verdict,
    pub rules: Vec<RuleExplanation>,
}

/// How one operator of a rule came out.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleExplanation {
    pub action: Action,
    pub operator: Operator,
    pub origin: Origin,
    pub matched: bool,
    pub criteria: Vec<CriterionExplanation>,
}

/// How one criterion came out.
#[derive(Debug, Clone, PartialEq)]
pub struct CriterionExplanation {
    /// What is asked, in words.
    pub asked: String,
    /// Type and value of what was met.
    pub met: String,
    /// Before the operator negates it.
    pub truth: Truth,
    pub reason: Reason,
}

impl Policy {
    /// Evaluates and tells how each criterion came out.
    pub fn explain(&self, input: &Input<'_>) -> Explanation {
        Explanation {
            verdict: self.evaluate(input),
            rules: self.rules.iter().map(|rule| rule.explain(input)).collect(),
        }
    }
}

impl Rule {
    fn explain(&self, input: &Input<'_>) -> RuleExplanation {
        let criteria = self.criteria.iter().map(|criterion| {
            let finding = criterion.evaluate(input);
            CriterionExplanation {
                asked: criterion.to_string(),
                met: criterion.met(input),
                truth: finding.truth,
                reason: finding.reason,
            }
        });
        RuleExplanation {
            action: self.action,
            operator: self.operator,
            origin: self.origin.clone(),
            matched: !matches!(self.evaluate(input), RuleFinding::Missed(_)),
            criteria: criteria.collect(),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.verdict.outcome() {
            Outcome::Allow => write!(f, "allowed ({})", self.verdict.allow.reasons)?,
            Outcome::Unauthenticated => f.write_str("sign-in needed (user-unauthenticated)")?,
            Outcome::DeviceUnauthenticated { device_type } => {
                write!(
                    f,
                    "a device of type {device_type:?} needed (device-unauthenticated)"
                )?;
            }
            Outcome::ClientCertificate(_) => f.write_str("a valid client certificate needed")?,
            Outcome::Denied { reasons } if reasons.is_empty() => f.write_str("denied: no rule")?,
            Outcome::Denied { reasons } => write!(f, "denied ({reasons})")?,
        }
        for rule in &self.rules {
            write!(f, "\n{rule}")?;
        }
        Ok(())
    }
}

impl fmt::Display for RuleExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}: {} ({})",
            self.action.as_str(),
            self.operator.as_str(),
            if self.matched {
                "matches"
            } else {
                "does not match"
            },
            self.origin,
        )?;
        for criterion in &self.criteria {
            write!(f, "\n  {criterion}")?;
        }
        Ok(())
    }
}

impl fmt::Display for CriterionExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let truth = match self.truth {
            Truth::True => "true",
            Truth::False => "false",
            Truth::TrueByAbsence => "true only for want of a value",
            Truth::FalseByAbsence => "false for want of a value",
        };
        write!(
            f,
            "{}: {truth}, met {} ({})",
            self.asked, self.met, self.reason
        )
    }
}
