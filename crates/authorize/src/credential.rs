//! Finds the credential of a request and verifies it. Whether its session lives is another
//! question, which the databroker's records answer.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};
use postern_common::authz::CheckRequest;
use postern_common::config::BearerTokenFormat;
use postern_common::crypto::handle::{Handle, Place};
use postern_common::web::cookie;
use postern_common::web::credentials::SESSION_PARAMETER;

use crate::handles::Handles;

/// Header of programs that need `Authorization` for the upstream.
pub const HANDLE_HEADER: HeaderName = HeaderName::from_static("x-pomerium-authorization");

/// What is known beforehand about how requests to this route identify themselves.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    pub handles: &'a Handles,
    pub cookie_name: &'a str,
    pub cookie_domain: Option<&'a str>,
    /// Ids of the providers whose sessions count; a handle that names none counts everywhere.
    pub provider_ids: &'a [&'a str],
    pub bearer: BearerTokenFormat,
}

/// The credential of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// None, or none that counts.
    None(NoCredential),
    /// A verified handle. Its session may have ended.
    Handle { handle: Arc<Handle>, place: Place },
    /// A token of the route's bearer format, not yet verified.
    Bearer(Bearer),
    /// A cookie and a bearer token at once, where only one may be.
    CookieAndBearer,
}

/// Why nobody is behind a request; for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoCredential {
    NotSent,
    /// Not a handle of ours, or not valid where it was found.
    Refused,
    /// Two cookies with different sessions: one of them was planted.
    TwoSessions,
    /// Made for a route that signs in elsewhere.
    OtherProvider,
}

/// `Authorization: Bearer` on a route with `bearer_token_format`.
#[derive(Clone, PartialEq, Eq)]
pub struct Bearer {
    pub format: BearerTokenFormat,
    pub token: String,
}

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bearer({:?}, …)", self.format)
    }
}

/// The order is Pomerium's: bearer tokens where the route reads them, the cookie, headers, the
/// query. A cookie that is there but does not count ends the search.
pub fn find(request: &CheckRequest, expected: &Expected<'_>) -> Credential {
    let cookies: Vec<&str> = cookie::values(&request.headers, expected.cookie_name)
        .filter(|value| !value.is_empty())
        .collect();
    if let Some(token) = bearer(&request.headers)
        && expected.bearer != BearerTokenFormat::Default
    {
        if expected.bearer == BearerTokenFormat::Jwt && !cookies.is_empty() {
            return Credential::CookieAndBearer;
        }
        return Credential::Bearer(Bearer {
            format: expected.bearer,
            token: token.to_owned(),
        });
    }
    let found = if !cookies.is_empty() {
        from_cookies(&cookies, &request.host, expected)
    } else if let Some(token) = header_token(&request.headers) {
        verify(token, Place::Header, &request.host, expected).ok_or(NoCredential::Refused)
    } else if let Some(token) = query_token(request.query.as_deref()) {
        verify(&token, Place::Query, &request.host, expected).ok_or(NoCredential::Refused)
    } else {
        Err(NoCredential::NotSent)
    };
    match found {
        Err(none) => Credential::None(none),
        Ok((handle, _)) if !is_of_provider(&handle, expected.provider_ids) => {
            Credential::None(NoCredential::OtherProvider)
        }
        Ok((handle, place)) => Credential::Handle { handle, place },
    }
}

/// Whether the request carries a handle in a header or in the query, valid or not: then it is a
/// program's, and sending it to a sign-in page helps nobody.
pub fn is_program(request: &CheckRequest) -> bool {
    header_token(&request.headers).is_some() || query_token(request.query.as_deref()).is_some()
}

fn is_of_provider(handle: &Handle, provider_ids: &[&str]) -> bool {
    handle.idp_id.is_empty() || provider_ids.contains(&handle.idp_id.as_str())
}

/// Of several cookies of the name, those that count must agree: whoever can set a cookie on a
/// parent domain must not choose whom somebody is signed in as.
fn from_cookies(
    cookies: &[&str],
    host: &str,
    expected: &Expected<'_>,
) -> Result<(Arc<Handle>, Place), NoCredential> {
    let mut valid = cookies
        .iter()
        .filter_map(|token| verify(token, Place::Cookie, host, expected));
    let (first, place) = valid.next().ok_or(NoCredential::Refused)?;
    if valid.any(|(other, _)| other.id != first.id) {
        return Err(NoCredential::TwoSessions);
    }
    Ok((first, place))
}

fn verify(
    token: &str,
    place: Place,
    host: &str,
    expected: &Expected<'_>,
) -> Option<(Arc<Handle>, Place)> {
    let handle = expected.handles.verify(token)?;
    handle
        .acceptable(place, host, expected.cookie_domain)
        .ok()?;
    Some((handle, place))
}

/// The first non-empty of the three header forms. Their prefixes are case-sensitive, as clients
/// write them.
fn header_token(headers: &HeaderMap) -> Option<&str> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let authorization = text(AUTHORIZATION);
    [
        text(HANDLE_HEADER),
        authorization.and_then(|value| value.strip_prefix("Pomerium ")),
        authorization.and_then(|value| value.strip_prefix("Bearer Pomerium-")),
    ]
    .into_iter()
    .flatten()
    .map(str::trim)
    .find(|token| !token.is_empty())
}

fn query_token(query: Option<&str>) -> Option<String> {
    url::form_urlencoded::parse(query?.as_bytes())
        .find(|(name, value)| name == SESSION_PARAMETER && !value.is_empty())
        .map(|(_, value)| value.into_owned())
}

/// A bearer token that is not one of our handles. The scheme is read in any case (RFC 7235).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    let is_token = scheme.eq_ignore_ascii_case("bearer")
        && !token.is_empty()
        && !token.starts_with("Pomerium-");
    is_token.then_some(token)
}

#[cfg(test)]
mod tests;
