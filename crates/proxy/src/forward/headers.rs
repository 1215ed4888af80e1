//! The headers of the request to the upstream. Pure.
//!
//! They are built anew from the client's: what is not taken over can't reach the upstream.

use std::borrow::Cow;
use std::net::IpAddr;

use http::header::{
    AUTHORIZATION, CONNECTION, COOKIE, EXPECT, FORWARDED, HOST, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use postern_common::authz::Allow;
use postern_common::config::PassIdentity;

pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(crate) const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const X_ENVOY_ORIGINAL_PATH: HeaderName =
    HeaderName::from_static("x-envoy-original-path");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const ASSERTION: HeaderName = HeaderName::from_static("x-pomerium-jwt-assertion");
const ASSERTION_FOR: HeaderName = HeaderName::from_static("x-pomerium-jwt-assertion-for");

/// What depends on the configuration only, built with the snapshot.
#[derive(Debug)]
pub(crate) struct HeaderRules {
    /// `cookie_name`; every cookie that starts with it is ours.
    cookie_name: String,
    /// Configured claim headers that no prefix covers, with `-` for `_`.
    claim_headers: Vec<HeaderName>,
    /// `skip_xff_append` is not set.
    append_forwarded_for: bool,
    /// `xff_num_trusted_hops`
    trusted_hops: usize,
}

/// What depends on the request beside its headers.
#[derive(Debug)]
pub(crate) struct Forwarding<'a> {
    /// The peer of the connection.
    pub peer: IpAddr,
    /// The client after trusted hops.
    pub client: IpAddr,
    /// What the client spoke, after trusted hops.
    pub proto: &'static str,
    pub request_id: &'a str,
    /// The client's host, when the upstream gets another one.
    pub replaced_host: Option<&'a str>,
    /// The client's path, when the upstream gets another one.
    pub replaced_path: Option<&'a str>,
    pub upgrade: Option<&'a HeaderValue>,
    pub receiver: Receiver,
    pub identity: PassIdentity,
    /// `remove_request_headers` of the route.
    pub remove: &'a [HeaderName],
}

/// Who gets a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receiver {
    /// Sees no credential of ours.
    Upstream,
    /// Our own authenticate service: the credentials are its.
    Authenticate,
}

impl HeaderRules {
    pub(crate) fn new<'a>(
        cookie_name: &str,
        claim_headers: impl IntoIterator<Item = &'a HeaderName>,
        append_forwarded_for: bool,
        trusted_hops: usize,
    ) -> Self {
        let claim_headers = claim_headers.into_iter().map(dashed);
        Self {
            cookie_name: cookie_name.to_owned(),
            claim_headers: claim_headers
                .filter(|name| !is_reserved(name.as_str()))
                .collect(),
            append_forwarded_for,
            trusted_hops,
        }
    }

    /// Whether clients must not send this header, in any spelling.
    pub(crate) fn forbids(&self, name: &HeaderName) -> bool {
        let text = name.as_str();
        if text.contains('_') {
            let name = dashed(name);
            return is_reserved(name.as_str())
                || is_forwarding(&name)
                || self.claim_headers.contains(&name);
        }
        is_reserved(text) || self.claim_headers.contains(name)
    }

    /// Headers for the upstream from those of the client.
    pub(crate) fn upstream(
        &self,
        client: &HeaderMap,
        allow: &Allow,
        forwarding: &Forwarding<'_>,
    ) -> HeaderMap {
        let mut out = HeaderMap::with_capacity(client.len() + allow.set_headers.len() + 6);
        let nominated = nominated(client);
        for (name, value) in client {
            let dropped = is_hop_by_hop(name)
                || is_rebuilt(name)
                || nominated
                    .iter()
                    .any(|n| n.eq_ignore_ascii_case(name.as_str()))
                || self.forbids(name)
                || (*name == AUTHORIZATION
                    && forwarding.receiver == Receiver::Upstream
                    && is_own_credential(value, allow));
            if !dropped {
                out.append(name, value.clone());
            }
        }
        match forwarding.receiver {
            Receiver::Upstream => {
                if let Some(cookies) = self.cookies(client) {
                    out.insert(COOKIE, cookies);
                }
            }
            Receiver::Authenticate => {
                for field in client.get_all(COOKIE) {
                    out.append(COOKIE, field.clone());
                }
            }
        }
        for name in &allow.remove_headers {
            out.remove(name);
        }
        self.identity(&mut out, allow, forwarding.identity);
        self.forwarded(&mut out, client, forwarding);
        if client
            .get_all(TE)
            .iter()
            .any(|te| has_token(te, "trailers"))
        {
            out.insert(TE, HeaderValue::from_static("trailers"));
        }
        for name in forwarding.remove {
            out.remove(name);
        }
        // After removal, because it is the protocol's, not the route's.
        if let Some(token) = forwarding.upgrade {
            out.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            out.insert(UPGRADE, token.clone());
        }
        out
    }

    fn identity(&self, out: &mut HeaderMap, allow: &Allow, pass: PassIdentity) {
        for (name, value) in &allow.set_headers {
            let hidden = pass == PassIdentity::No
                && (*name == ASSERTION
                    || *name == ASSERTION_FOR
                    || name.as_str().starts_with("x-pomerium-claim-")
                    || self.claim_headers.contains(name));
            if !hidden {
                out.insert(name, value.clone());
            }
        }
    }

    fn forwarded(&self, out: &mut HeaderMap, client: &HeaderMap, forwarding: &Forwarding<'_>) {
        let hops = joined(client, &X_FORWARDED_FOR);
        let own = self
            .append_forwarded_for
            .then(|| forwarding.peer.to_string());
        set(out, X_FORWARDED_FOR, listed(hops, own));
        out.insert(
            X_FORWARDED_PROTO,
            HeaderValue::from_static(forwarding.proto),
        );
        set(out, X_REAL_IP, Some(forwarding.client.to_string()));
        let before = joined(client, &X_FORWARDED_HOST).filter(|_| self.trusted_hops > 0);
        let replaced = forwarding.replaced_host.map(str::to_owned);
        set(out, X_FORWARDED_HOST, listed(before, replaced));
        set(out, X_ENVOY_ORIGINAL_PATH, forwarding.replaced_path);
        set(out, X_REQUEST_ID, Some(forwarding.request_id));
    }

    /// The client's cookies without ours, in one field (RFC 9113 8.2.3 lets clients split them).
    fn cookies(&self, client: &HeaderMap) -> Option<HeaderValue> {
        let mut fields = client.get_all(COOKIE).iter().peekable();
        let first = fields.next()?;
        let ours = |value: &HeaderValue| {
            let name = self.cookie_name.as_bytes();
            value
                .as_bytes()
                .windows(name.len().max(1))
                .any(|window| window == name)
        };
        if fields.peek().is_none() && !ours(first) {
            return Some(first.clone());
        }
        let kept: Vec<&[u8]> = client
            .get_all(COOKIE)
            .iter()
            .flat_map(|field| field.as_bytes().split(|b| *b == b';'))
            .map(<[u8]>::trim_ascii)
            .filter(|cookie| !cookie.is_empty() && !cookie.starts_with(self.cookie_name.as_bytes()))
            .collect();
        let joined = kept.join(&b"; "[..]);
        HeaderValue::from_bytes(&joined)
            .ok()
            .filter(|value| !value.is_empty())
    }
}

/// Names that only we set: no client may, whatever an upstream makes of them.
fn is_reserved(name: &str) -> bool {
    (name.starts_with("x-")
        && (name.starts_with("x-pomerium-")
            || name.starts_with("x-postern-")
            || name.starts_with("x-envoy-")
            || name == "x-forwarded-client-cert"))
        || name.starts_with("impersonate-")
}

/// Rebuilt by us; another spelling of one would stand beside ours.
fn is_forwarding(name: &HeaderName) -> bool {
    is_rebuilt(name) || *name == AUTHORIZATION
}

/// Taken from elsewhere, never copied.
fn is_rebuilt(name: &HeaderName) -> bool {
    *name == HOST
        || *name == COOKIE
        || *name == FORWARDED
        || *name == X_FORWARDED_FOR
        || *name == X_FORWARDED_PROTO
        || *name == X_FORWARDED_HOST
        || *name == X_REAL_IP
        || *name == X_REQUEST_ID
}

/// RFC 9110 7.6.1, and what is between the client and us only.
pub(crate) fn is_hop_by_hop(name: &HeaderName) -> bool {
    *name == CONNECTION
        || *name == TRANSFER_ENCODING
        || *name == UPGRADE
        || *name == TE
        || *name == TRAILER
        || *name == EXPECT
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
        || *name == PROXY_AUTHORIZATION
        || *name == HTTP2_SETTINGS
}

/// Names that `Connection` lists.
pub(crate) fn nominated(headers: &HeaderMap) -> Vec<&str> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect()
}

/// Whether a comma-separated field has this token, in any case.
pub(crate) fn has_token(value: &HeaderValue, token: &str) -> bool {
    value.to_str().is_ok_and(|value| {
        value.split(',').any(|part| {
            part.split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .eq_ignore_ascii_case(token)
        })
    })
}

/// A session handle, or a provider's token that authorize has used up.
fn is_own_credential(value: &HeaderValue, allow: &Allow) -> bool {
    let Some((scheme, rest)) = split_scheme(value.as_bytes()) else {
        return value.as_bytes().eq_ignore_ascii_case(b"pomerium");
    };
    if scheme.eq_ignore_ascii_case(b"pomerium") {
        return true;
    }
    let handle = rest
        .get(..9)
        .is_some_and(|prefix| prefix.eq_ignore_ascii_case(b"pomerium-"));
    scheme.eq_ignore_ascii_case(b"bearer") && (allow.consumed.bearer || handle)
}

fn split_scheme(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let value = value.trim_ascii();
    let at = value.iter().position(u8::is_ascii_whitespace)?;
    let (scheme, rest) = value.split_at(at);
    Some((scheme, rest.trim_ascii()))
}

/// All values of a field in one (RFC 9110 5.3), as bytes: one that is no ASCII is not to hide the
/// others.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    let values: Vec<&[u8]> = headers
        .get_all(name)
        .iter()
        .map(HeaderValue::as_bytes)
        .filter(|value| !value.is_empty())
        .collect();
    (!values.is_empty()).then(|| values.join(&b", "[..]))
}

/// Adds `last` to a list.
fn listed(list: Option<Vec<u8>>, last: Option<String>) -> Option<Vec<u8>> {
    match (list, last) {
        (Some(mut list), Some(last)) => {
            list.extend_from_slice(b", ");
            list.extend_from_slice(last.as_bytes());
            Some(list)
        }
        (list, last) => list.or(last.map(String::into_bytes)),
    }
}

fn set(out: &mut HeaderMap, name: HeaderName, value: Option<impl AsRef<[u8]>>) {
    let value = value.and_then(|value| HeaderValue::from_bytes(value.as_ref()).ok());
    if let Some(value) = value {
        out.insert(name, value);
    }
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
mod tests;
