//! The demo's OpenID provider: a real one, but nobody needs a password.
//!
//! Discovery, code flow with PKCE and nonce, refresh with rotation, user info, keys, sign-out and
//! revocation. Keys are made at start and what it hands out is kept in memory only, so a restart
//! forgets everybody.

mod authorize;
mod store;
mod token;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use postern_common::crypto::keys::{SecretKey, SigningKeys};
use serde_json::{Value, json};

use store::Store;

/// How the provider is set up.
#[derive(Debug, Clone)]
pub struct DemoIdp {
    /// Its public URL, without a slash at the end.
    pub issuer: String,
    pub clients: Vec<Client>,
    pub people: Vec<Person>,
    /// Of access and ID tokens.
    pub lifetime: Duration,
}

/// An application that may send people here.
#[derive(Debug, Clone)]
pub struct Client {
    pub id: String,
    pub secret: String,
    pub redirects: Redirects,
}

/// Where people may be sent back to.
#[derive(Debug, Clone)]
pub enum Redirects {
    /// For tests, whose ports are not known before.
    Any,
    /// These addresses, and after sign-out anything on their hosts.
    Only(Vec<String>),
}

/// Somebody who can be picked on the sign-in page.
#[derive(Debug, Clone)]
pub struct Person {
    /// `sub`.
    pub id: String,
    pub given_name: String,
    pub family_name: String,
    pub email: String,
    pub groups: Vec<String>,
}

impl Person {
    fn new(id: &str, names: (&str, &str), email: &str, groups: &[&str]) -> Self {
        Self {
            id: id.to_owned(),
            given_name: names.0.to_owned(),
            family_name: names.1.to_owned(),
            email: email.to_owned(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        }
    }

    pub fn name(&self) -> String {
        format!("{} {}", self.given_name, self.family_name)
    }

    /// What user info says of them.
    fn claims(&self) -> Value {
        json!({
            "sub": self.id,
            "name": self.name(),
            "given_name": self.given_name,
            "family_name": self.family_name,
            "email": self.email,
            "email_verified": true,
            "groups": self.groups,
        })
    }
}

/// Three people: two of one domain in different groups, one of another domain in none.
pub fn people() -> Vec<Person> {
    vec![
        Person::new("ann", ("Ann", "Archer"), "ann@corp.test", &["eng", "ops"]),
        Person::new("bob", ("Bob", "Bergström"), "bob@corp.test", &["sales"]),
        Person::new("eve", ("Eve", "Okafor"), "eve@other.test", &[]),
    ]
}

pub const CLIENT_ID: &str = "postern-demo";
pub const CLIENT_SECRET: &str = "only-for-the-demo";

impl DemoIdp {
    /// The provider of `postern demo`: three people and one client, which is Postern.
    pub fn new(issuer: &str, redirects: Redirects) -> Self {
        Self {
            issuer: issuer.trim_end_matches('/').to_owned(),
            clients: vec![Client {
                id: CLIENT_ID.to_owned(),
                secret: CLIENT_SECRET.to_owned(),
                redirects,
            }],
            people: people(),
            lifetime: Duration::from_secs(900),
        }
    }

    /// The same for a Postern whose authenticate service has this URL.
    pub fn for_postern_at(issuer: &str, authenticate: &str) -> Self {
        let callback = format!("{}/oauth2/callback", authenticate.trim_end_matches('/'));
        Self::new(issuer, Redirects::Only(vec![callback]))
    }
}

struct Idp {
    config: DemoIdp,
    /// `None` only if no key could be made; then nothing is signed and every exchange fails.
    keys: Option<SigningKeys>,
    store: Mutex<Store>,
    look: postern_common::web::page::Look,
}

impl Idp {
    fn client(&self, id: &str) -> Option<&Client> {
        self.config.clients.iter().find(|c| c.id == id)
    }

    fn person(&self, id: &str) -> Option<&Person> {
        self.config.people.iter().find(|p| p.id == id)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.config.issuer)
    }
}

/// The provider's pages and endpoints; mount it at the root of `config.issuer`.
pub fn router(config: DemoIdp) -> Router {
    let idp = Idp {
        config,
        keys: SigningKeys::derived_from(&SecretKey::random()),
        store: Mutex::new(Store::default()),
        look: postern_common::web::page::Look::default(),
    };
    Router::new()
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/jwks", get(keys))
        .route("/authorize", get(authorize::ask).post(authorize::picked))
        .route("/token", post(token::token))
        .route("/userinfo", get(user_info).post(user_info))
        .route("/introspect", post(token::introspect))
        .route("/revoke", post(token::revoke))
        .route(
            "/logout",
            get(authorize::sign_out).post(authorize::sign_out),
        )
        .with_state(Arc::new(idp))
}

async fn discovery(State(idp): State<Arc<Idp>>) -> Json<Value> {
    let methods = ["client_secret_basic", "client_secret_post"];
    Json(json!({
        "issuer": idp.config.issuer,
        "authorization_endpoint": idp.url("/authorize"),
        "token_endpoint": idp.url("/token"),
        "userinfo_endpoint": idp.url("/userinfo"),
        "jwks_uri": idp.url("/jwks"),
        "end_session_endpoint": idp.url("/logout"),
        "revocation_endpoint": idp.url("/revoke"),
        "introspection_endpoint": idp.url("/introspect"),
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "token_endpoint_auth_methods_supported": methods,
        "revocation_endpoint_auth_methods_supported": methods,
        "introspection_endpoint_auth_methods_supported": methods,
        "code_challenge_methods_supported": ["S256"],
        "scopes_supported": ["openid", "profile", "email", "groups", "offline_access"],
        "claims_supported": ["sub", "name", "given_name", "family_name", "email", "email_verified", "groups"],
        "authorization_response_iss_parameter_supported": true,
        "prompt_values_supported": ["none", "login", "select_account", "consent"],
    }))
}

async fn keys(State(idp): State<Arc<Idp>>) -> Response {
    match &idp.keys {
        Some(keys) => (
            [(header::CONTENT_TYPE, "application/json")],
            keys.jwks().body.clone(),
        )
            .into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn user_info(State(idp): State<Arc<Idp>>, headers: HeaderMap) -> Response {
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "));
    let person = token.and_then(|token| {
        let grant = idp.store().access(token, jiff::Timestamp::now())?;
        idp.person(&grant.person)
    });
    match person {
        Some(person) => Json(person.claims()).into_response(),
        None => (
            StatusCode::UNAUTHORIZED,
            [(header::WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"")],
        )
            .into_response(),
    }
}

#[cfg(test)]
mod tests;
