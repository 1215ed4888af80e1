//! Metrics in one registry that is handed to whoever counts, and the endpoint that shows them.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};
use rustls::ServerConfig;
use rustls::sign::SingleCertAndKey;
use subtle::ConstantTimeEq as _;
use tokio_util::sync::CancellationToken;

use super::text_format::{self, TextFormat};
use crate::config::{MetricsOptions, MetricsTls};
use crate::lifecycle::side_server::{self, Answer, Security, SideServer, SideServerError};
use crate::tls::{self, Alpn, TlsError};

/// A label set of names and values known only when the process runs.
pub type Labels = Vec<(&'static str, String)>;

/// All metrics of the process; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// Registers `metric` and gives it back to be counted on. `name` carries the whole prefix
    /// (`pomerium_…`, `envoy_…`); the format itself appends `_total` to counters.
    pub fn add<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register(name, help.trim_end_matches('.'), metric.clone());
        metric
    }

    /// Registers what is read only when somebody asks.
    pub fn add_collector(&self, collector: Box<dyn Collector>) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register_collector(collector);
    }

    /// All of them in the OpenMetrics format.
    pub fn page(&self) -> Result<String, std::fmt::Error> {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut page = String::new();
        encode(&mut page, &registry)?;
        Ok(page)
    }

    /// `pomerium_build_info`: 1, with what runs here as labels.
    pub fn add_build_info(&self, service: &str, version: &str, revision: &str) {
        let info = self.add(
            "pomerium_build_info",
            "What runs here",
            Family::<Labels, Gauge>::default(),
        );
        let labels = vec![
            ("service", service.to_owned()),
            ("version", version.to_owned()),
            ("revision", revision.to_owned()),
        ];
        info.get_or_create(&labels).set(1);
    }
}

/// What is told about the configuration; names as in Pomerium.
#[derive(Debug, Clone)]
pub struct ConfigMetrics {
    service: Labels,
    config: Labels,
    last_reload_success: Family<Labels, Gauge>,
    last_reload_success_timestamp: Family<Labels, Gauge>,
    checksum: Family<Labels, Gauge<f64, AtomicU64>>,
    routes: Family<Labels, Gauge>,
    certificates: Family<Labels, Gauge>,
}

impl ConfigMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics, service: &str) -> Self {
        let service = ("service", service.to_owned());
        Self {
            config: vec![service.clone(), ("config", "local".to_owned())],
            service: vec![service],
            last_reload_success: metrics.add(
                "pomerium_config_last_reload_success",
                "1 when the newest configuration was good, else 0",
                Family::default(),
            ),
            last_reload_success_timestamp: metrics.add(
                "pomerium_config_last_reload_success_timestamp",
                "When a good configuration was last taken over, seconds since 1970",
                Family::default(),
            ),
            checksum: metrics.add(
                "pomerium_config_checksum_decimal",
                "Equal on replicas that run the same configuration",
                Family::default(),
            ),
            routes: metrics.add(
                "pomerium_policy_count_total",
                "Number of routes",
                Family::default(),
            ),
            certificates: metrics.add(
                "postern_certificate_not_after_timestamp_seconds",
                "When a certificate that is served expires, seconds since 1970",
                Family::default(),
            ),
        }
    }

    /// A good configuration was taken over.
    pub fn loaded(&self, checksum: u64, routes: usize, now: Timestamp) {
        self.last_reload_success.get_or_create(&self.service).set(1);
        let time = self
            .last_reload_success_timestamp
            .get_or_create(&self.service);
        time.set(now.as_second());
        #[expect(
            clippy::cast_precision_loss,
            reason = "a gauge is a float; replicas lose the same bits"
        )]
        self.checksum
            .get_or_create(&self.config)
            .set(checksum as f64);
        let routes = i64::try_from(routes).unwrap_or(i64::MAX);
        self.routes.get_or_create(&self.service).set(routes);
    }

    /// The certificates in use, each with its first name and its end in unix seconds.
    pub fn certificates<'a>(&self, certificates: impl IntoIterator<Item = (&'a str, i64)>) {
        self.certificates.clear();
        for (name, not_after) in certificates {
            let mut labels = self.service.clone();
            labels.push(("name", name.to_owned()));
            self.certificates.get_or_create(&labels).set(not_after);
        }
    }

    /// A configuration was refused; the one before stays.
    pub fn refused(&self) {
        self.last_reload_success.get_or_create(&self.service).set(0);
    }
}

/// `metrics_basic_auth`: who may read the page.
#[derive(Clone)]
pub struct BasicAuth {
    /// What must stand behind `Basic ` in the `Authorization` header.
    expected: Vec<u8>,
}

impl std::fmt::Debug for BasicAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BasicAuth(…)")
    }
}

impl BasicAuth {
    /// RFC 7617.
    pub fn new(user: &str, password: &str) -> Self {
        Self {
            expected: STANDARD.encode(format!("{user}:{password}")).into_bytes(),
        }
    }

    fn allows(&self, headers: &HeaderMap) -> bool {
        let Some(given) = headers.get(header::AUTHORIZATION) else {
            return false;
        };
        let Some((scheme, credentials)) = given.as_bytes().split_at_checked(6) else {
            return false;
        };
        scheme.eq_ignore_ascii_case(b"basic ")
            && bool::from(credentials.trim_ascii().ct_eq(&self.expected))
    }
}

/// `/metrics` on `metrics_address`, on a thread of its own.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    auth: Arc<ArcSwapOption<BasicAuth>>,
    security: Security,
}

/// The endpoint can't be served.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// It has no port.
    #[error(transparent)]
    Server(#[from] SideServerError),
    /// It has no TLS.
    #[error("metrics_certificate, metrics_client_ca")]
    Tls(#[from] TlsError),
}

impl Endpoint {
    /// Serves until `stop`.
    pub fn start(
        metrics: &Metrics,
        options: &MetricsOptions,
        stop: CancellationToken,
    ) -> Result<Self, EndpointError> {
        let security = match &options.tls {
            None => Security::ClearText,
            Some(tls) => Security::Tls(Arc::new(ArcSwap::new(server_config(tls)?))),
        };
        let auth = Arc::new(ArcSwapOption::new(basic_auth(options)));
        let server = SideServer {
            name: "metrics",
            key: "metrics_address",
            address: options.address,
            security: security.clone(),
        };
        let (metrics, checked) = (metrics.clone(), Arc::clone(&auth));
        let address = side_server::start(server, stop, move |request| {
            let answer = answer(
                &metrics,
                checked.load().as_deref(),
                request.uri().path(),
                request.headers(),
            );
            std::future::ready(answer)
        })?;
        Ok(Self {
            address,
            auth,
            security,
        })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes over credentials and certificates. Another address, and TLS instead of clear text or
    /// the other way round, need a restart.
    pub fn follow(&self, options: &MetricsOptions) -> Result<(), TlsError> {
        match (&self.security, &options.tls) {
            (Security::Tls(current), Some(tls)) => current.store(server_config(tls)?),
            (Security::ClearText, None) => {}
            _ => return Ok(()),
        }
        self.auth.store(basic_auth(options));
        Ok(())
    }
}

fn basic_auth(options: &MetricsOptions) -> Option<Arc<BasicAuth>> {
    let auth = options.basic_auth.as_ref()?;
    Some(Arc::new(BasicAuth::new(&auth.user, &auth.password)))
}

fn server_config(options: &MetricsTls) -> Result<Arc<ServerConfig>, TlsError> {
    let key = Arc::clone(&options.certificate.key);
    let clients = match options.client_authorities.as_slice() {
        [] => None,
        authorities => Some(tls::require_clients_of(authorities, &[])?),
    };
    let certificate = Arc::new(SingleCertAndKey::from(key));
    tls::server_config(certificate, Alpn::Http1, clients)
}

fn answer(metrics: &Metrics, auth: Option<&BasicAuth>, path: &str, headers: &HeaderMap) -> Answer {
    if path != "/metrics" {
        return side_server::text(StatusCode::NOT_FOUND, "see /metrics\n");
    }
    if auth.is_some_and(|auth| !auth.allows(headers)) {
        let mut refused = side_server::text(StatusCode::UNAUTHORIZED, "credentials needed\n");
        let challenge = HeaderValue::from_static("Basic realm=\"metrics\", charset=\"UTF-8\"");
        refused
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, challenge);
        return refused;
    }
    match metrics.page() {
        Ok(page) => {
            let format = TextFormat::of(headers);
            let page = match format {
                TextFormat::Prometheus => text_format::older(&page),
                TextFormat::OpenMetrics => page,
            };
            let mut answer =
                side_server::with_type(StatusCode::OK, format.content_type(), Bytes::from(page));
            let vary = HeaderValue::from_static("accept");
            answer.headers_mut().insert(header::VARY, vary);
            answer
        }
        Err(_) => side_server::text(StatusCode::INTERNAL_SERVER_ERROR, "cannot encode\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn names_are_those_that_dashboards_know() {
        let metrics = Metrics::default();
        metrics.add_build_info("proxy", "0.1.0", "abc");
        let requests = metrics.add(
            "pomerium_http_server_requests",
            "Requests",
            Family::<Labels, Counter>::default(),
        );
        requests
            .get_or_create(&vec![("host", "a".to_owned())])
            .inc();
        let config = ConfigMetrics::new(&metrics, "proxy");
        config.loaded(12, 3, "2026-01-01T00:00:00Z".parse().unwrap());
        let page = metrics.page().unwrap();
        for line in [
            r#"pomerium_build_info{service="proxy",version="0.1.0",revision="abc"} 1"#,
            r#"pomerium_http_server_requests_total{host="a"} 1"#,
            r#"pomerium_config_last_reload_success{service="proxy"} 1"#,
            r#"pomerium_config_last_reload_success_timestamp{service="proxy"} 1767225600"#,
            r#"pomerium_config_checksum_decimal{service="proxy",config="local"} 12"#,
            r#"pomerium_policy_count_total{service="proxy"} 3"#,
        ] {
            assert!(page.contains(line), "{line} is missing in\n{page}");
        }
        config.refused();
        let page = metrics.page().unwrap();
        assert!(page.contains(r#"pomerium_config_last_reload_success{service="proxy"} 0"#));
        assert!(
            page.contains("timestamp{service=\"proxy\"} 1767225600"),
            "the time stays"
        );
    }

    #[test]
    fn certificates_tell_when_they_end_and_go_when_they_are_replaced() {
        let metrics = Metrics::default();
        let config = ConfigMetrics::new(&metrics, "proxy");
        let name = "postern_certificate_not_after_timestamp_seconds";
        config.certificates([("old.test", 1), ("*.corp.test", 1_767_225_600)]);
        let page = metrics.page().unwrap();
        let line = format!("{name}{{service=\"proxy\",name=\"*.corp.test\"}} 1767225600");
        assert!(page.contains(&line), "{page}");
        config.certificates([("*.corp.test", 1_767_225_601)]);
        let page = metrics.page().unwrap();
        assert!(
            page.contains("1767225601") && !page.contains("old.test"),
            "{page}"
        );
    }

    #[test]
    fn the_page_needs_its_credentials() {
        let metrics = Metrics::default();
        let auth = BasicAuth::new("scraper", "pass:word");
        let ask = |value: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            }
            answer(&metrics, Some(&auth), "/metrics", &headers).status()
        };
        assert_eq!(ask(None), StatusCode::UNAUTHORIZED);
        assert_eq!(ask(Some("Basic")), StatusCode::UNAUTHORIZED);
        assert_eq!(
            ask(Some("Basic c2NyYXBlcjpwYXNz")),
            StatusCode::UNAUTHORIZED
        );
        assert_eq!(ask(Some("Basic c2NyYXBlcjpwYXNzOndvcmQ=")), StatusCode::OK);
        assert_eq!(ask(Some("basic c2NyYXBlcjpwYXNzOndvcmQ=")), StatusCode::OK);
        let open = answer(&metrics, None, "/metrics", &HeaderMap::new());
        assert_eq!(open.status(), StatusCode::OK);
        let kind = open.headers().get(header::CONTENT_TYPE).unwrap();
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
        let other = answer(&metrics, None, "/metrics/envoy", &HeaderMap::new());
        assert_eq!(other.status(), StatusCode::NOT_FOUND);
    }
}
