//! What proxy and authorize say to each other.
//!
//! One question, [`CheckRequest`], and one answer, [`Decision`]. In one process the question is a
//! function call, across the network it travels on a stream (`postern.authorize.v1`) or as Envoy's
//! `ext_authz`; all three carry exactly these types.

pub mod wire;

use std::net::IpAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use jiff::Timestamp;

use crate::config::{RouteChecksum, RouteId};
use crate::telemetry::trace::Place;

/// May this request pass?
///
/// Host and path are in the one normal form of `route::target`, the same that is forwarded, so
/// that what is authorized is what the upstream gets.
#[derive(Debug, Clone)]
pub struct CheckRequest {
    /// Stands in every log line and on every page about this request.
    pub request_id: Arc<str>,
    pub subject: CheckSubject,
    pub method: Method,
    pub scheme: Scheme,
    /// Lower case, without a default port.
    pub host: Arc<str>,
    /// Normalised, still percent-encoded, without the query.
    pub path: Arc<str>,
    /// Without the question mark.
    pub query: Option<Arc<str>>,
    /// As the client sent them, credentials included.
    pub headers: HeaderMap,
    /// The client's address after trusted hops.
    pub client_address: IpAddr,
    pub client_certificate: Option<Arc<ClientCertificate>>,
    /// Under which span the decision stands; `None`: it is not traced.
    pub trace: Option<Place>,
}

/// What the request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckSubject {
    /// A configured route. The checksum tells whether both sides mean the same one.
    Route {
        id: RouteId,
        checksum: RouteChecksum,
    },
    /// One of Postern's own pages on `host`. Only some need a session.
    OwnEndpoint,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The certificate that a client showed in its TLS handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
}

/// The answer to a [`CheckRequest`].
#[derive(Debug, Clone)]
pub enum Decision {
    Allow(Box<Allow>),
    Deny(Box<Deny>),
}

/// The request may pass, changed like this.
#[derive(Debug, Clone, Default)]
pub struct Allow {
    /// Replace what the client sent under the same name; an empty value stays, so that nobody can
    /// forge a claim that is missing.
    /// In place of the client's. A name that stands here several times is several headers.
    pub set_headers: Vec<(HeaderName, HeaderValue)>,
    pub remove_headers: Vec<HeaderName>,
    /// The request's session, when there is one.
    pub session: Option<Arc<SessionSummary>>,
    /// The decision must not be used beyond this time: session expiry or the next boundary of a
    /// time criterion.
    pub valid_until: Option<Timestamp>,
    /// A credential that was used to sign in and must not travel on.
    pub consumed: ConsumedCredentials,
}

/// What proxy needs to know of a session: to find its open requests again, and for its own pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSummary {
    pub session_id: String,
    pub user_id: String,
    pub email: String,
}

/// Which kinds of credential the session came from, beyond those that are always stripped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConsumedCredentials {
    /// A provider's token in `Authorization: Bearer`.
    pub bearer: bool,
}

/// The request must not pass. This is what the client gets instead.
#[derive(Debug, Clone)]
pub struct Deny {
    pub kind: DenyKind,
    /// Public and short; never a cause that only operators may see.
    pub message: String,
    /// Reasons of the rules that decided, sorted, such as `email-unauthorized`.
    pub reasons: Vec<String>,
    /// Headers of the answer beside those that follow from `kind`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Policy traces for the page, when the route has `show_error_details`.
    pub details: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DenyKind {
    /// Nobody is signed in and the client is a browser: 302 to this signed sign-in URL. The cookie
    /// that binds the sign-in to this browser stands in [`Deny::headers`].
    SignIn { location: String },
    /// Nobody is signed in and the client is a program: 401. Carries a sign-in URL where one can
    /// be offered.
    Unauthenticated { sign_in_url: Option<String> },
    /// Signed in, or past caring: 403.
    Forbidden,
    /// 404: a route that authorize knows nothing of is never this, see [`AuthorizeError`].
    NotFound,
    /// 450: the device is not approved.
    DeviceUnauthorized,
    /// 495: a client certificate is missing or not valid.
    ClientCertificate { presented: bool },
    /// 400, such as a cookie and a bearer token at once.
    BadRequest,
}

impl DenyKind {
    /// The status of the answer where no redirect is possible or meant.
    pub fn status(&self) -> StatusCode {
        let code = match self {
            Self::SignIn { .. } => 302,
            Self::Unauthenticated { .. } => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::DeviceUnauthorized => 450,
            Self::ClientCertificate { .. } => 495,
            Self::BadRequest => 400,
        };
        // 450 and 495 are not registered, but lie in the range that the type accepts.
        StatusCode::from_u16(code).unwrap_or(StatusCode::FORBIDDEN)
    }
}

/// There is no decision. The request is answered with 503 and goes nowhere.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuthorizeError {
    #[error("no authorize service could be reached in time: {reason}")]
    Unreachable { reason: String },
    #[error("authorize cannot decide just now: {reason}")]
    DataUnavailable { reason: String },
    /// Authorize has another configuration than proxy: it never saw this route, or its copy of
    /// the route differs.
    #[error("authorize has no route {route:?} with this content; configurations differ")]
    UnknownConfiguration { route: RouteId },
}

/// Decides about requests in the process that asks. Across the network proxies have streams.
pub trait Authorizer: Send + Sync + 'static {
    /// Answers within `grpc_client_timeout`, or fails.
    ///
    /// The question is shared, because proxy keeps it for as long as the request is open: it asks
    /// again when a [`Revisit`] or [`Allow::valid_until`] says so.
    fn check(&self, request: Arc<CheckRequest>) -> BoxFuture<'_, Result<Decision, AuthorizeError>>;

    /// Tells which open requests must be asked about again, because a record or the configuration
    /// behind their decision has changed.
    fn revisits(&self) -> tokio::sync::broadcast::Receiver<Revisit>;
}

/// The decisions of these requests no longer stand; ask again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revisit {
    Session(String),
    User(String),
    Everything,
}
