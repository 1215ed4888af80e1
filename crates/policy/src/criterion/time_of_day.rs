//! `time_of_day`: what the clock on the wall shows in a time zone.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::Time;
use serde_json::Value;

use crate::criterion::zone::Zone;
use crate::error::{Place, Report};
use crate::input::Input;
use crate::reason::Reason;
use crate::syntax::kind;
use crate::truth::Finding;

/// From `after` on, until just before `before`, by the clock on the wall. When `before` is the
/// earlier one the time goes over midnight.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TimeOfDayCriterion {
    zone: Zone,
    /// Midnight when not given.
    after: Time,
    /// The next midnight when not given.
    before: Option<Time>,
}

const NAMES: [&str; 3] = ["after", "before", "timezone"];
const FORM: &str = "write `15:04`, `15:04:05`, `3:04 PM` or `3PM`, in quotes";

impl TimeOfDayCriterion {
    pub(crate) fn compile(data: &Value, place: &Place, report: &mut Report) -> Option<Self> {
        let Value::Object(members) = data else {
            report.error_with_hint(
                place,
                format!("`time_of_day` takes an object, this is {}", kind(data)),
                "write `{timezone: Europe/Berlin, after: \"9:00\", before: \"17:00\"}`",
            );
            return None;
        };
        let wrong = report.errors.len();
        let (mut zone, mut after, mut before) = (None, None, None);
        for (name, data) in members {
            let place = place.key(name);
            match name.as_str() {
                "timezone" => zone = Zone::compile(data, &place, report),
                "after" => after = time(data, &place, report),
                "before" => before = time(data, &place, report),
                _ => report.push_unknown(&place, "time condition", name, NAMES),
            }
        }
        if !members.contains_key("timezone") {
            report.error_with_hint(
                place,
                "`time_of_day` needs a `timezone`",
                "write a city, such as `Europe/Berlin`, or `UTC`",
            );
        }
        if report.errors.len() != wrong {
            return None;
        }
        match (after, before) {
            (None, None) => {
                report.error(place, "`time_of_day` needs `after`, `before` or both");
                None
            }
            (after, before)
                if after == before || before == Some(Time::midnight()) && after.is_none() =>
            {
                report.error(
                    place,
                    "`after` and `before` are the same time, so none lies between",
                );
                None
            }
            (after, before) => Some(Self {
                zone: zone?,
                after: after.unwrap_or(Time::midnight()),
                before,
            }),
        }
    }

    pub(crate) fn evaluate(&self, input: &Input<'_>) -> Finding {
        let now = self.zone.local(input.now).time();
        let holds = match self.before {
            None => now >= self.after,
            Some(before) if self.after < before => now >= self.after && now < before,
            Some(before) => now >= self.after || now < before,
        };
        Finding::new(holds, Reason::TimeOfDayOk, Reason::TimeOfDayUnauthorized)
    }

    pub(crate) fn next_boundary(&self, now: Timestamp) -> Option<Timestamp> {
        self.zone
            .next(now, &[self.after, self.before.unwrap_or(Time::midnight())])
    }

    pub(crate) fn met(&self, input: &Input<'_>) -> String {
        format!("{} {}", self.zone.local(input.now).time(), self.zone)
    }
}

fn time(data: &Value, place: &Place, report: &mut Report) -> Option<Time> {
    let Value::String(text) = data else {
        report.error_with_hint(
            place,
            format!("expected a time as text, this is {}", kind(data)),
            FORM,
        );
        return None;
    };
    let time = parse(text);
    if time.is_none() {
        report.error_with_hint(place, format!("`{text}` is no time of day"), FORM);
    }
    time
}

/// `3PM`, `3:04 PM`, `15:04`, `15:04:05`, `15:04:05.999`.
fn parse(text: &str) -> Option<Time> {
    let text = text.trim().to_ascii_lowercase();
    let (clock, half) = if let Some(clock) = text.strip_suffix("am") {
        (clock.trim_end(), Some(0))
    } else if let Some(clock) = text.strip_suffix("pm") {
        (clock.trim_end(), Some(12))
    } else {
        (text.as_str(), None)
    };
    let mut parts = clock.split(':');
    let hour = parts
        .next()
        .filter(|hour| hour.len() <= 2)
        .and_then(digits)?;
    let minute = match parts.next() {
        Some(minute) => Some(two_digits(minute)?),
        None => None,
    };
    let (second, nanosecond) = match parts.next() {
        Some(second) => seconds(second)?,
        None => (0, 0),
    };
    if parts.next().is_some() {
        return None;
    }
    let hour = match half {
        Some(half) if (1..=12).contains(&hour) => hour % 12 + half,
        Some(_) => return None,
        None => {
            // A bare number could mean anything.
            minute?;
            hour
        }
    };
    Time::new(
        i8::try_from(hour).ok()?,
        i8::try_from(minute.unwrap_or(0)).ok()?,
        i8::try_from(second).ok()?,
        nanosecond,
    )
    .ok()
}

fn seconds(text: &str) -> Option<(i32, i32)> {
    let Some((second, fraction)) = text.split_once('.') else {
        return Some((two_digits(text)?, 0));
    };
    if fraction.len() > 9 {
        return None;
    }
    digits(fraction)?;
    Some((two_digits(second)?, digits(&format!("{fraction:0<9}"))?))
}

fn two_digits(text: &str) -> Option<i32> {
    if text.len() == 2 { digits(text) } else { None }
}

fn digits(text: &str) -> Option<i32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

impl fmt::Display for TimeOfDayCriterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.before {
            Some(before) => write!(f, "time of day from {} until {before}", self.after)?,
            None => write!(f, "time of day from {} on", self.after)?,
        }
        write!(f, " ({})", self.zone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_each_form() {
        for (text, expected) in [
            ("3:04 PM", "15:04:00"),
            ("3:04PM", "15:04:00"),
            ("3 PM", "15:00:00"),
            ("3pm", "15:00:00"),
            ("12 AM", "00:00:00"),
            ("12:30 AM", "00:30:00"),
            ("12 PM", "12:00:00"),
            ("15:04:05.999999999", "15:04:05.999999999"),
            ("15:04:05.5", "15:04:05.5"),
            ("15:04:05", "15:04:05"),
            ("15:04", "15:04:00"),
            ("2:20:00", "02:20:00"),
            ("00:00", "00:00:00"),
        ] {
            let expected: Time = expected.parse().unwrap();
            assert_eq!(parse(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "3",
            "15",
            "24:00",
            "15:4",
            "15:60",
            "13 PM",
            "0 AM",
            "15:04 PM",
            "15:04:05:06",
            "15:04:05.",
            "15:04:05.1234567890",
            "-1:00",
            "+1:00",
            "ä:00",
            "1:00 XM",
            "015:00",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
