//! Access tokens that programs bring: verified by the provider's keys, by introspection, or by
//! asking for user info.

use serde_json::Value;
use url::Url;

use super::{Oidc, verified_token};
use crate::claims::{self, text};
use crate::discovery::Metadata;
use crate::error::{ProviderError, Refusal};
use crate::jwt::{self, Expected};
use crate::provider::{Claims, UserInfoRequest, VerifiedToken, VerifyToken};

impl Oidc {
    pub(super) async fn access_token(
        &self,
        request: VerifyToken<'_>,
    ) -> Result<VerifiedToken, ProviderError> {
        if request.audiences.is_empty() {
            return Err(ProviderError::Misconfigured(Refusal::new(
                "no idp_access_token_allowed_audiences: without an audience every token of the \
                 provider, made for anybody, would do",
                None,
            )));
        }
        let metadata = self.issuer.metadata().await?;
        let mut claims = if looks_like_jwt(request.token) {
            let claims = self.signed_access_token(&metadata, request).await?;
            let subject = text(&claims, "sub")
                .filter(|s| !s.is_empty())
                .ok_or_else(|| ProviderError::invalid("the access token names nobody (sub)"))?;
            let about = UserInfoRequest {
                access_token: request.token,
                expected_subject: Some(subject),
            };
            match self.ask_user_info(&metadata, about).await {
                Ok(info) => claims::merge(claims, info.unwrap_or_default()),
                // Tokens for other audiences often may not ask for user info.
                Err(ProviderError::Refused(_) | ProviderError::Misconfigured(_)) => claims,
                Err(error) => return Err(error),
            }
        } else if let Some(url) = metadata.introspection_endpoint() {
            self.introspect(&metadata, url, request).await?
        } else {
            let about = UserInfoRequest {
                access_token: request.token,
                expected_subject: None,
            };
            let claims = self
                .ask_user_info(&metadata, about)
                .await?
                .ok_or_else(|| self.unsupported("a way to verify opaque access tokens"))?;
            check_audience(&claims, request.audiences)?;
            claims
        };
        claims::put_right(&mut claims);
        verified_token(claims)
    }

    async fn signed_access_token(
        &self,
        metadata: &Metadata,
        request: VerifyToken<'_>,
    ) -> Result<Claims, ProviderError> {
        let mut claims = self.issuer.verified(request.token).await?;
        // Some put the client where others put the audience.
        if !claims.contains_key("aud") {
            let client = ["client_id", "azp"]
                .into_iter()
                .find_map(|n| text(&claims, n))
                .map(str::to_owned);
            if let Some(client) = client {
                claims.insert("aud".into(), Value::String(client));
            }
        }
        jwt::check_claims(
            &claims,
            Expected {
                rule: self.issuer.flavor.issuer_rule,
                issuer: metadata.issuer(),
                audiences: request.audiences,
                authorized_party: None,
                now: request.now,
            },
        )?;
        Ok(claims)
    }

    /// RFC 7662.
    async fn introspect(
        &self,
        metadata: &Metadata,
        url: &Url,
        request: VerifyToken<'_>,
    ) -> Result<Claims, ProviderError> {
        let form = [
            ("token", request.token),
            ("token_type_hint", "access_token"),
        ];
        let ask = self
            .client
            .request(url, &form, self.client.method(metadata)?)?;
        let answer = self.issuer.http.call(ask).await?;
        if !answer.status.is_success() {
            return Err(crate::token_endpoint::refusal(&answer));
        }
        let claims: Claims = answer.json()?;
        if claims.get("active") != Some(&Value::Bool(true)) {
            return Err(ProviderError::Refused(Refusal::new(
                "invalid_token",
                Some("not active"),
            )));
        }
        if jwt::time(&claims, "exp")?.is_some_and(|exp| exp <= request.now) {
            return Err(ProviderError::Refused(Refusal::new(
                "invalid_token",
                Some("expired"),
            )));
        }
        check_audience(&claims, request.audiences)?;
        Ok(claims)
    }
}

fn check_audience(claims: &Claims, audiences: &[String]) -> Result<(), ProviderError> {
    let mut named = jwt::audience(claims);
    if named.is_empty() {
        named.extend(text(claims, "client_id").map(str::to_owned));
    }
    if named.iter().any(|a| audiences.contains(a)) {
        Ok(())
    } else {
        Err(ProviderError::invalid(
            "the access token is for none of the allowed audiences",
        ))
    }
}

/// Three parts, the first of which is a JSON object with an algorithm.
fn looks_like_jwt(token: &str) -> bool {
    token.starts_with("eyJ") && token.bytes().filter(|b| *b == b'.').count() == 2
}
