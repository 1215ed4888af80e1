//! `record`: what a record of the databroker says about the request.

use std::fmt;

use serde_json::{Number, Value};

use crate::criterion::by_absence;
use crate::error::{Place, Report};
use crate::input::Input;
use crate::matcher::list::{ListMatcher, ListTest};
use crate::matcher::string::{Case, StringMatcher, StringTest};
use crate::reason::Reason;
use crate::syntax::kind;
use crate::text::{self, quote};
use crate::truth::{Finding, Truth};

/// Tests on a field of a record, or on whether there is one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RecordCriterion {
    record_type: Box<str>,
    question: Question,
}

#[derive(Debug, Clone, PartialEq)]
enum Question {
    Exists(bool),
    /// `tests` is never empty.
    Field {
        path: Box<str>,
        tests: Vec<FieldTest>,
    },
}

#[derive(Debug, Clone, PartialEq)]
enum FieldTest {
    Text(StringTest),
    List(ListTest),
    Number(Comparison, f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Less,
    LessOrEqual,
    Equal,
    Greater,
    GreaterOrEqual,
}

impl Comparison {
    const ALL: [Self; 5] = [
        Self::Less,
        Self::LessOrEqual,
        Self::Equal,
        Self::Greater,
        Self::GreaterOrEqual,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Equal => "=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }

    #[expect(
        clippy::float_cmp,
        reason = "`=` compares with the very number that was written"
    )]
    fn holds(self, left: f64, right: f64) -> bool {
        match self {
            Self::Less => left < right,
            Self::LessOrEqual => left <= right,
            Self::Equal => left == right,
            Self::Greater => left > right,
            Self::GreaterOrEqual => left >= right,
        }
    }
}

fn known() -> Vec<&'static str> {
    let mut known = vec!["type", "field", "exists"];
    known.extend(Comparison::ALL.map(Comparison::as_str));
    known.extend(StringMatcher::NAMES);
    known.extend(ListMatcher::NAMES.into_iter().filter(|name| *name != "is"));
    known
}

impl RecordCriterion {
    pub(crate) fn compile(data: &Value, place: &Place, report: &mut Report) -> Option<Self> {
        let Value::Object(members) = data else {
            report.error_with_hint(
                place,
                format!("`record` takes an object, this is {}", kind(data)),
                format!("known: {}", known().join(", ")),
            );
            return None;
        };
        let wrong = report.errors.len();
        let (mut record_type, mut field, mut exists) = (None, None, None);
        let mut tests = Vec::new();
        for (name, data) in members {
            let place = place.key(name);
            match (name.as_str(), data) {
                ("type", Value::String(text)) if !text.is_empty() => {
                    record_type = Some(text.as_str());
                }
                ("field", Value::String(text)) if !text.is_empty() => field = Some(text.as_str()),
                ("exists", Value::Bool(wanted)) => exists = Some(*wanted),
                ("type" | "field", other) => {
                    report.error(&place, format!("expected a name, this is {}", kind(other)));
                }
                ("exists", other) => {
                    report.error(
                        &place,
                        format!("expected a boolean, this is {}", kind(other)),
                    );
                }
                _ => tests.extend(FieldTest::compile(name, data, &place, report)),
            }
        }
        if report.errors.len() != wrong {
            return None;
        }
        let Some(record_type) = record_type else {
            report.error(place, "`record` needs the `type` of a record");
            return None;
        };
        let question = match (exists, field, tests.is_empty()) {
            (Some(wanted), _, true) => Question::Exists(wanted),
            (None, Some(path), false) => Question::Field {
                path: path.into(),
                tests,
            },
            (Some(_), _, false) => {
                report.error_with_hint(
                    place,
                    "`exists` stands alone",
                    "a test on a field holds only if there is a record",
                );
                return None;
            }
            (None, None, _) => {
                report.error(place, "`record` needs a `field`, or `exists`");
                return None;
            }
            (None, Some(_), true) => {
                report.error_with_hint(
                    place,
                    "nothing is asked of the field",
                    format!("known: {}", known().join(", ")),
                );
                return None;
            }
        };
        Some(Self {
            record_type: record_type.into(),
            question,
        })
    }

    pub(crate) fn record_type(&self) -> &str {
        &self.record_type
    }

    pub(crate) fn evaluate(&self, input: &Input<'_>) -> Finding {
        let record = input.records.record(&self.record_type);
        let signed_in = input.session.is_some();
        let truth = match (&self.question, record) {
            (Question::Field { path, tests }, Some(record)) => all(tests, find(record, path)),
            (Question::Field { tests, .. }, None) => all(tests, None),
            (Question::Exists(wanted), Some(_)) => (*wanted).into(),
            (Question::Exists(wanted), None) if signed_in => (!wanted).into(),
            (Question::Exists(wanted), None) => by_absence(!wanted),
        };
        // Without a record, signing in may bring one: records may belong to people.
        if record.is_none() && !signed_in {
            return Finding::nobody(truth);
        }
        Finding::new(truth, Reason::RecordOk, Reason::RecordUnauthorized)
    }

    pub(crate) fn met(&self, input: &Input<'_>) -> String {
        match (input.records.record(&self.record_type), &self.question) {
            (None, _) => "no record".to_owned(),
            (Some(_), Question::Exists(_)) => "a record".to_owned(),
            (Some(record), Question::Field { path, .. }) => match find(record, path) {
                Some(value) => text::show(value),
                None => "a record without that field".to_owned(),
            },
        }
    }
}

/// A member by its name, else by its path.
fn find<'v>(record: &'v Value, path: &str) -> Option<&'v Value> {
    record.get(path).or_else(|| {
        path.split(['.', '/'])
            .try_fold(record, |value, name| value.as_object()?.get(name))
    })
}

fn all(tests: &[FieldTest], value: Option<&Value>) -> Truth {
    let mut together = Truth::True;
    for test in tests {
        match test.truth(value) {
            Truth::False => return Truth::False,
            Truth::FalseByAbsence => together = Truth::FalseByAbsence,
            Truth::TrueByAbsence if together == Truth::True => together = Truth::TrueByAbsence,
            Truth::TrueByAbsence | Truth::True => {}
        }
    }
    together
}

impl FieldTest {
    fn compile(name: &str, data: &Value, place: &Place, report: &mut Report) -> Option<Self> {
        if let Some(comparison) = Comparison::ALL
            .into_iter()
            .find(|known| known.as_str() == name)
        {
            let Some(number) = data.as_number().and_then(Number::as_f64) else {
                report.error(place, format!("expected a number, this is {}", kind(data)));
                return None;
            };
            return Some(Self::Number(comparison, number));
        }
        if StringMatcher::NAMES.contains(&name) {
            return StringTest::compile(name, data, Case::Sensitive, place, report).map(Self::Text);
        }
        if ListMatcher::NAMES.contains(&name) {
            return ListTest::compile(name, data, place, report).map(Self::List);
        }
        report.push_unknown(place, "record test", name, known());
        None
    }

    /// A single value counts as a list of one.
    fn truth(&self, value: Option<&Value>) -> Truth {
        let Some(value) = value.filter(|value| !value.is_null()) else {
            return by_absence(self.is_negative());
        };
        let items = match value {
            Value::Array(items) => items.as_slice(),
            one => std::slice::from_ref(one),
        };
        match self {
            Self::List(test) => test.holds(items, text::equals).into(),
            Self::Text(test) => match items {
                [only] => match text::exact_text(only) {
                    Some(text) => test.holds(&text, Case::Sensitive).into(),
                    None => by_absence(test.is_negative()),
                },
                _ => by_absence(test.is_negative()),
            },
            Self::Number(comparison, right) => match items {
                [Value::Number(left)] => left
                    .as_f64()
                    .is_some_and(|left| comparison.holds(left, *right))
                    .into(),
                _ => Truth::FalseByAbsence,
            },
        }
    }

    const fn is_negative(&self) -> bool {
        match self {
            Self::Text(test) => test.is_negative(),
            Self::List(test) => test.is_negative(),
            Self::Number(..) => false,
        }
    }
}

impl fmt::Display for RecordCriterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record_type = quote(&self.record_type);
        match &self.question {
            Question::Exists(true) => write!(f, "there is a record {record_type}"),
            Question::Exists(false) => write!(f, "there is no record {record_type}"),
            Question::Field { path, tests } => {
                write!(f, "record {record_type}, field `{path}` ")?;
                for (index, test) in tests.iter().enumerate() {
                    if index > 0 {
                        f.write_str(" and ")?;
                    }
                    match test {
                        FieldTest::Text(test) => write!(f, "{test}")?,
                        FieldTest::List(test) => write!(f, "{test}")?,
                        FieldTest::Number(comparison, number) => {
                            write!(f, "{} {number}", comparison.as_str())?;
                        }
                    }
                }
                Ok(())
            }
        }
    }
}
