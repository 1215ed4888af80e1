//! `date`: between two instants.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::DateTime;
use serde_json::Value;

use crate::criterion::zone::Zone;
use crate::error::{Place, Report};
use crate::input::Input;
use crate::reason::Reason;
use crate::syntax::kind;
use crate::truth::Finding;

/// From `after` on, until just before `before`. At least one of them is given.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DateCriterion {
    after: Option<Timestamp>,
    before: Option<Timestamp>,
}

const NAMES: [&str; 3] = ["after", "before", "timezone"];
const FORM: &str = "write `2025-01-31`, `2025-01-31T16:20:00` or `2025-01-31T16:20:00+01:00`";

impl DateCriterion {
    pub(crate) fn compile(data: &Value, place: &Place, report: &mut Report) -> Option<Self> {
        let Value::Object(members) = data else {
            report.error_with_hint(
                place,
                format!("`date` takes an object, this is {}", kind(data)),
                "write `{after: 2025-01-31, before: 2025-12-31}`",
            );
            return None;
        };
        let wrong = report.errors.len();
        let zone = match members.get("timezone") {
            Some(data) => Zone::compile(data, &place.key("timezone"), report).unwrap_or(Zone::UTC),
            None => Zone::UTC,
        };
        let (mut after, mut before) = (None, None);
        for (name, data) in members {
            let place = place.key(name);
            match name.as_str() {
                "after" => after = instant(data, &zone, &place, report),
                "before" => before = instant(data, &zone, &place, report),
                "timezone" => {}
                _ => report.push_unknown(&place, "date condition", name, NAMES),
            }
        }
        if report.errors.len() != wrong {
            return None;
        }
        match (after, before) {
            (None, None) => report.error(place, "`date` needs `after`, `before` or both"),
            (Some(after), Some(before)) if before <= after => {
                report.error(
                    place,
                    "`before` is not later than `after`, so no time would match",
                );
            }
            _ => return Some(Self { after, before }),
        }
        None
    }

    pub(crate) fn evaluate(&self, input: &Input<'_>) -> Finding {
        let holds = self.after.is_none_or(|after| input.now >= after)
            && self.before.is_none_or(|before| input.now < before);
        Finding::new(holds, Reason::DateOk, Reason::DateUnauthorized)
    }

    pub(crate) fn next_boundary(&self, now: Timestamp) -> Option<Timestamp> {
        [self.after, self.before]
            .into_iter()
            .flatten()
            .filter(|instant| *instant > now)
            .min()
    }
}

/// With an offset, or local to the zone.
fn instant(data: &Value, zone: &Zone, place: &Place, report: &mut Report) -> Option<Timestamp> {
    let Value::String(text) = data else {
        report.error_with_hint(
            place,
            format!("expected a date as text, this is {}", kind(data)),
            FORM,
        );
        return None;
    };
    let text = text.trim();
    let instant = match text.parse::<Timestamp>() {
        Ok(instant) => Some(instant),
        Err(_) => text
            .parse::<DateTime>()
            .ok()
            .and_then(|local| zone.instant(local)),
    };
    if instant.is_none() {
        report.error_with_hint(place, format!("`{text}` is no ISO 8601 date"), FORM);
    }
    instant
}

impl fmt::Display for DateCriterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.after, self.before) {
            (Some(after), Some(before)) => write!(f, "from {after} until {before}"),
            (Some(after), None) => write!(f, "from {after} on"),
            (None, Some(before)) => write!(f, "until {before}"),
            (None, None) => Ok(()),
        }
    }
}
