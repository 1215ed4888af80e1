//! Routes that answer without an upstream. They need a permit like any other.

use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Response};
use postern_common::config::{FixedResponse, Redirect};

use super::redirect;
use crate::body::Body;
use crate::permit::Permitted;
use crate::respond;
use crate::serve::{Headers, Reply};
use crate::snapshot::Prepared;

/// `redirect`
pub(super) fn redirected(permitted: &Permitted, route: &Prepared, redirect: &Redirect) -> Reply {
    let target = &permitted.request.target;
    let asked = redirect::Asked {
        scheme: target.scheme.as_str(),
        host: target.authority.name(),
        port: target.authority.port(),
        path: target.path(),
        query: target.query(),
    };
    let location = redirect::location(redirect, &route.route.matcher, &asked);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = redirect.status;
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    respond::apply(response.headers_mut(), &route.route.response_headers);
    Reply {
        response,
        headers: Headers::Route,
        details: "direct_response",
        tunnel: None,
    }
}

/// `response`
pub(super) fn response(route: &Prepared, fixed: &FixedResponse) -> Reply {
    let mut response = Response::new(Body::full(fixed.body.clone()));
    *response.status_mut() = fixed.status;
    let text = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(CONTENT_TYPE, text);
    respond::apply(response.headers_mut(), &route.route.response_headers);
    Reply {
        response,
        headers: Headers::Route,
        details: "direct_response",
        tunnel: None,
    }
}
