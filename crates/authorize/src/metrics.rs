//! What authorize counts; names as in Pomerium where it counts the same.

use postern_common::telemetry::metrics::Labels;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use std::time::Duration;

/// All metrics of authorize; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub evaluations: Counter,
    pub allowals: Counter,
    pub denials: Counter,
    /// Milliseconds.
    pub evaluation_duration: Histogram,
    pub header_evaluations: Counter,
    pub header_evaluation_duration: Histogram,
    /// Questions that could not be decided.
    pub errors: Counter,
    /// Questions of Envoys beyond as many as may be under way.
    pub ext_authz_shed: Counter,
    pub bearer_created: Counter,
    pub bearer_cached: Counter,
    /// Records asked for one by one, because the copy did not have them.
    pub lookups: Counter,
    pub record_version: Gauge,
    pub sync: Counter,
    pub sync_failures: Counter,
    pub sync_latest: Counter,
    pub sync_latest_failures: Counter,
    /// Seconds.
    pub data_age: Gauge<f64, std::sync::atomic::AtomicU64>,
    /// 1 while databrokers keep different data.
    pub split: Gauge,
    /// Bytes of headers that we add, for routes where they have become many.
    pub large_headers: Family<Labels, Gauge>,
    /// Distinct configurations that proxies in contact run.
    pub configurations: Gauge,
}

impl Metrics {
    pub fn new(metrics: &postern_common::telemetry::metrics::Metrics) -> Self {
        let milliseconds = || Histogram::new(exponential_buckets(0.001, 4.0, 10));
        let count = |name: &str, help: &str| metrics.add(name, help, Counter::default());
        Self {
            evaluations: count(
                "pomerium_authorize_evaluator_evaluations",
                "Requests that were decided about",
            ),
            allowals: count(
                "pomerium_authorize_evaluator_allowals",
                "Requests that may pass",
            ),
            denials: count(
                "pomerium_authorize_evaluator_denials",
                "Requests that may not pass",
            ),
            evaluation_duration: metrics.add(
                "pomerium_authorize_evaluator_evaluation_duration",
                "Time to decide, in milliseconds",
                milliseconds(),
            ),
            header_evaluations: count(
                "pomerium_authorize_header_evaluator_evaluations",
                "Requests whose headers for the upstream were made",
            ),
            header_evaluation_duration: metrics.add(
                "pomerium_authorize_header_evaluator_evaluation_duration",
                "Time to make headers for the upstream, in milliseconds",
                milliseconds(),
            ),
            errors: count(
                "postern_authorize_undecided",
                "Requests that could not be decided about and got 503",
            ),
            ext_authz_shed: count(
                "postern_authorize_ext_authz_shed",
                "Questions of Envoys that got 503 at once, as others were under way",
            ),
            bearer_created: count(
                "pomerium_config_idp_token_session_creator_sessions_created",
                "Sessions made from a provider's token",
            ),
            bearer_cached: count(
                "pomerium_config_idp_token_session_creator_sessions_cached",
                "Requests with a provider's token whose session was there already",
            ),
            lookups: count(
                "postern_authorize_record_lookups",
                "Records asked for one by one, because the copy did not have them",
            ),
            record_version: metrics.add(
                "pomerium_databroker_syncer_latest_record_version",
                "Newest change of the databroker that arrived here",
                Gauge::default(),
            ),
            sync: count(
                "pomerium_databroker_syncer_sync",
                "Streams of changes begun",
            ),
            sync_failures: count(
                "pomerium_databroker_syncer_sync_failures",
                "Streams of changes that broke",
            ),
            sync_latest: count(
                "pomerium_databroker_syncer_sync_latest",
                "Copies of all records begun",
            ),
            sync_latest_failures: count(
                "pomerium_databroker_syncer_sync_latest_failures",
                "Copies of all records that failed",
            ),
            data_age: metrics.add(
                "postern_authorize_data_age_seconds",
                "Time since the databroker said that the copy has everything",
                Gauge::default(),
            ),
            split: metrics.add(
                "postern_authorize_databrokers_disagree",
                "1 while the databrokers behind the one name keep different data, else 0",
                Gauge::default(),
            ),
            large_headers: metrics.add(
                "postern_authorize_large_headers_bytes",
                "Headers added for the upstream, where they were large: the last size, by route",
                Family::default(),
            ),
            configurations: metrics.add(
                "postern_authorize_configurations",
                "Different configurations of the proxies in contact",
                Gauge::default(),
            ),
        }
    }
}

/// A duration as the histograms count it.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
