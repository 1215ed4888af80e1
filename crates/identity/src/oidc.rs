//! OpenID Connect: the code flow with PKCE and nonce, refresh, user info and sign-out.

mod brought;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use jsonwebtoken::Algorithm;
use openidconnect::core::CoreAuthenticationFlow;
use openidconnect::{CsrfToken, Nonce, PkceCodeChallenge, RedirectUrl, Scope};
use serde_json::{Value, json};
use url::Url;

use crate::claims::{self, said, text};
use crate::client_auth::{Client, Method};
use crate::discovery::{self, Metadata};
use crate::error::ProviderError;
use crate::http_client::{Answer, REFRESH_DEADLINE, get};
use crate::id_token::{Audience, RawIdToken};
use crate::issuer::Issuer;
use crate::jwks::{self, Jwks};
use crate::jwt::{self, Expected, Unverified};
use crate::provider::{
    AuthRequest, Capabilities, Claims, CodeExchange, EndSession, IdToken, Identity, Provider,
    Refresh, Refreshed, SignOut, Tokens, UserInfoRequest, VerifiedToken, VerifyToken,
};
use crate::providers::azure;
use crate::token_endpoint::{Grant, ask, bearer_refusal};

/// How long a person waits for a code to be redeemed.
const EXCHANGE_DEADLINE: Duration = Duration::from_secs(10);
/// One client at one issuer.
pub(crate) struct Oidc {
    id: String,
    issuer: Arc<Issuer>,
    client: Client,
    scope: String,
    params: Vec<(String, String)>,
}

impl std::fmt::Debug for Oidc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Oidc")
            .field("id", &self.id)
            .field("issuer", &self.issuer.url)
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

/// Parameters that the flow needs as it makes them.
const RESERVED: [&str; 7] = [
    "client_id",
    "redirect_uri",
    "response_type",
    "state",
    "nonce",
    "code_challenge",
    "code_challenge_method",
];

impl Oidc {
    pub fn new(
        id: String,
        issuer: Arc<Issuer>,
        client: Client,
        scopes: &[String],
        params: &[(String, String)],
    ) -> Self {
        let flavor = issuer.flavor;
        let scope = if scopes.is_empty() || !flavor.scopes_configurable {
            (flavor.scopes)(&issuer.url).join(" ")
        } else {
            scopes.join(" ")
        };
        let mut all: Vec<(String, String)> = Vec::new();
        if params.is_empty() || flavor.merge_params {
            all.extend(
                flavor
                    .params
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
            );
        }
        for (name, value) in params {
            all.retain(|(known, _)| known != name);
            all.push((name.clone(), value.clone()));
        }
        all.retain(|(name, _)| !RESERVED.contains(&name.as_str()));
        Self {
            id,
            issuer,
            client,
            scope,
            params: all,
        }
    }

    fn unsupported(&self, what: &'static str) -> ProviderError {
        ProviderError::Unsupported {
            provider: self.issuer.flavor.name,
            what,
        }
    }

    fn authorize(
        &self,
        metadata: &Metadata,
        request: AuthRequest<'_>,
    ) -> Result<Url, ProviderError> {
        let configured = |name: &str| self.params.iter().any(|(known, _)| known == name);
        // What the endpoint's own query has in common with ours would be there twice.
        let mut endpoint = metadata.authorization_endpoint().clone();
        let kept: Vec<(String, String)> = endpoint
            .query_pairs()
            .into_owned()
            .filter(|(name, _)| {
                !RESERVED.contains(&name.as_str()) && name != "scope" && !configured(name)
            })
            .collect();
        endpoint.set_query(None);
        if !kept.is_empty() {
            endpoint.query_pairs_mut().extend_pairs(kept);
        }

        let client = self.client.openid(metadata, endpoint, Method::None);
        let redirect_uri = RedirectUrl::from_url(request.redirect_uri.clone());
        let state = CsrfToken::new(request.state.to_owned());
        let nonce = Nonce::new(request.nonce.to_owned());
        let mut ask = client
            .authorize_url(
                CoreAuthenticationFlow::AuthorizationCode,
                move || state,
                move || nonce,
            )
            .set_redirect_uri(Cow::Owned(redirect_uri));
        if !configured("scope") {
            ask = ask.add_scope(Scope::new(self.scope.clone()));
        }
        if metadata.offers_pkce() {
            ask = ask.set_pkce_challenge(pkce_challenge(request.code_challenge)?);
        }
        for (name, value) in &self.params {
            ask = ask.add_extra_param(name.as_str(), value.as_str());
        }
        let (mut url, _state, _nonce) = ask.url();
        // Both mean a space; some (Apple) know only this one.
        let query = url.query().map(|query| query.replace('+', "%20"));
        url.set_query(query.as_deref());
        Ok(url)
    }

    /// Verifies an ID token for this client: by our own rules, which name what is wrong and know
    /// more (`azp`, `nbf`, the issuers of Google and Azure), and by openidconnect, with the keys.
    async fn id_token(
        &self,
        metadata: &Metadata,
        token: &RawIdToken,
        nonce: Option<&str>,
        now: Timestamp,
    ) -> Result<(Claims, Algorithm), ProviderError> {
        let announced = id_token_algorithms(metadata)?;
        let parsed = Unverified::parse(token.as_str())?;
        let algorithm = parsed.algorithm;
        if !announced.contains(&algorithm) {
            return Err(ProviderError::invalid(format!(
                "the token is signed with {}, which this provider does not announce",
                jwks::name(algorithm)
            )));
        }
        jwt::check_claims(
            parsed.claims(),
            Expected {
                rule: self.issuer.flavor.issuer_rule,
                issuer: metadata.issuer(),
                audiences: std::slice::from_ref(&self.client.id),
                authorized_party: Some(&self.client.id),
                now,
            },
        )?;
        if let Some(nonce) = nonce {
            jwt::check_nonce(parsed.claims(), nonce)?;
        }
        let audience = Audience {
            client: &self.client.id,
            nonce,
            now,
        };
        let verify = |keys: &Jwks| token.verify(&parsed, keys, audience);
        self.issuer.with_keys(&verify).await?;
        Ok((parsed.into_claims(), algorithm))
    }

    async fn exchange_code(&self, request: CodeExchange<'_>) -> Result<Identity, ProviderError> {
        let metadata = self.issuer.metadata().await?;
        check_issuer_parameter(&metadata, request.issuer_parameter)?;
        let grant = Grant::Code {
            code: request.code,
            verifier: metadata.offers_pkce().then_some(request.code_verifier),
            redirect_uri: request.redirect_uri,
        };
        let response = ask(
            &self.issuer.http,
            &self.client,
            &metadata,
            grant,
            EXCHANGE_DEADLINE,
        )
        .await?;
        let tokens = response.tokens(request.now);
        let raw = response.id_token.ok_or_else(|| {
            ProviderError::invalid(
                "no ID token came with the code (is the scope openid asked for?)",
            )
        })?;
        let (claims, algorithm) = self
            .id_token(&metadata, &raw, Some(request.nonce), request.now)
            .await?;
        jwt::check_at_hash(&claims, &tokens.access_token, algorithm)?;
        let id_token = id_token_facts(raw, &claims)?;

        let about = UserInfoRequest {
            access_token: &tokens.access_token,
            expected_subject: Some(&id_token.subject),
        };
        let info = match self.ask_user_info(&metadata, about).await {
            Ok(info) => info.unwrap_or_default(),
            // The provider does not let us ask: what the ID token says suffices.
            Err(error @ (ProviderError::Refused(_) | ProviderError::Misconfigured(_))) => {
                tracing::warn!(issuer = %self.issuer.url, %error, "user info is not usable; the ID token must suffice");
                Claims::new()
            }
            Err(error) => return Err(error),
        };
        let user_info_claims = info.keys().cloned().collect();
        let mut claims = claims::combine(claims, Some(info));
        if let Err(error) = self
            .fetch_distant_claims(&tokens.access_token, &mut claims)
            .await
        {
            tracing::warn!(issuer = %self.issuer.url, subject = %id_token.subject, %error,
                "claims lie elsewhere and could not be fetched; rules on them will deny");
        }
        let subject = claims::subject(&claims)
            .ok_or_else(|| ProviderError::invalid("the ID token names nobody (sub)"))?
            .to_owned();
        Ok(Identity {
            subject,
            claims,
            user_info_claims,
            id_token: Some(id_token),
            tokens,
        })
    }

    async fn fetch_distant_claims(
        &self,
        access_token: &str,
        claims: &mut Claims,
    ) -> Result<(), ProviderError> {
        if self.issuer.flavor.distributed_claims {
            return azure::resolve(&self.issuer.http, &self.issuer.url, access_token, claims).await;
        }
        match (
            claims.remove("_claim_names"),
            claims.remove("_claim_sources"),
        ) {
            (Some(Value::Object(names)), _) if !names.is_empty() => {
                Err(ProviderError::invalid(format!(
                    "{} are kept elsewhere, which is read for azure only",
                    names
                        .keys()
                        .map(String::as_str)
                        .collect::<Vec<_>>()
                        .join(", ")
                )))
            }
            _ => Ok(()),
        }
    }

    async fn ask_user_info(
        &self,
        metadata: &Metadata,
        request: UserInfoRequest<'_>,
    ) -> Result<Option<Claims>, ProviderError> {
        let Some(answer) = self
            .user_info_answer(metadata, request.access_token)
            .await?
        else {
            return Ok(None);
        };
        let info = self.read_user_info(metadata, &answer, request.expected_subject);
        info.await.map(Some)
    }

    /// What the provider's user info says to a token, good or bad; `None` when it has none.
    async fn user_info_answer(
        &self,
        metadata: &Metadata,
        access_token: &str,
    ) -> Result<Option<Answer>, ProviderError> {
        let Some(url) = metadata.userinfo_endpoint() else {
            return Ok(None);
        };
        let bearer = format!("Bearer {access_token}");
        let answer = self.issuer.http.call(get(url, Some(&bearer))?).await?;
        Ok(Some(answer))
    }

    async fn read_user_info(
        &self,
        metadata: &Metadata,
        answer: &Answer,
        expected_subject: Option<&str>,
    ) -> Result<Claims, ProviderError> {
        if !answer.status.is_success() {
            return Err(bearer_refusal(answer));
        }
        let mut info = if answer.content_type().starts_with("application/jwt") {
            let token = std::str::from_utf8(&answer.body)
                .map_err(|_| ProviderError::invalid("user info is not text"))?;
            let claims = self.issuer.verified(token.trim()).await?;
            self.check_signed_user_info(metadata, &claims)?;
            claims
        } else {
            answer.json::<Claims>()?
        };
        let named = text(&info, "sub");
        match (expected_subject, named) {
            (_, None) => return Err(ProviderError::invalid("user info lacks sub")),
            (Some(expected), Some(named)) if expected != named => {
                return Err(ProviderError::invalid(
                    "user info is about another person (sub)",
                ));
            }
            _ => {}
        }
        claims::put_right(&mut info);
        Ok(info)
    }

    /// Signed user info names its issuer and its audience (OIDC Core 5.3.2); what is named must fit.
    fn check_signed_user_info(
        &self,
        metadata: &Metadata,
        claims: &Claims,
    ) -> Result<(), ProviderError> {
        let rule = self.issuer.flavor.issuer_rule;
        let issuer_fits = said(claims, "iss").is_none()
            || discovery::token_issuer_fits(rule, metadata.issuer(), claims);
        let audience_fits =
            said(claims, "aud").is_none() || jwt::audience(claims).contains(&self.client.id);
        if issuer_fits && audience_fits {
            Ok(())
        } else {
            Err(ProviderError::invalid(
                "user info was signed by or for somebody else",
            ))
        }
    }

    async fn refresh_tokens(&self, request: Refresh<'_>) -> Result<Refreshed, ProviderError> {
        let metadata = self.issuer.metadata().await?;
        let grant = Grant::Refresh(request.refresh_token);
        let response = ask(
            &self.issuer.http,
            &self.client,
            &metadata,
            grant,
            REFRESH_DEADLINE,
        )
        .await?;
        let mut tokens = response.tokens(request.now);
        tokens
            .refresh_token
            .get_or_insert_with(|| request.refresh_token.to_owned());
        let Some(raw) = response.id_token.filter(|t| !t.as_str().is_empty()) else {
            return Ok(Refreshed {
                tokens,
                id_token: None,
                claims: None,
            });
        };
        // The refresh token is spent: whatever is wrong with the ID token must not lose the new
        // one, so it is left out instead.
        let verified = self
            .refreshed_id_token(&metadata, raw, request, &tokens)
            .await;
        let (id_token, claims) = match verified {
            Ok((id_token, claims)) => (Some(id_token), claims),
            Err(error @ ProviderError::Invalid(_)) => {
                tracing::warn!(issuer = %self.issuer.url, %error, "a refresh brought an ID token that does not hold; the old one is kept");
                (None, None)
            }
            Err(error) => {
                tracing::warn!(issuer = %self.issuer.url, %error, "an ID token could not be verified; the old one is kept");
                (None, None)
            }
        };
        Ok(Refreshed {
            tokens,
            id_token,
            claims,
        })
    }

    async fn refreshed_id_token(
        &self,
        metadata: &Metadata,
        raw: RawIdToken,
        request: Refresh<'_>,
        tokens: &Tokens,
    ) -> Result<(IdToken, Option<Claims>), ProviderError> {
        let (mut claims, algorithm) = self.id_token(metadata, &raw, None, request.now).await?;
        jwt::check_at_hash(&claims, &tokens.access_token, algorithm)?;
        let id_token = id_token_facts(raw, &claims)?;
        if request
            .expected_subject
            .is_some_and(|expected| expected != id_token.subject)
        {
            return Err(ProviderError::invalid(
                "the new ID token is about another person (sub)",
            ));
        }
        claims::put_right(&mut claims);
        // Claims that are away now would look like claims taken from the person: keep the old.
        let complete = self
            .fetch_distant_claims(&tokens.access_token, &mut claims)
            .await;
        let claims = match complete {
            Err(ProviderError::Unreachable { .. }) => None,
            _ => Some(claims),
        };
        Ok((id_token, claims))
    }

    async fn revoke_tokens(&self, tokens: &Tokens) -> Result<(), ProviderError> {
        let metadata = self.issuer.metadata().await?;
        let Some(url) = (self.issuer.flavor.revocation)(&metadata) else {
            return Ok(());
        };
        let mut outcome = Ok(());
        // The refresh token first: where both hang together, that ends the access token too.
        let both = [
            (tokens.refresh_token.as_deref(), "refresh_token"),
            (Some(tokens.access_token.as_str()), "access_token"),
        ];
        for (token, hint) in both {
            let Some(token) = token.filter(|t| !t.is_empty()) else {
                continue;
            };
            let form = [("token", token), ("token_type_hint", hint)];
            let one = match self
                .client
                .tell(&self.issuer.http, &metadata, &url, &form)
                .await
            {
                Ok(answer) if answer.status.is_success() => Ok(()),
                Ok(answer) => Err(crate::token_endpoint::refusal(&answer)),
                Err(error) => Err(error),
            };
            outcome = outcome.and(one);
        }
        outcome
    }
}

/// What the provider announces for ID tokens, as far as it proves something.
fn id_token_algorithms(metadata: &Metadata) -> Result<Vec<Algorithm>, ProviderError> {
    let announced = metadata.id_token_algorithms();
    let usable: Vec<Algorithm> = jwks::ALGORITHMS
        .into_iter()
        .filter(|algorithm| jwks::openid(*algorithm).is_some_and(|a| announced.contains(&a)))
        .collect();
    if usable.is_empty() {
        let names: Vec<String> = announced
            .iter()
            .filter_map(|algorithm| serde_json::to_value(algorithm).ok())
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect();
        return Err(ProviderError::invalid(format!(
            "it signs ID tokens with {} only; needed is one of RS, PS, ES (256, 384) or EdDSA",
            if names.is_empty() {
                "algorithms unknown here".to_owned()
            } else {
                names.join(", ")
            }
        )));
    }
    Ok(usable)
}

/// The challenge was made when the flow began; openidconnect makes one from a verifier only, but
/// also reads what was stored (RFC 7636).
fn pkce_challenge(challenge: &str) -> Result<PkceCodeChallenge, ProviderError> {
    let stored = json!({"code_challenge": challenge, "code_challenge_method": "S256"});
    serde_json::from_value(stored)
        .map_err(|error| ProviderError::invalid(format!("the PKCE challenge: {error}")))
}

/// The answer must come from the provider that was asked (RFC 9207).
fn check_issuer_parameter(metadata: &Metadata, named: Option<&str>) -> Result<(), ProviderError> {
    match named {
        Some(named) if named != metadata.issuer() => Err(ProviderError::invalid(
            "the answer comes from another provider than the one that was asked (iss)",
        )),
        None if metadata.announces_issuer_parameter() => Err(ProviderError::invalid(
            "the answer does not say which provider it is from (iss), though this one announces that it does",
        )),
        _ => Ok(()),
    }
}

fn id_token_facts(raw: RawIdToken, claims: &Claims) -> Result<IdToken, ProviderError> {
    let subject = text(claims, "sub")
        .filter(|s| !s.is_empty())
        .ok_or_else(|| ProviderError::invalid("the ID token names nobody (sub)"))?;
    let expires_at = jwt::time(claims, "exp")?
        .ok_or_else(|| ProviderError::invalid("the ID token has no exp"))?;
    Ok(IdToken {
        raw: raw.into(),
        issuer: text(claims, "iss").unwrap_or_default().to_owned(),
        subject: subject.to_owned(),
        issued_at: jwt::time(claims, "iat")?,
        expires_at,
    })
}

fn verified_token(claims: Claims) -> Result<VerifiedToken, ProviderError> {
    let subject = claims::subject(&claims)
        .ok_or_else(|| ProviderError::invalid("the token names nobody (sub)"))?
        .to_owned();
    Ok(VerifiedToken {
        subject,
        audience: jwt::audience(&claims),
        issued_at: jwt::time(&claims, "iat")?,
        expires_at: jwt::time(&claims, "exp")?,
        claims,
    })
}

impl Provider for Oidc {
    fn id(&self) -> &str {
        &self.id
    }

    fn capabilities(&self) -> Capabilities {
        let form_post = self
            .params
            .iter()
            .any(|(n, v)| n == "response_mode" && v == "form_post");
        let known = self.issuer.known_metadata();
        let fixed = Capabilities {
            id_token: true,
            form_post,
            ..Capabilities::default()
        };
        known.map_or(fixed, |metadata| Capabilities {
            pkce: metadata.offers_pkce(),
            user_info: metadata.userinfo_endpoint().is_some(),
            revocation: (self.issuer.flavor.revocation)(&metadata).is_some(),
            end_session: metadata.end_session_endpoint().is_some(),
            ..fixed
        })
    }

    fn authorization_url<'a>(
        &'a self,
        request: AuthRequest<'a>,
    ) -> BoxFuture<'a, Result<Url, ProviderError>> {
        async move { self.authorize(&*self.issuer.metadata().await?, request) }.boxed()
    }

    fn exchange<'a>(
        &'a self,
        request: CodeExchange<'a>,
    ) -> BoxFuture<'a, Result<Identity, ProviderError>> {
        self.exchange_code(request).boxed()
    }

    fn refresh<'a>(
        &'a self,
        request: Refresh<'a>,
    ) -> BoxFuture<'a, Result<Refreshed, ProviderError>> {
        self.refresh_tokens(request).boxed()
    }

    fn user_info<'a>(
        &'a self,
        request: UserInfoRequest<'a>,
    ) -> BoxFuture<'a, Result<Option<Claims>, ProviderError>> {
        async move {
            self.ask_user_info(&*self.issuer.metadata().await?, request)
                .await
        }
        .boxed()
    }

    fn revoke<'a>(&'a self, tokens: &'a Tokens) -> BoxFuture<'a, Result<(), ProviderError>> {
        self.revoke_tokens(tokens).boxed()
    }

    fn end_session_url<'a>(
        &'a self,
        request: EndSession<'a>,
    ) -> BoxFuture<'a, Result<Option<SignOut>, ProviderError>> {
        async move {
            let metadata = self.issuer.metadata().await?;
            Ok((self.issuer.flavor.sign_out)(
                &metadata,
                &self.client.id,
                request,
            ))
        }
        .boxed()
    }

    fn verify_identity_token<'a>(
        &'a self,
        request: VerifyToken<'a>,
    ) -> BoxFuture<'a, Result<VerifiedToken, ProviderError>> {
        async move {
            let metadata = self.issuer.metadata().await?;
            let token = RawIdToken::from(request.token.to_owned());
            let (mut claims, _) = self.id_token(&metadata, &token, None, request.now).await?;
            claims::put_right(&mut claims);
            verified_token(claims)
        }
        .boxed()
    }

    fn verify_access_token<'a>(
        &'a self,
        request: VerifyToken<'a>,
    ) -> BoxFuture<'a, Result<VerifiedToken, ProviderError>> {
        self.access_token(request).boxed()
    }
}
