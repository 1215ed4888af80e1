//! Access tokens that programs bring: verified by the provider's keys, by introspection, or by
//! asking for user info.

use serde_json::Value;
use url::Url;

use super::{Oidc, verified_token};
use crate::claims::{self, text};
use crate::discovery::{self, IssuerRule, Metadata};
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
            self.with_user_info(&metadata, request.token, claims)
                .await?
        } else if let Some(url) = metadata.introspection_endpoint() {
            let claims = self.introspect(&metadata, url, request).await?;
            self.with_user_info(&metadata, request.token, claims)
                .await?
        } else {
            self.by_user_info(&metadata, request).await?
        };
        claims::put_right(&mut claims);
        verified_token(claims)
    }

    /// Adds what user info says of the person: tokens seldom tell addresses and groups.
    async fn with_user_info(
        &self,
        metadata: &Metadata,
        token: &str,
        claims: Claims,
    ) -> Result<Claims, ProviderError> {
        let subject = text(&claims, "sub")
            .filter(|s| !s.is_empty())
            .ok_or_else(|| ProviderError::invalid("the access token names nobody (sub)"))?;
        let about = UserInfoRequest {
            access_token: token,
            expected_subject: Some(subject),
        };
        match self.ask_user_info(metadata, about).await {
            Ok(info) => {
                let mut info = info.unwrap_or_default();
                info.retain(|name, _| !OF_THE_TOKEN.contains(&name.as_str()));
                Ok(claims::merge(claims, info))
            }
            // Tokens for other audiences often may not ask for user info.
            Err(ProviderError::Refused(_) | ProviderError::Misconfigured(_)) => Ok(claims),
            Err(error) => Err(error),
        }
    }

    /// User info vouches for a token by answering.
    async fn by_user_info(
        &self,
        metadata: &Metadata,
        request: VerifyToken<'_>,
    ) -> Result<Claims, ProviderError> {
        let answer = self
            .user_info_answer(metadata, request.token)
            .await?
            .ok_or_else(|| self.unsupported("a way to verify opaque access tokens"))?;
        // Nothing but the token was shown, so however it says no, it says so to the token.
        if matches!(answer.status.as_u16(), 400 | 401 | 403) {
            return Err(ProviderError::Refused(Refusal::new("invalid_token", None)));
        }
        let mut claims = self.read_user_info(metadata, &answer, None).await?;
        name_audience(&mut claims, &["client_id"]);
        check_audience(&claims, request.audiences)?;
        Ok(claims)
    }

    async fn signed_access_token(
        &self,
        metadata: &Metadata,
        request: VerifyToken<'_>,
    ) -> Result<Claims, ProviderError> {
        let mut claims = self.issuer.verified(request.token).await?;
        name_audience(&mut claims, &["client_id", "azp"]);
        let mut rule = self.issuer.flavor.issuer_rule;
        let mut issuer = metadata.issuer();
        let older = (rule == IssuerRule::Azure)
            .then(|| discovery::azure_v1_issuer(issuer, &claims))
            .flatten();
        if let Some(older) = older.as_deref()
            && text(&claims, "iss") == Some(older)
        {
            (rule, issuer) = (IssuerRule::Exact, older);
        }
        jwt::check_claims(
            &claims,
            Expected {
                rule,
                issuer,
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
        let answer = self
            .client
            .tell(&self.issuer.http, metadata, url, &form)
            .await?;
        if !answer.status.is_success() {
            return Err(crate::token_endpoint::refusal(&answer));
        }
        let mut claims: Claims = answer.json()?;
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
        name_audience(&mut claims, &["client_id"]);
        check_audience(&claims, request.audiences)?;
        Ok(claims)
    }
}

/// Claims about a token and not about a person. Signed user info has its own, which are not those
/// of the token that asked for it.
const OF_THE_TOKEN: [&str; 10] = [
    "iss",
    "aud",
    "exp",
    "nbf",
    "iat",
    "jti",
    "azp",
    "client_id",
    "scope",
    "active",
];

/// Some put the client where others put the audience. It is written down as such, since later
/// requests are held against the audience of the session.
fn name_audience(claims: &mut Claims, client: &[&str]) {
    if !jwt::audience(claims).is_empty() {
        return;
    }
    let named = client.iter().find_map(|name| text(claims, name));
    if let Some(named) = named.map(str::to_owned) {
        claims.insert("aud".into(), Value::String(named));
    }
}

fn check_audience(claims: &Claims, audiences: &[String]) -> Result<(), ProviderError> {
    if jwt::audience(claims).iter().any(|a| audiences.contains(a)) {
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
