//! What upstreams read: where to find the keys that verify the assertion.

use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::with_type;
use crate::body::Body;
use crate::request::Request;
use crate::snapshot::Snapshot;

const ANYONE: HeaderValue = HeaderValue::from_static("*");

/// `/.well-known/pomerium`
pub(super) fn discovery(snapshot: &Snapshot, request: &Request) -> Response<Body> {
    let host = request.target.authority.text();
    let callback = snapshot.config.urls.authenticate.join("/oauth2/callback");
    let callback = callback.map(String::from).unwrap_or_default();
    let text = |value: String| serde_json::Value::from(value).to_string();
    // Members in the order that clients know.
    let body = format!(
        r#"{{"issuer":{},"authentication_callback_endpoint":{},"jwks_uri":{},"frontchannel_logout_uri":{}}}"#,
        text(format!("https://{host}/")),
        text(callback),
        text(format!("https://{host}/.well-known/pomerium/jwks.json")),
        text(format!("https://{host}/.pomerium/sign_out")),
    );
    let mut response = with_type(StatusCode::OK, "application/json", body);
    response
        .headers_mut()
        .insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANYONE);
    response
}

/// `/.well-known/pomerium/jwks.json`
pub(super) fn jwks(snapshot: &Snapshot, headers: &HeaderMap) -> Response<Body> {
    let jwks = snapshot.config.signing_keys.jwks();
    let known = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut known = known.flat_map(|value| value.split(',')).map(str::trim);
    let fresh = known.any(|tag| tag == "*" || tag.trim_start_matches("W/") == jwks.etag);
    let mut response = if fresh {
        with_type(StatusCode::NOT_MODIFIED, "application/json", "")
    } else {
        with_type(StatusCode::OK, "application/json", jwks.body.clone())
    };
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANYONE);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
    if let Ok(etag) = HeaderValue::try_from(&jwks.etag) {
        headers.insert(ETAG, etag);
    }
    response
}
