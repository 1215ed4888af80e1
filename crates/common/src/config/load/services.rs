//! Which services run, where they listen, and where they find the others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustls::pki_types::ServerName;
use url::Url;

use super::super::diagnostic::{Diagnostic, code};
use super::super::keys;
use super::super::options::{
    DrainOptions, ExtAuthzCallers, Grpc, GrpcListenerSecurity, Listen, MetricsOptions,
    ProcessOptions, ProxyProtocol, ServerTls, Service, ServiceUrls, Services, Supervision,
};
use super::super::place::{At, Place};
use super::certificates::Shown;
use super::reader::{Load, Section, parse_url};
use crate::net::listen::Share;

/// `services`. A binary that has only one of them runs that one, and nothing else.
pub fn services(load: &mut Load<'_>, root: Section<'_>, only: Option<Service>) -> Option<Services> {
    let Some(words) = root.list(load, "services") else {
        return Some(only.map_or_else(Services::all, Services::one));
    };
    let place = root.node("services").map(|node| node.place.clone())?;
    let mut found = Vec::new();
    let mut broken = false;
    for word in words {
        match word.value.trim().to_ascii_lowercase().as_str() {
            "all" => found.extend(Service::ALL),
            "cache" => found.push(Service::Databroker),
            name => {
                if let Some(service) = Service::ALL
                    .into_iter()
                    .find(|service| service.name() == name)
                {
                    found.push(service);
                } else {
                    broken = true;
                    let known = ["all"].into_iter().chain(Service::ALL.map(Service::name));
                    let mut diagnostic = Diagnostic::error(
                        code::INVALID_VALUE,
                        format!("there is no service `{}`", word.value.trim()),
                    )
                    .at(&word.place);
                    diagnostic = match keys::nearest(name, known) {
                        Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
                        None => diagnostic.help(
                            "services are all, proxy, authorize, authenticate and databroker",
                        ),
                    };
                    load.say(diagnostic);
                }
            }
        }
    }
    if broken {
        return None;
    }
    let Some(services) = Services::new(found) else {
        load.invalid(&place, "`services` is empty");
        return None;
    };
    let Some(only) = only else {
        return Some(services);
    };
    // The same file serves every process; `all` is no contradiction.
    if !services.contains(only) {
        let named: Vec<_> = services.iter().map(Service::name).collect();
        load.say(
            Diagnostic::error(
                code::CONFLICT,
                format!(
                    "this program is {only}, but `services` asks for {}",
                    named.join(" and ")
                ),
            )
            .at(&place)
            .help(format!(
                "run postern, or postern-{}, or set `services: {only}`",
                named.first().copied().unwrap_or("proxy")
            )),
        );
        return None;
    }
    Some(Services::one(only))
}

pub fn serves_web(services: &Services) -> bool {
    services.contains(Service::Proxy) || services.contains(Service::Authenticate)
}

fn serves_grpc(services: &Services) -> bool {
    services.contains(Service::Authorize) || services.contains(Service::Databroker)
}

pub fn listen(
    load: &mut Load<'_>,
    root: Section<'_>,
    services: &Services,
    tls: &ServerTls,
) -> Option<Listen> {
    let web_port = if matches!(tls, ServerTls::Off) {
        80
    } else {
        443
    };
    let written = root.text(load, "address");
    let address = match &written {
        Some(text) => address_of(load, "address", text, Some(web_port))?,
        None => any(443),
    };
    let public = serves_web(services).then_some(address);
    let grpc = if serves_grpc(services) {
        grpc_address(load, root, services, public)?
    } else {
        None
    };
    let http_redirect = match root.text(load, "http_redirect_addr") {
        Some(mut text) => {
            text.value = text.value.trim_matches(['"', '\'']).to_owned();
            Some(address_of(load, "http_redirect_addr", &text, Some(80))?)
        }
        None => None,
    }
    .filter(|_| serves_web(services));
    let health = match root.text(load, "health_check_addr") {
        Some(text) => address_of(load, "health_check_addr", &text, None)?,
        None => SocketAddr::from((Ipv4Addr::LOCALHOST, 28080)),
    };
    let share = match root.flag(load, "reuse_port") {
        Some(true) => Share::Yes,
        _ => Share::No,
    };
    let proxy_protocol = match root.flag(load, "use_proxy_protocol") {
        Some(true) => ProxyProtocol::Required,
        _ => ProxyProtocol::Off,
    };
    Some(Listen {
        public,
        grpc,
        http_redirect,
        health,
        share,
        proxy_protocol,
    })
}

pub fn process(load: &mut Load<'_>, root: Section<'_>) -> ProcessOptions {
    let default = DrainOptions::default();
    let delay = root.duration(load, "drain_delay");
    let timeout = root.duration(load, "drain_timeout");
    ProcessOptions {
        drain: DrainOptions {
            delay: delay.unwrap_or(default.delay),
            timeout: timeout.unwrap_or(default.timeout),
        },
        supervision: match root.flag(load, "health_check_systemd_disabled") {
            Some(true) => Supervision::Off,
            _ => Supervision::Told,
        },
    }
}

/// In all-in-one a gRPC listener on loopback, unless an interface is named: other processes have
/// no business there. Elsewhere they have, so it is on every interface: on 443, or on 5443 where
/// the web is served too.
#[expect(
    clippy::option_option,
    reason = "an invalid address and none at all are told apart"
)]
fn grpc_address(
    load: &mut Load<'_>,
    root: Section<'_>,
    services: &Services,
    public: Option<SocketAddr>,
) -> Option<Option<SocketAddr>> {
    let written = root.text_or_empty(load, "grpc_address");
    // On a node that also serves the web the literal default is no choice.
    let written = written.filter(|text| !(serves_web(services) && text.value == ":443"));
    match written {
        Some(text) if text.value.is_empty() => Some(None),
        Some(text) => {
            let mut address = address_of(load, "grpc_address", &text, None)?;
            if services.is_all() && address.ip().is_unspecified() && text.value.starts_with(':') {
                address.set_ip(Ipv4Addr::LOCALHOST.into());
                load.say(
                    Diagnostic::note(
                        code::DIFFERENCE,
                        format!("gRPC listens on {address} only, as this process runs every service; Pomerium would listen on every interface"),
                    )
                    .at(&text.place)
                    .help(format!("write `0.0.0.0{}` if others shall reach it", text.value)),
                );
            }
            Some(Some(address))
        }
        None if serves_web(services) => {
            let port = if public.is_some_and(|address| address.port() == 5443) {
                5444
            } else {
                5443
            };
            Some(Some(if services.is_all() {
                SocketAddr::from((Ipv4Addr::LOCALHOST, port))
            } else {
                any(port)
            }))
        }
        None => Some(Some(any(443))),
    }
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
}

/// Two listeners of this process that would take the same port. In Pomerium `address` and
/// `grpc_address` may be the same; here each has a port of its own.
pub fn clashes(
    load: &mut Load<'_>,
    root: Section<'_>,
    listen: Option<&Listen>,
    metrics: Option<&MetricsOptions>,
) {
    let Some(listen) = listen else { return };
    let metrics = metrics.map(|metrics| metrics.address);
    let listeners = [
        ("address", listen.public),
        ("grpc_address", listen.grpc),
        ("http_redirect_addr", listen.http_redirect),
        ("metrics_address", metrics),
        ("health_check_addr", Some(listen.health)),
    ];
    for (index, (later, second)) in listeners.iter().enumerate() {
        let clash = listeners.iter().take(index).find(
            |(_, first)| matches!((first, second), (Some(first), Some(second)) if clash(*first, *second)),
        );
        let Some(((first, _), second)) = clash.zip(*second) else {
            continue;
        };
        let mut diagnostic = Diagnostic::error(
            code::CONFLICT,
            format!("`{first}` and `{later}` both take port {}", second.port()),
        )
        .help(match *later {
            "grpc_address" => "give `grpc_address` another port, or set `grpc_address: ''` if no other process calls authorize or databroker here".to_owned(),
            _ => format!("give `{later}` another port"),
        });
        let place = [*later, *first]
            .into_iter()
            .find(|key| root.has(key))
            .and_then(|key| root.place(key));
        if let Some(place) = place {
            diagnostic = diagnostic.at(place);
        }
        load.say(diagnostic);
    }
}

/// Whether they would take the same port.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let same_host = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && same_host
}

/// `:port`, `ip:port`, `[v6]:port`, `localhost:port`; without a host every interface.
pub fn address_of(
    load: &mut Load<'_>,
    name: &str,
    text: &At<String>,
    default_port: Option<u16>,
) -> Option<SocketAddr> {
    match parse_address(text.value.trim(), default_port) {
        Ok(address) => Some(address),
        Err(problem) => {
            load.say(
                Diagnostic::error(code::INVALID_VALUE, format!("`{name}`: {problem}"))
                    .at(&text.place)
                    .help("write it like :443, 127.0.0.1:8080 or [::1]:8080"),
            );
            None
        }
    }
}

pub fn parse_address(text: &str, default_port: Option<u16>) -> Result<SocketAddr, String> {
    let bare = text.parse::<IpAddr>().ok().map(|ip| (ip, None));
    let (ip, port) = if let Some(found) = bare {
        found
    } else {
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        let ip = match host {
            "" => Ipv6Addr::UNSPECIFIED.into(),
            "localhost" => Ipv4Addr::LOCALHOST.into(),
            host => host.trim_matches(['[', ']']).parse().map_err(|_| {
                format!("`{host}` is no IP address; listeners bind to addresses, not to names")
            })?,
        };
        (ip, (!port.is_empty()).then_some(port))
    };
    let port = match (port, default_port) {
        (Some(port), _) => port.parse().map_err(|_| format!("`{port}` is no port"))?,
        (None, Some(port)) => port,
        (None, None) => return Err("the port is missing".to_owned()),
    };
    Ok(SocketAddr::new(ip, port))
}

pub fn urls(load: &mut Load<'_>, root: Section<'_>, services: &Services) -> Option<ServiceUrls> {
    let authenticate = root
        .url(load, "authenticate_service_url")
        .map(|url| url.value);
    // Databroker alone needs it for the ids of providers, of which it is a part.
    let databroker_only = services.iter().eq([Service::Databroker]);
    let needs_authenticate = !databroker_only || root.has("idp_provider");
    let authenticate = if needs_authenticate || root.has("authenticate_service_url") {
        authenticate
    } else {
        // Nobody here uses it.
        Url::parse("https://authenticate.invalid").ok()
    };
    if needs_authenticate && !root.has("authenticate_service_url") {
        let mut diagnostic = Diagnostic::error(
            code::MISSING_KEY,
            "`authenticate_service_url` is not set: nobody can be sent to sign in",
        )
        .help("set it to the URL of authenticate as browsers see it, such as https://authenticate.example.com");
        if let Some(place) = root.place {
            diagnostic = diagnostic.at(place);
        }
        load.say(diagnostic);
    }
    let authenticate_internal = root
        .url(load, "authenticate_internal_service_url")
        .map(|url| url.value);
    let authorize = match root.url(load, "authorize_internal_service_url") {
        Some(url) => vec![url.value],
        None => several(
            load,
            root,
            "authorize_service_url",
            "authorize_service_urls",
        ),
    };
    let databroker = several(
        load,
        root,
        "databroker_service_url",
        "databroker_service_urls",
    );
    let needs_authorize =
        services.contains(Service::Proxy) && !services.contains(Service::Authorize);
    if needs_authorize && authorize.is_empty() {
        missing_url(
            load,
            root,
            "authorize_service_url",
            "authorize_service_urls",
            services,
        );
    }
    if !services.contains(Service::Databroker) && databroker.is_empty() {
        missing_url(
            load,
            root,
            "databroker_service_url",
            "databroker_service_urls",
            services,
        );
    }
    Some(ServiceUrls {
        authenticate: authenticate?,
        authenticate_internal,
        authorize,
        databroker,
    })
}

fn several(
    load: &mut Load<'_>,
    root: Section<'_>,
    one: &'static str,
    more: &'static str,
) -> Vec<Url> {
    // The singular key takes several with commas as well.
    let mut texts = root.list(load, one).unwrap_or_default();
    texts.extend(root.list(load, more).unwrap_or_default());
    texts.retain(|text| !text.value.is_empty());
    texts
        .iter()
        .filter_map(|text| {
            let url = parse_url(load, one, text)?;
            if url.scheme() == "https" && !root.has("override_certificate_name") {
                certificate_name(load, one, url.host_str()?, &text.place);
            }
            Some(url)
        })
        .collect()
}

/// Whether a server of this name can have a certificate.
fn certificate_name(load: &mut Load<'_>, key: &str, name: &str, place: &Place) {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    if ServerName::try_from(bare).is_err() {
        load.invalid(
            place,
            format!("`{key}`: `{name}` is no name that a certificate can have"),
        );
    }
}

fn missing_url(load: &mut Load<'_>, root: Section<'_>, one: &str, more: &str, services: &Services) {
    // Already told about a value that is no URL.
    if root.has(one) || root.has(more) {
        return;
    }
    let named: Vec<_> = services.iter().map(Service::name).collect();
    let mut diagnostic = Diagnostic::error(
        code::MISSING_KEY,
        format!(
            "`{one}` is not set, and this process runs only {}",
            named.join(" and ")
        ),
    )
    .help(format!(
        "set it to where the service listens, such as http://{}",
        one.trim_end_matches("_service_url")
    ));
    if let Some(place) = root.place("services") {
        diagnostic = diagnostic.at(place);
    }
    load.say(diagnostic);
}

/// Whether gRPC needs no certificate: it is not served, or served in clear text.
pub fn grpc_in_clear_text(load: &mut Load<'_>, root: Section<'_>, services: &Services) -> bool {
    let insecure = root
        .flag(load, "grpc_insecure")
        .unwrap_or_else(|| serves_web(services));
    insecure || !serves_grpc(services)
}

/// `certificates` is `None` where reading them failed.
pub fn grpc(
    load: &mut Load<'_>,
    root: Section<'_>,
    services: &Services,
    certificates: Option<&Shown>,
) -> Option<Grpc> {
    let listener = if grpc_in_clear_text(load, root, services) {
        Some(GrpcListenerSecurity::ClearText)
    } else {
        certificates.and_then(|shown| shown.grpc(load).map(GrpcListenerSecurity::Tls))
    };
    let client_timeout = match root.duration(load, "grpc_client_timeout") {
        None => Duration::from_secs(10),
        Some(Duration::ZERO) => Duration::from_secs(30),
        Some(timeout) => timeout,
    };
    let foreign = root
        .flag(load, "ext_authz_allow_unauthenticated")
        .unwrap_or(false);
    if foreign && let Some(node) = root.node("ext_authz_allow_unauthenticated") {
        load.say(
                Diagnostic::warning(
                    code::INSECURE,
                    "whoever reaches `grpc_address` may ask for decisions and sees identity headers in the answers",
                )
                .at(&node.place),
            );
    }
    clear_text_peers(load, root);
    let override_certificate_name = root.text(load, "override_certificate_name");
    if let Some(name) = &override_certificate_name {
        let asked_for = name.value.replace('*', "example");
        certificate_name(load, "override_certificate_name", &asked_for, &name.place);
    }
    Some(Grpc {
        listener: listener?,
        client_timeout,
        override_certificate_name: override_certificate_name.map(|name| name.value),
        ext_authz: if foreign {
            ExtAuthzCallers::Anyone
        } else {
            ExtAuthzCallers::OwnServicesOnly
        },
    })
}

/// What travels between hosts without TLS can be read, sessions and assertions included.
fn clear_text_peers(load: &mut Load<'_>, root: Section<'_>) {
    let keys = [
        "authorize_service_url",
        "authorize_service_urls",
        "authorize_internal_service_url",
        "databroker_service_url",
        "databroker_service_urls",
    ];
    for key in keys {
        let urls = root.list(load, key).unwrap_or_default();
        let clear = urls
            .into_iter()
            .find(|url| url.value.starts_with("http://") && !is_loopback_url(&url.value));
        if let Some(url) = clear {
            load.say(
                Diagnostic::note(
                    code::EXPOSED,
                    format!(
                        "`{key}` is in clear text: on a network that others can listen to use https"
                    ),
                )
                .at(&url.place),
            );
        }
    }
}

fn is_loopback_url(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    })
}
