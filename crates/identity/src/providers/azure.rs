//! Azure (Entra ID). `oid` is the user id; people in many groups get a pointer instead of the list.

use http::{Request, header};
use serde_json::{Value, json};
use url::Url;

use super::{Flavor, PLAIN};
use crate::discovery::IssuerRule;
use crate::error::ProviderError;
use crate::http_client::{HttpClient, get, shown};
use crate::provider::Claims;

pub(crate) const FLAVOR: Flavor = Flavor {
    name: "azure",
    default_url: Some(COMMON),
    issuer_rule: IssuerRule::Azure,
    params: &[("prompt", "select_account")],
    distributed_claims: true,
    ..PLAIN
};

const COMMON: &str = "https://login.microsoftonline.com/common/v2.0";

/// Hosts that hold the members of groups, in each of Microsoft's clouds.
const GRAPH: [&str; 4] = [
    "graph.microsoft.com",
    "graph.microsoft.us",
    "dod-graph.microsoft.us",
    "microsoftgraph.chinacloudapi.cn",
];

/// Most pages of one list that are read.
const MAX_PAGES: usize = 20;

/// Fetches claims that lie elsewhere (OIDC Core 5.6.2), once each, and takes the pointers out.
///
/// A claim that can't be fetched is left out, so nothing is allowed by it; the error says why.
pub(crate) async fn resolve(
    http: &HttpClient,
    issuer: &str,
    access_token: &str,
    claims: &mut Claims,
) -> Result<(), ProviderError> {
    let names = claims.remove("_claim_names");
    let sources = claims.remove("_claim_sources");
    let Some(Value::Object(names)) = names else {
        return Ok(());
    };
    let mut first_error = None;
    for (claim, source) in names {
        if claims.contains_key(&claim) {
            continue;
        }
        let endpoint = source
            .as_str()
            .and_then(|name| sources.as_ref()?.get(name)?.get("endpoint")?.as_str());
        let fetched = match endpoint {
            Some(endpoint) => fetch(http, issuer, access_token, &claim, endpoint).await,
            None => Err(ProviderError::invalid(format!("claim {claim} is nowhere"))),
        };
        match fetched {
            Ok(values) => {
                claims.insert(claim, Value::Array(values));
            }
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    first_error.map_or(Ok(()), Err)
}

async fn fetch(
    http: &HttpClient,
    issuer: &str,
    access_token: &str,
    claim: &str,
    endpoint: &str,
) -> Result<Vec<Value>, ProviderError> {
    let mut next = Some(allowed(issuer, endpoint)?);
    let bearer = format!("Bearer {access_token}");
    let mut values = Vec::new();
    let mut first = true;
    for _ in 0..MAX_PAGES {
        let Some(url) = next.take() else { break };
        let request = if first && url.path().contains("/getMember") {
            Request::post(url.as_str())
                .header(header::AUTHORIZATION, &bearer)
                .header(header::ACCEPT, "application/json")
                .header(header::CONTENT_TYPE, "application/json")
                .body(
                    json!({"securityEnabledOnly": false})
                        .to_string()
                        .into_bytes(),
                )
                .map_err(|e| ProviderError::invalid(format!("{}: {e}", shown(&url))))?
        } else {
            get(&url, Some(&bearer))?
        };
        first = false;
        let answer = http.call(request).await?;
        if !answer.status.is_success() {
            return Err(crate::token_endpoint::bearer_refusal(&answer));
        }
        let page: Claims = answer.json()?;
        let Some(Value::Array(members)) = page.get("value").or_else(|| page.get(claim)) else {
            return Err(ProviderError::invalid(format!(
                "{} sent no list of {claim}",
                answer.endpoint
            )));
        };
        values.extend(members.iter().map(|m| m.get("id").unwrap_or(m).clone()));
        next = page
            .get("@odata.nextLink")
            .and_then(Value::as_str)
            .map(|link| allowed(issuer, link))
            .transpose()?;
    }
    Ok(values)
}

/// The endpoint, if it is at the issuer or at Microsoft: the access token goes nowhere else.
fn allowed(issuer: &str, endpoint: &str) -> Result<Url, ProviderError> {
    let foreign = || {
        ProviderError::invalid(
            "claims lie at a foreign host, which is not asked and gets no token".to_owned(),
        )
    };
    let mut url = Url::parse(endpoint).map_err(|_| foreign())?;
    // The older interface is switched off; its successor takes the same question.
    if url.host_str() == Some("graph.windows.net")
        && let Some((_tenant, rest)) = url.path().trim_start_matches('/').split_once('/')
    {
        url = Url::parse(&format!("https://graph.microsoft.com/v1.0/{rest}"))
            .map_err(|_| foreign())?;
    }
    let home = Url::parse(issuer).map_err(|_| foreign())?;
    let at_home = url.origin() == home.origin();
    let at_graph = url.scheme() == "https"
        && url.port().is_none()
        && url.host_str().is_some_and(|host| GRAPH.contains(&host));
    if at_home || at_graph {
        Ok(url)
    } else {
        Err(foreign())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c29_the_token_goes_to_microsoft_only() {
        let is_allowed = |endpoint: &str| allowed(COMMON, endpoint).map(String::from);
        assert_eq!(
            is_allowed("https://graph.windows.net/t/users/u/getMemberObjects").unwrap(),
            "https://graph.microsoft.com/v1.0/users/u/getMemberObjects"
        );
        assert!(is_allowed("https://login.microsoftonline.com/x").is_ok());
        for foreign in [
            "https://evil.test/x",
            "https://graph.microsoft.com.evil.test/x",
            "https://graph.microsoft.com:8443/x",
            "http://graph.microsoft.com/x",
            "https://evil@graph.microsoft.com:1/x",
            "file:///etc/passwd",
            "",
        ] {
            assert!(is_allowed(foreign).is_err(), "{foreign}");
        }
    }
}
