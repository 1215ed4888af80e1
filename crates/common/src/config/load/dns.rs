//! `dns_*`

use std::time::Duration;

use super::super::diagnostic::{Diagnostic, code};
use super::super::options::{DnsOptions, DnsServer, DnsTransport, LookupFamily};
use super::super::place::At;
use super::reader::{Load, Section};

pub fn dns(load: &mut Load<'_>, root: Section<'_>) -> DnsOptions {
    let default = DnsOptions::default();
    let family = root.choice(
        load,
        "dns_lookup_family",
        &[
            ("auto", LookupFamily::Auto),
            ("v4_only", LookupFamily::V4Only),
            ("v6_only", LookupFamily::V6Only),
            ("v4_preferred", LookupFamily::V4Preferred),
            ("all", LookupFamily::All),
        ],
    );
    let refresh_rate = rate(load, root, "dns_refresh_rate").unwrap_or(default.refresh_rate);
    let failure = rate(load, root, "dns_failure_refresh_rate").unwrap_or(refresh_rate);
    let tries = root.number::<u32>(load, "dns_query_tries");
    let servers = root.list(load, "dns_resolvers").unwrap_or_default();
    DnsOptions {
        lookup_family: family.unwrap_or(default.lookup_family),
        refresh_rate,
        failure_refresh_rate: failure,
        query_timeout: rate(load, root, "dns_query_timeout").unwrap_or(default.query_timeout),
        query_tries: tries.map_or(default.query_tries, |tries| tries.value.max(1)),
        transport: if root.flag(load, "dns_use_tcp").unwrap_or(false) {
            DnsTransport::Tcp
        } else {
            default.transport
        },
        resolvers: servers
            .iter()
            .filter_map(|server| resolver(load, server))
            .collect(),
    }
}

fn rate(load: &mut Load<'_>, root: Section<'_>, name: &str) -> Option<Duration> {
    let rate = root.duration(load, name)?;
    if rate < Duration::from_millis(1) {
        if let Some(node) = root.node(name) {
            load.invalid(&node.place, format!("`{name}` must be at least 1ms"));
        }
        return None;
    }
    Some(rate)
}

fn resolver(load: &mut Load<'_>, text: &At<String>) -> Option<DnsServer> {
    let parsed = text
        .value
        .trim()
        .split_once("://")
        .and_then(|(scheme, address)| {
            let transport = match scheme {
                "udp" => DnsTransport::Udp,
                "tcp" => DnsTransport::Tcp,
                _ => return None,
            };
            Some(DnsServer {
                transport,
                address: address.parse().ok()?,
            })
        });
    if parsed.is_none() {
        load.say(
            Diagnostic::error(
                code::INVALID_VALUE,
                format!("`{}` is no name server", text.value),
            )
            .at(&text.place)
            .help("write it like udp://10.0.0.2:53 or tcp://[fd00::2]:53"),
        );
    }
    parsed
}
