//! The session handle: a JWT that names a session and proves nothing else.
//!
//! It never expires by itself; the session's record in the databroker decides. Header and payload
//! are what Pomerium writes and reads, with one private claim more, `use`, which Pomerium ignores:
//! where a handle that Postern made may turn up.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{jws, keys::SecretKey};

/// A session handle's claims.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handle {
    /// `jti`: id of the session or service account. Opaque text, never empty.
    pub id: String,
    /// `sub`, the user's id. When read, a claim `oid` wins over it.
    pub subject: String,
    /// `iss`: host of authenticate.
    pub issuer: String,
    /// `aud`: hosts, with port where it is not the default one.
    pub audience: Vec<String>,
    /// `idp_id`, see [`super::provider_id`]. Empty: bound to no provider (service accounts).
    pub idp_id: String,
    /// `iat` in Unix seconds; 0 when absent.
    pub issued_at: i64,
    /// `databroker_record_version`: the session is at least this new. 0 when absent.
    pub record_version: u64,
    /// `databroker_server_version`, in whose counting the record version is. 0 when absent.
    pub server_version: u64,
    /// `use`. Handles of Pomerium and of service accounts have none.
    pub purpose: Option<Purpose>,
}

/// What a handle of Postern's making is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// `browser`: in the cookie of the hosts in `aud`, nowhere else.
    Browser,
    /// `authenticate`: in the cookie of authenticate, nowhere else.
    Authenticate,
    /// `program`: in headers, on every host, nowhere else.
    Program,
}

/// Where a handle was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The session cookie of a route's host.
    Cookie,
    /// `X-Pomerium-Authorization` or one of the forms of `Authorization`, on CONNECT too.
    Header,
    /// The parameter `pomerium_session`.
    Query,
    /// Authenticate's own cookie.
    Authenticate,
}

/// Why a text is no handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    #[error("not a JWT, or too long")]
    Malformed,
    #[error("signed with another algorithm than HS256")]
    Algorithm,
    #[error("not signed by this deployment: shared_secret differs or has changed")]
    Signature,
    #[error("claims are missing or of the wrong type")]
    Claims,
}

/// Why a valid handle doesn't count here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotHere {
    #[error("a {purpose} handle, found in {place}")]
    Place {
        purpose: &'static str,
        place: &'static str,
    },
    #[error("the handle was made for other hosts")]
    Host,
}

impl Handle {
    /// The signed text form.
    pub fn encode(&self, key: &SecretKey) -> String {
        let mut claims = Map::new();
        if !self.audience.is_empty() {
            claims.insert("aud".into(), self.audience.clone().into());
        }
        for (name, version) in [
            ("databroker_record_version", self.record_version),
            ("databroker_server_version", self.server_version),
        ] {
            if version != 0 {
                claims.insert(name.into(), version.into());
            }
        }
        if self.issued_at != 0 {
            claims.insert("iat".into(), self.issued_at.into());
        }
        let purpose = self.purpose.map_or("", Purpose::name);
        for (name, text) in [
            ("idp_id", self.idp_id.as_str()),
            ("iss", &self.issuer),
            ("jti", &self.id),
            ("sub", &self.subject),
            ("use", purpose),
        ] {
            if !text.is_empty() {
                claims.insert(name.into(), text.into());
            }
        }
        jws::sign(key, &Value::Object(claims))
    }

    /// Reads a handle that one of `keys` signed. Says nothing about whether its session lives,
    /// nor whether it may be used where it was found: see [`Handle::acceptable`].
    pub fn decode(keys: &[SecretKey], token: &str) -> Result<Self, HandleError> {
        let payload = jws::verify(keys, token).map_err(|error| match error {
            jws::JwsError::Malformed => HandleError::Malformed,
            jws::JwsError::Algorithm => HandleError::Algorithm,
            jws::JwsError::Signature => HandleError::Signature,
        })?;
        let claims: Claims = serde_json::from_slice(&payload).map_err(|_| HandleError::Claims)?;
        if claims.jti.is_empty() {
            return Err(HandleError::Claims);
        }
        let purpose = match claims.r#use.as_deref() {
            None => None,
            // A purpose of a newer version is none that we could honour.
            Some(name) => Some(Purpose::from_name(name).ok_or(HandleError::Claims)?),
        };
        Ok(Self {
            id: claims.jti,
            subject: claims
                .oid
                .filter(|oid| !oid.is_empty())
                .unwrap_or(claims.sub),
            issuer: claims.iss,
            audience: claims.aud.into_vec(),
            idp_id: claims.idp_id,
            issued_at: claims.iat,
            record_version: claims.databroker_record_version,
            server_version: claims.databroker_server_version,
            purpose,
        })
    }

    /// Whether a handle may be used where it was found, on a request to `host` (as received).
    /// One without purpose follows Pomerium's rules: anywhere.
    pub fn acceptable(
        &self,
        place: Place,
        host: &str,
        cookie_domain: Option<&str>,
    ) -> Result<(), NotHere> {
        let Some(purpose) = self.purpose else {
            return Ok(());
        };
        match (purpose, place) {
            (Purpose::Browser, Place::Cookie) => {
                let host = normal_host(host);
                let named = self.audience.iter().any(|entry| normal_host(entry) == host);
                let shared = cookie_domain.is_some_and(|domain| lies_in(&host, domain));
                if named || shared {
                    Ok(())
                } else {
                    Err(NotHere::Host)
                }
            }
            (Purpose::Authenticate, Place::Authenticate) | (Purpose::Program, Place::Header) => {
                Ok(())
            }
            (purpose, place) => Err(NotHere::Place {
                purpose: purpose.name(),
                place: place.name(),
            }),
        }
    }
}

impl Purpose {
    /// Value of the claim `use`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Browser => "browser",
            Self::Authenticate => "authenticate",
            Self::Program => "program",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Browser, Self::Authenticate, Self::Program]
            .into_iter()
            .find(|p| p.name() == name)
    }
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Cookie => "a route's cookie",
            Self::Header => "a header",
            Self::Query => "the query",
            Self::Authenticate => "authenticate's cookie",
        }
    }
}

/// A host as `aud` lists it: lower case, without the default port of https and a final dot.
pub fn normal_host(host: &str) -> String {
    let host = host.strip_suffix(":443").unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Whether a host, its port aside, is `domain` or below it.
fn lies_in(host: &str, domain: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let domain = domain.trim_start_matches('.').to_ascii_lowercase();
    !domain.is_empty()
        && (name == domain
            || name
                .strip_suffix(&domain)
                .is_some_and(|rest| rest.ends_with('.')))
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    jti: String,
    #[serde(default)]
    sub: String,
    oid: Option<String>,
    #[serde(default)]
    iss: String,
    #[serde(default)]
    aud: Audience,
    #[serde(default)]
    idp_id: String,
    #[serde(default)]
    iat: i64,
    #[serde(default)]
    databroker_record_version: u64,
    #[serde(default)]
    databroker_server_version: u64,
    r#use: Option<String>,
}

/// RFC 7519 section 4.1.3: a list, or one text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    Many(Vec<String>),
    One(String),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Audience {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::Many(list) => list,
            Self::One(one) => vec![one],
        }
    }
}

#[cfg(test)]
mod tests;
