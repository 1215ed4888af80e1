//! The pages that people see here.

use askama::Template;
use http::StatusCode;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use postern_common::web::page::Forms;

use crate::call::{Answer, Call, with_cookies};
use crate::session::{self, Found};
use crate::sign_in;
use crate::sign_out::FORM_TOKEN;
use crate::snapshot::path;

/// Who is signed in here, and the way out.
#[derive(Template)]
#[template(path = "account.html")]
pub(crate) struct AccountPage<'a> {
    pub name: &'a str,
    pub email: &'a str,
    pub user_id: &'a str,
    pub session_id: &'a str,
    pub ends: Option<String>,
    pub groups: &'a [String],
    pub action: &'a str,
    pub token_name: &'a str,
    pub token: &'a str,
}

/// Asks whether to sign out.
#[derive(Template)]
#[template(path = "sign_out.html")]
pub(crate) struct SignOutPage<'a> {
    pub action: &'a str,
    pub token_name: &'a str,
    pub token: &'a str,
    pub user: &'a str,
}

#[derive(Template)]
#[template(path = "signed_out.html")]
pub(crate) struct SignedOutPage;

/// `GET /.pomerium/`. Without a session: to the provider, and back here.
pub(crate) async fn account(call: &Call) -> Answer {
    let current = match session::find(call).await? {
        Found::Alive(current) => current,
        Found::None { clear } => {
            let provider = sign_in::provider(call, None)?;
            let url = call.snapshot.url("/.pomerium/", None);
            let response = sign_in::begin(call, &*provider, url).await?;
            return Ok(with_cookies(response, clear));
        }
    };
    let (csrf, mut cookies) = sign_in::csrf_token(call);
    cookies.extend(sign_in::csrf_cookie(call, &csrf));
    let token = call
        .snapshot
        .cookie_keys()
        .first()
        .map(|key| csrf.form_value(key));
    let record = &current.record;
    let claim = |name: &str| texts(record.claims.get(name));
    let (name, email) = (claim("name").join(", "), claim("email").join(", "));
    let page = AccountPage {
        name: &name,
        email: &email,
        user_id: &record.user_id,
        session_id: &record.id,
        ends: session::time(record.expires_at.as_ref()).map(readable),
        groups: &claim("groups"),
        action: path::SIGN_OUT,
        token_name: FORM_TOKEN,
        token: token.as_deref().unwrap_or_default(),
    };
    Ok(with_cookies(
        call.page("You are signed in", Forms::Some, &page),
        cookies,
    ))
}

/// Everything that is not in the table.
pub(crate) fn not_found(call: &Call) -> Answer {
    Err(call.refuse(
        StatusCode::NOT_FOUND,
        "There is no such page here.",
        &"no such path",
    ))
}

pub(crate) fn method_not_allowed(call: &Call) -> Answer {
    Err(call.refuse(
        StatusCode::METHOD_NOT_ALLOWED,
        "This page cannot be asked for in this way.",
        &"the path has no such method",
    ))
}

/// Members of a claim that are text.
fn texts(claim: Option<&prost_types::ListValue>) -> Vec<String> {
    let values = claim.map(|list| list.values.as_slice()).unwrap_or_default();
    values
        .iter()
        .filter_map(|value| match &value.kind {
            Some(prost_types::value::Kind::StringValue(text)) => Some(text.clone()),
            _ => None,
        })
        .collect()
}

fn readable(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC)
        .strftime("%-d %B %Y, %H:%M UTC")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: &str = "<script>alert(1)</script>\"'>";

    /// Every page from sample data, hostile where others choose the text.
    fn all() -> Vec<(&'static str, String)> {
        let groups = [EVIL.to_owned(), "eng".to_owned()];
        let account = AccountPage {
            name: EVIL,
            email: "ann@corp.test",
            user_id: EVIL,
            session_id: "0195a000-a000-7000-8000-00000000a01a",
            ends: Some(readable(Timestamp::UNIX_EPOCH)),
            groups: &groups,
            action: path::SIGN_OUT,
            token_name: FORM_TOKEN,
            token: "token-of-the-form",
        };
        let sign_out = SignOutPage {
            action: "/.pomerium/sign_out?pomerium_redirect_uri=x\"><script>",
            token_name: FORM_TOKEN,
            token: "token-of-the-form",
            user: EVIL,
        };
        vec![
            ("account", account.render().unwrap()),
            ("sign out", sign_out.render().unwrap()),
            ("signed out", SignedOutPage.render().unwrap()),
        ]
    }

    #[test]
    fn s45_every_page_escapes_what_others_wrote() {
        for (name, page) in all() {
            assert!(!page.contains("<script"), "{name}: {page}");
            assert!(
                !page.contains(" style="),
                "{name}: the policy forbids inline styles"
            );
            assert!(
                !page.contains(" onclick"),
                "{name}: the policy forbids inline scripts"
            );
        }
    }

    #[test]
    fn s44_every_form_posts_its_token() {
        for (name, page) in all() {
            let forms = page.matches("<form").count();
            assert_eq!(page.matches("method=\"post\"").count(), forms, "{name}");
            assert_eq!(
                page.matches("value=\"token-of-the-form\"").count(),
                forms,
                "{name}"
            );
        }
    }

    #[test]
    fn times_are_readable() {
        assert_eq!(readable(Timestamp::UNIX_EPOCH), "1 January 1970, 00:00 UTC");
    }
}
