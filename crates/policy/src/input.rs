//! The facts that a policy decides on.
//!
//! All of them are borrowed: they live in the request and in the records of the replica.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::Value;

/// Claims by name, each with the list of its values, as session and user records store them:
/// objects are flattened with dots (`{"a": {"b": 1}}` is `a.b: [1]`), a single value is a list of
/// one. Names keep their case.
pub type Claims = BTreeMap<String, Vec<Value>>;

/// Where a policy looks claims up: [`Claims`], or whatever form they are kept in.
pub trait ClaimSource: fmt::Debug + Sync {
    fn get(&self, name: &str) -> Option<Cow<'_, [Value]>>;
}

impl ClaimSource for Claims {
    fn get(&self, name: &str) -> Option<Cow<'_, [Value]>> {
        self.get(name).map(|values| values.as_slice().into())
    }
}

/// Everything that a policy may ask about a request.
///
/// [`Policy::needs`](crate::Policy::needs) tells which of it a policy reads; what it does not read
/// need not be gathered.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    pub http: Http<'a>,
    /// The client's address after trusted hops. An IPv4-mapped IPv6 address counts as IPv4.
    pub client_ip: IpAddr,
    pub client_certificate: ClientCertificate<'a>,
    pub now: Timestamp,
    /// The valid session of whoever asks; the impersonated one where there is one.
    pub session: Option<Session<'a>>,
    pub records: &'a dyn Records,
}

impl Input<'_> {
    /// A `GET /` of somebody who is not signed in: to be completed with `..`.
    pub fn anonymous(client_ip: IpAddr, now: Timestamp) -> Self {
        Self {
            http: Http::default(),
            client_ip,
            client_certificate: ClientCertificate::NotAsked(None),
            now,
            session: None,
            records: &NoRecords,
        }
    }
}

/// What a policy may ask about the HTTP request.
#[derive(Debug, Clone, Copy)]
pub struct Http<'a> {
    /// In upper case, as on the wire.
    pub method: &'a str,
    /// Normalised and percent-decoded, without the query. A request whose path does not decode to
    /// text has no path that could be judged: refuse it before.
    pub path: &'a str,
    /// Header `Origin`, `None` also when it is no text.
    pub origin: Option<&'a str>,
    /// Header `Access-Control-Request-Method`, `None` also when it is no text.
    pub access_control_request_method: Option<&'a str>,
}

impl Default for Http<'_> {
    fn default() -> Self {
        Self {
            method: "GET",
            path: "/",
            origin: None,
            access_control_request_method: None,
        }
    }
}

/// What is known of the client's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificate<'a> {
    /// No client CA applies, so there is nothing that could be invalid. A client may have shown one
    /// all the same.
    NotAsked(Option<Certificate<'a>>),
    /// A client CA applies, and the client showed none.
    Missing,
    /// Its chain, and what else is configured to be checked, is in order.
    Valid(Certificate<'a>),
    Invalid(Certificate<'a>),
}

impl<'a> ClientCertificate<'a> {
    /// The leaf that was shown, whether it is trusted or not.
    pub const fn presented(self) -> Option<Certificate<'a>> {
        match self {
            Self::NotAsked(leaf) => leaf,
            Self::Missing => None,
            Self::Valid(leaf) | Self::Invalid(leaf) => Some(leaf),
        }
    }
}

/// A client's leaf certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certificate<'a> {
    /// SHA-256 of the certificate (DER), 64 lower-case hex digits.
    pub fingerprint: &'a str,
    /// SHA-256 of the Subject Public Key Info (DER), standard base64.
    pub spki_hash: &'a str,
    pub san_dns: &'a [String],
    pub san_email: &'a [String],
    pub san_uri: &'a [String],
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Session<'a> {
    /// From the session or service account. An empty one is nobody's.
    pub user_id: &'a str,
    /// The directory's address if it has one, else the user record's. `None` or empty when there is
    /// none, or none that can be trusted.
    pub email: Option<&'a str>,
    /// These win over `user_claims`: they are the newer ones.
    pub session_claims: &'a dyn ClaimSource,
    pub user_claims: &'a dyn ClaimSource,
    /// Group ids of the directory. `None` when the directory does not know the user: then the claim
    /// `groups` counts.
    pub groups: Option<&'a [String]>,
    /// Devices that this session has proved to hold.
    pub devices: &'a [Device<'a>],
}

/// A device that a session has proved to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device<'a> {
    /// Such as `any` or `enclave_only`.
    pub type_id: &'a str,
    pub credential_id: &'a str,
    /// Somebody has approved its enrollment.
    pub approved: bool,
}

/// Records of the databroker that belong to the request: for each type the one whose id is the
/// user's, else the one whose network holds the client's address.
pub trait Records: fmt::Debug {
    /// The record's data as an object with snake-case members. Expired ones are `None`.
    fn record(&self, record_type: &str) -> Option<&Value>;
}

/// No records at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoRecords;

impl Records for NoRecords {
    fn record(&self, _record_type: &str) -> Option<&Value> {
        None
    }
}

impl Records for BTreeMap<String, Value> {
    fn record(&self, record_type: &str) -> Option<&Value> {
        self.get(record_type)
    }
}

impl<S: std::hash::BuildHasher> Records for HashMap<String, Value, S> {
    fn record(&self, record_type: &str) -> Option<&Value> {
        self.get(record_type)
    }
}
