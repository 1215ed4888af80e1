//! The user's own page, and what their assertion says about them as JSON or as it is.

mod records;

use std::rc::Rc;
use std::sync::Arc;

use askama::Template;
use base64::Engine as _;
use http::{HeaderMap, Response, StatusCode};
use postern_common::authz::{Allow, SessionSummary};
use postern_common::web::page::{self, Forms};
use serde_json::{Map, Value};

use self::records::Records;
use super::{nothing, sign_out, with_type};
use crate::body::Body;
use crate::core::Core;
use crate::permit;
use crate::refuse::Stop;
use crate::request::Request;
use crate::snapshot::Snapshot;

const ASSERTION: &str = "x-pomerium-jwt-assertion";

/// Claims that are about the assertion, not about the person.
const ABOUT_THE_TOKEN: [&str; 5] = ["iss", "aud", "exp", "iat", "jti"];

#[derive(Template)]
#[template(path = "user.html")]
struct Page<'a> {
    person: Option<&'a Person>,
    /// Proves to sign-out that the form came from this page.
    /// `None` where the session is not the cookie's: there is nothing to sign out of here.
    token: Option<&'a str>,
    routes: bool,
}

/// What the page shows.
#[derive(Debug, Default)]
struct Person {
    email: String,
    user_id: String,
    session_id: String,
    groups: Vec<String>,
    records: Records,
    /// Why there is less here than there could be.
    note: Option<&'static str>,
}

/// `/.pomerium/`
pub(super) async fn page(
    core: &Rc<Core>,
    snapshot: &Arc<Snapshot>,
    request: &Request,
    headers: &HeaderMap,
) -> Result<Response<Body>, Stop> {
    let allow = permit::identify(core, request, headers).await?;
    let person = match &allow.session {
        None => None,
        Some(session) => Some(person(core, &allow, session).await),
    };
    let (title, forms) = match &person {
        Some(_) => ("Your account", Forms::Some),
        None => ("Not signed in", Forms::None),
    };
    let token = sign_out::form_token(snapshot, headers)?;
    let content = Page {
        person: person.as_ref(),
        token: token.as_deref(),
        routes: snapshot.config.flags.routes_portal,
    };
    let page = page::respond(&snapshot.look, StatusCode::OK, title, forms, &content);
    Ok(page.map(Body::full))
}

async fn person(core: &Rc<Core>, allow: &Allow, session: &SessionSummary) -> Person {
    let mut person = Person {
        email: session.email.clone(),
        user_id: session.user_id.clone(),
        session_id: session.session_id.clone(),
        ..Person::default()
    };
    if let Some(claims) = assertion(allow).and_then(payload) {
        let groups = claims
            .get("groups")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        person.groups = groups
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        if let Some(name) = claims.get("name").and_then(Value::as_str) {
            name.clone_into(&mut person.records.name);
        }
    }
    match records::read(core, session).await {
        Ok(mut records) => {
            if records.name.is_empty() {
                records.name = std::mem::take(&mut person.records.name);
            }
            person.records = records;
        }
        Err(error) => {
            let reason = postern_common::telemetry::log::chain(&error);
            tracing::warn!(
                reason,
                "the user's page is shown without the databroker's data"
            );
            person.note = Some("More about you cannot be read just now.");
        }
    }
    person
}

/// `/.pomerium/user`
pub(super) async fn json(
    core: &Rc<Core>,
    request: &Request,
    headers: &HeaderMap,
) -> Result<Response<Body>, Stop> {
    let allow = permit::identify(core, request, headers).await?;
    let mut claims = assertion(&allow).and_then(payload).ok_or_else(nothing)?;
    let subject = claims
        .get("sub")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if subject.is_empty() {
        return Err(nothing());
    }
    for name in ABOUT_THE_TOKEN {
        claims.remove(name);
    }
    let body = Value::Object(claims).to_string();
    Ok(with_type(StatusCode::OK, "application/json", body))
}

/// `/.pomerium/jwt`
pub(super) async fn jwt(
    core: &Rc<Core>,
    snapshot: &Snapshot,
    request: &Request,
    headers: &HeaderMap,
) -> Result<Response<Body>, Stop> {
    if !snapshot.config.flags.pomerium_jwt_endpoint {
        return Err(nothing());
    }
    let allow = permit::identify(core, request, headers).await?;
    let assertion = assertion(&allow).ok_or_else(nothing)?.to_owned();
    Ok(with_type(StatusCode::OK, "application/jwt", assertion))
}

fn assertion(allow: &Allow) -> Option<&str> {
    let set = allow
        .set_headers
        .iter()
        .find(|(name, _)| name.as_str() == ASSERTION);
    set.and_then(|(_, value)| value.to_str().ok())
        .filter(|text| !text.is_empty())
}

/// It was signed by our own authorize a moment ago, so it is only read.
fn payload(jwt: &str) -> Option<Map<String, Value>> {
    let payload = jwt.split('.').nth(1)?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(payload)
        .ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assertion_is_read() {
        let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(r#"{"sub":"u"}"#);
        assert_eq!(payload(&format!("h.{text}.s")).unwrap()["sub"], "u");
        assert_eq!(payload("nonsense"), None);
    }

    #[test]
    fn s45_what_the_provider_says_is_escaped() {
        let person = Person {
            email: "<script>alert(1)</script>".to_owned(),
            records: Records {
                claims: vec![("\"><img".to_owned(), "a&b".to_owned())],
                ..Records::default()
            },
            ..Person::default()
        };
        let page = Page {
            person: Some(&person),
            token: Some("t"),
            routes: true,
        };
        let html = page.render().unwrap();
        assert!(
            !html.contains("<script") && !html.contains("<img"),
            "{html}"
        );
    }
}
