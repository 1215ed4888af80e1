//! The certificates of our own listeners: how long they hold, and which hosts have none. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use postern_common::config::{
    Config, FromScheme, GrpcListenerSecurity, ServerCertificate, ServerTls, Service,
};
use postern_common::tls::certificates::{Certificates, Choice, Facts};

use super::code;
use super::finding::{Cause, Check, Finding, Level};

/// Time enough for somebody to renew it by hand.
const SOON: SignedDuration = SignedDuration::from_hours(14 * 24);
/// Short-lived ones are renewed by a machine, with at least this part of their life left.
const SHARE: i32 = 5;

pub fn check(config: &Config, now: Timestamp) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for certificate in listeners(config) {
        if seen.insert(&certificate.origin) {
            findings.push(lasts(certificate, now));
        }
    }
    findings.extend(missing(config));
    findings
}

fn listeners(config: &Config) -> impl Iterator<Item = &Arc<ServerCertificate>> {
    let public = match &config.server_tls {
        ServerTls::Certificates(list) if config.listen.public.is_some() => list.as_slice(),
        _ => &[],
    };
    let grpc = match &config.grpc.listener {
        GrpcListenerSecurity::Tls(list) if config.listen.grpc.is_some() => list.as_slice(),
        _ => &[],
    };
    let metrics = config.metrics.iter().filter_map(|metrics| {
        let tls = metrics.tls.as_ref()?;
        Some(&tls.certificate)
    });
    public.iter().chain(grpc).chain(metrics)
}

fn lasts(certificate: &ServerCertificate, now: Timestamp) -> Finding {
    let subject = certificate.origin.as_str();
    let found = |level, cause| {
        Finding::new(level, Check::Certificates, subject, cause).key("certificate_file")
    };
    let facts = certificate.key.cert.first().map(Facts::of);
    let Some(Ok(facts)) = facts else {
        let cause = Cause::new(code::CERTIFICATE_REFUSED, "it cannot be read");
        return found(Level::Error, cause);
    };
    if now > facts.not_after {
        let message = format!("it has expired on {}", facts.not_after);
        let cause = Cause::new(code::CERTIFICATE_EXPIRED, message)
            .help("renew it; a running process takes the new file over by itself");
        return found(Level::Error, cause);
    }
    if now < facts.not_before {
        let message = format!("it is not valid before {}", facts.not_before);
        let cause = Cause::new(code::CERTIFICATE_NOT_YET_VALID, message)
            .help("wait, or set the clock of this host");
        return found(Level::Error, cause);
    }
    let left = facts.not_after.duration_since(now);
    let life = facts.not_after.duration_since(facts.not_before);
    if left < SOON && left < life / SHARE {
        let message = format!("it expires on {}", facts.not_after);
        let cause = Cause::new(code::CERTIFICATE_EXPIRES_SOON, message)
            .help("renew it, and look why whoever renews it has not");
        return found(Level::Warning, cause);
    }
    let message = format!(
        "holds until {} for {}",
        facts.not_after,
        facts.names.join(", ")
    );
    Finding::ok(Check::Certificates, subject, message)
}

/// Hosts that browsers would be shown another's certificate for.
fn missing(config: &Config) -> Vec<Finding> {
    let ServerTls::Certificates(list) = &config.server_tls else {
        return Vec::new();
    };
    if config.listen.public.is_none() || list.iter().any(|it| it.self_signed) {
        return Vec::new();
    }
    let certificates = Certificates::new(
        list.iter()
            .map(|certificate| (certificate.names.as_slice(), Arc::clone(&certificate.key))),
    );
    let routes = config.routes.iter().filter(|route| {
        config.services.contains(Service::Proxy)
            && !route.from.is_wildcard()
            && !matches!(route.from.scheme, FromScheme::Http)
    });
    let routes = routes.map(|route| (route.from.host.as_str(), route.from.text.as_str()));
    let authenticate = config.urls.authenticate.host_str();
    let authenticate = authenticate
        .filter(|_| config.urls.authenticate.scheme() == "https")
        .map(|host| (host, "authenticate_service_url"));
    let mut told = BTreeSet::new();
    let mut findings = Vec::new();
    for (host, key) in authenticate.into_iter().chain(routes) {
        let chosen = certificates.choose(Some(host), |_| true);
        let covered = chosen.is_some_and(|(_, choice)| choice != Choice::First);
        if covered || !told.insert(host) {
            continue;
        }
        let cause = Cause::new(
            code::CERTIFICATE_MISSING,
            "no certificate is for this host: browsers would refuse the one that they are shown",
        )
        .help("add a certificate with this name, or one with a wildcard for its domain, to `certificates`");
        findings.push(Finding::error(Check::Certificates, host, cause).key(key.to_owned()));
    }
    findings
}
