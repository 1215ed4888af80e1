//! `/.pomerium/verify-access-token` and `-identity-token`: authorize asks whether a provider's
//! token holds. Only our own services may ask, or anybody could test stolen tokens here.

use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, StatusCode, header};
use postern_common::rpc::token;
use postern_common::web::refusal::Refusal;
use postern_identity::{ProviderError, VerifyToken};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::{Answer, Call};

/// Which of the two endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Access,
    Identity,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Question {
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    identity_token: String,
    #[serde(default)]
    identity_provider_id: String,
    /// Audiences that the route accepts; without them those of the configuration.
    #[serde(default)]
    audiences: Vec<String>,
}

pub(crate) async fn handle(call: &Call, kind: Kind, body: &[u8]) -> Answer {
    caller(call)?;
    let question: Question = serde_json::from_slice(body)
        .map_err(|error| call.bad_request("The body is not the JSON of a question.", &error))?;
    let id = Some(question.identity_provider_id.as_str()).filter(|id| !id.is_empty());
    let provider = crate::sign_in::provider(call, id)?;
    let configured = call.snapshot.config.provider.as_ref();
    let configured = configured.and_then(|options| options.access_token_audiences.as_deref());
    let audiences = match question.audiences.as_slice() {
        [] => configured.unwrap_or_default(),
        given => given,
    };
    let verify = |token| VerifyToken {
        token,
        audiences,
        now: call.now,
    };
    let verified = match kind {
        Kind::Access => {
            provider
                .verify_access_token(verify(&question.access_token))
                .await
        }
        Kind::Identity => {
            provider
                .verify_identity_token(verify(&question.identity_token))
                .await
        }
    };
    match verified {
        Ok(token) => Ok(answer(&json!({ "valid": true, "claims": token.claims }))),
        Err(error @ ProviderError::Unreachable { .. }) => {
            // Not knowing is not "invalid".
            Err(call.unavailable("The identity provider cannot be reached.", &error))
        }
        Err(error) => {
            tracing::info!("request-id" = &*call.request_id, %error, "a bearer token is not valid");
            Ok(answer(&json!({ "valid": false })))
        }
    }
}

/// The token that every call between services carries, as header `jwt` or as a bearer token.
fn caller(call: &Call) -> Result<(), Box<Refusal>> {
    let bearer = call
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let given = call
        .headers
        .get(token::METADATA_KEY)
        .and_then(|value| value.to_str().ok());
    given
        .or(bearer)
        .ok_or(token::TokenError::Missing)
        .and_then(|given| token::verify(call.snapshot.shared(), given, call.now))
        .map_err(|error| {
            call.refuse(
                StatusCode::UNAUTHORIZED,
                "Only services of this deployment may ask this.",
                &error,
            )
        })
}

fn answer(value: &Value) -> Response {
    let mut response = value.to_string().into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
