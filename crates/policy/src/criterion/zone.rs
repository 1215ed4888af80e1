//! Time zones, and when the clock on the wall there shows something else.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::{DateTime, Time};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde_json::Value;

use crate::error::{Place, Report};
use crate::hint::nearest;
use crate::syntax::kind;

/// A time zone of the IANA database that is compiled in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Zone(TimeZone);

impl Zone {
    pub(crate) const UTC: Self = Self(TimeZone::UTC);

    pub(crate) fn compile(data: &Value, place: &Place, report: &mut Report) -> Option<Self> {
        let Value::String(name) = data else {
            report.error_with_hint(
                place,
                format!("expected the name of a time zone, this is {}", kind(data)),
                "write a city, such as `Europe/Berlin`, or `UTC`",
            );
            return None;
        };
        let database = TimeZoneDatabase::bundled();
        if let Ok(zone) = database.get(name) {
            return Some(Self(zone));
        }
        let names: Vec<String> = database.available().map(|name| name.to_string()).collect();
        let hint = match nearest(name, names.iter().map(String::as_str)) {
            Some(known) => format!("did you mean `{known}`?"),
            None => "write a city, such as `Europe/Berlin`, or `UTC`".to_owned(),
        };
        report.error_with_hint(place, format!("unknown time zone `{name}`"), hint);
        None
    }

    /// What clock and calendar on the wall show there.
    pub(crate) fn local(&self, now: Timestamp) -> DateTime {
        self.0.to_datetime(now)
    }

    /// The instant of a date and time there. In the hour that daylight saving skips: just after it;
    /// in the hour that it repeats: the first one.
    pub(crate) fn instant(&self, local: DateTime) -> Option<Timestamp> {
        self.0.to_ambiguous_timestamp(local).compatible().ok()
    }

    /// The next instant after `now` at which the clock there shows one of `times`, or is changed.
    /// Between the two nothing happens that has to do with these times.
    pub(crate) fn next(&self, now: Timestamp, times: &[Time]) -> Option<Timestamp> {
        let today = self.local(now).date();
        let days = std::iter::successors(Some(today), |day| day.tomorrow().ok()).take(3);
        let shown = days.flat_map(|day| times.iter().map(move |time| day.to_datetime(*time)));
        // Where daylight saving repeats an hour, a time is shown twice; where it skips one, never.
        let instants = shown.flat_map(|local| {
            let ambiguous = self.0.to_ambiguous_timestamp(local);
            [ambiguous.earlier().ok(), ambiguous.later().ok()]
                .into_iter()
                .flatten()
                .filter(move |instant| self.local(*instant) == local)
        });
        let changed = self
            .0
            .following(now)
            .next()
            .map(|change| change.timestamp());
        instants
            .chain(changed)
            .filter(|instant| *instant > now)
            .min()
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.iana_name().unwrap_or("UTC"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_zones_are_errors_with_a_hint() {
        for (data, hint) in [
            (json!("Europe/Berln"), "did you mean `Europe/Berlin`?"),
            (
                json!("Mars/Olympus"),
                "write a city, such as `Europe/Berlin`, or `UTC`",
            ),
            (json!(2), "write a city, such as `Europe/Berlin`, or `UTC`"),
        ] {
            let mut report = Report::default();
            assert_eq!(Zone::compile(&data, &Place::root(), &mut report), None);
            assert_eq!(report.errors[0].hint.as_deref(), Some(hint));
        }
    }

    #[test]
    fn every_zone_of_the_documentation_is_compiled_in() {
        for name in [
            "UTC",
            "America/Phoenix",
            "Europe/Berlin",
            "EST",
            "Asia/Kolkata",
        ] {
            let mut report = Report::default();
            assert!(Zone::compile(&json!(name), &Place::root(), &mut report).is_some());
        }
    }
}
