//! What a log line does not tell: whoever can read the log must not be able to sign in with it.

use http::header::{AUTHORIZATION, COOKIE, HeaderName, PROXY_AUTHORIZATION};
use postern_common::crypto::signed_url::param;

/// Stands for what is not told.
const REDACTED: &str = "[redacted]";

/// Headers that carry credentials, beside all of `x-pomerium-`.
const HEADERS: [HeaderName; 3] = [COOKIE, AUTHORIZATION, PROXY_AUTHORIZATION];

/// Parameters that carry credentials: ours, and those of a provider's answer. A signature makes
/// its whole link good for use.
const PARAMETERS: [&str; 9] = [
    "pomerium_session",
    param::SESSION_ENCRYPTED,
    param::JWT,
    param::SIGNATURE,
    "code",
    "state",
    "access_token",
    "id_token",
    "refresh_token",
];

/// A header's value for the log.
pub(super) fn header(name: &HeaderName, value: &[u8]) -> String {
    if HEADERS.contains(name) || name.as_str().starts_with("x-pomerium-") {
        return REDACTED.to_owned();
    }
    String::from_utf8_lossy(value).into_owned()
}

/// A query for the log, with the names of all parameters.
pub(super) fn query(query: &str) -> String {
    let pair = |pair: &str| {
        // However the name is escaped.
        let name = url::form_urlencoded::parse(pair.as_bytes())
            .next()
            .map(|(name, _)| name.to_ascii_lowercase());
        let secret = name.is_some_and(|name| PARAMETERS.contains(&name.as_str()));
        match pair.split_once('=') {
            Some((written, _)) if secret => format!("{written}={REDACTED}"),
            _ => pair.to_owned(),
        }
    };
    query.split('&').map(pair).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s46_credentials_are_not_told() {
        assert_eq!(
            query("code=abc&x=1&st%61te=s&pomerium_jwt=j&pomerium_session_encrypted=e&y&code"),
            "code=[redacted]&x=1&st%61te=[redacted]&pomerium_jwt=[redacted]\
             &pomerium_session_encrypted=[redacted]&y&code"
        );
        assert_eq!(query(""), "");
        for name in ["cookie", "authorization", "x-pomerium-authorization"] {
            let name = HeaderName::from_static(name);
            assert_eq!(header(&name, b"secret"), "[redacted]");
        }
        assert_eq!(header(&HeaderName::from_static("accept"), b"a/b"), "a/b");
    }
}
