//! The upstreams of routes: name, TCP, TLS as the route has it, and whether they speak what `to`
//! says.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use futures::{FutureExt as _, StreamExt as _};
use postern_common::config::{UpstreamEndpoint, UpstreamProtocol, UpstreamTls};
use postern_common::net::connect::connect;
use postern_common::net::{ConnectError, Stream};
use postern_common::tls::peer_error::causes;
use postern_proxy::examine::upstream_tls;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::cause::is_outage;
use super::code;
use super::finding::{Cause, Check, Finding, Level};
use super::reach::reach;
use super::site::{ANSWER, AT_ONCE, CONNECT, Site};

/// An endpoint of `to`, and how the first route that has it speaks TLS.
struct Upstream<'a> {
    endpoint: &'a UpstreamEndpoint,
    tls: &'a UpstreamTls,
    /// `from` of that route.
    route: &'a str,
}

pub async fn check(site: &Site) -> Vec<Finding> {
    let looking: Vec<_> = upstreams(site)
        .into_values()
        .map(|upstream| one(site, upstream).boxed())
        .collect();
    let found: Vec<Vec<Finding>> = futures::stream::iter(looking)
        .buffered(AT_ONCE)
        .collect()
        .await;
    found.into_iter().flatten().collect()
}

/// Each once, by what makes a connection to it.
fn upstreams(site: &Site) -> BTreeMap<(String, Option<String>), Upstream<'_>> {
    let mut upstreams = BTreeMap::new();
    for route in &site.config.routes {
        let Some(target) = route.upstream() else {
            continue;
        };
        for endpoint in &target.endpoints {
            let name = url(endpoint);
            upstreams
                .entry((name, target.tls.server_name.clone()))
                .or_insert(Upstream {
                    endpoint,
                    tls: &target.tls,
                    route: &route.from.text,
                });
        }
    }
    upstreams
}

fn url(endpoint: &UpstreamEndpoint) -> String {
    let scheme = match endpoint.protocol {
        UpstreamProtocol::Http => "http",
        UpstreamProtocol::H2c => "h2c",
        UpstreamProtocol::Https => "https",
        UpstreamProtocol::Tcp => "tcp",
    };
    format!("{scheme}://{}", endpoint.authority)
}

async fn one(site: &Site, upstream: Upstream<'_>) -> Vec<Finding> {
    let upstream = &upstream;
    let endpoint = upstream.endpoint;
    let subject = url(endpoint);
    let found = |level, subject: &str, cause| {
        Finding::new(level, Check::Upstreams, subject, cause).key(upstream.route.to_owned())
    };
    let tls = match endpoint.protocol {
        UpstreamProtocol::Https => match upstream_tls(&endpoint.host, upstream.tls, &site.trust) {
            Ok(tls) => Some(tls),
            Err(why) => {
                let cause = Cause::new(code::TLS_FAILS, why);
                return vec![found(Level::Error, &subject, cause)];
            }
        },
        _ => None,
    };
    let reached = match reach(site, &endpoint.host, endpoint.port, tls.as_ref()).await {
        Ok(reached) => reached,
        Err(error) => return vec![found(Level::Error, &subject, Cause::from(&error))],
    };
    let speaking = reached.into_iter().map(|(address, stream)| async move {
        (address, speaks(site, upstream, address, stream).await)
    });
    let spoken = futures::future::join_all(speaking).await;
    // What one address does not do another does.
    let works = spoken.iter().any(|(_, cause)| cause.is_none());
    let wrong: Vec<_> = spoken
        .into_iter()
        .filter_map(|(address, cause)| {
            let cause = cause?;
            let level = if works && is_outage(Some(cause.code)) {
                Level::Warning
            } else {
                Level::Error
            };
            Some(found(level, &format!("{subject} ({address})"), cause))
        })
        .collect();
    if wrong.is_empty() {
        let message = match tls {
            Some(_) => "takes connections by TLS that holds",
            None => "takes connections",
        };
        return vec![
            Finding::ok(Check::Upstreams, subject, message).key(upstream.route.to_owned()),
        ];
    }
    wrong
}

/// What is wrong with one address.
async fn speaks(
    site: &Site,
    upstream: &Upstream<'_>,
    address: SocketAddr,
    stream: Result<Stream, ConnectError>,
) -> Option<Cause> {
    let stream = match stream {
        Ok(stream) => stream,
        Err(error) if error_is_clear(&error) => {
            return Some(
                Cause::new(
                    code::CLEAR_TEXT,
                    "it answers in clear text, and `to` expects TLS",
                )
                .help("write http:// in `to`, or let it serve TLS"),
            );
        }
        Err(error) => return Some(Cause::from(&error)),
    };
    if upstream.endpoint.protocol != UpstreamProtocol::Http {
        return None;
    }
    let first = tokio::time::timeout(ANSWER, first_bytes(stream, upstream.endpoint)).await;
    let Ok(first) = first else {
        let message = format!("it takes connections and gives no answer within {ANSWER:?}");
        return Some(
            Cause::new(code::SILENT, message)
                .help("it is stuck or overloaded, or waits for another protocol"),
        );
    };
    match first.as_slice() {
        // Many a server explains in clear text that it wants TLS.
        [b'H', b'T', b'T', b'P', rest @ ..] if !rest.ends_with(b" 400") => None,
        other if other.starts_with(b"HTTP") && !speaks_tls(site, upstream, address).await => None,
        [] | [0x15 | 0x16, ..] | [b'H', b'T', b'T', b'P', ..]
            if speaks_tls(site, upstream, address).await =>
        {
            Some(
                Cause::new(
                    code::TLS_EXPECTED,
                    "it expects TLS, and `to` says clear text",
                )
                .help("write https:// in `to`"),
            )
        }
        _ => Some(
            Cause::new(code::OTHER_PROTOCOL, "it does not answer HTTP")
                .help("correct the port in `to`, or stop what listens there"),
        ),
    }
}

fn error_is_clear(error: &ConnectError) -> bool {
    Cause::from(error).code == code::CLEAR_TEXT
}

/// `HTTP/1.1 200`, if it is a server of HTTP.
const STATUS: usize = 12;

/// What comes back for the request that balancers check health with.
async fn first_bytes(mut stream: Stream, endpoint: &UpstreamEndpoint) -> Vec<u8> {
    let request = format!(
        "HEAD / HTTP/1.1\r\nHost: {}\r\nUser-Agent: postern-doctor/{}\r\nConnection: close\r\n\r\n",
        endpoint.authority,
        env!("CARGO_PKG_VERSION"),
    );
    let mut first = Vec::new();
    // One that breaks the connection has said what it has said.
    if stream.write_all(request.as_bytes()).await.is_ok() {
        let _ = (&mut stream)
            .take(STATUS as u64)
            .read_to_end(&mut first)
            .await;
    }
    first
}

/// Whether a TLS handshake gets an answer of TLS, whatever the certificate.
async fn speaks_tls(site: &Site, upstream: &Upstream<'_>, address: SocketAddr) -> bool {
    let Ok(tls) = upstream_tls(&upstream.endpoint.host, upstream.tls, &site.trust) else {
        return false;
    };
    match connect(address, Some(&tls), CONNECT).await {
        Ok(_) | Err(ConnectError::Certificate { .. }) => true,
        Err(error) => Cause::from(&error).code == code::TLS_FAILS && is_alert(&error),
    }
}

fn is_alert(error: &ConnectError) -> bool {
    causes(error).any(|cause| matches!(cause.downcast_ref(), Some(rustls::Error::AlertReceived(_))))
}
