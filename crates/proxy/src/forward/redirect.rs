//! Where a `redirect` route sends its visitors. Pure.

use postern_common::config::{PathMatcher, Redirect, RedirectPath, RedirectQuery};
use postern_common::web::credentials::without_session;

use super::rewrite;

/// What the visitor asked for.
pub(crate) struct Asked<'a> {
    pub scheme: &'a str,
    /// Without the port; IPv6 in brackets.
    pub host: &'a str,
    /// `None` on the default port of `scheme`.
    pub port: Option<u16>,
    pub path: &'a str,
    pub query: Option<&'a str>,
}

/// The `Location` of the answer.
pub(crate) fn location(redirect: &Redirect, matcher: &PathMatcher, asked: &Asked<'_>) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(asked.scheme);
    let host = redirect.host.as_deref().unwrap_or(asked.host);
    // A port belongs to the host it came with.
    let asked_port = asked.port.filter(|_| redirect.host.is_none());
    let port = redirect
        .port
        .or(asked_port)
        .filter(|port| default_port(scheme) != Some(*port));
    let (path, may_add_query) = match &redirect.path {
        RedirectPath::Keep => (asked.path.to_owned(), true),
        RedirectPath::Replace(path) => (path.clone(), !path.contains('?')),
        RedirectPath::Prefix(prefix) => {
            let rule = postern_common::config::PathRewrite::Prefix(prefix.clone());
            (rewrite::path(&rule, matcher, asked.path).into_owned(), true)
        }
    };
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let mut out = format!("{scheme}://{host}{port}{path}");
    let keep = redirect.query == RedirectQuery::Keep && may_add_query;
    if let Some(query) = asked.query.filter(|_| keep) {
        let query = without_session(query);
        if !query.is_empty() {
            out.push('?');
            out.push_str(&query);
        }
    }
    out
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    fn redirect() -> Redirect {
        Redirect {
            scheme: None,
            host: None,
            port: None,
            path: RedirectPath::Keep,
            status: StatusCode::MOVED_PERMANENTLY,
            query: RedirectQuery::Keep,
        }
    }

    fn go(redirect: &Redirect) -> String {
        let matcher = PathMatcher::Prefix("/old".to_owned());
        let asked = Asked {
            scheme: "https",
            host: "a.test",
            port: Some(8443),
            path: "/old/x",
            query: Some("q=1&pomerium_session=h"),
        };
        location(redirect, &matcher, &asked)
    }

    #[test]
    fn parts_are_replaced_one_by_one() {
        assert_eq!(go(&redirect()), "https://a.test:8443/old/x?q=1");
        let host = Redirect {
            host: Some("b.test".into()),
            ..redirect()
        };
        assert_eq!(go(&host), "https://b.test/old/x?q=1");
        let port = Redirect {
            port: Some(443),
            ..redirect()
        };
        assert_eq!(go(&port), "https://a.test/old/x?q=1");
        let path = Redirect {
            path: RedirectPath::Replace("/new?z".into()),
            ..redirect()
        };
        assert_eq!(go(&path), "https://a.test:8443/new?z");
        let prefix = Redirect {
            path: RedirectPath::Prefix("/new".into()),
            ..redirect()
        };
        assert_eq!(go(&prefix), "https://a.test:8443/new/x?q=1");
        let strip = Redirect {
            query: RedirectQuery::Strip,
            ..redirect()
        };
        assert_eq!(go(&strip), "https://a.test:8443/old/x");
    }

    #[test]
    fn default_ports_vanish_with_the_scheme() {
        let matcher = PathMatcher::Any;
        let asked = Asked {
            scheme: "http",
            host: "a.test",
            port: None,
            path: "/",
            query: None,
        };
        let https = Redirect {
            scheme: Some("https".into()),
            ..redirect()
        };
        assert_eq!(location(&https, &matcher, &asked), "https://a.test/");
        let odd = Asked {
            port: Some(443),
            ..asked
        };
        assert_eq!(location(&https, &matcher, &odd), "https://a.test/");
    }
}
