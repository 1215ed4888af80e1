//! The sample application: shows what it was told about the request and the person behind it.
//!
//! It stands for any upstream that verifies Postern's assertion: it fetches the public keys and
//! checks signature, audience and times with an ordinary JWT library.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use askama::Template;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::sse::{Event, Sse};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::any;
use axum::{Router, body::Body};
use futures::StreamExt;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use postern_common::config::DnsOptions;
use postern_common::http_client::{HttpsClient, Limits};
use postern_common::net::{LookupError, Resolver};
use postern_common::tls::{TlsError, Trust};
use serde::Serialize;
use url::Url;

/// The header that carries the assertion.
const ASSERTION: &str = "x-pomerium-jwt-assertion";

/// Any path shows the request; `/ws` echoes a WebSocket, `/events` sends a few events.
pub fn router(keys: Arc<PublishedKeys>) -> Router {
    Router::new()
        .route("/ws", any(websocket))
        .route("/events", any(events))
        .fallback(show)
        .with_state(keys)
}

/// A name that the application is reached by, and where Postern publishes its keys.
#[derive(Debug, Clone)]
pub struct Published {
    /// The host in the assertion's `aud`.
    pub audience: String,
    pub url: String,
}

impl Published {
    /// As Postern does it for an application at `url`: on the same origin.
    pub fn at(url: &str) -> Result<Self, KeysError> {
        let wrong = || KeysError::Url(url.to_owned());
        let parsed = Url::parse(url).map_err(|_| wrong())?;
        Ok(Self {
            audience: parsed.host_str().ok_or_else(wrong)?.to_owned(),
            url: format!(
                "{}/.well-known/pomerium/jwks.json",
                url.trim_end_matches('/')
            ),
        })
    }
}

/// The keys that verify assertions for this application.
pub struct PublishedKeys {
    audiences: Vec<String>,
    /// Of the first name; all of them publish the same keys.
    url: Uri,
    client: HttpsClient,
    fetched: Mutex<Option<(Instant, JwkSet)>>,
}

/// How long fetched keys are used, as applications do. Longer where they cannot be fetched anew.
const KEPT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("the application needs an https URL that it is reached by, not {0:?}")]
    Url(String),
    #[error(transparent)]
    Resolver(#[from] LookupError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl PublishedKeys {
    /// Keys are fetched over certificates of `trust`.
    pub fn new(names: &[Published], trust: &Trust) -> Result<Self, KeysError> {
        let first = names.first().ok_or_else(|| KeysError::Url(String::new()))?;
        let url = first
            .url
            .parse()
            .map_err(|_| KeysError::Url(first.url.clone()))?;
        let resolver = Resolver::new(DnsOptions::default())?;
        let client = HttpsClient::new(resolver, trust)?;
        Ok(Self {
            audiences: names.iter().map(|name| name.audience.clone()).collect(),
            url,
            client,
            fetched: Mutex::new(None),
        })
    }

    async fn find(&self, kid: &str) -> Result<Jwk, String> {
        let known = self.fetched().as_ref().and_then(|(at, set)| {
            let key = set.find(kid)?.clone();
            Some((key, at.elapsed() < KEPT))
        });
        if let Some((key, true)) = known {
            return Ok(key);
        }
        match (self.fetch().await, known) {
            (Ok(set), _) => {
                let key = set.find(kid).cloned();
                *self.fetched() = Some((Instant::now(), set));
                key.ok_or_else(|| format!("no key {kid} is published"))
            }
            (Err(_), Some((key, _))) => Ok(key),
            (Err(error), None) => Err(error),
        }
    }

    fn fetched(&self) -> MutexGuard<'_, Option<(Instant, JwkSet)>> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fetch(&self) -> Result<JwkSet, String> {
        let mut request = axum::http::Request::new(Vec::new());
        *request.uri_mut() = self.url.clone();
        let answer = self
            .client
            .send(request, Limits::default())
            .await
            .map_err(|error| error.to_string())?;
        if answer.status() != StatusCode::OK {
            return Err(format!("{} answers {}", self.url, answer.status()));
        }
        serde_json::from_slice(answer.body()).map_err(|error| format!("{}: {error}", self.url))
    }
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

impl Page<'_> {
    /// A claim as people read it.
    fn claim(value: &serde_json::Value) -> String {
        match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    }
}

async fn show(State(keys): State<Arc<PublishedKeys>>, request: Request<Body>) -> Response {
    let (request, _body) = request.into_parts();
    let seen = look(&keys, &request).await;
    if wants_json(&request.headers) {
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

async fn look(keys: &PublishedKeys, request: &Parts) -> Seen {
    let headers = &request.headers;
    let host = text(headers, header::HOST.as_str())
        .or_else(|| request.uri.host().map(str::to_owned))
        .unwrap_or_default();
    let assertion = match text(headers, ASSERTION).filter(|value| !value.is_empty()) {
        None => Assertion::Absent,
        Some(token) => verify(keys, &token).await,
    };
    Seen {
        method: request.method.to_string(),
        host,
        path: request.uri.path().to_owned(),
        query: request.uri.query().map(str::to_owned),
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

/// Only what the published keys prove is believed.
async fn verify(keys: &PublishedKeys, token: &str) -> Assertion {
    match verified_claims(keys, token).await {
        Ok(claims) => Assertion::Verified(claims),
        Err(reason) => Assertion::Refused(reason),
    }
}

async fn verified_claims(
    keys: &PublishedKeys,
    token: &str,
) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    let header = jsonwebtoken::decode_header(token).map_err(|error| error.to_string())?;
    let kid = header.kid.ok_or("the assertion names no key")?;
    let key = keys.find(&kid).await?;
    let decoding = jsonwebtoken::DecodingKey::from_jwk(&key).map_err(|error| error.to_string())?;
    let mut rules = jsonwebtoken::Validation::new(header.alg);
    rules.set_audience(&keys.audiences);
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
    text(headers, header::ACCEPT.as_str())
        .is_some_and(|accept| accept.contains("application/json") && !accept.contains("text/html"))
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
    let ticks = futures::stream::iter(1..=5).then(|number| async move {
        if number > 1 {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        Ok::<_, Infallible>(Event::default().data(format!("event {number} of 5")))
    });
    Sse::new(ticks)
}
