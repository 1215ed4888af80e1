//! What an upstream learns about the person: the assertion JWT, and headers with claims.
//!
//! Signing is the most expensive part of a decision, so an assertion serves the same session and
//! audience for a while (`jwt_assertion_reuse`). Its `jti` names the assertion, not the request.

use std::borrow::Cow;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use jiff::{SignedDuration, Timestamp};
use postern_common::config::{IssuerFormat, RouteId};
use postern_common::crypto::keys::{SignError, SigningKeys};
use postern_policy::claim_text;
use serde_json::{Map, Value};

use crate::facts::{Person, PersonVersions};
use crate::records::Claims;
use crate::reuse::Reuse;

pub const ASSERTION_HEADER: HeaderName = HeaderName::from_static("x-pomerium-jwt-assertion");

/// How long an upstream may accept an assertion.
const LIFETIME: SignedDuration = SignedDuration::from_mins(5);

/// An assertion is never handed out with less than four minutes to live.
const LONGEST_REUSE: Duration = Duration::from_secs(60);

/// Bytes of assertions and claim headers that are kept for reuse.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// Claims of the assertion that no provider can set.
const RESERVED: [&str; 11] = [
    "iss", "aud", "iat", "exp", "jti", "sub", "user", "email", "groups", "sid", "name",
];

/// For whom, and in which form.
#[derive(Debug, Clone, Copy)]
pub struct Audience<'a> {
    /// The host's name, without a port.
    pub host: &'a str,
    pub issuer: IssuerFormat,
    /// Groups that may be named; empty: all. The global and the route's filter together.
    pub groups_filter: &'a [&'a str],
    /// Header and claim.
    pub claims_headers: &'a [(HeaderName, String)],
}

/// The claims, and how many groups the filter kept back.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    pub claims: Map<String, Value>,
    pub removed_groups: usize,
}

/// The claims of an assertion about a person, or about nobody.
pub fn identity(
    person: Option<&Person>,
    audience: &Audience<'_>,
    now: Timestamp,
    id: String,
) -> Identity {
    let (groups, removed_groups) = groups(person, audience.groups_filter);
    let user_id = person.map_or("", |person| &person.user_id);
    let issuer = match audience.issuer {
        IssuerFormat::HostOnly => audience.host.to_owned(),
        IssuerFormat::Uri => format!("https://{}/", audience.host),
    };
    let mut claims = Map::new();
    for (_, claim) in audience.claims_headers {
        if !RESERVED.contains(&claim.as_str())
            && let Some(text) = person.and_then(|person| configured_claim(person, claim))
        {
            claims.insert(claim.clone(), text.into());
        }
    }
    let name = person
        .and_then(|person| configured_claim(person, "name"))
        .unwrap_or_default();
    let fixed: [(&str, Value); 11] = [
        ("iss", issuer.into()),
        ("aud", audience.host.into()),
        ("iat", now.as_second().into()),
        ("exp", (now.as_second() + LIFETIME.as_secs()).into()),
        ("jti", id.into()),
        ("sub", user_id.into()),
        ("user", user_id.into()),
        ("email", person.map_or("", Person::email).into()),
        ("groups", groups.into()),
        ("sid", person.map_or("", |person| &person.id).into()),
        ("name", name.into()),
    ];
    claims.extend(fixed.map(|(name, value)| (name.to_owned(), value)));
    Identity {
        claims,
        removed_groups,
    }
}

/// A claim as one text: of the session, else of the user.
fn configured_claim(person: &Person, claim: &str) -> Option<String> {
    let of = |claims: &Claims| claims.get(claim).map(|values| joined(&values));
    of(person.session_claims()).or_else(|| of(person.user_claims()))
}

fn joined(values: &[Value]) -> String {
    let texts: Vec<_> = values.iter().filter_map(claim_text).collect();
    texts.join(",")
}

/// The directory's groups, ids first and then names; without any, those that the provider claims.
fn groups(person: Option<&Person>, filter: &[&str]) -> (Vec<Value>, usize) {
    let Some(person) = person else {
        return (Vec::new(), 0);
    };
    let is_allowed = |group: &str| filter.is_empty() || filter.contains(&group);
    let directory = person.directory_groups().unwrap_or_default();
    if directory.is_empty() {
        let claimed = person.session_claims().get("groups").unwrap_or_default();
        let all: Vec<Cow<'_, str>> = claimed.iter().filter_map(claim_text).collect();
        let count = all.len();
        let kept: Vec<Value> = all
            .into_iter()
            .filter(|group| is_allowed(group))
            .map(|group| group.into_owned().into())
            .collect();
        let removed = count - kept.len();
        return (kept, removed);
    }
    let names = person
        .group_names
        .iter()
        .map(String::as_str)
        .chain(std::iter::repeat(""));
    let kept: Vec<(&str, &str)> = directory
        .iter()
        .map(String::as_str)
        .zip(names)
        .filter(|(id, _)| is_allowed(id))
        .collect();
    let removed = directory.len() - kept.len();
    let names = kept
        .iter()
        .map(|(_, name)| *name)
        .filter(|name| !name.is_empty());
    let ids = kept.iter().map(|(id, _)| *id);
    (ids.chain(names).map(Into::into).collect(), removed)
}

/// One header for each configured claim. A claim that is missing gives an empty one, so that
/// nobody can supply it.
pub fn claim_headers(
    claims: &Map<String, Value>,
    configured: &[(HeaderName, String)],
) -> Vec<(HeaderName, HeaderValue)> {
    configured
        .iter()
        .map(|(header, claim)| {
            let text = match claims.get(claim) {
                Some(Value::Array(values)) => joined(values),
                Some(value) => claim_text(value).map(Cow::into_owned).unwrap_or_default(),
                None => String::new(),
            };
            (header.clone(), header_value(&text))
        })
        .collect()
}

/// A text as a header's value. Empty if it can't be one: a value with a piece cut out could be
/// somebody else's name.
pub fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_bytes(text.as_bytes()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// A signed assertion with the headers that go with it.
#[derive(Debug)]
pub struct Assertion {
    pub token: HeaderValue,
    pub claim_headers: Vec<(HeaderName, HeaderValue)>,
    pub email: String,
    /// For `Impersonate-Group`.
    pub groups: Vec<String>,
    pub removed_groups: usize,
    made_at: Timestamp,
}

/// Everything that an assertion is made from, but the time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Of the loaded configuration: stands for claim headers, filters, issuer format and key.
    pub configuration: u64,
    /// `None`: for one of Postern's own endpoints.
    pub route: Option<RouteId>,
    pub host: Arc<str>,
    pub person: Option<(Arc<str>, PersonVersions)>,
}

/// Signs assertions, and reuses them.
#[derive(Debug)]
pub struct Assertions {
    hasher: RandomState,
    made: Reuse<Key, Arc<Assertion>>,
}

impl Default for Assertions {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            made: Reuse::new(CACHE_BYTES),
        }
    }
}

fn weight(key: &Key, assertion: &Assertion) -> usize {
    const OVERHEAD: usize = 400;
    let headers: usize = assertion
        .claim_headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    let groups: usize = assertion.groups.iter().map(String::len).sum();
    OVERHEAD + key.host.len() + assertion.token.len() + assertion.email.len() + groups + headers
}

impl Assertions {
    /// An assertion for `key`, at most `reuse` old, or a new one.
    pub fn get_or_sign(
        &self,
        key: Key,
        reuse: Duration,
        now: Timestamp,
        signing_keys: &SigningKeys,
        person: Option<&Person>,
        audience: &Audience<'_>,
    ) -> Result<Arc<Assertion>, SignError> {
        let reuse = SignedDuration::try_from(reuse.min(LONGEST_REUSE)).unwrap_or_default();
        let hash = self.hasher.hash_one(&key);
        if let Some(made) = self.made.get(hash, |known| *known == key) {
            let age = now.duration_since(made.made_at);
            if age >= SignedDuration::ZERO && age < reuse {
                return Ok(made);
            }
        }
        let id = postern_common::crypto::random::uuid();
        let assertion = Arc::new(sign(signing_keys, person, audience, now, id)?);
        if reuse > SignedDuration::ZERO {
            let weight = weight(&key, &assertion);
            self.made.insert(hash, key, Arc::clone(&assertion), weight);
        }
        Ok(assertion)
    }
}

fn sign(
    signing_keys: &SigningKeys,
    person: Option<&Person>,
    audience: &Audience<'_>,
    now: Timestamp,
    id: String,
) -> Result<Assertion, SignError> {
    let Identity {
        claims,
        removed_groups,
    } = identity(person, audience, now, id);
    let claim_headers = claim_headers(&claims, audience.claims_headers);
    let email = match claims.get("email") {
        Some(Value::String(text)) => text.clone(),
        _ => String::new(),
    };
    let groups = match claims.get("groups") {
        Some(Value::Array(values)) => values.iter().filter_map(claim_text).collect(),
        _ => Vec::new(),
    };
    let groups: Vec<Cow<'_, str>> = groups;
    let groups = groups.into_iter().map(Cow::into_owned).collect();
    let token = signing_keys.sign(&Value::Object(claims))?;
    Ok(Assertion {
        token: header_value(&token),
        claim_headers,
        email,
        groups,
        removed_groups,
        made_at: now,
    })
}

#[cfg(test)]
mod tests;
