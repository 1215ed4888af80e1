//! What a provider publishes about itself (OpenID Connect Discovery 1.0).

use serde::{Deserialize, Deserializer};
use url::Url;

use crate::error::{ProviderError, printable};
use crate::provider::Claims;

/// A discovery document, as far as it is used.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Metadata {
    pub issuer: String,
    pub authorization_endpoint: Url,
    pub token_endpoint: Url,
    pub jwks_uri: Url,
    #[serde(default, deserialize_with = "optional_url")]
    pub userinfo_endpoint: Option<Url>,
    #[serde(default, deserialize_with = "optional_url")]
    pub revocation_endpoint: Option<Url>,
    #[serde(default, deserialize_with = "optional_url")]
    pub introspection_endpoint: Option<Url>,
    #[serde(default, deserialize_with = "optional_url")]
    pub end_session_endpoint: Option<Url>,
    #[serde(default)]
    pub token_endpoint_auth_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    pub id_token_signing_alg_values_supported: Vec<String>,
    #[serde(default)]
    pub code_challenge_methods_supported: Vec<String>,
    /// RFC 9207.
    #[serde(default)]
    pub authorization_response_iss_parameter_supported: bool,
}

impl Metadata {
    pub fn offers_pkce(&self) -> bool {
        self.code_challenge_methods_supported
            .iter()
            .any(|m| m == "S256")
    }
}

/// Which issuer a provider may name, in its document and in its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IssuerRule {
    /// Exactly the configured text.
    Exact,
    /// Google also signs as `accounts.google.com`, without a scheme.
    Google,
    /// Azure: a document for several tenants has `{tenantid}` in its issuer, to be filled with
    /// the token's `tid`; one for a tenant's domain names the tenant's id.
    Azure,
}

/// Where the document of an issuer lies.
pub(crate) fn document_url(issuer: &str) -> Result<Url, ProviderError> {
    let address = format!(
        "{}/.well-known/openid-configuration",
        issuer.trim_end_matches('/')
    );
    Url::parse(&address)
        .ok()
        .filter(|url| matches!(url.scheme(), "https" | "http") && url.has_host())
        .ok_or_else(|| {
            ProviderError::invalid(format!("idp_provider_url {issuer:?} is not an http(s) URL"))
        })
}

/// Reads a document and holds it against the issuer that was asked for.
pub(crate) fn parse(
    body: &[u8],
    issuer: &str,
    rule: IssuerRule,
) -> Result<Metadata, ProviderError> {
    let metadata: Metadata = serde_json::from_slice(body).map_err(|e| {
        ProviderError::invalid(format!(
            "the discovery document of {issuer} is unreadable: {e}"
        ))
    })?;
    let named = metadata.issuer.as_str();
    let accepted = match rule {
        IssuerRule::Exact | IssuerRule::Google => named == issuer,
        IssuerRule::Azure => named == issuer || azure_issuer_fits(named, issuer),
    };
    if !accepted {
        return Err(ProviderError::invalid(format!(
            "the discovery document of {issuer:?} names the issuer {:?}; idp_provider_url must be \
             exactly the issuer",
            printable(named)
        )));
    }
    // A document that came over TLS must not send secrets over clear text.
    if issuer.starts_with("https://") {
        let endpoints = [
            Some(&metadata.authorization_endpoint),
            Some(&metadata.token_endpoint),
            Some(&metadata.jwks_uri),
            metadata.userinfo_endpoint.as_ref(),
            metadata.revocation_endpoint.as_ref(),
            metadata.introspection_endpoint.as_ref(),
            metadata.end_session_endpoint.as_ref(),
        ];
        if let Some(url) = endpoints
            .into_iter()
            .flatten()
            .find(|u| u.scheme() != "https")
        {
            return Err(ProviderError::invalid(format!(
                "the discovery document of {issuer} names an endpoint without TLS: {}",
                crate::http_client::shown(url)
            )));
        }
    }
    Ok(metadata)
}

/// The issuer that a token with these claims must name.
pub(crate) fn token_issuer_fits(rule: IssuerRule, published: &str, claims: &Claims) -> bool {
    let Some(issuer) = crate::claims::text(claims, "iss") else {
        return false;
    };
    match rule {
        IssuerRule::Google => {
            issuer == published || published.strip_prefix("https://") == Some(issuer)
        }
        IssuerRule::Azure if published.contains(TENANT) => crate::claims::text(claims, "tid")
            .filter(|tenant| is_tenant_id(tenant))
            .is_some_and(|tenant| issuer == published.replace(TENANT, tenant)),
        IssuerRule::Exact | IssuerRule::Azure => issuer == published,
    }
}

const TENANT: &str = "{tenantid}";

fn azure_issuer_fits(named: &str, asked: &str) -> bool {
    let (Some(named), Some(asked)) = (azure_parts(named), azure_parts(asked)) else {
        return false;
    };
    let shared = matches!(asked.1, "common" | "organizations" | "consumers");
    named.0 == asked.0 && (is_tenant_id(named.1) || (shared && named.1 == TENANT))
}

/// Host and tenant of `https://HOST/TENANT/v2.0`.
fn azure_parts(issuer: &str) -> Option<(&str, &str)> {
    let (host, rest) = issuer.strip_prefix("https://")?.split_once('/')?;
    Some((host, rest.trim_end_matches('/').strip_suffix("/v2.0")?))
}

/// A UUID, which is what a tenant id is.
fn is_tenant_id(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

/// An endpoint that some providers publish as empty text instead of leaving it out.
fn optional_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Url>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    match text.as_deref().map(str::trim) {
        None | Some("") => Ok(None),
        Some(text) => Url::parse(text).map(Some).map_err(serde::de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document(issuer: &str) -> serde_json::Value {
        json!({
            "issuer": issuer,
            "authorization_endpoint": "https://idp.test/authorize",
            "token_endpoint": "https://idp.test/token",
            "jwks_uri": "https://idp.test/jwks",
            "end_session_endpoint": "",
        })
    }

    fn read(
        document: &serde_json::Value,
        issuer: &str,
        rule: IssuerRule,
    ) -> Result<Metadata, ProviderError> {
        parse(document.to_string().as_bytes(), issuer, rule)
    }

    const TENANT_ID: &str = "72f988bf-86f1-41af-91ab-2d7cd011db47";

    #[test]
    fn issuer_is_exact() {
        assert!(
            read(
                &document("https://idp.test"),
                "https://idp.test",
                IssuerRule::Exact
            )
            .is_ok()
        );
        for other in ["https://idp.test/", "https://IDP.test", "https://evil.test"] {
            assert!(matches!(
                read(&document(other), "https://idp.test", IssuerRule::Exact),
                Err(ProviderError::Invalid(m)) if m.contains("idp_provider_url")
            ));
        }
    }

    #[test]
    fn no_endpoint_without_tls() {
        let mut lying = document("https://idp.test");
        lying["token_endpoint"] = json!("http://idp.test/token");
        assert!(read(&lying, "https://idp.test", IssuerRule::Exact).is_err());
        lying["issuer"] = json!("http://localhost:1");
        assert!(read(&lying, "http://localhost:1", IssuerRule::Exact).is_ok());
    }

    #[test]
    fn azure_documents() {
        let base = "https://login.microsoftonline.com";
        let common = format!("{base}/common/v2.0");
        let template = format!("{base}/{{tenantid}}/v2.0");
        let tenant = format!("{base}/{TENANT_ID}/v2.0");
        let by_domain = format!("{base}/contoso.onmicrosoft.com/v2.0");
        assert!(read(&document(&template), &common, IssuerRule::Azure).is_ok());
        assert!(read(&document(&tenant), &by_domain, IssuerRule::Azure).is_ok());
        assert!(read(&document(&template), &tenant, IssuerRule::Azure).is_err());
        assert!(
            read(
                &document("https://evil.test/x/v2.0"),
                &common,
                IssuerRule::Azure
            )
            .is_err()
        );
        assert!(read(&document(&template), &common, IssuerRule::Exact).is_err());
    }

    #[test]
    fn azure_tokens_name_their_own_tenant() {
        let published = "https://login.microsoftonline.com/{tenantid}/v2.0";
        let claims =
            |iss: String, tid: &str| json!({"iss": iss, "tid": tid}).as_object().unwrap().clone();
        let right = format!("https://login.microsoftonline.com/{TENANT_ID}/v2.0");
        assert!(token_issuer_fits(
            IssuerRule::Azure,
            published,
            &claims(right.clone(), TENANT_ID)
        ));
        let other = TENANT_ID.replace('7', "8");
        assert!(!token_issuer_fits(
            IssuerRule::Azure,
            published,
            &claims(right, &other)
        ));
        let sly = "https://login.microsoftonline.com/../evil/v2.0".to_owned();
        assert!(!token_issuer_fits(
            IssuerRule::Azure,
            published,
            &claims(sly, "../evil")
        ));
    }

    #[test]
    fn google_has_two_names() {
        let claims = |iss: &str| json!({"iss": iss}).as_object().unwrap().clone();
        let published = "https://accounts.google.com";
        assert!(token_issuer_fits(
            IssuerRule::Google,
            published,
            &claims("accounts.google.com")
        ));
        assert!(token_issuer_fits(
            IssuerRule::Google,
            published,
            &claims(published)
        ));
        assert!(!token_issuer_fits(
            IssuerRule::Exact,
            published,
            &claims("accounts.google.com")
        ));
        assert!(!token_issuer_fits(
            IssuerRule::Google,
            published,
            &claims("google.com")
        ));
    }
}
