//! The seam: what Postern asks of a provider, and what it gets.

use std::fmt;

use futures::future::BoxFuture;
use jiff::Timestamp;
use url::Url;

use crate::error::ProviderError;

/// Claims by name, as the provider sent them.
pub type Claims = serde_json::Map<String, serde_json::Value>;

/// One client at one identity provider.
///
/// Every call ends by itself: each request that it makes has ten seconds, that of a refresh a
/// minute.
pub trait Provider: Send + Sync + fmt::Debug {
    /// The provider id (a wire fact, see `postern_common::crypto::provider_id`).
    fn id(&self) -> &str;

    /// What is known of this provider now; what depends on its discovery document is false
    /// while that has not been read.
    fn capabilities(&self) -> Capabilities;

    /// Where to send the browser. PKCE is used where the provider offers S256.
    fn authorization_url<'a>(
        &'a self,
        request: AuthRequest<'a>,
    ) -> BoxFuture<'a, Result<Url, ProviderError>>;

    /// Redeems the code of a callback, and checks everything that came with it.
    fn exchange<'a>(
        &'a self,
        request: CodeExchange<'a>,
    ) -> BoxFuture<'a, Result<Identity, ProviderError>>;

    /// New tokens for a refresh token.
    fn refresh<'a>(
        &'a self,
        request: Refresh<'a>,
    ) -> BoxFuture<'a, Result<Refreshed, ProviderError>>;

    /// What the provider says of the person now; `None` when it has no place to ask.
    fn user_info<'a>(
        &'a self,
        request: UserInfoRequest<'a>,
    ) -> BoxFuture<'a, Result<Option<Claims>, ProviderError>>;

    /// Takes back refresh and access token, as far as the provider offers it.
    fn revoke<'a>(&'a self, tokens: &'a Tokens) -> BoxFuture<'a, Result<(), ProviderError>>;

    /// Where to send the browser to sign out at the provider; `None` when it offers no such page.
    fn end_session_url<'a>(
        &'a self,
        request: EndSession<'a>,
    ) -> BoxFuture<'a, Result<Option<SignOut>, ProviderError>>;

    /// Verifies an ID token that a program sent: as at sign-in, so made for this client.
    fn verify_identity_token<'a>(
        &'a self,
        request: VerifyToken<'a>,
    ) -> BoxFuture<'a, Result<VerifiedToken, ProviderError>>;

    /// Verifies an access token that a program sent: a JWT by its signature, an opaque one by
    /// introspection, else by user info. It must name one of the audiences.
    fn verify_access_token<'a>(
        &'a self,
        request: VerifyToken<'a>,
    ) -> BoxFuture<'a, Result<VerifiedToken, ProviderError>>;
}

/// What a provider offers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, read one by one"
)]
pub struct Capabilities {
    pub pkce: bool,
    /// Sign-in gives an ID token.
    pub id_token: bool,
    pub user_info: bool,
    pub revocation: bool,
    pub end_session: bool,
    /// The answer comes as a cross-site POST, so the CSRF cookie needs `SameSite=None`.
    pub form_post: bool,
}

/// What goes into the address of the sign-in page.
#[derive(Debug, Clone, Copy)]
pub struct AuthRequest<'a> {
    pub state: &'a str,
    pub nonce: &'a str,
    /// base64url(SHA-256(verifier)) without padding (RFC 7636).
    pub code_challenge: &'a str,
    pub redirect_uri: &'a Url,
}

/// What a callback brought, and what must fit it.
#[derive(Clone, Copy)]
pub struct CodeExchange<'a> {
    pub code: &'a str,
    pub code_verifier: &'a str,
    pub nonce: &'a str,
    pub redirect_uri: &'a Url,
    /// The callback's `iss` parameter (RFC 9207).
    pub issuer_parameter: Option<&'a str>,
    pub now: Timestamp,
}

/// A person who has just signed in.
#[derive(Debug, Clone)]
pub struct Identity {
    /// User id: `oid`, else `sub`.
    pub subject: String,
    /// ID token ∪ user info; user info wins.
    pub claims: Claims,
    /// Names of those that user info gave: what it stops giving is gone, whatever an older ID token
    /// says.
    pub user_info_claims: Vec<String>,
    /// Absent only where the provider has none (GitHub).
    pub id_token: Option<IdToken>,
    pub tokens: Tokens,
}

/// An ID token that was verified.
#[derive(Clone, PartialEq, Eq)]
pub struct IdToken {
    /// The compact JWT; a secret.
    pub raw: String,
    pub issuer: String,
    pub subject: String,
    pub issued_at: Option<Timestamp>,
    pub expires_at: Timestamp,
}

/// What the token endpoint gave. All texts are secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    pub access_token: String,
    pub token_type: String,
    pub refresh_token: Option<String>,
    /// End of the access token; `None` when the provider set none.
    pub expires_at: Option<Timestamp>,
}

#[derive(Clone, Copy)]
pub struct Refresh<'a> {
    pub refresh_token: &'a str,
    /// `sub` of the session's ID token; a new ID token or user info of another person is refused.
    pub expected_subject: Option<&'a str>,
    pub now: Timestamp,
}

/// What a refresh gave.
#[derive(Debug, Clone)]
pub struct Refreshed {
    /// The old refresh token is kept in here when the provider sent no new one.
    pub tokens: Tokens,
    /// The new ID token, if one came; keep the old one if not.
    pub id_token: Option<IdToken>,
    /// Claims of the new ID token; `None` if none came.
    pub claims: Option<Claims>,
}

#[derive(Clone, Copy)]
pub struct UserInfoRequest<'a> {
    pub access_token: &'a str,
    /// `sub` of the ID token: an answer about somebody else is refused (OIDC Core 5.3.2).
    pub expected_subject: Option<&'a str>,
}

#[derive(Debug, Clone, Copy)]
pub struct EndSession<'a> {
    /// The raw ID token of the session.
    pub id_token_hint: Option<&'a str>,
    /// Where the person should end up, if somewhere else than the signed-out page.
    pub target: Option<&'a Url>,
    /// `AUTHENTICATE/.pomerium/signed_out`.
    pub signed_out: &'a Url,
}

/// A provider's sign-out page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignOut {
    pub url: Url,
    /// False when the provider always comes back to the signed-out page, which must then know
    /// the target by other means.
    pub returns_to_target: bool,
}

#[derive(Clone, Copy)]
pub struct VerifyToken<'a> {
    pub token: &'a str,
    /// Accepted audiences of an access token; ID tokens are for the client id always.
    pub audiences: &'a [String],
    pub now: Timestamp,
}

/// A token that a program sent and that holds.
#[derive(Debug, Clone)]
pub struct VerifiedToken {
    /// User id: `oid`, else `sub`.
    pub subject: String,
    pub claims: Claims,
    pub audience: Vec<String>,
    pub issued_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("token_type", &self.token_type)
            .field("refresh_token", &self.refresh_token.is_some())
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for IdToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdToken")
            .field("issuer", &self.issuer)
            .field("subject", &self.subject)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}
