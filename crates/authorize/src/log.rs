//! The authorize log: one line a decision, with the fields that `authorize_log_fields` names.

use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};
use postern_common::authz::{AuthorizeError, CheckRequest, CheckSubject};
use postern_common::config::Route;
use postern_policy::Reasons;
use serde_json::{Map, Value};

use crate::credential::HANDLE_HEADER;
use crate::decide::Ruling;
use crate::facts::{Facts, Person, Visitor};
use crate::snapshot::Snapshot;

/// Fields when nothing is configured.
const DEFAULT_FIELDS: [&str; 19] = [
    "request-id",
    "check-request-id",
    "method",
    "path",
    "host",
    "ip",
    "session-id",
    "impersonate-session-id",
    "impersonate-user-id",
    "impersonate-email",
    "removed-groups-count",
    "service-account-id",
    "user",
    "email",
    "envoy-route-checksum",
    "envoy-route-id",
    "route-checksum",
    "route-id",
    "data-age",
];

/// Everything that a line may tell.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub request: &'a CheckRequest,
    pub snapshot: &'a Snapshot,
    pub route: Option<&'a Route>,
    pub facts: &'a Facts,
    pub ruling: &'a Ruling,
    pub removed_groups: usize,
}

/// Writes the line of a decision.
pub fn decided(record: &Record<'_>) {
    if !tracing::enabled!(tracing::Level::INFO) {
        return;
    }
    let object = Value::Object(members(record)).to_string();
    tracing::info!(object, "authorize check");
}

/// Writes the line of a request that could not be decided about.
pub fn undecided(request: &CheckRequest, error: &AuthorizeError) {
    tracing::error!(
        request_id = &*request.request_id,
        host = &*request.host,
        path = &*request.path,
        error = error as &dyn std::error::Error,
        "authorize check failed"
    );
}

fn members(record: &Record<'_>) -> Map<String, Value> {
    let configured = record.snapshot.config.log.authorize_fields.as_deref();
    let mut members = Map::new();
    match configured {
        None => DEFAULT_FIELDS
            .iter()
            .for_each(|name| add(&mut members, name, record)),
        Some(names) => names
            .iter()
            .for_each(|name| add(&mut members, name, record)),
    }
    if let Visitor::Rejected(rejection) = record.facts.visitor {
        members.insert("credential-rejected".to_owned(), rejection.as_str().into());
    }
    if let Some(verdict) = &record.ruling.verdict {
        result(
            &mut members,
            "allow",
            verdict.allow.matched,
            verdict.allow.reasons,
        );
        result(
            &mut members,
            "deny",
            verdict.deny.matched,
            verdict.deny.reasons,
        );
    } else {
        let allowed = record.ruling.outcome == crate::decide::Outcome::Allow;
        result(&mut members, "allow", allowed, Reasons::EMPTY);
        result(&mut members, "deny", !allowed, record.ruling.reasons());
    }
    members
}

fn result(members: &mut Map<String, Value>, half: &str, matched: bool, reasons: Reasons) {
    let reasons: Vec<Value> = reasons
        .iter()
        .map(|reason| reason.as_str().into())
        .collect();
    members.insert(half.to_owned(), matched.into());
    members.insert(format!("{half}-why-{matched}"), reasons.into());
}

/// Adds one field. What is not known is empty; a name that nobody knows adds nothing.
fn add(members: &mut Map<String, Value>, name: &str, record: &Record<'_>) {
    if let Some(header) = name.strip_prefix("headers.") {
        let headers = members
            .entry("headers")
            .or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(headers) = headers {
            headers.insert(
                header.to_owned(),
                header_text(&record.request.headers, header).into(),
            );
        }
        return;
    }
    if let Some(value) = field(name, record) {
        members.insert(name.to_owned(), value);
    }
}

fn field(name: &str, record: &Record<'_>) -> Option<Value> {
    let request = record.request;
    let person = record.facts.visitor.person();
    let impersonated = person.and_then(Person::impersonated);
    let (asked_id, asked_checksum) = match &request.subject {
        CheckSubject::Route { id, checksum } => (id.as_str(), Some(checksum.0)),
        CheckSubject::OwnEndpoint => ("", None),
    };
    let text = |value: Option<&str>| Value::from(value.unwrap_or_default());
    Some(match name {
        "request-id" | "check-request-id" => text(Some(&request.request_id)),
        "method" => text(Some(request.method.as_str())),
        "path" => text(Some(&request.path)),
        "query" => text(request.query.as_deref()),
        "host" => text(Some(&request.host)),
        "ip" => request.client_address.to_string().into(),
        "session-id" => text(
            person
                .filter(|person| !person.is_service_account())
                .map(|person| &*person.id),
        ),
        "service-account-id" => text(
            person
                .filter(|person| person.is_service_account())
                .map(|person| &*person.id),
        ),
        "impersonate-session-id" => text(impersonated.map(|session| &*session.id)),
        "impersonate-user-id" => text(impersonated.map(|session| &*session.user_id)),
        "impersonate-email" => text(impersonated.and(person).map(Person::email)),
        "removed-groups-count" => record.removed_groups.into(),
        // Seconds.
        "data-age" => record
            .facts
            .data_age
            .map_or_else(|| text(None), |age| age.as_secs_f64().into()),
        "user" => text(person.map(|person| &*person.user_id)),
        "email" => text(person.map(Person::email)),
        "envoy-route-id" => text(Some(asked_id)),
        "envoy-route-checksum" => asked_checksum.unwrap_or_default().into(),
        "route-id" => text(record.route.map(|route| route.id.as_str())),
        "route-checksum" => record.route.map_or(0, |route| route.checksum.0).into(),
        "cluster-stat-name" => text(record.route.map(|route| route.name.as_str())),
        "id-token-claims" => person
            .and_then(|person| serde_json::to_value(person.session_claims()).ok())
            .unwrap_or(Value::Null),
        "headers" => all_headers(&request.headers),
        // Bodies and tool calls never reach a decision here; a token never reaches a log.
        "body" | "id-token" | "mcp-method" | "mcp-tool" | "mcp-tool-parameters" => text(None),
        _ => return None,
    })
}

fn all_headers(headers: &HeaderMap) -> Value {
    headers
        .keys()
        .map(|name| {
            (
                name.as_str().to_owned(),
                header_text(headers, name.as_str()).into(),
            )
        })
        .collect::<Map<String, Value>>()
        .into()
}

/// Values of a header, joined. Credentials are not told.
fn header_text(headers: &HeaderMap, name: &str) -> String {
    let secret = [COOKIE, AUTHORIZATION, PROXY_AUTHORIZATION, HANDLE_HEADER]
        .iter()
        .any(|known| known.as_str().eq_ignore_ascii_case(name));
    let values: Vec<_> = headers
        .get_all(name)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()))
        .collect();
    if secret && !values.is_empty() {
        return "[redacted]".to_owned();
    }
    values.join(",")
}

#[cfg(test)]
mod tests;
