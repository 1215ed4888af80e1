//! What a client gets instead of what it asked for.
//!
//! A [`Refusal`] holds only what the client may see: a status, a public reason, the request id.
//! The cause goes to the log, which can be found by that id.

use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::{Value, json};

use super::{
    negotiate::{Form, form},
    page::{self, Forms, Look},
    request_id,
};

/// Tells an answer of ours from one of an upstream with the same status.
pub const INTERCEPTED: HeaderName = HeaderName::from_static("x-pomerium-intercepted-response");

/// Where a program finds the URL at which a person can sign in.
pub const SIGN_IN_URL: HeaderName = HeaderName::from_static("x-postern-sign-in-url");

/// When a client should come back, if nobody knows better.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Status 450: the device is not approved.
pub const DEVICE_NOT_AUTHORIZED: u16 = 450;
/// Status 495: a client certificate is missing or not accepted.
pub const CLIENT_CERTIFICATE: u16 = 495;

/// Whose JSON members an answer has: each of the three kinds has clients that read them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Origin {
    /// A decision: `error`, `request_id`.
    #[default]
    Policy,
    /// The data plane, when it can't forward: `requestId`, `status`, `statusText`.
    DataPlane,
    /// An endpoint of ours: `Status`, `description`, `RequestID`.
    Endpoint,
}

/// An answer that says no. Built step by step, turned into a response by [`Refusal::respond`].
#[derive(Debug, Clone)]
pub struct Refusal {
    status: StatusCode,
    reason: String,
    request_id: Arc<str>,
    origin: Origin,
    code: Option<&'static str>,
    grpc_status: Option<u8>,
    retry_after: Option<Duration>,
    details: Option<String>,
    sign_in_url: Option<String>,
    link: Option<Link>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// A way on, shown on the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// A path of this host, or an https URL that is known to be allowed.
    pub href: String,
    pub text: &'static str,
}

impl Refusal {
    /// `reason` is shown to the client: short, public, never an internal cause.
    pub fn new(status: StatusCode, reason: impl Into<String>, request_id: Arc<str>) -> Self {
        Self {
            status,
            reason: reason.into(),
            request_id,
            origin: Origin::default(),
            code: None,
            grpc_status: None,
            retry_after: (status == StatusCode::SERVICE_UNAVAILABLE).then_some(RETRY_AFTER),
            details: None,
            sign_in_url: None,
            link: None,
            headers: Vec::new(),
        }
    }

    #[must_use]
    pub fn origin(mut self, origin: Origin) -> Self {
        self.origin = origin;
        self
    }

    /// A word for machines, such as `route_not_found`; `statusText` of the data plane.
    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// The gRPC status, where the one that follows from the HTTP status says too little.
    #[must_use]
    pub fn grpc_status(mut self, status: u8) -> Self {
        self.grpc_status = Some(status);
        self
    }

    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// What may be told only where the route has `show_error_details`.
    #[must_use]
    pub fn details(mut self, details: Option<String>) -> Self {
        self.details = details;
        self
    }

    /// Where a person can sign in, told to programs.
    #[must_use]
    pub fn sign_in_url(mut self, url: Option<String>) -> Self {
        self.sign_in_url = url;
        self
    }

    #[must_use]
    pub fn link(mut self, link: Link) -> Self {
        self.link = Some(link);
        self
    }

    /// One more header of the answer. Those that a refusal sets itself win.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The answer in the form that a request with these headers can read.
    pub fn respond(self, request: &HeaderMap, look: &Look) -> Response<Bytes> {
        let form = match (form(request), self.origin) {
            // Pages of ours are pages, unless JSON is all that is accepted.
            (Form::Json, Origin::Endpoint)
                if request
                    .get(header::ACCEPT)
                    .is_none_or(|a| a != "application/json")
                    && super::negotiate::client(request) == super::negotiate::Client::Browser =>
            {
                Form::Html
            }
            (form, _) => form,
        };
        let mut response = match form {
            Form::Html => self.html(look),
            Form::Json => self.text("application/json", &self.json()),
            Form::Plain => self.text(
                "text/plain; charset=utf-8",
                &Value::String(format!(
                    "{} {}\n{}\nrequest id: {}\n",
                    self.status.as_u16(),
                    status_text(self.status),
                    self.reason,
                    self.request_id
                )),
            ),
            Form::Grpc => self.grpc("application/grpc"),
            Form::GrpcWeb => self.grpc("application/grpc-web"),
            Form::Kubernetes => self.text("application/json", &self.kubernetes()),
        };
        let headers = response.headers_mut();
        for (name, value) in self.headers {
            if !headers.contains_key(&name) || name == header::SET_COOKIE {
                headers.append(name, value);
            }
        }
        insert(headers, request_id::HEADER, &self.request_id);
        headers.insert(INTERCEPTED, HeaderValue::from_static("true"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(after) = self.retry_after {
            insert(
                headers,
                header::RETRY_AFTER,
                &after.as_secs().max(1).to_string(),
            );
        }
        if let Some(url) = &self.sign_in_url {
            insert(headers, SIGN_IN_URL, url);
        }
        response
    }

    fn html(&self, look: &Look) -> Response<Bytes> {
        let content = ErrorPage {
            status: self.status.as_u16(),
            status_text: status_text(self.status),
            first_paragraph: look.first_paragraph(),
            reason: &self.reason,
            details: self.details.as_deref(),
            request_id: &self.request_id,
            link: self.link.as_ref(),
        };
        page::respond(
            look,
            self.status,
            status_text(self.status),
            Forms::None,
            &content,
        )
    }

    fn json(&self) -> Value {
        let (status, text) = (self.status.as_u16(), status_text(self.status));
        let mut value = match self.origin {
            Origin::Policy => json!({"error": self.reason, "request_id": &*self.request_id}),
            Origin::DataPlane => json!({
                "requestId": &*self.request_id,
                "status": status.to_string(),
                "statusText": self.code.unwrap_or(text),
            }),
            Origin::Endpoint => json!({
                "Status": status,
                "description": self.reason,
                "RequestID": &*self.request_id,
            }),
        };
        if let Value::Object(members) = &mut value {
            if let Some(url) = &self.sign_in_url {
                members.insert("sign_in_url".into(), url.as_str().into());
            }
            if let Some(details) = &self.details {
                members.insert("details".into(), details.as_str().into());
            }
        }
        value
    }

    /// `meta/v1` `Status`.
    fn kubernetes(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Status",
            "status": "Failure",
            "message": format!("{} (request id: {})", self.reason, self.request_id),
            "reason": match self.status.as_u16() {
                401 => "Unauthorized",
                403 => "Forbidden",
                404 => "NotFound",
                _ => "",
            },
            "code": self.status.as_u16(),
        })
    }

    fn text(&self, content_type: &'static str, body: &Value) -> Response<Bytes> {
        let body = match body {
            Value::String(text) => text.clone(),
            other => format!("{other}\n"),
        };
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = self.status;
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        response
    }

    /// "Trailers-only": a status without a message.
    fn grpc(&self, content_type: &'static str) -> Response<Bytes> {
        let status = self.grpc_status.unwrap_or(match self.status.as_u16() {
            400 => 13,
            401 => 16,
            403 | 450 | 495 => 7,
            404 => 12,
            408 => 4,
            429 | 502..=504 => 14,
            _ => 2,
        });
        let message = format!("{} (request id: {})", self.reason, self.request_id);
        let mut response = Response::new(Bytes::new());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        insert(
            headers,
            HeaderName::from_static("grpc-status"),
            &status.to_string(),
        );
        let message = utf8_percent_encode(&message, GRPC_MESSAGE).to_string();
        insert(headers, HeaderName::from_static("grpc-message"), &message);
        response
    }
}

/// Everything outside of printable ASCII, and the percent sign (gRPC over HTTP/2, "Responses").
const GRPC_MESSAGE: &AsciiSet = &CONTROLS.add(b'%');

/// Sets a header unless the text can't be one.
fn insert(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

/// The phrase that goes with a status, our own ones included.
pub fn status_text(status: StatusCode) -> &'static str {
    match status.as_u16() {
        DEVICE_NOT_AUTHORIZED => "Device Not Authorized",
        CLIENT_CERTIFICATE => "Client Certificate Required",
        _ => status.canonical_reason().unwrap_or("Error"),
    }
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage<'a> {
    status: u16,
    status_text: &'a str,
    first_paragraph: Option<&'a str>,
    reason: &'a str,
    details: Option<&'a str>,
    request_id: &'a str,
    link: Option<&'a Link>,
}

#[cfg(test)]
mod tests;
