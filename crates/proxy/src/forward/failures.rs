//! What a client gets when its request was let through and could not be served.

use http::StatusCode;

use super::exchange::TimedOut;
use crate::open::Closed;
use crate::refuse::Stop;

/// 503: no healthy upstream.
pub(crate) fn unavailable(cause: impl Into<String>) -> Stop {
    Stop::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "no_healthy_upstream",
        "The application behind this address cannot be reached just now.",
    )
    .grpc(14)
    .because(cause)
}

/// 502: the upstream answered with what is no answer.
pub(crate) fn protocol(cause: impl Into<String>) -> Stop {
    let text = "The application behind this address gave an answer that makes no sense.";
    Stop::new(StatusCode::BAD_GATEWAY, "upstream_protocol_error", text)
        .grpc(13)
        .because(cause)
}

/// 503: authenticate has the request, and hangs.
pub(super) fn silent() -> Stop {
    Stop::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "authenticate_silent",
        "Signing in is not possible just now: the service for it does not answer.",
    )
    .grpc(14)
    .because("authenticate took the request and says nothing any more")
}

pub(super) fn timed_out(which: TimedOut, request_done: bool) -> Stop {
    let status = match which {
        TimedOut::Read => StatusCode::REQUEST_TIMEOUT,
        TimedOut::Idle if !request_done => StatusCode::REQUEST_TIMEOUT,
        _ => StatusCode::GATEWAY_TIMEOUT,
    };
    let text = format!("This took longer than {} allows.", which.key());
    Stop::new(status, which.details(), text).grpc(4)
}

/// The client's own request ended early.
pub(super) fn broken_off() -> Stop {
    let text = "The request ended before its end.";
    Stop::bad_request("downstream_remote_disconnect", text)
}

pub(super) fn withdrawn(why: Closed) -> Stop {
    let status = if why.is_refusal() {
        StatusCode::FORBIDDEN
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    Stop::new(status, why.as_str(), why.text()).grpc(why.grpc())
}

/// The upstream took the request and gave no answer that could be read.
pub(super) fn broken(name: &str, error: &hyper::Error) -> Stop {
    let chain = postern_common::telemetry::log::chain(error);
    let cause = format!("{name}: {chain}");
    if error.is_parse() || error.is_parse_status() || error.is_parse_too_large() {
        return protocol(cause);
    }
    let text = "The application behind this address broke off the connection.";
    Stop::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "upstream_reset_before_response_started",
        text,
    )
    .grpc(14)
    .because(cause)
}
