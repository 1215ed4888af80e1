//! What a browser, or whoever pretends to be one, writes into a request.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE, COOKIE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use postern_common::authz::Scheme;
use postern_common::config::{PathNormalization, RouteId};
use postern_common::crypto::form as encoding;
use postern_common::route::table::{Found, IncomingPorts};
use postern_common::route::{RawTarget, RouteTable, Target, TargetError};
use postern_common::telemetry::trace::Place;
use postern_common::web::{cookie, negotiate as negotiation, redirect as allowed};
use url::{Host, Url};

use crate::input::{CONFIG, lines, now, rules};

struct Asked<'a> {
    rules: PathNormalization,
    method: Method,
    authority: &'a str,
    uri: Uri,
}

/// Four lines: rules, method, authority, URI.
fn asked(data: &[u8]) -> Option<Asked<'_>> {
    let [bits, method, authority, uri] = lines(data);
    Some(Asked {
        rules: rules(bits),
        method: Method::from_bytes(method).ok()?,
        authority: str::from_utf8(authority).ok()?,
        uri: Uri::try_from(uri).ok()?,
    })
}

fn read(
    method: &Method,
    scheme: Scheme,
    authority: &str,
    uri: &Uri,
    rules: PathNormalization,
) -> Result<Target, TargetError> {
    let raw = RawTarget {
        method,
        scheme,
        authority,
        uri,
    };
    Target::parse(raw, rules)
}

/// What is forwarded is read as what was authorized, and the URL in a redirect leads to the same
/// path.
pub fn target(data: &[u8]) {
    let Some(asked) = asked(data) else { return };
    for scheme in [Scheme::Http, Scheme::Https] {
        let Ok(target) = read(
            &asked.method,
            scheme,
            asked.authority,
            &asked.uri,
            asked.rules,
        ) else {
            continue;
        };
        if target.is_tunnel() {
            continue;
        }
        let forwarded = target.path_and_query().parse::<Uri>();
        let again = forwarded.map(|uri| {
            read(
                &Method::GET,
                scheme,
                target.authority.text(),
                &uri,
                asked.rules,
            )
        });
        assert_eq!(again.ok(), Some(Ok(target.clone())));
        if let Ok(url) = Url::parse(&target.url()) {
            assert_eq!(url.path(), target.path());
        }
    }
}

static TABLE: LazyLock<RouteTable> = LazyLock::new(|| {
    let routes = CONFIG.as_ref().map(|config| config.routes.clone());
    RouteTable::new(&routes.unwrap_or_default(), IncomingPorts::Any)
});

fn found(found: Found<'_>) -> Option<RouteId> {
    found.route().map(|route| route.id.clone())
}

/// Case and a final dot of the host change nothing, nor does the query; what is no tunnel reaches
/// no TCP route.
pub fn route(data: &[u8]) {
    let Some(asked) = asked(data) else { return };
    let find = |authority: &str, uri: &Uri| {
        let target = read(&asked.method, Scheme::Https, authority, uri, asked.rules).ok()?;
        Some((found(TABLE.find(&target)), target))
    };
    let Some((route, target)) = find(asked.authority, &asked.uri) else {
        return;
    };
    let upper = asked.authority.to_ascii_uppercase();
    assert_eq!(
        find(&upper, &asked.uri).map(|(route, _)| route),
        Some(route.clone())
    );
    let name = target.authority.name();
    if !asked.authority.contains(['[', ':']) && !asked.authority.ends_with('.') {
        let dotted = find(&format!("{name}."), &asked.uri).map(|(route, _)| route);
        assert!(dotted.is_none_or(|dotted| dotted == route));
    }
    if target.is_tunnel() {
        return;
    }
    if let Ok(bare) = target.path().parse::<Uri>()
        && asked.method != Method::CONNECT
    {
        let without = find(asked.authority, &bare).map(|(route, _)| route);
        assert_eq!(without, Some(route.clone()));
    }
    let tcp = TABLE.find(&target).route().is_some_and(|route| {
        matches!(
            route.from.scheme,
            postern_common::config::FromScheme::Tcp { .. }
        )
    });
    assert!(!tcp, "a plain request on a TCP route");
}

/// Four lines: Accept, Content-Type, User-Agent, Sec-Fetch-Mode. Whoever speaks gRPC is never sent
/// to a sign-in page.
pub fn negotiate(data: &[u8]) {
    let mut headers = HeaderMap::new();
    let names = [
        ACCEPT,
        CONTENT_TYPE,
        USER_AGENT,
        HeaderName::from_static("sec-fetch-mode"),
    ];
    for (name, value) in names.into_iter().zip(lines::<4>(data)) {
        if value.is_empty() {
            continue;
        }
        let Ok(value) = HeaderValue::from_bytes(value) else {
            return;
        };
        headers.append(name, value);
    }
    let form = negotiation::form(&headers);
    if matches!(form, negotiation::Form::Grpc | negotiation::Form::GrpcWeb) {
        assert_eq!(negotiation::client(&headers), negotiation::Client::Program);
    }
}

/// Lines of `Cookie`. What can be set comes back as it was.
pub fn cookies(data: &[u8]) {
    const NAME: &str = "_pomerium";
    let mut headers = HeaderMap::new();
    for line in lines::<4>(data) {
        let Ok(line) = HeaderValue::from_bytes(line) else {
            continue;
        };
        headers.append(COOKIE, line);
    }
    let all: Vec<_> = cookie::pairs(&headers).collect();
    assert!(cookie::values(&headers, NAME).all(|value| {
        all.iter().any(|(name, whole)| {
            *name == NAME && whole.trim_matches('"').contains(value.trim_matches('"'))
        })
    }));
    for (name, value) in all {
        let Some(set) = cookie::set(
            name,
            value,
            cookie::Scope::HOST,
            Duration::from_secs(60),
            now(),
        ) else {
            continue;
        };
        let mut sent = HeaderMap::new();
        sent.insert(COOKIE, set);
        assert_eq!(cookie::values(&sent, name).next(), Some(value));
    }
}

/// A query that is read is read the same by everybody else, and after it was written again.
pub fn form(data: &[u8]) {
    let Ok(query) = str::from_utf8(data) else {
        return;
    };
    let Ok(mut pairs) = encoding::parse(query) else {
        return;
    };
    let others: Vec<(String, String)> = url::form_urlencoded::parse(data).into_owned().collect();
    assert_eq!(pairs, others);
    let written = encoding::encode_sorted(pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())));
    pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
    assert_eq!(encoding::parse(&written), Ok(pairs));
}

static ALLOWED: LazyLock<allowed::Targets> = LazyLock::new(|| {
    CONFIG
        .as_ref()
        .map(|config| allowed::Targets::of(&Arc::clone(config)))
        .unwrap_or_default()
});

/// Where a browser is sent is https, one of our hosts, and fit for a header; a program waits on this
/// machine.
pub fn redirect(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Ok(target) = ALLOWED.program(text) {
        assert!(match target.url.host() {
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            host => host == Some(Host::Domain("localhost")),
        });
    }
    let Ok(target) = ALLOWED.browser(text) else {
        return;
    };
    assert!(HeaderValue::from_str(&target.location).is_ok());
    let read = Url::parse(&target.location).ok();
    let host = read.as_ref().and_then(Url::host_str).unwrap_or_default();
    assert_eq!(read.as_ref().map(Url::scheme), Some("https"));
    assert_eq!(Some(host), target.url.host_str());
    let host = host.strip_suffix('.').unwrap_or(host);
    assert!(host.ends_with(".corp.test"), "{host}");
}

/// `traceparent`. What is read is written the same way, but for version and flags that we do not know.
pub fn traceparent(data: &[u8]) {
    let Some(place) = std::str::from_utf8(data).ok().and_then(Place::parse) else {
        return;
    };
    let written = place.to_string();
    assert_eq!(Place::parse(&written), Some(place));
    assert_eq!(written.as_bytes().get(2..53), data.get(2..53));
    assert!(place.header().is_some());
}
