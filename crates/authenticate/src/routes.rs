//! Every path of the authenticate host, its handler, and who may call it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use postern_common::crypto::form;
use postern_common::telemetry::trace::{self, Span, Value};
use postern_common::web::refusal::{Origin, Refusal};
use postern_common::web::request_id;
use serde_json::json;

use crate::call::{Call, RequestId, Under, redirect};
use crate::snapshot::{Snapshot, path};
use crate::{Authenticate, callback, pages, sign_in, sign_out, verify};

/// Largest body that is read: a provider's form with an ID token, or a token to verify.
const MAX_BODY: usize = 256 * 1024;

/// An answer comes within this time. A sign-in may need several calls to a provider, each of
/// which has a deadline of its own.
const DEADLINE: Duration = Duration::from_secs(45);

const VERIFY_ACCESS: &str = "/.pomerium/verify-access-token";
const VERIFY_IDENTITY: &str = "/.pomerium/verify-identity-token";

/// The whole service. Whoever serves it does TLS and limits connections.
pub fn router(service: Arc<Authenticate>) -> Router {
    Router::new()
        // Anybody: nothing is told or done.
        .route("/", get(async || redirect("/.pomerium/")))
        .route("/.pomerium", get(async || redirect("/.pomerium/")))
        .route("/ping", get(async || "OK\n"))
        .route("/healthz", get(async || "OK\n"))
        .route("/robots.txt", get(async || "User-agent: *\nDisallow: /\n"))
        .route(
            path::SIGNED_OUT,
            get(async |call: Call| sign_out::signed_out(&call)),
        )
        .route(
            "/.well-known/pomerium",
            get(async |call: Call| about(&call)),
        )
        .route(
            "/.well-known/pomerium/",
            get(async |call: Call| about(&call)),
        )
        .route(
            "/.well-known/pomerium/jwks.json",
            get(async |call: Call| keys(&call)),
        )
        // Whoever has a URL that one of our services signed.
        .route(
            path::SIGN_IN,
            get(async |call: Call| call.finish(sign_in::handle(&call).await))
                .options(async |call: Call| call.finish(sign_in::preflight(&call))),
        )
        // The browser that began, with the state and the cookie that it was given.
        .route(
            path::CALLBACK,
            get(async |call: Call| {
                let parameters = form::parse(&call.query).unwrap_or_default();
                let parameters = callback::Parameters::read(&parameters);
                call.finish(callback::handle(&call, parameters).await)
            })
            .post(async |call: Call, body: Body| {
                let body = text(body).await;
                let parameters = form::parse(&body).unwrap_or_default();
                let parameters = callback::Parameters::read(&parameters);
                call.finish(callback::handle(&call, parameters).await)
            }),
        )
        // A signed URL; else a form of ours in the same browser.
        .route(
            path::SIGN_OUT,
            get(async |call: Call| call.finish(sign_out::handle(&call, "").await)).post(
                async |call: Call, body: Body| {
                    let body = text(body).await;
                    call.finish(sign_out::handle(&call, &body).await)
                },
            ),
        )
        // Somebody who is signed in; others are sent to sign in.
        .route(
            "/.pomerium/",
            get(async |call: Call| call.finish(pages::account(&call).await)),
        )
        // Our own services, by their token.
        .route(
            VERIFY_ACCESS,
            post(async |call, body| verify_token(call, body, verify::Kind::Access).await),
        )
        .route(
            VERIFY_IDENTITY,
            post(async |call, body| verify_token(call, body, verify::Kind::Identity).await),
        )
        .fallback(async |call: Call| call.finish(pages::not_found(&call)))
        .method_not_allowed_fallback(async |call: Call| {
            call.finish(pages::method_not_allowed(&call))
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&service), frame))
        .with_state(service)
}

async fn verify_token(call: Call, body: Body, kind: verify::Kind) -> Response {
    let body = to_bytes(body, MAX_BODY).await.unwrap_or_default();
    call.finish(verify::handle(&call, kind, &body).await)
}

/// A form's text; nothing if it is too large or no text.
async fn text(body: Body) -> String {
    let bytes = to_bytes(body, MAX_BODY).await.unwrap_or_default();
    String::from_utf8(bytes.into()).unwrap_or_default()
}

/// Around every request: its id, one configuration, a deadline, refusal of other sites' forms, a
/// panic that costs this request only, and the response headers that are set everywhere.
async fn frame(
    State(service): State<Arc<Authenticate>>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = request_id::received(request.headers());
    let snapshot = service.snapshot.load_full();
    request.extensions_mut().insert(RequestId(Arc::clone(&id)));
    request
        .extensions_mut()
        .insert(Under(Arc::clone(&snapshot)));
    let mut span = span(&request, &id);
    let headers = request.headers().clone();
    let refuse = |status, reason: &str| {
        let refusal = Refusal::new(status, reason, Arc::clone(&id)).origin(Origin::Endpoint);
        refusal.respond(&headers, &snapshot.look).map(Body::from)
    };
    let mut response = if is_foreign_form(&request) {
        tracing::info!(
            "request-id" = &*id,
            path = request.uri().path(),
            "refused: sent by a page of another site"
        );
        refuse(
            StatusCode::BAD_REQUEST,
            "This was sent by a page of another site.",
        )
    } else {
        let answer = trace::within(span.kept(), next.run(request));
        let answer = AssertUnwindSafe(answer).catch_unwind();
        match tokio::time::timeout(DEADLINE, answer).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => {
                tracing::error!("request-id" = &*id, "a request has panicked");
                refuse(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "Something went wrong here.",
                )
            }
            Err(_) => {
                tracing::error!(
                    "request-id" = &*id,
                    "a request took longer than {DEADLINE:?}"
                );
                refuse(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "This took too long. Try again.",
                )
            }
        }
    };
    finish(response.headers_mut(), &id, &snapshot);
    span.status(response.status());
    response
}

/// For what is done for a request, by us and by the databroker.
fn span(request: &Request, id: &str) -> Span {
    let mut span = Span::of_client(request.headers());
    if span.is_open() {
        let method = span.method(request.method());
        // What leads nowhere has no name, or strangers would make names.
        let path = request.extensions().get::<MatchedPath>();
        span.rename(match path {
            Some(path) => format!("{method} {}", path.as_str()),
            None => method.to_owned(),
        });
        span.set("url.path", &Value::Text(request.uri().path()));
        span.set("postern.request_id", &Value::Text(id));
    }
    span
}

fn finish(headers: &mut HeaderMap, id: &str, snapshot: &Snapshot) {
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(request_id::HEADER, id);
    }
    for (name, value) in &snapshot.config.http.set_response_headers {
        if !headers.contains_key(name) {
            headers.insert(name.clone(), value.clone());
        }
    }
}

/// Whether a page of another site sent this unsafe request. Exempt are those that come from other
/// sites by their nature and prove otherwise where they belong.
fn is_foreign_form(request: &Request) -> bool {
    let exempt = [path::CALLBACK, VERIFY_ACCESS, VERIFY_IDENTITY].contains(&request.uri().path());
    let safe = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    if exempt || safe {
        return false;
    }
    let headers = request.headers();
    if let Some(site) = headers.get("sec-fetch-site") {
        return site != "same-origin" && site != "none";
    }
    let Some(origin) = headers.get(header::ORIGIN) else {
        // No browser of the last years posts a form without it; the form's token decides.
        return false;
    };
    let host = match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok()),
    };
    let origin = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.split_once("://"));
    match (origin, host) {
        (Some((_, origin)), Some(host)) => !origin.eq_ignore_ascii_case(host),
        _ => true,
    }
}

/// `/.well-known/pomerium`, members in the order that clients have seen.
fn about(call: &Call) -> Response {
    let host = if call.host.is_empty() {
        &call.snapshot.external
    } else {
        &call.host
    };
    let member = |path: &str| json!(format!("https://{host}{path}")).to_string();
    let body = format!(
        r#"{{"issuer":{},"authentication_callback_endpoint":{},"jwks_uri":{},"frontchannel_logout_uri":{}}}"#,
        member("/"),
        json!(call.snapshot.url(path::CALLBACK, None).as_str()),
        member("/.well-known/pomerium/jwks.json"),
        member("/.pomerium/sign_out"),
    );
    public(body, &[])
}

/// The public keys of the assertion.
fn keys(call: &Call) -> Response {
    let jwks = call.snapshot.config.signing_keys.jwks();
    let etag = [
        (header::ETAG, jwks.etag.as_str()),
        (header::CACHE_CONTROL, "max-age=60"),
    ];
    let known = call.headers.get_all(header::IF_NONE_MATCH).iter();
    let known = known
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    if known
        .map(str::trim)
        .any(|tag| tag == jwks.etag || tag == "*")
    {
        let mut response = public(String::new(), &etag);
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    public(jwks.body.clone(), &etag)
}

/// JSON that every origin may read.
fn public(body: String, more: &[(HeaderName, &str)]) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        HeaderValue::from_static("*"),
    );
    for (name, value) in more {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name.clone(), value);
        }
    }
    response
}
