#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        reason = "tests may panic"
    )
)]
//! Identity providers: how people prove who they are.
//!
//! [`Provider`] is the seam: authenticate sends people through it, the identity manager refreshes
//! with it, authorize verifies bearer tokens with it. [`Providers`] holds one per provider id.
//! Nearly all of them speak OpenID Connect ([`oidc`]); a file in [`providers`] tells what each
//! does differently. Nothing here stores anything or knows of cookies, and nothing blocks a start:
//! what a provider publishes about itself is fetched in the background and the last good kept.
//!
//! Whatever an answer is used for is checked first: signatures by the provider's own keys, issuer,
//! audience, times, nonce, subject. A provider that lies gives [`ProviderError::Invalid`], one that
//! says no [`ProviderError::Refused`], one that does not answer [`ProviderError::Unreachable`].

pub mod claims;
mod client_auth;
mod discovery;
mod document;
mod error;
mod examine;
mod foreign;
mod http_client;
mod id_token;
mod issuer;
mod jwks;
mod jwt;
mod oidc;
mod provider;
mod providers;
mod registry;
mod token_endpoint;

#[cfg(test)]
mod tests;

pub use error::{ProviderError, Refusal};
pub use examine::{Examined, ProviderFault, examine};
pub use foreign::{ForeignToken, ForeignTokens};
pub use http_client::{HttpClient, HttpError, MAX_BODY, REFRESH_DEADLINE};
pub use provider::{
    AuthRequest, Capabilities, Claims, CodeExchange, EndSession, IdToken, Identity, Provider,
    Refresh, Refreshed, SignOut, Tokens, UserInfoRequest, VerifiedToken, VerifyToken,
};
pub use providers::default_url;
pub use registry::{ProviderSettings, Providers, RegistryError, follow};
