//! An OpenID provider inside the test.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::FutureExt as _;
use http::{Request, Response};
use jiff::Timestamp;
use postern_common::crypto::form;
use postern_common::crypto::keys::{SecretKey, SigningKeys};
use postern_common::crypto::random;
use postern_identity::{HttpClient, HttpError};
use serde_json::{Value, json};
use url::Url;

pub(super) const ISSUER: &str = "https://idp.corp.test";

pub(super) struct State {
    /// What is told of the person who signs in.
    pub claims: Value,
    pub down: bool,
    pub end_session: bool,
    /// Code → what the authorization request said.
    codes: BTreeMap<String, BTreeMap<String, String>>,
    pub revoked: Vec<String>,
    pub redeemed: usize,
}

#[derive(Clone)]
pub(super) struct Idp {
    pub state: Arc<Mutex<State>>,
    keys: Arc<SigningKeys>,
}

impl Idp {
    pub(super) fn new() -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                claims: json!({
                    "sub": "ann", "name": "Ann", "email": "ann@corp.test",
                    "groups": ["eng", "ops"],
                }),
                down: false,
                end_session: true,
                codes: BTreeMap::new(),
                revoked: Vec::new(),
                redeemed: 0,
            })),
            keys: Arc::new(SigningKeys::derived_from(&SecretKey::random()).unwrap()),
        }
    }

    pub(super) fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    /// What happens when the person follows the redirect and signs in: where the browser goes.
    pub(super) fn sign_in(&self, authorization: &Url) -> Url {
        assert!(
            authorization
                .as_str()
                .starts_with("https://idp.corp.test/authorize?")
        );
        let asked: BTreeMap<String, String> = authorization.query_pairs().into_owned().collect();
        for (name, value) in [("response_type", "code"), ("code_challenge_method", "S256")] {
            assert_eq!(asked[name], value);
        }
        let mut back = Url::parse(&asked["redirect_uri"]).unwrap();
        let code = hex(random::bytes::<8>());
        back.query_pairs_mut()
            .append_pair("code", &code)
            .append_pair("state", &asked["state"])
            .append_pair("iss", ISSUER);
        self.set(|state| state.codes.insert(code, asked));
        back
    }

    pub(super) fn client(&self) -> HttpClient {
        let idp = self.clone();
        HttpClient::new(move |request| {
            let idp = idp.clone();
            async move { idp.answer(&request) }.boxed()
        })
    }

    fn answer(&self, request: &Request<Vec<u8>>) -> Result<Response<Vec<u8>>, HttpError> {
        if self.set(|state| state.down) {
            return Err(HttpError::Transport("connection refused".into()));
        }
        let body = String::from_utf8(request.body().clone()).unwrap();
        let fields: BTreeMap<String, String> =
            form::parse(&body).unwrap_or_default().into_iter().collect();
        let (status, body) = match request.uri().path() {
            "/.well-known/openid-configuration" => (200, self.discovery()),
            "/keys" => (200, serde_json::from_str(&self.keys.jwks().body).unwrap()),
            "/token" => self.token(&fields),
            "/userinfo" => (200, self.set(|state| state.claims.clone())),
            "/revoke" => {
                self.set(|state| state.revoked.push(fields["token"].clone()));
                (200, json!({}))
            }
            other => panic!("nobody should ask for {other}"),
        };
        Ok(Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .body(body.to_string().into_bytes())
            .unwrap())
    }

    fn discovery(&self) -> Value {
        let mut document = json!({
            "issuer": ISSUER,
            "authorization_endpoint": "https://idp.corp.test/authorize",
            "token_endpoint": "https://idp.corp.test/token",
            "jwks_uri": "https://idp.corp.test/keys",
            "userinfo_endpoint": "https://idp.corp.test/userinfo",
            "revocation_endpoint": "https://idp.corp.test/revoke",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": true,
        });
        if self.set(|state| state.end_session) {
            document["end_session_endpoint"] = json!("https://idp.corp.test/logout");
        }
        document
    }

    fn token(&self, fields: &BTreeMap<String, String>) -> (u16, Value) {
        let refused = (400, json!({ "error": "invalid_grant" }));
        let Some(asked) = self.set(|state| state.codes.remove(&fields["code"])) else {
            return refused;
        };
        self.set(|state| state.redeemed += 1);
        let challenge = challenge_of(
            fields
                .get("code_verifier")
                .map(String::as_str)
                .unwrap_or_default(),
        );
        if challenge != asked["code_challenge"] {
            return refused;
        }
        let now = Timestamp::now().as_second();
        let mut claims = self.set(|state| state.claims.clone());
        for (name, value) in [
            ("iss", json!(ISSUER)),
            ("aud", json!("postern")),
            ("nonce", json!(asked["nonce"])),
            ("iat", json!(now)),
            ("exp", json!(now + 3600)),
            // what Pomerium would make the session's id
            ("jti", json!("chosen-by-the-provider")),
        ] {
            claims[name] = value;
        }
        let answer = json!({
            "access_token": hex(random::bytes::<8>()),
            "refresh_token": hex(random::bytes::<8>()),
            "token_type": "Bearer",
            "expires_in": 300,
            "id_token": self.keys.sign(&claims).unwrap(),
        });
        (200, answer)
    }
}

fn hex(bytes: [u8; 8]) -> String {
    format!("{:016x}", u64::from_be_bytes(bytes))
}

fn challenge_of(verifier: &str) -> String {
    use sha2::Digest as _;
    URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(verifier))
}
