//! A route's own keys about access, from before there was a policy language.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::criterion::Criterion;
use crate::criterion::claim::ClaimCriterion;
use crate::error::{Place, Report};
use crate::matcher::list::ListMatcher;
use crate::matcher::operand;
use crate::matcher::string::{Case, StringMatcher};

/// A route's own keys about access. Together they are one allow rule: any of them lets in.
///
/// Which of them may not stand together is for the configuration to say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shorthand {
    /// `allow_public_unauthenticated_access`
    pub public: bool,
    /// `cors_allow_preflight`
    pub cors_preflight: bool,
    /// `allow_any_authenticated_user`
    pub any_authenticated_user: bool,
    /// `allowed_domains`: domains of e-mail addresses.
    pub domains: Vec<String>,
    /// `allowed_users`: user ids or e-mail addresses.
    pub users: Vec<String>,
    /// `allowed_idp_claims`: for each claim the values of which a user has at least one.
    pub idp_claims: BTreeMap<String, Vec<Value>>,
}

impl Shorthand {
    /// The criteria that these keys stand for, in Pomerium's order.
    pub(crate) fn criteria(&self, report: &mut Report) -> Vec<Criterion> {
        let root = Place::root();
        let mut criteria = Vec::new();
        if self.public {
            criteria.push(Criterion::Accept);
        }
        if self.cors_preflight {
            criteria.push(Criterion::CorsPreflight);
        }
        if self.any_authenticated_user {
            criteria.push(Criterion::AuthenticatedUser);
        }
        if !self.domains.is_empty() {
            let place = root.key("allowed_domains");
            for (index, domain) in self.domains.iter().enumerate() {
                operand::check_domain(domain, &place.index(index), report);
            }
            criteria.push(Criterion::Domain(StringMatcher::one_of(
                &self.domains,
                Case::AsciiInsensitive,
            )));
        }
        for (claim, values) in &self.idp_claims {
            let place = root.key("allowed_idp_claims").key(claim);
            for (index, value) in values.iter().enumerate() {
                if let Some(value) = operand::text(value, &place.index(index), report) {
                    criteria.push(Criterion::Claim(ClaimCriterion::new(
                        claim,
                        ListMatcher::has(value),
                    )));
                }
            }
            operand::check_claim_name(claim, &place, report);
        }
        if !self.users.is_empty() {
            let users = StringMatcher::one_of(&self.users, Case::Sensitive);
            criteria.push(Criterion::User(users.clone()));
            criteria.push(Criterion::Email(users));
        }
        criteria
    }
}
