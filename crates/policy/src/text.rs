//! The one rule for values that are not text.
//!
//! Policy, headers and explanations agree on it: what a header shows as `42` is what a policy
//! compares with `42`.

use std::borrow::Cow;

use serde_json::{Number, Value};

/// From here on a double no longer tells neighbouring integers apart.
const FIRST_INEXACT: f64 = 9_007_199_254_740_992.0; // 2^53

/// A claim's value as text: text as it is, `true` and `false`, numbers in plain decimal digits with
/// whole numbers as integers (`42`, also when stored as `42.0`; never `1.7e+09`). `None` for null,
/// lists and objects, which have none.
pub fn claim_text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Bool(true) => Some(Cow::Borrowed("true")),
        Value::Bool(false) => Some(Cow::Borrowed("false")),
        Value::Number(number) => Some(Cow::Owned(number_text(number))),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Does the value's text equal `operand`? A double too large to be exact equals nothing: it may
/// stand for a neighbour.
pub(crate) fn equals(value: &Value, operand: &str) -> bool {
    match exact_text(value) {
        Some(text) => text == operand,
        None => false,
    }
}

/// Like [`claim_text`], without numbers too large to be exact: what a policy may compare.
pub(crate) fn exact_text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::Number(number) if is_inexact(number) => None,
        _ => claim_text(value),
    }
}

fn is_inexact(number: &Number) -> bool {
    number.as_i64().is_none()
        && number.as_u64().is_none()
        && number
            .as_f64()
            .is_none_or(|double| !double.is_finite() || double.abs() >= FIRST_INEXACT)
}

fn number_text(number: &Number) -> String {
    if let Some(integer) = number.as_i64() {
        integer.to_string()
    } else if let Some(integer) = number.as_u64() {
        integer.to_string()
    } else {
        match number.as_f64() {
            // Adding zero turns -0.0 into 0.0. Rust's `Display` has no exponent form.
            Some(double) => (double + 0.0).to_string(),
            None => number.to_string(),
        }
    }
}

/// Type and value for people, such as `number 42`. Long texts and lists are cut.
pub(crate) fn show(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(boolean) => format!("boolean {boolean}"),
        Value::Number(number) if is_inexact(number) => {
            format!("number {} (too large to be exact)", number_text(number))
        }
        Value::Number(number) => format!("number {}", number_text(number)),
        Value::String(text) => format!("text {}", quote(text)),
        Value::Array(items) => show_list(items),
        Value::Object(members) => format!("object with {} members", members.len()),
    }
}

pub(crate) fn show_list(items: &[Value]) -> String {
    const SHOWN: usize = 8;
    if items.is_empty() {
        return "empty list".to_owned();
    }
    let mut shown: Vec<String> = items
        .iter()
        .take(SHOWN)
        .map(|item| match item {
            Value::Array(inner) => format!("list of {}", inner.len()),
            other => show(other),
        })
        .collect();
    if items.len() > SHOWN {
        shown.push("…".to_owned());
    }
    format!("list of {}: {}", items.len(), shown.join(", "))
}

/// In quotes, escaped, cut after some length.
pub(crate) fn quote(text: &str) -> String {
    const SHOWN: usize = 80;
    let mut chars = text.chars();
    let start: String = chars.by_ref().take(SHOWN).collect();
    if chars.next().is_some() {
        format!("{start:?}… ({} bytes)", text.len())
    } else {
        format!("{start:?}")
    }
}

/// With commas; of a long list the beginning.
pub(crate) fn some_of(items: impl ExactSizeIterator<Item = String>) -> String {
    const SHOWN: usize = 20;
    let more = items.len().saturating_sub(SHOWN);
    let shown: Vec<String> = items.take(SHOWN).collect();
    if more == 0 {
        shown.join(", ")
    } else {
        format!("{} and {more} more", shown.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_and_booleans_have_one_text() {
        for (value, text) in [
            (json!(42), "42"),
            (json!(42.0), "42"),
            (json!(-0.0), "0"),
            (json!(1_700_000_000.0), "1700000000"),
            (json!(0.00001), "0.00001"),
            (json!(1.5), "1.5"),
            (json!(u64::MAX), "18446744073709551615"),
            (json!(true), "true"),
            (json!("R&D"), "R&D"),
        ] {
            assert_eq!(claim_text(&value).as_deref(), Some(text), "{value}");
            assert!(equals(&value, text), "{value}");
        }
    }

    #[test]
    fn what_has_no_text_equals_nothing() {
        for value in [json!(null), json!(["a"]), json!({"a": "a"})] {
            assert_eq!(claim_text(&value), None);
            for operand in ["", "null", "a", "[\"a\"]"] {
                assert!(!equals(&value, operand), "{value} {operand}");
            }
        }
    }

    #[test]
    fn a_double_that_may_stand_for_a_neighbour_equals_nothing() {
        let stored = json!(FIRST_INEXACT);
        assert_eq!(claim_text(&stored).as_deref(), Some("9007199254740992"));
        assert!(!equals(&stored, "9007199254740992"));
        assert!(equals(
            &json!(9_007_199_254_740_993_u64),
            "9007199254740993"
        ));
        assert!(equals(&json!(9_007_199_254_740_991.0), "9007199254740991"));
    }

    #[test]
    fn shown_values_are_cut() {
        assert_eq!(show(&json!("a\n")), "text \"a\\n\"");
        assert!(show(&json!("x".repeat(1000))).len() < 120);
        assert!(show(&json!(vec![1; 1000])).len() < 200);
    }
}
