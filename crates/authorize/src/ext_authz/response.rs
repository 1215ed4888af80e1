//! Our decision as Envoy's answer.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, LOCATION};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use postern_common::authz::{Allow, CheckRequest, Decision, Deny, DenyKind};
use postern_common::rpc::stubs::envoy::config::core::v3::{
    HeaderValue as ProtoValue, HeaderValueOption, header_value_option::HeaderAppendAction,
};
use postern_common::rpc::stubs::envoy::r#type::v3::HttpStatus;
use postern_common::rpc::stubs::ext_authz as proto;
use postern_common::rpc::stubs::ext_authz::check_response::HttpResponse;
use postern_common::rpc::stubs::google::rpc;
use postern_common::web::credentials::{self, OwnNames};
use postern_common::web::page::Look;
use postern_common::web::refusal::Refusal;
use tonic::Code;

use super::request::QuestionError;
use crate::snapshot::Snapshot;

/// The answer of a decision.
pub fn decided(
    decision: &Decision,
    request: &CheckRequest,
    snapshot: &Snapshot,
) -> proto::CheckResponse {
    match decision {
        Decision::Allow(allow) => allowed(allow, request, &snapshot.own_names),
        // Crawlers take a refusal for leave to look at everything else.
        Decision::Deny(_) if &*request.path == "/robots.txt" => denied(robots()),
        Decision::Deny(deny) => denied(refusal(deny, request, &snapshot.look)),
    }
}

/// There is no decision.
pub fn undecided(request: &CheckRequest, look: &Look) -> proto::CheckResponse {
    denied(unavailable(request, look))
}

/// Nothing of ours serves the URL.
pub fn no_route(request: &CheckRequest, look: &Look) -> proto::CheckResponse {
    refuse(
        StatusCode::NOT_FOUND,
        "there is no such page",
        request,
        look,
    )
}

/// The proxy serves a route that we don't have like this.
pub fn other_configuration(request: &CheckRequest, look: &Look) -> proto::CheckResponse {
    tracing::warn!(
        request_id = &*request.request_id,
        host = &*request.host,
        "asked about a route that is not in this configuration"
    );
    undecided(request, look)
}

/// The question makes no sense.
pub fn unreadable(error: &QuestionError) -> proto::CheckResponse {
    tracing::info!(
        error = error as &dyn std::error::Error,
        "refused a question of ext_authz"
    );
    let mut response = Response::new(format!("{error}\n").into());
    *response.status_mut() = StatusCode::BAD_REQUEST;
    denied(response)
}

fn unavailable(request: &CheckRequest, look: &Look) -> Response<bytes::Bytes> {
    Refusal::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "access can't be decided just now",
        Arc::clone(&request.request_id),
    )
    .respond(&request.headers, look)
}

fn refuse(
    status: StatusCode,
    reason: &str,
    request: &CheckRequest,
    look: &Look,
) -> proto::CheckResponse {
    let id = Arc::clone(&request.request_id);
    denied(Refusal::new(status, reason, id).respond(&request.headers, look))
}

fn allowed(allow: &Allow, request: &CheckRequest, own: &OwnNames) -> proto::CheckResponse {
    let mut headers = Vec::with_capacity(allow.set_headers.len());
    for (index, header) in allow.set_headers.iter().enumerate() {
        let mut before = allow.set_headers.iter().take(index);
        headers.push(if before.any(|(name, _)| *name == header.0) {
            append(&header.0, &header.1)
        } else {
            overwrite(header)
        });
    }
    let set = |name: &HeaderName| allow.set_headers.iter().any(|(known, _)| known == name);
    let mut remove: BTreeSet<&str> = allow
        .remove_headers
        .iter()
        .map(HeaderName::as_str)
        .collect();
    remove.extend(
        request
            .headers
            .keys()
            .filter(|name| own.forbids(name) && !set(name))
            .map(HeaderName::as_str),
    );
    let mut authorizations = request.headers.get_all(AUTHORIZATION).iter();
    if authorizations.any(|value| credentials::is_own_authorization(value, allow.consumed))
        && !set(&AUTHORIZATION)
    {
        remove.insert(AUTHORIZATION.as_str());
    }
    if request.headers.contains_key(COOKIE) {
        match own.foreign_cookies(&request.headers) {
            Some(kept) => headers.push(overwrite(&(COOKIE, kept))),
            None => {
                remove.insert(COOKIE.as_str());
            }
        }
    }
    let query = request.query.as_deref().unwrap_or_default();
    let parameters: BTreeSet<&str> = credentials::session_parameters(query).collect();
    proto::CheckResponse {
        status: Some(rpc::Status::default()),
        http_response: Some(HttpResponse::OkResponse(proto::OkHttpResponse {
            headers,
            headers_to_remove: remove.into_iter().map(ToOwned::to_owned).collect(),
            query_parameters_to_remove: parameters.into_iter().map(ToOwned::to_owned).collect(),
            ..proto::OkHttpResponse::default()
        })),
        dynamic_metadata: None,
    }
}

fn robots() -> Response<bytes::Bytes> {
    let mut response = Response::new("User-agent: *\nDisallow: /\n".into());
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}

fn refusal(deny: &Deny, request: &CheckRequest, look: &Look) -> Response<bytes::Bytes> {
    let id = Arc::clone(&request.request_id);
    let mut refusal =
        Refusal::new(deny.kind.status(), deny.message.clone(), id).details(deny.details.clone());
    for (name, value) in &deny.headers {
        refusal = refusal.header(name.clone(), value.clone());
    }
    match &deny.kind {
        DenyKind::SignIn { location } => match HeaderValue::try_from(location) {
            Ok(location) => refusal = refusal.header(LOCATION, location),
            Err(_) => return unavailable(request, look),
        },
        DenyKind::Unauthenticated { sign_in_url } => {
            refusal = refusal.sign_in_url(sign_in_url.clone());
        }
        _ => {}
    }
    refusal.respond(&request.headers, look)
}

fn denied(response: Response<bytes::Bytes>) -> proto::CheckResponse {
    refused(response, Code::PermissionDenied)
}

/// What Envoy answers in our place. `code` is for those who read no further.
pub fn refused(response: Response<bytes::Bytes>, code: Code) -> proto::CheckResponse {
    let (parts, body) = response.into_parts();
    proto::CheckResponse {
        status: Some(rpc::Status {
            code: code as i32,
            ..rpc::Status::default()
        }),
        http_response: Some(HttpResponse::DeniedResponse(proto::DeniedHttpResponse {
            status: Some(HttpStatus {
                code: i32::from(parts.status.as_u16()),
            }),
            headers: parts
                .headers
                .iter()
                .map(|(name, value)| append(name, value))
                .collect(),
            body: String::from_utf8_lossy(&body).into_owned(),
        })),
        dynamic_metadata: None,
    }
}

fn overwrite((name, value): &(HeaderName, HeaderValue)) -> HeaderValueOption {
    option(name, value, HeaderAppendAction::OverwriteIfExistsOrAdd)
}

/// Several cookies, or several groups, are several headers.
fn append(name: &HeaderName, value: &HeaderValue) -> HeaderValueOption {
    option(name, value, HeaderAppendAction::AppendIfExistsOrAdd)
}

fn option(name: &HeaderName, value: &HeaderValue, action: HeaderAppendAction) -> HeaderValueOption {
    let (text, raw) = match value.to_str() {
        Ok(text) => (text.to_owned(), Vec::new()),
        Err(_) => (String::new(), value.as_bytes().to_vec()),
    };
    HeaderValueOption {
        header: Some(ProtoValue {
            key: name.as_str().to_owned(),
            value: text,
            raw_value: raw,
        }),
        append: None,
        append_action: action.into(),
        // An empty claim header is there so that nobody can supply one.
        keep_empty_value: true,
    }
}
