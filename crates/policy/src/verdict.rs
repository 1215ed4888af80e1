//! Both halves of a decision, and what follows from them.

use std::sync::Arc;

use crate::reason::{Reason, Reasons};

/// What the rules of one kind say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RuleResult {
    pub matched: bool,
    /// If matched, of what made a rule match; else of all that kept the rules from matching.
    pub reasons: Reasons,
}

/// Both halves of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    pub allow: RuleResult,
    /// A match with the reason `user-unauthenticated` means: it would hold for a stranger, and who
    /// signs in may be let past.
    pub deny: RuleResult,
    /// The device type that the deciding rules miss, with [`Reason::DeviceUnauthenticated`].
    pub device_type: Option<Arc<str>>,
}

/// What a visitor gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Allow,
    /// It depends on who asks, and nobody is signed in.
    Unauthenticated,
    /// It depends on a device of this type, and the session has none.
    DeviceUnauthenticated {
        device_type: Arc<str>,
    },
    ClientCertificate(CertificateProblem),
    /// The reasons of the rules that decided; empty when there is no rule at all.
    Denied {
        reasons: Reasons,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateProblem {
    /// The client showed none.
    Required,
    Invalid,
}

impl Verdict {
    /// What the visitor gets. Only the rules that decided have a say: a deny rule that does not
    /// match asks nobody to sign in, and one that matches spares an anonymous visitor a sign-in
    /// that would be in vain.
    pub fn outcome(&self) -> Outcome {
        if self.deny.matched {
            let reasons = self.deny.reasons;
            if let Some(problem) = certificate_problem(reasons) {
                return Outcome::ClientCertificate(problem);
            }
            return self.remedy(reasons).unwrap_or(Outcome::Denied { reasons });
        }
        if self.allow.matched {
            return Outcome::Allow;
        }
        let reasons = self.allow.reasons;
        if let Some(remedy) = self.remedy(reasons) {
            return remedy;
        }
        match certificate_problem(reasons) {
            Some(problem) => Outcome::ClientCertificate(problem),
            None => Outcome::Denied { reasons },
        }
    }

    /// What the visitor can do about it.
    fn remedy(&self, reasons: Reasons) -> Option<Outcome> {
        if reasons.contains(Reason::UserUnauthenticated) {
            return Some(Outcome::Unauthenticated);
        }
        if reasons.contains(Reason::DeviceUnauthenticated) {
            let device_type = self.device_type.clone()?;
            return Some(Outcome::DeviceUnauthenticated { device_type });
        }
        None
    }
}

fn certificate_problem(reasons: Reasons) -> Option<CertificateProblem> {
    if reasons.contains(Reason::ClientCertificateRequired) {
        Some(CertificateProblem::Required)
    } else if reasons.contains(Reason::InvalidClientCertificate) {
        Some(CertificateProblem::Invalid)
    } else {
        None
    }
}
