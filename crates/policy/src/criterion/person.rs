//! `authenticated_user`, `user`, `email`, `domain`: who is signed in.

use crate::criterion::email_address;
use crate::input::{Input, Session};
use crate::matcher::string::StringMatcher;
use crate::reason::Reason;
use crate::text::quote;
use crate::truth::{Finding, Truth};

/// Somebody is signed in.
pub(crate) fn authenticated(input: &Input<'_>) -> Finding {
    match input.session {
        Some(session) => Finding::new(
            !session.user_id.is_empty(),
            Reason::UserOk,
            Reason::UserUnauthorized,
        ),
        None => Finding::nobody(Truth::FalseByAbsence),
    }
}

/// The user's id.
pub(crate) fn user(matcher: &StringMatcher, input: &Input<'_>) -> Finding {
    text(
        matcher,
        input,
        |session| Some(session.user_id).filter(|id| !id.is_empty()),
        (Reason::UserOk, Reason::UserUnauthorized),
    )
}

/// The e-mail address, as it is written.
pub(crate) fn email(matcher: &StringMatcher, input: &Input<'_>) -> Finding {
    text(
        matcher,
        input,
        Session::email,
        (Reason::EmailOk, Reason::EmailUnauthorized),
    )
}

/// The domain of the e-mail address.
pub(crate) fn domain(matcher: &StringMatcher, input: &Input<'_>) -> Finding {
    text(
        matcher,
        input,
        |session| session.email().and_then(email_address::domain),
        (Reason::DomainOk, Reason::DomainUnauthorized),
    )
}

fn text<'a>(
    matcher: &StringMatcher,
    input: &Input<'a>,
    subject: impl FnOnce(Session<'a>) -> Option<&'a str>,
    (ok, otherwise): (Reason, Reason),
) -> Finding {
    match input.session {
        Some(session) => Finding::new(matcher.truth(subject(session)), ok, otherwise),
        None => Finding::nobody(matcher.of_nothing()),
    }
}

impl<'a> Session<'a> {
    /// The address, unless there is none.
    fn email(self) -> Option<&'a str> {
        self.email.filter(|email| !email.is_empty())
    }
}

pub(crate) const NOBODY: &str = "nobody is signed in";

pub(crate) fn met_user(input: &Input<'_>) -> String {
    match input.session {
        Some(session) => format!("user id {}", quote(session.user_id)),
        None => NOBODY.to_owned(),
    }
}

pub(crate) fn met_email(input: &Input<'_>) -> String {
    match input.session {
        Some(session) => match session.email() {
            Some(email) => quote(email),
            None => "no e-mail address".to_owned(),
        },
        None => NOBODY.to_owned(),
    }
}

pub(crate) fn met_domain(input: &Input<'_>) -> String {
    match input.session.and_then(Session::email) {
        Some(email) => match email_address::domain(email) {
            Some(domain) => quote(domain),
            None => format!("{}, which has no clear domain", quote(email)),
        },
        None => met_email(input),
    }
}
