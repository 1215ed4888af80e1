//! From JSON to a policy.

use serde_json::Value;

use crate::criterion::Criterion;
use crate::error::{Place, PolicyError, Report};
use crate::notes;
use crate::policy::{Action, Operator, Origin, Policy, Rule};
use crate::shorthand::Shorthand;
use crate::syntax;

impl Policy {
    /// Compiles a policy. On failure tells every mistake, with pointers relative to `policy`.
    pub fn compile(policy: &Value) -> Result<Self, Vec<PolicyError>> {
        let mut report = Report::default();
        let rules = compile_rules(policy, &Place::root(), &mut report);
        finish(rules, report)
    }

    /// Compiles what a route says about access: its own keys and its `policy`, joined by or.
    /// Pointers are relative to the route, such as `/policy/0/allow/or/2` or `/allowed_domains/1`.
    pub fn for_route(
        shorthand: &Shorthand,
        policy: Option<&Value>,
    ) -> Result<Self, Vec<PolicyError>> {
        let mut report = Report::default();
        let mut rules = Vec::new();
        let criteria = shorthand.criteria(&mut report);
        if !criteria.is_empty() {
            let rule = Rule {
                action: Action::Allow,
                operator: Operator::Or,
                criteria,
                origin: Origin::RouteKeys,
            };
            rules.push((rule, Place::root()));
        }
        if let Some(policy) = policy {
            rules.extend(compile_rules(
                policy,
                &Place::root().key("policy"),
                &mut report,
            ));
        }
        finish(rules, report)
    }

    /// The same, and whoever has no valid client certificate is denied: what `downstream_mtls` does
    /// by default.
    pub fn with_client_certificate_deny(mut self) -> Self {
        self.push(Rule {
            action: Action::Deny,
            operator: Operator::Or,
            criteria: vec![Criterion::InvalidClientCertificate],
            origin: Origin::ClientCertificates,
        });
        self
    }
}

fn compile_rules(policy: &Value, root: &Place, report: &mut Report) -> Vec<(Rule, Place)> {
    syntax::read(policy, root, report)
        .into_iter()
        .map(|written| {
            let negated = matches!(written.operator, Operator::Not | Operator::Nor);
            let closes = (written.action == Action::Deny) != negated;
            let criteria = written
                .criteria
                .iter()
                .filter_map(|criterion| Criterion::compile(criterion, closes, report))
                .collect();
            let rule = Rule {
                action: written.action,
                operator: written.operator,
                criteria,
                origin: Origin::Policy(written.place.as_str().into()),
            };
            notes::on_rule(&rule, &written.place, report);
            (rule, written.place)
        })
        .collect()
}

fn finish(rules: Vec<(Rule, Place)>, mut report: Report) -> Result<Policy, Vec<PolicyError>> {
    if !report.errors.is_empty() {
        return Err(report.errors);
    }
    notes::on_rules(&rules, &mut report);
    let mut policy = Policy {
        notes: report.notes,
        ..Policy::default()
    };
    for (rule, _) in rules {
        policy.push(rule);
    }
    Ok(policy)
}
