//! `to`, `redirect`, `response`: what becomes of a request.

use http::StatusCode;
use std::time::Duration;
use url::Url;

use super::super::super::diagnostic::{Diagnostic, code};
use super::super::super::place::At;
use super::super::super::route::{
    FixedResponse, HostHeader, LoadBalancing, PathRewrite, Redirect, RedirectPath, RedirectQuery,
    RouteTarget, Upgrades, UpstreamEndpoint, UpstreamProtocol, UpstreamTarget,
};
use super::super::http::{header_name, header_value};
use super::super::reader::{Load, Section};
use super::{Defaults, expression, tls};

/// Redirect before response before `to`, as in Pomerium, when several are given.
pub fn target(
    load: &mut Load<'_>,
    section: Section<'_>,
    defaults: &Defaults<'_>,
    special: bool,
) -> Option<RouteTarget> {
    let given: Vec<&str> = ["redirect", "response", "to"]
        .into_iter()
        .filter(|name| section.has(name))
        .collect();
    let Some((used, unused)) = given.split_first() else {
        let mut diagnostic = Diagnostic::error(
            code::MISSING_KEY,
            "this route leads nowhere: it has no `to`, `redirect` or `response`",
        );
        if let Some(place) = section.place {
            diagnostic = diagnostic.at(place);
        }
        load.say(diagnostic);
        return None;
    };
    for name in unused {
        if let Some(place) = section.place(name).cloned() {
            load.say(
                Diagnostic::warning(
                    code::CONFLICT,
                    format!("`{name}` has no effect, as `{used}` is set too"),
                )
                .at(&place),
            );
        }
    }
    match *used {
        "redirect" => redirect(load, section).map(RouteTarget::Redirect),
        "response" => response(load, section).map(RouteTarget::Response),
        _ => upstream(load, section, defaults, special)
            .map(|target| RouteTarget::Upstream(Box::new(target))),
    }
}

fn redirect(load: &mut Load<'_>, section: Section<'_>) -> Option<Redirect> {
    let inner = section.section(load, "redirect", "redirect.")?;
    let https = inner.flag(load, "https_redirect");
    let scheme = inner.text(load, "scheme_redirect");
    let host = match inner.text(load, "host_redirect") {
        Some(host) => Some(a_host(load, "redirect.host_redirect", &host)?),
        None => None,
    };
    let port = inner
        .number::<u16>(load, "port_redirect")
        .filter(|port| port.value != 0);
    let path = inner.text(load, "path_redirect");
    let prefix = inner.text(load, "prefix_rewrite");
    let status = match inner.number::<u16>(load, "response_code") {
        None => StatusCode::MOVED_PERMANENTLY,
        Some(code) => match code.value {
            0 => StatusCode::MOVED_PERMANENTLY,
            301 | 302 | 303 | 307 | 308 => StatusCode::from_u16(code.value).ok()?,
            other => {
                load.invalid(
                    &code.place,
                    format!(
                        "`redirect.response_code` can be 301, 302, 303, 307 or 308, not {other}"
                    ),
                );
                return None;
            }
        },
    };
    let strip = inner.flag(load, "strip_query").unwrap_or(false);
    Some(Redirect {
        // Set at all, even to false, it wins.
        scheme: match https {
            Some(true) => Some("https".to_owned()),
            Some(false) => None,
            None => scheme.map(|scheme| scheme.value.to_ascii_lowercase()),
        },
        host: host.map(|host| host.value),
        port: port.map(|port| port.value),
        path: match (path, prefix) {
            (Some(path), _) => RedirectPath::Replace(path.value),
            (None, Some(prefix)) => RedirectPath::Prefix(prefix.value),
            (None, None) => RedirectPath::Keep,
        },
        status,
        query: if strip {
            RedirectQuery::Strip
        } else {
            RedirectQuery::Keep
        },
    })
}

/// Longest body of a fixed response.
const MAX_BODY: usize = 4096;

fn response(load: &mut Load<'_>, section: Section<'_>) -> Option<FixedResponse> {
    let inner = section.section(load, "response", "response.")?;
    let body = inner.text(load, "body");
    if let Some(body) = body.as_ref().filter(|body| body.value.len() > MAX_BODY) {
        load.invalid(
            &body.place,
            format!(
                "`response.body` has {} bytes; at most {MAX_BODY} are possible",
                body.value.len()
            ),
        );
    }
    let status = inner.number::<u16>(load, "status");
    let Some(status) = status else {
        if !inner.has("status") {
            let mut diagnostic =
                Diagnostic::error(code::MISSING_KEY, "`response` needs a `status`");
            if let Some(place) = section.place("response") {
                diagnostic = diagnostic.at(place);
            }
            load.say(diagnostic);
        }
        return None;
    };
    match StatusCode::from_u16(status.value) {
        Ok(code) if (200..600).contains(&status.value) => Some(FixedResponse {
            status: code,
            body: body.map_or_else(String::new, |body| body.value),
        }),
        _ => {
            load.invalid(&status.place, "`response.status` must be from 200 to 599");
            None
        }
    }
}

fn upstream(
    load: &mut Load<'_>,
    section: Section<'_>,
    defaults: &Defaults<'_>,
    special: bool,
) -> Option<UpstreamTarget> {
    let written = section.items(load, "to")?;
    let mut parsed = Vec::new();
    let mut broken = written.is_empty();
    if let Some(node) = section.node("to").filter(|_| broken) {
        load.invalid(&node.place, "`to` is empty: this route leads nowhere");
    }
    for entry in &written {
        match endpoint(load, entry) {
            Some(endpoint) => parsed.push(endpoint),
            None => broken = true,
        }
    }
    let weighted = parsed.iter().filter(|to| to.weight.is_some()).count();
    if let Some(first) = written
        .first()
        .filter(|_| weighted > 0 && weighted < written.len() && !broken)
    {
        load.say(
            Diagnostic::error(
                code::INVALID_VALUE,
                "some URLs of `to` have a weight and some have none",
            )
            .at(&first.place)
            .help("give each a weight after a comma, or none"),
        );
        broken = true;
    }
    let tcp = parsed
        .iter()
        .filter(|to| to.endpoint.protocol == UpstreamProtocol::Tcp)
        .count();
    if let Some(first) = written.first().filter(|_| tcp > 0 && tcp < parsed.len()) {
        load.invalid(&first.place, "`to` mixes tcp with other schemes");
        broken = true;
    }
    let rewrite = rewrite(load, section, parsed.first().map(|to| to.path.as_str()));
    let host = host_header(load, section);
    let balancing = section.choice(
        load,
        "load_balancing_policy",
        &[
            ("round_robin", LoadBalancing::RoundRobin),
            ("least_request", LoadBalancing::LeastRequest),
            ("random", LoadBalancing::Random),
            ("ring_hash", LoadBalancing::RingHash),
            ("maglev", LoadBalancing::Maglev),
        ],
    );
    let upgrades = upgrades(load, section, defaults);
    let long_lived = special || upgrades.allows("websocket");
    let timeout = section.duration(load, "timeout");
    let idle_timeout = section.duration(load, "idle_timeout");
    let limit = |written: Option<Duration>, default: Duration| match written {
        Some(written) => Some(written),
        None if long_lived => None,
        None => Some(default),
    };
    let tls = tls::upstream_tls(load, section);
    if broken {
        return None;
    }
    Some(UpstreamTarget {
        endpoints: parsed
            .into_iter()
            .map(|to| UpstreamEndpoint {
                weight: to.weight.unwrap_or(1),
                ..to.endpoint
            })
            .collect(),
        rewrite: rewrite?,
        host: host?,
        balancing: balancing.unwrap_or(LoadBalancing::RoundRobin),
        upgrades,
        timeout: limit(timeout, defaults.upstream_timeout).filter(|limit| !limit.is_zero()),
        idle_timeout: limit(idle_timeout, Duration::from_secs(300))
            .filter(|limit| !limit.is_zero()),
        tls,
    })
}

struct To {
    endpoint: UpstreamEndpoint,
    weight: Option<u32>,
    path: String,
}

/// `URL[,weight]`
fn endpoint(load: &mut Load<'_>, text: &At<String>) -> Option<To> {
    let mut complain = |message: String| {
        load.say(
            Diagnostic::error(code::INVALID_VALUE, format!("`to`: {message}"))
                .at(&text.place)
                .help("write it like http://app:8080, https://app.example.com or h2c://grpc:50051, with an optional weight after a comma"),
        );
        None
    };
    let written = text.value.trim();
    let (url_text, weight) = match written.rsplit_once(',') {
        Some((url, weight)) if weight.trim().bytes().all(|b| b.is_ascii_digit()) => {
            match weight.trim().parse::<u32>() {
                Ok(weight) if weight > 0 => (url.trim(), Some(weight)),
                _ => return complain("a weight must be a whole number above zero".to_owned()),
            }
        }
        _ => (written, None),
    };
    let Some((scheme, rest)) = url_text.split_once("://") else {
        return complain(format!("`{}` has no scheme", shown(url_text)));
    };
    let (protocol, default_port) = match scheme {
        "http" => (UpstreamProtocol::Http, Some(80)),
        "https" => (UpstreamProtocol::Https, Some(443)),
        "h2c" => (UpstreamProtocol::H2c, Some(80)),
        "tcp" => (UpstreamProtocol::Tcp, None),
        other => return complain(format!("there is no scheme `{other}`")),
    };
    // As http, so that the host is read the same for every scheme.
    let url = match Url::parse(&format!("http://{rest}")) {
        Ok(url) => url,
        Err(error) => return complain(error.to_string()),
    };
    let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
        return complain("there is no host".to_owned());
    };
    let in_name = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if !host.starts_with('[') && !host.bytes().all(in_name) {
        return complain(format!("`{host}` is no host"));
    }
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = rest.get(..authority_end).unwrap_or(rest);
    let authority = authority
        .rsplit_once('@')
        .map_or(authority, |(_, authority)| authority);
    let Some(port) = written_port(authority).or(default_port) else {
        return complain("there is no port".to_owned());
    };
    let has_user = !url.username().is_empty() || url.password().is_some();
    if has_user || url.query().is_some() || url.fragment().is_some() {
        load.say(
            Diagnostic::warning(
                code::INVALID_VALUE,
                "`to`: a user name, a query and a fragment have no effect",
            )
            .at(&text.place),
        );
    }
    let host = if host == "localhost" {
        "127.0.0.1"
    } else {
        host
    };
    let endpoint = UpstreamEndpoint {
        protocol,
        host: host.trim_matches(['[', ']']).to_owned(),
        port,
        authority: authority.to_owned(),
        weight: 1,
    };
    Some(To {
        endpoint,
        weight,
        path: url.path().to_owned(),
    })
}

fn written_port(authority: &str) -> Option<u16> {
    let (_, port) = authority.rsplit_once(':')?;
    port.parse().ok()
}

/// Without what may be a password.
fn shown(url: &str) -> &str {
    url.rsplit_once('@').map_or(url, |(_, rest)| rest)
}

fn rewrite(
    load: &mut Load<'_>,
    section: Section<'_>,
    to_path: Option<&str>,
) -> Option<PathRewrite> {
    let prefix = section.text(load, "prefix_rewrite");
    let pattern = section.text(load, "regex_rewrite_pattern");
    let substitution = section.text_or_empty(load, "regex_rewrite_substitution");
    if let (Some(_), Some(pattern)) = (&prefix, &pattern) {
        load.say(
            Diagnostic::error(
                code::CONFLICT,
                "`prefix_rewrite` and `regex_rewrite_pattern` can't both be set",
            )
            .at(&pattern.place),
        );
        return None;
    }
    if let Some(prefix) = prefix {
        return Some(PathRewrite::Prefix(prefix.value));
    }
    if let Some(pattern) = pattern {
        let pattern = expression(load, "regex_rewrite_pattern", &pattern)?;
        if let Some(substitution) = &substitution {
            check_groups(load, &pattern, substitution)?;
        }
        return Some(PathRewrite::Regex {
            pattern,
            substitution: substitution.map_or_else(String::new, |text| text.value),
        });
    }
    Some(match to_path {
        None | Some("" | "/") => PathRewrite::None,
        Some(path) => PathRewrite::Join(path.to_owned()),
    })
}

/// `\1` to `\9` must be groups of the pattern.
fn check_groups(
    load: &mut Load<'_>,
    pattern: &regex::Regex,
    substitution: &At<String>,
) -> Option<()> {
    let groups = pattern.captures_len() - 1;
    let mut bytes = substitution.value.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            continue;
        }
        match bytes.next() {
            Some(digit @ b'0'..=b'9') if usize::from(digit - b'0') > groups => {
                load.invalid(
                    &substitution.place,
                    format!(
                        "`\\{}` names a group that the pattern does not have; it has {groups}",
                        digit - b'0'
                    ),
                );
                return None;
            }
            _ => {}
        }
    }
    Some(())
}

/// The first of these keys that is set.
fn host_header(load: &mut Load<'_>, section: Section<'_>) -> Option<HostHeader> {
    let literal = section.text(load, "host_rewrite");
    let header = section.text(load, "host_rewrite_header");
    let pattern = section.text(load, "host_path_regex_rewrite_pattern");
    let substitution = section.text_or_empty(load, "host_path_regex_rewrite_substitution");
    let preserve = section.flag(load, "preserve_host_header").unwrap_or(false);
    if let Some(literal) = literal {
        let host = a_host(load, "host_rewrite", &literal)?;
        return header_value(load, &host).map(HostHeader::Literal);
    }
    if let Some(header) = header {
        return header_name(load, &header).map(HostHeader::FromHeader);
    }
    if let Some(pattern) = pattern {
        let pattern = expression(load, "host_path_regex_rewrite_pattern", &pattern)?;
        if let Some(substitution) = &substitution {
            check_groups(load, &pattern, substitution)?;
        }
        return Some(HostHeader::FromPath {
            pattern,
            substitution: substitution.map_or_else(String::new, |text| text.value),
        });
    }
    Some(if preserve {
        HostHeader::Preserve
    } else {
        HostHeader::Endpoint
    })
}

/// A host, with or without a port.
fn a_host(load: &mut Load<'_>, name: &str, text: &At<String>) -> Option<At<String>> {
    let written = text.value.trim();
    let authority = written.parse::<http::uri::Authority>();
    if authority.is_ok() && !written.contains('@') {
        return Some(At::new(written.to_owned(), text.place.clone()));
    }
    load.invalid(&text.place, format!("`{name}`: `{written}` is no host"));
    None
}

fn upgrades(load: &mut Load<'_>, section: Section<'_>, defaults: &Defaults<'_>) -> Upgrades {
    let mut tokens = defaults.upgrades.clone();
    let own = section.list(load, "allow_upgrades").unwrap_or_default();
    tokens.extend(
        own.into_iter()
            .map(|token| token.value.to_ascii_lowercase()),
    );
    let kubernetes = section.has("kubernetes_service_account_token")
        || section.has("kubernetes_service_account_token_file");
    if section.flag(load, "allow_websockets").unwrap_or(false) || kubernetes {
        tokens.push("websocket".to_owned());
    }
    if section.flag(load, "allow_spdy").unwrap_or(false) || kubernetes {
        tokens.push("spdy/3.1".to_owned());
    }
    tokens.sort_unstable();
    tokens.dedup();
    Upgrades(tokens)
}
