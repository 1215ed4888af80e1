//! The answers of a token endpoint (RFC 6749 5), told apart by what they mean for a session.

use std::borrow::Cow;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use openidconnect::core::{
    CoreGenderClaim, CoreIdToken, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm,
};
use openidconnect::{
    AccessToken, AuthorizationCode, EmptyAdditionalClaims, HttpRequest, HttpResponse,
    OAuth2TokenResponse, PkceCodeVerifier, RedirectUrl, RefreshToken, RequestTokenError, Scope,
    TokenType,
};
use serde::{Deserialize, Deserializer, Serialize};
use url::Url;

use crate::client_auth::{Client, Method, may_learn};
use crate::discovery::Metadata;
use crate::error::{ProviderError, Refusal};
use crate::http_client::{Answer, HttpClient, shown};
use crate::id_token::RawIdToken;
use crate::provider::Tokens;

/// What a token endpoint gave. openidconnect's own type would lose all of it, a new refresh token
/// too, for an ID token or a lifetime that is not quite right.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct TokenResponse {
    access_token: AccessToken,
    #[serde(default, deserialize_with = "kind")]
    token_type: Kind,
    #[serde(default, deserialize_with = "seconds")]
    expires_in: Option<i64>,
    #[serde(default)]
    refresh_token: Option<RefreshToken>,
    #[serde(default)]
    pub id_token: Option<RawIdToken>,
}

/// How an access token is used, as the provider spells it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Kind(String);

impl Default for Kind {
    fn default() -> Self {
        Self("Bearer".to_owned())
    }
}

impl TokenType for Kind {}

impl OAuth2TokenResponse for TokenResponse {
    type TokenType = Kind;

    fn access_token(&self) -> &AccessToken {
        &self.access_token
    }

    fn token_type(&self) -> &Kind {
        &self.token_type
    }

    fn expires_in(&self) -> Option<Duration> {
        let seconds = u64::try_from(self.expires_in?).ok()?;
        Some(Duration::from_secs(seconds)).filter(|lifetime| !lifetime.is_zero())
    }

    fn refresh_token(&self) -> Option<&RefreshToken> {
        self.refresh_token
            .as_ref()
            .filter(|token| !token.secret().is_empty())
    }

    fn scopes(&self) -> Option<&Vec<Scope>> {
        None
    }
}

type Jwe = CoreJweContentEncryptionAlgorithm;

impl
    openidconnect::TokenResponse<
        EmptyAdditionalClaims,
        CoreGenderClaim,
        Jwe,
        CoreJwsSigningAlgorithm,
    > for TokenResponse
{
    fn id_token(&self) -> Option<&CoreIdToken> {
        self.id_token.as_ref().and_then(RawIdToken::openid)
    }
}

impl TokenResponse {
    pub fn tokens(&self, now: Timestamp) -> Tokens {
        Tokens {
            access_token: self.access_token.secret().clone(),
            token_type: self.token_type.0.clone(),
            refresh_token: self.refresh_token().map(|token| token.secret().clone()),
            expires_at: self
                .expires_in()
                .and_then(|lifetime| SignedDuration::try_from(lifetime).ok())
                .and_then(|lifetime| now.checked_add(lifetime).ok()),
        }
    }
}

/// What tokens are asked for with.
#[derive(Clone, Copy)]
pub(crate) enum Grant<'a> {
    Code {
        code: &'a str,
        verifier: Option<&'a str>,
        redirect_uri: &'a Url,
    },
    Refresh(&'a str),
}

/// Asks the token endpoint. A code or refresh token is sent once; only `invalid_client`, which
/// leaves it unused, is answered by a second try with the secret in the body, where the provider
/// may take that, and what worked is remembered.
pub(crate) async fn ask(
    http: &HttpClient,
    client: &Client,
    metadata: &Metadata,
    grant: Grant<'_>,
    deadline: Duration,
) -> Result<TokenResponse, ProviderError> {
    let method = client.method(metadata)?;
    let first = ask_once(http, client, metadata, grant, method, deadline).await;
    let Err(ProviderError::Misconfigured(refusal)) = &first else {
        return first;
    };
    if refusal.error != "invalid_client" || !may_learn(metadata, method) {
        return first;
    }
    match ask_once(http, client, metadata, grant, Method::Post, deadline).await {
        Ok(response) => {
            client.learn_post();
            Ok(response)
        }
        // The first error tells more than that of a second try.
        Err(_) => first,
    }
}

async fn ask_once(
    http: &HttpClient,
    client: &Client,
    metadata: &Metadata,
    grant: Grant<'_>,
    method: Method,
    deadline: Duration,
) -> Result<TokenResponse, ProviderError> {
    let endpoint = metadata.authorization_endpoint().clone();
    let openid = client.openid(metadata, endpoint, method);
    // openidconnect keeps status and headers of a refusal to itself, and wants a content type, so
    // answers are judged before it sees them. Our error comes through it as it is.
    let http = http.clone();
    let send = move |request: HttpRequest| -> BoxFuture<'static, _> {
        let http = http.clone();
        async move {
            let answer = http.call_within(request, deadline).await?;
            // Some report errors with status 200.
            if answer.status.is_success() && error_body(&answer.body).is_none() {
                Ok(HttpResponse::new(answer.body))
            } else {
                Err(refusal(&answer))
            }
        }
        .boxed()
    };
    let outcome = match grant {
        Grant::Code {
            code,
            verifier,
            redirect_uri,
        } => {
            let redirect_uri = RedirectUrl::from_url(redirect_uri.clone());
            let mut request = openid
                .exchange_code(AuthorizationCode::new(code.to_owned()))
                .set_redirect_uri(Cow::Owned(redirect_uri));
            if let Some(verifier) = verifier {
                request = request.set_pkce_verifier(PkceCodeVerifier::new(verifier.to_owned()));
            }
            request.request_async(&send).boxed().await
        }
        Grant::Refresh(token) => {
            let token = RefreshToken::new(token.to_owned());
            openid
                .exchange_refresh_token(&token)
                .request_async(&send)
                .boxed()
                .await
        }
    };
    outcome.map_err(|error| {
        let reason = match error {
            RequestTokenError::Request(error) => return error,
            RequestTokenError::Parse(error, _body) => error.to_string(),
            other => other.to_string(),
        };
        let endpoint = shown(metadata.token_endpoint().url());
        ProviderError::invalid(format!("{endpoint} sent something unreadable: {reason}"))
    })
}

#[derive(Deserialize)]
struct ErrorBody {
    error: String,
    #[serde(default)]
    error_description: Option<String>,
}

fn error_body(body: &[u8]) -> Option<ErrorBody> {
    serde_json::from_slice(body).ok()
}

/// What an error answer means.
pub(crate) fn refusal(answer: &Answer) -> ProviderError {
    let Some(body) = error_body(&answer.body) else {
        // No word of OAuth: a gateway, a firewall, a moved endpoint. Says nothing about a person.
        let status = format!("status {} from {}", answer.status.as_u16(), answer.endpoint);
        return ProviderError::Misconfigured(Refusal::new(&status, None));
    };
    let refusal = Refusal::new(&body.error, body.error_description.as_deref());
    match body.error.as_str() {
        "invalid_grant"
        | "access_denied"
        | "consent_required"
        | "interaction_required"
        | "login_required"
        | "expired_token"
        | "invalid_token"
        | "bad_verification_code"
        | "bad_refresh_token" => ProviderError::Refused(refusal),
        "temporarily_unavailable" | "server_error" | "slow_down" => ProviderError::Unreachable {
            endpoint: answer.endpoint.clone(),
            reason: refusal.to_string(),
            retry_after: None,
        },
        _ => ProviderError::Misconfigured(refusal),
    }
}

/// What an answer that is not a success means at an endpoint that takes access tokens (RFC 6750).
pub(crate) fn bearer_refusal(answer: &Answer) -> ProviderError {
    let challenge = answer
        .headers
        .get(http::header::WWW_AUTHENTICATE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let named = error_body(&answer.body)
        .map(|b| b.error)
        .unwrap_or_default();
    if answer.status == StatusCode::UNAUTHORIZED
        && (challenge.contains("invalid_token") || named == "invalid_token")
    {
        return ProviderError::Refused(Refusal::new("invalid_token", None));
    }
    let status = format!("status {} from {}", answer.status.as_u16(), answer.endpoint);
    ProviderError::Misconfigured(Refusal::new(&status, None))
}

/// Some leave it empty.
fn kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Kind, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Seconds as a number or, with some providers, as text.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let value: Option<serde_json::Value> = Option::deserialize(deserializer)?;
    Ok(value.and_then(|v| match v {
        serde_json::Value::String(text) => text.trim().parse().ok(),
        #[expect(clippy::cast_possible_truncation, reason = "bounded by the filter")]
        other => other
            .as_i64()
            .or_else(|| other.as_f64().filter(|d| d.abs() < 1e12).map(|d| d as i64)),
    }))
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use serde_json::json;

    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: body.into(),
            endpoint: "https://idp.test/token".into(),
        }
    }

    #[test]
    fn w6_only_a_definite_refusal_is_one() {
        let code = |c: &str| refusal(&answer(400, &json!({"error": c}).to_string()));
        assert!(code("invalid_grant").is_refusal());
        for other in [
            "invalid_client",
            "unauthorized_client",
            "invalid_request",
            "odd",
            "server_error",
        ] {
            assert!(!code(other).is_refusal(), "{other}");
        }
        assert!(!refusal(&answer(403, "<html>blocked</html>")).is_refusal());
        assert!(!refusal(&answer(400, "")).is_refusal());
    }

    #[test]
    fn a_providers_words_are_made_printable() {
        let body = json!({"error": "invalid_grant", "error_description": "a\r\nb"}).to_string();
        let shown = refusal(&answer(400, &body)).to_string();
        assert!(
            !shown.contains('\n') && shown.contains("invalid_grant: a  b"),
            "{shown}"
        );
    }

    #[test]
    fn lifetimes() {
        let now = Timestamp::from_second(1000).unwrap();
        let expiry = |v: serde_json::Value| {
            let response: TokenResponse =
                serde_json::from_value(json!({"access_token": "a", "expires_in": v})).unwrap();
            response.tokens(now).expires_at.map(Timestamp::as_second)
        };
        assert_eq!(expiry(json!(300)), Some(1300));
        assert_eq!(expiry(json!("300")), Some(1300));
        assert_eq!(expiry(json!(0)), None);
        assert_eq!(expiry(json!(null)), None);
        assert_eq!(expiry(json!(i64::MAX)), None);
    }
}
