//! What a provider publishes about itself (OpenID Connect Discovery 1.0).

use openidconnect::core::{
    CoreAuthDisplay, CoreClaimName, CoreClaimType, CoreClientAuthMethod, CoreGrantType,
    CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJweKeyManagementAlgorithm,
    CoreJwsSigningAlgorithm, CoreResponseMode, CoreResponseType, CoreSubjectIdentifierType,
};
use openidconnect::{
    AdditionalProviderMetadata, IssuerUrl, ProviderMetadata, TokenUrl, UserInfoUrl,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use url::Url;

use crate::error::{ProviderError, printable};
use crate::provider::Claims;

/// What openidconnect's own type leaves out.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
struct Additional {
    revocation_endpoint: Option<Url>,
    introspection_endpoint: Option<Url>,
    end_session_endpoint: Option<Url>,
    #[serde(default)]
    code_challenge_methods_supported: Vec<String>,
    /// RFC 9207.
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

impl AdditionalProviderMetadata for Additional {}

type Published = ProviderMetadata<
    Additional,
    CoreAuthDisplay,
    CoreClientAuthMethod,
    CoreClaimName,
    CoreClaimType,
    CoreGrantType,
    CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm,
    CoreJsonWebKey,
    CoreResponseMode,
    CoreResponseType,
    CoreSubjectIdentifierType,
>;

/// A discovery document, as far as it is used.
#[derive(Debug, Clone)]
pub(crate) struct Metadata {
    published: Published,
    /// OpenID Connect needs one in the code flow, openidconnect's type does not.
    token_endpoint: TokenUrl,
}

/// Members of a document that are read. What a provider has wrong in others must not keep people
/// out.
const READ: [&str; 12] = [
    "issuer",
    "authorization_endpoint",
    "token_endpoint",
    "jwks_uri",
    "userinfo_endpoint",
    "revocation_endpoint",
    "introspection_endpoint",
    "end_session_endpoint",
    "token_endpoint_auth_methods_supported",
    "id_token_signing_alg_values_supported",
    "code_challenge_methods_supported",
    "authorization_response_iss_parameter_supported",
];

/// Whether what a document says under an optional name can be used.
fn is_usable(name: &str, value: &Value) -> bool {
    match name {
        "userinfo_endpoint"
        | "revocation_endpoint"
        | "introspection_endpoint"
        | "end_session_endpoint" => value
            .as_str()
            .and_then(|text| Url::parse(text).ok())
            .is_some_and(|url| matches!(url.scheme(), "https" | "http") && url.has_host()),
        "token_endpoint_auth_methods_supported" | "code_challenge_methods_supported" => value
            .as_array()
            .is_some_and(|list| list.iter().all(Value::is_string)),
        "authorization_response_iss_parameter_supported" => value.is_boolean(),
        // Required, and so judged by openidconnect.
        _ => true,
    }
}

impl Metadata {
    fn from_json(body: &[u8]) -> Result<Self, serde_json::Error> {
        let mut members: Claims = serde_json::from_slice(body)?;
        // Some publish an empty text instead of leaving an endpoint out.
        members.retain(|name, value| {
            READ.contains(&name.as_str())
                && !value.is_null()
                && value.as_str().is_none_or(|text| !text.trim().is_empty())
        });
        // What is wrong where nothing need stand must not keep people out either.
        members.retain(|name, value| {
            let usable = is_usable(name, value);
            if !usable {
                tracing::warn!(
                    name,
                    value = printable(&value.to_string()),
                    "the identity provider's discovery document has something unusable here, which is left aside"
                );
            }
            usable
        });
        // Required by the standard and by openidconnect, left out by some; the first two are not
        // used, and who is silent about algorithms has to sign with RS256.
        members.insert("response_types_supported".into(), json!(["code"]));
        members.insert("subject_types_supported".into(), json!(["public"]));
        let algorithms = members
            .entry("id_token_signing_alg_values_supported")
            .or_insert(Value::Null);
        if algorithms.is_null() || *algorithms == json!([]) {
            *algorithms = json!(["RS256"]);
        }
        let published: Published = serde_json::from_value(Value::Object(members))?;
        let token_endpoint = published
            .token_endpoint()
            .cloned()
            .ok_or_else(|| serde::de::Error::missing_field("token_endpoint"))?;
        Ok(Self {
            published,
            token_endpoint,
        })
    }

    fn additional(&self) -> &Additional {
        self.published.additional_metadata()
    }

    /// The issuer, letter by letter as it was published.
    pub fn issuer(&self) -> &str {
        self.published.issuer().as_str()
    }

    pub fn issuer_url(&self) -> &IssuerUrl {
        self.published.issuer()
    }

    pub fn authorization_endpoint(&self) -> &Url {
        self.published.authorization_endpoint().url()
    }

    pub fn token_endpoint(&self) -> &TokenUrl {
        &self.token_endpoint
    }

    pub fn jwks_uri(&self) -> &Url {
        self.published.jwks_uri().url()
    }

    pub fn userinfo_endpoint(&self) -> Option<&Url> {
        self.published.userinfo_endpoint().map(UserInfoUrl::url)
    }

    pub fn revocation_endpoint(&self) -> Option<&Url> {
        self.additional().revocation_endpoint.as_ref()
    }

    pub fn introspection_endpoint(&self) -> Option<&Url> {
        self.additional().introspection_endpoint.as_ref()
    }

    pub fn end_session_endpoint(&self) -> Option<&Url> {
        self.additional().end_session_endpoint.as_ref()
    }

    /// How clients may prove themselves; `None` when it is not said.
    pub fn token_endpoint_auth_methods(&self) -> Option<Vec<&str>> {
        let methods = self.published.token_endpoint_auth_methods_supported()?;
        Some(methods.iter().map(AsRef::as_ref).collect())
    }

    /// What ID tokens are signed with, as far as openidconnect knows the algorithms.
    pub fn id_token_algorithms(&self) -> &[CoreJwsSigningAlgorithm] {
        self.published.id_token_signing_alg_values_supported()
    }

    pub fn offers_pkce(&self) -> bool {
        self.additional()
            .code_challenge_methods_supported
            .iter()
            .any(|method| method == "S256")
    }

    /// Answers of the authorization endpoint name the issuer (RFC 9207).
    pub fn announces_issuer_parameter(&self) -> bool {
        self.additional()
            .authorization_response_iss_parameter_supported
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
    let metadata = Metadata::from_json(body).map_err(|e| {
        ProviderError::invalid(format!(
            "the discovery document of {issuer} is unreadable: {e}"
        ))
    })?;
    let named = metadata.issuer();
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
            Some(metadata.authorization_endpoint()),
            Some(metadata.token_endpoint().url()),
            Some(metadata.jwks_uri()),
            metadata.userinfo_endpoint(),
            metadata.revocation_endpoint(),
            metadata.introspection_endpoint(),
            metadata.end_session_endpoint(),
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

/// The issuer that an access token with these claims may name too at an Azure whose document names
/// `published`: those of version 1, which interfaces get that do not ask for version 2, whatever
/// endpoint gave them.
pub(crate) fn azure_v1_issuer(published: &str, claims: &Claims) -> Option<String> {
    let tenant = crate::claims::text(claims, "tid").filter(|tenant| is_tenant_id(tenant))?;
    let (_, ours) = azure_parts(published)?;
    (ours == TENANT || ours == tenant).then(|| format!("https://sts.windows.net/{tenant}/"))
}

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
    fn azure_access_tokens_of_version_1() {
        let claims = |tid: &str| json!({"tid": tid}).as_object().unwrap().clone();
        let of = |published: &str, tid| azure_v1_issuer(published, &claims(tid));
        let base = "https://login.microsoftonline.com";
        let tenant = format!("{base}/{TENANT_ID}/v2.0");
        let v1 = format!("https://sts.windows.net/{TENANT_ID}/");
        assert_eq!(of(&tenant, TENANT_ID), Some(v1.clone()));
        assert_eq!(
            of(&format!("{base}/{{tenantid}}/v2.0"), TENANT_ID),
            Some(v1)
        );
        let other = TENANT_ID.replace('7', "8");
        assert_eq!(of(&tenant, &other), None);
        assert_eq!(of(&format!("{base}/{{tenantid}}/v2.0"), "../evil"), None);
        assert_eq!(of("https://idp.test", TENANT_ID), None);
    }

    #[test]
    fn what_is_wrong_with_optional_members_is_left_aside() {
        let mut odd = document("https://idp.test");
        for (name, value) in [
            ("userinfo_endpoint", json!(["https://idp.test/u"])),
            ("end_session_endpoint", json!("/logout")),
            ("revocation_endpoint", json!(false)),
            ("introspection_endpoint", json!("javascript:alert(1)")),
            (
                "authorization_response_iss_parameter_supported",
                json!("true"),
            ),
            ("code_challenge_methods_supported", json!("S256")),
            (
                "token_endpoint_auth_methods_supported",
                json!({"client_secret_post": true}),
            ),
        ] {
            odd[name] = value;
        }
        let metadata = read(&odd, "https://idp.test", IssuerRule::Exact).unwrap();
        assert_eq!(metadata.userinfo_endpoint(), None);
        assert_eq!(metadata.end_session_endpoint(), None);
        assert_eq!(metadata.revocation_endpoint(), None);
        assert_eq!(metadata.introspection_endpoint(), None);
        assert_eq!(metadata.token_endpoint_auth_methods(), None);
        assert!(!metadata.announces_issuer_parameter() && !metadata.offers_pkce());

        for required in ["authorization_endpoint", "token_endpoint", "jwks_uri"] {
            let mut broken = odd.clone();
            broken[required] = json!("/path");
            assert!(
                read(&broken, "https://idp.test", IssuerRule::Exact).is_err(),
                "{required}"
            );
        }
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
