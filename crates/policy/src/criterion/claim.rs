//! `claim/PATH`: what the identity provider says about the person.

use std::borrow::Cow;
use std::fmt;

use serde_json::Value;

use crate::criterion::person::NOBODY;
use crate::error::{Place, Report};
use crate::input::{Input, Session};
use crate::matcher::list::ListMatcher;
use crate::matcher::operand;
use crate::reason::Reason;
use crate::text;
use crate::truth::Finding;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClaimCriterion {
    name: ClaimName,
    matcher: ListMatcher,
}

/// The name of a claim, and where else it may stand.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClaimName {
    /// As written: the claim itself may be called `https://corp.test/groups`.
    written: Box<str>,
    /// `nested/x` as flattened claims have it, `nested.x`; if that is another name.
    dotted: Option<Box<str>>,
    /// Present when the provider keeps the claim elsewhere (OpenID Connect Core, section 5.6.2).
    kept_elsewhere: Box<str>,
}

/// What is known of a claim.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ClaimValue<'a> {
    /// Its values; none when the person does not have it.
    Values(Cow<'a, [Value]>),
    /// The provider has it, but did not send it.
    Elsewhere,
}

impl ClaimName {
    pub(crate) fn new(name: &str) -> Self {
        let dotted = name.replace('/', ".");
        let first = dotted.split('.').next().unwrap_or_default();
        Self {
            kept_elsewhere: format!("_claim_names.{first}").into(),
            dotted: (dotted != name).then(|| dotted.into()),
            written: name.into(),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.written
    }

    /// Session before user: its claims are the newer ones.
    pub(crate) fn find<'a>(&self, session: &Session<'a>) -> ClaimValue<'a> {
        let find = |name: &str| {
            session
                .session_claims
                .get(name)
                .or_else(|| session.user_claims.get(name))
        };
        match find(&self.written).or_else(|| self.dotted.as_deref().and_then(find)) {
            Some(values) => ClaimValue::Values(values),
            None if find(&self.kept_elsewhere).is_some() => ClaimValue::Elsewhere,
            None => ClaimValue::Values(Cow::Borrowed(&[])),
        }
    }
}

pub(crate) fn compile(
    name: Option<&str>,
    data: &Value,
    place: &Place,
    report: &mut Report,
) -> Option<ClaimCriterion> {
    let matcher = ListMatcher::compile(data, place, report);
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        report.error_with_hint(
            place,
            "`claim` needs the name of a claim",
            "write it behind a slash, such as `claim/groups`",
        );
        return None;
    };
    operand::check_claim_name(name, place, report);
    Some(ClaimCriterion::new(name, matcher?))
}

impl ClaimCriterion {
    pub(crate) fn new(name: &str, matcher: ListMatcher) -> Self {
        Self {
            name: ClaimName::new(name),
            matcher,
        }
    }

    pub(crate) fn evaluate(&self, input: &Input<'_>) -> Finding {
        let Some(session) = &input.session else {
            return Finding::nobody(self.matcher.of_nothing());
        };
        let truth = match self.name.find(session) {
            ClaimValue::Values(values) => self.matcher.matches(&values, text::equals).into(),
            ClaimValue::Elsewhere => self.matcher.of_nothing(),
        };
        Finding::new(truth, Reason::ClaimOk, Reason::ClaimUnauthorized)
    }

    pub(crate) fn is_negative(&self) -> bool {
        self.matcher.is_negative()
    }

    pub(crate) fn met(&self, input: &Input<'_>) -> String {
        match input.session {
            None => NOBODY.to_owned(),
            Some(session) => match self.name.find(&session) {
                ClaimValue::Values(values) => match &*values {
                    [] => "no such claim".to_owned(),
                    [one] => text::show(one),
                    values => text::show_list(values),
                },
                ClaimValue::Elsewhere => {
                    "not sent: the provider keeps this claim elsewhere (`_claim_names`)".to_owned()
                }
            },
        }
    }
}

impl fmt::Display for ClaimCriterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "claim `{}` {}", self.name.as_str(), self.matcher)
    }
}
