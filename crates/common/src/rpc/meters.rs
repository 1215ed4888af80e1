//! What is counted for each endpoint. The series of an endpoint go when it does, so their number
//! follows DNS, which is bounded.

use std::net::SocketAddr;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::endpoint::State;
use crate::telemetry::metrics::{Labels, Metrics};

const SECONDS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 1.0, 5.0,
];

const STATES: [&str; 4] = ["connecting", "ready", "refusing", "unreachable"];

#[derive(Debug, Clone, Copy)]
struct Seconds;

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(SECONDS)
    }
}

/// The families of all endpoints of a process.
#[derive(Debug, Clone)]
pub(super) struct Meters {
    answered: Family<Labels, Counter>,
    failed: Family<Labels, Counter>,
    left_out: Family<Labels, Counter>,
    seconds: Family<Labels, Histogram, Seconds>,
    state: Family<Labels, Gauge>,
}

impl Default for Meters {
    fn default() -> Self {
        Self {
            answered: Family::default(),
            failed: Family::default(),
            left_out: Family::default(),
            seconds: Family::new_with_constructor(Seconds),
            state: Family::default(),
        }
    }
}

impl Meters {
    /// Registers them.
    pub(super) fn new(metrics: &Metrics) -> Self {
        let all = Self::default();
        Self {
            answered: metrics.add(
                "postern_rpc_endpoint_answers",
                "Calls and decisions that an endpoint answered",
                all.answered,
            ),
            failed: metrics.add(
                "postern_rpc_endpoint_failures",
                "Calls that broke there, or that another endpoint answered sooner",
                all.failed,
            ),
            left_out: metrics.add(
                "postern_rpc_endpoint_ejections",
                "Times that an endpoint was left out because its calls failed",
                all.left_out,
            ),
            seconds: metrics.add(
                "postern_rpc_endpoint_seconds",
                "Time to the begin of an answer",
                all.seconds,
            ),
            state: metrics.add(
                "postern_rpc_endpoint_state",
                "1 for the state that an endpoint is in",
                all.state,
            ),
        }
    }

    pub(super) fn of(&self, service: &str, address: SocketAddr) -> EndpointMeters {
        let labels = labels(service, address);
        EndpointMeters {
            answered: self.answered.get_or_create_owned(&labels),
            failed: self.failed.get_or_create_owned(&labels),
            left_out: self.left_out.get_or_create_owned(&labels),
            seconds: self.seconds.get_or_create_owned(&labels),
            states: STATES.map(|state| {
                let labels = with_state(&labels, state);
                self.state.get_or_create_owned(&labels)
            }),
        }
    }

    /// The endpoint is gone.
    pub(super) fn forget(&self, service: &str, address: SocketAddr) {
        let labels = labels(service, address);
        self.answered.remove(&labels);
        self.failed.remove(&labels);
        self.left_out.remove(&labels);
        self.seconds.remove(&labels);
        for state in STATES {
            self.state.remove(&with_state(&labels, state));
        }
    }
}

fn labels(service: &str, address: SocketAddr) -> Labels {
    vec![
        ("service", service.to_owned()),
        ("endpoint", address.to_string()),
    ]
}

fn with_state(labels: &Labels, state: &str) -> Labels {
    let mut labels = labels.clone();
    labels.push(("state", state.to_owned()));
    labels
}

/// Those of one endpoint.
#[derive(Debug)]
pub(super) struct EndpointMeters {
    answered: Counter,
    failed: Counter,
    left_out: Counter,
    seconds: Histogram,
    states: [Gauge; 4],
}

impl EndpointMeters {
    pub(super) fn answered(&self, took: Duration) {
        self.answered.inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub(super) fn failed(&self) {
        self.failed.inc();
    }

    pub(super) fn left_out(&self) {
        self.left_out.inc();
    }

    pub(super) fn state(&self, state: &State) {
        let now = match state {
            State::Connecting { .. } | State::Probing { .. } => "connecting",
            State::Ready => "ready",
            State::Refusing { .. } => "refusing",
            State::Waiting { .. } => "unreachable",
        };
        for (name, gauge) in STATES.iter().zip(&self.states) {
            gauge.set(i64::from(*name == now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_its_series_until_it_goes() {
        let metrics = Metrics::default();
        let meters = Meters::new(&metrics);
        let address: SocketAddr = "10.0.0.1:443".parse().unwrap();
        let one = meters.of("pomerium-authorize", address);
        one.answered(Duration::from_millis(2));
        one.failed();
        one.state(&State::Ready);
        let page = metrics.page().unwrap();
        let labels = r#"service="pomerium-authorize",endpoint="10.0.0.1:443""#;
        for line in [
            format!("postern_rpc_endpoint_answers_total{{{labels}}} 1"),
            format!("postern_rpc_endpoint_failures_total{{{labels}}} 1"),
            format!("postern_rpc_endpoint_seconds_count{{{labels}}} 1"),
            format!(r#"postern_rpc_endpoint_state{{{labels},state="ready"}} 1"#),
            format!(r#"postern_rpc_endpoint_state{{{labels},state="refusing"}} 0"#),
        ] {
            assert!(page.contains(&line), "{line} is missing in\n{page}");
        }
        meters.forget("pomerium-authorize", address);
        assert!(!metrics.page().unwrap().contains("10.0.0.1"));
    }
}
