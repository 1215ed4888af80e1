//! What each provider does differently. One file each; everything not named there is plain
//! OpenID Connect.

pub(crate) mod apple;
pub(crate) mod auth0;
pub(crate) mod azure;
pub(crate) mod cognito;
pub(crate) mod generic;
pub(crate) mod github;
pub(crate) mod gitlab;
pub(crate) mod google;
pub(crate) mod okta;
pub(crate) mod onelogin;
pub(crate) mod ping;

use postern_common::config::ProviderKind;
use url::Url;

use crate::discovery::{IssuerRule, Metadata};
use crate::provider::{EndSession, SignOut};

/// How this kind differs from plain OpenID Connect; `None` for GitHub, which does not speak it.
pub(crate) fn flavor(kind: ProviderKind) -> Option<&'static Flavor> {
    Some(match kind {
        ProviderKind::Oidc => &generic::FLAVOR,
        ProviderKind::Apple => &apple::FLAVOR,
        ProviderKind::Auth0 => &auth0::FLAVOR,
        ProviderKind::Azure => &azure::FLAVOR,
        ProviderKind::Cognito => &cognito::FLAVOR,
        ProviderKind::Gitlab => &gitlab::FLAVOR,
        ProviderKind::Google => &google::FLAVOR,
        ProviderKind::Okta => &okta::FLAVOR,
        ProviderKind::OneLogin => &onelogin::FLAVOR,
        ProviderKind::Ping => &ping::FLAVOR,
        ProviderKind::Github => return None,
    })
}

/// `idp_provider_url` when none is configured; `None` when one must be.
pub fn default_url(kind: ProviderKind) -> Option<&'static str> {
    match flavor(kind) {
        Some(flavor) => flavor.default_url,
        None => Some(github::DEFAULT_URL),
    }
}

/// How a provider differs from plain OpenID Connect.
pub(crate) struct Flavor {
    pub name: &'static str,
    pub default_url: Option<&'static str>,
    /// The issuer for a configured `idp_provider_url`.
    pub issuer: fn(&str) -> String,
    pub issuer_rule: IssuerRule,
    /// Scopes when `idp_scopes` is not set, by issuer.
    pub scopes: fn(&str) -> &'static [&'static str],
    /// False where `idp_scopes` has no effect, as in Pomerium.
    pub scopes_configurable: bool,
    /// Request parameters when `idp_request_params` is not set.
    pub params: &'static [(&'static str, &'static str)],
    /// `idp_request_params` are added to the defaults instead of replacing them.
    pub merge_params: bool,
    pub sign_out: fn(&Metadata, &str, EndSession<'_>) -> Option<SignOut>,
    pub revocation: fn(&Metadata) -> Option<Url>,
    /// Large claims may lie elsewhere (`_claim_names`), and are fetched from there.
    pub distributed_claims: bool,
}

pub(crate) const OFFLINE: &[&str] = &["openid", "profile", "email", "offline_access"];
pub(crate) const ONLINE: &[&str] = &["openid", "profile", "email"];

/// Plain OpenID Connect, from which the others are made.
pub(crate) const PLAIN: Flavor = Flavor {
    name: "oidc",
    default_url: None,
    issuer: str::to_owned,
    issuer_rule: IssuerRule::Exact,
    scopes: |_| OFFLINE,
    scopes_configurable: true,
    params: &[],
    merge_params: false,
    sign_out: standard_sign_out,
    revocation: |metadata| metadata.revocation_endpoint().cloned(),
    distributed_claims: false,
};

/// OpenID Connect RP-Initiated Logout 1.0.
fn standard_sign_out(metadata: &Metadata, client: &str, ask: EndSession<'_>) -> Option<SignOut> {
    let mut url = metadata.end_session_endpoint()?.clone();
    {
        let mut query = url.query_pairs_mut();
        if let Some(hint) = ask.id_token_hint {
            query.append_pair("id_token_hint", hint);
        }
        query.append_pair("client_id", client);
        query.append_pair(
            "post_logout_redirect_uri",
            ask.target.unwrap_or(ask.signed_out).as_str(),
        );
    }
    Some(SignOut {
        url,
        returns_to_target: true,
    })
}
