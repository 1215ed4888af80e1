//! A deployment of one authenticate, and a browser.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use postern_common::config::*;
use postern_common::crypto::handle::Handle;
use postern_common::crypto::keys::{SecretKey, SigningKeys};
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
    let authenticate = Url::parse(&format!("https://{HOST}")).unwrap();
    Config {
        services: Services::one(Service::Authenticate),
        listen: Listen {
            public: None,
            grpc: None,
            http_redirect: None,
            health: "127.0.0.1:0".parse().unwrap(),
            proxy_protocol: ProxyProtocol::Off,
        },
        server_tls: ServerTls::Off,
        certificate_authorities: Vec::new(),
        urls: ServiceUrls {
            authenticate,
            authenticate_internal: Some(Url::parse("https://authenticate:8443").unwrap()),
            authorize: Vec::new(),
            databroker: Vec::new(),
        },
        grpc: Grpc {
            listener: GrpcListenerSecurity::ClearText,
            client_timeout: Duration::from_secs(10),
            override_certificate_name: None,
            ext_authz: ExtAuthzCallers::OwnServicesOnly,
        },
        secrets: Secrets {
            shared: vec![SecretKey::random()],
            cookie: vec![SecretKey::random()],
            storage: Vec::new(),
        },
        signing_keys: Arc::new(SigningKeys::derived_from(&SecretKey::random()).unwrap()),
        provider: Some(ProviderOptions {
            kind: ProviderKind::Oidc,
            url: Some(ISSUER.into()),
            client: ClientCredentials {
                id: "postern".into(),
                secret: "secret".into(),
            },
            scopes: Vec::new(),
            request_params: BTreeMap::new(),
            access_token_audiences: None,
        }),
        provider_id: Some(IDP_ID.into()),
        jwt_verifiers: BTreeMap::new(),
        cookie: CookieOptions {
            name: "_pomerium".into(),
            domain: None,
            http_only: true,
            expire: Duration::from_secs(14 * 3600),
            same_site: SameSite::Lax,
        },
        storage: StorageOptions::Memory,
        identity: IdentityHeaders {
            claims_headers: Vec::new(),
            groups_filter: Vec::new(),
            assertion_reuse: Duration::ZERO,
        },
        programs: ProgrammaticAccess {
            redirect_domains: vec!["localhost".into()],
            unbound_callbacks: UnboundCallbacks::Refuse,
        },
        http: HttpOptions {
            codec: Codec::Auto,
            timeout_read: Duration::from_secs(30),
            timeout_write: Duration::ZERO,
            timeout_idle: Duration::from_secs(300),
            default_upstream_timeout: Duration::from_secs(30),
            set_response_headers: vec![(header::X_FRAME_OPTIONS, "SAMEORIGIN".parse().unwrap())],
            trusted_hops: 0,
            append_forwarded_for: true,
            path: PathNormalization {
                merge_slashes: true,
                dot_segments: true,
                escaped_slashes: EscapedSlashes::Reject,
            },
            underscore_headers: UnderscoreHeaders::Allow,
        },
        dns: DnsOptions::default(),
        downstream_mtls: None,
        log: LogOptions {
            level: LogLevel::Info,
            proxy_level: LogLevel::Info,
            access_fields: None,
            authorize_fields: None,
        },
        metrics: None,
        branding: Branding::default(),
        flags: RuntimeFlags::default(),
        signout_redirect_url: None,
        routes: ["app.corp.test", "b.corp.test", "app2.corp.test"]
            .map(|host| Arc::new(route(host)))
            .to_vec(),
        checksum: 0,
    }
}

fn route(host: &str) -> Route {
    let policy = serde_json::json!([{"allow": {"and": [{"authenticated_user": true}]}}]);
    Route {
        id: RouteId(host.into()),
        checksum: RouteChecksum(0),
        name: host.into(),
        description: String::new(),
        logo_url: None,
        from: RouteFrom {
            scheme: FromScheme::Https,
            host: host.into(),
            port: None,
            also: None,
            text: format!("https://{host}"),
        },
        matcher: PathMatcher::Any,
        target: RouteTarget::Response(FixedResponse {
            status: StatusCode::OK,
            body: String::new(),
        }),
        policy: postern_policy::Policy::compile(&policy).unwrap(),
        error_details: ErrorDetails::Hide,
        depends_on: Vec::new(),
        identity: RouteIdentity {
            headers: PassIdentity::No,
            issuer: IssuerFormat::HostOnly,
            groups_filter: Vec::new(),
        },
        provider_client: None,
        provider_id: None,
        bearer: RouteBearer {
            format: BearerTokenFormat::Default,
            audiences: None,
            verifiers: Vec::new(),
        },
        request_headers: RequestHeaders::default(),
        response_headers: ResponseHeaders::default(),
        kubernetes_token: None,
    }
}
