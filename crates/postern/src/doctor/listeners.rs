//! The ports that this process would listen on: free, or held by Postern already. Nothing is ever
//! listened on here.

use std::net::SocketAddr;
use std::time::Duration;

use postern_common::config::Config;
use postern_common::net::connect::connect;
use postern_common::net::listen::{ListenError, try_port};
use serde_json::Value;
use url::Url;

use super::code;
use super::finding::{Cause, Check, Finding};
use super::reach::{Question, ask};

/// The health listener is on this host.
const NEAR: Duration = Duration::from_secs(1);

pub async fn check(config: &Config) -> Vec<Finding> {
    let listen = &config.listen;
    let wanted = [
        ("address", listen.public),
        ("grpc_address", listen.grpc),
        ("http_redirect_addr", listen.http_redirect),
        (
            "metrics_address",
            config.metrics.as_ref().map(|it| it.address),
        ),
        ("health_check_addr", Some(listen.health)),
    ];
    let tried: Vec<_> = wanted
        .into_iter()
        .filter_map(|(key, address)| Some((key, address?, try_port(key, address?))))
        .collect();
    // It holds its ports itself.
    let taken = |tried: &Result<(), ListenError>| matches!(tried, Err(ListenError::Taken { .. }));
    let runs = tried.iter().any(|(_, _, tried)| taken(tried)) && is_postern(listen.health).await;
    tried
        .into_iter()
        .map(|(key, address, outcome)| {
            let held = runs && taken(&outcome);
            one(key, address, outcome, held)
        })
        .collect()
}

fn one(
    key: &'static str,
    address: SocketAddr,
    outcome: Result<(), ListenError>,
    held: bool,
) -> Finding {
    let subject = address.to_string();
    let cause = match outcome {
        Ok(()) => return Finding::ok(Check::Listeners, subject, "is free").key(key),
        Err(_) if held => {
            return Finding::ok(
                Check::Listeners,
                subject,
                "is held by the Postern that runs here",
            )
            .key(key);
        }
        Err(ListenError::Taken { .. }) => Cause::new(
            code::PORT_TAKEN,
            "the port is taken, and no Postern answers on `health_check_addr`",
        )
        .help("stop what listens there (`ss -tlnp` names it), or choose another port"),
        Err(ListenError::Forbidden { .. }) => {
            Cause::new(code::PORT_FORBIDDEN, "no right to listen on this port").help(
                "ports below 1024 need CAP_NET_BIND_SERVICE: give it to the process, or choose a \
                 port above 1023",
            )
        }
        Err(ListenError::Other { source, .. }) => Cause::new(
            code::ADDRESS_NOT_HERE,
            format!("nothing can listen there: {source}"),
        )
        .help("write an address of this host, or leave the host out to listen on all"),
    };
    Finding::error(Check::Listeners, subject, cause).key(key)
}

/// Whether a Postern answers on the health listener.
async fn is_postern(mut health: SocketAddr) -> bool {
    if health.ip().is_unspecified() {
        health.set_ip([127, 0, 0, 1].into());
    }
    let Ok(url) = Url::parse(&format!("http://{health}/status")) else {
        return false;
    };
    let Ok(stream) = connect(health, None, NEAR).await else {
        return false;
    };
    let Ok(answer) = ask(stream, Question::get(&url)).await else {
        return false;
    };
    let status: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    status.get("phase").is_some_and(Value::is_string)
        && status.get("statuses").is_some_and(Value::is_object)
}
