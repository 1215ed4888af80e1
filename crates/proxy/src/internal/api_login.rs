//! `/.pomerium/api/v1/login`: where a program sends its person's browser to sign in.

use http::{Response, StatusCode};
use jiff::Timestamp;
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
    let host = request.target.authority.text();
    let callback = format!("https://{host}/.pomerium/callback/?{query}");
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
