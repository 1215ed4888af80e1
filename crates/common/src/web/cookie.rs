//! Cookies: read all of a name, set, clear.
//!
//! A browser sends several cookies of one name when another site of the same domain has planted
//! one ("cookie tossing"), and nothing tells them apart. So all are read, and [`single`] says
//! what they come to.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use crate::config::SameSite;

/// What follows the session cookie's name in those of our other cookies.
pub mod suffix {
    /// The session at authenticate.
    pub const AUTHENTICATE: &str = "_authenticate";
    /// Ties a sign-in at authenticate to a browser.
    pub const CSRF: &str = "_csrf";
    /// Where to go after the provider's sign-out.
    pub const SIGNED_OUT: &str = "_signed_out_redirect_uri";
    /// How often somebody has just signed in.
    pub const SIGNED_IN: &str = "_signed_in";
    /// Pomerium's, each with a number behind it.
    pub(crate) const PKCE: &str = "_pkce_";

    /// All that stand at the end of a name.
    pub(crate) const ALL: [&str; 5] = [
        AUTHENTICATE,
        crate::crypto::binding::SUFFIX,
        CSRF,
        SIGNED_OUT,
        SIGNED_IN,
    ];
}

/// All values of the cookies called `name`, in the order of the request. Nobody can hide a good one
/// behind rubbish; how many there can be is bounded by the size of a request's head.
pub fn values<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    pairs(headers)
        .filter(move |(n, _)| *n == name)
        .map(|(_, value)| {
            value
                .strip_prefix('"')
                .and_then(|v| v.strip_suffix('"'))
                .unwrap_or(value)
        })
}

/// All cookies of a request, as they stand there, but those that are no text: browsers send what an
/// application has set, and that must not hide the others.
pub fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|field| elements(field.as_bytes()))
        .filter_map(|pair| std::str::from_utf8(pair).ok()?.split_once('='))
}

/// What stands between the semicolons of a field, without white space around it.
pub(super) fn elements(field: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = memchr::memchr_iter(b';', field).chain([field.len()]);
    let mut start = 0;
    ends.filter_map(move |end| {
        let element = field.get(start..end)?;
        start = end + 1;
        Some(element.trim_ascii())
    })
}

/// What the cookies of one name come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Single<T, E> {
    /// There is none.
    Absent,
    /// Exactly one value is good; others, if any, are rubbish or repeat it.
    One(T),
    /// There are some, none of them good. The first error.
    Bad(E),
    /// Two different good ones: somebody planted one. Neither counts, both are to be cleared.
    Conflict,
}

/// Reads cookies of one name, where each is good if `read` succeeds.
pub fn single<'a, T: PartialEq, E>(
    values: impl Iterator<Item = &'a str>,
    mut read: impl FnMut(&'a str) -> Result<T, E>,
) -> Single<T, E> {
    let mut found: Option<T> = None;
    let mut error = None;
    for value in values {
        match (read(value), &found) {
            (Ok(one), Some(other)) if one != *other => return Single::Conflict,
            (Ok(one), _) => found = Some(one),
            (Err(e), _) => error = error.or(Some(e)),
        }
    }
    match (found, error) {
        (Some(one), _) => Single::One(one),
        (None, Some(error)) => Single::Bad(error),
        (None, None) => Single::Absent,
    }
}

/// Where a cookie of ours is sent, and who sees it. All are `Secure`.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    pub path: &'a str,
    /// `None`: this host only.
    pub domain: Option<&'a str>,
    pub http_only: bool,
    pub same_site: Option<SameSite>,
}

impl Scope<'_> {
    /// For this host only, for every path, out of reach of scripts, `SameSite=Lax`.
    pub const HOST: Self = Self {
        path: "/",
        domain: None,
        http_only: true,
        same_site: Some(SameSite::Lax),
    };
}

/// A `Set-Cookie` that ends `lifetime` after `now`. A name or value that can't be in a cookie
/// gives none.
pub fn set(
    name: &str,
    value: &str,
    scope: Scope<'_>,
    lifetime: Duration,
    now: Timestamp,
) -> Option<HeaderValue> {
    let lifetime = SignedDuration::try_from(lifetime).unwrap_or(SignedDuration::MAX);
    let expires = http_date(now.saturating_add(lifetime).unwrap_or(Timestamp::MAX));
    build(name, value, scope, &format!("Expires={expires}"))
}

/// The `Set-Cookie` that removes what [`set`] set with the same scope.
pub fn clear(name: &str, scope: Scope<'_>, now: Timestamp) -> Option<HeaderValue> {
    let past = now
        .checked_sub(SignedDuration::from_hours(1))
        .unwrap_or(Timestamp::UNIX_EPOCH);
    build(
        name,
        "",
        scope,
        &format!("Expires={}; Max-Age=0", http_date(past)),
    )
}

/// Removes a cookie wherever above `host` it may have been planted: for the host itself and for
/// every domain that it lies in.
pub fn clear_everywhere(name: &str, host: &str, now: Timestamp) -> Vec<HeaderValue> {
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let mut domains = vec![None];
    let mut rest = Some(host);
    while let Some(domain) = rest.filter(|domain| domain.contains('.') && domains.len() < 8) {
        domains.push(Some(domain));
        rest = domain.split_once('.').map(|(_, parent)| parent);
    }
    domains
        .into_iter()
        .filter_map(|domain| {
            clear(
                name,
                Scope {
                    domain,
                    ..Scope::HOST
                },
                now,
            )
        })
        .collect()
}

fn build(name: &str, value: &str, scope: Scope<'_>, ends: &str) -> Option<HeaderValue> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    // RFC 6265 section 4.1.1, cookie-octet
    let octet = |b: u8| matches!(b, 0x21 | 0x23..=0x2b | 0x2d..=0x3a | 0x3c..=0x5b | 0x5d..=0x7e);
    if name.is_empty() || !name.bytes().all(token) || !value.bytes().all(octet) {
        return None;
    }
    let mut text = format!("{name}={value}; Path={}", scope.path);
    if let Some(domain) = scope.domain {
        text.push_str("; Domain=");
        text.push_str(domain.trim_start_matches('.'));
    }
    text.push_str("; ");
    text.push_str(ends);
    if scope.http_only {
        text.push_str("; HttpOnly");
    }
    text.push_str("; Secure");
    if let Some(same_site) = scope.same_site {
        text.push_str("; SameSite=");
        text.push_str(same_site.as_str());
    }
    HeaderValue::from_str(&text).ok()
}

/// RFC 9110 section 5.6.7.
fn http_date(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC)
        .strftime("%a, %d %b %Y %H:%M:%S GMT")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::vectors::{T, at};
    use proptest::prelude::*;

    fn request(lines: &[&str]) -> HeaderMap {
        lines
            .iter()
            .map(|line| (header::COOKIE, line.parse().unwrap()))
            .collect()
    }

    fn number(text: &str) -> Result<u8, ()> {
        text.parse().map_err(|_| ())
    }

    #[test]
    fn all_values_of_a_name() {
        let headers = request(&["a=1; b=2;a=3", "a=\"4\"; aa=5; a=; =x; junk"]);
        assert_eq!(
            values(&headers, "a").collect::<Vec<_>>(),
            ["1", "3", "4", ""]
        );
        assert_eq!(values(&headers, "c").count(), 0);
        // Nobody can hide a good one behind rubbish.
        let many = format!("{}a=7", "a=junk;".repeat(1000));
        let headers = request(&[&many]);
        assert_eq!(single(values(&headers, "a"), number), Single::One(7));
    }

    #[test]
    fn cookies_of_applications_hide_none() {
        for beside in [&b"caf\xc3\xa9"[..], b"caf\xe9", b"\"a,b\"", b"", b"x=y"] {
            let line = [b"lang=", beside, b"; s=1;\ttheme=", beside].concat();
            let mut headers = HeaderMap::new();
            headers.insert(header::COOKIE, HeaderValue::from_bytes(&line).unwrap());
            assert_eq!(values(&headers, "s").collect::<Vec<_>>(), ["1"]);
        }
    }

    #[test]
    fn s49_one_good_cookie_counts_two_do_not() {
        let read = |line: &str| {
            let headers = request(&[line]);
            single(values(&headers, "s"), number)
        };
        assert_eq!(read(""), Single::Absent);
        assert_eq!(read("s=1"), Single::One(1));
        assert_eq!(read("s=bad; s=1"), Single::One(1));
        assert_eq!(read("s=1; s=bad"), Single::One(1));
        assert_eq!(read("s=1; s=1"), Single::One(1));
        assert_eq!(read("s=1; s=2"), Single::Conflict);
        assert_eq!(read("s=1; s=bad; s=2"), Single::Conflict);
        assert_eq!(read("s=bad; s=worse"), Single::Bad(()));
    }

    #[test]
    fn session_cookie() {
        let lifetime = Duration::from_secs(14 * 3600);
        let scope = Scope {
            path: "/",
            domain: Some(".example.com"),
            http_only: true,
            same_site: Some(SameSite::Lax),
        };
        assert_eq!(
            set("_pomerium", "v.a-l_ue=", scope, lifetime, at(T)).unwrap(),
            "_pomerium=v.a-l_ue=; Path=/; Domain=example.com; Expires=Thu, 01 Jan 2026 14:00:00 GMT; HttpOnly; Secure; SameSite=Lax"
        );
        let scope = Scope {
            path: "/x",
            domain: None,
            http_only: false,
            same_site: None,
        };
        assert_eq!(
            clear("_pomerium", scope, at(T)).unwrap(),
            "_pomerium=; Path=/x; Expires=Wed, 31 Dec 2025 23:00:00 GMT; Max-Age=0; Secure"
        );
    }

    #[test]
    fn a_conflict_is_cleared_wherever_it_was_planted() {
        let cleared: Vec<String> = clear_everywhere("s", "a.corp.test:8443", at(T))
            .iter()
            .map(|value| value.to_str().unwrap().to_owned())
            .collect();
        assert_eq!(cleared.len(), 3);
        assert!(!cleared[0].contains("Domain"));
        assert!(cleared[1].contains("Domain=a.corp.test;"));
        assert!(cleared[2].contains("Domain=corp.test;"));
    }

    #[test]
    fn what_would_break_a_cookie_is_not_set() {
        for (name, value) in [
            ("", "x"),
            ("a b", "x"),
            ("a=b", "x"),
            ("a", "x;y"),
            ("a", "x y"),
            ("a", "x\r\n"),
        ] {
            assert_eq!(set(name, value, Scope::HOST, Duration::ZERO, at(T)), None);
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(line in "[ -~]{0,200}") {
            let headers = request(&[&line]);
            let _ = single(values(&headers, "a"), number);
        }

        #[test]
        fn what_is_set_is_read(value in "[!#-+--:<-\\[\\]-~]{0,60}", seconds in 0..u64::MAX) {
            let lifetime = Duration::from_secs(seconds);
            let set = set("a", &value, Scope::HOST, lifetime, at(T)).unwrap();
            let sent = set.to_str().unwrap().split("; ").next().unwrap();
            let headers = request(&[sent]);
            prop_assert_eq!(values(&headers, "a").next(), Some(value.as_str()));
        }
    }
}
