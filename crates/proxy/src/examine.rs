//! How the proxy speaks TLS with others, for whoever wants to try a connection without it.

use postern_common::config::UpstreamTls;
use postern_common::net::connect::ClientTls;
use postern_common::telemetry::log::chain;
use postern_common::tls::Trust;
use url::Url;

use crate::upstream::tls::{Names, UpstreamConnector, UpstreamTlsError};

/// With an endpoint of a route on `host`.
pub fn upstream_tls(host: &str, tls: &UpstreamTls, trust: &Trust) -> Result<ClientTls, String> {
    told(UpstreamConnector::new(host, tls, Names::One, trust))
}

/// With authenticate at `internal`, which browsers know as `external`.
pub fn authenticate_tls(
    internal: &Url,
    external: &Url,
    trust: &Trust,
) -> Result<ClientTls, String> {
    let host = internal.host_str().unwrap_or_default();
    let tls = UpstreamTls {
        server_name: external.host_str().map(str::to_owned),
        ..UpstreamTls::default()
    };
    told(UpstreamConnector::new(host, &tls, Names::OrHost, trust))
}

fn told(made: Result<UpstreamConnector, UpstreamTlsError>) -> Result<ClientTls, String> {
    let connector = made.map_err(|error| chain(&error))?;
    Ok(ClientTls {
        config: connector.any,
        name: connector.name,
    })
}
