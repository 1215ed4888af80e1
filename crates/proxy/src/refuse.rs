//! Why a request goes no further, and the answer it gets instead.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use postern_common::config::ResponseHeaders;
use postern_common::web::page::Look;
use postern_common::web::refusal::{Link, Origin, Refusal};

use crate::body::Body;

/// The end of a request's way: a page that says no, or an answer that is complete already.
#[derive(Debug)]
pub(crate) struct Stop {
    pub answer: Answer,
    /// `response-code-details` of the access log.
    pub details: &'static str,
    /// For the log only.
    pub cause: Option<String>,
}

#[derive(Debug)]
pub(crate) enum Answer {
    Refusal(Box<Reason>),
    Response(Box<Response<Body>>),
}

/// What the client may know.
#[derive(Debug)]
pub(crate) struct Reason {
    pub status: StatusCode,
    pub text: Cow<'static, str>,
    pub origin: Origin,
    pub grpc_status: Option<u8>,
    /// Shown only where the route says so.
    pub shown_details: Option<String>,
    pub sign_in_url: Option<String>,
    pub link: Option<Link>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Stop {
    /// `details` is the word for machines, `text` the sentence for people.
    pub(crate) fn new(
        status: StatusCode,
        details: &'static str,
        text: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            answer: Answer::Refusal(Box::new(Reason {
                status,
                text: text.into(),
                origin: Origin::DataPlane,
                grpc_status: None,
                shown_details: None,
                sign_in_url: None,
                link: None,
                headers: Vec::new(),
            })),
            details,
            cause: None,
        }
    }

    pub(crate) fn response(response: Response<Body>, details: &'static str) -> Self {
        Self {
            answer: Answer::Response(Box::new(response)),
            details,
            cause: None,
        }
    }

    pub(crate) fn because(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Changes what the client may know; nothing happens to a complete answer.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Reason)) -> Self {
        if let Answer::Refusal(reason) = &mut self.answer {
            change(reason);
        }
        self
    }

    /// Pages of other sites may read why, where the route lets them read its answers.
    pub(crate) fn with_cors_of(mut self, route: &ResponseHeaders) -> Self {
        let cors = route
            .set
            .iter()
            .filter(|(name, _)| name.as_str().starts_with("access-control-"))
            .cloned();
        match &mut self.answer {
            Answer::Refusal(reason) => reason.headers.extend(cors),
            Answer::Response(response) => response.headers_mut().extend(cors),
        }
        self
    }

    pub(crate) fn origin(self, origin: Origin) -> Self {
        self.with(|reason| reason.origin = origin)
    }

    pub(crate) fn grpc(self, status: u8) -> Self {
        self.with(|reason| reason.grpc_status = Some(status))
    }

    /// 400 with gRPC status 2, for what is not a well-formed request.
    pub(crate) fn bad_request(details: &'static str, text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, details, text).grpc(2)
    }

    /// The answer, in the form that the client reads.
    pub(crate) fn into_response(
        self,
        request: &HeaderMap,
        request_id: Arc<str>,
        look: &Look,
    ) -> Response<Body> {
        let reason = match self.answer {
            Answer::Response(response) => return *response,
            Answer::Refusal(reason) => reason,
        };
        let mut refusal = Refusal::new(reason.status, reason.text, request_id)
            .origin(reason.origin)
            .code(self.details)
            .details(reason.shown_details)
            .sign_in_url(reason.sign_in_url);
        if let Some(status) = reason.grpc_status {
            refusal = refusal.grpc_status(status);
        }
        if let Some(link) = reason.link {
            refusal = refusal.link(link);
        }
        for (name, value) in reason.headers {
            refusal = refusal.header(name, value);
        }
        refusal.respond(request, look).map(Body::full)
    }
}
