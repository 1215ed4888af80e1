//! What only follows from something else that was found is not told: whoever reads it would mend
//! the wrong thing. Pure.

use super::code;
use super::finding::{Check, Finding, Level};

/// A cause, and what it explains.
struct Rule {
    cause: fn(&Finding) -> bool,
    effect: fn(&Finding) -> bool,
}

const RULES: [Rule; 2] = [
    // Databrokers are not ready while their database cannot be used.
    Rule {
        cause: |finding| finding.check == Check::Storage && finding.level == Level::Error,
        effect: |finding| {
            finding.check == Check::Databroker && finding.code == Some(code::NOT_READY)
        },
    },
    // authorize begins with a copy of the records.
    Rule {
        cause: |finding| {
            matches!(finding.check, Check::Storage | Check::Databroker)
                && finding.level == Level::Error
        },
        effect: |finding| {
            finding.check == Check::Authorize && finding.code == Some(code::NOT_READY)
        },
    },
];

pub fn without(mut findings: Vec<Finding>) -> Vec<Finding> {
    for rule in RULES {
        if findings.iter().any(rule.cause) {
            findings.retain(|finding| !(rule.effect)(finding));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Cause;

    #[test]
    fn a_database_that_is_away_explains_who_waits_for_it() {
        let not_ready =
            |check| Finding::error(check, "1.2.3.4:5", Cause::new(code::NOT_READY, "waits"));
        let waiting = vec![not_ready(Check::Databroker), not_ready(Check::Authorize)];
        // The first explains the second.
        assert_eq!(without(waiting.clone()).len(), 1);
        let storage = Finding::error(Check::Storage, "pg", Cause::new(code::REFUSED, "refused"));
        let mut all = waiting;
        all.push(storage.clone());
        assert_eq!(without(all), [storage]);
        let warned = Finding::warning(Check::Storage, "pg", Cause::new(code::REFUSED, "refused"));
        let all = vec![not_ready(Check::Databroker), warned];
        assert_eq!(without(all.clone()), all);
    }
}
