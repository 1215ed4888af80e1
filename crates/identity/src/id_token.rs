//! ID tokens, verified by openidconnect (OIDC Core 3.1.3.7).

use std::fmt;
use std::str::FromStr as _;
use std::time::SystemTime;

use jiff::{SignedDuration, Timestamp};
use openidconnect::core::{CoreIdToken, CoreIdTokenVerifier};
use openidconnect::{
    ClaimsVerificationError, ClientId, IssuerUrl, JsonWebKeySet, Nonce, NonceVerifier as _,
};
use serde::{Deserialize, Serialize};

use crate::claims::text;
use crate::error::printable;
use crate::jwks::{self, Jwks};
use crate::jwt::{LEEWAY, SignatureError, Unverified};

/// An ID token as it came, which proves nothing yet.
#[derive(Clone, Deserialize, Serialize)]
#[serde(from = "String", into = "String")]
pub(crate) struct RawIdToken {
    text: String,
    /// `None` where openidconnect's types can't hold what some providers send: Google's issuer
    /// without a scheme, no `iat`, padding.
    readable: Option<CoreIdToken>,
}

impl From<String> for RawIdToken {
    fn from(text: String) -> Self {
        Self {
            readable: CoreIdToken::from_str(&text).ok(),
            text,
        }
    }
}

impl From<RawIdToken> for String {
    fn from(token: RawIdToken) -> Self {
        token.text
    }
}

impl fmt::Debug for RawIdToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawIdToken").finish_non_exhaustive()
    }
}

/// Whom and when an ID token must be for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Audience<'a> {
    pub client: &'a str,
    /// What was sent along; `None` where no browser was sent.
    pub nonce: Option<&'a str>,
    pub now: Timestamp,
}

impl RawIdToken {
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn openid(&self) -> Option<&CoreIdToken> {
        self.readable.as_ref()
    }

    /// Verifies the signature by one of the keys, and once more issuer, audience, expiry and
    /// nonce. Ask [`crate::jwt::check_claims`] before: it knows the rest, and names what is wrong.
    pub fn verify(
        &self,
        parsed: &Unverified<'_>,
        keys: &Jwks,
        audience: Audience<'_>,
    ) -> Result<(), SignatureError> {
        // The issuer that was checked: which one a token must name can depend on its other claims.
        let issuer =
            text(parsed.claims(), "iss").and_then(|issuer| IssuerUrl::new(issuer.to_owned()).ok());
        let algorithm = jwks::openid(parsed.algorithm);
        let (Some(id_token), Some(issuer), Some(algorithm)) = (&self.readable, issuer, algorithm)
        else {
            return parsed.verify(keys);
        };
        let candidates = keys.candidates(parsed.algorithm, parsed.key_id.as_deref());
        if candidates.is_empty() {
            return Err(SignatureError::UnknownKey);
        }
        let latest = audience
            .now
            .checked_sub(SignedDuration::from_secs(LEEWAY))
            .unwrap_or(audience.now);
        let nonce = audience.nonce.map(|nonce| Nonce::new(nonce.to_owned()));
        // One key each time: with several that fit openidconnect takes none.
        for key in candidates {
            let Some(key) = key.openid(parsed.key_id.as_deref()) else {
                continue;
            };
            let verifier = CoreIdTokenVerifier::new_public_client(
                ClientId::new(audience.client.to_owned()),
                issuer.clone(),
                JsonWebKeySet::new(vec![key]),
            )
            .set_allowed_algs([algorithm.clone()])
            .set_time_fn(move || SystemTime::from(latest).into())
            // Who else may be named is told by `azp`.
            .set_other_audience_verifier_fn(|_| true);
            let outcome = id_token.claims(&verifier, |returned: Option<&Nonce>| match &nonce {
                Some(sent) => sent.verify(returned),
                None => Ok(()),
            });
            match outcome {
                Ok(_) => return Ok(()),
                Err(ClaimsVerificationError::SignatureVerification(_)) => {}
                Err(other) => return Err(SignatureError::Token(printable(&other.to_string()))),
            }
        }
        Err(parsed.no_key_holds())
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::json;

    use super::*;

    // Made with OpenSSL.
    const MODULUS: &str = concat!(
        "wOAxsSkGJ3_k0uW1WP-LYPUt6L7In_vOkycGk1gilQUjsW-PyFTaa7o13ZFexcR4Yec2gy34zvDitPhtn7w7egN-",
        "bUhn1_nKMqzm7d0fJoRJZGTkh5iPWfeOehSn2PwOr4thXh-lsIwj-RyLwGG7PjOsiWJZm_HZ3DiiHtcfeNDII84w",
        "IaFS_JOytlaw-C8ri5a49kRlV2T6PZeCuBEJz5YiR6HPj_TOHZeCw27Fl9GdKqxso6qliBLijPAvgcGeI2648FIu",
        "u_okoSxj4CTr8FMS7l88SuyF-4jIB1nH8P7-mBO-iZGgTOMUBuJ0FW2bXwmRTyKNd-7nnJb9qF5DiQ",
    );
    const SIGNATURE: &str = concat!(
        "NqNXqRWpa4eFDYYwiB2zWWHmjRqgxyGTJ6rkxSM657BNFAAzrP1wc1N8UA-xq68-LVRTA3qfgsqlReGfXynn9Xwh",
        "ozoITziltziK-_PIcpXnZhDBJWHHBoo3ynXMSv9C0FrC25KFnlmtGIPO4oG6_VDgYRgTpIQ5LXVaPLHVr4-ONjWP",
        "tTS0-M-a65vDYCiIiCoWuB0LXxCPxcjDGZgxCEauXDZCKtFLKORB-tNjFpGWh1yeLsJxkemSZSWE5mHx1hgoL7Ol",
        "3UykUqtshVImf8VEpfbpvjOBHeLjR9-m49KNd1ZfmJIqNrSkcSkMnQJFp8ZEbgi3pn1Mvk-DufMyuQ",
    );
    const HEADER: &str = r#"{"alg":"RS256","kid":"rsa"}"#;
    const CLAIMS: &str = r#"{"iss":"https://idp.test","aud":"client","sub":"ann","iat":1000,"exp":2000,"nonce":"n"}"#;

    fn verify(claims: &str, second: i64, client: &str, nonce: &str) -> Result<(), SignatureError> {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let text = format!("{}.{}.{SIGNATURE}", part(HEADER), part(claims));
        let token = RawIdToken::from(text.clone());
        assert!(token.openid().is_some());
        let set = json!({"keys": [{"kty": "RSA", "kid": "rsa", "n": MODULUS, "e": "AQAB"}]});
        token.verify(
            &Unverified::parse(&text).unwrap(),
            &Jwks::parse(set.to_string().as_bytes()).unwrap(),
            Audience {
                client,
                nonce: Some(nonce),
                now: Timestamp::from_second(second).unwrap(),
            },
        )
    }

    #[test]
    fn s12_openidconnect_verifies() {
        assert_eq!(verify(CLAIMS, 1500, "client", "n"), Ok(()));
        assert_eq!(verify(CLAIMS, 2059, "client", "n"), Ok(()));
        for (second, client, nonce) in [
            (2060, "client", "n"),
            (1500, "another", "n"),
            (1500, "client", "m"),
        ] {
            let outcome = verify(CLAIMS, second, client, nonce);
            assert!(
                matches!(outcome, Err(SignatureError::Token(_))),
                "{outcome:?}"
            );
        }
        let forged = CLAIMS.replace("ann", "eve");
        assert_eq!(
            verify(&forged, 1500, "client", "n"),
            Err(SignatureError::Wrong)
        );
    }

    #[test]
    fn s46_debug_shows_nothing_of_it() {
        let shown = format!("{:?}", RawIdToken::from("eyJ.secret".to_owned()));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
