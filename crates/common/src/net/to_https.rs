//! `http_redirect_addr`: sends clear-text HTTP to HTTPS, and answers health checks.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::accept::{Bounds, accept};
use super::in_use::{InUse, Patience};
use super::served;
use crate::authz::Scheme;
use crate::config::{Config, PathNormalization};
use crate::lifecycle::{Lifecycle, Phase};
use crate::route::{RawTarget, Target, authority_of};
use crate::web::credentials::without_session;

/// From the first byte of a request's head to its last.
const HEAD: Duration = Duration::from_secs(15);

/// Each carries next to nothing.
const BOUNDS: Bounds = Bounds {
    kind: "redirect",
    connections: 4096,
};

/// The head of a request takes no longer either, between two of them as well.
const PATIENCE: Patience = Patience {
    first_call: HEAD,
    idle: HEAD,
};

/// Serves until the listeners close.
pub async fn serve(
    listener: std::net::TcpListener,
    config: watch::Receiver<Arc<Config>>,
    lifecycle: &Lifecycle,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "http_redirect_addr cannot be served"),
    };
    accept(listener, BOUNDS, lifecycle, |stream, _| {
        let (config, lifecycle) = (config.clone(), lifecycle.clone());
        async move {
            let in_use = InUse::new();
            let calls = Arc::clone(&in_use);
            let draining = lifecycle.clone();
            let service = service_fn(move |request| {
                let call = calls.call();
                let paths = config.borrow().http.path;
                let answer = answer(&request, paths, draining.phase() >= Phase::Draining);
                drop(call);
                std::future::ready(Ok::<_, Infallible>(answer))
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
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

fn answer(
    request: &Request<Incoming>,
    paths: PathNormalization,
    draining: bool,
) -> Response<Full<Bytes>> {
    let mut response = redirect(request, paths, draining);
    if draining {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response
}

fn redirect(
    request: &Request<Incoming>,
    paths: PathNormalization,
    draining: bool,
) -> Response<Full<Bytes>> {
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
            let target = Target::parse(raw, paths).ok()?;
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
