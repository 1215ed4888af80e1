//! What was written: rules, operators and criteria, before anybody asks what a criterion means.

use serde_json::{Map, Value};

use crate::error::{Place, Report};
use crate::hint::nearest;
use crate::policy::{Action, Operator};

/// One operator with its criteria.
pub(crate) struct Written<'v> {
    pub(crate) action: Action,
    pub(crate) operator: Operator,
    pub(crate) place: Place,
    pub(crate) criteria: Vec<WrittenCriterion<'v>>,
}

/// `name/sub/path: data`.
pub(crate) struct WrittenCriterion<'v> {
    pub(crate) name: &'v str,
    pub(crate) sub_path: Option<&'v str>,
    pub(crate) data: &'v Value,
    pub(crate) place: Place,
}

/// Reads a policy: a rule, or a list of rules.
pub(crate) fn read<'v>(policy: &'v Value, root: &Place, report: &mut Report) -> Vec<Written<'v>> {
    let mut written = Vec::new();
    match policy {
        Value::Array(rules) => {
            for (index, rule) in rules.iter().enumerate() {
                read_rule(rule, &root.index(index), &mut written, report);
            }
        }
        Value::Object(_) => read_rule(policy, root, &mut written, report),
        Value::String(_) => report.error_with_hint(
            root,
            "a policy is a rule or a list of rules, this is text",
            "write it as YAML or JSON, without quotes around it",
        ),
        other => report.error(
            root,
            format!(
                "a policy is a rule or a list of rules, this is {}",
                kind(other)
            ),
        ),
    }
    written
}

fn read_rule<'v>(
    rule: &'v Value,
    place: &Place,
    written: &mut Vec<Written<'v>>,
    report: &mut Report,
) {
    let Value::Object(members) = rule else {
        report.error(
            place,
            format!(
                "a rule is an object with `allow` or `deny`, this is {}",
                kind(rule)
            ),
        );
        return;
    };
    for (name, body) in members {
        let place = place.key(name);
        let Some(action) = Action::from_name(name) else {
            report.push_unknown(&place, "action", name, Action::NAMES);
            continue;
        };
        let Value::Object(operators) = body else {
            report.error_with_hint(
                &place,
                format!("`{name}` holds operators, this is {}", kind(body)),
                "write the criteria as a list under `and`, `or`, `not` or `nor`",
            );
            continue;
        };
        read_operators(action, operators, &place, written, report);
    }
}

fn read_operators<'v>(
    action: Action,
    operators: &'v Map<String, Value>,
    place: &Place,
    written: &mut Vec<Written<'v>>,
    report: &mut Report,
) {
    for (name, list) in operators {
        // What the enterprise console writes; it says nothing.
        if name == "action" {
            continue;
        }
        let place = place.key(name);
        let Some(operator) = Operator::from_name(name) else {
            report.push_unknown(&place, "operator", name, Operator::NAMES);
            continue;
        };
        let Value::Array(elements) = list else {
            report.error(
                &place,
                format!("`{name}` takes a list of criteria, this is {}", kind(list)),
            );
            continue;
        };
        let criteria: Vec<_> = elements
            .iter()
            .enumerate()
            .filter_map(|(index, element)| read_criterion(element, &place.index(index), report))
            .collect();
        // An empty list says nothing. Without this, `not: []` would be true of everybody.
        if !criteria.is_empty() {
            written.push(Written {
                action,
                operator,
                place,
                criteria,
            });
        }
    }
}

fn read_criterion<'v>(
    element: &'v Value,
    place: &Place,
    report: &mut Report,
) -> Option<WrittenCriterion<'v>> {
    let Value::Object(members) = element else {
        let message = format!(
            "a criterion is an object such as `domain: {{is: corp.test}}`, this is {}",
            kind(element)
        );
        match element {
            Value::String(name) => {
                report.error_with_hint(place, message, format!("write `{name}: true`?"));
            }
            _ => report.error(place, message),
        }
        return None;
    };
    let mut members = members.iter();
    let (Some((key, data)), None) = (members.next(), members.next()) else {
        report.error_with_hint(
            place,
            "a criterion has exactly one key",
            "make each criterion a list item of its own",
        );
        return None;
    };
    let (name, sub_path) = match key.split_once('/') {
        Some((name, sub_path)) => (name, Some(sub_path)),
        None => (key.as_str(), None),
    };
    Some(WrittenCriterion {
        name,
        sub_path,
        data,
        place: place.key(key),
    })
}

impl Report {
    /// An unknown word where one of `known` belongs.
    pub(crate) fn push_unknown<'k>(
        &mut self,
        place: &Place,
        what: &str,
        word: &str,
        known: impl IntoIterator<Item = &'k str> + Clone,
    ) {
        let message = format!("unknown {what} `{word}`");
        let hint = if let Some(name) = nearest(word, known.clone()) {
            format!("did you mean `{name}`?")
        } else {
            let known: Vec<&str> = known.into_iter().collect();
            format!("known: {}", known.join(", "))
        };
        self.error_with_hint(place, message, hint);
    }
}

/// The kind of a JSON value for people, with its article.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
