//! JWTs made elsewhere (`identity_providers`): verified here, never issued by a sign-in of ours.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use jiff::Timestamp;
use jsonwebtoken::Algorithm;
use postern_common::config::JwtVerifier;
use serde::Deserialize;
use url::Url;

use crate::claims::text;
use crate::discovery::{self, IssuerRule};
use crate::document::Document;
use crate::error::{ProviderError, printable};
use crate::http_client::HttpClient;
use crate::jwks::{self, Jwks};
use crate::jwt::{self, Expected, SignatureError, Unverified};
use crate::provider::VerifiedToken;

/// Least time between two attempts to read a verifier's keys.
const DISTANCE: Duration = Duration::from_secs(5);

/// Keys are read again when they are older, so that one that was taken back is not trusted for ever.
const RENEWAL: Duration = Duration::from_secs(60 * 60);

/// The verifiers of a configuration.
#[derive(Debug, Default)]
pub struct ForeignTokens {
    entries: BTreeMap<String, Arc<Entry>>,
}

struct Entry {
    configured: JwtVerifier,
    algorithms: Vec<Algorithm>,
    keys: Document<Jwks>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.configured.fmt(f)
    }
}

/// A token that holds, and which entry it belongs to.
#[derive(Debug, Clone)]
pub struct ForeignToken {
    /// Its name in `identity_providers`.
    pub entry: String,
    /// `subject` is the token's `sub`.
    pub token: VerifiedToken,
}

impl ForeignTokens {
    /// Reads nothing yet. Keys that `previous` knows for an entry that has not changed are kept.
    pub fn new(
        verifiers: &BTreeMap<String, JwtVerifier>,
        http: &HttpClient,
        previous: Option<&Self>,
    ) -> Self {
        let kept = |name: &str, verifier: &JwtVerifier| {
            previous
                .and_then(|previous| previous.entries.get(name))
                .filter(|entry| entry.configured == *verifier)
                .cloned()
        };
        Self {
            entries: verifiers
                .iter()
                .map(|(name, verifier)| {
                    let entry = kept(name, verifier)
                        .unwrap_or_else(|| Arc::new(Entry::new(verifier.clone(), http.clone())));
                    (name.clone(), entry)
                })
                .collect(),
        }
    }

    /// Verifies signature, issuer, audience and times. Only entries named in `allowed` count;
    /// empty: all of them.
    pub async fn verify(
        &self,
        token: &str,
        allowed: &[String],
        now: Timestamp,
    ) -> Result<ForeignToken, ProviderError> {
        let parsed = Unverified::parse(token)?;
        let issuer = text(parsed.claims(), "iss").unwrap_or_default().to_owned();
        let (name, entry) = self
            .entries
            .iter()
            .filter(|(name, _)| allowed.is_empty() || allowed.contains(name))
            .find(|(_, entry)| entry.configured.issuer == issuer)
            .ok_or_else(|| {
                ProviderError::invalid(format!(
                    "no entry of identity_providers that counts here has the issuer {:?}",
                    printable(&issuer)
                ))
            })?;
        Ok(ForeignToken {
            entry: name.clone(),
            token: entry.verify(parsed, now).await?,
        })
    }
}

impl Entry {
    fn new(configured: JwtVerifier, http: HttpClient) -> Self {
        let algorithms = jwks::ALGORITHMS
            .into_iter()
            .filter(|algorithm| {
                let name = jwks::name(*algorithm);
                configured.algorithms.iter().any(|allowed| allowed == name)
            })
            .collect();
        let (issuer, url) = (configured.issuer.clone(), configured.jwks_url.clone());
        let keys = Document::new(DISTANCE, move || {
            let (http, issuer, url) = (http.clone(), issuer.clone(), url.clone());
            async move {
                let url = match url {
                    Some(url) => url,
                    None => discover(&http, &issuer).await?,
                };
                Jwks::parse(&http.document(&url).await?)
            }
            .boxed()
        });
        Self {
            configured,
            algorithms,
            keys,
        }
    }

    async fn verify(
        &self,
        parsed: Unverified<'_>,
        now: Timestamp,
    ) -> Result<VerifiedToken, ProviderError> {
        if !self.algorithms.contains(&parsed.algorithm) {
            return Err(ProviderError::invalid(format!(
                "the token is signed with {}, which supported_algs does not list",
                jwks::name(parsed.algorithm)
            )));
        }
        let mut outcome = parsed.verify(&*self.keys().await?);
        if outcome
            .as_ref()
            .is_err_and(SignatureError::another_key_may_do)
        {
            let newer = self.keys.renew().await;
            outcome = parsed.verify(&*newer.map_err(|error| self.without_keys(error))?);
        }
        outcome.map_err(|_| ProviderError::invalid("the token's signature does not hold"))?;
        let claims = parsed.into_claims();
        let expected = Expected {
            rule: IssuerRule::Exact,
            issuer: &self.configured.issuer,
            audiences: &self.configured.audiences,
            authorized_party: None,
            now,
        };
        jwt::check_claims(&claims, expected)?;
        let subject = text(&claims, "sub")
            .filter(|sub| !sub.is_empty())
            .ok_or_else(|| ProviderError::invalid("the token names nobody (sub)"))?;
        Ok(VerifiedToken {
            subject: subject.to_owned(),
            audience: jwt::audience(&claims),
            issued_at: jwt::time(&claims, "iat")?,
            expires_at: jwt::time(&claims, "exp")?,
            claims,
        })
    }

    /// Keys that are not too old; the old ones where new ones can't be had.
    async fn keys(&self) -> Result<Arc<Jwks>, ProviderError> {
        let is_fresh = self.keys.age().is_some_and(|age| age < RENEWAL);
        if is_fresh {
            return self.keys.get().await;
        }
        match self.keys.refresh().await {
            Ok(keys) => Ok(keys),
            Err(error) => self.keys.good().ok_or_else(|| self.without_keys(error)),
        }
    }

    /// Without keys nothing is known about a token, whatever is wrong with them.
    fn without_keys(&self, error: ProviderError) -> ProviderError {
        match error {
            ProviderError::Unreachable { .. } => error,
            other => ProviderError::Unreachable {
                endpoint: self.configured.issuer.clone(),
                reason: other.to_string(),
                retry_after: None,
            },
        }
    }
}

/// Where an issuer publishes its keys, by its own discovery document.
async fn discover(http: &HttpClient, issuer: &str) -> Result<Url, ProviderError> {
    #[derive(Deserialize)]
    struct Published {
        issuer: String,
        jwks_uri: Url,
    }
    let address = discovery::document_url(issuer)?;
    let body = http.document(&address).await?;
    let published: Published = serde_json::from_slice(&body)
        .map_err(|error| ProviderError::invalid(format!("the discovery document: {error}")))?;
    if published.issuer == issuer {
        Ok(published.jwks_uri)
    } else {
        Err(ProviderError::invalid(format!(
            "the discovery document names the issuer {:?}, not {issuer:?}",
            printable(&published.issuer)
        )))
    }
}
