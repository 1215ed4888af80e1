//! What changes in a request that may pass.

use std::collections::BTreeSet;

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderName, HeaderValue};
use postern_common::authz::{CheckRequest, ConsumedCredentials};
use postern_common::config::{HeaderTemplate, LoadBalancing, PassIdentity, Route, TemplatePart};
use postern_common::web::credentials::{OwnNames, is_own_authorization};
use sha2::{Digest as _, Sha256};

use crate::assertion::{ASSERTION_HEADER, Assertion, header_value};
use crate::certificate::Leaf;
use crate::facts::Person;

const IMPERSONATE: &str = "impersonate-";
const IMPERSONATE_USER: HeaderName = HeaderName::from_static("impersonate-user");
const IMPERSONATE_GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const ROUTING_KEY: HeaderName = HeaderName::from_static("x-pomerium-routing-key");

/// What the headers are made from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    pub request: &'a CheckRequest,
    pub person: Option<&'a Person>,
    pub assertion: Option<&'a Assertion>,
    pub certificate: Option<&'a Leaf>,
    pub own_names: &'a OwnNames,
    pub consumed: ConsumedCredentials,
}

/// Headers to set, in place of the client's (a name that stands here several times is several
/// headers), and headers of the client to remove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

impl Changes {
    /// What they add to a request, in bytes on the wire of HTTP/1.1.
    pub fn bytes(&self) -> usize {
        const COLON_AND_LINE_END: usize = 4;
        self.set
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + COLON_AND_LINE_END)
            .sum()
    }
}

/// The changes on the way to the upstream of `route`.
pub fn for_upstream(route: &Route, from: &Sources<'_>) -> Changes {
    let mut changes = Changes::default();
    if route.identity.headers == PassIdentity::Yes
        && let Some(assertion) = from.assertion
    {
        changes
            .set
            .push((ASSERTION_HEADER, assertion.token.clone()));
        changes.set.extend(assertion.claim_headers.iter().cloned());
    }
    if let (Some(token), Some(assertion)) = (&route.kubernetes_token, from.assertion) {
        kubernetes(token.reveal(), assertion, from, &mut changes);
    }
    if let (Some(person), Some(target)) = (from.person, route.upstream())
        && matches!(
            target.balancing,
            LoadBalancing::RingHash | LoadBalancing::Maglev
        )
    {
        let key = hex::encode(Sha256::digest(person.id.as_bytes()));
        changes.set.push((ROUTING_KEY, header_value(&key)));
    }
    for (name, template) in &route.request_headers.set {
        let value = header_value(&fill(template, from));
        changes.set.retain(|(known, _)| known != name);
        changes.set.push((name.clone(), value));
    }
    changes
}

/// The API server trusts the service account's token, so nothing of the client's may say whom to
/// impersonate.
fn kubernetes(token: &str, assertion: &Assertion, from: &Sources<'_>, changes: &mut Changes) {
    changes
        .set
        .push((AUTHORIZATION, header_value(&format!("Bearer {token}"))));
    // Whoever has no address is still somebody, and not the service account itself.
    let user = match from.person {
        Some(person) if assertion.email.is_empty() => &*person.user_id,
        _ => &*assertion.email,
    };
    // The API server takes each header for one group.
    let groups = assertion.groups.iter().map(String::as_str);
    let groups = groups.map(|group| (IMPERSONATE_GROUP, group));
    for (name, text) in std::iter::once((IMPERSONATE_USER, user)).chain(groups) {
        let value = header_value(text);
        if !value.is_empty() {
            changes.set.push((name, value));
        }
    }
    let sent: BTreeSet<&str> = from
        .request
        .headers
        .keys()
        .map(HeaderName::as_str)
        .filter(|name| name.starts_with(IMPERSONATE))
        .collect();
    changes.remove.extend(
        sent.into_iter()
            .filter(|name| !changes.set.iter().any(|(set, _)| set == *name))
            .filter_map(|name| name.parse().ok()),
    );
}

/// A value of `set_request_headers`. What a reference has no value for is empty.
fn fill(template: &HeaderTemplate, from: &Sources<'_>) -> String {
    let tokens = from.person.and_then(Person::tokens);
    let mut filled = String::new();
    for part in &template.0 {
        match part {
            TemplatePart::Text(text) => filled.push_str(text),
            TemplatePart::AccessToken => {
                filled.push_str(tokens.map_or("", |tokens| &tokens.access));
            }
            TemplatePart::IdToken => filled.push_str(tokens.map_or("", |tokens| &tokens.id)),
            TemplatePart::Jwt => {
                let token = from
                    .assertion
                    .and_then(|assertion| assertion.token.to_str().ok());
                filled.push_str(token.unwrap_or_default());
            }
            TemplatePart::ClientCertFingerprint => {
                filled.push_str(from.certificate.map_or("", |leaf| &leaf.fingerprint));
            }
            TemplatePart::ClientCertSanDns => {
                filled.push_str(&listed(from.certificate.map(|leaf| &leaf.san_dns)));
            }
            TemplatePart::ClientCertSanEmail => {
                filled.push_str(&listed(from.certificate.map(|leaf| &leaf.san_email)));
            }
            TemplatePart::RequestHeader(name) => {
                let value = foreign_header(name, from);
                let text = value.as_ref().and_then(|value| value.to_str().ok());
                filled.push_str(text.unwrap_or_default());
            }
            TemplatePart::Unknown => {}
        }
    }
    filled
}

/// A header of the client, as far as an upstream may see it: under another name our credentials
/// would reach it all the same.
fn foreign_header(name: &HeaderName, from: &Sources<'_>) -> Option<HeaderValue> {
    let headers = &from.request.headers;
    if *name == COOKIE {
        return from.own_names.foreign_cookies(headers);
    }
    let value = headers.get(name)?;
    let ours = from.own_names.forbids(name)
        || (*name == AUTHORIZATION && is_own_authorization(value, from.consumed));
    (!ours).then(|| value.clone())
}

/// A comma list. A name that contains a comma would read as two, so it is left out.
fn listed(names: Option<&Vec<String>>) -> String {
    let names: Vec<&str> = names
        .into_iter()
        .flatten()
        .map(String::as_str)
        .filter(|name| !name.contains(','))
        .collect();
    names.join(",")
}

#[cfg(test)]
mod tests;
