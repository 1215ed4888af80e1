//! From a ruling to what the client gets.

use http::header::SET_COOKIE;
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;
use postern_common::authz::{CheckRequest, Deny, DenyKind};
use postern_common::config::{Config, ErrorDetails};
use postern_common::crypto::random;
use postern_common::web::cookie;
use postern_policy::{CertificateProblem, Reasons};

use crate::decide::{Denial, Outcome, Ruling};
use crate::facts::{Facts, Rejection, Visitor};
use crate::sign_in::{self, Random, SignIn};
use crate::snapshot::{LoadedRoute, Snapshot};

/// The answer to a request that may not pass; `None` if it may.
pub fn denial(
    request: &CheckRequest,
    snapshot: &Snapshot,
    route: Option<&LoadedRoute>,
    facts: &Facts,
    ruling: &Ruling,
    now: Timestamp,
) -> Option<Deny> {
    let mut deny = match ruling.outcome {
        Outcome::Allow => return None,
        Outcome::SignIn => Deny {
            message: not_signed_in(&facts.visitor),
            ..ask_to_sign_in(request, snapshot, route, now)
        },
        Outcome::Deny(denial) => refuse(denial, &facts.visitor),
    };
    if let Visitor::Rejected(Rejection::TwoSessions) = facts.visitor {
        let name = &snapshot.config.cookie.name;
        let cleared = cookie::clear_everywhere(name, &request.host, now);
        deny.headers
            .extend(cleared.into_iter().map(|value| (SET_COOKIE, value)));
    }
    deny.reasons = texts(ruling.reasons());
    let shows_details = route.is_some_and(|route| route.route.error_details == ErrorDetails::Show);
    if shows_details {
        deny.details = trace(ruling);
    }
    Some(deny)
}

fn ask_to_sign_in(
    request: &CheckRequest,
    snapshot: &Snapshot,
    route: Option<&LoadedRoute>,
    now: Timestamp,
) -> Deny {
    let config: &Config = &snapshot.config;
    let random = Random {
        cookie: random::bytes(),
        nonce: random::bytes(),
    };
    let Some(shared_secret) = config.secrets.shared.first() else {
        // A configuration without a secret is never loaded.
        return plain(
            DenyKind::Unauthenticated { sign_in_url: None },
            "not signed in",
        );
    };
    // An endpoint of ours has no route; where people sign in for its host is told by the route
    // that the host has for the same path, else by the global provider.
    let route = route.or_else(|| snapshot.find(request).map(AsRef::as_ref));
    let provider_id = match route {
        Some(route) => route.provider_id.as_deref(),
        None => config.provider_id.as_deref(),
    };
    let challenge = sign_in::challenge(
        request,
        &SignIn {
            authenticate: &config.urls.authenticate,
            shared_secret,
            cookie: &config.cookie,
            provider_id,
            depends_on: route.map_or(&[], |route| &route.route.depends_on),
        },
        random,
        now,
    );
    Deny {
        headers: challenge.headers,
        ..plain(challenge.kind, "not signed in")
    }
}

/// Tells whoever had a session why it does not count.
fn not_signed_in(visitor: &Visitor) -> String {
    match visitor {
        Visitor::Rejected(rejection) => format!("not signed in: {}", rejection.as_str()),
        _ => "not signed in".to_owned(),
    }
}

fn refuse(denial: Denial, visitor: &Visitor) -> Deny {
    match denial {
        Denial::Policy(_) if visitor.person().is_some() => plain(
            DenyKind::Forbidden,
            "you are signed in, but the policy of this page does not let you in",
        ),
        Denial::Policy(_) => plain(
            DenyKind::Forbidden,
            "the policy of this page does not let you in",
        ),
        Denial::Device => plain(
            DenyKind::DeviceUnauthorized,
            "this page needs a registered device, and device registration is not supported yet",
        ),
        Denial::ClientCertificate(CertificateProblem::Required) => plain(
            DenyKind::ClientCertificate { presented: false },
            "a client certificate is required",
        ),
        Denial::ClientCertificate(CertificateProblem::Invalid) => plain(
            DenyKind::ClientCertificate { presented: true },
            "the client certificate is not accepted",
        ),
        Denial::RouteNotFound => plain(DenyKind::NotFound, "there is no such page"),
        Denial::InvalidToken => plain(DenyKind::Forbidden, "the bearer token is not valid"),
        Denial::CookieAndBearer => plain(
            DenyKind::BadRequest,
            "the request carries a session cookie and a bearer token; send one of them",
        ),
    }
}

/// A refusal that tells nothing.
pub fn forbidden() -> Deny {
    plain(DenyKind::Forbidden, "access denied")
}

fn plain(kind: DenyKind, message: &str) -> Deny {
    Deny {
        kind,
        message: message.to_owned(),
        reasons: Vec::new(),
        headers: Vec::<(HeaderName, HeaderValue)>::new(),
        details: None,
    }
}

pub fn texts(reasons: Reasons) -> Vec<String> {
    reasons
        .iter()
        .map(|reason| reason.as_str().to_owned())
        .collect()
}

/// Both halves of the verdict, for people who may see them.
fn trace(ruling: &Ruling) -> Option<String> {
    let verdict = ruling.verdict.as_ref()?;
    let half = |name: &str, matched: bool, reasons: Reasons| {
        let matched = if matched { "matched" } else { "did not match" };
        if reasons.is_empty() {
            format!("{name}: {matched}")
        } else {
            format!("{name}: {matched} ({reasons})")
        }
    };
    Some(format!(
        "{}\n{}",
        half("allow", verdict.allow.matched, verdict.allow.reasons),
        half("deny", verdict.deny.matched, verdict.deny.reasons),
    ))
}
