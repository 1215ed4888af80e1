//! What of a request is between its client and us: headers that only we set, and credentials of
//! ours. Pure. Whoever hands requests on (the proxy itself, or Envoy as authorize tells it) keeps
//! all of it from the upstream.

use std::borrow::Cow;

use http::header::{AUTHORIZATION, COOKIE, FORWARDED, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};
use memchr::memmem::Finder;

use super::cookie::{elements, suffix};
use crate::authz::ConsumedCredentials;

/// Pomerium's own name for its cookies, and the default.
const PREFIX: &[u8] = b"_pomerium";

/// The parameter of the query that carries a session handle, for programs that can set no header.
pub const SESSION_PARAMETER: &str = "pomerium_session";

/// Names that are ours by configuration, made once for each.
#[derive(Debug, Clone)]
pub struct OwnNames {
    /// `cookie_name`
    cookie_name: String,
    /// Names that every cookie of ours begins with.
    cookies: Vec<Finder<'static>>,
    /// Configured claim headers that no prefix covers, with `-` for `_`.
    claim_headers: Vec<HeaderName>,
}

impl OwnNames {
    pub fn new<'a>(
        cookie_name: &str,
        claim_headers: impl IntoIterator<Item = &'a HeaderName>,
    ) -> Self {
        let claim_headers = claim_headers.into_iter().map(dashed);
        let mut cookies = vec![Finder::new(PREFIX)];
        if !cookie_name.as_bytes().starts_with(PREFIX) {
            cookies.push(Finder::new(cookie_name.as_bytes()).into_owned());
        }
        Self {
            cookie_name: cookie_name.to_owned(),
            cookies,
            claim_headers: claim_headers
                .filter(|name| !is_reserved(name.as_str()))
                .collect(),
        }
    }

    /// Whether clients must not send this header: only we set it, in any spelling that an upstream
    /// could take for it; or it is another spelling of one that proxies set.
    pub fn forbids(&self, name: &HeaderName) -> bool {
        if memchr::memchr(b'_', name.as_str().as_bytes()).is_some() {
            let name = dashed(name);
            return is_reserved(name.as_str())
                || is_of_proxies(&name)
                || self.claim_headers.contains(&name);
        }
        is_reserved(name.as_str()) || self.claim_headers.contains(name)
    }

    /// Whether this is one of the configured claim headers.
    pub fn is_claim(&self, name: &HeaderName) -> bool {
        self.claim_headers.contains(name)
    }

    /// Whether this cookie is ours: a pair as it stands in a request, or its name alone. An
    /// application's name may begin like ours, so the names are the ones that we and Pomerium set;
    /// but `_pomerium` is ours whatever follows.
    pub fn is_cookie(&self, pair: &[u8]) -> bool {
        // A cookie without a name is sent as its value alone: `=name=x` comes as `name=x`.
        let mut parts = pair.split(|byte| *byte == b'=').map(<[u8]>::trim_ascii);
        let name = parts.find(|part| !part.is_empty()).unwrap_or_default();
        let own = || {
            let rest = name.strip_prefix(self.cookie_name.as_bytes())?;
            let known = suffix::ALL.iter().any(|suffix| rest == suffix.as_bytes());
            Some(rest.is_empty() || known || rest.starts_with(suffix::PKCE.as_bytes()))
        };
        name.starts_with(PREFIX) || own().unwrap_or(false)
    }

    /// Whether one of our cookies may be in this field.
    fn may_hold_own(&self, field: &[u8]) -> bool {
        let mut names = self.cookies.iter();
        names.any(|name| name.find(field).is_some())
    }

    /// The client's cookies without ours, in one field (RFC 9113 8.2.3 lets clients split them).
    pub fn foreign_cookies(&self, client: &HeaderMap) -> Option<HeaderValue> {
        let mut fields = client.get_all(COOKIE).iter().peekable();
        let first = fields.next()?;
        if fields.peek().is_none() && !self.may_hold_own(first.as_bytes()) {
            return Some(first.clone());
        }
        let kept: Vec<&[u8]> = client
            .get_all(COOKIE)
            .iter()
            .flat_map(|field| elements(field.as_bytes()))
            .filter(|cookie| !cookie.is_empty() && !self.is_cookie(cookie))
            .collect();
        let joined = kept.join(&b"; "[..]);
        HeaderValue::from_bytes(&joined)
            .ok()
            .filter(|value| !value.is_empty())
    }
}

/// Whether an `Authorization` is a session handle, or a provider's token that authorize has used
/// up.
pub fn is_own_authorization(value: &HeaderValue, consumed: ConsumedCredentials) -> bool {
    let Some((scheme, rest)) = split_scheme(value.as_bytes()) else {
        return value.as_bytes().eq_ignore_ascii_case(b"pomerium");
    };
    if scheme.eq_ignore_ascii_case(b"pomerium") {
        return true;
    }
    let handle = rest
        .get(..9)
        .is_some_and(|prefix| prefix.eq_ignore_ascii_case(b"pomerium-"));
    scheme.eq_ignore_ascii_case(b"bearer") && (consumed.bearer || handle)
}

/// Whether a pair of a query, as it stands there, carries a session handle, however it is escaped.
pub fn is_session_pair(pair: &str) -> bool {
    let name = pair_name(pair);
    name == SESSION_PARAMETER
        || (name.contains('%')
            && percent_encoding::percent_decode_str(name)
                .decode_utf8()
                .is_ok_and(|name| name == SESSION_PARAMETER))
}

/// Names, as they stand there, under which a query carries session handles.
pub fn session_parameters(query: &str) -> impl Iterator<Item = &str> {
    query
        .split('&')
        .filter(|pair| is_session_pair(pair))
        .map(pair_name)
}

/// The query without pairs that carry a session handle. Every other byte stays as it was sent.
pub fn without_session(query: &str) -> Cow<'_, str> {
    if query.split('&').any(is_session_pair) {
        let kept: Vec<_> = query
            .split('&')
            .filter(|pair| !is_session_pair(pair))
            .collect();
        Cow::Owned(kept.join("&"))
    } else {
        Cow::Borrowed(query)
    }
}

fn pair_name(pair: &str) -> &str {
    pair.split('=').next().unwrap_or_default()
}

/// Names that only we set: no client may, whatever an upstream makes of them. Kubernetes and its
/// heirs let whoever presents our token be anybody by `Impersonate-*`.
fn is_reserved(name: &str) -> bool {
    ["x-pomerium-", "x-postern-", "impersonate-"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Set by the proxy that a client talks to; another spelling of one would stand beside its own.
fn is_of_proxies(name: &HeaderName) -> bool {
    const NAMES: [&str; 6] = [
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-forwarded-client-cert",
        "x-real-ip",
        "x-request-id",
    ];
    [HOST, COOKIE, FORWARDED, AUTHORIZATION].contains(name)
        || NAMES.contains(&name.as_str())
        || name.as_str().starts_with("x-envoy-")
}

fn split_scheme(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let value = value.trim_ascii();
    let at = value.iter().position(u8::is_ascii_whitespace)?;
    let (scheme, rest) = value.split_at(at);
    Some((scheme, rest.trim_ascii()))
}

/// The same name with `-` for `_`: CGI and its heirs read the two alike.
fn dashed(name: &HeaderName) -> HeaderName {
    let text = match name.as_str() {
        text if text.contains('_') => Cow::Owned(text.replace('_', "-")),
        text => Cow::Borrowed(text),
    };
    HeaderName::try_from(&*text).unwrap_or_else(|_| name.clone())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn own() -> OwnNames {
        let claims = ["x-email", "x_team", "x-pomerium-claim-name"].map(HeaderName::from_static);
        OwnNames::new("_pomerium", &claims)
    }

    #[test]
    fn s06_headers_that_only_we_set_in_any_spelling() {
        for (name, forbidden) in [
            ("x-pomerium-claim-email", true),
            ("x_pomerium-claim_email", true),
            ("x-postern-heartbeat", true),
            ("impersonate-user", true),
            ("impersonate_group", true),
            ("impersonate-extra-scopes", true),
            ("x-email", true),
            ("x_email", true),
            ("x-team", true),
            ("x_team", true),
            // A proxy's own are its; another spelling of them is nobody's.
            ("x-forwarded-for", false),
            ("x_forwarded_for", true),
            ("x_envoy-original-path", true),
            ("x_forwarded-client-cert", true),
            ("x_real_ip", true),
            ("accept", false),
            ("x-emails", false),
            ("my_header", false),
        ] {
            assert_eq!(
                own().forbids(&HeaderName::from_static(name)),
                forbidden,
                "{name}"
            );
        }
    }

    #[test]
    fn s05_an_application_may_have_cookies_whose_names_begin_like_ours() {
        let own = OwnNames::new("session", []);
        for name in [
            "session",
            "session_authenticate",
            "session_binding",
            "session_csrf",
            "session_pkce_123",
            "session_signed_in",
            "session_signed_out_redirect_uri",
            "_pomerium",
            "_pomerium_anything",
        ] {
            for pair in [
                name.to_owned(),
                format!("{name}=x=y"),
                format!("{name} = x"),
                format!(" = {name}=x"),
            ] {
                assert!(own.is_cookie(pair.as_bytes()), "{pair}");
            }
            let mut headers = HeaderMap::new();
            headers.insert(COOKIE, format!("a=1; {name}=x; b=2").parse().unwrap());
            assert_eq!(own.foreign_cookies(&headers).unwrap(), "a=1; b=2", "{name}");
        }
        let theirs =
            "sessionid=1; session_id=2; sessions=3; mysession=4; a=session; session_csrf2=5";
        for pair in theirs.split("; ") {
            assert!(!own.is_cookie(pair.as_bytes()), "{pair}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, theirs.parse().unwrap());
        assert_eq!(own.foreign_cookies(&headers).unwrap(), theirs);
    }

    #[test]
    fn s05_own_cookies_go_and_others_stay_as_they_are() {
        let cookies = |fields: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append(COOKIE, HeaderValue::from_static(field));
            }
            let kept = own().foreign_cookies(&headers);
            kept.map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(cookies(&[]), None);
        assert_eq!(cookies(&["a=1;flag;  b"]).unwrap(), "a=1;flag;  b");
        assert_eq!(
            cookies(&["a=1; _pomerium=x; flag", "_pomerium_csrf=y;b=2"]).unwrap(),
            "a=1; flag; b=2"
        );
        assert_eq!(cookies(&["_pomerium=x"]), None);
    }

    #[test]
    fn s05_authorization_that_is_ours() {
        let none = ConsumedCredentials::default();
        let used = ConsumedCredentials { bearer: true };
        for (value, consumed, ours) in [
            ("Pomerium X", none, true),
            ("pomerium\tX", none, true),
            ("Pomerium", none, true),
            ("Bearer Pomerium-X", none, true),
            ("bearer   pomerium-X", none, true),
            ("Bearer X", none, false),
            ("bearer X", used, true),
            ("Basic X", used, false),
        ] {
            let header = HeaderValue::from_static(value);
            assert_eq!(is_own_authorization(&header, consumed), ours, "{value}");
        }
    }

    #[test]
    fn names_of_session_parameters_are_as_sent() {
        let found: Vec<_> =
            session_parameters("a=1&pomerium_session=X&%70omerium_session=Y&pomerium_sessions=1")
                .collect();
        assert_eq!(found, ["pomerium_session", "%70omerium_session"]);
        assert_eq!(without_session("a=1&pomerium_session=X&b"), "a=1&b");
    }

    proptest! {
        #[test]
        fn s05_no_session_parameter_survives(
            query in "(pomerium_session|a|%70omerium_session|pomerium%5Fsession|&|=|x|\\+|%ff){0,8}"
        ) {
            let kept = without_session(&query).into_owned();
            for (name, _) in url::form_urlencoded::parse(kept.as_bytes()) {
                prop_assert_ne!(name, SESSION_PARAMETER);
            }
        }
    }
}
