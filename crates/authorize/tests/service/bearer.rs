//! Sessions made from a provider's token.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http::{Request, Response, StatusCode};
use postern_common::authz::DenyKind;
use postern_common::crypto::bearer_id::{TokenKind, session_id};
use postern_common::rpc::stubs::databroker::GetRequest;
use postern_identity::HttpError;
use serde_json::json;

use crate::world::{SESSION, World};

const ROUTE: &str = "- {from: https://app.corp.test, to: http://up, \
    bearer_token_format: idp_access_token, idp_access_token_allowed_audiences: [postern-api], \
    policy: [{allow: {and: [{email: {is: robot@corp.test}}]}}]}\n";

/// An identity provider that knows one opaque token, and counts who asks about tokens.
#[derive(Default)]
struct Provider {
    asked: AtomicUsize,
    down: AtomicBool,
}

impl Provider {
    fn answer(&self, request: &Request<Vec<u8>>) -> Result<Response<Vec<u8>>, HttpError> {
        if self.down.load(Ordering::Relaxed) {
            return Err(HttpError::Transport("connection refused".into()));
        }
        let body = match request.uri().path() {
            "/.well-known/openid-configuration" => json!({
                "issuer": "https://idp.corp.test",
                "authorization_endpoint": "https://idp.corp.test/auth",
                "token_endpoint": "https://idp.corp.test/token",
                "jwks_uri": "https://idp.corp.test/jwks",
                "introspection_endpoint": "https://idp.corp.test/introspect",
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"]
            }),
            "/jwks" => json!({"keys": []}),
            "/introspect" => {
                self.asked.fetch_add(1, Ordering::Relaxed);
                let known = String::from_utf8_lossy(request.body()).contains("token=GOOD");
                json!({
                    "active": known,
                    "sub": "robot-1",
                    "aud": "postern-api",
                    "iss": "https://idp.corp.test",
                    "email": "robot@corp.test",
                    "groups": ["robots"],
                    "exp": 4_000_000_000_u64
                })
            }
            _ => return Ok(status(StatusCode::NOT_FOUND)),
        };
        let mut response = status(StatusCode::OK);
        response
            .headers_mut()
            .insert("content-type", "application/json".parse().unwrap());
        *response.body_mut() = body.to_string().into_bytes();
        Ok(response)
    }
}

fn status(status: StatusCode) -> Response<Vec<u8>> {
    let mut response = Response::new(Vec::new());
    *response.status_mut() = status;
    response
}

async fn world() -> (World, Arc<Provider>) {
    let provider = Arc::new(Provider::default());
    let asked = Arc::clone(&provider);
    let world = World::with_provider(ROUTE, move |request| asked.answer(&request)).await;
    (world, provider)
}

#[tokio::test]
async fn a_token_is_verified_once_and_becomes_a_session() {
    let (world, provider) = world().await;
    let headers = [("authorization", "Bearer GOOD")];
    let (first, second) = tokio::join!(world.allowed(&headers), world.allowed(&headers));
    assert!(first.consumed.bearer && second.consumed.bearer);
    let session = first.session.unwrap();
    let id = session_id(TokenKind::Access, &world.provider_id(), "GOOD");
    assert_eq!(session.session_id, id);
    assert_eq!(session.user_id, "robot-1");
    for _ in 0..5 {
        world.allowed(&headers).await;
    }
    assert_eq!(provider.asked.load(Ordering::Relaxed), 1);
    let request = GetRequest {
        r#type: SESSION.into(),
        id,
    };
    let record = world
        .databroker()
        .get(request)
        .await
        .unwrap()
        .into_inner()
        .record
        .unwrap();
    assert!(record.version > 0);
    // What is known goes on while the provider is away.
    provider.down.store(true, Ordering::Relaxed);
    world.allowed(&headers).await;
}

#[tokio::test]
async fn an_invalid_token_is_forbidden_and_an_absent_provider_is_no_answer() {
    let (world, provider) = world().await;
    let bad = [("authorization", "Bearer BAD")];
    for _ in 0..3 {
        let deny = world.denied(&bad).await;
        assert_eq!(deny.kind, DenyKind::Forbidden);
    }
    assert_eq!(
        provider.asked.load(Ordering::Relaxed),
        1,
        "a refusal is remembered for a while"
    );
    provider.down.store(true, Ordering::Relaxed);
    assert!(
        world
            .ask(&[("authorization", "Bearer OTHER")])
            .await
            .is_err()
    );
    // Without a token the route is like any other.
    let deny = world.denied(&[]).await;
    assert!(matches!(deny.kind, DenyKind::SignIn { .. }));
}
