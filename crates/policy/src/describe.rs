//! A policy in words.

use std::fmt::Write;

use crate::policy::{Action, Operator, Policy, Rule};

impl Policy {
    /// All rules together, in words, for people who check what a route really lets in.
    pub fn describe(&self) -> String {
        let mut words = String::new();
        let of = |action| self.rules.iter().filter(move |rule| rule.action == action);
        if of(Action::Allow).next().is_none() {
            words.push_str("Nobody is allowed: there is no allow rule.\n");
        }
        for (action, first) in [
            (Action::Allow, "Allowed if "),
            (Action::Deny, "Denied all the same if "),
        ] {
            for (index, rule) in of(action).enumerate() {
                let start = if index == 0 { first } else { "  or if " };
                // Writing to a string can't fail.
                let _ = writeln!(words, "{start}{}", in_words(rule));
            }
        }
        words.truncate(words.trim_end().len());
        words
    }
}

fn in_words(rule: &Rule) -> String {
    let criteria: Vec<String> = rule
        .criteria
        .iter()
        .map(|criterion| {
            let criterion = criterion.to_string();
            if rule.operator.negates() {
                format!("not ({criterion})")
            } else {
                criterion
            }
        })
        .collect();
    let word = match rule.operator {
        Operator::And | Operator::Not => " and ",
        Operator::Or | Operator::Nor => " or ",
    };
    criteria.join(word)
}
