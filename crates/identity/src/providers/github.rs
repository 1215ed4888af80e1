//! GitHub. OAuth 2.0 without OpenID Connect: who somebody is comes from its API, tokens do not
//! expire, there is no ID token and no sign-out page.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use crate::client_auth::Client;
use crate::error::{ProviderError, Refusal};
use crate::http_client::{Answer, HttpClient, get, post, shown};
use crate::provider::{
    AuthRequest, Capabilities, Claims, CodeExchange, EndSession, Identity, Provider, Refresh,
    Refreshed, SignOut, Tokens, UserInfoRequest, VerifiedToken, VerifyToken,
};
use crate::token_endpoint::{TokenResponse, refusal};

pub(crate) const NAME: &str = "github";
pub(crate) const DEFAULT_URL: &str = "https://github.com";
const API: &str = "https://api.github.com";
const SCOPES: &[&str] = &["user:email", "read:org"];

/// Claims count as this long-lived, as in Pomerium.
const CLAIMS_LIFETIME: SignedDuration = SignedDuration::from_mins(60);

#[derive(Debug)]
pub(crate) struct GitHub {
    id: String,
    client: Client,
    scopes: String,
    base: Url,
    api: Url,
    http: HttpClient,
}

impl GitHub {
    pub fn new(
        id: String,
        url: &str,
        client: Client,
        scopes: &[String],
        http: HttpClient,
    ) -> Result<Self, ProviderError> {
        let parse = |text: &str| {
            Url::parse(&format!("{}/", text.trim_end_matches('/')))
                .ok()
                .filter(|u| matches!(u.scheme(), "https" | "http") && u.has_host())
                .ok_or_else(|| {
                    ProviderError::invalid(format!(
                        "idp_provider_url {text:?} is not an http(s) URL"
                    ))
                })
        };
        let base = parse(url)?;
        let api = if base.host_str() == Some("github.com") {
            parse(API)?
        } else {
            base.clone()
        };
        let scopes = if scopes.is_empty() {
            SCOPES.join(" ")
        } else {
            scopes.join(" ")
        };
        Ok(Self {
            id,
            client,
            scopes,
            base,
            api,
            http,
        })
    }

    fn at(base: &Url, path: &str) -> Result<Url, ProviderError> {
        base.join(path)
            .map_err(|e| ProviderError::invalid(format!("{}{path}: {e}", shown(base))))
    }

    async fn api<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        token: &str,
    ) -> Result<T, ProviderError> {
        let url = Self::at(&self.api, path)?;
        let answer = self
            .http
            .call(get(&url, Some(&format!("token {token}")))?)
            .await?;
        if answer.status.is_success() {
            answer.json()
        } else {
            Err(api_refusal(&answer))
        }
    }

    async fn claims(&self, access_token: &str, now: Timestamp) -> Result<Claims, ProviderError> {
        let user: User = self.api("user", access_token).await?;
        let addresses: Vec<Address> = match self.api("user/emails", access_token).await {
            Ok(addresses) => addresses,
            // Without the scope there is no address, which is not a reason against the person.
            Err(ProviderError::Misconfigured(_)) => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(claims(&user, &addresses, now))
    }

    async fn exchange_code(&self, request: CodeExchange<'_>) -> Result<Identity, ProviderError> {
        let url = Self::at(&self.base, "login/oauth/access_token")?;
        let form = [
            ("client_id", self.client.id.as_str()),
            ("client_secret", self.client.secret.as_str()),
            ("code", request.code),
            ("code_verifier", request.code_verifier),
            ("redirect_uri", request.redirect_uri.as_str()),
        ];
        let answer = self.http.call(post(&url, None, &form)?).await?;
        // Errors come with status 200.
        let response: TokenResponse = match answer.json::<Claims>() {
            Ok(body) if answer.status.is_success() && !body.contains_key("error") => {
                answer.json()?
            }
            _ => return Err(refusal(&answer)),
        };
        let tokens = Tokens {
            expires_at: None,
            refresh_token: None,
            ..response.tokens(request.now)
        };
        let claims = self.claims(&tokens.access_token, request.now).await?;
        let subject = crate::claims::subject(&claims)
            .ok_or_else(|| ProviderError::invalid("GitHub named nobody"))?
            .to_owned();
        Ok(Identity {
            subject,
            claims,
            user_info_claims: Vec::new(),
            id_token: None,
            tokens,
        })
    }

    /// Asks GitHub whether this token was made for our client.
    async fn check_token(&self, request: VerifyToken<'_>) -> Result<VerifiedToken, ProviderError> {
        if !request.audiences.contains(&self.client.id) {
            return Err(ProviderError::Misconfigured(Refusal::new(
                "GitHub's tokens are for idp_client_id, which is not an allowed audience",
                None,
            )));
        }
        let url = Self::at(&self.api, &format!("applications/{}/token", self.client.id))?;
        let body = json!({"access_token": request.token})
            .to_string()
            .into_bytes();
        let ask = Request::post(url.as_str())
            .header(header::AUTHORIZATION, self.client.basic())
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|e| ProviderError::invalid(e.to_string()))?;
        let answer = self.http.call(ask).await?;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY => {
                return Err(ProviderError::Refused(Refusal::new("invalid_token", None)));
            }
            _ => return Err(api_refusal(&answer)),
        }
        let claims = self.claims(request.token, request.now).await?;
        let subject = crate::claims::subject(&claims)
            .ok_or_else(|| ProviderError::invalid("GitHub named nobody"))?
            .to_owned();
        Ok(VerifiedToken {
            subject,
            claims,
            audience: vec![self.client.id.clone()],
            issued_at: None,
            expires_at: None,
        })
    }

    async fn revoke_grant(&self, tokens: &Tokens) -> Result<(), ProviderError> {
        let url = Self::at(&self.api, &format!("applications/{}/grant", self.client.id))?;
        let request = Request::delete(url.as_str())
            .header(header::AUTHORIZATION, self.client.basic())
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(
                json!({"access_token": tokens.access_token})
                    .to_string()
                    .into_bytes(),
            )
            .map_err(|e| ProviderError::invalid(e.to_string()))?;
        let answer = self.http.call(request).await?;
        if answer.status.is_success() || answer.status == StatusCode::NOT_FOUND {
            Ok(())
        } else {
            Err(api_refusal(&answer))
        }
    }
}

/// 401 is a definite no about the token; everything else (rate limits come as 403) says nothing.
fn api_refusal(answer: &Answer) -> ProviderError {
    let status = format!("status {} from {}", answer.status.as_u16(), answer.endpoint);
    let limited = answer
        .headers
        .get("x-ratelimit-remaining")
        .is_some_and(|v| v == "0")
        || answer.headers.contains_key(header::RETRY_AFTER);
    match answer.status {
        StatusCode::UNAUTHORIZED => ProviderError::Refused(Refusal::new("invalid_token", None)),
        StatusCode::FORBIDDEN if limited => ProviderError::Unreachable {
            endpoint: answer.endpoint.clone(),
            reason: "rate limit".to_owned(),
            retry_after: None,
        },
        _ => ProviderError::Misconfigured(Refusal::new(&status, None)),
    }
}

#[derive(Deserialize)]
struct User {
    id: i64,
    #[serde(default)]
    node_id: String,
    login: String,
    name: Option<String>,
    avatar_url: Option<String>,
    html_url: Option<String>,
    blog: Option<String>,
}

#[derive(Deserialize)]
struct Address {
    email: String,
    #[serde(default)]
    primary: bool,
    #[serde(default)]
    verified: bool,
}

fn claims(user: &User, addresses: &[Address], now: Timestamp) -> Claims {
    let subject = if user.node_id.is_empty() {
        user.id.to_string()
    } else {
        user.node_id.clone()
    };
    // Only an address that is both: anybody can add an address that is not theirs.
    let address = addresses.iter().find(|a| a.primary && a.verified);
    let end = now.checked_add(CLAIMS_LIFETIME).unwrap_or(now);
    let mut claims = Claims::new();
    let mut put = |name: &str, value: Value| claims.insert(name.to_owned(), value);
    put("sub", subject.into());
    put("user", user.login.clone().into());
    put("preferred_username", user.login.clone().into());
    put("name", user.name.clone().unwrap_or_default().into());
    put(
        "picture",
        user.avatar_url.clone().unwrap_or_default().into(),
    );
    put("profile", user.html_url.clone().unwrap_or_default().into());
    put("website", user.blog.clone().unwrap_or_default().into());
    put(
        "email",
        address.map(|a| a.email.clone()).unwrap_or_default().into(),
    );
    put("email_verified", address.is_some().into());
    put("iat", now.as_second().into());
    put("nbf", now.as_second().into());
    put("exp", end.as_second().into());
    claims
}

impl Provider for GitHub {
    fn id(&self) -> &str {
        &self.id
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            pkce: true,
            user_info: true,
            revocation: true,
            ..Capabilities::default()
        }
    }

    fn authorization_url<'a>(
        &'a self,
        request: AuthRequest<'a>,
    ) -> BoxFuture<'a, Result<Url, ProviderError>> {
        async move {
            let mut url = Self::at(&self.base, "login/oauth/authorize")?;
            // `idp_request_params` have no effect here, as in Pomerium.
            url.query_pairs_mut()
                .append_pair("client_id", &self.client.id)
                .append_pair("redirect_uri", request.redirect_uri.as_str())
                .append_pair("response_type", "code")
                .append_pair("scope", &self.scopes)
                .append_pair("state", request.state)
                .append_pair("code_challenge", request.code_challenge)
                .append_pair("code_challenge_method", "S256")
                .append_pair("access_type", "offline");
            Ok(url)
        }
        .boxed()
    }

    fn exchange<'a>(
        &'a self,
        request: CodeExchange<'a>,
    ) -> BoxFuture<'a, Result<Identity, ProviderError>> {
        self.exchange_code(request).boxed()
    }

    fn refresh<'a>(&'a self, _: Refresh<'a>) -> BoxFuture<'a, Result<Refreshed, ProviderError>> {
        std::future::ready(Err(ProviderError::Unsupported {
            provider: NAME,
            what: "refresh",
        }))
        .boxed()
    }

    fn user_info<'a>(
        &'a self,
        request: UserInfoRequest<'a>,
    ) -> BoxFuture<'a, Result<Option<Claims>, ProviderError>> {
        async move {
            let claims = self.claims(request.access_token, Timestamp::now()).await?;
            let named = crate::claims::subject(&claims);
            match request.expected_subject {
                Some(expected) if named != Some(expected) => {
                    Err(ProviderError::invalid("user info is about another person"))
                }
                _ => Ok(Some(claims)),
            }
        }
        .boxed()
    }

    fn revoke<'a>(&'a self, tokens: &'a Tokens) -> BoxFuture<'a, Result<(), ProviderError>> {
        self.revoke_grant(tokens).boxed()
    }

    fn end_session_url<'a>(
        &'a self,
        _: EndSession<'a>,
    ) -> BoxFuture<'a, Result<Option<SignOut>, ProviderError>> {
        std::future::ready(Ok(None)).boxed()
    }

    fn verify_identity_token<'a>(
        &'a self,
        _: VerifyToken<'a>,
    ) -> BoxFuture<'a, Result<VerifiedToken, ProviderError>> {
        std::future::ready(Err(ProviderError::Unsupported {
            provider: NAME,
            what: "identity tokens",
        }))
        .boxed()
    }

    fn verify_access_token<'a>(
        &'a self,
        request: VerifyToken<'a>,
    ) -> BoxFuture<'a, Result<VerifiedToken, ProviderError>> {
        self.check_token(request).boxed()
    }
}
