//! The HTTP client this crate is given, and the rules that hold for every call through it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode, header};
use postern_common::http_client::{HttpClientError, HttpsClient, Limits};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::error::ProviderError;

/// Largest answer of a provider that is read, in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// How long one call may take, from the connection to the last byte.
const DEADLINE: Duration = Duration::from_secs(10);

/// How often a document may have moved.
const MAX_REDIRECTS: usize = 3;

/// How long a refresh may take. Nobody waits for it, and giving up on one whose token is already
/// spent loses the session: with rotating tokens the answer holds the only one that is left.
pub const REFRESH_DEADLINE: Duration = Duration::from_secs(60);

type Send = dyn Fn(Request<Vec<u8>>) -> BoxFuture<'static, Result<Response<Vec<u8>>, HttpError>>
    + std::marker::Send
    + Sync;

/// Sends one request. The function given must verify TLS, must not follow redirects and must stop
/// reading at [`MAX_BODY`] bytes; deadlines are kept here.
#[derive(Clone)]
pub struct HttpClient(Arc<Send>);

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpClient")
    }
}

impl From<HttpsClient> for HttpClient {
    fn from(client: HttpsClient) -> Self {
        // The deadlines here are shorter.
        let limits = Limits {
            deadline: REFRESH_DEADLINE.saturating_mul(2),
            max_body: MAX_BODY,
        };
        Self::new(move |request| {
            let client = client.clone();
            async move {
                client
                    .send(request, limits)
                    .await
                    .map_err(|error| match error {
                        HttpClientError::TooLarge { .. } => HttpError::TooLarge,
                        other => HttpError::Transport(other.to_string()),
                    })
            }
            .boxed()
        })
    }
}

/// Why no answer came.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No connection, no TLS, or it broke. The text says which, with the chain of causes.
    #[error("{0}")]
    Transport(String),
    /// The answer is larger than [`MAX_BODY`].
    #[error("the answer is larger than {MAX_BODY} bytes")]
    TooLarge,
}

/// An answer that is neither a redirect nor a sign of trouble at the provider.
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: http::HeaderMap,
    pub body: Vec<u8>,
    pub endpoint: String,
}

impl HttpClient {
    pub fn new<F>(send: F) -> Self
    where
        F: Fn(Request<Vec<u8>>) -> BoxFuture<'static, Result<Response<Vec<u8>>, HttpError>>
            + std::marker::Send
            + Sync
            + 'static,
    {
        Self(Arc::new(send))
    }

    /// One call under [`DEADLINE`]. 408, 429 and 5xx are [`ProviderError::Unreachable`].
    pub(crate) async fn call(&self, request: Request<Vec<u8>>) -> Result<Answer, ProviderError> {
        self.call_within(request, DEADLINE).await
    }

    /// One call that may take longer or shorter than others.
    pub(crate) async fn call_within(
        &self,
        request: Request<Vec<u8>>,
        deadline: Duration,
    ) -> Result<Answer, ProviderError> {
        let endpoint = endpoint(request.uri());
        let unreachable = |reason: String, retry_after| ProviderError::Unreachable {
            endpoint: endpoint.clone(),
            reason,
            retry_after,
        };
        let response = match tokio::time::timeout(deadline, (self.0)(request)).await {
            Err(_) => {
                return Err(unreachable(
                    format!("no answer within {} s", deadline.as_secs()),
                    None,
                ));
            }
            Ok(Err(HttpError::TooLarge)) => {
                return Err(ProviderError::invalid(format!(
                    "{endpoint} sent more than {MAX_BODY} bytes"
                )));
            }
            Ok(Err(HttpError::Transport(reason))) => return Err(unreachable(reason, None)),
            Ok(Ok(response)) => response,
        };
        let (parts, body) = response.into_parts();
        if body.len() > MAX_BODY {
            return Err(ProviderError::invalid(format!(
                "{endpoint} sent more than {MAX_BODY} bytes"
            )));
        }
        if parts.status.is_server_error()
            || matches!(
                parts.status,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
            )
        {
            return Err(unreachable(
                format!("status {}", parts.status.as_u16()),
                retry_after(&parts.headers),
            ));
        }
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body,
            endpoint,
        })
    }

    /// GET of a JSON document that must be there. What is asked for without any secret may have
    /// moved, but never from https to http.
    pub(crate) async fn document(&self, url: &url::Url) -> Result<Vec<u8>, ProviderError> {
        let until = Instant::now() + DEADLINE;
        let (mut at, mut left) = (url.clone(), DEADLINE);
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.call_within(get(&at, None)?, left).await?;
            if answer.status == StatusCode::OK {
                return Ok(answer.body);
            }
            let Some(next) = answer.moved_from(&at) else {
                // Not there (yet), or gone: nothing that says no to a person.
                return Err(ProviderError::Unreachable {
                    endpoint: answer.endpoint,
                    reason: format!("status {}", answer.status.as_u16()),
                    retry_after: None,
                });
            };
            at = next;
            left = until.saturating_duration_since(Instant::now());
        }
        Err(ProviderError::Unreachable {
            endpoint: shown(url),
            reason: format!("more than {MAX_REDIRECTS} redirects"),
            retry_after: None,
        })
    }
}

/// A GET for JSON, with a value for `Authorization`.
pub(crate) fn get(
    url: &url::Url,
    authorization: Option<&str>,
) -> Result<Request<Vec<u8>>, ProviderError> {
    let mut request = Request::get(url.as_str()).header(header::ACCEPT, "application/json");
    if let Some(value) = authorization {
        request = request.header(header::AUTHORIZATION, value);
    }
    request
        .body(Vec::new())
        .map_err(|e| ProviderError::invalid(format!("{}: {e}", shown(url))))
}

/// A POST of form fields, with a value for `Authorization`.
pub(crate) fn post(
    url: &url::Url,
    authorization: Option<&str>,
    form: &[(&str, &str)],
) -> Result<Request<Vec<u8>>, ProviderError> {
    let body = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(form)
        .finish();
    let mut request = Request::post(url.as_str())
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    if let Some(value) = authorization {
        request = request.header(header::AUTHORIZATION, value);
    }
    request
        .body(body.into_bytes())
        .map_err(|e| ProviderError::invalid(format!("{}: {e}", shown(url))))
}

impl Answer {
    /// Where a redirect leads.
    fn moved_from(&self, asked: &url::Url) -> Option<url::Url> {
        let moved = matches!(self.status.as_u16(), 301 | 302 | 303 | 307 | 308);
        let location = self.headers.get(header::LOCATION).filter(|_| moved)?;
        let next = asked.join(location.to_str().ok()?).ok()?;
        let safe = next.scheme() == "https" || next.scheme() == asked.scheme();
        safe.then_some(next)
    }

    /// The body as JSON, whatever the content type says.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, ProviderError> {
        serde_json::from_slice(&self.body).map_err(|e| {
            ProviderError::invalid(format!("{} sent something unreadable: {e}", self.endpoint))
        })
    }

    pub(crate) fn content_type(&self) -> &str {
        self.headers
            .get(header::CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
    }
}

/// A URL as logs may show it: queries can hold secrets.
pub(crate) fn shown(url: &url::Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

fn endpoint(uri: &http::Uri) -> String {
    let port = uri.port().map(|p| format!(":{p}")).unwrap_or_default();
    format!(
        "{}://{}{port}{}",
        uri.scheme_str().unwrap_or("https"),
        uri.host().unwrap_or_default(),
        uri.path()
    )
}

/// `Retry-After` in seconds, at most an hour; dates are ignored.
fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds.min(3600)))
}
