//! `/.pomerium/begin`: a sign-in that is for this host too passes by, before it goes to
//! authenticate, and is bound to this browser by a cookie of this host.

use http::header::SET_COOKIE;
use http::{HeaderMap, Response, StatusCode};
use jiff::Timestamp;
use postern_common::crypto::{random, signed_url};
use postern_common::web::sign_in_link::{SignInLink, browser_binding};

use crate::body::Body;
use crate::callback::broken_link;
use crate::internal::redirect;
use crate::refuse::Stop;
use crate::request::Request;
use crate::snapshot::Snapshot;

pub(crate) fn answer(
    snapshot: &Snapshot,
    request: &Request,
    headers: &HeaderMap,
) -> Result<Response<Body>, Stop> {
    let config = &snapshot.config;
    let now = Timestamp::now();
    let host = request.target.authority.text();
    let verified = signed_url::verify_received(
        &config.secrets.shared,
        host,
        request.target.path(),
        request.target.query().unwrap_or_default(),
        now,
    )
    .map_err(|error| broken_link(error.to_string()))?;
    let ours = |url: &str| {
        let target = snapshot.redirect_targets.browser(url);
        target.map_err(|error| broken_link(error.to_string()))
    };
    ours(&format!("https://{host}/"))?;
    let key = snapshot.shared_secret()?;
    let (cookie, set_cookie) = browser_binding(headers, &config.cookie.name, random::bytes(), now);
    let next = SignInLink::read(&verified)
        .and_then(|mut link| {
            link.bind(key, &cookie)?;
            link.next(&config.urls.authenticate, key, now)
        })
        .ok_or_else(|| broken_link("not all of a sign-in is in the link"))?;
    let mut response = redirect(StatusCode::FOUND, &ours(next.as_str())?.location)?;
    response
        .headers_mut()
        .extend(set_cookie.map(|cookie| (SET_COOKIE, cookie)));
    Ok(response)
}
