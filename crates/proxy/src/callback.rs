//! `/.pomerium/callback/`: takes the session that authenticate hands over by the browser, and
//! keeps it in this host's cookie.
//!
//! The URL is signed, but a browser brings it, so it may be any browser. A sign-in that began here
//! carries a binding: it counts only with the cookie that was set when it began. A program's
//! sign-in, which anybody can begin, never sets a cookie. With `depends_on` the session then goes on
//! to each further host, which counts it by the binding of its own that the sign-in has gathered.

use http::header::SET_COOKIE;
use http::{HeaderMap, Response, StatusCode};
use jiff::Timestamp;
use postern_common::config::UnboundCallbacks;
use postern_common::crypto::binding::{self, BindingCookie};
use postern_common::crypto::handle::{Handle, Place};
use postern_common::crypto::seal;
use postern_common::crypto::signed_url::{self, Verified, param};
use postern_common::web::cookie::{self, Scope};
use postern_common::web::sign_in_link::{CALLBACK, hop_bindings};
use url::Url;

use crate::body::Body;
use crate::internal::{bad, redirect};
use crate::refuse::Stop;
use crate::request::Request;
use crate::sign_in_loop;
use crate::snapshot::Snapshot;

/// What the link is for, by what it carries.
enum Kind<'a> {
    /// A program waits for its handle.
    Program,
    /// A browser began here.
    Bound { value: &'a str, nonce: &'a str },
    /// A further host of `depends_on`. If it is not this browser that was there at the beginning,
    /// nothing is kept, and the person goes on all the same.
    Hop { value: &'a str, nonce: &'a str },
    /// Pomerium's authorize: it names no beginning.
    Unbound,
}

/// Marks a link to a further host of `depends_on`. Only the callback of a bound host makes one.
const HOP: &str = "postern_hop";

pub(crate) fn answer(
    snapshot: &Snapshot,
    request: &Request,
    headers: &HeaderMap,
) -> Result<Response<Body>, Stop> {
    let config = &snapshot.config;
    let now = Timestamp::now();
    let host = request.target.authority.text();
    let path = request.target.path();
    let query = request.target.query().unwrap_or_default();
    let verified = signed_url::verify_received(&config.secrets.shared, host, path, query, now)
        .map_err(|error| broken_link(error.to_string()))?;
    let kind = kind(&verified);
    let target = verified
        .get(param::REDIRECT_URI)
        .ok_or_else(|| broken_link("no target"))?;
    let allowed = match kind {
        Kind::Program => snapshot.redirect_targets.program(target),
        Kind::Bound { .. } | Kind::Hop { .. } | Kind::Unbound => {
            snapshot.redirect_targets.browser(target)
        }
    };
    let allowed = allowed.map_err(|error| broken_link(error.to_string()))?;
    let (token, handle) = session(snapshot, &verified)?;
    if let Kind::Program = kind {
        let mut url = allowed.url;
        url.query_pairs_mut().append_pair(param::JWT, &token);
        return redirect(StatusCode::FOUND, url.as_str());
    }
    let next = next_hop(snapshot, &verified, &kind, target, now)?;
    let mut response = redirect(
        StatusCode::FOUND,
        next.as_deref().unwrap_or(&allowed.location),
    )?;
    if keeps_cookie(snapshot, headers, &kind) {
        handle
            .acceptable(Place::Cookie, host, config.cookie.domain.as_deref())
            .map_err(|error| broken_link(error.to_string()))?;
        let scope = Scope {
            domain: config.cookie.domain.as_deref(),
            http_only: config.cookie.http_only,
            same_site: Some(config.cookie.same_site),
            ..Scope::HOST
        };
        let cookie = cookie::set(
            &config.cookie.name,
            &token,
            scope,
            config.cookie.expire,
            now,
        )
        .ok_or_else(|| broken_link("the handle does not fit a cookie"))?;
        response.headers_mut().append(SET_COOKIE, cookie);
        if !matches!(kind, Kind::Hop { .. }) {
            let counted = sign_in_loop::count(headers, &config.cookie.name, now);
            response
                .headers_mut()
                .extend(counted.map(|cookie| (SET_COOKIE, cookie)));
        }
    } else if !matches!(kind, Kind::Hop { .. }) {
        return Err(other_browser());
    }
    Ok(response)
}

fn kind(verified: &Verified) -> Kind<'_> {
    if verified.get(param::PROGRAMMATIC) == Some("true") {
        return Kind::Program;
    }
    let (value, nonce) = (
        verified.get(param::BINDING),
        verified.get(param::BINDING_NONCE),
    );
    // Half a binding is none that holds.
    let bound = (value.unwrap_or_default(), nonce.unwrap_or_default());
    if verified.get(HOP).is_some() {
        let (value, nonce) = bound;
        return Kind::Hop { value, nonce };
    }
    if value.is_none() && nonce.is_none() {
        return Kind::Unbound;
    }
    let (value, nonce) = bound;
    Kind::Bound { value, nonce }
}

fn keeps_cookie(snapshot: &Snapshot, headers: &HeaderMap, kind: &Kind<'_>) -> bool {
    match kind {
        Kind::Program => false,
        Kind::Unbound => snapshot.config.programs.unbound_callbacks == UnboundCallbacks::Accept,
        Kind::Bound { value, nonce } | Kind::Hop { value, nonce } => {
            let name = binding::cookie_name(&snapshot.config.cookie.name);
            cookie::values(headers, &name)
                .filter_map(BindingCookie::from_text)
                .any(|cookie| {
                    binding::matches(&snapshot.config.secrets.shared, &cookie, nonce, value)
                })
        }
    }
}

/// The sealed handle, as text and read.
fn session(snapshot: &Snapshot, verified: &Verified) -> Result<(String, Handle), Stop> {
    use base64::Engine as _;
    let keys = &snapshot.config.secrets.shared;
    let sealed = verified
        .get(param::SESSION_ENCRYPTED)
        .and_then(|text| {
            let text = text.trim_end_matches('=');
            base64::engine::general_purpose::URL_SAFE_NO_PAD
                .decode(text)
                .ok()
        })
        .ok_or_else(|| broken_link("no sealed session"))?;
    let opened =
        seal::open_any(keys, &sealed, &[]).map_err(|error| broken_link(error.to_string()))?;
    let token = String::from_utf8(opened).map_err(|error| broken_link(error.to_string()))?;
    let handle = Handle::decode(keys, &token).map_err(|error| broken_link(error.to_string()))?;
    Ok((token, handle))
}

/// `depends_on`: the same session goes to the next host before the browser returns.
fn next_hop(
    snapshot: &Snapshot,
    verified: &Verified,
    kind: &Kind<'_>,
    target: &str,
    now: Timestamp,
) -> Result<Option<String>, Stop> {
    let hosts = verified.get(param::ADDITIONAL_HOSTS).unwrap_or_default();
    let mut hosts = hosts
        .split(',')
        .map(str::trim)
        .filter(|host| !host.is_empty());
    let Some(next) = hosts.next() else {
        return Ok(None);
    };
    let rest: Vec<_> = hosts.collect();
    let mut url = Url::parse(&format!("https://{next}{CALLBACK}"))
        .map_err(|error| broken_link(error.to_string()))?;
    snapshot
        .redirect_targets
        .browser(url.as_str())
        .map_err(|error| broken_link(error.to_string()))?;
    {
        let mut pairs = url.query_pairs_mut();
        if !rest.is_empty() {
            pairs.append_pair(param::ADDITIONAL_HOSTS, &rest.join(","));
        }
        let sealed = verified.get(param::SESSION_ENCRYPTED).unwrap_or_default();
        pairs.append_pair(param::SESSION_ENCRYPTED, sealed);
        pairs.append_pair(param::REDIRECT_URI, target);
        // The binding of this host stays behind: its cookie is of this host only.
        if let Kind::Bound { nonce, .. } | Kind::Hop { nonce, .. } = kind {
            pairs.append_pair(HOP, "true");
            let mut bindings = hop_bindings(verified.get(param::HOP_BINDINGS));
            if let Some(value) = bindings.next() {
                pairs.append_pair(param::BINDING, value);
                pairs.append_pair(param::BINDING_NONCE, nonce);
            }
            let rest: Vec<_> = bindings.collect();
            if !rest.is_empty() {
                pairs.append_pair(param::HOP_BINDINGS, &rest.join(","));
            }
        }
    }
    Ok(Some(
        signed_url::sign(snapshot.shared_secret()?, &url, now).into(),
    ))
}

/// The link is wrong, too old, or not ours.
pub(crate) fn broken_link(cause: impl Into<String>) -> Stop {
    bad("This sign-in link is not valid, or no longer. Open the application again to sign in.")
        .because(cause)
}

/// Nothing to fear for the person who began elsewhere: they begin here.
fn other_browser() -> Stop {
    bad("This sign-in was not begun in this browser. Open the application again to sign in.")
        .because("the callback is bound to another browser, or carries no binding")
}
