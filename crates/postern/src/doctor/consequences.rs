//! What only follows from something else that was found is not told: whoever reads it would mend
//! the wrong thing. Pure.

use super::code;
use super::finding::{Check, Finding, Level};

/// authorize begins with a copy of the records: where those can't be had, it is not ready.
pub fn without(mut findings: Vec<Finding>) -> Vec<Finding> {
    let no_records = findings.iter().any(|finding| {
        matches!(finding.check, Check::Storage | Check::Databroker) && finding.level == Level::Error
    });
    findings.retain(|finding| {
        let waits = finding.check == Check::Authorize && finding.code == Some(code::NOT_READY);
        !(waits && no_records)
    });
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
        let storage = Finding::error(Check::Storage, "pg", Cause::new(code::REFUSED, "refused"));
        let mended = [storage.clone()];
        assert_eq!(without(vec![not_ready(Check::Authorize), storage]), mended);
        let databroker = vec![not_ready(Check::Databroker), not_ready(Check::Authorize)];
        assert_eq!(without(databroker), [not_ready(Check::Databroker)]);
        let warned = Finding::warning(Check::Storage, "pg", Cause::new(code::REFUSED, "refused"));
        let all = vec![not_ready(Check::Authorize), warned];
        assert_eq!(without(all.clone()), all);
    }
}
