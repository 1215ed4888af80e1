//! Requests for the host that people sign in at: by a call where authenticate runs in this
//! process, else forwarded. Nobody is asked, as nobody who signs in has a session yet.

use std::rc::Rc;
use std::sync::Arc;

use http::request::Parts;
use http::{Request as HttpRequest, StatusCode};
use hyper::body::Incoming;
use postern_common::authz::CheckRequest;
use postern_common::telemetry::trace;
use tower::ServiceExt as _;

use crate::access_log::Record;
use crate::body::Body;
use crate::core::Core;
use crate::forward;
use crate::forward::headers::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REQUEST_ID};
use crate::limits;
use crate::permit;
use crate::refuse::Stop;
use crate::request::Request;
use crate::serve::{Headers, Reply};
use crate::snapshot::{AuthenticateWay, Snapshot};

/// Paths that are authenticate's even where a route has the same host.
fn is_own_path(path: &str) -> bool {
    path == "/oauth2/callback"
        || path == "/.pomerium"
        || path.starts_with("/.pomerium/")
        || path == "/.well-known/pomerium"
        || path.starts_with("/.well-known/pomerium/")
}

/// Whether a request is authenticate's. Elsewhere on its host, routes come first.
pub(crate) fn takes(snapshot: &Snapshot, request: &Request) -> bool {
    if request.target.is_tunnel() || !snapshot.is_authenticate(&request.target.authority) {
        return false;
    }
    match snapshot.authenticate.way {
        AuthenticateWay::InProcess | AuthenticateWay::BuiltIn(..) => {
            is_own_path(request.target.path()) || snapshot.route(&request.target).is_none()
        }
        // All that a route which names the host leads to is authenticate's.
        AuthenticateWay::Route => snapshot.authenticate_route(&request.target).is_some(),
    }
}

/// Answers it.
pub(crate) async fn answer(
    core: &Rc<Core>,
    snapshot: &Arc<Snapshot>,
    request: Request,
    head: &mut Parts,
    body: Incoming,
    record: &mut Record,
    kept: &mut Option<Arc<CheckRequest>>,
) -> Result<Reply, Stop> {
    record.own("pomerium-authenticate");
    if matches!(snapshot.authenticate.way, AuthenticateWay::InProcess)
        && let Some(router) = &core.shared.authenticate
    {
        return in_process(core, router.clone(), &request, head, body).await;
    }
    if let Some(route) = snapshot.authenticate_route(&request.target) {
        record.route(route);
    }
    match permit::for_authenticate(core, snapshot, request, head, body, kept) {
        Some(permit) => forward::forward(core, snapshot, permit, record).await,
        None => Err(forward::failures::unavailable(
            "not the host of authenticate",
        )),
    }
}

/// Calls it on the control runtime: it talks to providers and databrokers, whose connections
/// belong there.
async fn in_process(
    core: &Rc<Core>,
    router: axum::Router,
    request: &Request,
    head: &mut Parts,
    body: Incoming,
) -> Result<Reply, Stop> {
    let mut inner = HttpRequest::new(axum::body::Body::new(body));
    *inner.method_mut() = request.method.clone();
    // What was matched is what is served.
    let path_and_query = request.target.path_and_query();
    *inner.uri_mut() = path_and_query
        .parse()
        .map_err(|error: http::uri::InvalidUri| failed(error.to_string()))?;
    let headers = inner.headers_mut();
    *headers = head.headers.clone();
    for name in [X_FORWARDED_HOST, X_FORWARDED_PROTO] {
        headers.remove(name);
    }
    if let Some(place) = request.trace {
        trace::pass_on(place, &head.headers, headers);
    }
    // As if it had come over the network, so that authenticate reads it alike.
    headers.insert(http::header::HOST, value(request.target.authority.text())?);
    headers.insert(X_REQUEST_ID, value(&request.id)?);
    headers.insert(X_FORWARDED_FOR, request.client_address.text().clone());
    headers.insert(X_FORWARDED_PROTO, value(request.target.scheme.as_str())?);
    let call = core.shared.control.spawn(router.oneshot(inner));
    let answered = tokio::time::timeout(limits::AUTHENTICATE_CALL, call).await;
    let response = match answered {
        Ok(Ok(Ok(response))) => response,
        Ok(Ok(Err(never))) => match never {},
        Ok(Err(error)) => return Err(failed(format!("authenticate ended: {error}"))),
        Err(_) => return Err(failed("authenticate did not answer in time".to_owned())),
    };
    Ok(Reply {
        response: response.map(Body::in_process),
        headers: Headers::Global,
        details: "via_upstream",
        tunnel: None,
    })
}

fn value(text: &str) -> Result<http::HeaderValue, Stop> {
    http::HeaderValue::try_from(text).map_err(|error| failed(error.to_string()))
}

fn failed(cause: String) -> Stop {
    let text = "Signing in is not possible just now.";
    Stop::new(StatusCode::SERVICE_UNAVAILABLE, "authenticate_failed", text).because(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c77_paths_that_stay_authenticates() {
        for path in [
            "/oauth2/callback",
            "/.pomerium",
            "/.pomerium/sign_in",
            "/.well-known/pomerium/jwks.json",
        ] {
            assert!(is_own_path(path), "{path}");
        }
        for path in ["/", "/app", "/.pomeriumx", "/oauth2/callback/x"] {
            assert!(!is_own_path(path), "{path}");
        }
    }
}
