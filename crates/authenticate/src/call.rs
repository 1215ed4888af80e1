//! One request: what every handler needs to know of it, and how it says no.

use std::convert::Infallible;
use std::fmt::Display;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;
use postern_common::crypto::signed_url::{self, SignatureError, Verified};
use postern_common::web::page::{self, Forms};
use postern_common::web::refusal::{Link, Origin, Refusal};
use postern_common::web::request_id::received;
use url::Url;

use crate::Authenticate;
use crate::snapshot::Snapshot;

/// A request as it was received, the configuration that it is served under, and the time.
pub(crate) struct Call {
    pub service: Arc<Authenticate>,
    pub snapshot: Arc<Snapshot>,
    pub now: Timestamp,
    pub request_id: Arc<str>,
    pub method: Method,
    /// Authority as received.
    pub host: String,
    pub path: String,
    /// Without the question mark; empty if there is none.
    pub query: String,
    pub headers: HeaderMap,
}

/// The id of a request, put there by [`crate::routes`].
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub Arc<str>);

/// The configuration that a request is served under, from its first to its last step.
#[derive(Clone)]
pub(crate) struct Under(pub Arc<Snapshot>);

/// What a handler gives: an answer, or a refusal that is turned into one.
pub(crate) type Answer = Result<Response, Box<Refusal>>;

impl FromRequestParts<Arc<Authenticate>> for Call {
    type Rejection = Infallible;

    async fn from_request_parts(
        parts: &mut Parts,
        service: &Arc<Authenticate>,
    ) -> Result<Self, Infallible> {
        let request_id = parts
            .extensions
            .get::<RequestId>()
            .map(|id| Arc::clone(&id.0));
        let snapshot = parts
            .extensions
            .get::<Under>()
            .map(|under| Arc::clone(&under.0));
        Ok(Self {
            service: Arc::clone(service),
            snapshot: snapshot.unwrap_or_else(|| service.snapshot.load_full()),
            now: Timestamp::now(),
            request_id: request_id.unwrap_or_else(|| received(&parts.headers)),
            method: parts.method.clone(),
            host: host(parts),
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers.clone(),
        })
    }
}

/// `:authority` of HTTP/2, or the only `Host`.
fn host(parts: &Parts) -> String {
    if let Some(authority) = parts.uri.authority() {
        return authority.as_str().to_owned();
    }
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().unwrap_or_default().to_owned(),
        _ => String::new(),
    }
}

impl Call {
    /// Verifies the signature of this request's URL. Under the internal name the URL was still
    /// made for the external one.
    pub(crate) fn verify(&self) -> Result<Verified, SignatureError> {
        let internal = self.snapshot.internal.as_deref();
        let host = if internal == Some(self.host.to_ascii_lowercase().as_str()) {
            self.snapshot.external.as_str()
        } else {
            self.host.as_str()
        };
        signed_url::verify_received(
            self.snapshot.shared(),
            host,
            &self.path,
            &self.query,
            self.now,
        )
    }

    /// Signs a URL with the newest key.
    pub(crate) fn sign(&self, url: &Url) -> Result<Url, Box<Refusal>> {
        match self.snapshot.shared().first() {
            Some(key) => Ok(signed_url::sign(key, url, self.now)),
            None => Err(self.unavailable("Sign-in is not set up completely.", &"no shared_secret")),
        }
    }

    /// Says no: `reason` goes to the client, `cause` to the log.
    pub(crate) fn refuse(
        &self,
        status: StatusCode,
        reason: &str,
        cause: &dyn Display,
    ) -> Box<Refusal> {
        let (request_id, path, status_code) = (&*self.request_id, &*self.path, status.as_u16());
        if status.is_server_error() {
            tracing::error!("request-id" = request_id, path, status = status_code, %cause, "{reason}");
        } else {
            tracing::info!("request-id" = request_id, path, status = status_code, %cause, "{reason}");
        }
        let refusal = Refusal::new(status, reason, Arc::clone(&self.request_id));
        Box::new(refusal.origin(Origin::Endpoint))
    }

    /// Something that Postern needs doesn't answer: 503, come back later.
    pub(crate) fn unavailable(&self, reason: &str, cause: &dyn Display) -> Box<Refusal> {
        self.refuse(StatusCode::SERVICE_UNAVAILABLE, reason, cause)
    }

    /// The same request once more; for requests that change nothing.
    pub(crate) fn try_again(&self) -> Link {
        let href = match self.query.as_str() {
            "" => self.path.clone(),
            query => format!("{}?{query}", self.path),
        };
        Link {
            href,
            text: "Try again",
        }
    }

    pub(crate) fn bad_request(&self, reason: &str, cause: &dyn Display) -> Box<Refusal> {
        self.refuse(StatusCode::BAD_REQUEST, reason, cause)
    }

    /// The response to an [`Answer`].
    pub(crate) fn finish(&self, answer: Answer) -> Response {
        match answer {
            Ok(response) => response,
            Err(refusal) => refusal
                .respond(&self.headers, &self.snapshot.look)
                .map(Body::from),
        }
    }

    /// A page in the common frame.
    pub(crate) fn page(
        &self,
        title: &str,
        forms: Forms,
        content: &impl askama::Template,
    ) -> Response {
        page::respond(&self.snapshot.look, StatusCode::OK, title, forms, content).map(Body::from)
    }
}

/// A redirect that nobody keeps.
pub(crate) fn redirect(location: &str) -> Response {
    let mut response = (StatusCode::FOUND, Bytes::new()).into_response();
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Query strings here hold sealed sessions and codes, which are nobody else's business.
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    match HeaderValue::from_str(location) {
        Ok(location) => drop(headers.insert(header::LOCATION, location)),
        // Never for a URL; an answer without `Location` leads nowhere, which is safe.
        Err(_) => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
    }
    response
}

/// Adds `Set-Cookie` headers.
pub(crate) fn with_cookies(
    mut response: Response,
    cookies: impl IntoIterator<Item = HeaderValue>,
) -> Response {
    for cookie in cookies {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}
