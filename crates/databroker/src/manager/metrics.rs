//! What the manager tells about itself; names as in Pomerium where it has them.

use jiff::Timestamp;
use postern_common::telemetry::metrics::{Labels, Metrics};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::job::Outcome;
use super::schedule::Task;

/// Gauges throughout: the names end as they do in Pomerium, without the `_total` of counters.
#[derive(Debug, Clone)]
pub struct ManagerMetrics {
    service: Labels,
    session: Attempts,
    user: Attempts,
    last_refresh: Family<Labels, Gauge>,
    active: Family<Labels, Gauge>,
    sessions: Family<Labels, Gauge>,
}

#[derive(Debug, Clone)]
struct Attempts {
    success: Family<Labels, Gauge>,
    success_timestamp: Family<Labels, Gauge>,
    errors: Family<Labels, Gauge>,
    error_timestamp: Family<Labels, Gauge>,
}

impl Attempts {
    fn new(metrics: &Metrics, what: &str) -> Self {
        let add = |name: &str, help: &str| {
            metrics.add(
                &format!("pomerium_identity_manager_last_{what}_refresh_{name}"),
                &format!("{help} of a {what}"),
                Family::default(),
            )
        };
        Self {
            success: add("success", "Number of successful refreshes"),
            success_timestamp: add("success_timestamp", "Time of the last successful refresh"),
            errors: add("errors", "Number of failed refreshes"),
            error_timestamp: add("error_timestamp", "Time of the last failed refresh"),
        }
    }

    fn succeeded(&self, service: &Labels, now: Timestamp) {
        self.success.get_or_create(service).inc();
        self.success_timestamp
            .get_or_create(service)
            .set(now.as_second());
    }

    fn failed(&self, service: &Labels, now: Timestamp) {
        self.errors.get_or_create(service).inc();
        self.error_timestamp
            .get_or_create(service)
            .set(now.as_second());
    }
}

impl ManagerMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics, service: &str) -> Self {
        Self {
            service: vec![("service", service.to_owned())],
            session: Attempts::new(metrics, "session"),
            user: Attempts::new(metrics, "user"),
            last_refresh: metrics.add(
                "pomerium_identity_manager_last_refresh_timestamp",
                "Time of the last refresh, whatever came of it",
                Family::default(),
            ),
            active: metrics.add(
                "postern_identity_manager_active",
                "1 where the identity manager runs, 0 where it waits for the lease",
                Family::default(),
            ),
            sessions: metrics.add(
                "postern_identity_manager_sessions",
                "Number of sessions that the identity manager looks after",
                Family::default(),
            ),
        }
    }

    /// Whether this process is the one that works.
    pub(crate) fn active(&self, active: bool) {
        self.active.get_or_create(&self.service).set(active.into());
        if !active {
            self.sessions(0);
        }
    }

    pub(crate) fn sessions(&self, number: usize) {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        self.sessions.get_or_create(&self.service).set(number);
    }

    pub(crate) fn finished(&self, task: Task, outcome: &Outcome, now: Timestamp) {
        let attempts = match task {
            Task::Refresh => &self.session,
            Task::UserInfo => &self.user,
            Task::Expire => return,
        };
        self.last_refresh
            .get_or_create(&self.service)
            .set(now.as_second());
        match outcome {
            Outcome::Done { .. } => attempts.succeeded(&self.service, now),
            Outcome::Failed { .. } | Outcome::RefreshNow => attempts.failed(&self.service, now),
            Outcome::Later(_) | Outcome::Gone => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_in_pomerium() {
        let metrics = Metrics::default();
        let manager = ManagerMetrics::new(&metrics, "postern-databroker");
        let now = Timestamp::from_second(1_767_225_600).unwrap();
        manager.finished(Task::Refresh, &Outcome::Done { facts: None }, now);
        manager.finished(Task::UserInfo, &Outcome::Failed { wish: None }, now);
        let page = metrics.page().unwrap();
        for line in [
            "pomerium_identity_manager_last_session_refresh_success{service=\"postern-databroker\"} 1",
            "pomerium_identity_manager_last_user_refresh_errors{service=\"postern-databroker\"} 1",
            "pomerium_identity_manager_last_user_refresh_error_timestamp{service=\"postern-databroker\"} 1767225600",
        ] {
            assert!(page.contains(line), "{line}\n{page}");
        }
    }
}
