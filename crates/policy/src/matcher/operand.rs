//! What stands right of a colon.

use serde_json::Value;

use crate::error::{Place, Report};
use crate::syntax::kind;
use crate::text::exact_text;

/// A text, number or boolean, as text.
pub(crate) fn text(value: &Value, place: &Place, report: &mut Report) -> Option<Box<str>> {
    if let Some(text) = exact_text(value) {
        return Some(text.into());
    }
    match value {
        Value::Array(_) => report.error_with_hint(
            place,
            "expected one value, this is a list, which nothing equals",
            "write one criterion for each value under `or`, or `in` with the list where it is known",
        ),
        Value::Number(_) => report.error_with_hint(
            place,
            "the number is too large to be exact",
            "write it in quotes",
        ),
        other => report.error(
            place,
            format!("expected text, a number or a boolean, this is {}", kind(other)),
        ),
    }
    None
}

/// A text that must say something: an empty prefix would match everything.
pub(crate) fn part(value: &Value, place: &Place, report: &mut Report) -> Option<Box<str>> {
    let text = text(value, place, report)?;
    if text.is_empty() {
        report.error(place, "the text is empty, so everything would match");
        return None;
    }
    Some(text)
}

/// A list of texts, numbers or booleans.
pub(crate) fn texts(value: &Value, place: &Place, report: &mut Report) -> Option<Vec<Box<str>>> {
    let Value::Array(items) = value else {
        report.error_with_hint(
            place,
            format!("expected a list of values, this is {}", kind(value)),
            "write it in brackets",
        );
        return None;
    };
    let texts: Vec<Box<str>> = items
        .iter()
        .enumerate()
        .filter_map(|(index, item)| text(item, &place.index(index), report))
        .collect();
    (texts.len() == items.len()).then_some(texts)
}

/// One text or a list of texts; nothing else.
pub(crate) fn one_or_more<'v>(
    value: &'v Value,
    place: &Place,
    report: &mut Report,
) -> Vec<(&'v str, Place)> {
    let mut read = |item: &'v Value, place: Place| match item {
        Value::String(text) => Some((text.as_str(), place)),
        other => {
            report.error(&place, format!("expected text, this is {}", kind(other)));
            None
        }
    };
    match value {
        Value::Array(items) => items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| read(item, place.index(index)))
            .collect(),
        item => read(item, place.clone()).into_iter().collect(),
    }
}

/// Notes a domain that no e-mail address can have.
pub(crate) fn check_domain(domain: &str, place: &Place, report: &mut Report) {
    if domain.contains('@') {
        report.note(
            place,
            "no address has a domain with `@` in it: write what stands after it",
        );
    }
}

/// Notes where Pomerium, which reads all names in lower case, looks for another claim.
pub(crate) fn check_claim_name(claim: &str, place: &Place, report: &mut Report) {
    if claim.chars().any(char::is_uppercase) {
        report.note(
            place,
            format!(
                "the claim is called `{claim}`, in this spelling; Pomerium would look for `{}`",
                claim.to_lowercase()
            ),
        );
    }
}
