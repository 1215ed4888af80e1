//! What a configuration means once it is loaded: parsed, measured, checked.
//!
//! Building a running service from a [`Config`] can't fail because of the configuration;
//! everything that could has failed while it was loaded.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use url::Url;

use super::route::{Route, RouteBearer};
use crate::crypto::keys::{SecretKey, SigningKeys};
use crate::net::listen::Share;

/// Everything that the four services need to know, in one value for all of them.
#[derive(Debug)]
pub struct Config {
    pub services: Services,
    pub listen: Listen,
    pub process: ProcessOptions,
    pub server_tls: ServerTls,
    /// Trust for connections that Postern opens, beside the system's roots: `certificate_authority`
    /// and what `tls_derive` derives.
    pub certificate_authorities: Vec<CertificateDer<'static>>,
    pub urls: ServiceUrls,
    pub grpc: Grpc,
    pub secrets: Secrets,
    pub signing_keys: Arc<SigningKeys>,
    /// `None` when no `idp_provider` is configured; then nobody can sign in.
    pub provider: Option<ProviderOptions>,
    /// `crypto::provider_id` of `provider`.
    pub provider_id: Option<Arc<str>>,
    /// Verifiers of JWTs made elsewhere, by name (`identity_providers`).
    pub jwt_verifiers: BTreeMap<String, JwtVerifier>,
    /// How `Authorization: Bearer` is read where no route stands: at our own endpoints.
    pub bearer: RouteBearer,
    pub cookie: CookieOptions,
    pub storage: StorageOptions,
    pub identity: IdentityHeaders,
    pub programs: ProgrammaticAccess,
    pub http: HttpOptions,
    pub dns: DnsOptions,
    pub downstream_mtls: Option<DownstreamMtls>,
    pub log: LogOptions,
    pub metrics: Option<MetricsOptions>,
    /// `None`: nothing is traced.
    pub traces: Option<TracesOptions>,
    pub branding: Branding,
    pub flags: RuntimeFlags,
    pub signout_redirect_url: Option<Url>,
    /// In the order of the file; the order is the precedence within a host.
    pub routes: Vec<Arc<Route>>,
    /// Equal on every replica that runs the same configuration.
    pub checksum: u64,
}

/// Which services this process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Service {
    Proxy,
    Authorize,
    Authenticate,
    Databroker,
}

impl Service {
    pub const ALL: [Self; 4] = [
        Self::Proxy,
        Self::Authorize,
        Self::Authenticate,
        Self::Databroker,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Authorize => "authorize",
            Self::Authenticate => "authenticate",
            Self::Databroker => "databroker",
        }
    }

    /// The binary that has this service alone.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Proxy => "postern-proxy",
            Self::Authorize => "postern-authorize",
            Self::Authenticate => "postern-authenticate",
            Self::Databroker => "postern-databroker",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of services, never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Services(Vec<Service>);

impl Services {
    pub fn all() -> Self {
        Self(Service::ALL.to_vec())
    }

    pub fn one(service: Service) -> Self {
        Self(vec![service])
    }

    /// `None` for an empty list.
    pub fn new(services: impl IntoIterator<Item = Service>) -> Option<Self> {
        let mut list: Vec<_> = services.into_iter().collect();
        list.sort_unstable();
        list.dedup();
        (!list.is_empty()).then_some(Self(list))
    }

    pub fn contains(&self, service: Service) -> bool {
        self.0.contains(&service)
    }

    pub fn is_all(&self) -> bool {
        self.0.len() == Service::ALL.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = Service> + '_ {
        self.0.iter().copied()
    }

    /// The `service` label of logs and metrics: `postern`, or `postern-proxy` for one.
    pub fn label(&self) -> String {
        match self.0.as_slice() {
            [one] => one.program().to_owned(),
            _ => "postern".to_owned(),
        }
    }
}

/// How this process lives.
#[derive(Debug, Clone, Copy)]
pub struct ProcessOptions {
    pub drain: DrainOptions,
    pub supervision: Supervision,
}

/// `health_check_systemd_disabled`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supervision {
    /// systemd hears how the process is, where it asks (`NOTIFY_SOCKET`).
    Told,
    Off,
}

impl Config {
    /// Every listener of this process: the key and its address.
    pub fn listeners(&self) -> Vec<(&'static str, SocketAddr)> {
        let listen = &self.listen;
        [
            ("address", listen.public),
            ("grpc_address", listen.grpc),
            ("http_redirect_addr", listen.http_redirect),
            (
                "metrics_address",
                self.metrics.as_ref().map(|it| it.address),
            ),
            ("health_check_addr", Some(listen.health)),
        ]
        .into_iter()
        .filter_map(|(key, address)| Some((key, address?)))
        .collect()
    }
}

/// How this process goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainOptions {
    /// `drain_delay`: not ready, but still accepting.
    pub delay: Duration,
    /// `drain_timeout`: for requests under way.
    pub timeout: Duration,
}

impl Default for DrainOptions {
    /// As long as a request may take where no route says otherwise (`default_upstream_timeout`).
    fn default() -> Self {
        Self {
            delay: Duration::from_secs(5),
            timeout: Duration::from_secs(30),
        }
    }
}

/// Where this process listens. An address without a host means every interface.
#[derive(Debug, Clone)]
pub struct Listen {
    /// `address`: HTTPS of proxy and authenticate. `None` when neither runs here.
    pub public: Option<SocketAddr>,
    /// `grpc_address`: authorize and databroker. `None` when neither runs here, or when an
    /// all-in-one process has been told to keep it shut.
    pub grpc: Option<SocketAddr>,
    /// `http_redirect_addr`. `None` when neither proxy nor authenticate runs here.
    pub http_redirect: Option<SocketAddr>,
    /// `health_check_addr`.
    pub health: SocketAddr,
    /// `reuse_port`: of `public`, `grpc` and `http_redirect` with other processes.
    pub share: Share,
    /// `use_proxy_protocol`: connections on `public` must start with a PROXY header.
    pub proxy_protocol: ProxyProtocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    Off,
    Required,
}

/// TLS of the public listener.
#[derive(Debug, Clone)]
pub enum ServerTls {
    /// `insecure_server`: clear text.
    Off,
    /// Chosen by SNI: exact, then wildcard, then the first. Never empty.
    Certificates(Vec<Arc<ServerCertificate>>),
}

/// A certificate with its key and what clients may call it by.
#[derive(Debug)]
pub struct ServerCertificate {
    pub key: Arc<CertifiedKey>,
    /// DNS names of the certificate, lower case, wildcards as written.
    pub names: Vec<String>,
    /// Made by Postern: no HSTS over it.
    pub self_signed: bool,
    /// Unix seconds.
    pub not_after: i64,
    /// Where it came from, for messages.
    pub origin: String,
}

#[derive(Debug, Clone)]
pub struct ServiceUrls {
    /// `authenticate_service_url`: what browsers see.
    pub authenticate: Url,
    /// `authenticate_internal_service_url`, else the external one.
    pub authenticate_internal: Option<Url>,
    /// Empty when authorize runs in this process and nobody configured it.
    pub authorize: Vec<Url>,
    pub databroker: Vec<Url>,
}

/// gRPC between services.
#[derive(Debug, Clone)]
pub struct Grpc {
    /// TLS or clear text on our own listener (`grpc_insecure`). Which of the two a client uses
    /// follows from the scheme of the service URL.
    pub listener: GrpcListenerSecurity,
    /// `grpc_client_timeout`: the deadline of a decision.
    pub client_timeout: Duration,
    /// `override_certificate_name`
    pub override_certificate_name: Option<String>,
    /// `ext_authz_allow_unauthenticated`: foreign Envoys may ask `Check` without a token.
    pub ext_authz: ExtAuthzCallers,
}

#[derive(Debug, Clone)]
pub enum GrpcListenerSecurity {
    /// Chosen from as for the public listener; never empty.
    Tls(Vec<Arc<ServerCertificate>>),
    ClearText,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtAuthzCallers {
    OwnServicesOnly,
    Anyone,
}

/// The first of each list signs and seals, all of them verify and open: that is how they rotate.
/// Never empty.
#[derive(Debug, Clone)]
pub struct Secrets {
    /// `shared_secret`: K of the documents. All services have it.
    pub shared: Vec<SecretKey>,
    /// `cookie_secret`: C of the documents. Only authenticate uses it.
    pub cookie: Vec<SecretKey>,
    /// `databroker_storage_keys`; empty: derived from `shared`.
    pub storage: Vec<SecretKey>,
}

/// The sign-in provider (`idp_*`).
#[derive(Clone)]
pub struct ProviderOptions {
    pub kind: ProviderKind,
    /// `idp_provider_url` as written; `None` takes the kind's own.
    pub url: Option<String>,
    pub client: ClientCredentials,
    /// `idp_scopes` as written; empty takes the kind's own.
    pub scopes: Vec<String>,
    pub request_params: BTreeMap<String, String>,
    /// `idp_access_token_allowed_audiences`
    pub access_token_audiences: Option<Vec<String>>,
}

impl fmt::Debug for ProviderOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderOptions")
            .field("kind", &self.kind)
            .field("url", &self.url)
            .field("client", &self.client)
            .field("scopes", &self.scopes)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, Eq)]
pub struct ClientCredentials {
    pub id: String,
    pub secret: String,
}

impl fmt::Debug for ClientCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCredentials")
            .field("id", &self.id)
            .field("secret", &"…")
            .finish()
    }
}

/// `idp_provider`. `keycloak` is read as `oidc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProviderKind {
    Oidc,
    Google,
    Azure,
    Okta,
    Auth0,
    Gitlab,
    Github,
    Cognito,
    OneLogin,
    Ping,
    Apple,
}

impl ProviderKind {
    /// As it stands in the configuration, and in the provider id.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Oidc => "oidc",
            Self::Google => "google",
            Self::Azure => "azure",
            Self::Okta => "okta",
            Self::Auth0 => "auth0",
            Self::Gitlab => "gitlab",
            Self::Github => "github",
            Self::Cognito => "cognito",
            Self::OneLogin => "onelogin",
            Self::Ping => "ping",
            Self::Apple => "apple",
        }
    }
}

/// One entry of `identity_providers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtVerifier {
    pub issuer: String,
    pub jwks_url: Option<Url>,
    pub algorithms: Vec<String>,
    pub audiences: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct CookieOptions {
    /// `cookie_name`: the prefix of every other cookie of ours too.
    pub name: String,
    /// `None`: host-only.
    pub domain: Option<String>,
    pub http_only: bool,
    /// Of the cookie and of the session.
    pub expire: Duration,
    pub same_site: SameSite,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameSite {
    Strict,
    Lax,
    None,
}

impl SameSite {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "Strict",
            Self::Lax => "Lax",
            Self::None => "None",
        }
    }
}

/// Where databroker keeps its records.
#[derive(Clone, PartialEq, Eq)]
pub enum StorageOptions {
    Memory,
    File {
        directory: PathBuf,
    },
    /// A libpq connection string, already found well-formed; it holds a password.
    Postgres {
        connection_string: String,
    },
}

impl fmt::Debug for StorageOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("Memory"),
            Self::File { directory } => f
                .debug_struct("File")
                .field("directory", directory)
                .finish(),
            Self::Postgres { .. } => f.write_str("Postgres(…)"),
        }
    }
}

/// What upstreams learn about people, where a route does not say otherwise.
#[derive(Debug, Clone)]
pub struct IdentityHeaders {
    /// `jwt_claims_headers`: header → claim.
    pub claims_headers: Vec<(HeaderName, String)>,
    /// `jwt_groups_filter`; empty: all groups.
    pub groups_filter: Vec<String>,
    /// `jwt_assertion_reuse`: for how long one assertion serves the same session and audience.
    /// Zero signs a new one for every request.
    pub assertion_reuse: Duration,
}

/// `iss` of the assertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IssuerFormat {
    /// `app.example.com`
    HostOnly,
    /// `https://app.example.com/`
    Uri,
}

/// How programs sign in.
#[derive(Debug, Clone)]
pub struct ProgrammaticAccess {
    /// `programmatic_redirect_domain_whitelist`
    pub redirect_domains: Vec<String>,
    /// `accept_unbound_callbacks`: sign-ins begun by a Pomerium authorize carry no binding.
    pub unbound_callbacks: UnboundCallbacks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnboundCallbacks {
    Refuse,
    Accept,
}

/// `bearer_token_format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BearerTokenFormat {
    /// `Authorization: Bearer` is the upstream's business.
    Default,
    IdpAccessToken,
    IdpIdentityToken,
    Jwt,
}

/// The public listener's HTTP.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    pub codec: Codec,
    /// `timeout_read`: from the first byte of a request to the last of its body. Zero: none.
    pub timeout_read: Duration,
    /// `timeout_write`: the longest life of a stream. Zero: none.
    pub timeout_write: Duration,
    /// `timeout_idle`: a connection without requests.
    pub timeout_idle: Duration,
    /// `default_upstream_timeout`. Zero: none.
    pub default_upstream_timeout: Duration,
    /// `set_response_headers`, defaults included and HSTS already judged.
    pub set_response_headers: Vec<(HeaderName, HeaderValue)>,
    /// `xff_num_trusted_hops`
    pub trusted_hops: usize,
    /// `skip_xff_append`
    pub append_forwarded_for: bool,
    pub path: PathNormalization,
    pub underscore_headers: UnderscoreHeaders,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    Auto,
    Http1,
    Http2,
}

/// How a path is brought into its one form before anything looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathNormalization {
    /// `merge_slashes`
    pub merge_slashes: bool,
    /// `normalize_path`: dot segments and needless percent-encoding.
    pub dot_segments: bool,
    /// `path_with_escaped_slashes_action`
    pub escaped_slashes: EscapedSlashes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapedSlashes {
    Keep,
    Reject,
    UnescapeAndRedirect,
    UnescapeAndForward,
}

/// `headers_with_underscores_action`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnderscoreHeaders {
    Allow,
    Reject,
    Drop,
}

/// `dns_*`: upstreams and services alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsOptions {
    pub lookup_family: LookupFamily,
    /// The longest time between two look-ups of a name.
    pub refresh_rate: Duration,
    pub failure_refresh_rate: Duration,
    pub query_timeout: Duration,
    pub query_tries: u32,
    pub transport: DnsTransport,
    /// Empty: those of the system.
    pub resolvers: Vec<DnsServer>,
}

impl Default for DnsOptions {
    fn default() -> Self {
        Self {
            lookup_family: LookupFamily::V4Preferred,
            refresh_rate: Duration::from_secs(5),
            failure_refresh_rate: Duration::from_secs(5),
            query_timeout: Duration::from_secs(2),
            query_tries: 2,
            transport: DnsTransport::Udp,
            resolvers: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupFamily {
    Auto,
    V4Only,
    V6Only,
    V4Preferred,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DnsServer {
    pub transport: DnsTransport,
    pub address: SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsTransport {
    Udp,
    Tcp,
}

/// `downstream_mtls`
#[derive(Debug, Clone)]
pub struct DownstreamMtls {
    pub roots: Vec<CertificateDer<'static>>,
    /// DER of certificate revocation lists.
    pub revocation_lists: Vec<Vec<u8>>,
    pub enforcement: MtlsEnforcement,
    pub subject_alt_names: Vec<SubjectAltNameRule>,
    /// Intermediates and one. `None`: no limit.
    pub max_depth: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MtlsEnforcement {
    PolicyWithDefaultDeny,
    Policy,
    RejectConnection,
}

#[derive(Debug, Clone)]
pub struct SubjectAltNameRule {
    pub kind: SubjectAltNameKind,
    /// Matches the whole name.
    pub pattern: regex::Regex,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubjectAltNameKind {
    Dns,
    Email,
    Uri,
    IpAddress,
    UserPrincipalName,
}

#[derive(Debug, Clone)]
pub struct LogOptions {
    pub level: LogLevel,
    /// `proxy_log_level`, else `level`.
    pub proxy_level: LogLevel,
    /// `access_log_fields` in order; `None`: the default set.
    pub access_fields: Option<Vec<String>>,
    /// `authorize_log_fields` in order; `None`: the default set.
    pub authorize_fields: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Off,
}

#[derive(Clone)]
pub struct MetricsOptions {
    pub address: SocketAddr,
    pub basic_auth: Option<BasicAuth>,
    /// `None`: clear text.
    pub tls: Option<MetricsTls>,
}

/// `metrics_certificate` and `metrics_client_ca`.
#[derive(Debug, Clone)]
pub struct MetricsTls {
    pub certificate: Arc<ServerCertificate>,
    /// Who issues the certificates that clients must show; empty: they need none.
    pub client_authorities: Vec<CertificateDer<'static>>,
}

impl fmt::Debug for MetricsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsOptions")
            .field("address", &self.address)
            .field("basic_auth", &self.basic_auth.as_ref().map(|_| "…"))
            .field("tls", &self.tls)
            .finish()
    }
}

/// `otel_*`: where spans go, and how many.
#[derive(Clone, PartialEq)]
pub struct TracesOptions {
    /// Of the collector; by HTTP with the path that spans are posted to.
    pub endpoint: Url,
    pub protocol: TracesProtocol,
    /// For the collector; their values are secret.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Of one export.
    pub timeout: Duration,
    /// Share of the traces that begin here which are kept, from 0 to 1.
    pub ratio: f64,
    /// What this process says about itself.
    pub resource: Vec<(String, String)>,
    /// Bytes of a text that stands in a span.
    pub longest_value: usize,
    /// At most this long between two batches.
    pub delay: Duration,
    /// Spans in a batch.
    pub batch: usize,
}

impl TracesOptions {
    pub const LARGEST_BATCH: usize = 8192;

    /// With OpenTelemetry's defaults.
    pub fn to(endpoint: Url, protocol: TracesProtocol) -> Self {
        Self {
            endpoint,
            protocol,
            headers: Vec::new(),
            timeout: Duration::from_secs(10),
            ratio: 1.0,
            resource: Vec::new(),
            longest_value: 256,
            delay: Duration::from_secs(5),
            batch: 512,
        }
    }
}

impl fmt::Debug for TracesOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TracesOptions")
            .field("endpoint", &self.endpoint.as_str())
            .field("protocol", &self.protocol)
            .field("ratio", &self.ratio)
            .finish_non_exhaustive()
    }
}

/// How a collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TracesProtocol {
    Grpc,
    /// `http/protobuf`
    Http,
}

#[derive(Clone, PartialEq, Eq)]
pub struct BasicAuth {
    pub user: String,
    pub password: String,
}

/// How pages look.
#[derive(Debug, Clone, Default)]
pub struct Branding {
    pub primary_color: Option<String>,
    pub secondary_color: Option<String>,
    pub logo_url: Option<String>,
    pub favicon_url: Option<String>,
    pub error_message_first_paragraph: Option<String>,
}

/// `runtime_flags` that mean something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "a set of independent switches, read by name"
)]
pub struct RuntimeFlags {
    pub config_hot_reload: bool,
    pub match_any_incoming_port: bool,
    pub routes_portal: bool,
    pub pomerium_jwt_endpoint: bool,
    pub allow_any_sign_out_redirect_uri: bool,
    pub refresh_session_at_id_token_expiration: bool,
}

impl Default for RuntimeFlags {
    fn default() -> Self {
        Self {
            config_hot_reload: true,
            match_any_incoming_port: true,
            routes_portal: true,
            pomerium_jwt_endpoint: false,
            allow_any_sign_out_redirect_uri: false,
            refresh_session_at_id_token_expiration: true,
        }
    }
}

impl Config {
    /// The id of the provider that a route signs people in with; without a route, or when the
    /// route has no client of its own, the global one. `None` when no provider is configured.
    pub fn provider_id<'a>(&'a self, route: Option<&'a Route>) -> Option<&'a Arc<str>> {
        route
            .and_then(|route| route.provider_id.as_ref())
            .or(self.provider_id.as_ref())
    }
}

/// Whether an address is meant for this machine alone.
pub fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
