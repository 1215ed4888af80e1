//! The string matcher: tests on one text.

use std::cmp::Ordering;
use std::fmt;

use serde_json::Value;

use crate::error::{Place, Report};
use crate::matcher::operand;
use crate::text::{quote, some_of};
use crate::truth::Truth;

/// Whether `Corp.Test` equals `corp.test`. Only ASCII letters have two cases here: beyond them,
/// names that differ may fold to the same text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    Sensitive,
    AsciiInsensitive,
}

/// The same for the tests of a matcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cases {
    positive: Case,
    /// `not` and `not_in`.
    negative: Case,
}

impl Cases {
    /// Case counts only where that refuses more: `Ann@corp.test` is not let in for `ann@corp.test`,
    /// and `Eve@other.test` is kept out with `eve@other.test`.
    pub(crate) const fn cautious(closes: bool) -> Self {
        let (positive, negative) = if closes {
            (Case::AsciiInsensitive, Case::Sensitive)
        } else {
            (Case::Sensitive, Case::AsciiInsensitive)
        };
        Self { positive, negative }
    }

    fn of(self, test: &StringTest) -> Case {
        if test.is_negative() {
            self.negative
        } else {
            self.positive
        }
    }
}

impl From<Case> for Cases {
    fn from(case: Case) -> Self {
        Self {
            positive: case,
            negative: case,
        }
    }
}

/// Tests that must all hold of one text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StringMatcher {
    cases: Cases,
    /// Never empty.
    tests: Vec<StringTest>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum StringTest {
    Is(Box<str>),
    Not(Box<str>),
    Contains(Box<str>),
    StartsWith(Box<str>),
    EndsWith(Box<str>),
    In(TextSet),
    NotIn(TextSet),
}

/// Sorted; in lower case where case does not count.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TextSet(Box<[Box<str>]>);

impl StringMatcher {
    pub(crate) const NAMES: [&'static str; 7] = [
        "is",
        "not",
        "contains",
        "starts_with",
        "ends_with",
        "in",
        "not_in",
    ];

    pub(crate) fn compile(
        data: &Value,
        cases: impl Into<Cases>,
        place: &Place,
        report: &mut Report,
    ) -> Option<Self> {
        let cases = cases.into();
        let Value::Object(members) = data else {
            let text = operand::text(data, place, report)?;
            return Some(Self {
                cases,
                tests: vec![StringTest::Is(text)],
            });
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
                let case = if name == "not_in" {
                    cases.negative
                } else {
                    cases.positive
                };
                let test = StringTest::compile(name, data, case, &place, report);
                if test.is_none() && !Self::NAMES.contains(&name.as_str()) {
                    match synonym(name) {
                        Some(known) => report.error_with_hint(
                            &place,
                            format!("`{name}` is no matcher for one text"),
                            format!("use `{known}`"),
                        ),
                        None => report.push_unknown(&place, "matcher", name, Self::NAMES),
                    }
                }
                test
            })
            .collect();
        (tests.len() == members.len()).then_some(Self { cases, tests })
    }

    /// `is`, or `in` where there are several.
    pub(crate) fn one_of(texts: &[String], case: Case) -> Self {
        let test = match texts {
            [only] => StringTest::Is(only.as_str().into()),
            several => StringTest::In(TextSet::new(
                several.iter().map(|text| text.as_str().into()).collect(),
                case,
            )),
        };
        Self {
            cases: case.into(),
            tests: vec![test],
        }
    }

    pub(crate) fn matches(&self, subject: &str) -> bool {
        self.tests
            .iter()
            .all(|test| test.holds(subject, self.cases.of(test)))
    }

    /// Of a subject that may be missing.
    pub(crate) fn truth(&self, subject: Option<&str>) -> Truth {
        match subject {
            Some(subject) => self.matches(subject).into(),
            None => self.of_nothing(),
        }
    }

    /// The value when there is nothing to test.
    pub(crate) fn of_nothing(&self) -> Truth {
        if self.is_negative() {
            Truth::TrueByAbsence
        } else {
            Truth::FalseByAbsence
        }
    }

    /// It only says what the text must not be.
    pub(crate) fn is_negative(&self) -> bool {
        self.tests.iter().all(StringTest::is_negative)
    }

    /// All operands of tests for equality.
    pub(crate) fn equal_to(&self) -> impl Iterator<Item = &str> {
        self.tests.iter().flat_map(|test| {
            let (one, several): (Option<&str>, &[Box<str>]) = match test {
                StringTest::Is(text) | StringTest::Not(text) => (Some(text), &[]),
                StringTest::In(TextSet(texts)) | StringTest::NotIn(TextSet(texts)) => (None, texts),
                _ => (None, &[]),
            };
            one.into_iter().chain(several.iter().map(AsRef::as_ref))
        })
    }
}

impl StringTest {
    /// `None` when the name is unknown, or when the operand is wrong and reported.
    pub(crate) fn compile(
        name: &str,
        data: &Value,
        case: Case,
        place: &Place,
        report: &mut Report,
    ) -> Option<Self> {
        Some(match name {
            "is" => Self::Is(operand::text(data, place, report)?),
            "not" => Self::Not(operand::text(data, place, report)?),
            "contains" => Self::Contains(operand::part(data, place, report)?),
            "starts_with" => Self::StartsWith(operand::part(data, place, report)?),
            "ends_with" => Self::EndsWith(operand::part(data, place, report)?),
            "in" => Self::In(TextSet::new(operand::texts(data, place, report)?, case)),
            "not_in" => Self::NotIn(TextSet::new(operand::texts(data, place, report)?, case)),
            _ => return None,
        })
    }

    pub(crate) fn holds(&self, subject: &str, case: Case) -> bool {
        match self {
            Self::Is(text) => same(subject.as_bytes(), text.as_bytes(), case),
            Self::Not(text) => !same(subject.as_bytes(), text.as_bytes(), case),
            Self::Contains(text) => contains(subject, text, case),
            Self::StartsWith(text) => subject
                .as_bytes()
                .get(..text.len())
                .is_some_and(|start| same(start, text.as_bytes(), case)),
            Self::EndsWith(text) => subject
                .len()
                .checked_sub(text.len())
                .and_then(|start| subject.as_bytes().get(start..))
                .is_some_and(|end| same(end, text.as_bytes(), case)),
            Self::In(texts) => texts.contains(subject, case),
            Self::NotIn(texts) => !texts.contains(subject, case),
        }
    }

    pub(crate) const fn is_negative(&self) -> bool {
        matches!(self, Self::Not(_) | Self::NotIn(_))
    }
}

impl TextSet {
    fn new(mut texts: Vec<Box<str>>, case: Case) -> Self {
        if case == Case::AsciiInsensitive {
            for text in &mut texts {
                text.make_ascii_lowercase();
            }
        }
        texts.sort_unstable();
        texts.dedup();
        Self(texts.into())
    }

    fn contains(&self, subject: &str, case: Case) -> bool {
        let order = |member: &str| -> Ordering {
            match case {
                Case::Sensitive => member.cmp(subject),
                Case::AsciiInsensitive => member
                    .bytes()
                    .cmp(subject.bytes().map(|byte| byte.to_ascii_lowercase())),
            }
        };
        self.0.binary_search_by(|member| order(member)).is_ok()
    }
}

fn same(a: &[u8], b: &[u8], case: Case) -> bool {
    match case {
        Case::Sensitive => a == b,
        Case::AsciiInsensitive => a.eq_ignore_ascii_case(b),
    }
}

fn contains(subject: &str, text: &str, case: Case) -> bool {
    match case {
        Case::Sensitive => subject.contains(text),
        Case::AsciiInsensitive => {
            text.is_empty()
                || subject
                    .as_bytes()
                    .windows(text.len())
                    .any(|window| same(window, text.as_bytes(), case))
        }
    }
}

/// What people write who mean a matcher of ours.
fn synonym(name: &str) -> Option<&'static str> {
    Some(match name {
        "has" | "equals" | "eq" => "is",
        "exclude" => "not_in",
        "prefix" => "starts_with",
        "suffix" => "ends_with",
        _ => return None,
    })
}

impl fmt::Display for StringMatcher {
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

impl fmt::Display for StringTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(text) => write!(f, "is {}", quote(text)),
            Self::Not(text) => write!(f, "is not {}", quote(text)),
            Self::Contains(text) => write!(f, "contains {}", quote(text)),
            Self::StartsWith(text) => write!(f, "starts with {}", quote(text)),
            Self::EndsWith(text) => write!(f, "ends with {}", quote(text)),
            Self::In(texts) => write!(f, "is one of {texts}"),
            Self::NotIn(texts) => write!(f, "is none of {texts}"),
        }
    }
}

impl fmt::Display for TextSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("an empty list");
        }
        f.write_str(&some_of(self.0.iter().map(|text| quote(text))))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matcher(data: &Value) -> StringMatcher {
        let mut report = Report::default();
        let matcher = StringMatcher::compile(data, Case::Sensitive, &Place::root(), &mut report);
        matcher.unwrap_or_else(|| panic!("{data}: {:?}", report.errors))
    }

    fn errors(data: &Value) -> Vec<String> {
        let mut report = Report::default();
        let matcher = StringMatcher::compile(data, Case::Sensitive, &Place::root(), &mut report);
        assert_eq!(matcher.is_none(), !report.errors.is_empty(), "{data}");
        report.errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_test_alone() {
        for (data, yes, no) in [
            (json!("abc"), vec!["abc"], vec!["", "ab", "abcd", "ABC"]),
            (
                json!({"is": "abc"}),
                vec!["abc"],
                vec!["", "ab", "abcd", "ABC"],
            ),
            (json!({"is": ""}), vec![""], vec!["a"]),
            (json!({"not": "abc"}), vec!["", "ab", "ABC"], vec!["abc"]),
            (
                json!({"contains": "b"}),
                vec!["abc", "b"],
                vec!["", "ac", "B"],
            ),
            (
                json!({"starts_with": "ab"}),
                vec!["ab", "abc"],
                vec!["", "a", "cab", "AB"],
            ),
            (
                json!({"ends_with": "bc"}),
                vec!["bc", "abc"],
                vec!["", "c", "bcd", "BC"],
            ),
            (
                json!({"in": ["b", "a", "c"]}),
                vec!["a", "b", "c"],
                vec!["", "d", "ab"],
            ),
            (json!({"in": []}), vec![], vec!["", "a"]),
            (json!({"not_in": ["b", "a"]}), vec!["", "c"], vec!["a", "b"]),
            (json!(42), vec!["42"], vec!["4", "42.0"]),
            (json!({"is": true}), vec!["true"], vec!["True", "1"]),
            (
                json!({"in": [1, false]}),
                vec!["1", "false"],
                vec!["0", "true"],
            ),
        ] {
            let matcher = matcher(&data);
            for subject in yes {
                assert!(matcher.matches(subject), "{data} {subject:?}");
            }
            for subject in no {
                assert!(!matcher.matches(subject), "{data} {subject:?}");
            }
        }
    }

    #[test]
    fn all_tests_must_hold() {
        let matcher = matcher(&json!({"starts_with": "a", "ends_with": "z", "not": "abz"}));
        assert!(matcher.matches("az") && matcher.matches("a-z"));
        assert!(!matcher.matches("abz") && !matcher.matches("a") && !matcher.matches("z"));
    }

    #[test]
    fn multi_byte_text_is_never_cut_in_the_middle() {
        assert!(!matcher(&json!({"starts_with": "ä"})).matches("ö"));
        assert!(matcher(&json!({"starts_with": "ä"})).matches("äö"));
        assert!(matcher(&json!({"ends_with": "ö"})).matches("äö"));
        assert!(!matcher(&json!({"ends_with": "aö"})).matches("ö"));
    }

    #[test]
    fn without_case_only_ascii_letters_fold() {
        let mut report = Report::default();
        let compile = |data: Value, report: &mut Report| {
            StringMatcher::compile(&data, Case::AsciiInsensitive, &Place::root(), report).unwrap()
        };
        for data in [
            json!("Corp.Test"),
            json!({"in": ["x", "CORP.test"]}),
            json!({"starts_with": "CORP"}),
            json!({"ends_with": "TEST"}),
            json!({"contains": "P.T"}),
        ] {
            assert!(
                compile(data.clone(), &mut report).matches("cOrp.tEst"),
                "{data}"
            );
        }
        assert!(!compile(json!({"not": "A"}), &mut report).matches("a"));
        assert!(!compile(json!({"not_in": ["A", "B"]}), &mut report).matches("b"));
        // U+212A KELVIN SIGN folds to `k` in Unicode.
        assert!(!compile(json!("bank.test"), &mut report).matches("ban\u{212a}.test"));
    }

    #[test]
    fn nothing_to_test_is_neither_true_nor_false_outright() {
        assert_eq!(matcher(&json!("a")).truth(None), Truth::FalseByAbsence);
        assert_eq!(
            matcher(&json!({"not": "a"})).truth(None),
            Truth::TrueByAbsence
        );
        assert_eq!(
            matcher(&json!({"not_in": []})).truth(None),
            Truth::TrueByAbsence
        );
        assert_eq!(
            matcher(&json!({"not": "a", "starts_with": "b"})).truth(None),
            Truth::FalseByAbsence
        );
    }

    #[test]
    fn s34_unknown_matchers_and_operands_are_errors() {
        for (data, error) in [
            (
                json!({"has": "a"}),
                "/has: `has` is no matcher for one text (use `is`)",
            ),
            (
                json!({"start_with": "a"}),
                "/start_with: unknown matcher `start_with` (did you mean `starts_with`?)",
            ),
            (
                json!({"is": null}),
                "/is: expected text, a number or a boolean, this is empty",
            ),
            (
                json!({"is": {"is": "a"}}),
                "/is: expected text, a number or a boolean, this is an object",
            ),
            (
                json!({"in": "a"}),
                "/in: expected a list of values, this is text (write it in brackets)",
            ),
            (
                json!({"in": ["a", null]}),
                "/in/1: expected text, a number or a boolean, this is empty",
            ),
            (
                json!({"contains": ""}),
                "/contains: the text is empty, so everything would match",
            ),
            (
                json!(null),
                "expected text, a number or a boolean, this is empty",
            ),
            (
                json!({"is": 1e300}),
                "/is: the number is too large to be exact (write it in quotes)",
            ),
        ] {
            assert_eq!(errors(&data), [error]);
        }
        assert_eq!(errors(&json!({})).len(), 1);
        assert!(errors(&json!(["a"]))[0].contains("this is a list"));
        assert_eq!(errors(&json!({"x": 1, "y": 2, "is": "a"})).len(), 2);
    }

    #[test]
    fn reads_in_words() {
        let matcher = matcher(&json!({"starts_with": "a", "not_in": ["b", "a\""]}));
        let words = matcher.to_string();
        assert!(words.contains(r#"is none of "a\"", "b""#) && words.contains(r#"starts with "a""#));
    }
}
