//! `http_redirect_addr`: sends clear-text HTTP to HTTPS, and answers health checks.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_common::authz::Scheme;
use postern_common::lifecycle::Phase;
use postern_common::net::accept::{Bounds, accept};
use postern_common::net::in_use::{InUse, Patience};
use postern_common::net::served;
use postern_common::route::{RawTarget, Target, authority_of};
use postern_common::web::credentials::without_session;
use tokio::net::TcpListener;

use crate::core::Shared;
use crate::limits;

/// Each carries next to nothing.
const BOUNDS: Bounds = Bounds {
    kind: "redirect",
    connections: 4096,
};

/// The head of a request takes no longer either, between two of them as well.
const PATIENCE: Patience = Patience {
    first_call: limits::HEAD,
    idle: limits::HEAD,
};

/// Serves until the listeners close.
pub(crate) async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "http_redirect_addr cannot be served"),
    };
    let lifecycle = shared.lifecycle.clone();
    accept(listener, BOUNDS, &lifecycle, |stream, _| {
        let shared = Arc::clone(&shared);
        async move {
            let (lifecycle, in_use) = (shared.lifecycle.clone(), InUse::new());
            let calls = Arc::clone(&in_use);
            let service = service_fn(move |request| {
                let (shared, call) = (Arc::clone(&shared), calls.call());
                async move {
                    let answer = answer(&shared, &request);
                    drop(call);
                    Ok::<_, Infallible>(answer)
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits::HEAD)
                .serve_connection(TokioIo::new(stream), service);
            let shut =
                |connection: Pin<&mut http1::Connection<_, _>>| connection.graceful_shutdown();
            let (connection, in_use) = (pin!(connection), (&*in_use, PATIENCE));
            // A client that breaks off is no event.
            let _ = served::run(connection, shut, Phase::IdleClosed, in_use, &lifecycle).await;
        }
    })
    .await;
}

fn answer(shared: &Shared, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let draining = shared.lifecycle.phase() >= Phase::Draining;
    let mut response = redirect(shared, request, draining);
    if draining {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response
}

fn redirect(shared: &Shared, request: &Request<Incoming>, draining: bool) -> Response<Full<Bytes>> {
    let snapshot = shared.snapshot.load();
    let mut response = Response::new(Full::default());
    let path = request.uri().path();
    if matches!(path, "/ping" | "/healthz") {
        if draining && path == "/healthz" {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            *response.body_mut() = Full::from("draining\n");
        } else {
            *response.body_mut() = Full::from("OK\n");
        }
        let text = HeaderValue::from_static("text/plain");
        response.headers_mut().insert(CONTENT_TYPE, text);
        return response;
    }
    let location = authority_of(request.uri(), request.headers())
        .ok()
        .and_then(|authority| {
            let raw = RawTarget {
                method: request.method(),
                scheme: Scheme::Http,
                authority,
                uri: request.uri(),
            };
            let target = Target::parse(raw, snapshot.config.http.path).ok()?;
            (!target.is_tunnel()).then(|| https(&target))
        });
    match location.and_then(|location| HeaderValue::try_from(location).ok()) {
        Some(location) => {
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            response.headers_mut().insert(LOCATION, location);
        }
        None => *response.status_mut() = StatusCode::BAD_REQUEST,
    }
    response
}

/// The same address over HTTPS. A port belongs to clear text, so it is left out.
fn https(target: &Target) -> String {
    let query = target
        .query()
        .map(without_session)
        .filter(|query| !query.is_empty());
    let (host, path) = (target.authority.name(), target.path());
    match query {
        Some(query) => format!("https://{host}{path}?{query}"),
        None => format!("https://{host}{path}"),
    }
}
