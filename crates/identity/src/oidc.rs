//! OpenID Connect: the code flow with PKCE and nonce, refresh, user info, sign-out, and tokens
//! that programs bring.

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

use crate::claims::{self, text};
use crate::client_auth::{Client, Method};
use crate::discovery::{self, Metadata};
use crate::document::Document;
use crate::error::{ProviderError, Refusal};
use crate::http_client::{HttpClient, REFRESH_DEADLINE, get};
use crate::id_token::{Audience, RawIdToken};
use crate::jwks::{self, Jwks};
use crate::jwt::{self, Expected, SignatureError, Unverified};
use crate::provider::{
    AuthRequest, Capabilities, Claims, CodeExchange, EndSession, IdToken, Identity, Provider,
    Refresh, Refreshed, SignOut, Tokens, UserInfoRequest, VerifiedToken, VerifyToken,
};
use crate::providers::{Flavor, azure};
use crate::token_endpoint::{Grant, ask, bearer_refusal};

/// Least time between two attempts to read a discovery document.
const DISCOVERY_DISTANCE: Duration = Duration::from_secs(2);
/// Least time between two attempts to read the keys, which anybody can cause with an unknown `kid`.
const KEYS_DISTANCE: Duration = Duration::from_secs(5);
/// Longest pause between attempts while nothing has been read yet.
const FIRST_PAUSE_MAX: Duration = Duration::from_secs(4);
/// How long a person waits for a code to be redeemed.
const EXCHANGE_DEADLINE: Duration = Duration::from_secs(10);
/// How often document and keys are read again.
const RENEWAL: Duration = Duration::from_secs(3600);
/// Pause after a renewal that failed; the old document serves on.
const RENEWAL_RETRY: Duration = Duration::from_secs(60);

/// A provider's public side: what it publishes, shared by all clients we have there.
pub(crate) struct Issuer {
    pub url: String,
    pub flavor: &'static Flavor,
    http: HttpClient,
    metadata: Arc<Document<Metadata>>,
    keys: Arc<Document<Jwks>>,
    background: tokio::task::AbortHandle,
}

impl Issuer {
    /// Begins to read the discovery document in the background; needs a tokio runtime.
    pub fn start(
        url: String,
        flavor: &'static Flavor,
        http: HttpClient,
    ) -> Result<Arc<Self>, ProviderError> {
        let address = discovery::document_url(&url)?;
        let metadata = {
            let (http, url) = (http.clone(), url.clone());
            Arc::new(Document::new(DISCOVERY_DISTANCE, move || {
                let (http, url, address) = (http.clone(), url.clone(), address.clone());
                async move {
                    discovery::parse(&http.document(&address).await?, &url, flavor.issuer_rule)
                }
                .boxed()
            }))
        };
        let keys = {
            let (http, metadata) = (http.clone(), Arc::clone(&metadata));
            Arc::new(Document::new(KEYS_DISTANCE, move || {
                let (http, metadata) = (http.clone(), Arc::clone(&metadata));
                async move { Jwks::parse(&http.document(metadata.get().await?.jwks_uri()).await?) }
                    .boxed()
            }))
        };
        let background = tokio::spawn(keep_fresh(
            url.clone(),
            Arc::clone(&metadata),
            Arc::clone(&keys),
        ))
        .abort_handle();
        Ok(Arc::new(Self {
            url,
            flavor,
            http,
            metadata,
            keys,
            background,
        }))
    }

    pub async fn metadata(&self) -> Result<Arc<Metadata>, ProviderError> {
        self.metadata.get().await
    }

    /// Verifies the signature of a token that is no ID token.
    async fn verified(&self, token: &str) -> Result<Claims, ProviderError> {
        let parsed = Unverified::parse(token)?;
        self.with_keys(&|keys| parsed.verify(keys)).await?;
        Ok(parsed.into_claims())
    }

    /// Verifies something by the provider's keys; an unknown key makes them be read again.
    async fn with_keys(
        &self,
        verify: &(dyn Fn(&Jwks) -> Result<(), SignatureError> + Sync),
    ) -> Result<(), ProviderError> {
        let mut outcome = verify(&*self.keys.get().await?);
        if outcome == Err(SignatureError::UnknownKey) {
            outcome = verify(&*self.keys.refresh().await?);
        }
        outcome.map_err(|error| match error {
            SignatureError::UnknownKey => {
                ProviderError::invalid("the token is signed by none of the provider's keys")
            }
            SignatureError::Wrong => ProviderError::invalid("the token's signature is wrong"),
            SignatureError::Token(words) => {
                ProviderError::invalid(format!("the ID token does not hold: {words}"))
            }
        })
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.background.abort();
    }
}

/// Reads the document until it is there, then again from time to time.
async fn keep_fresh(url: String, metadata: Arc<Document<Metadata>>, keys: Arc<Document<Jwks>>) {
    let mut pause = DISCOVERY_DISTANCE;
    let mut failures = 0_u32;
    loop {
        let outcome = metadata.refresh().await;
        match (&outcome, metadata.age()) {
            (Ok(_), _) => {
                if failures > 0 {
                    tracing::info!(issuer = %url, "the identity provider can be reached");
                }
                failures = 0;
                // Warm, so that the first sign-in does not wait; a failure shows up there.
                if let Err(error) = keys.refresh().await {
                    tracing::warn!(issuer = %url, %error, "the identity provider's keys could not be read");
                }
                pause = RENEWAL;
            }
            (Err(error), Some(age)) => {
                failures += 1;
                tracing::warn!(issuer = %url, %error, age_s = age.as_secs(),
                    "the identity provider's discovery document could not be renewed; the old one serves on");
                pause = RENEWAL_RETRY;
            }
            (Err(error), None) => {
                failures += 1;
                // About once a minute after the first few.
                if failures < 4 || failures.is_multiple_of(16) {
                    tracing::warn!(issuer = %url, %error, failures,
                        "the identity provider's discovery document could not be read; trying again");
                }
                pause = pause.mul_f32(1.5).min(FIRST_PAUSE_MAX);
            }
        }
        tokio::time::sleep(pause).await;
    }
}

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
        let Some(url) = metadata.userinfo_endpoint() else {
            return Ok(None);
        };
        let bearer = format!("Bearer {}", request.access_token);
        let answer = self.issuer.http.call(get(url, Some(&bearer))?).await?;
        if !answer.status.is_success() {
            return Err(bearer_refusal(&answer));
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
        match (request.expected_subject, named) {
            (_, None) => return Err(ProviderError::invalid("user info lacks sub")),
            (Some(expected), Some(named)) if expected != named => {
                return Err(ProviderError::invalid(
                    "user info is about another person (sub)",
                ));
            }
            _ => {}
        }
        claims::put_right(&mut info);
        Ok(Some(info))
    }

    /// Signed user info names its issuer and its audience (OIDC Core 5.3.2); what is named must fit.
    fn check_signed_user_info(
        &self,
        metadata: &Metadata,
        claims: &Claims,
    ) -> Result<(), ProviderError> {
        let rule = self.issuer.flavor.issuer_rule;
        let issuer_fits = !claims.contains_key("iss")
            || discovery::token_issuer_fits(rule, metadata.issuer(), claims);
        let audience_fits =
            !claims.contains_key("aud") || jwt::audience(claims).contains(&self.client.id);
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
        let method = self.client.method(&metadata)?;
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
            let answer = match self.client.request(&url, &form, method) {
                Ok(request) => self.issuer.http.call(request).await,
                Err(error) => Err(error),
            };
            let one = match answer {
                Ok(answer) if answer.status.is_success() => Ok(()),
                Ok(answer) => Err(crate::token_endpoint::refusal(&answer)),
                Err(error) => Err(error),
            };
            outcome = outcome.and(one);
        }
        outcome
    }

    async fn access_token(&self, request: VerifyToken<'_>) -> Result<VerifiedToken, ProviderError> {
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

/// Three parts, the first of which is a JSON object with an algorithm.
fn looks_like_jwt(token: &str) -> bool {
    token.starts_with("eyJ") && token.bytes().filter(|b| *b == b'.').count() == 2
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
        let known = self.issuer.metadata.good();
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
