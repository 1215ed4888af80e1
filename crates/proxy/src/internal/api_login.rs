//! `/.pomerium/api/v1/login`: where a program sends its person's browser to sign in.

use http::{Response, StatusCode};
use jiff::Timestamp;
use postern_common::config::FromScheme;
use postern_common::crypto::signed_url::{self, param};

use super::{bad, nothing, with_type};
use crate::body::Body;
use crate::refuse::Stop;
use crate::request::Request;
use crate::snapshot::Snapshot;

/// Text: a signed sign-in URL that ends at the program's own address with its handle.
pub(super) fn answer(snapshot: &Snapshot, request: &Request) -> Result<Response<Body>, Stop> {
    let query = request.target.query().unwrap_or_default();
    let redirect = url::form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == param::REDIRECT_URI)
        .map(|(_, value)| value.into_owned())
        .filter(|value| !value.is_empty())
        .ok_or_else(nothing)?;
    snapshot
        .redirect_targets
        .program(&redirect)
        .map_err(|error| bad("invalid redirect uri").because(error.to_string()))?;
    let config = &snapshot.config;
    let callback = callback(snapshot, request, query)?;
    let route = snapshot
        .route(&request.target)
        .map(|prepared| &*prepared.route);
    let provider = config
        .provider_id(route)
        .map(|id| &**id)
        .unwrap_or_default();
    let mut url = config.urls.authenticate.clone();
    url.set_path("/.pomerium/sign_in");
    url.query_pairs_mut().clear().extend_pairs([
        (param::REDIRECT_URI, &*redirect),
        (param::CALLBACK_URI, &callback),
        (param::PROGRAMMATIC, "true"),
        (param::IDP_ID, provider),
    ]);
    let key = snapshot.shared_secret()?;
    let signed = signed_url::sign(key, &url, Timestamp::now());
    Ok(with_type(
        StatusCode::OK,
        "text/plain; charset=utf-8",
        String::from(signed),
    ))
}

/// Where the handle comes in on its way to the program: here, if this is a route's host. Programs
/// may ask by any name that leads to this proxy, and authenticate sends handles to hosts of routes
/// only; which of them it is makes no difference, for no cookie is set there.
fn callback(snapshot: &Snapshot, request: &Request, query: &str) -> Result<String, Stop> {
    let on = |host: &str| format!("https://{host}/.pomerium/callback/?{query}");
    let here = on(request.target.authority.text());
    if snapshot.redirect_targets.browser(&here).is_ok() {
        return Ok(here);
    }
    snapshot
        .config
        .routes
        .iter()
        .filter(|route| route.from.scheme == FromScheme::Https && !route.from.is_wildcard())
        .map(|route| match route.from.port {
            Some(port) => on(&format!("{}:{port}", route.from.host)),
            None => on(&route.from.host),
        })
        .find(|url| snapshot.redirect_targets.browser(url).is_ok())
        .ok_or_else(|| bad("no route is on this host; ask at the host of a route"))
}
