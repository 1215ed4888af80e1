//! Start here: the decision. A pure function of the request, the route, the facts gathered for it,
//! and the time.

use std::borrow::Cow;

use http::header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use postern_common::authz::CheckRequest;
use postern_common::config::Route;
use postern_policy as policy;
use postern_policy::{CertificateProblem, Reasons, Verdict};

use crate::facts::{Facts, Person, Visitor};

/// What was decided, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    pub outcome: Outcome,
    /// What the policy said; `None` where it was not asked.
    pub verdict: Option<Verdict>,
    /// The ruling must not be used beyond: the session ends, or a time criterion changes.
    pub valid_until: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Allow,
    /// It depends on who asks, and nobody is signed in.
    SignIn,
    Deny(Denial),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// The rules that decided gave these reasons; none when there is no rule at all.
    Policy(Reasons),
    /// The policy asks for a device that this session has not proved to hold.
    Device,
    ClientCertificate(CertificateProblem),
    /// The route is no longer there.
    RouteNotFound,
    /// A provider's token that is not valid.
    InvalidToken,
    CookieAndBearer,
}

/// Own endpoints that need a session. The rest are for everybody, sign-in itself among them.
const NEED_SESSION: [&str; 8] = [
    "/.pomerium/jwt",
    "/.pomerium/user",
    "/.pomerium/webauthn",
    "/.pomerium/routes",
    "/.pomerium/api/v1/routes",
    "/.pomerium/mcp/authorize",
    "/.pomerium/mcp/connect",
    "/.pomerium/mcp/routes",
];

/// Tells people who they are, and those without a session that they have none.
pub const USER_PAGE: &str = "/.pomerium/";

/// Decides about a request to a route.
pub fn decide(request: &CheckRequest, route: &Route, facts: &Facts, now: Timestamp) -> Ruling {
    if let Some(ruling) = refused_credential(&facts.visitor) {
        return ruling;
    }
    let person = facts.visitor.person();
    let verdict = evaluate(request, &route.policy, facts, now);
    let outcome = match verdict.outcome() {
        policy::Outcome::Allow => Outcome::Allow,
        policy::Outcome::Unauthenticated => Outcome::SignIn,
        policy::Outcome::DeviceUnauthenticated { .. } => Outcome::Deny(Denial::Device),
        policy::Outcome::ClientCertificate(problem) => {
            Outcome::Deny(Denial::ClientCertificate(problem))
        }
        policy::Outcome::Denied { reasons } => Outcome::Deny(Denial::Policy(reasons)),
    };
    let session_ends = person.and_then(|person| person.valid_until);
    let boundary = route.policy.next_time_boundary(now);
    Ruling {
        outcome,
        verdict: Some(verdict),
        valid_until: session_ends.into_iter().chain(boundary).min(),
    }
}

/// Whether one of our own endpoints answers only people with a session.
pub fn needs_session(path: &str) -> bool {
    NEED_SESSION.contains(&path)
}

/// Whether the answer of one of our own endpoints depends on the session.
pub fn reads_session(path: &str) -> bool {
    needs_session(path) || path == USER_PAGE
}

/// Decides about a request to one of Postern's own endpoints.
pub fn decide_own_endpoint(request: &CheckRequest, facts: &Facts) -> Ruling {
    if let Some(ruling) = refused_credential(&facts.visitor) {
        return ruling;
    }
    let person = facts.visitor.person();
    Ruling {
        outcome: if needs_session(&request.path) && person.is_none() {
            Outcome::SignIn
        } else {
            Outcome::Allow
        },
        verdict: None,
        valid_until: person.and_then(|person| person.valid_until),
    }
}

impl Ruling {
    pub fn deny(denial: Denial) -> Self {
        Self {
            outcome: Outcome::Deny(denial),
            verdict: None,
            valid_until: None,
        }
    }

    /// Of the rules that decided.
    pub fn reasons(&self) -> Reasons {
        match (&self.outcome, &self.verdict) {
            (Outcome::Deny(Denial::Policy(reasons)), _) => *reasons,
            (Outcome::Allow, Some(verdict)) => verdict.allow.reasons,
            (_, Some(verdict)) if verdict.deny.matched => verdict.deny.reasons,
            (_, Some(verdict)) => verdict.allow.reasons,
            (Outcome::Deny(Denial::RouteNotFound), None) => {
                Reasons::from(policy::Reason::RouteNotFound)
            }
            (_, None) => Reasons::EMPTY,
        }
    }
}

/// Credentials that are refused whatever the policy says.
fn refused_credential(visitor: &Visitor) -> Option<Ruling> {
    match visitor {
        Visitor::InvalidToken => Some(Ruling::deny(Denial::InvalidToken)),
        Visitor::CookieAndBearer => Some(Ruling::deny(Denial::CookieAndBearer)),
        Visitor::Anonymous | Visitor::Rejected(_) | Visitor::Person(_) => None,
    }
}

fn evaluate(
    request: &CheckRequest,
    policy: &policy::Policy,
    facts: &Facts,
    now: Timestamp,
) -> Verdict {
    let header = |name| {
        request
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let path = decoded(&request.path);
    let person = facts.visitor.person();
    let devices: Vec<_> = person.into_iter().flat_map(devices).collect();
    policy.evaluate(&policy::Input {
        http: policy::Http {
            method: request.method.as_str(),
            path: &path,
            origin: header(ORIGIN),
            access_control_request_method: header(ACCESS_CONTROL_REQUEST_METHOD),
        },
        client_ip: request.client_address,
        client_certificate: facts.certificate.for_policy(),
        now,
        session: person.map(|person| policy::Session {
            user_id: &person.user_id,
            email: Some(person.email()).filter(|email| !email.is_empty()),
            session_claims: person.session_claims(),
            user_claims: person.user_claims(),
            groups: person.directory_groups(),
            devices: &devices,
        }),
        records: &facts.records,
    })
}

fn devices(person: &Person) -> impl Iterator<Item = policy::Device<'_>> {
    person.devices.iter().map(|device| policy::Device {
        type_id: &device.type_id,
        credential_id: &device.credential_id,
        approved: device.approved,
    })
}

/// The path for the policy. Bytes that are no text become U+FFFD, so that what stands before and
/// after them is still judged: a rule about `/admin` also sees `/%61dmin%ff`.
fn decoded(path: &str) -> Cow<'_, str> {
    percent_decode_str(path).decode_utf8_lossy()
}

#[cfg(test)]
mod tests;
