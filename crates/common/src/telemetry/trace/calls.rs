//! Calls between services: the place in the trace goes along as metadata, and the callee has a span.

use axum::extract::Request;
use axum::middleware::{self, Next};
use http::{HeaderMap, HeaderName};
use tonic::service::Routes;
use tonic::{Code, Status};

use super::{Kind, Place, Span, Value, current, on, within};

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Calls that last as long as the services do say nothing about a request.
const ENDLESS: [&str; 1] = ["/databroker.DataBrokerService/Sync"];

/// Tells the callee what the current task works for.
pub fn mark(headers: &mut HeaderMap) {
    if let Some(place) = current().and_then(|place| place.header()) {
        headers.insert(TRACEPARENT, place);
    }
}

/// Tells whoever a request is passed on to where it stands. What others said of the trace stays, if it
/// is the same trace.
pub fn pass_on(place: Place, received: &HeaderMap, sent: &mut HeaderMap) {
    if Place::of(received).is_none() {
        sent.remove(TRACESTATE);
    }
    if let Some(place) = place.header() {
        sent.insert(TRACEPARENT, place);
    }
}

/// `routes`, with a span for each call that is made for a request that is traced. For callers who have
/// shown a token: others must not decide what is kept.
pub fn serve(routes: Routes) -> Routes {
    if on().is_none() {
        return routes;
    }
    let traced = routes.into_axum_router().layer(middleware::from_fn(
        async |request: Request, next: Next| {
            let path = request.uri().path();
            let place = Place::of(request.headers())
                .and_then(Place::if_kept)
                .filter(|_| !ENDLESS.contains(&path));
            if place.is_none() {
                return next.run(request).await;
            }
            let mut span = Span::under(place, Kind::Server, "call");
            let name = path.trim_start_matches('/').to_owned();
            span.set("rpc.system", &Value::Text("grpc"));
            if let Some((service, method)) = name.split_once('/') {
                span.set("rpc.service", &Value::Text(service));
                span.set("rpc.method", &Value::Text(method));
            }
            span.rename(name);
            let response = within(span.kept(), next.run(request)).await;
            // An answer with content tells its code behind it, and that is nearly always `OK`.
            let code = Status::from_header_map(response.headers()).map(|status| status.code());
            if let Some(code) = code {
                span.set(
                    "rpc.grpc.status_code",
                    &Value::Number(i64::from(i32::from(code))),
                );
                if !matches!(code, Code::Ok | Code::NotFound) {
                    span.failed();
                }
            }
            response
        },
    ));
    Routes::from(traced)
}
