//! A provider's public side: its discovery document and its keys, read in the background and kept
//! fresh.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;

use crate::discovery::{self, Metadata};
use crate::document::Document;
use crate::error::ProviderError;
use crate::http_client::HttpClient;
use crate::jwks::Jwks;
use crate::jwt::{SignatureError, Unverified};
use crate::provider::Claims;
use crate::providers::Flavor;

/// Least time between two attempts to read a discovery document.
const DISCOVERY_DISTANCE: Duration = Duration::from_secs(2);
/// Least time between two attempts to read the keys, which anybody can cause with an unknown `kid`.
const KEYS_DISTANCE: Duration = Duration::from_secs(5);
/// Longest pause between attempts while nothing has been read yet.
const FIRST_PAUSE_MAX: Duration = Duration::from_secs(4);
/// How often document and keys are read again.
const RENEWAL: Duration = Duration::from_secs(3600);
/// Pause after a renewal that failed; the old document serves on.
const RENEWAL_RETRY: Duration = Duration::from_secs(60);

/// A provider's public side: what it publishes, shared by all clients we have there.
pub(crate) struct Issuer {
    pub url: String,
    pub flavor: &'static Flavor,
    pub http: HttpClient,
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

    /// What is known already, without waiting.
    pub fn known_metadata(&self) -> Option<Arc<Metadata>> {
        self.metadata.good()
    }

    /// How many of its keys can be used.
    pub async fn key_count(&self) -> Result<usize, ProviderError> {
        Ok(self.keys.get().await?.len())
    }

    /// Verifies the signature of a token that is no ID token.
    pub async fn verified(&self, token: &str) -> Result<Claims, ProviderError> {
        let parsed = Unverified::parse(token)?;
        self.with_keys(&|keys| parsed.verify(keys)).await?;
        Ok(parsed.into_claims())
    }

    /// Verifies something by the provider's keys; if none of them does, they are read again.
    pub async fn with_keys(
        &self,
        verify: &(dyn Fn(&Jwks) -> Result<(), SignatureError> + Sync),
    ) -> Result<(), ProviderError> {
        let mut outcome = verify(&*self.keys.get().await?);
        if outcome
            .as_ref()
            .is_err_and(SignatureError::another_key_may_do)
        {
            outcome = verify(&*self.keys.renew().await?);
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
