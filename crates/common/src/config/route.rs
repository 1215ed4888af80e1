//! A route as it is used: matchers compiled, policy compiled, URLs split.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use postern_policy::Policy;
use regex::Regex;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use url::Url;

use super::options::{BearerTokenFormat, ClientCredentials, IssuerFormat};

/// From where to where, and who may.
#[derive(Debug)]
pub struct Route {
    /// Stable over restarts and replicas; changes when `from`, matchers or target change.
    pub id: RouteId,
    /// Over everything that makes this route what it is to proxy and authorize alike.
    pub checksum: RouteChecksum,
    /// `name`, else one made from the host.
    pub name: String,
    pub description: String,
    pub logo_url: Option<String>,
    pub from: RouteFrom,
    pub matcher: PathMatcher,
    pub target: RouteTarget,
    /// The whole of who may: shorthand keys, `policy`, and the denial that client certificates add.
    pub policy: Policy,
    /// No decision rests on data that is older. `None`: however old it is.
    pub max_data_age: Option<Duration>,
    /// Shown on refusal pages.
    pub error_details: ErrorDetails,
    pub depends_on: Vec<String>,
    pub identity: RouteIdentity,
    /// `Some` when the route signs in with a client of its own.
    pub provider_client: Option<ClientCredentials>,
    /// The provider id that goes with `provider_client`.
    pub provider_id: Option<Arc<str>>,
    pub bearer: RouteBearer,
    pub request_headers: RequestHeaders,
    pub response_headers: ResponseHeaders,
    /// `kubernetes_service_account_token`
    pub kubernetes_token: Option<Secret>,
}

/// Sixteen hexadecimal digits, or the `id` of a stored route.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteId(pub Arc<str>);

impl RouteId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RouteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RouteChecksum(pub u64);

/// `from`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteFrom {
    pub scheme: FromScheme,
    /// Lower case; `*` stands for any number of labels.
    pub host: String,
    /// `None` on the scheme's own port.
    pub port: Option<u16>,
    /// `tls_downstream_server_name`: one more accepted host name.
    pub also: Option<String>,
    /// As written.
    pub text: String,
}

impl RouteFrom {
    pub fn is_wildcard(&self) -> bool {
        self.host.contains('*')
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromScheme {
    Http,
    Https,
    /// `tcp+https`: CONNECT for these authorities, `host:port`.
    Tcp {
        authorities: Vec<String>,
    },
}

/// At most one condition on the path, compared after normalisation, without the query.
#[derive(Debug, Clone)]
pub enum PathMatcher {
    Any,
    /// Plain text prefix: `/admin` also matches `/administrator`.
    Prefix(String),
    Exact(String),
    /// Matches the whole path.
    Regex(Regex),
}

#[derive(Debug)]
pub enum RouteTarget {
    Upstream(Box<UpstreamTarget>),
    Redirect(Redirect),
    Response(FixedResponse),
}

/// `to` and everything about the way there.
#[derive(Debug)]
pub struct UpstreamTarget {
    /// Never empty.
    pub endpoints: Vec<UpstreamEndpoint>,
    pub rewrite: PathRewrite,
    pub host: HostHeader,
    pub balancing: LoadBalancing,
    pub upgrades: Upgrades,
    /// From the end of the request to the end of the response. `None`: no limit.
    pub timeout: Option<Duration>,
    /// No byte either way. `None`: no limit.
    pub idle_timeout: Option<Duration>,
    pub tls: UpstreamTls,
}

/// One URL of `to`; every address of its host is an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamEndpoint {
    pub protocol: UpstreamProtocol,
    pub host: String,
    pub port: u16,
    /// `host[:port]` as written, for the Host header.
    pub authority: String,
    /// At least one.
    pub weight: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpstreamProtocol {
    /// HTTP/1.1
    Http,
    /// HTTP/2 with prior knowledge.
    H2c,
    /// HTTP/2 or HTTP/1.1 by ALPN.
    Https,
    /// Raw bytes behind CONNECT.
    Tcp,
}

#[derive(Debug, Clone)]
pub enum PathRewrite {
    None,
    /// The matched prefix is replaced. On exact and regex routes the whole path is.
    Prefix(String),
    /// Every match of `pattern` in the path is replaced.
    Regex {
        pattern: Regex,
        substitution: String,
    },
    /// A path in `to`, joined at the segment.
    Join(String),
}

/// `Host` towards the upstream.
#[derive(Debug, Clone)]
pub enum HostHeader {
    /// That of the endpoint chosen.
    Endpoint,
    /// `preserve_host_header`
    Preserve,
    Literal(HeaderValue),
    /// The value of this header of the request; unchanged if absent.
    FromHeader(HeaderName),
    /// `pattern` applied to the path gives the host.
    FromPath {
        pattern: Regex,
        substitution: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadBalancing {
    RoundRobin,
    LeastRequest,
    Random,
    RingHash,
    Maglev,
}

/// Which `Upgrade` tokens pass, in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upgrades(pub Vec<String>);

impl Upgrades {
    pub fn allows(&self, token: &str) -> bool {
        self.0.iter().any(|known| known.eq_ignore_ascii_case(token))
    }
}

#[derive(Debug, Clone, Default)]
pub struct UpstreamTls {
    pub verification: UpstreamVerification,
    /// `tls_upstream_server_name`: for SNI and for the name check.
    pub server_name: Option<String>,
    /// `tls_custom_ca`: replaces every other root.
    pub custom_roots: Option<CustomRoots>,
    pub client: Option<Arc<ClientIdentity>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UpstreamVerification {
    #[default]
    Verify,
    /// `tls_skip_verify`
    Skip,
}

#[derive(Debug, Clone)]
pub struct CustomRoots {
    pub certificates: Vec<CertificateDer<'static>>,
    /// The file, or `tls_custom_ca`, for messages.
    pub origin: String,
}

/// Shown to an upstream that asks for a client certificate.
#[derive(Debug)]
pub struct ClientIdentity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

/// `redirect`
#[derive(Debug, Clone)]
pub struct Redirect {
    pub scheme: Option<String>,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub path: RedirectPath,
    pub status: StatusCode,
    pub query: RedirectQuery,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectPath {
    Keep,
    /// May contain a query.
    Replace(String),
    /// Replaces the matched prefix.
    Prefix(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectQuery {
    Keep,
    Strip,
}

/// `response`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedResponse {
    pub status: StatusCode,
    pub body: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorDetails {
    Hide,
    Show,
}

/// What the upstream learns about the person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteIdentity {
    pub headers: PassIdentity,
    pub issuer: IssuerFormat,
    /// Added to the global `jwt_groups_filter`.
    pub groups_filter: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassIdentity {
    No,
    Yes,
}

/// How `Authorization: Bearer` is read on this route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteBearer {
    pub format: BearerTokenFormat,
    /// `idp_access_token_allowed_audiences`, the route's or the global ones.
    pub audiences: Option<Vec<String>>,
    /// Names in `identity_providers`; empty: all of them.
    pub verifiers: Vec<String>,
}

#[derive(Debug, Clone, Default)]
pub struct RequestHeaders {
    pub set: Vec<(HeaderName, HeaderTemplate)>,
    /// Applied last, so it also removes what `set` added.
    pub remove: Vec<HeaderName>,
}

/// A value of `set_request_headers`, split into text and references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderTemplate(pub Vec<TemplatePart>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplatePart {
    Text(String),
    AccessToken,
    IdToken,
    Jwt,
    ClientCertFingerprint,
    ClientCertSanDns,
    ClientCertSanEmail,
    RequestHeader(HeaderName),
    /// A reference that nobody knows gives nothing.
    Unknown,
}

#[derive(Debug, Clone, Default)]
pub struct ResponseHeaders {
    /// Global ones and the route's, already merged.
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub rewrite: Vec<ResponseHeaderRewrite>,
}

/// If the header's first value starts with `prefix`, that part becomes `value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHeaderRewrite {
    pub header: HeaderName,
    pub prefix: String,
    pub value: String,
}

/// Text that must not be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Route {
    /// `None` for redirects and fixed responses.
    pub fn upstream(&self) -> Option<&UpstreamTarget> {
        match &self.target {
            RouteTarget::Upstream(target) => Some(target),
            RouteTarget::Redirect(_) | RouteTarget::Response(_) => None,
        }
    }

    /// The origin that browsers see, for allowed redirect targets.
    pub fn external_url(&self) -> Option<Url> {
        if self.from.is_wildcard() {
            return None;
        }
        match self.from.port {
            Some(port) => Url::parse(&format!("https://{}:{port}/", self.from.host)).ok(),
            None => Url::parse(&format!("https://{}/", self.from.host)).ok(),
        }
    }
}
