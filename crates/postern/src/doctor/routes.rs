//! The hosts that browsers and applications open, as seen from here: they lead to this deployment,
//! by TLS that holds, and publish its keys.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::{FutureExt as _, StreamExt as _};
use postern_common::config::{FromScheme, MtlsEnforcement};
use postern_common::net::connect::ClientTls;
use postern_common::net::{ConnectError, Stream};
use postern_common::telemetry::log::chain;
use postern_common::tls::{self, Alpn};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use url::Url;

use super::code;
use super::finding::{Cause, Check, Finding, Level};
use super::reach::{Question, ask, reach};
use super::site::{AT_ONCE, Site};

/// More hosts than this are not opened.
const MAX_HOSTS: usize = 256;
const KEYS: &str = "/.well-known/pomerium/jwks.json";
const ABOUT: &str = "/.well-known/pomerium";

/// A host that is served.
struct Front {
    url: Url,
    key: String,
    /// What is asked for there.
    asked: Asked,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Keys,
    /// authenticate: where the provider sends people back to.
    Callback,
}

pub async fn check(site: &Site) -> Vec<Finding> {
    let tls = match tls::client_config(&site.trust, Alpn::H2OrHttp1, None) {
        Ok(tls) => tls,
        Err(error) => {
            let cause = Cause::new(code::TLS_FAILS, chain(&error));
            return vec![Finding::error(Check::Routes, "TLS", cause).key("certificate_authority")];
        }
    };
    let fronts = fronts(site).into_iter().take(MAX_HOSTS);
    let opening: Vec<_> = fronts
        .map(|front| open(site, front, Arc::clone(&tls)).boxed())
        .collect();
    futures::stream::iter(opening)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}

/// Every host once.
fn fronts(site: &Site) -> Vec<Front> {
    let authenticate = Front {
        url: site.config.urls.authenticate.clone(),
        key: "authenticate_service_url".to_owned(),
        asked: Asked::Callback,
    };
    let routes = site.config.routes.iter().filter_map(|route| {
        let https = matches!(route.from.scheme, FromScheme::Https);
        let url = route.external_url().filter(|_| https)?;
        Some(Front {
            url,
            key: route.from.text.clone(),
            asked: Asked::Keys,
        })
    });
    let mut fronts: BTreeMap<String, Front> = BTreeMap::new();
    for front in std::iter::once(authenticate).chain(routes) {
        fronts.entry(authority(&front.url)).or_insert(front);
    }
    fronts.into_values().collect()
}

fn authority(url: &Url) -> String {
    url[url::Position::BeforeHost..url::Position::AfterPort].to_owned()
}

async fn open(site: &Site, front: Front, tls: Arc<ClientConfig>) -> Finding {
    let host = front.url.host_str().unwrap_or_default();
    let tls = match (front.url.scheme(), ServerName::try_from(host.to_owned())) {
        ("https", Ok(name)) => Some(ClientTls { config: tls, name }),
        _ => None,
    };
    let subject = authority(&front.url);
    let found =
        |level, cause| Finding::new(level, Check::Routes, &subject, cause).key(front.key.clone());
    let port = front.url.port_or_known_default().unwrap_or(443);
    let reached = match reach(site, host, port, tls.as_ref()).await {
        Ok(reached) => reached,
        Err(error) => {
            let cause = Cause::from(&error);
            return found(Level::Warning, seen_from_here(cause));
        }
    };
    match any(reached) {
        // Who is asked for a certificate has none to show here.
        Ok(_) if asks_for_certificates(site) => {
            Finding::ok(Check::Routes, subject, "takes connections").key(front.key.clone())
        }
        Ok(stream) => {
            let mut url = front.url.clone();
            url.set_path(match front.asked {
                Asked::Keys => KEYS,
                Asked::Callback => ABOUT,
            });
            let answer = ask(stream, Question::get(&url)).await;
            let problem = match &answer {
                Err(error) => Some(Cause::new(
                    code::NOT_POSTERN,
                    format!("it does not answer HTTP as we do: {error}"),
                )),
                Ok(answer) => judge(site, front.asked, &json(answer.body())),
            };
            match problem {
                Some(cause) => found(Level::Error, cause),
                None => Finding::ok(Check::Routes, &subject, "leads to this deployment")
                    .key(front.key.clone()),
            }
        }
        Err(error) => {
            let cause = Cause::from(&error);
            match &error {
                ConnectError::Certificate { .. } | ConnectError::Tls { .. }
                    if cause.code != code::CERTIFICATE_UNKNOWN_AUTHORITY =>
                {
                    found(Level::Error, cause)
                }
                _ => found(Level::Warning, seen_from_here(cause)),
            }
        }
    }
}

/// Another network may see it otherwise.
fn seen_from_here(cause: Cause) -> Cause {
    let help = cause.help.unwrap_or_default();
    Cause {
        help: Some(format!("{help}; all is well if browsers see it otherwise").into()),
        ..cause
    }
}

/// The first that works, else the first failure; a name has at least one address.
fn any(reached: Vec<(SocketAddr, Result<Stream, ConnectError>)>) -> Result<Stream, ConnectError> {
    let mut failed = None;
    for (address, stream) in reached {
        match stream {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                failed.get_or_insert((address, error));
            }
        }
    }
    Err(failed.map_or_else(
        || ConnectError::Deadline {
            address: SocketAddr::from(([0, 0, 0, 0], 0)),
            after: super::site::CONNECT,
        },
        |(_, error)| error,
    ))
}

fn asks_for_certificates(site: &Site) -> bool {
    site.config
        .downstream_mtls
        .as_ref()
        .is_some_and(|mtls| mtls.enforcement == MtlsEnforcement::RejectConnection)
}

/// What is no JSON is nothing.
fn json(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_default()
}

/// What is wrong with what it published.
fn judge(site: &Site, asked: Asked, answer: &Value) -> Option<Cause> {
    let elsewhere = |what: &str| {
        Cause::new(
            code::NOT_POSTERN,
            format!("what answers there is not this deployment: {what}"),
        )
        .help("let DNS and the balancer lead this host to the proxies")
    };
    match asked {
        Asked::Keys => {
            let Some(keys) = answer.get("keys").and_then(Value::as_array) else {
                return Some(elsewhere("it publishes no keys"));
            };
            let ours = site.config.signing_keys.kid();
            let known = keys
                .iter()
                .any(|key| key.get("kid").and_then(Value::as_str) == Some(ours));
            (!known).then(|| {
                Cause::new(
                    code::SIGNING_KEYS_DIFFER,
                    format!("it publishes other keys than the one that signs here ({ours})"),
                )
                .help("give all services the same `signing_key`, or without one the same `shared_secret`")
            })
        }
        Asked::Callback => {
            let Some(callback) = answer
                .get("authentication_callback_endpoint")
                .and_then(Value::as_str)
            else {
                return Some(elsewhere("it tells no callback"));
            };
            let ours = &site.config.urls.authenticate;
            let same = Url::parse(callback).is_ok_and(|url| url.origin() == ours.origin());
            (!same).then(|| {
                Cause::new(
                    code::AUTHENTICATE_URL_DIFFERS,
                    format!("authenticate lets providers send people back to {callback}"),
                )
                .help("give all services the same `authenticate_service_url`")
            })
        }
    }
}
