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

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;

use super::side_server::{self, Answer, Security, SideServer, SideServerError};
use super::{Lifecycle, PartStatus, Phase, runtimes};

/// Where the health endpoints listen unless `health_check_addr` says otherwise.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:28080";

/// The health endpoints, running on a thread of their own.
#[derive(Debug, Clone)]
pub struct Health {
    address: SocketAddr,
}

impl Health {
    /// Binds `address` and serves until the process stops.
    pub fn start(lifecycle: &Lifecycle, address: SocketAddr) -> Result<Self, SideServerError> {
        let watched = lifecycle.clone();
        let server = SideServer {
            name: "health",
            key: "health_check_addr",
            address,
            security: Security::ClearText,
        };
        let address = side_server::start(server, lifecycle.stopping(), move |request| {
            let lifecycle = watched.clone();
            async move { answer(request.uri().path(), &lifecycle).await }
        })?;
        Ok(Self { address })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[derive(Debug, Serialize)]
struct Status {
    phase: String,
    statuses: BTreeMap<String, PartStatus>,
    checks: Vec<String>,
}

async fn answer(path: &str, lifecycle: &Lifecycle) -> Answer {
    let phase = lifecycle.phase();
    let mut parts = statuses(lifecycle);
    let good = match path {
        "/startupz" => lifecycle.parts().started(),
        "/readyz" => {
            let stuck = lifecycle.runtimes().stuck().await;
            let alive = stuck.is_empty();
            parts.extend(stuck.iter().map(|name| does_not_turn(name)));
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

/// A stuck runtime, as a part.
fn does_not_turn(name: &str) -> (String, PartStatus) {
    let part = PartStatus {
        status: "RUNNING",
        required: true,
        since: jiff::Timestamp::now(),
        error: Some(format!("does not answer within {:?}", runtimes::ANSWER)),
        attributes: BTreeMap::new(),
    };
    (format!("runtime.{name}"), part)
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => side_server::with_type(status, "application/json", Bytes::from(body)),
        Err(_) => side_server::text(StatusCode::INTERNAL_SERVER_ERROR, "status not printable\n"),
    }
}
