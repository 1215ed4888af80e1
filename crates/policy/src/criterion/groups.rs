//! `groups`: ids of the directory's groups, else the claim `groups`.

use std::borrow::Cow;

use serde_json::Value;

use crate::criterion::person::NOBODY;
use crate::input::{Input, Session};
use crate::matcher::list::ListMatcher;
use crate::reason::Reason;
use crate::text;
use crate::truth::Finding;

const CLAIM: &str = "groups";

/// Groups from one source or the other.
enum Groups<'a> {
    Directory(&'a [String]),
    Claim(Cow<'a, [Value]>),
    /// Nobody knows, which is not the same as being in no group.
    Unknown,
}

impl<'a> Groups<'a> {
    fn find(session: &Session<'a>) -> Self {
        if let Some(groups) = session.groups {
            return Self::Directory(groups);
        }
        let claim = session
            .session_claims
            .get(CLAIM)
            .or_else(|| session.user_claims.get(CLAIM));
        match claim {
            Some(values) => Self::Claim(values),
            None => Self::Unknown,
        }
    }
}

pub(crate) fn evaluate(matcher: &ListMatcher, input: &Input<'_>) -> Finding {
    let Some(session) = &input.session else {
        return Finding::nobody(matcher.of_nothing());
    };
    let truth = match Groups::find(session) {
        Groups::Directory(groups) => matcher.matches(groups, |group, text| group == text).into(),
        Groups::Claim(values) => matcher.matches(&values, text::equals).into(),
        Groups::Unknown => matcher.of_nothing(),
    };
    Finding::new(truth, Reason::GroupsOk, Reason::GroupsUnauthorized)
}

pub(crate) fn met(input: &Input<'_>) -> String {
    let Some(session) = &input.session else {
        return NOBODY.to_owned();
    };
    match Groups::find(session) {
        Groups::Directory(groups) => {
            let groups: Vec<Value> = groups.iter().map(|id| Value::from(id.as_str())).collect();
            format!("{} (from the directory)", text::show_list(&groups))
        }
        Groups::Claim(values) => format!("{} (claim `groups`)", text::show_list(&values)),
        Groups::Unknown => "groups are not known: neither a directory nor a claim".to_owned(),
    }
}
