//! Sessions made from a provider's token.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http::{Request, Response, StatusCode};
use postern_common::authz::{Authorizer as _, CheckRequest, CheckSubject, Decision, DenyKind};
use postern_common::crypto::bearer_id::{TokenKind, session_id};
use postern_common::crypto::keys::{SecretKey, SigningKeys};
use postern_common::rpc::stubs::databroker::GetRequest;
use postern_common::rpc::stubs::user::User;
use postern_identity::HttpError;
use prost::Message as _;
use serde_json::{Value, json};

use crate::world::{SESSION, USER, World, list};

const ROUTE: &str = "- {from: https://app.corp.test, to: http://up, \
    bearer_token_format: idp_access_token, idp_access_token_allowed_audiences: [postern-api], \
    policy: [{allow: {and: [{email: {is: robot@corp.test}}]}}]}\n";

/// An identity provider that knows one opaque token, and counts who asks about tokens.
#[derive(Default)]
struct Provider {
    asked: AtomicUsize,
    down: AtomicBool,
    /// Said of the token instead.
    says: Mutex<Option<Value>>,
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
                let says = self.says.lock().unwrap().clone();
                says.filter(|_| known).unwrap_or_else(|| {
                    json!({
                        "active": known,
                        "sub": "robot-1",
                        "aud": "postern-api",
                        "iss": "https://idp.corp.test",
                        "email": "robot@corp.test",
                        "groups": ["robots"],
                        "exp": 4_000_000_000_u64
                    })
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

#[tokio::test]
async fn w8_a_token_for_one_route_is_none_for_another() {
    let routes = format!(
        "{ROUTE}- {{from: https://other.corp.test, to: http://up, \
         bearer_token_format: idp_access_token, idp_access_token_allowed_audiences: [other-api], \
         allow_any_authenticated_user: true}}\n"
    );
    let provider = Arc::new(Provider::default());
    let asked = Arc::clone(&provider);
    let world = World::with_provider(&routes, move |request| asked.answer(&request)).await;
    let headers = [("authorization", "Bearer GOOD")];
    let to_other = || {
        let config = world.config.borrow();
        let mut request = world.request(&headers);
        request.host = "other.corp.test".into();
        request.subject = CheckSubject::Route {
            id: config.routes[1].id.clone(),
            checksum: config.routes[1].checksum,
        };
        Arc::new(request)
    };
    for _ in 0..2 {
        match world.authorize.check(to_other()).await.unwrap() {
            Decision::Deny(deny) => assert_eq!(deny.kind, DenyKind::Forbidden),
            Decision::Allow(allow) => panic!("{allow:?}"),
        }
        // That it was refused there does not spoil it here, nor the other way round.
        world.allowed(&headers).await;
    }
    let id = session_id(TokenKind::Access, &world.provider_id(), "GOOD");
    world.until_session(&id).await;
    match world.authorize.check(to_other()).await.unwrap() {
        Decision::Deny(deny) => assert_eq!(deny.kind, DenyKind::Forbidden),
        Decision::Allow(allow) => panic!("{allow:?}"),
    }
}

/// A token says little of a person whom a browser's sign-in told us all about.
#[tokio::test]
async fn a_token_takes_nothing_from_a_known_user() {
    let (world, provider) = world().await;
    let known = User {
        name: "Robot".into(),
        email: "robot@corp.test".into(),
        device_credential_ids: vec!["device".into()],
        claims: [
            ("groups", "eng"),
            ("org.unit", "a"),
            ("org.site", "b"),
            ("organ", "c"),
        ]
        .map(|(name, value)| (name.to_owned(), list(&[value])))
        .into(),
        ..User::default()
    };
    world.put(USER, "robot-1", &known).await;
    *provider.says.lock().unwrap() = Some(json!({
        "active": true, "sub": "robot-1", "aud": "postern-api", "scope": "api",
        "org": {"unit": "z"},
    }));
    let headers = [("authorization", "Bearer GOOD")];
    let session = world.allowed(&headers).await.session.unwrap();
    assert_eq!(session.email, "robot@corp.test");
    let user = stored_user(&world).await;
    assert_eq!((&*user.name, &*user.email), ("Robot", "robot@corp.test"));
    assert_eq!(user.device_credential_ids, ["device"]);
    assert_eq!(user.claims["groups"], list(&["eng"]));
    assert_eq!(user.claims["scope"], list(&["api"]));
    assert_eq!(user.claims["org.unit"], list(&["z"]));
    assert_eq!(user.claims["organ"], list(&["c"]));
    assert!(!user.claims.contains_key("org.site"), "org was told anew");
    world.until_session(&session.session_id).await;
    world.allowed(&headers).await;
}

async fn stored_user(world: &World) -> User {
    let request = GetRequest {
        r#type: USER.into(),
        id: "robot-1".into(),
    };
    let found = world.databroker().get(request).await.unwrap().into_inner();
    let data = found.record.unwrap().data.unwrap();
    User::decode(data.value.as_slice()).unwrap()
}

/// Many introspection endpoints name the client where others name the audience.
#[tokio::test]
async fn a_token_that_names_only_its_client_counts_for_as_long_as_it_lasts() {
    let (world, provider) = world().await;
    *provider.says.lock().unwrap() = Some(json!({
        "active": true, "sub": "robot-1", "client_id": "postern-api", "email": "robot@corp.test",
    }));
    let headers = [("authorization", "Bearer GOOD")];
    let session = world.allowed(&headers).await.session.unwrap();
    world.until_session(&session.session_id).await;
    for _ in 0..2 {
        world.allowed(&headers).await;
    }
    assert_eq!(provider.asked.load(Ordering::Relaxed), 1);
}

/// W22: our own endpoints know whoever the routes know by the global keys.
#[tokio::test]
async fn own_endpoints_read_tokens_by_the_global_format() {
    let provider = Arc::new(Provider::default());
    let asked = Arc::clone(&provider);
    let routes = "- {from: https://app.corp.test, to: http://up, allow_any_authenticated_user: true}\n\
         bearer_token_format: idp_access_token\n\
         idp_access_token_allowed_audiences: [postern-api]\n";
    let world = World::with_provider(routes, move |request| asked.answer(&request)).await;
    let own = async |path: &str, token: &str| {
        let request = CheckRequest {
            subject: CheckSubject::OwnEndpoint,
            path: path.into(),
            ..world.request(&[("authorization", token)])
        };
        world.authorize.check(Arc::new(request)).await.unwrap()
    };
    for path in ["/.pomerium/", "/.pomerium/user", "/.pomerium/api/v1/routes"] {
        match own(path, "Bearer GOOD").await {
            Decision::Allow(allow) => {
                assert_eq!(allow.session.unwrap().user_id, "robot-1", "{path}");
            }
            Decision::Deny(deny) => panic!("{path}: {deny:?}"),
        }
        match own(path, "Bearer BAD").await {
            Decision::Deny(deny) => assert_eq!(deny.kind, DenyKind::Forbidden, "{path}"),
            Decision::Allow(allow) => panic!("{path}: {allow:?}"),
        }
    }
    // The session is the one that the routes make.
    world.allowed(&[("authorization", "Bearer GOOD")]).await;
    // What nobody signs in for is nobody's business.
    let open = own("/.pomerium/callback/", "Bearer BAD").await;
    assert!(matches!(open, Decision::Allow(_)));
}

#[tokio::test]
async fn a_jwt_made_elsewhere() {
    let verifiers =
        "  ci: {issuer: https://ci.test, jwks_url: https://ci.test/jwks, audiences: [postern]}\n";
    let routes = format!(
        "- {{from: https://app.corp.test, to: http://up, bearer_token_format: jwt, \
         policy: [{{allow: {{and: [{{user: ci/job-1}}]}}}}]}}\nidentity_providers:\n{verifiers}"
    );
    let keys = SigningKeys::derived_from(&SecretKey::random()).unwrap();
    let jwks = keys.jwks().body.clone();
    let world = World::with_provider(&routes, move |_| {
        let mut response = status(StatusCode::OK);
        *response.body_mut() = jwks.clone().into_bytes();
        Ok(response)
    })
    .await;
    let token = |sub: &str, audience: &str| {
        let claims = json!({
            "iss": "https://ci.test", "aud": audience, "sub": sub, "exp": 4_000_000_000_u64
        });
        format!("Bearer {}", keys.sign(&claims).unwrap())
    };
    let good = token("job-1", "postern");
    for _ in 0..3 {
        let allow = world.allowed(&[("authorization", &good)]).await;
        assert_eq!(allow.session.unwrap().user_id, "ci/job-1");
        assert!(allow.consumed.bearer);
    }
    let other = token("job-2", "postern");
    let deny = world.denied(&[("authorization", &other)]).await;
    assert_eq!(deny.reasons, ["user-unauthorized"]);
    for bad in [
        token("job-1", "elsewhere"),
        format!("{good}x"),
        "Bearer opaque".into(),
    ] {
        let deny = world.denied(&[("authorization", &bad)]).await;
        assert_eq!(deny.kind, DenyKind::Forbidden);
        assert!(deny.reasons.is_empty(), "the policy is not asked");
    }
    let both = world
        .denied(&[("authorization", &good), ("cookie", "_pomerium=x")])
        .await;
    assert_eq!(both.kind, DenyKind::BadRequest);
}
