//! Brings a permitted request to its upstream, and the answer back. Both bodies stream.

pub(crate) mod exchange;
pub(crate) mod failures;
mod fixed;
pub(crate) mod headers;
mod outgoing;
mod redirect;
pub(crate) mod retry;
pub(crate) mod rewrite;

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use http::header::CONTENT_LENGTH;
use http::uri::PathAndQuery;
use http::{Extensions, HeaderMap, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use postern_common::authz::SessionSummary;
use postern_common::config::{ErrorDetails, PathMatcher, RouteTarget, UpstreamTarget};
use postern_common::telemetry::trace::{Kind, Span};

use self::exchange::{Progress, RequestBody, TimedOut, Timeouts, Trailers};
use self::headers::Receiver;
use self::outgoing::Outgoing;
use self::retry::Silence;
use crate::access_log::Record;
use crate::alarm::Alarm;
use crate::body::{Body, Exchange};
use crate::core::Core;
use crate::metrics::RouteMetrics;
use crate::open::{Closed, Open};
use crate::permit::{Permit, Permitted, Way};
use crate::refuse::Stop;
use crate::respond;
use crate::serve::{Headers, Reply};
use crate::snapshot::{AuthenticateWay, Destination, Prepared, Snapshot};
use crate::tunnel;
use crate::upgrade;
use crate::upstream::connect::Needs;
use crate::upstream::pool::{Lease, Pool};
use crate::upstream::{Cluster, Member};

/// Does what the permit says: forward, redirect, answer, or open a tunnel.
pub(crate) async fn forward(
    core: &Rc<Core>,
    snapshot: &Arc<Snapshot>,
    permit: Permit,
    record: &mut Record,
) -> Result<Reply, Stop> {
    let permitted = permit.redeem();
    let way = permitted.way.clone();
    match way {
        Way::Authenticate => match &snapshot.authenticate.way {
            AuthenticateWay::BuiltIn(target, destination) => {
                let plan = Plan {
                    target,
                    matcher: &PathMatcher::Any,
                    route: None,
                    cluster: cluster(destination)?,
                    receiver: Receiver::Authenticate,
                };
                proxied(core, snapshot, permitted, &plan, record).await
            }
            // The route that names the host has been found by `authenticate`, which made the
            // permit for it; in-process authenticate needs none.
            AuthenticateWay::InProcess | AuthenticateWay::Route => {
                Err(failures::unavailable("no way to authenticate"))
            }
        },
        Way::Route(ref route) | Way::AuthenticateRoute(ref route) => {
            let receiver = match way {
                Way::Route(_) => Receiver::Upstream,
                Way::Authenticate | Way::AuthenticateRoute(_) => Receiver::Authenticate,
            };
            let (target, cluster) = match (&route.route.target, &route.cluster) {
                (RouteTarget::Redirect(redirect), _) => {
                    return Ok(fixed::redirected(&permitted, route, redirect));
                }
                (RouteTarget::Response(fixed), _) => return Ok(fixed::response(route, fixed)),
                (RouteTarget::Upstream(target), Some(destination)) => {
                    (target, cluster(destination)?)
                }
                (RouteTarget::Upstream(_), None) => {
                    return Err(failures::unavailable("no endpoints"));
                }
            };
            if permitted.request.target.is_tunnel() && tunnel::is_raw(cluster) {
                return tunnel::open(core, permitted, cluster, target).await;
            }
            let matcher = &route.route.matcher;
            let plan = Plan {
                target,
                matcher,
                route: Some(route),
                cluster,
                receiver,
            };
            proxied(core, snapshot, permitted, &plan, record).await
        }
    }
}

/// Everything the configuration says about one way.
struct Plan<'a> {
    target: &'a UpstreamTarget,
    matcher: &'a PathMatcher,
    route: Option<&'a Arc<Prepared>>,
    cluster: &'a Cluster,
    receiver: Receiver,
}

impl Plan<'_> {
    fn metrics(&self) -> Option<&RouteMetrics> {
        self.route.map(|route| &*route.metrics)
    }

    fn tries<'t>(&'t self, pool: &'t Pool, session: Option<&SessionSummary>) -> retry::Tries<'t> {
        let tries = retry::Tries::new(self.cluster, pool, session);
        match self.receiver {
            Receiver::Upstream => tries,
            Receiver::Authenticate => tries.asking_first(),
        }
    }

    fn is_watched(&self) -> bool {
        matches!(self.receiver, Receiver::Authenticate)
    }

    /// Authenticate may hang with the request. An application may well take its time.
    fn silence<'t>(
        &self,
        tries: &'t retry::Tries<'_>,
        needs: Needs,
        may_repeat: bool,
    ) -> Option<LocalBoxFuture<'t, Silence>> {
        self.is_watched()
            .then(|| tries.silence(needs, may_repeat).boxed_local())
    }

    /// What only operators may see, unless the route has `show_error_details`.
    fn without_hidden_details(&self, stop: Stop) -> Stop {
        let show = self.route.map(|route| route.route.error_details);
        stop.with(|reason| {
            reason
                .shown_details
                .take_if(|_| show != Some(ErrorDetails::Show));
        })
    }
}

fn cluster(destination: &Destination) -> Result<&Cluster, Stop> {
    match destination {
        Destination::Cluster(cluster) => Ok(cluster),
        Destination::Broken(reason) => Err(failures::unavailable(reason)),
    }
}

async fn proxied(
    core: &Rc<Core>,
    snapshot: &Arc<Snapshot>,
    permitted: Permitted,
    plan: &Plan<'_>,
    record: &mut Record,
) -> Result<Reply, Stop> {
    let Permitted {
        request,
        question,
        body,
        mut extensions,
        allow,
        open,
        ..
    } = permitted;
    let tunnel = request.target.is_tunnel();
    let client_upgrade =
        (tunnel || request.upgrade.is_some()).then(|| upgrade::of_client(&mut extensions));
    let progress = Progress::new(request.received, !body.is_end_stream());
    let timeouts = timeouts(snapshot, plan.target, &request, &question.headers);
    let had_no_body = body.is_end_stream();
    let may_repeat = had_no_body && retry::is_idempotent(&request.method);
    let mut body = request_body(body, snapshot, &request, &progress);
    let path = rewrite::path(&plan.target.rewrite, plan.matcher, request.target.path());
    let path_and_query = rewrite::path_and_query(&path, request.target.query());
    let path_and_query = PathAndQuery::try_from(path_and_query)
        .map_err(|error| Stop::bad_request("invalid_rewritten_path", error.to_string()))?;
    let upgrades = client_upgrade.as_ref();
    let needs = upgrades.map_or(Needs::Http, |_| Needs::Http1);
    let mut tries = plan.tries(&core.pool, allow.session.as_deref());
    let mut span = Span::under(request.trace, Kind::Client, "upstream");
    // Until there is an answer.
    span.failed();
    loop {
        let leased = tries.lease(needs, plan.metrics()).await;
        let (member, mut lease) = leased.map_err(|stop| plan.without_hidden_details(stop))?;
        check_protocol(&request, member, &lease)?;
        let outgoing = Outgoing {
            snapshot,
            request: &request,
            headers: &question.headers,
            allow: &allow,
            plan,
            member,
            path: &path,
            path_and_query: &path_and_query,
            trace: span.place(),
        };
        let (mut sending, host) = outgoing.build(lease.is_http2(), body)?;
        let again = may_repeat && (lease.reused || plan.is_watched());
        *sending.extensions_mut() = lent(&mut extensions, again);
        record.forwarded(Some(host), path.clone().into_owned());
        let sent = head(
            lease.send(sending),
            plan.silence(&tries, needs, may_repeat),
            &mut lease.alarm,
            &progress,
            &timeouts.for_head(tunnel),
            &open,
        )
        .await;
        match sent {
            Ok(response) => {
                span.status(response.status());
                let exchange = Exchange {
                    lease: Some(lease),
                    progress,
                    timeouts,
                    grpc: request.grpc,
                };
                return answer(
                    snapshot,
                    plan,
                    response,
                    exchange,
                    open,
                    client_upgrade,
                    &request,
                );
            }
            Err(NoHead::Send(mut error)) => {
                let unsent = taken_back(&mut error, &mut extensions);
                let error = error.into_error();
                if progress.request_is_broken_off() {
                    return Err(failures::broken_off());
                }
                // What was not sent may go elsewhere; what was, only if it may be done twice.
                let twice = lease.reused && may_repeat;
                let again = twice.then(|| RequestBody::empty(Rc::clone(&progress)));
                body = unsent
                    .or(again)
                    .filter(|_| tries.left())
                    .ok_or_else(|| failures::broken(&member.endpoint.name, &error))?;
                tries.again(plan.metrics(), &error);
            }
            Err(NoHead::Silent(silence)) => body = elsewhere(silence, &progress)?,
            Err(NoHead::TimedOut(which)) => {
                if let Some(metrics) = plan.metrics() {
                    metrics.timeout.inc();
                }
                return Err(failures::timed_out(which, progress.request_is_done()));
            }
            Err(NoHead::BrokenOff) => return Err(failures::broken_off()),
            Err(NoHead::Closed(why)) => return Err(failures::withdrawn(why)),
        }
    }
}

/// The body of a request that nobody answers, for another one that may take it.
fn elsewhere(silence: Silence, progress: &Rc<Progress>) -> Result<RequestBody, Stop> {
    match silence {
        Silence::Elsewhere => Ok(RequestBody::empty(Rc::clone(progress))),
        Silence::Lost => Err(failures::silent()),
    }
}

/// What its client's connection knows of a request, such as how it wrote the names of headers. Kept
/// where the request may have to be sent again.
fn lent(extensions: &mut Extensions, again: bool) -> Extensions {
    if again {
        extensions.clone()
    } else {
        std::mem::take(extensions)
    }
}

/// The body of a request that was not sent. What its client's connection knows of it goes back to
/// where it came from.
fn taken_back(
    error: &mut TrySendError<Request<RequestBody>>,
    extensions: &mut Extensions,
) -> Option<RequestBody> {
    let (head, body) = error.take_message()?.into_parts();
    *extensions = head.extensions;
    Some(body)
}

/// What came instead of the head of an answer.
enum NoHead {
    Send(Box<TrySendError<Request<RequestBody>>>),
    TimedOut(TimedOut),
    /// The client's own request ended early.
    BrokenOff,
    Closed(Closed),
    Silent(Silence),
}

/// Waits for the head of the answer, no longer than the limits allow.
async fn head(
    sending: impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>,
    mut silence: Option<LocalBoxFuture<'_, Silence>>,
    alarm: &mut Alarm,
    progress: &Progress,
    timeouts: &Timeouts,
    open: &Open,
) -> Result<Response<Incoming>, NoHead> {
    let mut sending = pin!(sending);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
            return Poll::Ready(sent.map_err(|error| NoHead::Send(Box::new(error))));
        }
        if let Poll::Ready(why) = open.poll_closed(cx) {
            return Poll::Ready(Err(NoHead::Closed(why)));
        }
        if let Some(silence) = &mut silence
            && let Poll::Ready(silence) = silence.as_mut().poll(cx)
        {
            return Poll::Ready(Err(NoHead::Silent(silence)));
        }
        progress.wake_me(cx);
        if progress.request_is_broken_off() {
            return Poll::Ready(Err(NoHead::BrokenOff));
        }
        if let Some((at, which)) = progress.deadline(timeouts)
            && alarm.poll(cx, at).is_ready()
        {
            return Poll::Ready(Err(NoHead::TimedOut(which)));
        }
        Poll::Pending
    })
    .await
}

fn answer(
    snapshot: &Snapshot,
    plan: &Plan<'_>,
    response: Response<Incoming>,
    exchange: Exchange,
    open: Open,
    client_upgrade: Option<hyper::upgrade::OnUpgrade>,
    request: &crate::request::Request,
) -> Result<Reply, Stop> {
    let (mut parts, incoming) = response.into_parts();
    let is_tunnel = request.target.is_tunnel();
    let upgraded = if is_tunnel {
        parts.status.is_success()
    } else {
        parts.status == StatusCode::SWITCHING_PROTOCOLS
    };
    if parts.status == StatusCode::SWITCHING_PROTOCOLS && (is_tunnel || client_upgrade.is_none()) {
        // Nobody asked for it: passing it on would open a channel that nobody watches.
        return Err(failures::protocol(
            "the upstream switched protocols without being asked",
        ));
    }
    let extended = request.upgrade.as_ref().is_some_and(|u| u.extended);
    if extended && !upgraded && parts.status.is_success() {
        // To the client it would be the connection that it wanted (RFC 8441 5).
        return Err(failures::protocol("the upstream did not switch protocols"));
    }
    if !respond::has_plain_body(&parts.headers) {
        return Err(failures::protocol(
            "the upstream answered with a transfer coding other than chunked",
        ));
    }
    let own = match plan.receiver {
        Receiver::Upstream => Some(snapshot.headers.own()),
        Receiver::Authenticate => None,
    };
    respond::clean(&mut parts.headers, own, upgraded && !is_tunnel);
    if let Some(route) = plan.route {
        respond::apply(&mut parts.headers, &route.route.response_headers);
    }
    let scope = if plan.route.is_some() {
        Headers::Route
    } else {
        Headers::Global
    };
    parts.version = Version::HTTP_11;
    let (Some(client), true) = (client_upgrade, upgraded) else {
        let body = Body::upstream(incoming, exchange, open);
        let response = Response::from_parts(parts, body);
        return Ok(Reply {
            response,
            headers: scope,
            details: "via_upstream",
            tunnel: None,
        });
    };
    let upstream = hyper::upgrade::on(Response::from_parts(parts.clone(), incoming));
    match &request.upgrade {
        Some(upgrade) if upgrade.extended => upgrade::answer_extended(&mut parts),
        Some(_) => {}
        // RFC 9110 9.3.6: what follows the answer to CONNECT is the tunnel.
        None => drop(parts.headers.remove(CONTENT_LENGTH)),
    }
    let tunnel = upgrade::between(
        client,
        upstream,
        request.upgrade.as_ref(),
        open,
        exchange.timeouts,
    );
    let response = Response::from_parts(parts, Body::empty());
    let tunnel = Some(Box::new(tunnel));
    Ok(Reply {
        response,
        headers: scope,
        details: "via_upstream",
        tunnel,
    })
}

fn request_body(
    body: Incoming,
    snapshot: &Snapshot,
    request: &crate::request::Request,
    progress: &Rc<Progress>,
) -> RequestBody {
    let trailers = if request.grpc {
        Trailers::Pass(Arc::clone(&snapshot.headers))
    } else {
        Trailers::Drop
    };
    RequestBody::new(body, Rc::clone(progress), trailers)
}

fn timeouts(
    snapshot: &Snapshot,
    target: &UpstreamTarget,
    request: &crate::request::Request,
    headers: &HeaderMap,
) -> Timeouts {
    let http = &snapshot.config.http;
    let limit = |duration: Duration| (duration > Duration::ZERO).then_some(duration);
    // An upgrade lives as long as it likes, unless the route's own key says otherwise; loading
    // has already turned the default off where upgrades are allowed.
    let grpc = request
        .grpc
        .then(|| headers.get("grpc-timeout"))
        .flatten()
        .and_then(retry::grpc_timeout);
    let total = match (target.timeout, grpc) {
        (Some(total), Some(grpc)) => Some(total.min(grpc)),
        (total, grpc) => total.or(grpc),
    };
    Timeouts {
        read: limit(http.timeout_read),
        total,
        idle: target.idle_timeout,
        write: limit(http.timeout_write),
    }
}

/// gRPC needs HTTP/2 all the way.
fn check_protocol(
    request: &crate::request::Request,
    member: &Member,
    lease: &Lease,
) -> Result<(), Stop> {
    if !request.grpc || lease.is_http2() {
        return Ok(());
    }
    let cause = format!(
        "{} speaks HTTP/1.1 and the request is gRPC; use h2c:// or an https upstream with HTTP/2",
        member.endpoint.name
    );
    Err(Stop::new(
        StatusCode::BAD_GATEWAY,
        "upstream_protocol_error",
        "The application behind this address does not speak HTTP/2, which gRPC needs.",
    )
    .grpc(13)
    .because(cause))
}
