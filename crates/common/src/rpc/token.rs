//! The token that every call between services carries: a JWT under the shared secret with one claim, `exp`.
//!
//! That there is exactly one claim is what keeps a person's session, which is signed with the same key, from being
//! taken for a service.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::extract::Request;
use axum::middleware::{self, Next};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::{Interceptor, Routes};
use tonic::{Code, Status};

use crate::crypto::jws::{self, JwsError};
use crate::crypto::keys::SecretKey;

/// The metadata key (a header) that holds the token.
pub const METADATA_KEY: &str = "jwt";

/// How long a token of ours is good for. Others may sign for longer: Pomerium's services do so for an hour.
const LIFETIME: SignedDuration = SignedDuration::from_mins(5);

/// Methods that tell no more than up or down, and so need no token.
const HEALTH: [&str; 2] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
];

/// Why a token does not make its bearer a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the call carries no token")]
    Missing,
    #[error(transparent)]
    Signature(#[from] JwsError),
    #[error("the token was not made for services: its only claim must be exp, a number")]
    Claims,
    #[error("the token has expired; are the clocks of both ends right?")]
    Expired,
}

/// A token that is good for five minutes.
pub fn sign(key: &SecretKey, now: Timestamp) -> String {
    let expiry = now.saturating_add(LIFETIME).unwrap_or(Timestamp::MAX);
    jws::sign(key, &json!({ "exp": expiry.as_second() }))
}

/// Accepts a token that one of `keys` signed and that is not past its `exp`, to the second.
pub fn verify(keys: &[SecretKey], token: &str, now: Timestamp) -> Result<(), TokenError> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Claims {
        /// Seconds; RFC 7519 allows fractions.
        exp: f64,
    }
    let payload = jws::verify(keys, token)?;
    // serde would read an array of one number as the claims, too.
    if !payload.trim_ascii_start().starts_with(b"{") {
        return Err(TokenError::Claims);
    }
    let claims: Claims = serde_json::from_slice(&payload).map_err(|_| TokenError::Claims)?;
    #[expect(
        clippy::cast_precision_loss,
        reason = "seconds since 1970 fit for millions of years"
    )]
    let now = now.as_second() as f64;
    if now <= claims.exp {
        Ok(())
    } else {
        Err(TokenError::Expired)
    }
}

/// The shared secrets in use: the first signs, all verify. Clones share them; a new configuration replaces them.
#[derive(Debug, Clone)]
pub struct TokenKeys(Arc<ArcSwap<Vec<SecretKey>>>);

impl TokenKeys {
    pub fn new(keys: Vec<SecretKey>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(keys)))
    }

    pub fn replace(&self, keys: Vec<SecretKey>) {
        self.0.store(Arc::new(keys));
    }

    /// The interceptor for clients: each call gets a token of its own.
    pub fn for_client(&self) -> ClientToken {
        ClientToken(self.clone())
    }

    fn check(&self, token: Option<&str>, now: Timestamp) -> Result<(), Status> {
        let keys = self.0.load();
        if keys.is_empty() {
            return Err(Status::unavailable("no shared secret is loaded yet"));
        }
        token
            .ok_or(TokenError::Missing)
            .and_then(|token| verify(&keys, token, now))
            .map_err(|refused| Status::new(Code::Unauthenticated, refused.to_string()))
    }
}

/// Adds a fresh token to each call.
#[derive(Debug, Clone)]
pub struct ClientToken(TokenKeys);

impl Interceptor for ClientToken {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        let keys = self.0.0.load();
        let key = keys
            .first()
            .ok_or_else(|| Status::unavailable("no shared secret is loaded yet"))?;
        let token: MetadataValue<Ascii> = sign(key, Timestamp::now())
            .parse()
            .map_err(|_| Status::internal("a token is not fit to be a header"))?;
        request.metadata_mut().insert(METADATA_KEY, token);
        Ok(request)
    }
}

/// `routes`, refusing every call without a valid token. Only plain health and the methods in `open` (paths such as
/// `/package.Service/Method`) answer to anybody; what does not exist is refused like everything else.
pub fn require(routes: Routes, keys: TokenKeys, open: &'static [&'static str]) -> Routes {
    let guarded = routes.into_axum_router().layer(middleware::from_fn(
        move |request: Request, next: Next| {
            let path = request.uri().path();
            let allowed = if HEALTH.contains(&path) || open.contains(&path) {
                Ok(())
            } else {
                keys.check(single_token(request.headers()), Timestamp::now())
            };
            async move {
                match allowed {
                    Ok(()) => next.run(request).await,
                    Err(status) => status.into_http(),
                }
            }
        },
    ));
    Routes::from(guarded)
}

/// Two tokens are none: nobody should have to guess which one counts.
fn single_token(headers: &http::HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(METADATA_KEY).iter();
    let token = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(token)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use tower::{Service as _, ServiceExt};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn signed(key: &SecretKey, claims: &serde_json::Value) -> String {
        jws::sign(key, claims)
    }

    #[test]
    fn a_token_is_good_until_its_expiry_and_not_a_second_longer() {
        let key = SecretKey::random();
        let token = sign(&key, at(1_000));
        let keys = [key];
        assert_eq!(verify(&keys, &token, at(1_000)), Ok(()));
        assert_eq!(verify(&keys, &token, at(1_300)), Ok(()));
        assert_eq!(verify(&keys, &token, at(1_301)), Err(TokenError::Expired));
    }

    #[test]
    fn every_key_of_the_list_verifies_and_no_other() {
        let (new, old, other) = (
            SecretKey::random(),
            SecretKey::random(),
            SecretKey::random(),
        );
        let token = sign(&old, at(0));
        assert_eq!(verify(&[new.clone(), old], &token, at(0)), Ok(()));
        assert_eq!(
            verify(&[new, other], &token, at(0)),
            Err(TokenError::Signature(JwsError::Signature))
        );
        assert!(verify(&[], &token, at(0)).is_err());
    }

    #[test]
    fn exp_must_be_the_only_claim_and_a_number() {
        let key = SecretKey::random();
        let keys = [key.clone()];
        for claims in [
            json!({}),
            json!({ "exp": "2000" }),
            json!({ "exp": null }),
            json!({ "exp": 2000, "sub": "ann" }),
            json!({ "exp": 2000, "iat": 0 }),
            json!([2000]),
        ] {
            assert_eq!(
                verify(&keys, &signed(&key, &claims), at(0)),
                Err(TokenError::Claims),
                "{claims}"
            );
        }
        assert_eq!(
            verify(&keys, &signed(&key, &json!({ "exp": 2000.5 })), at(2000)),
            Ok(())
        );
    }

    #[test]
    fn a_doubled_claim_is_refused() {
        let key = SecretKey::random();
        let message = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#),
            URL_SAFE_NO_PAD.encode(r#"{"exp":1,"exp":9999999999}"#),
        );
        let tag = aws_lc_rs::hmac::sign(
            &aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key.as_bytes()),
            message.as_bytes(),
        );
        let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag));
        assert_eq!(verify(&[key], &token, at(0)), Err(TokenError::Claims));
    }

    /// Tokens that look right, or are right for something else.
    fn foreign(key: &SecretKey) -> Vec<(&'static str, String)> {
        let claims = URL_SAFE_NO_PAD.encode(r#"{"exp":9999999999}"#);
        let none = format!("{}.{claims}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#));
        let message = format!(
            "{}.{claims}",
            URL_SAFE_NO_PAD.encode(r#"{"alg":"HS512","typ":"JWT"}"#)
        );
        let tag = aws_lc_rs::hmac::sign(
            &aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA512, key.as_bytes()),
            message.as_bytes(),
        );
        vec![
            ("alg none", none),
            (
                "HS512",
                format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag)),
            ),
            ("expired", sign(key, at(0))),
            (
                "service account",
                signed(
                    key,
                    &json!({ "jti": "x", "sub": "x", "iat": 0, "nbf": 0, "exp": 9_999_999_999_i64 }),
                ),
            ),
            (
                "session handle",
                signed(
                    key,
                    &json!({ "iss": "a", "sub": "s", "aud": ["h"], "jti": "s", "iat": 0 }),
                ),
            ),
            ("empty", String::new()),
            ("no JWT", "a.b.c".to_owned()),
        ]
    }

    async fn call(routes: &Routes, path: &str, tokens: &[&str]) -> Code {
        let mut request = http::Request::post(path);
        for token in tokens {
            request = request.header(METADATA_KEY, *token);
        }
        let mut routes = routes.clone();
        let service = ServiceExt::<http::Request<tonic::body::Body>>::ready(&mut routes)
            .await
            .unwrap();
        let response = service
            .call(request.body(tonic::body::Body::empty()).unwrap())
            .await
            .unwrap();
        Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
    }

    fn guarded(key: &SecretKey) -> Routes {
        let router = axum::Router::new().fallback(|| async { Ok::<_, Infallible>("reached") });
        require(
            Routes::from(router),
            TokenKeys::new(vec![key.clone()]),
            &["/open.Service/Method"],
        )
    }

    #[tokio::test]
    async fn c63_only_a_token_made_for_services_passes() {
        let key = SecretKey::random();
        let routes = guarded(&key);
        let good = sign(&key, Timestamp::now());
        let methods = [
            "/databroker.DataBrokerService/Get",
            "/databroker.DataBrokerService/Put",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/health.HealthNotifier/SyncHealth",
            "/no.Such/Method",
        ];
        for method in methods {
            assert_eq!(call(&routes, method, &[&good]).await, Code::Ok, "{method}");
            assert_eq!(
                call(&routes, method, &[]).await,
                Code::Unauthenticated,
                "{method}"
            );
            assert_eq!(
                call(&routes, method, &[&good, &good]).await,
                Code::Unauthenticated,
                "{method}"
            );
            for (what, token) in foreign(&key) {
                assert_eq!(
                    call(&routes, method, &[&token]).await,
                    Code::Unauthenticated,
                    "{method}: {what}"
                );
            }
        }
    }

    #[tokio::test]
    async fn s17_only_plain_health_and_what_is_named_is_open() {
        let routes = guarded(&SecretKey::random());
        for open in [
            "/grpc.health.v1.Health/Check",
            "/grpc.health.v1.Health/Watch",
            "/open.Service/Method",
        ] {
            assert_eq!(call(&routes, open, &[]).await, Code::Ok, "{open}");
        }
        for shut in [
            "/grpc.health.v1.Health/List",
            "/open.Service/Other",
            "/grpc.health.v1.Health/Check/",
        ] {
            assert_eq!(
                call(&routes, shut, &[]).await,
                Code::Unauthenticated,
                "{shut}"
            );
        }
    }

    #[tokio::test]
    async fn without_a_key_nobody_gets_in() {
        let router = axum::Router::new().fallback(|| async { "reached" });
        let keys = TokenKeys::new(vec![]);
        let routes = require(Routes::from(router), keys.clone(), &[]);
        let key = SecretKey::random();
        let token = sign(&key, Timestamp::now());
        assert_eq!(call(&routes, "/a.B/C", &[&token]).await, Code::Unavailable);
        keys.replace(vec![key]);
        assert_eq!(call(&routes, "/a.B/C", &[&token]).await, Code::Ok);
    }

    #[test]
    fn a_client_signs_each_call_with_the_first_key() {
        let (first, second) = (SecretKey::random(), SecretKey::random());
        let keys = TokenKeys::new(vec![first.clone(), second]);
        let request = keys.for_client().call(tonic::Request::new(())).unwrap();
        let token = request
            .metadata()
            .get(METADATA_KEY)
            .unwrap()
            .to_str()
            .unwrap();
        assert_eq!(verify(&[first], token, Timestamp::now()), Ok(()));
    }
}
