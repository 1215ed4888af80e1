//! `/.pomerium/sign_out` on a route's host: a person who means it is sent to authenticate by a
//! signed link that names their session, and loses the cookie here. Anybody else gets a page that
//! asks, so no other site can sign people out. Who has no session here is sent to authenticate's
//! own page, unsigned: what is left to end is there, and it asks as well.

use askama::Template;
use base64::Engine as _;
use http::header::{CONTENT_TYPE, ORIGIN, SET_COOKIE};
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use postern_common::crypto;
use postern_common::crypto::handle::Handle;
use postern_common::crypto::keys::SecretKey;
use postern_common::crypto::signed_url::{self, param};
use postern_common::web::cookie::{self, Scope, Single};
use postern_common::web::page::{self, Forms};

use super::{bad, redirect};
use crate::body::Body;
use crate::limits;
use crate::refuse::Stop;
use crate::request::Request;
use crate::sign_in_loop;
use crate::snapshot::Snapshot;

/// The form's field that proves where it came from.
const TOKEN: &str = "token";

#[derive(Template)]
#[template(path = "sign_out.html")]
struct Page<'a> {
    token: &'a str,
    redirect_uri: Option<&'a str>,
}

pub(super) async fn answer(
    snapshot: &Snapshot,
    request: &Request,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Response<Body>, Stop> {
    let query = request.target.query().unwrap_or_default();
    let mut wanted = value(query, param::REDIRECT_URI);
    let Some(session) = session(snapshot, headers) else {
        let target = target(snapshot, wanted.as_deref());
        let elsewhere = at_authenticate(snapshot, None, target.as_deref());
        return redirect(StatusCode::FOUND, elsewhere.as_str());
    };
    let right = token(snapshot, headers)?;
    let mut meant = false;
    if request.method == Method::POST {
        let form = form(headers, body).await?;
        wanted = value(&form, param::REDIRECT_URI).or(wanted);
        let shown = value(&form, TOKEN).unwrap_or_default();
        meant = crypto::equal(shown.as_bytes(), right.as_bytes())
            && is_not_from_elsewhere(headers, request.target.authority.text());
    }
    let target = target(snapshot, wanted.as_deref());
    if !meant {
        let content = Page {
            token: &right,
            redirect_uri: wanted.as_deref().filter(|_| target.is_some()),
        };
        let page = page::respond(
            &snapshot.look,
            StatusCode::OK,
            "Sign out?",
            Forms::Some,
            &content,
        );
        return Ok(page.map(Body::full));
    }
    let config = &snapshot.config;
    let now = Timestamp::now();
    let url = at_authenticate(snapshot, Some(&session), target.as_deref());
    let signed = signed_url::sign(snapshot.shared_secret()?, &url, now);
    let mut response = redirect(StatusCode::FOUND, signed.as_str())?;
    let host = request.target.authority.name();
    let counted = sign_in_loop::forget(&config.cookie.name, now);
    for cleared in clear_cookies(snapshot, host, now)
        .into_iter()
        .chain(counted)
    {
        response.headers_mut().append(SET_COOKIE, cleared);
    }
    Ok(response)
}

/// Authenticate's side of it, not signed yet. Only a link that names a session may be.
fn at_authenticate(
    snapshot: &Snapshot,
    session: Option<&Handle>,
    target: Option<&str>,
) -> url::Url {
    let mut url = snapshot.config.urls.authenticate.clone();
    url.set_path("/.pomerium/sign_out");
    url.set_query(None);
    if let Some(session) = session {
        url.query_pairs_mut()
            .append_pair(param::SESSION_ID, &session.id)
            .append_pair(param::IDP_ID, &session.idp_id);
    }
    if let Some(target) = target {
        url.query_pairs_mut()
            .append_pair(param::REDIRECT_URI, target);
    }
    url
}

/// Removes the session cookie, wherever it may have been planted.
pub(crate) fn clear_cookies(
    snapshot: &Snapshot,
    host: &str,
    now: Timestamp,
) -> Vec<http::HeaderValue> {
    let options = &snapshot.config.cookie;
    let scope = Scope {
        domain: options.domain.as_deref(),
        ..Scope::HOST
    };
    let mut cleared = cookie::clear_everywhere(&options.name, host, now);
    cleared.extend(
        options
            .domain
            .as_ref()
            .and_then(|_| cookie::clear(&options.name, scope, now)),
    );
    cleared
}

/// Where to go at the end: what was asked for if a flag allows it, else what is configured.
fn target(snapshot: &Snapshot, wanted: Option<&str>) -> Option<String> {
    let config = &snapshot.config;
    let own = wanted.and_then(|wanted| snapshot.redirect_targets.browser(wanted).ok());
    let any = wanted
        .filter(|_| config.flags.allow_any_sign_out_redirect_uri)
        .and_then(|wanted| url::Url::parse(wanted).ok())
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    own.map(|target| target.location)
        .or_else(|| any.map(String::from))
        .or_else(|| {
            config
                .signout_redirect_url
                .as_ref()
                .map(ToString::to_string)
        })
}

fn session(snapshot: &Snapshot, headers: &HeaderMap) -> Option<Handle> {
    let config = &snapshot.config;
    let values = cookie::values(headers, &config.cookie.name);
    match cookie::single(values, |value| {
        Handle::decode(&config.secrets.shared, value)
    }) {
        Single::One(handle) => Some(handle),
        Single::Absent | Single::Bad(_) | Single::Conflict => None,
    }
}

/// Known only to whoever can read a page of this host in this browser: keyed, over the session
/// cookie that another site cannot see. Without a session it would be the same for everybody.
pub(crate) fn form_token(snapshot: &Snapshot, headers: &HeaderMap) -> Result<Option<String>, Stop> {
    match session(snapshot, headers) {
        Some(_) => token(snapshot, headers).map(Some),
        None => Ok(None),
    }
}

fn token(snapshot: &Snapshot, headers: &HeaderMap) -> Result<String, Stop> {
    let key = snapshot.shared_secret()?;
    let cookies: Vec<_> = cookie::values(headers, &snapshot.config.cookie.name).collect();
    Ok(token_of(key, &cookies.join(";")))
}

fn token_of(key: &SecretKey, cookies: &str) -> String {
    let derived = key.derive("postern/sign-out");
    let bytes = derived.derive(&format!("form\n{cookies}"));
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes.as_bytes())
}

/// Whether the browser does not say that a page of another origin sent the form. Those that say
/// nothing at all are old, or programs: there the token has to do.
fn is_not_from_elsewhere(headers: &HeaderMap, host: &str) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        return site == "same-origin";
    }
    let Some(origin) = headers.get(ORIGIN) else {
        return true;
    };
    let origin = origin.to_str().unwrap_or_default();
    origin
        .strip_prefix("https://")
        .is_some_and(|origin| origin.eq_ignore_ascii_case(host))
}

async fn form(headers: &HeaderMap, body: Incoming) -> Result<String, Stop> {
    let is_form = headers.get(CONTENT_TYPE).is_some_and(|value| {
        let value = value.as_bytes().to_ascii_lowercase();
        value.starts_with(b"application/x-www-form-urlencoded")
    });
    if !is_form {
        return Ok(String::new());
    }
    let reading = Limited::new(body, limits::FORM_BYTES).collect();
    let bytes = tokio::time::timeout(limits::FORM_TIME, reading)
        .await
        .map_err(|_| bad("The form did not arrive in time."))?
        .map_err(|error| bad("The form cannot be read.").because(error.to_string()))?
        .to_bytes();
    String::from_utf8(bytes.into()).map_err(|_| bad("The form cannot be read."))
}

fn value(form: &str, name: &str) -> Option<String> {
    url::form_urlencoded::parse(form.as_bytes())
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.into_owned())
        .filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap()))
            .collect()
    }

    #[test]
    fn s44_who_sent_the_form() {
        let same = |pairs: &[(&'static str, &'static str)]| {
            is_not_from_elsewhere(&headers(pairs), "a.test")
        };
        assert!(same(&[("sec-fetch-site", "same-origin")]));
        assert!(same(&[("origin", "https://a.test")]));
        assert!(same(&[]), "the token decides");
        assert!(!same(&[("sec-fetch-site", "same-site")]));
        assert!(!same(&[
            ("sec-fetch-site", "cross-site"),
            ("origin", "https://a.test")
        ]));
        assert!(!same(&[("origin", "https://evil.test")]));
        assert!(!same(&[("origin", "null")]));
        assert!(!same(&[("origin", "http://a.test")]));
    }

    #[test]
    fn s44_tokens_belong_to_a_session_and_a_secret() {
        let (key, other) = (SecretKey::random(), SecretKey::random());
        assert_eq!(token_of(&key, "a"), token_of(&key, "a"));
        assert_ne!(token_of(&key, "a"), token_of(&key, "b"));
        assert_ne!(token_of(&key, "a"), token_of(&other, "a"));
    }
}
