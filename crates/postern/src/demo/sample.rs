//! The sample application: shows what it was told about the request and the person behind it.
//!
//! It stands for any upstream that verifies Postern's assertion: it fetches the public keys and
//! checks signature, audience and times with an ordinary JWT library.

use std::convert::Infallible;
use std::sync::Arc;

use askama::Template;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::any;
use axum::{Router, body::Body};
use futures::StreamExt;
use jsonwebtoken::jwk::JwkSet;
use serde::Serialize;

/// The header that carries the assertion.
const ASSERTION: &str = "x-pomerium-jwt-assertion";

/// Where the application gets the keys that verify assertions.
pub trait AssertionKeys: Send + Sync + 'static {
    /// The keys published for `host`, or why they can't be had.
    fn keys(&self, host: &str) -> futures::future::BoxFuture<'_, Result<JwkSet, String>>;
}

/// Any path shows the request; `/ws` echoes a WebSocket, `/events` sends a few events.
pub fn router(keys: Arc<dyn AssertionKeys>) -> Router {
    Router::new()
        .route("/ws", any(websocket))
        .route("/events", any(events))
        .fallback(show)
        .with_state(keys)
}

/// What came with a request.
#[derive(Debug, Serialize)]
struct Seen {
    method: String,
    host: String,
    path: String,
    query: Option<String>,
    headers: Vec<(String, String)>,
    assertion: Assertion,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Assertion {
    Absent,
    Refused(String),
    Verified(serde_json::Map<String, serde_json::Value>),
}

#[derive(Template)]
#[template(path = "sample.html")]
struct Page<'a> {
    greeting: String,
    seen: &'a Seen,
}

async fn show(State(keys): State<Arc<dyn AssertionKeys>>, request: Request<Body>) -> Response {
    let seen = look(&*keys, &request).await;
    if wants_json(request.headers()) {
        return Json(seen).into_response();
    }
    let page = Page {
        greeting: greeting(&seen.assertion),
        seen: &seen,
    };
    match page.render() {
        Ok(html) => Html(html).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn look(keys: &dyn AssertionKeys, request: &Request<Body>) -> Seen {
    let headers = request.headers();
    let host = text(headers, header::HOST.as_str())
        .or_else(|| request.uri().host().map(str::to_owned))
        .unwrap_or_default();
    let assertion = match text(headers, ASSERTION).filter(|value| !value.is_empty()) {
        None => Assertion::Absent,
        Some(token) => verify(keys, &token).await,
    };
    Seen {
        method: request.method().to_string(),
        host,
        path: request.uri().path().to_owned(),
        query: request.uri().query().map(str::to_owned),
        headers: headers
            .iter()
            .map(|(name, value)| {
                (
                    name.to_string(),
                    String::from_utf8_lossy(value.as_bytes()).into_owned(),
                )
            })
            .collect(),
        assertion,
    }
}

/// Only what the keys prove is believed, the audience included: it names the host whose keys are
/// asked, so a made-up one finds no key.
async fn verify(keys: &dyn AssertionKeys, token: &str) -> Assertion {
    match verified_claims(keys, token).await {
        Ok(claims) => Assertion::Verified(claims),
        Err(reason) => Assertion::Refused(reason),
    }
}

async fn verified_claims(
    keys: &dyn AssertionKeys,
    token: &str,
) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    let header = jsonwebtoken::decode_header(token).map_err(|error| error.to_string())?;
    let kid = header.kid.ok_or("the assertion names no key")?;
    let unverified = jsonwebtoken::dangerous::insecure_decode::<serde_json::Value>(token)
        .map_err(|error| error.to_string())?;
    let audience = unverified
        .claims
        .get("aud")
        .and_then(|aud| aud.as_str())
        .ok_or("the assertion names no audience")?
        .to_owned();
    let set = keys.keys(&audience).await?;
    let key = set
        .find(&kid)
        .ok_or_else(|| format!("no key {kid} is published for {audience}"))?;
    let decoding = jsonwebtoken::DecodingKey::from_jwk(key).map_err(|error| error.to_string())?;
    let mut rules = jsonwebtoken::Validation::new(header.alg);
    rules.set_audience(&[audience]);
    rules.set_required_spec_claims(&["exp", "aud"]);
    jsonwebtoken::decode(token, &decoding, &rules)
        .map(|data| data.claims)
        .map_err(|error| error.to_string())
}

fn greeting(assertion: &Assertion) -> String {
    let Assertion::Verified(claims) = assertion else {
        return "Hello, whoever you are".to_owned();
    };
    let named = |claim: &str| {
        claims
            .get(claim)
            .and_then(|value| value.as_str())
            .filter(|value| !value.is_empty())
    };
    match named("name").or_else(|| named("email")) {
        Some(name) => format!("Hello, {name}"),
        None => "Hello, whoever you are".to_owned(),
    }
}

fn wants_json(headers: &HeaderMap) -> bool {
    text(headers, header::ACCEPT.as_str()).is_some_and(|accept| {
        accept.contains("application/json") && !accept.contains("text/html")
    })
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
}

async fn websocket(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(echo)
}

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.next().await {
        let answer = match message {
            Message::Text(_) | Message::Binary(_) => message,
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return,
        };
        if socket.send(answer).await.is_err() {
            return;
        }
    }
}

async fn events() -> impl IntoResponse {
    let ticks = futures::stream::iter(1..=5)
        .then(|number| async move {
            if number > 1 {
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
            Ok::<_, Infallible>(Event::default().data(format!("event {number} of 5")))
        });
    Sse::new(ticks)
}
