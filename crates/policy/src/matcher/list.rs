//! The string list matcher: tests on a list of texts.

use std::fmt;

use serde_json::Value;

use crate::error::{Place, Report};
use crate::matcher::operand;
use crate::text::quote;
use crate::truth::Truth;

/// Tests that must all hold of a list.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ListMatcher {
    /// Never empty.
    tests: Vec<ListTest>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ListTest {
    /// Some element equals.
    Has(Box<str>),
    /// There is one element, and it equals.
    Is(Box<str>),
    /// No element equals.
    Exclude(Box<str>),
}

impl ListMatcher {
    pub(crate) const NAMES: [&'static str; 3] = ["has", "is", "exclude"];

    pub(crate) fn compile(data: &Value, place: &Place, report: &mut Report) -> Option<Self> {
        let Value::Object(members) = data else {
            return Some(Self::has(operand::text(data, place, report)?));
        };
        if members.is_empty() {
            report.error_with_hint(
                place,
                "the matcher is empty, so everything would match",
                format!("known: {}", Self::NAMES.join(", ")),
            );
            return None;
        }
        let tests: Vec<_> = members
            .iter()
            .filter_map(|(name, data)| {
                let place = place.key(name);
                let test = ListTest::compile(name, data, &place, report);
                if test.is_none() && !Self::NAMES.contains(&name.as_str()) {
                    match synonym(name) {
                        Some(known) => report.error_with_hint(
                            &place,
                            format!("`{name}` is no matcher for a list of values"),
                            format!("use `{known}`"),
                        ),
                        None => report.push_unknown(&place, "matcher", name, Self::NAMES),
                    }
                }
                test
            })
            .collect();
        (tests.len() == members.len()).then_some(Self { tests })
    }

    pub(crate) fn has(text: Box<str>) -> Self {
        Self {
            tests: vec![ListTest::Has(text)],
        }
    }

    /// `equals` compares an element with an operand.
    pub(crate) fn matches<T>(&self, items: &[T], equals: impl Fn(&T, &str) -> bool) -> bool {
        self.tests.iter().all(|test| test.holds(items, &equals))
    }

    /// The value when there is no list to test.
    pub(crate) fn of_nothing(&self) -> Truth {
        if self.is_negative() {
            Truth::TrueByAbsence
        } else {
            Truth::FalseByAbsence
        }
    }

    /// It only says what must not be in the list.
    pub(crate) fn is_negative(&self) -> bool {
        self.tests.iter().all(ListTest::is_negative)
    }
}

impl ListTest {
    /// `None` when the name is unknown, or when the operand is wrong and reported.
    pub(crate) fn compile(
        name: &str,
        data: &Value,
        place: &Place,
        report: &mut Report,
    ) -> Option<Self> {
        Some(match name {
            "has" => Self::Has(operand::text(data, place, report)?),
            "is" => Self::Is(operand::text(data, place, report)?),
            "exclude" => Self::Exclude(operand::text(data, place, report)?),
            _ => return None,
        })
    }

    pub(crate) fn holds<T>(&self, items: &[T], equals: impl Fn(&T, &str) -> bool) -> bool {
        match self {
            Self::Has(text) => items.iter().any(|item| equals(item, text)),
            Self::Is(text) => matches!(items, [only] if equals(only, text)),
            Self::Exclude(text) => !items.iter().any(|item| equals(item, text)),
        }
    }

    pub(crate) const fn is_negative(&self) -> bool {
        matches!(self, Self::Exclude(_))
    }
}

/// What people write who mean a matcher of ours.
fn synonym(name: &str) -> Option<&'static str> {
    Some(match name {
        "contains" | "in" | "includes" | "equals" => "has",
        "not" | "not_in" | "excludes" => "exclude",
        _ => return None,
    })
}

impl fmt::Display for ListMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, test) in self.tests.iter().enumerate() {
            if index > 0 {
                f.write_str(" and ")?;
            }
            write!(f, "{test}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ListTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Has(text) => write!(f, "has {}", quote(text)),
            Self::Is(text) => write!(f, "is only {}", quote(text)),
            Self::Exclude(text) => write!(f, "does not have {}", quote(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::text::equals;

    fn matches(data: &Value, items: &Value) -> bool {
        let mut report = Report::default();
        ListMatcher::compile(data, &Place::root(), &mut report)
            .unwrap_or_else(|| panic!("{data}: {:?}", report.errors))
            .matches(items.as_array().unwrap(), equals)
    }

    #[test]
    fn each_test_alone() {
        for (data, items, expected) in [
            (json!("a"), json!(["b", "a"]), true),
            (json!("a"), json!([]), false),
            (json!("a"), json!(["A", "ab"]), false),
            (json!({"has": "a"}), json!(["a"]), true),
            (json!({"has": 1}), json!(["1"]), true),
            (json!({"has": "1"}), json!([1]), true),
            (json!({"has": "true"}), json!([true]), true),
            (json!({"is": "a"}), json!(["a"]), true),
            (json!({"is": "a"}), json!(["a", "a"]), false),
            (json!({"is": "a"}), json!([null, "a"]), false),
            (json!({"is": "a"}), json!([]), false),
            (json!({"exclude": "a"}), json!(["b"]), true),
            (json!({"exclude": "a"}), json!([]), true),
            (json!({"exclude": "a"}), json!(["b", "a"]), false),
            (json!({"has": "a", "exclude": "b"}), json!(["a", "c"]), true),
            (
                json!({"has": "a", "exclude": "b"}),
                json!(["a", "b"]),
                false,
            ),
        ] {
            assert_eq!(matches(&data, &items), expected, "{data} {items}");
        }
    }

    #[test]
    fn s35_odd_values_are_no_match() {
        for items in [
            json!([null]),
            json!([{"a": "a"}]),
            json!([["a"]]),
            json!([1e300]),
            json!(["x".repeat(1_000_000)]),
        ] {
            for operand in [json!(""), json!("a"), json!("null"), json!("[\"a\"]")] {
                assert!(!matches(&operand, &items), "{operand}");
            }
        }
    }

    #[test]
    fn s34_unknown_matchers_and_operands_are_errors() {
        for (data, hint) in [
            (json!({"contains": "a"}), Some("use `has`")),
            (json!({"not": "a"}), Some("use `exclude`")),
            (json!({"haz": "a"}), Some("did you mean `has`?")),
            (json!({"starts_with": "a"}), Some("known: has, is, exclude")),
            (json!({}), Some("known: has, is, exclude")),
            (json!({"has": null}), None),
            (json!(null), None),
        ] {
            let mut report = Report::default();
            assert!(ListMatcher::compile(&data, &Place::root(), &mut report).is_none());
            assert_eq!(report.errors.len(), 1, "{data}");
            assert_eq!(report.errors[0].hint.as_deref(), hint, "{data}");
        }
    }
}
