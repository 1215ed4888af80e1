//! `postern doctor`: what is wrong with a deployment, as seen from where it runs.
//!
//! Each check looks at one kind of edge and tells what it found; all run at the same time, each has
//! a deadline, and none changes anything.

mod authenticate;
mod cause;
mod certificates;
pub mod code;
mod configuration;
mod consequences;
pub mod finding;
mod host;
mod listeners;
mod peers;
mod provider;
mod reach;
pub mod report;
mod routes;
mod seams;
mod site;
mod storage;
mod upstreams;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use jiff::Timestamp;
use postern_common::config::{Config, Origin, Places, ProcessSecrets, Service, load};
use postern_common::telemetry::log::chain;

use self::finding::{Cause, Check, Finding, Level};
use self::report::Report;
use self::site::Site;

/// Each check ends by then; they run at the same time.
const DEADLINE: Duration = Duration::from_secs(12);

/// Looks at everything that the configuration names.
pub async fn examine(origin: &Origin) -> Report {
    let name = origin.file.as_ref().map_or_else(
        || "the environment".to_owned(),
        |file| file.display().to_string(),
    );
    let loaded = load(origin, &ProcessSecrets::default());
    let mut findings: Vec<_> = loaded
        .diagnostics
        .iter()
        .filter_map(|diagnostic| configuration::finding(&name, diagnostic))
        .collect();
    if let Some(config) = loaded.config {
        findings.extend(deployment(&name, config, Places::of(origin)).await);
    }
    Report::new(name, consequences::without(findings))
}

async fn deployment(name: &str, config: Arc<Config>, places: Places) -> Vec<Finding> {
    let mut findings = Vec::new();
    // What only databroker can read of the configuration.
    if let Err(refusal) = postern_databroker::check(&config) {
        let cause = Cause::new(
            postern_common::config::diagnostic::code::INVALID_VALUE,
            chain(&refusal),
        );
        findings.push(Finding::error(Check::Configuration, name, cause));
    }
    let site = match Site::new(Arc::clone(&config), places) {
        Ok(site) => site,
        Err(error) => {
            let cause = Cause::new(code::NAME_SERVER_SILENT, chain(&error));
            findings.push(Finding::error(Check::Host, "this host", cause));
            return findings;
        }
    };
    if findings.is_empty() {
        let message = match config.routes.len() {
            1 => "is valid, 1 route".to_owned(),
            number => format!("is valid, {number} routes"),
        };
        findings.push(Finding::ok(Check::Configuration, name, message));
    }
    findings.extend(host::check(&config));
    findings.extend(certificates::check(&config, Timestamp::now()));
    findings.extend(seams::unused(&site));
    let checks = checks(&site)
        .into_iter()
        .map(|(check, running)| async move {
            tokio::time::timeout(DEADLINE, running)
                .await
                .unwrap_or_else(|_| vec![unfinished(check)])
        });
    findings.extend(join_all(checks).await.into_iter().flatten());
    for finding in &mut findings {
        place(&site.places, finding);
    }
    findings
}

/// The edges of what this process runs, or would run.
fn checks(site: &Site) -> Vec<(Check, BoxFuture<'_, Vec<Finding>>)> {
    let runs = |service| site.config.services.contains(service);
    let mut checks = vec![(Check::Listeners, listeners::check(&site.config).boxed())];
    let calls = |service| seams::calls(&site.config.services, service);
    if calls(Service::Authorize) {
        checks.push((
            Check::Authorize,
            peers::check(site, Service::Authorize).boxed(),
        ));
    }
    if calls(Service::Authenticate) {
        checks.push((Check::Authenticate, authenticate::check(site).boxed()));
    }
    if calls(Service::Databroker) {
        checks.push((
            Check::Databroker,
            peers::check(site, Service::Databroker).boxed(),
        ));
    }
    if runs(Service::Proxy) {
        checks.push((Check::Routes, routes::check(site).boxed()));
        checks.push((Check::Upstreams, upstreams::check(site).boxed()));
    }
    if runs(Service::Authorize) || runs(Service::Authenticate) || runs(Service::Databroker) {
        checks.push((Check::Provider, provider::check(site).boxed()));
    }
    if runs(Service::Databroker) {
        checks.push((Check::Storage, storage::check(site).boxed()));
    }
    checks
}

fn unfinished(check: Check) -> Finding {
    let message = format!("this check did not end within {DEADLINE:?}");
    let cause = Cause::new(code::UNFINISHED, message)
        .help("what it looks at does not answer: look at it by itself, or run doctor elsewhere");
    Finding::new(Level::Error, check, check.to_string(), cause)
}

/// Tells where the key stands, or the route.
fn place(places: &Places, finding: &mut Finding) {
    if finding.place.is_some() {
        return;
    }
    let place = finding
        .key
        .as_deref()
        .and_then(|key| places.key(key).or_else(|| places.route(key)));
    finding.place = place.map(ToString::to_string);
}
