//! Asks a provider all that can be asked without a person, and changes nothing there: for whoever
//! wants to know whether sign-ins can work.

use jiff::Timestamp;
use url::Url;

use crate::error::{ProviderError, Refusal};
use crate::http_client::{HttpClient, get};
use crate::provider::{AuthRequest, CodeExchange};
use crate::registry::{ProviderSettings, Providers, RegistryError};

/// Stands where a real sign-in has a random value.
const NOBODY: &str = "postern-doctor-asks-without-a-person-AAAAAAA";

/// What is wrong with a provider, or with what it knows of us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderFault {
    /// It cannot be used as configured.
    #[error(transparent)]
    Settings(#[from] RegistryError),
    /// Its discovery document.
    #[error("{0}")]
    Document(ProviderError),
    /// The keys that it signs with.
    #[error("its keys (jwks_uri): {0}")]
    Keys(ProviderError),
    /// It publishes no key that signs.
    #[error("it publishes no key that Postern can verify signatures with")]
    NoKeys,
    /// The page that people are sent to.
    #[error("it answers {status} to the request that a sign-in begins with")]
    SignInPage {
        /// The status of the answer.
        status: u16,
    },
    /// Client id or secret.
    #[error("it rejects this client: {0}")]
    Client(Refusal),
    /// An endpoint does not answer.
    #[error("{0}")]
    Endpoint(ProviderError),
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Examined {
    /// What is wrong.
    pub faults: Vec<ProviderFault>,
    /// Its clock, to the second.
    pub clock: Option<Timestamp>,
}

impl From<ProviderFault> for Examined {
    fn from(fault: ProviderFault) -> Self {
        Self {
            faults: vec![fault],
            clock: None,
        }
    }
}

/// Reads document and keys, opens the sign-in page, and offers a code that cannot be one: a
/// provider that knows the client says that the code is wrong.
pub async fn examine(
    settings: ProviderSettings,
    http: &HttpClient,
    redirect_uri: &Url,
) -> Examined {
    let providers = Providers::new([settings], http, None);
    let provider = match providers.global() {
        Ok(provider) => provider,
        Err(error) => return ProviderFault::from(error).into(),
    };
    let published = match providers.issuer() {
        None => None,
        Some(issuer) => match issuer.metadata().await {
            Err(error) => return ProviderFault::Document(error).into(),
            Ok(metadata) => Some((issuer, metadata)),
        },
    };
    let keys = async {
        let (issuer, _) = published.as_ref()?;
        match issuer.key_count().await {
            Err(error) => Some(ProviderFault::Keys(error)),
            Ok(0) => Some(ProviderFault::NoKeys),
            Ok(_) => None,
        }
    };
    let exchange = provider.exchange(CodeExchange {
        code: NOBODY,
        code_verifier: NOBODY,
        nonce: NOBODY,
        redirect_uri,
        issuer_parameter: published.as_ref().map(|(_, metadata)| metadata.issuer()),
        now: Timestamp::now(),
    });
    let client = async {
        match exchange.await {
            Err(ProviderError::Misconfigured(refusal)) => Some(ProviderFault::Client(refusal)),
            Err(error @ ProviderError::Unreachable { .. }) => Some(ProviderFault::Endpoint(error)),
            // What the provider says about the code.
            _ => None,
        }
    };
    let page = async {
        let request = AuthRequest {
            state: NOBODY,
            nonce: NOBODY,
            code_challenge: NOBODY,
            redirect_uri,
        };
        let address = provider.authorization_url(request).await?;
        http.call(get(&address, None)?).await
    };
    let (keys, client, page) = futures::join!(keys, client, page);
    let mut examined = Examined::default();
    examined.faults.extend(keys.into_iter().chain(client));
    match page {
        Err(error) => examined.faults.push(ProviderFault::Endpoint(error)),
        Ok(answer) => {
            if answer.status.is_client_error() {
                let status = answer.status.as_u16();
                examined.faults.push(ProviderFault::SignInPage { status });
            }
            let date = answer.headers.get(http::header::DATE);
            let date = date.and_then(|date| jiff::fmt::rfc2822::parse(date.to_str().ok()?).ok());
            examined.clock = date.map(|date| date.timestamp());
        }
    }
    examined
}
