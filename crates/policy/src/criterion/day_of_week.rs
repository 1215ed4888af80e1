//! `day_of_week`: days of the week in a time zone.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::{Time, Weekday};
use serde_json::Value;

use crate::criterion::zone::Zone;
use crate::error::{Place, Report};
use crate::input::Input;
use crate::reason::Reason;
use crate::syntax::kind;
use crate::truth::Finding;

/// Days in a time zone.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DayOfWeekCriterion {
    days: Days,
    zone: Zone,
}

/// A bit a day, from Monday.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Days(u8);

impl Days {
    const EVERY: Self = Self(0b111_1111);

    const fn contains(self, day: Weekday) -> bool {
        self.0 & (1 << day.to_monday_zero_offset()) != 0
    }
}

const WEEK: [(Weekday, &str); 7] = [
    (Weekday::Monday, "monday"),
    (Weekday::Tuesday, "tuesday"),
    (Weekday::Wednesday, "wednesday"),
    (Weekday::Thursday, "thursday"),
    (Weekday::Friday, "friday"),
    (Weekday::Saturday, "saturday"),
    (Weekday::Sunday, "sunday"),
];
const FORM: &str = "write `mon-fri`, `mon,wed` or `*`";

impl DayOfWeekCriterion {
    /// Days as text, or `{is: days, timezone: zone}`.
    pub(crate) fn compile(data: &Value, place: &Place, report: &mut Report) -> Option<Self> {
        let Value::Object(members) = data else {
            let days = days(data, place, report)?;
            return Some(Self {
                days,
                zone: Zone::UTC,
            });
        };
        let wrong = report.errors.len();
        let (mut is, mut zone) = (None, Some(Zone::UTC));
        for (name, data) in members {
            let place = place.key(name);
            match name.as_str() {
                "is" => is = days(data, &place, report),
                "timezone" => zone = Zone::compile(data, &place, report),
                _ => report.push_unknown(&place, "day condition", name, ["is", "timezone"]),
            }
        }
        if report.errors.len() == wrong && is.is_none() {
            report.error_with_hint(
                place,
                "no days are named",
                "write `{is: mon-fri, timezone: …}`",
            );
        }
        Some(Self {
            days: is?,
            zone: zone?,
        })
        .filter(|_| report.errors.len() == wrong)
    }

    pub(crate) fn evaluate(&self, input: &Input<'_>) -> Finding {
        let today = self.zone.local(input.now).weekday();
        Finding::new(
            self.days.contains(today),
            Reason::DayOfWeekOk,
            Reason::DayOfWeekUnauthorized,
        )
    }

    pub(crate) fn next_boundary(&self, now: Timestamp) -> Option<Timestamp> {
        if self.days == Days::EVERY {
            return None;
        }
        self.zone.next(now, &[Time::midnight()])
    }

    pub(crate) fn met(&self, input: &Input<'_>) -> String {
        let local = self.zone.local(input.now);
        format!("{:?}, {} {}", local.weekday(), local.date(), self.zone)
    }
}

fn days(data: &Value, place: &Place, report: &mut Report) -> Option<Days> {
    let Value::String(text) = data else {
        report.error_with_hint(
            place,
            format!("expected days as text, this is {}", kind(data)),
            FORM,
        );
        return None;
    };
    let days = parse(text);
    if days.is_none() {
        report.error_with_hint(place, format!("`{text}` names no days"), FORM);
    }
    days
}

/// `*`, or days and ranges of days with commas. A range may go over the weekend: `fri-mon`.
fn parse(text: &str) -> Option<Days> {
    if text.trim() == "*" {
        return Some(Days::EVERY);
    }
    let mut days = 0;
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (day(first)?, day(last)?),
            None => (day(part)?, day(part)?),
        };
        let length = last.since(first);
        for (after, day) in first.cycle_forward().take(7).enumerate() {
            if after <= usize::try_from(length).ok()? {
                days |= 1 << day.to_monday_zero_offset();
            }
        }
    }
    Some(Days(days))
}

/// An English name or its first three letters.
fn day(text: &str) -> Option<Weekday> {
    let text = text.trim();
    WEEK.into_iter()
        .find(|(_, name)| {
            text.eq_ignore_ascii_case(name)
                || name
                    .get(..3)
                    .is_some_and(|short| text.eq_ignore_ascii_case(short))
        })
        .map(|(day, _)| day)
}

impl fmt::Display for DayOfWeekCriterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days == Days::EVERY {
            return f.write_str("any day");
        }
        f.write_str("day is ")?;
        let mut first = true;
        for (day, name) in WEEK {
            if self.days.contains(day) {
                f.write_str(if first { "" } else { ", " })?;
                f.write_str(name)?;
                first = false;
            }
        }
        write!(f, " ({})", self.zone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Option<String> {
        let days = parse(text)?;
        let names = WEEK.into_iter().filter(|(day, _)| days.contains(*day));
        Some(names.filter_map(|(_, name)| name.get(..2)).collect())
    }

    #[test]
    fn days_lists_and_ranges() {
        for (text, expected) in [
            ("*", "motuwethfrsasu"),
            ("mon", "mo"),
            ("Monday", "mo"),
            ("mon,wed,fri", "mowefr"),
            ("mon , SUN", "mosu"),
            ("tue-fri", "tuwethfr"),
            ("fri-mon", "mofrsasu"),
            ("sun-sat", "motuwethfrsasu"),
            ("mon-mon", "mo"),
            ("mon-tue,sat", "motusa"),
        ] {
            assert_eq!(names(text).as_deref(), Some(expected), "{text}");
        }
        for text in [
            "",
            "mo",
            "mon,",
            "mon-",
            "-mon",
            "mon-tue-wed",
            "weekend",
            "1",
            "* ,mon",
        ] {
            assert_eq!(names(text), None, "{text}");
        }
    }
}
