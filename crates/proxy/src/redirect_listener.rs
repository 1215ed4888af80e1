//! `http_redirect_addr`: sends clear-text HTTP to HTTPS, and answers health checks.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_common::authz::Scheme;
use postern_common::net::accept::{Bounds, accept};
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
            let stopping = shared.lifecycle.stopping();
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(&shared, &request)) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits::HEAD)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                // A client that breaks off is no event.
                _ = connection => {}
                () = stopping.cancelled() => {}
            }
        }
    })
    .await;
}

fn answer(shared: &Shared, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let snapshot = shared.snapshot.load();
    let mut response = Response::new(Full::default());
    if matches!(request.uri().path(), "/ping" | "/healthz") {
        *response.body_mut() = Full::from("OK\n");
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
