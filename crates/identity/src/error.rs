//! What can go wrong with a provider, by what the caller must do about it.

use std::fmt;
use std::time::Duration;

/// Why a call to a provider gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// A definite no about this code, token or person (`invalid_grant` and its like). The only
    /// error that may end a session.
    #[error("the identity provider refused: {0}")]
    Refused(Refusal),
    /// The provider rejects us, not the person: client id, secret, redirect URI, scope. Says
    /// nothing about the session.
    #[error(
        "the identity provider rejected this client: {0} (compare idp_client_id, \
         idp_client_secret, idp_scopes and the redirect URI with its registration)"
    )]
    Misconfigured(Refusal),
    /// No usable answer: name resolution, connection, TLS, deadline, 429, 5xx. Try again later.
    #[error("the identity provider cannot be reached: {endpoint}: {reason}")]
    Unreachable {
        /// Scheme, host and path of what was asked; never a query.
        endpoint: String,
        reason: String,
        /// What the provider asked to wait for, when it did.
        retry_after: Option<Duration>,
    },
    /// An answer that must not be believed: wrong signature, issuer, audience, nonce, subject,
    /// time, or not what the protocol says.
    #[error("the identity provider's answer is not acceptable: {0}")]
    Invalid(String),
    /// This provider has no such thing.
    #[error("{provider} does not offer {what}")]
    Unsupported {
        provider: &'static str,
        what: &'static str,
    },
}

impl ProviderError {
    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid(what.into())
    }

    /// True for a definite no, after which the session (or code) can never be used again.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

/// What the provider said: an OAuth error code (RFC 6749 5.2) and its description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub error: String,
    pub description: Option<String>,
}

/// Longest piece of a provider's own words that is repeated in a log.
const MAX_WORDS: usize = 200;

impl Refusal {
    pub(crate) fn new(error: &str, description: Option<&str>) -> Self {
        Self {
            error: printable(error),
            description: description.map(printable).filter(|d| !d.is_empty()),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.description {
            Some(description) => write!(f, "{}: {description}", self.error),
            None => f.write_str(&self.error),
        }
    }
}

/// A provider's words, shortened and without control characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_WORDS)
        .collect::<String>()
        .trim()
        .to_owned()
}
