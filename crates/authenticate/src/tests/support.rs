//! A deployment of one authenticate, and a browser.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use postern_common::config::source::Environment;
use postern_common::config::*;
use postern_common::crypto::handle::Handle;
use postern_common::crypto::keys::SecretKey;
use postern_common::crypto::seal;
use postern_common::crypto::signed_url::{self, param};
use postern_common::rpc::token::TokenKeys;
use tower::ServiceExt as _;
use url::Url;

use super::databroker::Databroker;
use super::idp::{ISSUER, Idp};
use crate::Authenticate;

pub(super) const HOST: &str = "auth.corp.test";
pub(super) const IDP_ID: &str = "IDP";

pub(super) struct World {
    pub config: Arc<Config>,
    pub idp: Idp,
    pub databroker: Databroker,
    pub service: Arc<Authenticate>,
    pub router: Router,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(super) fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::around(change, Idp::new())
    }

    pub(super) fn around(change: impl FnOnce(&mut Config), idp: Idp) -> Self {
        let mut config = config();
        change(&mut config);
        let config = Arc::new(config);
        let databroker = Databroker::start(TokenKeys::new(config.secrets.shared.clone()));
        let transport = databroker.transport();
        let service = Authenticate::new(Arc::clone(&config), transport, idp.client());
        let router = crate::router(Arc::clone(&service));
        Self {
            config,
            idp,
            databroker,
            service,
            router,
        }
    }

    /// Another replica with the same configuration and databroker.
    pub(super) fn replica(&self) -> Router {
        let transport = self.databroker.transport();
        crate::router(Authenticate::new(
            Arc::clone(&self.config),
            transport,
            self.idp.client(),
        ))
    }

    pub(super) fn browser(&self) -> Browser {
        Browser {
            router: self.router.clone(),
            cookies: BTreeMap::new(),
            headers: navigation(),
        }
    }

    pub(super) fn sign(&self, path: &str, parameters: &[(&str, &str)]) -> Url {
        self.sign_at(path, parameters, Timestamp::now())
    }

    pub(super) fn sign_at(&self, path: &str, parameters: &[(&str, &str)], at: Timestamp) -> Url {
        let mut url = Url::parse(&format!("https://{HOST}{path}")).unwrap();
        url.query_pairs_mut().extend_pairs(parameters);
        signed_url::sign(&self.config.secrets.shared[0], &url, at)
    }

    /// As authorize makes it.
    pub(super) fn sign_in_url(&self, redirect: &str) -> Url {
        let parameters = [(param::REDIRECT_URI, redirect), (param::IDP_ID, IDP_ID)];
        self.sign("/.pomerium/sign_in", &parameters)
    }

    /// What a route's callback would do with the URL it is called with.
    pub(super) fn receive(&self, callback: &Url) -> Received {
        let keys = &self.config.secrets.shared;
        let verified = signed_url::verify(keys, callback, Timestamp::now()).unwrap();
        let sealed = verified.get(param::SESSION_ENCRYPTED).unwrap();
        let token = String::from_utf8(seal::open_text(keys, sealed).unwrap()).unwrap();
        Received {
            handle: Handle::decode(keys, &token).unwrap(),
            token,
            redirect: verified.get(param::REDIRECT_URI).unwrap().to_owned(),
            parameters: verified
                .pairs()
                .map(|(n, v)| (n.to_owned(), v.to_owned()))
                .collect(),
        }
    }
}

pub(super) struct Received {
    pub token: String,
    pub handle: Handle,
    pub redirect: String,
    pub parameters: BTreeMap<String, String>,
}

/// A browser, as far as the authenticate host sees it.
#[derive(Clone)]
pub(super) struct Browser {
    pub router: Router,
    pub cookies: BTreeMap<String, String>,
    pub headers: HeaderMap,
}

#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Browser {
    pub(super) async fn get(&mut self, url: &Url) -> Answer {
        self.send(Method::GET, url, "").await
    }

    pub(super) async fn post(&mut self, url: &Url, fields: &[(&str, &str)]) -> Answer {
        let body = postern_common::crypto::form::encode_sorted(fields.iter().copied());
        self.send(Method::POST, url, &body).await
    }

    pub(super) async fn send(&mut self, method: Method, url: &Url, body: &str) -> Answer {
        let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
        let mut request = Request::builder().method(method).uri(path).header(
            header::HOST,
            &url[url::Position::BeforeHost..url::Position::AfterPort],
        );
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if !self.cookies.is_empty() {
            let all: Vec<String> = self
                .cookies
                .iter()
                .map(|(n, v)| format!("{n}={v}"))
                .collect();
            request = request.header(header::COOKIE, all.join("; "));
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let (parts, body) = self
            .router
            .clone()
            .oneshot(request)
            .await
            .unwrap()
            .into_parts();
        for cookie in parts.headers.get_all(header::SET_COOKIE) {
            let text = cookie.to_str().unwrap();
            let (name, value) = text.split(';').next().unwrap().split_once('=').unwrap();
            if text.contains("Max-Age=0") {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: String::from_utf8(body.into()).unwrap(),
        }
    }

    /// From a sign-in link through the provider to the URL of the route's callback.
    pub(super) async fn sign_in(&mut self, world: &World, redirect: &str) -> Url {
        let to_provider = self.get(&world.sign_in_url(redirect)).await.location();
        let back = world.idp.sign_in(&to_provider);
        let again = self.get(&back).await.location();
        assert_eq!(again.path(), "/.pomerium/sign_in");
        self.get(&again).await.location()
    }
}

impl Answer {
    pub(super) fn location(&self) -> Url {
        assert_eq!(self.status, 302, "{}", self.body);
        Url::parse(self.headers[header::LOCATION].to_str().unwrap()).unwrap()
    }

    pub(super) fn cookies(&self) -> Vec<&str> {
        let all = self.headers.get_all(header::SET_COOKIE).iter();
        all.map(|cookie| cookie.to_str().unwrap()).collect()
    }

    /// Value of the hidden field of the page's form.
    pub(super) fn form_token(&self) -> String {
        let rest = self.body.split("name=\"token\" value=\"").nth(1).unwrap();
        rest.split('"').next().unwrap().to_owned()
    }
}

pub(super) fn navigation() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("accept", "text/html,*/*;q=0.8".parse().unwrap());
    headers.insert("sec-fetch-mode", "navigate".parse().unwrap());
    headers
}

fn config() -> Config {
    let routes: String = ["app", "b", "app2"]
        .map(|name| {
            format!(
                "- {{from: 'https://{name}.corp.test', response: {{status: 200}}, allow_any_authenticated_user: true}}\n"
            )
        })
        .concat();
    let text = format!(
        "services: authenticate\nauthenticate_service_url: https://{HOST}\n\
         authenticate_internal_service_url: https://authenticate:8443\n\
         databroker_service_url: http://127.0.0.1:1\ninsecure_server: true\n\
         idp_provider: oidc\nidp_provider_url: {ISSUER}\nidp_client_id: postern\nidp_client_secret: secret\n\
         shared_secret: {SECRET}\ncookie_secret: {SECRET}\n\
         set_response_headers: {{X-Frame-Options: SAMEORIGIN}}\nroutes:\n{routes}"
    );
    let loaded = load_text(
        Path::new("config.yaml"),
        &text,
        &Environment::default(),
        &ProcessSecrets::default(),
    );
    let loaded = loaded
        .config
        .unwrap_or_else(|| panic!("{}", loaded.diagnostics));
    let mut config = Arc::into_inner(loaded).unwrap();
    config.secrets.shared = vec![SecretKey::random()];
    config.secrets.cookie = vec![SecretKey::random()];
    config.provider_id = Some(IDP_ID.into());
    config
}

/// Of no deployment: replaced by random ones.
const SECRET: &str = "dGVzdHMgc2hhcmUgdGhpcyBzZWNyZXQsIDMyIGJ5dGU=";
