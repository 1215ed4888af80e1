//! Tokens that a provider signed: reading, signature, claims (OIDC Core 3.1.3.7).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jsonwebtoken::Algorithm;
use serde_json::Value;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use crate::claims::{said, text};
use crate::discovery::{IssuerRule, token_issuer_fits};
use crate::error::{ProviderError, printable};
use crate::jwks::{self, Jwks};
use crate::provider::Claims;

/// How far clocks may be apart, in seconds.
pub(crate) const LEEWAY: i64 = 60;

/// A compact JWS whose signature has not been looked at.
#[derive(Debug)]
pub(crate) struct Unverified<'a> {
    pub algorithm: Algorithm,
    pub key_id: Option<String>,
    signed: &'a str,
    signature: &'a str,
    claims: Claims,
}

/// Why a signature does not hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SignatureError {
    /// None of the known keys fits; newer ones may.
    UnknownKey,
    /// The key fits, the signature does not.
    Wrong,
    /// openidconnect finds something else wrong; its words.
    Token(String),
}

impl SignatureError {
    /// Whether it may hold by a key that the provider has published since. Some change their key
    /// and keep its id.
    pub fn another_key_may_do(&self) -> bool {
        match self {
            Self::UnknownKey | Self::Wrong => true,
            Self::Token(_) => false,
        }
    }
}

impl<'a> Unverified<'a> {
    pub fn parse(token: &'a str) -> Result<Self, ProviderError> {
        let broken =
            |what: &str| ProviderError::invalid(format!("the token is not a signed JWT: {what}"));
        let (signed, signature) = token.rsplit_once('.').ok_or_else(|| broken("no dots"))?;
        let (header, payload) = signed.split_once('.').ok_or_else(|| broken("one dot"))?;
        if payload.contains('.') {
            return Err(broken("encrypted, or too many parts"));
        }
        let header = object(header).ok_or_else(|| broken("unreadable header"))?;
        if header.contains_key("crit") {
            return Err(broken("critical headers"));
        }
        let named = text(&header, "alg").unwrap_or_default();
        let algorithm = jwks::ALGORITHMS
            .into_iter()
            .find(|a| jwks::name(*a) == named)
            .ok_or_else(|| {
                ProviderError::invalid(format!(
                    "the token is signed with {:?}, which is never accepted",
                    printable(named)
                ))
            })?;
        let claims = object(payload).ok_or_else(|| broken("unreadable claims"))?;
        Ok(Self {
            algorithm,
            key_id: text(&header, "kid").map(str::to_owned),
            signed,
            signature,
            claims,
        })
    }

    pub fn verify(&self, keys: &Jwks) -> Result<(), SignatureError> {
        let candidates = keys.candidates(self.algorithm, self.key_id.as_deref());
        if candidates.is_empty() {
            return Err(SignatureError::UnknownKey);
        }
        let holds = candidates.into_iter().any(|key| {
            jsonwebtoken::crypto::verify(
                self.signature,
                self.signed.as_bytes(),
                &key.decoding,
                self.algorithm,
            )
            .unwrap_or(false)
        });
        if holds {
            Ok(())
        } else {
            Err(self.no_key_holds())
        }
    }

    /// What it means that candidates there are, but the signature is by none of them.
    pub fn no_key_holds(&self) -> SignatureError {
        match self.key_id {
            Some(_) => SignatureError::Wrong,
            // Nothing said which key it was, so it may be one that we have not seen yet.
            None => SignatureError::UnknownKey,
        }
    }

    /// What the token claims. Nothing of it counts before [`Self::verify`]; it tells whose keys
    /// to verify it by.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The claims. Call it after [`Self::verify`] only.
    pub fn into_claims(self) -> Claims {
        self.claims
    }
}

fn object(part: &str) -> Option<Claims> {
    // Padding is not allowed (RFC 7515), but seen.
    let bytes = URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok()?;
    match serde_json::from_slice(&bytes).ok()? {
        Value::Object(members) => Some(members),
        _ => None,
    }
}

/// What a token must say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected<'a> {
    pub rule: IssuerRule,
    /// The issuer that the discovery document names.
    pub issuer: &'a str,
    /// One of these must be in `aud`.
    pub audiences: &'a [String],
    /// Who may be in `azp`: for ID tokens our client id.
    pub authorized_party: Option<&'a str>,
    pub now: Timestamp,
}

/// Issuer, audience, authorized party, times.
pub(crate) fn check_claims(claims: &Claims, expected: Expected<'_>) -> Result<(), ProviderError> {
    let wrong = |what: String| Err(ProviderError::Invalid(what));
    if !token_issuer_fits(expected.rule, expected.issuer, claims) {
        return wrong(format!(
            "the token's issuer is {:?}, not {:?}",
            printable(text(claims, "iss").unwrap_or_default()),
            expected.issuer
        ));
    }
    let audience = audience(claims);
    if !audience.iter().any(|a| expected.audiences.contains(a)) {
        return wrong(format!(
            "the token is for the audience {:?}",
            printable(&audience.join(", "))
        ));
    }
    if let Some(client) = expected.authorized_party {
        match said(claims, "azp") {
            Some(Value::String(party)) if party == client => {}
            None if audience.len() == 1 => {}
            None => return wrong("the token has several audiences and no azp".into()),
            Some(_) => return wrong("the token was issued to another client (azp)".into()),
        }
    }
    let now = expected.now.as_second();
    match time(claims, "exp")? {
        None => return wrong("the token has no exp".into()),
        Some(exp) if exp.as_second().saturating_add(LEEWAY) <= now => {
            return wrong(format!("the token expired at {exp}"));
        }
        Some(_) => {}
    }
    for name in ["nbf", "iat"] {
        if let Some(start) = time(claims, name)?
            && start.as_second() > now.saturating_add(LEEWAY)
        {
            return wrong(format!(
                "the token begins in the future ({name} {start}); compare the clocks"
            ));
        }
    }
    Ok(())
}

/// The nonce that was sent must come back (OIDC Core 3.1.3.7, 11).
pub(crate) fn check_nonce(claims: &Claims, nonce: &str) -> Result<(), ProviderError> {
    match said(claims, "nonce") {
        Some(Value::String(returned)) if returned == nonce => Ok(()),
        Some(_) => Err(ProviderError::invalid("the ID token has another nonce")),
        None => Err(ProviderError::invalid(
            "the ID token lacks the nonce: this provider does not return it, so a replayed token \
             could not be told",
        )),
    }
}

/// `at_hash`, where there is one, must be of the access token (OIDC Core 3.1.3.6).
pub(crate) fn check_at_hash(
    claims: &Claims,
    access_token: &str,
    algorithm: Algorithm,
) -> Result<(), ProviderError> {
    let Some(value) = said(claims, "at_hash") else {
        return Ok(());
    };
    let token = access_token.as_bytes();
    let hash = match algorithm {
        Algorithm::RS256 | Algorithm::PS256 | Algorithm::ES256 => Sha256::digest(token).to_vec(),
        Algorithm::RS384 | Algorithm::PS384 | Algorithm::ES384 => Sha384::digest(token).to_vec(),
        _ => Sha512::digest(token).to_vec(),
    };
    let (half, _) = hash.split_at(hash.len() / 2);
    if value.as_str().map(|v| v.trim_end_matches('=')) == Some(&URL_SAFE_NO_PAD.encode(half)) {
        Ok(())
    } else {
        Err(ProviderError::invalid(
            "the ID token belongs to another access token (at_hash)",
        ))
    }
}

/// `aud` as a list.
pub(crate) fn audience(claims: &Claims) -> Vec<String> {
    match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many
            .iter()
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect(),
        _ => Vec::new(),
    }
}

/// A time claim: seconds, whole or not.
pub(crate) fn time(claims: &Claims, name: &str) -> Result<Option<Timestamp>, ProviderError> {
    let bad = || ProviderError::invalid(format!("the token's {name} is not a time"));
    match said(claims, name) {
        None => Ok(None),
        Some(value) => {
            let seconds = value.as_i64().or_else(|| {
                let double = value.as_f64().filter(|d| d.abs() < 1e15)?;
                #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
                let whole = double.floor() as i64;
                Some(whole)
            });
            let seconds = seconds.ok_or_else(bad)?;
            Timestamp::from_second(seconds).map(Some).map_err(|_| bad())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: &Value) -> Claims {
        value.as_object().unwrap().clone()
    }

    fn check(change: &Value) -> Result<(), ProviderError> {
        let mut claims = map(&json!({
            "iss": "https://idp.test", "aud": "client", "exp": 2000, "iat": 1000, "nbf": 1000
        }));
        claims.extend(map(change));
        let mut shorter = claims.clone();
        shorter.retain(|_, value| !value.is_null());
        let outcome = check_these(&claims);
        assert_eq!(
            outcome,
            check_these(&shorter),
            "null is the same as nothing"
        );
        outcome
    }

    fn check_these(claims: &Claims) -> Result<(), ProviderError> {
        check_claims(
            claims,
            Expected {
                rule: IssuerRule::Exact,
                issuer: "https://idp.test",
                audiences: &["client".to_owned()],
                authorized_party: Some("client"),
                now: Timestamp::from_second(1500).unwrap(),
            },
        )
    }

    #[test]
    fn s12_claims_of_an_id_token() {
        for good in [
            json!({}),
            json!({"aud": ["client"]}),
            json!({"aud": ["client", "other"], "azp": "client"}),
            json!({"exp": 1441}),
            json!({"exp": 2000.5}),
            json!({"iat": 1560, "nbf": null}),
            json!({"azp": null, "iat": null}),
        ] {
            assert_eq!(check(&good), Ok(()), "{good}");
        }
        for bad in [
            json!({"iss": "https://idp.test/"}),
            json!({"iss": null}),
            json!({"iss": ["https://idp.test"]}),
            json!({"aud": "other"}),
            json!({"aud": null}),
            json!({"aud": ["client", "other"]}),
            json!({"aud": ["client", "other"], "azp": null}),
            json!({"aud": ["client", "other"], "azp": "other"}),
            json!({"azp": "other"}),
            json!({"azp": 7}),
            json!({"exp": 1440}),
            json!({"exp": null}),
            json!({"exp": "2000"}),
            json!({"exp": 1e300}),
            json!({"iat": 1561}),
            json!({"nbf": 1561}),
            json!({"nbf": "soon"}),
        ] {
            assert!(
                matches!(check(&bad), Err(ProviderError::Invalid(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn s12_algorithms_that_prove_nothing() {
        for alg in ["none", "None", "HS256", "HS512", "", "ES256K", "rs256"] {
            let header = URL_SAFE_NO_PAD.encode(json!({"alg": alg}).to_string());
            let token = format!("{header}.{}.", URL_SAFE_NO_PAD.encode("{}"));
            assert!(matches!(
                Unverified::parse(&token),
                Err(ProviderError::Invalid(m)) if m.contains("never accepted")
            ));
        }
        for broken in ["", "a", "a.b", "a.b.c.d.e", "..", "!.!.!"] {
            assert!(Unverified::parse(broken).is_err(), "{broken}");
        }
    }

    /// The example of OpenID Connect Core, A.3 (code flow values made with RS256).
    #[test]
    fn at_hash_of_the_standard() {
        let claims = map(&json!({"at_hash": "77QmUPtjPfzWtF2AnpK9RQ"}));
        let token = "jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y";
        assert_eq!(check_at_hash(&claims, token, Algorithm::RS256), Ok(()));
        assert!(check_at_hash(&claims, "other", Algorithm::RS256).is_err());
        for none in [json!({}), json!({"at_hash": null})] {
            assert_eq!(
                check_at_hash(&map(&none), "other", Algorithm::RS256),
                Ok(())
            );
        }
    }

    #[test]
    fn s11_nonce() {
        assert_eq!(check_nonce(&map(&json!({"nonce": "n"})), "n"), Ok(()));
        assert!(check_nonce(&map(&json!({"nonce": "m"})), "n").is_err());
        for none in [json!({}), json!({"nonce": null})] {
            assert!(matches!(
                check_nonce(&map(&none), "n"),
                Err(ProviderError::Invalid(m)) if m.contains("does not return it")
            ));
        }
    }
}
