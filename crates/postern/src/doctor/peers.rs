//! authorize and databroker: every address behind their URLs, asked as their clients ask.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::StreamExt as _;
use postern_common::config::Service;
use postern_common::rpc::discovery::Target;
use postern_common::rpc::fault::PeerFault;
use postern_common::rpc::look::{Peer, look_at};
use postern_common::telemetry::log::chain;
use postern_common::tls::{self, Alpn};

use super::cause::is_outage;
use super::code;
use super::finding::{Cause, Check, Finding, Level};
use super::site::{AT_ONCE, Site, clock};

/// What names authorize.
pub const AUTHORIZE_KEYS: [&str; 3] = [
    "authorize_service_url",
    "authorize_service_urls",
    "authorize_internal_service_url",
];
/// What names databroker.
pub const DATABROKER_KEYS: [&str; 2] = ["databroker_service_url", "databroker_service_urls"];

/// Who is asked.
struct Asked {
    check: Check,
    /// The name of its health.
    health: &'static str,
    key: &'static str,
}

pub async fn check(site: &Site, service: Service) -> Vec<Finding> {
    let (urls, asked) = match service {
        Service::Authorize => (
            &site.config.urls.authorize,
            Asked {
                check: Check::Authorize,
                health: "pomerium-authorize",
                key: site.set(&AUTHORIZE_KEYS),
            },
        ),
        _ => (
            &site.config.urls.databroker,
            Asked {
                check: Check::Databroker,
                health: "pomerium-databroker",
                key: site.set(&DATABROKER_KEYS),
            },
        ),
    };
    let tls = match tls::client_config(&site.trust, Alpn::H2, None) {
        Ok(tls) => tls,
        Err(error) => {
            let cause = Cause::new(code::TLS_FAILS, chain(&error));
            return vec![Finding::error(asked.check, "TLS", cause).key("certificate_authority")];
        }
    };
    let name = site.config.grpc.override_certificate_name.as_deref();
    let mut findings = Vec::new();
    let mut addresses: BTreeMap<SocketAddr, Arc<Target>> = BTreeMap::new();
    for url in urls {
        let target = match Target::new(url, &tls, name) {
            Ok(target) => Arc::new(target),
            Err(error) => {
                let cause = Cause::new(code::OTHER_PROTOCOL, error.to_string());
                findings.push(Finding::error(asked.check, url.as_str(), cause).key(asked.key));
                continue;
            }
        };
        match site.resolver.lookup(&target.host).await {
            Ok(found) => {
                for ip in found.addresses {
                    let address = SocketAddr::new(ip, target.port);
                    addresses
                        .entry(address)
                        .or_insert_with(|| Arc::clone(&target));
                }
            }
            Err(error) => {
                let cause = Cause::from(&error);
                findings
                    .push(Finding::error(asked.check, target.to_string(), cause).key(asked.key));
            }
        }
    }
    let looking = addresses.into_iter().map(|(address, target)| {
        let keys = site.keys.clone();
        async move { (address, look_at(address, target, asked.health, keys).await) }
    });
    let seen: Vec<_> = futures::stream::iter(looking)
        .buffered(AT_ONCE)
        .collect()
        .await;
    findings.extend(told(&asked, &seen));
    findings
}

fn told(asked: &Asked, seen: &[(SocketAddr, Result<Peer, PeerFault>)]) -> Vec<Finding> {
    let mut findings: Vec<_> = seen
        .iter()
        .flat_map(|(address, peer)| one(asked, &address.to_string(), peer))
        .collect();
    // What one does not do another does.
    if findings.iter().any(|finding| finding.level == Level::Ok) {
        for finding in &mut findings {
            if is_outage(finding.code) {
                finding.level = Level::Warning;
            }
        }
    }
    findings.extend(split(asked, seen));
    findings
}

fn one(asked: &Asked, subject: &str, peer: &Result<Peer, PeerFault>) -> Vec<Finding> {
    let peer = match peer {
        Ok(peer) => peer,
        Err(fault) => {
            let finding = Finding::error(asked.check, subject, fault.into());
            return vec![finding.key(match fault {
                PeerFault::Secrets(_) => "shared_secret",
                _ => asked.key,
            })];
        }
    };
    let ours = env!("CARGO_PKG_VERSION");
    let version = peer.version.as_deref();
    let other_version = version.filter(|version| *version != ours).map(|version| {
        let message = format!("it runs version {version}, this is {ours}");
        let cause = Cause::new(code::VERSIONS_DIFFER, message)
            .help("that works during an upgrade, and should not last: finish it, or take it back");
        Finding::warning(asked.check, subject, cause).key(asked.key)
    });
    let not_ready = (!peer.serves).then(|| {
        let message = "it answers, and says that it is not ready";
        let cause = Cause::new(code::NOT_READY, message)
            .help("its /status on `health_check_addr` and its log tell what it waits for");
        Finding::error(asked.check, subject, cause).key(asked.key)
    });
    let clock = clock(asked.check, subject, peer.clock);
    let wrong: Vec<_> = other_version
        .into_iter()
        .chain(not_ready)
        .chain(clock)
        .collect();
    if !wrong.is_empty() {
        return wrong;
    }
    let message = match version {
        Some(version) => format!("takes calls, version {version}"),
        None => "takes calls".to_owned(),
    };
    vec![Finding::ok(asked.check, subject, message).key(asked.key)]
}

/// Databrokers that do not share their records.
fn split(asked: &Asked, seen: &[(SocketAddr, Result<Peer, PeerFault>)]) -> Option<Finding> {
    let mut holders: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for (address, peer) in seen {
        if let Ok(Peer {
            records: Some(records),
            ..
        }) = peer
        {
            holders
                .entry(*records)
                .or_default()
                .push(address.to_string());
        }
    }
    if holders.len() < 2 {
        return None;
    }
    let sides: Vec<_> = holders.into_values().map(|side| side.join(", ")).collect();
    let cause = Cause::new(
        code::SPLIT_BRAIN,
        "split brain: databrokers under one name have different records, so people are signed in \
         at one and not at the other",
    )
    .help(
        "let all of them use one Postgres: memory and file storage belong to one process alone \
         (`databroker_storage_type`, `databroker_storage_connection_string`)",
    );
    Some(Finding::error(asked.check, sides.join(" | "), cause).key(asked.key))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked = Asked {
        check: Check::Databroker,
        health: "pomerium-databroker",
        key: "databroker_service_url",
    };

    fn peer() -> Peer {
        Peer {
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            records: Some(7),
            clock: None,
            serves: true,
        }
    }

    fn all(peers: Vec<Result<Peer, PeerFault>>) -> Vec<Finding> {
        let addresses = (1_u16..).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let seen: Vec<_> = addresses.zip(peers).collect();
        told(&ASKED, &seen)
    }

    fn codes(findings: &[Finding]) -> Vec<(Level, Option<&'static str>)> {
        findings
            .iter()
            .map(|finding| (finding.level, finding.code))
            .collect()
    }

    #[test]
    fn an_outage_is_a_warning_while_another_serves() {
        let frozen = || Err(PeerFault::Silent(std::time::Duration::from_secs(2)));
        let warned = codes(&all(vec![Ok(peer()), frozen()]));
        assert_eq!(warned[1], (Level::Warning, Some(code::SILENT)));
        let failed = codes(&all(vec![frozen(), frozen()]));
        assert_eq!(failed, [(Level::Error, Some(code::SILENT)); 2]);
        let secret = || Err(PeerFault::Secrets(String::new()));
        let failed = codes(&all(vec![Ok(peer()), secret()]));
        assert_eq!(failed[1], (Level::Error, Some(code::SECRETS_DIFFER)));
    }

    #[test]
    fn different_records_are_told_once_and_with_both_sides() {
        let other = Peer {
            records: Some(8),
            ..peer()
        };
        let findings = all(vec![Ok(peer()), Ok(other), Ok(peer())]);
        let split = findings.last().unwrap();
        assert_eq!(split.code, Some(code::SPLIT_BRAIN));
        assert_eq!(split.subject, "127.0.0.1:1, 127.0.0.1:3 | 127.0.0.1:2");
        assert_eq!(codes(&all(vec![Ok(peer()), Ok(peer())])).len(), 2);
    }

    #[test]
    fn everything_that_is_wrong_with_one_is_told() {
        let odd = Peer {
            version: Some("0.0.9".to_owned()),
            clock: Some("2020-01-01T00:00:00Z".parse().unwrap()),
            serves: false,
            ..peer()
        };
        let told = codes(&all(vec![Ok(odd)]));
        assert_eq!(
            told,
            [
                (Level::Warning, Some(code::VERSIONS_DIFFER)),
                (Level::Error, Some(code::NOT_READY)),
                (Level::Error, Some(code::CLOCKS_DIFFER)),
            ]
        );
    }
}
