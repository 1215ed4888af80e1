//! What becomes of path and host on the way to the upstream. Pure.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue};
use postern_common::config::{HostHeader, PathMatcher, PathRewrite};
use postern_common::web::credentials::without_session;
use regex::Regex;

/// The path that the upstream gets. `path` is in normal form and satisfies `matcher`.
pub(crate) fn path<'a>(
    rewrite: &'a PathRewrite,
    matcher: &PathMatcher,
    path: &'a str,
) -> Cow<'a, str> {
    match rewrite {
        PathRewrite::None => Cow::Borrowed(path),
        PathRewrite::Prefix(replacement) => match after_prefix(matcher, path) {
            Some(rest) => one_slash(format!("{replacement}{rest}")),
            None => Cow::Borrowed(replacement),
        },
        PathRewrite::Regex {
            pattern,
            substitution,
        } => match substitute(pattern, substitution, path) {
            Cow::Borrowed(same) => Cow::Borrowed(same),
            Cow::Owned(new) => one_slash(new),
        },
        PathRewrite::Join(base) => match after_prefix(matcher, path) {
            Some(rest) => Cow::Owned(join(base, rest, took_slash(matcher))),
            None => Cow::Borrowed(base),
        },
    }
}

/// Path and query of the upstream's request line. Only our own credential is cut out of the
/// query; every other byte stays as the client sent it.
pub(crate) fn path_and_query(path: &str, query: Option<&str>) -> String {
    // A tunnel has none.
    let path = if path.is_empty() { "/" } else { path };
    match query.map(without_session) {
        Some(query) if !query.is_empty() => format!("{path}?{query}"),
        Some(_) | None => path.to_owned(),
    }
}

/// What follows the matched prefix; `None` on routes whose whole path is replaced.
fn after_prefix<'a>(matcher: &PathMatcher, path: &'a str) -> Option<&'a str> {
    match matcher {
        PathMatcher::Any => Some(path.strip_prefix('/').unwrap_or(path)),
        PathMatcher::Prefix(prefix) => Some(path.strip_prefix(prefix.as_str()).unwrap_or(path)),
        PathMatcher::Exact(_) | PathMatcher::Regex(_) => None,
    }
}

/// Whether the slash before the rest belonged to the matched prefix.
fn took_slash(matcher: &PathMatcher) -> bool {
    match matcher {
        PathMatcher::Any => true,
        PathMatcher::Prefix(prefix) => prefix.ends_with('/'),
        PathMatcher::Exact(_) | PathMatcher::Regex(_) => false,
    }
}

/// Joins at the segment: `/get` and `x` are `/get/x`, not `/getx`.
fn join(base: &str, rest: &str, took_slash: bool) -> String {
    if rest.is_empty() {
        return base.to_owned();
    }
    let trimmed = base.strip_suffix('/').unwrap_or(base);
    if rest.starts_with('/') {
        format!("{trimmed}{rest}")
    } else if took_slash || base.ends_with('/') {
        format!("{trimmed}/{rest}")
    } else {
        format!("{base}{rest}")
    }
}

/// A rewritten path starts with exactly one slash: `//x` would be read as a host by some.
fn one_slash(path: String) -> Cow<'static, str> {
    let rest = path.trim_start_matches('/');
    if path.len() == rest.len() + 1 {
        Cow::Owned(path)
    } else {
        Cow::Owned(format!("/{rest}"))
    }
}

/// Replaces every match. `\1` to `\9` in the substitution are groups, `\0` is the match, `\\` a
/// backslash (RE2's syntax).
pub(crate) fn substitute<'t>(pattern: &Regex, substitution: &str, text: &'t str) -> Cow<'t, str> {
    pattern.replace_all(text, |groups: &regex::Captures<'_>| {
        let mut out = String::new();
        let mut chars = substitution.chars();
        while let Some(c) = chars.next() {
            if c != '\\' {
                out.push(c);
                continue;
            }
            match chars.next() {
                Some(digit) if digit.is_ascii_digit() => {
                    let group = digit.to_digit(10).and_then(|d| usize::try_from(d).ok());
                    out.push_str(group.and_then(|g| groups.get(g)).map_or("", |m| m.as_str()));
                }
                Some(other) => out.push(other),
                None => out.push('\\'),
            }
        }
        out
    })
}

/// `Host` towards the upstream, and whether it is still the client's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UpstreamHost {
    Unchanged,
    Changed(HeaderValue),
}

/// Chooses it. `endpoint` is the authority of the endpoint as written in `to`; `path` is the
/// client's, without the query.
pub(crate) fn host(
    rule: &HostHeader,
    endpoint: &HeaderValue,
    headers: &HeaderMap,
    path: &str,
) -> UpstreamHost {
    let changed = match rule {
        HostHeader::Preserve => None,
        HostHeader::Endpoint => Some(endpoint.clone()),
        HostHeader::Literal(host) => Some(host.clone()),
        HostHeader::FromHeader(name) => headers.get(name).filter(|v| is_host(v)).cloned(),
        HostHeader::FromPath {
            pattern,
            substitution,
        } => match substitute(pattern, substitution, path) {
            Cow::Borrowed(_) => None,
            Cow::Owned(host) => HeaderValue::try_from(host).ok().filter(is_host),
        },
    };
    changed.map_or(UpstreamHost::Unchanged, UpstreamHost::Changed)
}

/// A value that a client can influence must still be a host and nothing more.
fn is_host(value: &HeaderValue) -> bool {
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(b);
    !value.is_empty() && value.as_bytes().iter().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> PathMatcher {
        PathMatcher::Prefix(text.to_owned())
    }

    #[test]
    fn c40_paths_in_to_join_at_the_segment() {
        let any = PathMatcher::Any;
        let cases = [
            ("/folder/", "/test/p.jpg", "/folder/test/p.jpg"),
            ("/folder", "/test/p.jpg", "/folder/test/p.jpg"),
            ("/folder/", "/", "/folder/"),
            ("/folder", "/", "/folder"),
            ("/get", "/x", "/get/x"),
        ];
        for (base, given, expected) in cases {
            let rewrite = PathRewrite::Join(base.to_owned());
            assert_eq!(path(&rewrite, &any, given), expected, "{base} {given}");
            assert_eq!(
                path(&rewrite, &prefix("/"), given),
                expected,
                "{base} {given}"
            );
        }
        let rewrite = PathRewrite::Join("/b".to_owned());
        assert_eq!(path(&rewrite, &prefix("/a"), "/a/x"), "/b/x");
        assert_eq!(path(&rewrite, &prefix("/a"), "/a"), "/b");
        assert_eq!(path(&rewrite, &prefix("/a/"), "/a/x"), "/b/x");
        assert_eq!(path(&rewrite, &PathMatcher::Exact("/a".into()), "/a"), "/b");
    }

    #[test]
    fn c40_prefix_rewrite() {
        let rewrite = PathRewrite::Prefix("/b".to_owned());
        assert_eq!(path(&rewrite, &prefix("/a"), "/a/x"), "/b/x");
        assert_eq!(path(&rewrite, &prefix("/a"), "/ax"), "/bx");
        assert_eq!(
            path_and_query(&path(&rewrite, &prefix("/a"), "/a/x"), Some("q")),
            "/b/x?q"
        );
        let slash = PathRewrite::Prefix("/".to_owned());
        assert_eq!(path(&slash, &prefix("/a"), "/a/x"), "/x");
        assert_eq!(path(&slash, &prefix("/a"), "/a"), "/");
        let get = PathRewrite::Prefix("/get".to_owned());
        assert_eq!(path(&get, &PathMatcher::Any, "/x"), "/getx");
        assert_eq!(path(&get, &PathMatcher::Exact("/z".into()), "/z"), "/get");
    }

    #[test]
    fn regex_rewrite_has_groups() {
        let rewrite = PathRewrite::Regex {
            pattern: Regex::new("^/service/([^/]+)(/.*)$").unwrap(),
            substitution: r"\2/instance/\1".to_owned(),
        };
        assert_eq!(
            path(&rewrite, &PathMatcher::Any, "/service/foo/v1/api"),
            "/v1/api/instance/foo"
        );
        assert_eq!(path(&rewrite, &PathMatcher::Any, "/other"), "/other");
    }

    #[test]
    fn c87_the_query_keeps_its_bytes() {
        let long = "q".repeat(12 * 1024);
        for query in ["q=x%0Ay", "a+b=%20", "&&=", long.as_str()] {
            assert_eq!(path_and_query("/p", Some(query)), format!("/p?{query}"));
        }
    }

    #[test]
    fn s05_the_handle_in_the_query_is_cut_out() {
        assert_eq!(without_session("a=1&pomerium_session=X&b"), "a=1&b");
        assert_eq!(without_session("pomerium%5Fsession=X"), "");
        assert_eq!(without_session("pomerium_session"), "");
        assert_eq!(
            without_session("pomerium_sessions=1"),
            "pomerium_sessions=1"
        );
        assert_eq!(path_and_query("/p", Some("pomerium_session=X")), "/p");
    }

    #[test]
    fn host_rules() {
        let endpoint = HeaderValue::from_static("up:8080");
        let mut headers = HeaderMap::new();
        headers.insert("x-host", HeaderValue::from_static("other.test"));
        headers.insert("x-bad", HeaderValue::from_static("a b"));
        let choose = |rule: &HostHeader| host(rule, &endpoint, &headers, "/tenant/acme/x");
        let changed = |text: &'static str| UpstreamHost::Changed(HeaderValue::from_static(text));
        assert_eq!(choose(&HostHeader::Endpoint), changed("up:8080"));
        assert_eq!(choose(&HostHeader::Preserve), UpstreamHost::Unchanged);
        let from = |name| HostHeader::FromHeader(http::HeaderName::from_static(name));
        assert_eq!(choose(&from("x-host")), changed("other.test"));
        assert_eq!(choose(&from("x-none")), UpstreamHost::Unchanged);
        assert_eq!(choose(&from("x-bad")), UpstreamHost::Unchanged);
        let from_path = HostHeader::FromPath {
            pattern: Regex::new("^/tenant/([^/]+)/.*$").unwrap(),
            substitution: r"\1.test".to_owned(),
        };
        assert_eq!(choose(&from_path), changed("acme.test"));
    }

    proptest! {
        #[test]
        fn a_rewritten_path_is_absolute(p in "/[a-z/]{0,12}", base in "/[a-z]{0,6}/?", with in "/?[a-z/]{0,8}") {
            for rewrite in [PathRewrite::None, PathRewrite::Prefix(with), PathRewrite::Join(base)] {
                let out = path(&rewrite, &PathMatcher::Any, &p);
                prop_assert!(out.starts_with('/'), "{out}");
            }
        }

        #[test]
        fn no_session_parameter_survives(query in "(pomerium_session|a|%70omerium_session|&|=|x){0,8}") {
            let out = without_session(&query);
            for (name, _) in url::form_urlencoded::parse(out.as_bytes()) {
                prop_assert_ne!(name, "pomerium_session");
            }
        }
    }
}
