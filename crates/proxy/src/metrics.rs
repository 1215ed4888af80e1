//! Numbers of the data plane, under the names that dashboards know.
//!
//! Labels come from the configuration, never from requests, so their number is bounded.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use postern_common::telemetry::metrics::{Labels, Metrics};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

const MILLISECONDS: [f64; 14] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0,
    30_000.0,
];

#[derive(Debug, Clone, Copy)]
struct Milliseconds;

impl MetricConstructor<Histogram> for Milliseconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(MILLISECONDS)
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct ProxyMetrics {
    requests: Counter,
    classes: [Counter; 5],
    active: Gauge,
    time: Histogram,
    pub connections: Counter,
    pub connections_active: Gauge,
    pub tls_active: Gauge,
    pub tls_failed: Counter,
    pub connections_refused: Counter,
    pub allowed: Counter,
    pub denied: Counter,
    pub undecided: Counter,
    pub shed_under_way: Counter,
    pub shed_undecided: Counter,
    upstream_requests: Family<Labels, Counter>,
    upstream_classes: Family<Labels, Counter>,
    upstream_time: Family<Labels, Histogram, Milliseconds>,
    upstream_connect_fail: Family<Labels, Counter>,
    upstream_timeout: Family<Labels, Counter>,
    upstream_overflow: Family<Labels, Counter>,
    upstream_retry: Family<Labels, Counter>,
}

/// Those of one route, looked up once.
#[derive(Debug)]
pub(crate) struct RouteMetrics {
    stat_name: String,
    requests: Counter,
    classes: [Counter; 5],
    time: Histogram,
    pub connect_fail: Counter,
    pub timeout: Counter,
    pub overflow: Counter,
    pub retry: Counter,
}

impl ProxyMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let ingress = || vec![("envoy_http_conn_manager_prefix", "ingress".to_owned())];
        let counter = |name: &str, help: &str| {
            let family = metrics.add(name, help, Family::<Labels, Counter>::default());
            family.get_or_create(&ingress()).clone()
        };
        let gauge = |name: &str, help: &str| {
            let family = metrics.add(name, help, Family::<Labels, Gauge>::default());
            family.get_or_create(&ingress()).clone()
        };
        let classes = metrics.add(
            "envoy_http_downstream_rq_xx",
            "Requests of clients by class of the answer",
            Family::<Labels, Counter>::default(),
        );
        let class = |class: usize| {
            let mut labels = ingress();
            labels.push(("envoy_response_code_class", class.to_string()));
            classes.get_or_create(&labels).clone()
        };
        let times = metrics.add(
            "envoy_http_downstream_rq_time",
            "Requests of clients, milliseconds to the last byte",
            Family::<Labels, Histogram, Milliseconds>::new_with_constructor(Milliseconds),
        );
        Self {
            requests: counter("envoy_http_downstream_rq", "Requests of clients"),
            classes: [class(1), class(2), class(3), class(4), class(5)],
            active: gauge("envoy_http_downstream_rq_active", "Requests under way"),
            time: times.get_or_create(&ingress()).clone(),
            connections: counter("envoy_http_downstream_cx", "Connections of clients"),
            connections_active: gauge("envoy_http_downstream_cx_active", "Open connections"),
            tls_active: gauge(
                "envoy_http_downstream_cx_ssl_active",
                "Open TLS connections",
            ),
            tls_failed: counter(
                "envoy_listener_ssl_connection_error",
                "TLS handshakes that failed",
            ),
            connections_refused: counter(
                "envoy_listener_downstream_cx_overflow",
                "Connections closed because there are too many",
            ),
            allowed: counter("envoy_http_ext_authz_ok", "Decisions that allowed"),
            denied: counter("envoy_http_ext_authz_denied", "Decisions that denied"),
            shed_under_way: metrics.add(
                "postern_proxy_requests_shed_under_way",
                "Requests refused because as many were under way as may be",
                Counter::default(),
            ),
            shed_undecided: metrics.add(
                "postern_proxy_requests_shed_undecided",
                "Requests refused because too many waited for a decision",
                Counter::default(),
            ),
            undecided: counter(
                "envoy_http_ext_authz_error",
                "Requests without a decision: 503",
            ),
            upstream_requests: metrics.add(
                "envoy_cluster_upstream_rq",
                "Requests to upstreams",
                Family::default(),
            ),
            upstream_classes: metrics.add(
                "envoy_cluster_upstream_rq_xx",
                "Requests to upstreams by class of the answer",
                Family::default(),
            ),
            upstream_time: metrics.add(
                "envoy_cluster_upstream_rq_time",
                "Requests to upstreams, milliseconds to the last byte",
                Family::new_with_constructor(Milliseconds),
            ),
            upstream_connect_fail: metrics.add(
                "envoy_cluster_upstream_cx_connect_fail",
                "Connections to upstreams that could not be opened",
                Family::default(),
            ),
            upstream_timeout: metrics.add(
                "envoy_cluster_upstream_rq_timeout",
                "Requests to upstreams that took too long",
                Family::default(),
            ),
            upstream_overflow: metrics.add(
                "envoy_cluster_upstream_rq_pending_overflow",
                "Requests refused because too many are under way",
                Family::default(),
            ),
            upstream_retry: metrics.add(
                "envoy_cluster_upstream_rq_retry",
                "Requests sent once more to another address or connection",
                Family::default(),
            ),
        }
    }

    /// Those of a route. `name` is its name, or `route-<id>`, or `pomerium-…` for our own.
    pub(crate) fn route(&self, name: &str) -> Arc<RouteMetrics> {
        let labels = || vec![("envoy_cluster_name", name.to_owned())];
        let class = |class: usize| {
            let mut labels = labels();
            labels.push(("envoy_response_code_class", class.to_string()));
            self.upstream_classes.get_or_create(&labels).clone()
        };
        Arc::new(RouteMetrics {
            stat_name: name.to_owned(),
            requests: self.upstream_requests.get_or_create(&labels()).clone(),
            classes: [class(1), class(2), class(3), class(4), class(5)],
            time: self.upstream_time.get_or_create(&labels()).clone(),
            connect_fail: self.upstream_connect_fail.get_or_create(&labels()).clone(),
            timeout: self.upstream_timeout.get_or_create(&labels()).clone(),
            overflow: self.upstream_overflow.get_or_create(&labels()).clone(),
            retry: self.upstream_retry.get_or_create(&labels()).clone(),
        })
    }

    pub(crate) fn request_began(&self) {
        self.requests.inc();
        self.active.inc();
    }

    pub(crate) fn request_ended(
        &self,
        status: Option<StatusCode>,
        elapsed: Duration,
        route: Option<&RouteMetrics>,
    ) {
        self.active.dec();
        let milliseconds = elapsed.as_secs_f64() * 1000.0;
        self.time.observe(milliseconds);
        count(&self.classes, status);
        if let Some(route) = route {
            route.requests.inc();
            count(&route.classes, status);
            route.time.observe(milliseconds);
        }
    }
}

impl RouteMetrics {
    pub(crate) fn stat_name(&self) -> &str {
        &self.stat_name
    }
}

fn count(classes: &[Counter; 5], status: Option<StatusCode>) {
    let class = status.map(|status| usize::from(status.as_u16() / 100));
    if let Some(counter) = class.and_then(|class| classes.get(class.checked_sub(1)?)) {
        counter.inc();
    }
}
