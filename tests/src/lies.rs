//! A provider that fails or lies: the demo's, with somebody in between who signs with keys of
//! their own.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{StatusCode, header};
use postern_common::crypto::keys::{SecretKey, SigningKeys};
use serde_json::{Value, json};

#[derive(Debug, Clone)]
pub enum Lie {
    /// None at all.
    Honest,
    /// The ID token says this of a claim; null leaves it out.
    Claim(&'static str, Value),
    /// The ID token is signed by a key that is not published.
    ForeignKey,
    /// The ID token says `alg: none` and has no signature.
    Unsigned,
    /// A path answers with this status.
    Fails(&'static str, StatusCode),
    /// A path does not answer.
    Silent(&'static str),
    /// A path answers something that is no JSON.
    Garbage(&'static str),
}

/// What the provider does from now on.
#[derive(Clone)]
pub struct Lies {
    lie: Arc<Mutex<Lie>>,
    keys: Arc<SigningKeys>,
    foreign: Arc<SigningKeys>,
}

impl Default for Lies {
    fn default() -> Self {
        let keys = || {
            let keys = SigningKeys::derived_from(&SecretKey::random());
            Arc::new(keys.expect("a key"))
        };
        Self {
            lie: Arc::new(Mutex::new(Lie::Honest)),
            keys: keys(),
            foreign: keys(),
        }
    }
}

impl Lies {
    pub fn tell(&self, lie: Lie) {
        *self.lie.lock().expect("no test panics here") = lie;
    }

    pub fn around(&self, honest: Router) -> Router {
        honest.layer(middleware::from_fn_with_state(self.clone(), answer))
    }

    fn sign(&self, lie: &Lie, mut claims: Value) -> String {
        if let Lie::Claim(name, value) = lie {
            claims[*name] = value.clone();
            claims
                .as_object_mut()
                .expect("claims are an object")
                .retain(|_, value| !value.is_null());
        }
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        match lie {
            Lie::Unsigned => format!("{}.{}.", encode(&json!({"alg": "none"})), encode(&claims)),
            Lie::ForeignKey => self.foreign.sign(&claims).expect("a signature"),
            _ => self.keys.sign(&claims).expect("a signature"),
        }
    }
}

async fn answer(State(lies): State<Lies>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let lie = lies.lie.lock().expect("no test panics here").clone();
    match &lie {
        Lie::Fails(of, status) if *of == path => return status.into_response(),
        Lie::Silent(of) if *of == path => std::future::pending().await,
        Lie::Garbage(of) if *of == path => return "<html>Hello</html>".into_response(),
        _ => {}
    }
    if path == "/jwks" {
        let json = [(header::CONTENT_TYPE, "application/json")];
        return (json, lies.keys.jwks().body.clone()).into_response();
    }
    let response = next.run(request).await;
    if path != "/token" || response.status() != StatusCode::OK {
        return response;
    }
    let mut tokens: Value = serde_json::from_slice(&bytes(response.into_body()).await)
        .expect("the demo's provider answers JSON");
    let honest = tokens["id_token"].as_str().expect("an ID token").to_owned();
    let claims = honest.split('.').nth(1).expect("a JWT has a payload");
    let claims = URL_SAFE_NO_PAD.decode(claims).expect("base64url");
    let claims = serde_json::from_slice(&claims).expect("claims are JSON");
    tokens["id_token"] = lies.sign(&lie, claims).into();
    Json(tokens).into_response()
}

async fn bytes(body: Body) -> Vec<u8> {
    to_bytes(body, usize::MAX).await.expect("a body").into()
}
