//! `/startupz`, `/readyz`, `/healthz` and `/status` on `health_check_addr`.
//!
//! | path | 200 when |
//! |---|---|
//! | `/startupz` | every required part has been ready once or has said what it waits for |
//! | `/readyz` | every required part is ready, no drain has begun, and the runtimes that serve answer |
//! | `/healthz` | this process lives and is not about to stop: a restart would not help |
//! | `/status` | always; the body tells all parts |
//!
//! `/healthz` stays 200 when something outside of the process is down: an orchestrator that
//! restarts on it must not restart every replica because a database went away.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use tokio::runtime::Handle;

use super::side_server::{self, Answer, Security, SideServer, SideServerError};
use super::{Lifecycle, PartStatus, Phase};

/// Where the health endpoints listen unless `health_check_addr` says otherwise.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:28080";

/// A runtime that does not run a trivial task within this time is stuck.
const RUNTIME_ANSWER: Duration = Duration::from_secs(1);

/// The health endpoints, running on a thread of their own.
#[derive(Debug, Clone)]
pub struct Health {
    address: SocketAddr,
    runtimes: Arc<Mutex<Vec<(String, Handle)>>>,
}

impl Health {
    /// Binds `address` and serves until the process stops.
    pub fn start(lifecycle: &Lifecycle, address: SocketAddr) -> Result<Self, SideServerError> {
        let runtimes = Arc::new(Mutex::new(Vec::new()));
        let (watched, seen) = (lifecycle.clone(), Arc::clone(&runtimes));
        let server = SideServer {
            name: "health",
            key: "health_check_addr",
            address,
            security: Security::ClearText,
        };
        let address = side_server::start(server, lifecycle.stopping(), move |request| {
            let (lifecycle, runtimes) = (watched.clone(), Arc::clone(&seen));
            async move { answer(request.uri().path(), &lifecycle, &runtimes).await }
        })?;
        Ok(Self { address, runtimes })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on `/readyz` also asks this runtime for a sign of life.
    pub fn watch_runtime(&self, name: &str, runtime: Handle) {
        let mut runtimes = self.runtimes.lock().unwrap_or_else(PoisonError::into_inner);
        runtimes.push((name.to_owned(), runtime));
    }
}

#[derive(Debug, Serialize)]
struct Status {
    phase: String,
    statuses: BTreeMap<String, PartStatus>,
    checks: Vec<String>,
}

async fn answer(
    path: &str,
    lifecycle: &Lifecycle,
    runtimes: &Mutex<Vec<(String, Handle)>>,
) -> Answer {
    let phase = lifecycle.phase();
    let mut parts = statuses(lifecycle);
    let good = match path {
        "/startupz" => lifecycle.parts().started(),
        "/readyz" => {
            let watched = {
                let runtimes = runtimes.lock().unwrap_or_else(PoisonError::into_inner);
                runtimes.clone()
            };
            let stuck = stuck_runtimes(watched).await;
            let alive = stuck.is_empty();
            parts.extend(stuck);
            alive && lifecycle.is_ready()
        }
        "/healthz" => phase < Phase::Stopping,
        "/status" => {
            let required = parts.iter().filter(|(_, part)| part.required);
            let checks = required.map(|(name, _)| name.clone()).collect();
            let status = Status {
                phase: phase.to_string(),
                statuses: parts,
                checks,
            };
            return json(StatusCode::OK, &status);
        }
        _ => return side_server::text(StatusCode::NOT_FOUND, "not found\n"),
    };
    parts.retain(|_, part| part.required);
    let status = if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    json(status, &parts)
}

fn statuses(lifecycle: &Lifecycle) -> BTreeMap<String, PartStatus> {
    let mut parts = lifecycle.parts().list();
    if lifecycle.phase() > Phase::Running {
        for part in parts.values_mut() {
            part.status = "TERMINATING";
        }
    }
    parts
}

/// Runs a trivial task on each runtime; those that don't answer in time come back as parts.
async fn stuck_runtimes(runtimes: Vec<(String, Handle)>) -> BTreeMap<String, PartStatus> {
    let asked: Vec<_> = runtimes
        .into_iter()
        .map(|(name, runtime)| (name, runtime.spawn(std::future::ready(()))))
        .collect();
    let deadline = tokio::time::Instant::now() + RUNTIME_ANSWER;
    let mut stuck = BTreeMap::new();
    for (name, task) in asked {
        if !matches!(tokio::time::timeout_at(deadline, task).await, Ok(Ok(()))) {
            let part = PartStatus {
                status: "RUNNING",
                required: true,
                since: jiff::Timestamp::now(),
                error: Some(format!("does not answer within {RUNTIME_ANSWER:?}")),
                attributes: BTreeMap::new(),
            };
            stuck.insert(format!("runtime.{name}"), part);
        }
    }
    stuck
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => side_server::with_type(status, "application/json", Bytes::from(body)),
        Err(_) => side_server::text(StatusCode::INTERNAL_SERVER_ERROR, "status not printable\n"),
    }
}
