//! Texts to values, as leniently as Pomerium reads them.

use std::time::Duration;

/// Go's `strconv.ParseBool`, and the words that YAML 1.1 had.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "yes" | "on" => Some(true),
        "0" | "f" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Pomerium would take nanoseconds; nobody means those.
    #[error("a duration needs a unit")]
    NoUnit,
    #[error("`{0}` is not a unit of time")]
    Unit(String),
    #[error("this is not a duration")]
    Malformed,
    #[error("a duration can't be negative here")]
    Negative,
    #[error("this duration is too long")]
    TooLong,
}

/// Go's `time.ParseDuration`, without negative ones: `300ms`, `1.5h`, `1m30s`; `0` needs no unit.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let mut rest = text.trim();
    if rest.starts_with('-') {
        return Err(DurationError::Negative);
    }
    rest = rest.strip_prefix('+').unwrap_or(rest);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(DurationError::Malformed);
    }
    let mut nanoseconds: u128 = 0;
    while !rest.is_empty() {
        let number_len = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(number_len);
        if after.is_empty() {
            return Err(if number.is_empty() {
                DurationError::Malformed
            } else {
                DurationError::NoUnit
            });
        }
        let unit_len = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_len);
        let unit_ns: u128 = match unit {
            _ if number.is_empty() => return Err(DurationError::Malformed),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            other => return Err(DurationError::Unit(other.trim().to_owned())),
        };
        nanoseconds = nanoseconds.saturating_add(scaled(number, unit_ns)?);
        rest = next;
    }
    // Go's own limit, about 292 years.
    let nanoseconds = i64::try_from(nanoseconds).map_err(|_| DurationError::TooLong)?;
    Ok(Duration::from_nanos(nanoseconds.unsigned_abs()))
}

/// `1.5` of a unit, in nanoseconds.
fn scaled(number: &str, unit: u128) -> Result<u128, DurationError> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(DurationError::Malformed);
    }
    let digits = |text: &str| {
        if text.is_empty() {
            Ok(0)
        } else {
            text.parse::<u64>().map(u128::from)
        }
    };
    let whole = digits(whole).map_err(|_| DurationError::TooLong)?;
    let mut total = whole.checked_mul(unit).ok_or(DurationError::TooLong)?;
    let mut place = unit;
    for digit in fraction.bytes() {
        place /= 10;
        total += u128::from(digit - b'0') * place;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        for (text, milliseconds) in [
            ("300ms", 300),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("0", 0),
            ("0s", 0),
            (".5s", 500),
            ("+2s", 2000),
            ("14h", 50_400_000),
            ("100us", 0),
        ] {
            assert_eq!(
                parse_duration(text).map(|d| d.as_millis()),
                Ok(milliseconds),
                "{text}"
            );
        }
        for (text, error) in [
            ("30", DurationError::NoUnit),
            ("1m30", DurationError::NoUnit),
            ("5d", DurationError::Unit("d".to_owned())),
            ("30 s", DurationError::Unit("s".to_owned())),
            ("s", DurationError::Malformed),
            ("", DurationError::Malformed),
            ("abc", DurationError::Malformed),
            ("1..5s", DurationError::Malformed),
            ("-5s", DurationError::Negative),
            ("9999999999h", DurationError::TooLong),
        ] {
            assert_eq!(parse_duration(text), Err(error), "{text}");
        }
    }
}
