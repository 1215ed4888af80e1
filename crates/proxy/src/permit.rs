//! Asks authorize, and makes permits. Nothing goes upstream without one.
//!
//! Only this file can make a [`Permit`]: its fields are private. It owns the request it was given
//! for, and `forward` takes it by value.

use std::rc::Rc;
use std::sync::Arc;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use http::{Extensions, HeaderMap, HeaderValue, Response, StatusCode, request::Parts};
use hyper::body::Incoming;
use postern_common::authz::{
    Allow, AuthorizeError, CheckRequest, CheckSubject, Decision, Deny, DenyKind,
};
use postern_common::config::{ErrorDetails, Route};
use postern_common::telemetry::trace::{Kind, Span};
use postern_common::web::refusal::Origin;

use crate::admission;
use crate::body::Body;
use crate::core::Core;
use crate::open::{Entry, Open};
use crate::refuse::Stop;
use crate::request::Request;
use crate::revisit;
use crate::sign_in_loop;
use crate::snapshot::{AuthenticateWay, Prepared, Snapshot};

/// How often a question is asked anew because something changed while it was asked.
const STALE_ANSWERS: usize = 3;

/// The right of one request to go where its route leads.
#[derive(Debug)]
pub(crate) struct Permit {
    request: Request,
    question: Arc<CheckRequest>,
    body: Incoming,
    extensions: Extensions,
    allow: Box<Allow>,
    way: Way,
    open: Open,
}

/// Where a permit leads.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    Route(Arc<Prepared>),
    /// To authenticate, by the built-in route: people who sign in have no session yet, so nobody
    /// is asked.
    Authenticate,
    /// The same, by the route that names its host.
    AuthenticateRoute(Arc<Prepared>),
}

/// A permit in use.
#[derive(Debug)]
pub(crate) struct Permitted {
    pub request: Request,
    /// The client's headers stand in it.
    pub question: Arc<CheckRequest>,
    pub body: Incoming,
    pub extensions: Extensions,
    pub allow: Box<Allow>,
    pub way: Way,
    pub open: Open,
    _only_from_a_permit: (),
}

impl Permit {
    pub(crate) fn redeem(self) -> Permitted {
        let Self {
            request,
            question,
            body,
            extensions,
            allow,
            way,
            open,
        } = self;
        Permitted {
            request,
            question,
            body,
            extensions,
            allow,
            way,
            open,
            _only_from_a_permit: (),
        }
    }
}

/// Asks about a request for `route`.
pub(crate) async fn ask(
    core: &Rc<Core>,
    request: Request,
    head: &mut Parts,
    body: Incoming,
    route: &Arc<Prepared>,
    kept: &mut Option<Arc<CheckRequest>>,
) -> Result<Permit, Stop> {
    let subject = CheckSubject::Route {
        id: route.route.id.clone(),
        checksum: route.route.checksum,
    };
    let asking = Span::under(request.trace, Kind::Client, "authorize");
    let question = Arc::new(CheckRequest {
        trace: asking.kept(),
        ..request.question(subject, std::mem::take(&mut head.headers))
    });
    *kept = Some(Arc::clone(&question));
    let open = core.open.enter(Arc::clone(&question));
    let allow = decide(core, open.entry(), Some(&route.route)).await?;
    drop(asking);
    Ok(Permit {
        request,
        question,
        body,
        extensions: std::mem::take(&mut head.extensions),
        allow,
        way: Way::Route(Arc::clone(route)),
        open,
    })
}

/// For a request to the host that people sign in at, and nowhere else.
pub(crate) fn for_authenticate(
    core: &Rc<Core>,
    snapshot: &Snapshot,
    request: Request,
    head: &mut Parts,
    body: Incoming,
    kept: &mut Option<Arc<CheckRequest>>,
) -> Option<Permit> {
    if !snapshot.is_authenticate(&request.target.authority) || request.target.is_tunnel() {
        return None;
    }
    let way = match snapshot.authenticate.way {
        AuthenticateWay::Route => {
            Way::AuthenticateRoute(Arc::clone(snapshot.authenticate_route(&request.target)?))
        }
        AuthenticateWay::InProcess | AuthenticateWay::BuiltIn(..) => Way::Authenticate,
    };
    let headers = std::mem::take(&mut head.headers);
    let question = Arc::new(request.question(CheckSubject::OwnEndpoint, headers));
    *kept = Some(Arc::clone(&question));
    let open = core.open.enter_unasked(Arc::clone(&question));
    Some(Permit {
        request,
        question,
        body,
        extensions: std::mem::take(&mut head.extensions),
        allow: Box::default(),
        way,
        open,
    })
}

/// Who is asking for one of our own pages. Pages that need a session are refused without one.
pub(crate) async fn identify(
    core: &Rc<Core>,
    request: &Request,
    headers: &HeaderMap,
) -> Result<Box<Allow>, Stop> {
    let asking = Span::under(request.trace, Kind::Client, "authorize");
    let question = Arc::new(CheckRequest {
        trace: asking.kept(),
        ..request.question(CheckSubject::OwnEndpoint, headers.clone())
    });
    let open = core.open.enter(question);
    decide(core, open.entry(), None).await
}

/// The decision about an open request, or the answer that it gets instead.
async fn decide(
    core: &Rc<Core>,
    entry: &Rc<Entry>,
    route: Option<&Arc<Route>>,
) -> Result<Box<Allow>, Stop> {
    let metrics = &core.shared.metrics;
    let mut asked = 0;
    loop {
        asked += 1;
        entry.asking();
        let waiting = admission::wait(core)?;
        let decision = core.authorizer.check(entry.question()).await;
        drop(waiting);
        match decision {
            Ok(Decision::Allow(allow)) => {
                if entry.has_changed() && asked < STALE_ANSWERS {
                    continue;
                }
                entry.allowed(&allow);
                if entry.has_changed() {
                    // It may pass, but not unwatched: what changed has not been answered for.
                    revisit::ask_again(core, vec![Rc::clone(entry)]);
                }
                metrics.allowed.inc();
                return Ok(allow);
            }
            Ok(Decision::Deny(deny)) => {
                metrics.denied.inc();
                let cookie_name = &core.snapshot().config.cookie.name;
                return Err(denied(*deny, &entry.question(), route, cookie_name));
            }
            Err(error) => {
                metrics.undecided.inc();
                return Err(undecided(&error));
            }
        }
    }
}

/// 503: whatever went wrong, it is never "signed out", and it is never "come in".
pub(crate) fn undecided(error: &AuthorizeError) -> Stop {
    Stop::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "ext_authz_error",
        "Whether you may pass cannot be found out just now. Please try again in a moment.",
    )
    .grpc(14)
    .because(error.to_string())
}

fn denied(
    deny: Deny,
    question: &CheckRequest,
    route: Option<&Arc<Route>>,
    cookie_name: &str,
) -> Stop {
    if let DenyKind::SignIn { location } = &deny.kind {
        if let Some(cause) = sign_in_loop::cause(&question.headers, cookie_name) {
            return Stop::new(StatusCode::UNAUTHORIZED, "sign_in_loop", cause)
                .origin(Origin::Endpoint)
                .because(format!(
                    "signed in, and refused all the same: {}",
                    deny.message
                ));
        }
        return sign_in(location, &deny, question);
    }
    if &*question.path == "/robots.txt" {
        return Stop::response(robots(), "ext_authz_denied");
    }
    let show = route.is_some_and(|route| route.error_details == ErrorDetails::Show);
    let sign_in_url = match &deny.kind {
        DenyKind::Unauthenticated { sign_in_url } => sign_in_url.clone(),
        _ => None,
    };
    let status = deny.kind.status();
    Stop::new(status, "ext_authz_denied", deny.message)
        .origin(Origin::Policy)
        .with(|reason| {
            reason.headers = deny.headers;
            reason.shown_details = deny.details.filter(|_| show);
            reason.sign_in_url = sign_in_url;
        })
}

fn sign_in(location: &str, deny: &Deny, question: &CheckRequest) -> Stop {
    let Ok(location) = HeaderValue::try_from(location) else {
        return undecided(&AuthorizeError::DataUnavailable {
            reason: "the sign-in URL cannot be a header".to_owned(),
        });
    };
    if &*question.path == "/robots.txt" {
        return Stop::response(robots(), "ext_authz_denied");
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::FOUND;
    let headers = response.headers_mut();
    for (name, value) in &deny.headers {
        headers.append(name, value.clone());
    }
    headers.insert(LOCATION, location);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Stop::response(response, "ext_authz_denied")
}

/// What crawlers get on routes that they may not read.
pub(crate) fn robots() -> Response<Body> {
    let mut response = Response::new(Body::full("User-agent: *\nDisallow: /\n"));
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}
