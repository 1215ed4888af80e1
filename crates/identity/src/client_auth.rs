//! How we prove to a token endpoint which client we are (RFC 6749 2.3.1).

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Request, StatusCode};
use openidconnect::core::{
    CoreAuthDisplay, CoreAuthPrompt, CoreErrorResponseType, CoreGenderClaim, CoreJsonWebKey,
    CoreJweContentEncryptionAlgorithm, CoreRevocableToken, CoreRevocationErrorResponse,
    CoreTokenIntrospectionResponse,
};
use openidconnect::{
    AuthType, AuthUrl, ClientId, ClientSecret, EmptyAdditionalClaims, EndpointNotSet, EndpointSet,
    JsonWebKeySet, StandardErrorResponse,
};
use url::Url;

use crate::discovery::Metadata;
use crate::error::ProviderError;
use crate::http_client::{Answer, HttpClient, post};
use crate::token_endpoint::{TokenResponse, refusal};

/// openidconnect's client, with its own types but for the answer of the token endpoint.
pub(crate) type OpenIdClient = openidconnect::Client<
    EmptyAdditionalClaims,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    StandardErrorResponse<CoreErrorResponseType>,
    TokenResponse,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
    EndpointNotSet,
>;

/// A registered client.
pub(crate) struct Client {
    pub id: String,
    /// Empty for a public client.
    pub secret: String,
    /// What a provider has taught us: the secret goes into the body.
    learned_post: AtomicBool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// True when the provider may take the secret in the body too, so that a rejection may mean the
/// method and not the client: many take of each client only the one that it is registered with.
pub(crate) fn may_learn(metadata: &Metadata, used: Method) -> bool {
    let listed = metadata.token_endpoint_auth_methods();
    let takes_post = listed.is_none_or(|l| l.is_empty() || l.contains(&POST));
    used == Method::Basic && takes_post
}

const POST: &str = "client_secret_post";

/// At endpoints that take no token as a credential, 401 is about the client, whatever else it says.
fn is_unknown_client(answer: &Answer) -> bool {
    answer.status == StatusCode::UNAUTHORIZED
        || (!answer.status.is_success()
            && matches!(refusal(answer), ProviderError::Misconfigured(r) if r.error == "invalid_client"))
}

/// Where the secret goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Basic,
    Post,
    /// A public client has no secret and only names itself.
    None,
}

impl Client {
    pub fn new(id: String, secret: String) -> Self {
        Self {
            id,
            secret,
            learned_post: AtomicBool::new(false),
        }
    }

    /// The method that the provider asks for. Basic is the default of the standard.
    pub fn method(&self, metadata: &Metadata) -> Result<Method, ProviderError> {
        let listed = metadata.token_endpoint_auth_methods();
        let offers = |name: &str| listed.as_ref().is_none_or(|l| l.contains(&name));
        if self.secret.is_empty() {
            Ok(Method::None)
        } else if self.learned_post.load(Ordering::Relaxed) {
            Ok(Method::Post)
        } else if offers("client_secret_basic") || listed.as_ref().is_some_and(Vec::is_empty) {
            Ok(Method::Basic)
        } else if offers(POST) {
            Ok(Method::Post)
        } else {
            Err(ProviderError::invalid(format!(
                "it accepts only {} at its token endpoint, Postern client_secret_basic and \
                 client_secret_post",
                listed.unwrap_or_default().join(", ")
            )))
        }
    }

    /// The body is the way: use it from now on.
    pub fn learn_post(&self) {
        self.learned_post.store(true, Ordering::Relaxed);
    }

    /// This client as openidconnect knows it. It asks for the scopes it is told, `openid` only
    /// among them: some providers have no such scope.
    pub fn openid(
        &self,
        metadata: &Metadata,
        authorization_endpoint: Url,
        method: Method,
    ) -> OpenIdClient {
        let client = openidconnect::Client::new(
            ClientId::new(self.id.clone()),
            metadata.issuer_url().clone(),
            JsonWebKeySet::default(),
        )
        .set_auth_uri(AuthUrl::from_url(authorization_endpoint))
        .set_token_uri(metadata.token_endpoint().clone())
        .disable_openid_scope();
        let secret = || ClientSecret::new(self.secret.clone());
        match method {
            Method::Basic => client
                .set_client_secret(secret())
                .set_auth_type(AuthType::BasicAuth),
            Method::Post => client
                .set_client_secret(secret())
                .set_auth_type(AuthType::RequestBody),
            Method::None => client.set_auth_type(AuthType::RequestBody),
        }
    }

    /// A form for an endpoint that wants to know who asks. openidconnect does not ask those
    /// without TLS, which local providers have.
    pub fn request(
        &self,
        url: &Url,
        form: &[(&str, &str)],
        method: Method,
    ) -> Result<Request<Vec<u8>>, ProviderError> {
        match method {
            Method::Basic => post(url, Some(&self.basic()), form),
            Method::Post => {
                let mut form = form.to_vec();
                form.extend([
                    ("client_id", self.id.as_str()),
                    ("client_secret", self.secret.as_str()),
                ]);
                post(url, None, &form)
            }
            Method::None => {
                let mut form = form.to_vec();
                form.push(("client_id", self.id.as_str()));
                post(url, None, &form)
            }
        }
    }

    /// Sends a form to an endpoint that wants to know who asks, and may be sent it twice. As at the
    /// token endpoint, who is not known by Basic tries the body.
    pub async fn tell(
        &self,
        http: &HttpClient,
        metadata: &Metadata,
        url: &Url,
        form: &[(&str, &str)],
    ) -> Result<Answer, ProviderError> {
        let method = self.method(metadata)?;
        let first = http.call(self.request(url, form, method)?).await?;
        if !is_unknown_client(&first) || !may_learn(metadata, method) {
            return Ok(first);
        }
        let second = http.call(self.request(url, form, Method::Post)?).await;
        match second {
            Ok(second) if second.status.is_success() => {
                self.learn_post();
                Ok(second)
            }
            _ => Ok(first),
        }
    }

    /// Both parts are form-encoded before they are joined, as the standard wants it.
    pub fn basic(&self) -> String {
        let part =
            |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        format!(
            "Basic {}",
            STANDARD.encode(format!("{}:{}", part(&self.id), part(&self.secret)))
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::discovery::{self, IssuerRule};

    fn metadata(methods: &serde_json::Value) -> Metadata {
        let mut document = json!({
            "issuer": "https://i.test", "authorization_endpoint": "https://i.test/a",
            "token_endpoint": "https://i.test/t", "jwks_uri": "https://i.test/k",
        });
        if !methods.is_null() {
            document["token_endpoint_auth_methods_supported"] = methods.clone();
        }
        let body = document.to_string();
        discovery::parse(body.as_bytes(), "https://i.test", IssuerRule::Exact).unwrap()
    }

    #[test]
    fn w11_discovery_chooses_the_method() {
        let client = Client::new("id".into(), "secret".into());
        let method = |methods| client.method(&metadata(&methods)).ok();
        assert_eq!(method(json!(null)), Some(Method::Basic));
        assert_eq!(method(json!([])), Some(Method::Basic));
        assert_eq!(
            method(json!(["client_secret_post", "client_secret_basic"])),
            Some(Method::Basic)
        );
        assert_eq!(method(json!(["client_secret_post"])), Some(Method::Post));
        assert_eq!(method(json!(["private_key_jwt"])), None);
        let public = Client::new("id".into(), String::new());
        assert_eq!(public.method(&metadata(&json!(["none"]))), Ok(Method::None));
        client.learn_post();
        assert_eq!(method(json!(null)), Some(Method::Post));
    }

    #[test]
    fn basic_is_form_encoded() {
        let client = Client::new("a:b".into(), "s p/+".into());
        assert_eq!(
            client.basic(),
            format!("Basic {}", STANDARD.encode("a%3Ab:s+p%2F%2B"))
        );
        let shown = format!("{client:?}");
        assert!(!shown.contains("s p"), "{shown}");
    }
}
