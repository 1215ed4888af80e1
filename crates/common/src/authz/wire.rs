//! Questions and answers as they travel between proxy and authorize (`postern.authorize.v1`).
//!
//! Pure translations, both directions side by side, so that a field that is added to one is
//! missed in the other by a test. What can't be read is an error, and an error is no access.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use jiff::Timestamp;

use super::{
    Allow, AuthorizeError, CheckRequest, CheckSubject, ClientCertificate, ConsumedCredentials,
    Decision, Deny, DenyKind, Revisit, Scheme, SessionSummary,
};
use crate::config::{RouteChecksum, RouteId};
use crate::rpc::stubs::authorize as proto;
use crate::telemetry::trace::Place;

/// A message that does not say what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the message has no usable {0}")]
pub struct WireError(pub &'static str);

/// The question that proxy sends.
pub fn question(number: u64, request: &CheckRequest) -> proto::Question {
    let (route_id, route_checksum, own_endpoint) = match &request.subject {
        CheckSubject::Route { id, checksum } => (id.to_string(), checksum.0, false),
        CheckSubject::OwnEndpoint => (String::new(), 0, true),
    };
    proto::Question {
        number,
        route_id,
        route_checksum,
        own_endpoint,
        request_id: request.request_id.to_string(),
        method: request.method.to_string(),
        scheme: request.scheme.as_str().to_owned(),
        host: request.host.to_string(),
        path: request.path.to_string(),
        query: request.query.as_ref().map(ToString::to_string),
        headers: request
            .headers
            .iter()
            .map(|(name, value)| header(name, value))
            .collect(),
        client_ip: request.client_address.to_string(),
        client_certificate: request.client_certificate.as_ref().map(|certificate| {
            proto::ClientCertificate {
                chain: certificate.chain.iter().cloned().map(Bytes::from).collect(),
            }
        }),
        traceparent: request
            .trace
            .map_or_else(String::new, |place| place.to_string()),
    }
}

/// The question as authorize reads it.
pub fn check_request(question: proto::Question) -> Result<CheckRequest, WireError> {
    let subject = if question.own_endpoint {
        CheckSubject::OwnEndpoint
    } else {
        CheckSubject::Route {
            id: RouteId(question.route_id.into()),
            checksum: RouteChecksum(question.route_checksum),
        }
    };
    // A map of headers has a bound of its own, at which all but the `try_` functions panic.
    let too_many = |_| WireError("number of headers");
    let mut headers = HeaderMap::try_with_capacity(question.headers.len()).map_err(too_many)?;
    for sent in question.headers {
        let (name, value) = read_header(sent)?;
        headers.try_append(name, value).map_err(too_many)?;
    }
    Ok(CheckRequest {
        request_id: question.request_id.into(),
        subject,
        method: Method::from_bytes(question.method.as_bytes()).map_err(|_| WireError("method"))?,
        scheme: match question.scheme.as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(WireError("scheme")),
        },
        host: question.host.into(),
        path: question.path.into(),
        query: question.query.map(Into::into),
        headers,
        client_address: question
            .client_ip
            .parse()
            .map_err(|_| WireError("client address"))?,
        client_certificate: question.client_certificate.map(|certificate| {
            Arc::new(ClientCertificate {
                chain: certificate.chain.into_iter().map(Into::into).collect(),
            })
        }),
        // What cannot be read costs the trace, not the decision.
        trace: Place::parse(&question.traceparent).and_then(Place::if_kept),
    })
}

/// The answer that authorize sends. It repeats what the question was about.
pub fn answer(
    number: u64,
    subject: &CheckSubject,
    decided: &Result<Decision, AuthorizeError>,
    data_age_ms: u64,
) -> proto::Answer {
    use proto::answer::Outcome;
    let (route_id, route_checksum) = match subject {
        CheckSubject::Route { id, checksum } => (id.to_string(), checksum.0),
        CheckSubject::OwnEndpoint => (String::new(), 0),
    };
    let outcome = match decided {
        Ok(Decision::Allow(allow)) => Outcome::Allow(write_allow(allow)),
        Ok(Decision::Deny(deny)) => Outcome::Deny(write_deny(deny)),
        Err(AuthorizeError::UnknownConfiguration { .. }) => {
            Outcome::UnknownConfiguration(proto::UnknownConfiguration {})
        }
        Err(
            AuthorizeError::DataUnavailable { reason } | AuthorizeError::Unreachable { reason },
        ) => Outcome::Unavailable(proto::Unavailable {
            reason: reason.clone(),
        }),
    };
    proto::Answer {
        number,
        route_id,
        route_checksum,
        data_age_ms,
        outcome: Some(outcome),
    }
}

/// The answer as proxy reads it, for the question that it has under this number. An answer about
/// another route than was asked for is none.
pub fn decision(
    answer: proto::Answer,
    asked: &CheckSubject,
) -> Result<Result<Decision, AuthorizeError>, WireError> {
    use proto::answer::Outcome;
    let repeats = match asked {
        CheckSubject::Route { id, checksum } => {
            answer.route_id == id.as_str() && answer.route_checksum == checksum.0
        }
        CheckSubject::OwnEndpoint => answer.route_id.is_empty(),
    };
    if !repeats {
        return Err(WireError("route: it answers another question"));
    }
    Ok(match answer.outcome.ok_or(WireError("outcome"))? {
        Outcome::Allow(allow) => Ok(Decision::Allow(Box::new(read_allow(allow)?))),
        Outcome::Deny(deny) => Ok(Decision::Deny(Box::new(read_deny(deny)?))),
        Outcome::UnknownConfiguration(_) => Err(AuthorizeError::UnknownConfiguration {
            route: match asked {
                CheckSubject::Route { id, .. } => id.clone(),
                CheckSubject::OwnEndpoint => RouteId("".into()),
            },
        }),
        Outcome::Unavailable(unavailable) => Err(AuthorizeError::DataUnavailable {
            reason: unavailable.reason,
        }),
    })
}

pub fn revisit(revisit: &Revisit) -> proto::Revisit {
    use proto::revisit::What;
    proto::Revisit {
        what: Some(match revisit {
            Revisit::Session(id) => What::SessionId(id.clone()),
            Revisit::User(id) => What::UserId(id.clone()),
            Revisit::Everything => What::Everything(proto::Everything {}),
        }),
    }
}

/// What is not known concerns everything.
pub fn read_revisit(revisit: proto::Revisit) -> Revisit {
    use proto::revisit::What;
    match revisit.what {
        Some(What::SessionId(id)) => Revisit::Session(id),
        Some(What::UserId(id)) => Revisit::User(id),
        Some(What::Everything(_)) | None => Revisit::Everything,
    }
}

fn write_allow(allow: &Allow) -> proto::Allow {
    proto::Allow {
        set_headers: headers(&allow.set_headers),
        remove_headers: allow
            .remove_headers
            .iter()
            .map(ToString::to_string)
            .collect(),
        session: allow.session.as_ref().map(|session| proto::Session {
            session_id: session.session_id.clone(),
            user_id: session.user_id.clone(),
            email: session.email.clone(),
        }),
        valid_until: allow.valid_until.map(|time| prost_types::Timestamp {
            seconds: time.as_second(),
            nanos: time.subsec_nanosecond(),
        }),
        bearer_consumed: allow.consumed.bearer,
    }
}

fn read_allow(allow: proto::Allow) -> Result<Allow, WireError> {
    let valid_until = allow.valid_until.map(|time| {
        Timestamp::new(time.seconds, time.nanos).map_err(|_| WireError("time of validity"))
    });
    let remove_headers = allow
        .remove_headers
        .iter()
        .map(|name| HeaderName::from_bytes(name.as_bytes()).map_err(|_| WireError("header name")));
    Ok(Allow {
        set_headers: read_headers(allow.set_headers)?,
        remove_headers: remove_headers.collect::<Result<_, _>>()?,
        session: allow.session.map(|session| {
            Arc::new(SessionSummary {
                session_id: session.session_id,
                user_id: session.user_id,
                email: session.email,
            })
        }),
        valid_until: valid_until.transpose()?,
        consumed: ConsumedCredentials {
            bearer: allow.bearer_consumed,
        },
    })
}

fn write_deny(deny: &Deny) -> proto::Deny {
    use proto::deny as of;
    use proto::deny::Kind;
    proto::Deny {
        message: deny.message.clone(),
        reasons: deny.reasons.clone(),
        headers: headers(&deny.headers),
        details: deny.details.clone(),
        kind: Some(match &deny.kind {
            DenyKind::SignIn { location } => Kind::SignIn(of::SignIn {
                location: location.clone(),
            }),
            DenyKind::Unauthenticated { sign_in_url } => {
                Kind::Unauthenticated(of::Unauthenticated {
                    sign_in_url: sign_in_url.clone(),
                })
            }
            DenyKind::Forbidden => Kind::Forbidden(of::Forbidden {}),
            DenyKind::NotFound => Kind::NotFound(of::NotFound {}),
            DenyKind::DeviceUnauthorized => Kind::DeviceUnauthorized(of::DeviceUnauthorized {}),
            DenyKind::ClientCertificate { presented } => {
                Kind::ClientCertificate(of::ClientCertificateRefused {
                    presented: *presented,
                })
            }
            DenyKind::BadRequest => Kind::BadRequest(of::BadRequest {}),
        }),
    }
}

fn read_deny(deny: proto::Deny) -> Result<Deny, WireError> {
    use proto::deny::Kind;
    Ok(Deny {
        kind: match deny.kind {
            Some(Kind::SignIn(kind)) => DenyKind::SignIn {
                location: kind.location,
            },
            Some(Kind::Unauthenticated(kind)) => DenyKind::Unauthenticated {
                sign_in_url: kind.sign_in_url,
            },
            Some(Kind::NotFound(_)) => DenyKind::NotFound,
            Some(Kind::DeviceUnauthorized(_)) => DenyKind::DeviceUnauthorized,
            Some(Kind::ClientCertificate(problem)) => DenyKind::ClientCertificate {
                presented: problem.presented,
            },
            Some(Kind::BadRequest(_)) => DenyKind::BadRequest,
            Some(Kind::Forbidden(_)) | None => DenyKind::Forbidden,
        },
        message: deny.message,
        reasons: deny.reasons,
        headers: read_headers(deny.headers)?,
        details: deny.details,
    })
}

fn header(name: &HeaderName, value: &HeaderValue) -> proto::Header {
    proto::Header {
        name: name.as_str().to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    }
}

fn headers(list: &[(HeaderName, HeaderValue)]) -> Vec<proto::Header> {
    list.iter()
        .map(|(name, value)| header(name, value))
        .collect()
}

/// The value stays where it was received.
fn read_header(sent: proto::Header) -> Result<(HeaderName, HeaderValue), WireError> {
    let name =
        HeaderName::from_bytes(sent.name.as_bytes()).map_err(|_| WireError("header name"))?;
    let value =
        HeaderValue::from_maybe_shared(sent.value).map_err(|_| WireError("header value"))?;
    Ok((name, value))
}

fn read_headers(list: Vec<proto::Header>) -> Result<Vec<(HeaderName, HeaderValue)>, WireError> {
    list.into_iter().map(read_header).collect()
}

#[cfg(test)]
mod tests;
