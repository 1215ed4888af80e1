//! The headers of an answer. Pure.

use http::header::{CONNECTION, CONTENT_LENGTH, SET_COOKIE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};
use postern_common::config::ResponseHeaders;
use postern_common::web::credentials::OwnNames;

use crate::forward::headers::{is_hop_by_hop, nominated};

/// Names that an upstream may not answer with: they are our word to the client.
const OURS: [HeaderName; 2] = [
    HeaderName::from_static("x-pomerium-intercepted-response"),
    HeaderName::from_static("x-postern-sign-in-url"),
];

/// Whether an answer's body is what it says. hyper has taken the chunks off; of any other coding
/// the client would not learn.
pub(crate) fn has_plain_body(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => coding
            .as_bytes()
            .trim_ascii()
            .eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    }
}

/// Takes out of an upstream's answer what is between the two of us, and what it must not say.
/// `own`: names that no upstream sets; authenticate does.
pub(crate) fn clean(headers: &mut HeaderMap, own: Option<&OwnNames>, upgraded: bool) {
    let upgrade = headers.get(UPGRADE).filter(|_| upgraded).cloned();
    if headers.contains_key(CONNECTION) || headers.contains_key(TRANSFER_ENCODING) || upgraded {
        let named = nominated(headers).into_iter();
        let named: Vec<_> = named
            .filter_map(|name| HeaderName::from_bytes(name).ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        // The chunks told the length; this would cut the body off (RFC 9112 6.3).
        headers.remove(CONTENT_LENGTH);
    }
    let hop: Vec<_> = headers
        .keys()
        .filter(|name| is_hop_by_hop(name))
        .cloned()
        .collect();
    for name in hop {
        let announced = if name == TRAILER {
            announced(headers)
        } else {
            None
        };
        headers.remove(&name);
        // HTTP/1.1 carries only trailers that were announced.
        headers.extend(announced.map(|names| (name, names)));
    }
    if let Some(own) = own {
        for name in OURS {
            headers.remove(name);
        }
        remove_own_cookies(headers, own);
    }
    if let Some(token) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, token);
    }
}

/// Whether an answer may have this trailer: neither what frames it, nor what is ours to say.
pub(crate) fn may_trail(name: &HeaderName) -> bool {
    !is_hop_by_hop(name) && *name != SET_COOKIE && !OURS.contains(name)
}

/// The names of trailers that may come.
fn announced(headers: &HeaderMap) -> Option<HeaderValue> {
    let names = headers.get_all(TRAILER).iter();
    let names = names
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(may_trail);
    let names: Vec<String> = names.map(|name| name.as_str().to_owned()).collect();
    let names = Some(names.join(", ")).filter(|names| !names.is_empty());
    names.and_then(|names| HeaderValue::try_from(names).ok())
}

fn remove_own_cookies(headers: &mut HeaderMap, own: &OwnNames) {
    let ours = |value: &HeaderValue| {
        let mut parts = value.as_bytes().split(|byte| *byte == b';');
        parts.next().is_some_and(|pair| own.is_cookie(pair))
    };
    if !headers.get_all(SET_COOKIE).iter().any(ours) {
        return;
    }
    let kept: Vec<_> = headers
        .get_all(SET_COOKIE)
        .iter()
        .filter(|v| !ours(v))
        .cloned()
        .collect();
    headers.remove(SET_COOKIE);
    for value in kept {
        headers.append(SET_COOKIE, value);
    }
}

/// Applies `set_response_headers`, then `rewrite_response_headers`, of a route.
pub(crate) fn apply(headers: &mut HeaderMap, rules: &ResponseHeaders) {
    set(headers, &rules.set);
    for rule in &rules.rewrite {
        let rewritten = headers
            .get(&rule.header)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix(rule.prefix.as_str()))
            .and_then(|rest| HeaderValue::try_from(format!("{}{rest}", rule.value)).ok());
        if let Some(value) = rewritten
            && let Some(first) = headers.get_mut(&rule.header)
        {
            *first = value;
        }
    }
}

/// A name that means this machine (RFC 6761), with or without a port.
pub(crate) fn is_localhost(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name.ends_with(".localhost")
}

/// The global `set_response_headers`, on what we answer ourselves.
pub(crate) fn set(headers: &mut HeaderMap, rules: &[(HeaderName, HeaderValue)]) {
    for (name, value) in rules {
        headers.insert(name, value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::LOCATION;
    use postern_common::config::ResponseHeaderRewrite;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    fn own(cookie_name: &str) -> OwnNames {
        OwnNames::new(cookie_name, [])
    }

    #[test]
    fn trailers_that_may_come_are_announced() {
        let mut headers = map(&[
            ("trailer", "X-Checksum, Transfer-Encoding"),
            ("trailer", "set-cookie, , x-postern-sign-in-url, bad name"),
            ("trailer", "server-timing"),
        ]);
        clean(&mut headers, Some(&own("_pomerium")), false);
        assert_eq!(headers, map(&[("trailer", "x-checksum, server-timing")]));
        let mut headers = map(&[("trailer", "Set-Cookie")]);
        clean(&mut headers, Some(&own("_pomerium")), false);
        assert_eq!(headers, map(&[]));
    }

    #[test]
    fn s31_an_upstream_sets_its_own_cookies_whatever_ours_are_called() {
        let mut headers = map(&[
            ("set-cookie", "session=evil"),
            ("set-cookie", "sessionid=1"),
            ("set-cookie", "session_theme=dark"),
            ("set-cookie", "session_csrf=evil"),
            ("set-cookie", "session =evil; Path=/"),
            ("set-cookie", "=session=evil"),
            ("set-cookie", "session;Path=/"),
            ("set-cookie", "_pomerium_x=evil"),
        ]);
        clean(&mut headers, Some(&own("session")), false);
        let kept = [
            ("set-cookie", "sessionid=1"),
            ("set-cookie", "session_theme=dark"),
        ];
        assert_eq!(headers, map(&kept));
    }

    #[test]
    fn s31_an_upstream_sets_no_cookie_of_ours() {
        let mut headers = map(&[
            ("set-cookie", "_pomerium=evil; Path=/"),
            ("set-cookie", "theme=dark"),
            ("set-cookie", " _pomerium_csrf=evil"),
            ("set-cookie", "=_pomerium=evil"),
            ("set-cookie", " = _pomerium=evil; Domain=corp.test"),
            ("x-pomerium-intercepted-response", "true"),
        ]);
        clean(&mut headers, Some(&own("_pomerium")), false);
        assert_eq!(headers, map(&[("set-cookie", "theme=dark")]));
    }

    #[test]
    fn names_of_this_machine() {
        for name in ["localhost", "a.localhost", "a.b.localhost:8443"] {
            assert!(is_localhost(name), "{name}");
        }
        for name in ["localhost.test", "notlocalhost", "", "[::1]:443"] {
            assert!(!is_localhost(name), "{name}");
        }
    }

    #[test]
    fn s29_hop_by_hop_headers_of_answers_end_here() {
        let mut headers = map(&[
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("content-type", "text/plain"),
        ]);
        clean(&mut headers, Some(&own("_pomerium")), false);
        assert_eq!(headers, map(&[("content-type", "text/plain")]));
    }

    #[test]
    fn s32_chunks_tell_the_length_not_a_header_beside_them() {
        let mut headers = map(&[("content-length", "3"), ("transfer-encoding", "chunked")]);
        clean(&mut headers, Some(&own("_pomerium")), false);
        assert_eq!(headers, map(&[]));
        let mut headers = map(&[("content-length", "3")]);
        clean(&mut headers, Some(&own("_pomerium")), false);
        assert_eq!(headers, map(&[("content-length", "3")]));
    }

    #[test]
    fn s31_only_chunks_can_be_taken_off() {
        for (codings, plain) in [
            (&[][..], true),
            (&["Chunked"], true),
            (&["gzip, chunked"], false),
            (&["gzip", "chunked"], false),
            (&["identity"], false),
        ] {
            let pairs: Vec<_> = codings.iter().map(|c| ("transfer-encoding", *c)).collect();
            assert_eq!(has_plain_body(&map(&pairs)), plain, "{codings:?}");
        }
    }

    #[test]
    fn an_accepted_upgrade_keeps_its_token() {
        let mut headers = map(&[
            ("connection", "Upgrade, x-hop"),
            ("x-hop", "1"),
            ("upgrade", "websocket"),
            ("sec-websocket-accept", "k"),
        ]);
        clean(&mut headers, Some(&own("_pomerium")), true);
        let expected = map(&[
            ("sec-websocket-accept", "k"),
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
        ]);
        assert_eq!(headers, expected);
    }

    #[test]
    fn c73_set_once_and_rewritten_after() {
        let mut headers = map(&[
            ("x-frame-options", "ALLOWALL"),
            ("x-frame-options", "AGAIN"),
            ("location", "http://up/x"),
        ]);
        let rules = ResponseHeaders {
            set: vec![(
                HeaderName::from_static("x-frame-options"),
                HeaderValue::from_static("DENY"),
            )],
            rewrite: vec![
                ResponseHeaderRewrite {
                    header: LOCATION,
                    prefix: "http://up/".to_owned(),
                    value: "https://app.test/".to_owned(),
                },
                ResponseHeaderRewrite {
                    header: HeaderName::from_static("x-frame-options"),
                    prefix: "DE".to_owned(),
                    value: "XX".to_owned(),
                },
            ],
        };
        apply(&mut headers, &rules);
        assert_eq!(
            headers
                .get_all("x-frame-options")
                .iter()
                .collect::<Vec<_>>(),
            ["XXNY"]
        );
        assert_eq!(headers[LOCATION], "https://app.test/x");
    }
}
