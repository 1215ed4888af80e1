//! Postern's own endpoints on every host: before any route, never forwarded.

mod api_login;
mod portal;
mod sign_out;
mod user;
mod well_known;

use std::rc::Rc;
use std::sync::Arc;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};
use hyper::body::Incoming;
use postern_common::lifecycle::Phase;
use postern_common::route::Target;
use postern_common::web::refusal::Origin;

use crate::access_log::Record;
use crate::body::Body;
use crate::core::Core;
use crate::refuse::Stop;
use crate::request::Request;
use crate::serve::{Headers, Reply};
use crate::snapshot::Snapshot;
use crate::{begin, callback};

/// `upstream-cluster` of what we answer ourselves.
pub(crate) const CLUSTER: &str = "pomerium-control-plane-http";

/// What stands at a path of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `/.pomerium`, which is `/.pomerium/`.
    MissingSlash,
    UserPage,
    User,
    Jwt,
    SignOut,
    Begin,
    Callback,
    ApiLogin,
    PortalPage,
    Portal,
    WellKnown,
    Jwks,
    /// Below our paths, but nothing.
    Nothing,
}

/// The endpoint at a path, if the path is ours.
pub(crate) fn find(target: &Target) -> Option<Endpoint> {
    if target.is_tunnel() {
        return None;
    }
    let path = target.path();
    if let Some(below) = path.strip_prefix("/.pomerium") {
        return match below {
            "" => Some(Endpoint::MissingSlash),
            "/" => Some(Endpoint::UserPage),
            "/user" => Some(Endpoint::User),
            "/jwt" => Some(Endpoint::Jwt),
            "/sign_out" => Some(Endpoint::SignOut),
            "/begin" => Some(Endpoint::Begin),
            "/callback" | "/callback/" => Some(Endpoint::Callback),
            "/api/v1/login" => Some(Endpoint::ApiLogin),
            "/routes" => Some(Endpoint::PortalPage),
            "/api/v1/routes" => Some(Endpoint::Portal),
            _ if below.starts_with('/') => Some(Endpoint::Nothing),
            _ => None,
        };
    }
    match path.strip_prefix("/.well-known/pomerium")? {
        "" | "/" => Some(Endpoint::WellKnown),
        "/jwks.json" => Some(Endpoint::Jwks),
        below if below.starts_with('/') => Some(Endpoint::Nothing),
        _ => None,
    }
}

/// `/ping` and `/healthz`, for whoever asks.
pub(crate) fn is_probe(request: &Request, record: &mut Record) -> bool {
    let target = &request.target;
    let probe = !target.is_tunnel() && matches!(target.path(), "/ping" | "/healthz");
    if probe {
        record.quiet();
        record.own(CLUSTER);
    }
    probe
}

/// `/healthz` tells balancers that can see nothing else of a drain; `/ping` says OK to the end.
pub(crate) fn probe(core: &Core, request: &Request) -> Result<Reply, Stop> {
    only(&request.method, &[Method::GET, Method::HEAD])?;
    let draining = core.phase() >= Phase::Draining && request.target.path() == "/healthz";
    let (status, text) = if draining {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else {
        (StatusCode::OK, "OK\n")
    };
    Ok(own(with_type(status, "text/plain", text)))
}

/// Answers one of our endpoints.
pub(crate) async fn answer(
    core: &Rc<Core>,
    snapshot: &Arc<Snapshot>,
    request: &Request,
    head: &Parts,
    body: Incoming,
    endpoint: Endpoint,
) -> Result<Reply, Stop> {
    let headers = &head.headers;
    match endpoint {
        Endpoint::SignOut => only(&request.method, &[Method::GET, Method::HEAD, Method::POST])?,
        Endpoint::WellKnown => {}
        _ => only(&request.method, &[Method::GET, Method::HEAD])?,
    }
    Ok(own(match endpoint {
        Endpoint::MissingSlash => redirect(StatusCode::MOVED_PERMANENTLY, "/.pomerium/")?,
        Endpoint::UserPage => user::page(core, snapshot, request, headers).await?,
        Endpoint::User => user::json(core, request, headers).await?,
        Endpoint::Jwt => user::jwt(core, snapshot, request, headers).await?,
        Endpoint::SignOut => sign_out::answer(snapshot, request, headers, body).await?,
        Endpoint::Begin => begin::answer(snapshot, request, headers)?,
        Endpoint::Callback => callback::answer(snapshot, request, headers)?,
        Endpoint::ApiLogin => api_login::answer(snapshot, request)?,
        Endpoint::PortalPage => portal::page(core, snapshot, request, headers).await?,
        Endpoint::Portal => portal::json(core, snapshot, request, headers).await?,
        Endpoint::WellKnown => well_known::discovery(snapshot, request),
        Endpoint::Jwks => well_known::jwks(snapshot, headers),
        Endpoint::Nothing => return Err(nothing()),
    }))
}

/// 404 below our own paths.
fn nothing() -> Stop {
    let text = "There is nothing at this address.";
    Stop::new(StatusCode::NOT_FOUND, "own_endpoint_not_found", text).origin(Origin::Endpoint)
}

/// A wrong request to one of our endpoints.
pub(crate) fn bad(text: &'static str) -> Stop {
    Stop::new(StatusCode::BAD_REQUEST, "own_endpoint_bad_request", text).origin(Origin::Endpoint)
}

fn only(method: &Method, allowed: &[Method]) -> Result<(), Stop> {
    if allowed.contains(method) {
        return Ok(());
    }
    let names: Vec<_> = allowed.iter().map(Method::as_str).collect();
    let names = HeaderValue::try_from(names.join(", "));
    let text = "This address does not answer to this method.";
    Err(
        Stop::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text)
            .origin(Origin::Endpoint)
            .with(|reason| {
                let allow = names.ok().map(|names| (ALLOW, names));
                reason.headers.extend(allow);
            }),
    )
}

fn own(response: Response<Body>) -> Reply {
    Reply {
        response,
        headers: Headers::Global,
        details: "direct_response",
        tunnel: None,
    }
}

fn with_type(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<bytes::Bytes>,
) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A redirect that nobody keeps, unless it is a permanent one.
pub(crate) fn redirect(status: StatusCode, location: &str) -> Result<Response<Body>, Stop> {
    let location = HeaderValue::try_from(location)
        .map_err(|_| bad("The address to go on to cannot be sent."))?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(LOCATION, location);
    if status != StatusCode::MOVED_PERMANENTLY {
        response
            .headers_mut()
            .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_common::authz::Scheme;
    use postern_common::config::{EscapedSlashes, PathNormalization};
    use postern_common::route::RawTarget;

    fn at(path: &str) -> Option<Endpoint> {
        let uri: http::Uri = path.parse().unwrap();
        let raw = RawTarget {
            method: &Method::GET,
            scheme: Scheme::Https,
            authority: "a.test",
            uri: &uri,
        };
        let rules = PathNormalization {
            merge_slashes: true,
            dot_segments: true,
            escaped_slashes: EscapedSlashes::Reject,
        };
        find(&Target::parse(raw, rules).unwrap())
    }

    #[test]
    fn our_paths_and_nobody_elses() {
        assert_eq!(at("/.pomerium"), Some(Endpoint::MissingSlash));
        assert_eq!(at("/.pomerium/"), Some(Endpoint::UserPage));
        assert_eq!(at("/.pomerium//callback/?x"), Some(Endpoint::Callback));
        assert_eq!(at("/%2epomerium/user"), Some(Endpoint::User));
        assert_eq!(at("/.pomerium/none"), Some(Endpoint::Nothing));
        assert_eq!(at("/.well-known/pomerium/jwks.json"), Some(Endpoint::Jwks));
        assert_eq!(at("/.well-known/pomerium"), Some(Endpoint::WellKnown));
        for path in [
            "/",
            "/.pomeriums",
            "/x/.pomerium/",
            "/.well-known/openid-configuration",
        ] {
            assert_eq!(at(path), None, "{path}");
        }
    }
}
