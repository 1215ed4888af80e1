//! The headers of the request to the upstream. Pure.
//!
//! They are built anew from the client's: what is not taken over can't reach the upstream.

use http::header::{AUTHORIZATION, CONNECTION, COOKIE, TE, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};
use postern_common::authz::Allow;
use postern_common::config::PassIdentity;
use postern_common::web::credentials::{OwnNames, is_own_authorization};

use crate::address::Address;

pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(crate) const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const X_ENVOY_ORIGINAL_PATH: HeaderName =
    HeaderName::from_static("x-envoy-original-path");
const ASSERTION: HeaderName = HeaderName::from_static("x-pomerium-jwt-assertion");
const ASSERTION_FOR: HeaderName = HeaderName::from_static("x-pomerium-jwt-assertion-for");

/// What depends on the configuration only, built with the snapshot.
#[derive(Debug)]
pub struct HeaderRules {
    own: OwnNames,
    /// `skip_xff_append` is not set.
    append_forwarded_for: bool,
    /// `xff_num_trusted_hops`
    trusted_hops: usize,
}

/// What depends on the request beside its headers.
#[derive(Debug)]
pub struct Forwarding<'a> {
    /// The peer of the connection.
    pub peer: &'a Address,
    /// The client after trusted hops.
    pub client: &'a Address,
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
pub enum Receiver {
    /// Sees no credential of ours.
    Upstream,
    /// Our own authenticate service: the credentials are its.
    Authenticate,
}

impl HeaderRules {
    /// `claim_headers`: names of `jwt_claims_headers`, which clients must not send.
    pub fn new<'a>(
        cookie_name: &str,
        claim_headers: impl IntoIterator<Item = &'a HeaderName>,
        append_forwarded_for: bool,
        trusted_hops: usize,
    ) -> Self {
        Self {
            own: OwnNames::new(cookie_name, claim_headers),
            append_forwarded_for,
            trusted_hops,
        }
    }

    /// What is ours by name.
    pub(crate) fn own(&self) -> &OwnNames {
        &self.own
    }

    /// Whether clients must not send this header, in any spelling.
    pub(crate) fn forbids(&self, name: &HeaderName) -> bool {
        self.own.forbids(name) || is_of_envoy(name.as_str())
    }

    /// Headers for the upstream from those of the client.
    pub fn upstream(
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
                    .any(|n| n.eq_ignore_ascii_case(name.as_str().as_bytes()))
                || self.forbids(name)
                || (*name == AUTHORIZATION
                    && forwarding.receiver == Receiver::Upstream
                    && is_own_authorization(value, allow.consumed));
            if !dropped {
                out.append(name, value.clone());
            }
        }
        match forwarding.receiver {
            Receiver::Upstream => {
                if let Some(cookies) = self.own.foreign_cookies(client) {
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
        for (name, _) in &allow.set_headers {
            out.remove(name);
        }
        for (name, value) in &allow.set_headers {
            let hidden = pass == PassIdentity::No
                && (*name == ASSERTION
                    || *name == ASSERTION_FOR
                    || name.as_str().starts_with("x-pomerium-claim-")
                    || self.own.is_claim(name));
            if !hidden {
                out.append(name, value.clone());
            }
        }
    }

    fn forwarded(&self, out: &mut HeaderMap, client: &HeaderMap, forwarding: &Forwarding<'_>) {
        let hops = joined(client, &X_FORWARDED_FOR);
        let own = self.append_forwarded_for.then(|| forwarding.peer.text());
        match (hops, own) {
            (None, Some(own)) => drop(out.insert(X_FORWARDED_FOR, own.clone())),
            (hops, own) => set(
                out,
                X_FORWARDED_FOR,
                listed(hops, own.map(HeaderValue::as_bytes)),
            ),
        }
        out.insert(
            X_FORWARDED_PROTO,
            HeaderValue::from_static(forwarding.proto),
        );
        out.insert(X_REAL_IP, forwarding.client.text().clone());
        let before = joined(client, &X_FORWARDED_HOST).filter(|_| self.trusted_hops > 0);
        let replaced = forwarding.replaced_host.map(str::as_bytes);
        set(out, X_FORWARDED_HOST, listed(before, replaced));
        set(out, X_ENVOY_ORIGINAL_PATH, forwarding.replaced_path);
        set(out, X_REQUEST_ID, Some(forwarding.request_id));
    }
}

/// What Envoy tells upstreams; here, where clients come in, nobody does.
fn is_of_envoy(name: &str) -> bool {
    name.starts_with("x-envoy-") || name == "x-forwarded-client-cert"
}

/// Taken from elsewhere, never copied.
fn is_rebuilt(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "host"
            | "cookie"
            | "forwarded"
            | "x-forwarded-for"
            | "x-forwarded-proto"
            | "x-forwarded-host"
            | "x-real-ip"
            | "x-request-id"
    )
}

/// RFC 9110 7.6.1, and what is between the client and us only.
pub(crate) fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "transfer-encoding"
            | "upgrade"
            | "te"
            | "trailer"
            | "expect"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authorization"
            | "http2-settings"
    )
}

/// Names that `Connection` lists.
pub(crate) fn nominated(headers: &HeaderMap) -> Vec<&[u8]> {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|name| !name.is_empty())
        .collect()
}

/// Whether a comma-separated field has this token, in any case.
pub(crate) fn has_token(value: &HeaderValue, token: &str) -> bool {
    value.as_bytes().split(|byte| *byte == b',').any(|part| {
        let mut parameters = part.split(|byte| *byte == b';');
        parameters
            .next()
            .is_some_and(|name| name.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    })
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
fn listed(list: Option<Vec<u8>>, last: Option<&[u8]>) -> Option<Vec<u8>> {
    match (list, last) {
        (Some(mut list), Some(last)) => {
            list.extend_from_slice(b", ");
            list.extend_from_slice(last);
            Some(list)
        }
        (list, last) => list.or(last.map(<[u8]>::to_vec)),
    }
}

fn set(out: &mut HeaderMap, name: HeaderName, value: Option<impl AsRef<[u8]>>) {
    let value = value.and_then(|value| HeaderValue::from_bytes(value.as_ref()).ok());
    if let Some(value) = value {
        out.insert(name, value);
    }
}

#[cfg(test)]
mod tests;
