//! The life of a request, top to bottom.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;

use futures::FutureExt as _;
use http::header::{CONNECTION, STRICT_TRANSPORT_SECURITY};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, request::Parts};
use hyper::body::{Body as _, Incoming};
use postern_common::authz::CheckRequest;
use postern_common::lifecycle::Phase;
use postern_common::web::request_id;
use tokio::time::Instant;

use crate::access_log::Record;
use crate::body::{Body, Life};
use crate::connection::Client;
use crate::core::Core;
use crate::forward::{self, headers::X_REQUEST_ID};
use crate::refuse::Stop;
use crate::snapshot::Snapshot;
use crate::upgrade::{self, Tunnel};
use crate::{admission, authenticate, internal, permit, request, respond};

/// What a request is answered with.
pub(crate) struct Reply {
    pub response: Response<Body>,
    pub headers: Headers,
    /// `response-code-details` of the access log.
    pub details: &'static str,
    /// What the connection becomes after the answer.
    pub tunnel: Option<Box<Tunnel>>,
}

/// Whose `set_response_headers` an answer carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Headers {
    /// The route's, applied already.
    Route,
    /// The global ones.
    Global,
}

/// Answers a request. Neither an error nor a panic gets past here.
pub(crate) async fn serve(
    core: Rc<Core>,
    client: Rc<Client>,
    raw: http::Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    // What follows CONNECT is no body, and comes all the same.
    let whole = raw.body().is_end_stream() && *raw.method() != Method::CONNECT;
    let active = client.activity.request(whole);
    let busy = core.shared.lifecycle.busy();
    let snapshot = core.snapshot();
    let (mut head, body) = raw.into_parts();
    let mut record = Record::begin(
        request_id::new(),
        Instant::now(),
        Arc::clone(&snapshot.log_fields),
        Arc::clone(&core.shared.metrics),
        &head.method,
        &head.uri,
        &head.headers,
    );
    // Where the client's headers are once authorize has been asked.
    let mut kept = None;
    let answering = answer(
        &core,
        &snapshot,
        &client,
        &mut head,
        body,
        &mut record,
        &mut kept,
    );
    let outcome = AssertUnwindSafe(answering).catch_unwind().await;
    let outcome = outcome.unwrap_or_else(|_| Err(panicked()));
    let (response, tunnel) = finish(
        &core,
        &snapshot,
        outcome,
        &head,
        kept.as_deref(),
        &mut record,
    );
    let life = Life {
        record,
        active,
        _client: client,
        _busy: busy,
    };
    match tunnel {
        None => {
            if head.method == Method::CONNECT {
                upgrade::decline(&core, upgrade::of_client(&mut head.extensions));
            }
            Ok(response.map(|body| body.with_life(life)))
        }
        Some(tunnel) => {
            // What comes from now on is for the far end.
            life.active.request_is_read();
            tunnel.spawn(&core, life);
            Ok(response)
        }
    }
}

/// The steps, in the order in which security needs them.
async fn answer(
    core: &Rc<Core>,
    snapshot: &Arc<Snapshot>,
    client: &Client,
    head: &mut Parts,
    body: Incoming,
    record: &mut Record,
    kept: &mut Option<Arc<CheckRequest>>,
) -> Result<Reply, Stop> {
    let mut request = request::read(
        head,
        Arc::clone(&record.id),
        record.started,
        client,
        snapshot,
    )?; // 400, 421
    record.request(&mut request);
    if internal::is_probe(&request, record) {
        return internal::probe(core, &request);
    }
    admission::check(core)?; // 503
    // Boxed, as the next: rare, and larger than what the other requests need.
    if authenticate::takes(snapshot, &request) {
        let answer = authenticate::answer(core, snapshot, request, head, body, record, kept);
        return Box::pin(answer).await;
    }
    if let Some(endpoint) = internal::find(&request.target) {
        record.own(internal::CLUSTER);
        let answer = internal::answer(core, snapshot, &request, head, body, endpoint);
        return Box::pin(answer).await;
    }
    let route = snapshot.route(&request.target).ok_or_else(no_route)?; // 404
    record.route(route);
    let passed = async {
        let origins = upgrade::Origins::under(snapshot.config.cookie.same_site);
        upgrade::check(&request, &route.route, origins, &head.headers)?; // 403
        let permit = permit::ask(core, request, head, body, route, kept).await?; // 302, 401, 403, 495, 503
        forward::forward(core, snapshot, permit, record).await
    };
    passed
        .await
        .map_err(|stop| stop.with_cors_of(&route.route.response_headers))
}

/// Completes the answer and notes it down.
fn finish(
    core: &Core,
    snapshot: &Snapshot,
    outcome: Result<Reply, Stop>,
    head: &Parts,
    kept: Option<&CheckRequest>,
    record: &mut Record,
) -> (Response<Body>, Option<Box<Tunnel>>) {
    let (mut response, headers, tunnel) = match outcome {
        Ok(reply) => {
            record.answered(reply.response.status(), reply.details, None);
            (reply.response, reply.headers, reply.tunnel)
        }
        Err(mut stop) => {
            let (details, cause) = (stop.details, stop.cause.take());
            let headers = kept.map_or(&head.headers, |question| &question.headers);
            let id = Arc::clone(&record.id);
            let response = stop.into_response(headers, id, &snapshot.look);
            record.answered(response.status(), details, cause);
            (response, Headers::Global, None)
        }
    };
    if head.method == Method::CONNECT && tunnel.is_none() && response.status().is_success() {
        // To the client it would be a connection to the far end (RFC 9110 9.3.6, RFC 8441 5).
        let refused = upgrade::refused();
        let details = refused.details;
        let id = Arc::clone(&record.id);
        // In no form whose status is another one than HTTP's.
        response = refused.into_response(&HeaderMap::new(), id, &snapshot.look);
        record.answered(response.status(), details, None);
    }
    if headers == Headers::Global {
        respond::set(
            response.headers_mut(),
            &snapshot.config.http.set_response_headers,
        );
    }
    if respond::is_localhost(record.host()) {
        // A browser would keep to HTTPS for whatever else runs on this machine, for a year.
        response.headers_mut().remove(STRICT_TRANSPORT_SECURITY);
    }
    if let Ok(mut id) = HeaderValue::try_from(&*record.id) {
        // No two are the same: HPACK's table would only be filled with them (RFC 7541 7.1.3).
        id.set_sensitive(true);
        response.headers_mut().insert(X_REQUEST_ID, id);
    }
    // What a client sends after CONNECT without waiting is for the far end, not requests to us.
    let last = core.phase() >= Phase::Draining || head.method == Method::CONNECT;
    if last && head.version <= Version::HTTP_11 && tunnel.is_none() {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    (response, tunnel)
}

/// No route: no question to authorize and no sign-in either.
fn no_route() -> Stop {
    let text = "There is nothing at this address.";
    Stop::new(StatusCode::NOT_FOUND, "route_not_found", text).grpc(5)
}

fn panicked() -> Stop {
    let text = "Something went wrong here. The request id leads to the reason in the log.";
    Stop::new(StatusCode::INTERNAL_SERVER_ERROR, "panic", text)
}
