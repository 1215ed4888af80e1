//! A provider inside the test, reached through the client it is given. It is honest until told
//! otherwise.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::FutureExt as _;
use http::{Request, Response};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey};
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use p256::pkcs8::EncodePrivateKey as _;
use postern_common::config::ProviderKind;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use url::Url;

use crate::{
    AuthRequest, CodeExchange, HttpClient, HttpError, Identity, Provider, ProviderError,
    ProviderSettings, Providers,
};

pub(crate) const ISSUER: &str = "https://idp.corp.test";
pub(crate) const NONCE: &str = "the-nonce";
pub(crate) const VERIFIER: &str = "a-verifier-of-at-least-forty-three-characters";
pub(crate) const NOW: i64 = 1_767_225_600;

pub(crate) type Form = HashMap<String, String>;
type Change = Arc<dyn Fn(&mut Value) + Send + Sync>;

/// How an ID token is signed.
#[derive(Clone, Copy)]
pub(crate) enum Signing {
    /// With the key of this number; number 0 is published.
    Key(u8),
    /// `alg: none`, no signature.
    None,
    /// HS256 with the published key's own text as secret.
    Hs256WithPublicKey,
}

pub(crate) struct State {
    pub signing: Signing,
    pub key_id: Option<&'static str>,
    /// Numbers of the keys in the key set.
    pub published: Vec<u8>,
    /// Changes to discovery document, ID token and user info.
    pub discovery: Change,
    pub id_token: Change,
    pub user_info: Change,
    /// Answers that take the place of the honest ones, by path. The text of a redirect is where it
    /// leads.
    pub instead: HashMap<&'static str, (u16, String)>,
    /// How long each answer takes.
    pub delay: Duration,
    /// No connection at all.
    pub down: bool,
    pub accepts_basic: bool,
    /// Paths asked, in order.
    pub asked: Vec<String>,
    /// Forms that the token endpoint got, with the `Authorization` header.
    pub forms: Vec<(Form, Option<String>)>,
}

#[derive(Clone)]
pub(crate) struct Idp(pub Arc<Mutex<State>>);

pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn key(number: u8) -> p256::SecretKey {
    p256::SecretKey::from_slice(&[number + 1; 32]).unwrap()
}

pub(crate) fn jwk(number: u8) -> Value {
    let point = key(number).public_key().to_encoded_point(false);
    json!({
        "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": format!("key-{number}"),
        "x": URL_SAFE_NO_PAD.encode(point.x().unwrap()),
        "y": URL_SAFE_NO_PAD.encode(point.y().unwrap()),
    })
}

fn jwt(header: &Value, claims: &Value, signing: Signing) -> String {
    let message = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header.to_string()),
        URL_SAFE_NO_PAD.encode(claims.to_string())
    );
    let sign =
        |key: &EncodingKey, alg| jsonwebtoken::crypto::sign(message.as_bytes(), key, alg).unwrap();
    let signature = match signing {
        Signing::None => String::new(),
        Signing::Hs256WithPublicKey => {
            let public = key(0).public_key().to_encoded_point(false);
            sign(
                &EncodingKey::from_secret(public.as_bytes()),
                Algorithm::HS256,
            )
        }
        Signing::Key(number) => {
            let der = key(number).to_pkcs8_der().unwrap();
            sign(&EncodingKey::from_ec_der(der.as_bytes()), Algorithm::ES256)
        }
    };
    format!("{message}.{signature}")
}

impl Idp {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            signing: Signing::Key(0),
            key_id: Some("key-0"),
            published: vec![0],
            discovery: Arc::new(|_| {}),
            id_token: Arc::new(|_| {}),
            user_info: Arc::new(|_| {}),
            instead: HashMap::new(),
            delay: Duration::ZERO,
            down: false,
            accepts_basic: true,
            asked: Vec::new(),
            forms: Vec::new(),
        })))
    }

    pub fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> &Self {
        change(&mut self.0.lock().unwrap());
        self
    }

    pub fn id_token(&self, change: impl Fn(&mut Value) + Send + Sync + 'static) -> &Self {
        self.set(|s| s.id_token = Arc::new(change))
    }

    pub fn asked(&self, path: &str) -> usize {
        self.0
            .lock()
            .unwrap()
            .asked
            .iter()
            .filter(|p| *p == path)
            .count()
    }

    pub fn last_form(&self) -> (Form, Option<String>) {
        self.0.lock().unwrap().forms.last().cloned().unwrap()
    }

    pub fn settings(kind: ProviderKind, url: &str) -> ProviderSettings {
        ProviderSettings {
            id: format!("id-of-{}", kind.name()),
            kind,
            url: Some(url.into()),
            client_id: "client".into(),
            client_secret: "secret".into(),
            scopes: Vec::new(),
            request_params: Vec::new(),
        }
    }

    pub fn provider(&self) -> Arc<dyn Provider> {
        self.provider_of(ProviderKind::Oidc)
    }

    pub fn provider_of(&self, kind: ProviderKind) -> Arc<dyn Provider> {
        let providers = Providers::new([Self::settings(kind, ISSUER)], &self.client(), None);
        providers.global().unwrap()
    }

    pub async fn sign_in(&self) -> Result<Identity, ProviderError> {
        sign_in(&*self.provider()).await
    }

    /// A token signed as the state says, from these claims.
    pub fn token(&self, claims: &Value) -> String {
        let state = self.0.lock().unwrap();
        state.sign(claims)
    }

    pub fn client(&self) -> HttpClient {
        let idp = self.clone();
        HttpClient::new(move |request| {
            let idp = idp.clone();
            async move {
                let (delay, down) = {
                    let state = idp.0.lock().unwrap();
                    (state.delay, state.down)
                };
                tokio::time::sleep(delay).await;
                let mut state = idp.0.lock().unwrap();
                state.asked.push(request.uri().path().to_owned());
                if down {
                    return Err(HttpError::Transport("connection refused".into()));
                }
                Ok(state.answer(&request))
            }
            .boxed()
        })
    }
}

impl State {
    fn sign(&self, claims: &Value) -> String {
        let mut header = json!({"typ": "JWT", "alg": match self.signing {
            Signing::Key(_) => "ES256",
            Signing::None => "none",
            Signing::Hs256WithPublicKey => "HS256",
        }});
        if let Some(id) = self.key_id {
            header["kid"] = json!(id);
        }
        jwt(&header, claims, self.signing)
    }

    fn answer(&mut self, request: &Request<Vec<u8>>) -> Response<Vec<u8>> {
        let path = request.uri().path().to_owned();
        let authorization = request.headers().get("authorization");
        let by_basic = authorization.is_some_and(|v| v.as_bytes().starts_with(b"Basic "));
        if by_basic && !self.accepts_basic && path != "/token" {
            return reply(401, String::new());
        }
        if let Some((status, body)) = self.instead.get(path.as_str()) {
            let form = url::form_urlencoded::parse(request.body())
                .into_owned()
                .collect();
            self.forms.push((form, None));
            let mut answer = reply(*status, body.clone());
            if (300..400).contains(status) {
                let location = body.parse().unwrap();
                answer.headers_mut().insert("location", location);
            }
            return answer;
        }
        match path.as_str() {
            path if path.ends_with("/.well-known/openid-configuration") => {
                let mut document = json!({
                    "issuer": ISSUER,
                    "authorization_endpoint": format!("{ISSUER}/authorize?tenant=1"),
                    "token_endpoint": format!("{ISSUER}/token"),
                    "userinfo_endpoint": format!("{ISSUER}/userinfo"),
                    "jwks_uri": format!("{ISSUER}/jwks"),
                    "revocation_endpoint": format!("{ISSUER}/revoke"),
                    "end_session_endpoint": format!("{ISSUER}/logout"),
                    "id_token_signing_alg_values_supported": ["ES256"],
                    "code_challenge_methods_supported": ["S256"],
                    "token_endpoint_auth_methods_supported": ["client_secret_basic"],
                });
                (self.discovery)(&mut document);
                reply(200, document.to_string())
            }
            "/jwks" => {
                let keys: Vec<Value> = self.published.iter().map(|n| jwk(*n)).collect();
                reply(200, json!({"keys": keys}).to_string())
            }
            "/token" => self.token_endpoint(request),
            "/userinfo" => {
                let mut info =
                    json!({"sub": "ann", "email": "ann@corp.test", "groups": ["eng", "ops"]});
                (self.user_info)(&mut info);
                reply(200, info.to_string())
            }
            "/revoke" => {
                let form = url::form_urlencoded::parse(request.body())
                    .into_owned()
                    .collect();
                self.forms.push((form, None));
                reply(200, String::new())
            }
            _ => reply(404, String::new()),
        }
    }

    fn token_endpoint(&mut self, request: &Request<Vec<u8>>) -> Response<Vec<u8>> {
        let form: Form = url::form_urlencoded::parse(request.body())
            .into_owned()
            .collect();
        let authorization = request
            .headers()
            .get("authorization")
            .map(|v| v.to_str().unwrap().to_owned());
        self.forms.push((form.clone(), authorization.clone()));
        let known = authorization.as_deref() == Some("Basic Y2xpZW50OnNlY3JldA==")
            && self.accepts_basic
            || (form.get("client_id").is_some_and(|v| v == "client")
                && form.get("client_secret").is_some_and(|v| v == "secret"));
        if !known {
            return reply(401, json!({"error": "invalid_client"}).to_string());
        }
        if form.get("code").is_some_and(|c| c != "good") {
            return reply(400, json!({"error": "invalid_grant"}).to_string());
        }
        let half = &Sha256::digest("access")[..16];
        let mut claims = json!({
            "iss": ISSUER, "aud": "client", "sub": "ann", "nonce": NONCE,
            "iat": NOW, "exp": NOW + 3600, "at_hash": URL_SAFE_NO_PAD.encode(half),
            "name": "Ann", "number": 1_700_000_000,
        });
        (self.id_token)(&mut claims);
        let mut body = json!({
            "access_token": "access", "token_type": "Bearer", "expires_in": 300,
            "refresh_token": "refresh-1", "id_token": self.sign(&claims),
        });
        if form["grant_type"] == "refresh_token" {
            body.as_object_mut().unwrap().remove("refresh_token");
        }
        if claims.get("drop").is_some() {
            body.as_object_mut().unwrap().remove("id_token");
        }
        reply(200, body.to_string())
    }
}

fn reply(status: u16, body: String) -> Response<Vec<u8>> {
    Response::builder()
        .status(status)
        .body(body.into_bytes())
        .unwrap()
}

pub(crate) fn redirect_uri() -> Url {
    Url::parse("https://auth.corp.test/oauth2/callback").unwrap()
}

pub(crate) fn code<'a>(redirect_uri: &'a Url, code: &'a str) -> CodeExchange<'a> {
    CodeExchange {
        code,
        code_verifier: VERIFIER,
        nonce: NONCE,
        redirect_uri,
        issuer_parameter: None,
        now: now(),
    }
}

pub(crate) async fn sign_in(provider: &dyn Provider) -> Result<Identity, ProviderError> {
    provider.exchange(code(&redirect_uri(), "good")).await
}

pub(crate) async fn authorization_query(provider: &dyn Provider) -> (Url, Form) {
    let url = provider
        .authorization_url(AuthRequest {
            state: "the state",
            nonce: NONCE,
            code_challenge: "challenge",
            redirect_uri: &redirect_uri(),
        })
        .await
        .unwrap();
    let query = url.query_pairs().into_owned().collect();
    (url, query)
}
