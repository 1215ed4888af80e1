//! `http_method`, `http_path`, `cors_preflight`, `pomerium_routes`: what is asked for.

use crate::error::{Place, Report};
use crate::input::Input;
use crate::matcher::string::StringMatcher;
use crate::reason::Reason;
use crate::text::quote;
use crate::truth::Finding;

pub(crate) fn method(matcher: &StringMatcher, input: &Input<'_>) -> Finding {
    Finding::new(
        matcher.matches(input.http.method),
        Reason::HttpMethodOk,
        Reason::HttpMethodUnauthorized,
    )
}

/// Methods are case-sensitive (RFC 9110, section 9.1).
pub(crate) fn check_method(matcher: &StringMatcher, place: &Place, report: &mut Report) {
    for method in matcher.equal_to() {
        if method.chars().any(char::is_lowercase) {
            report.note(
                place,
                format!("methods are in upper case, no request has the method `{method}`"),
            );
        }
    }
}

/// The decoded path, without the query.
pub(crate) fn path(matcher: &StringMatcher, input: &Input<'_>) -> Finding {
    Finding::new(
        matcher.matches(input.http.path),
        Reason::HttpPathOk,
        Reason::HttpPathUnauthorized,
    )
}

/// The browser asks whether another site may make a request.
pub(crate) fn cors_preflight(input: &Input<'_>) -> Finding {
    let present = |header: Option<&str>| header.is_some_and(|value| !value.is_empty());
    let http = &input.http;
    Finding::new(
        http.method == "OPTIONS"
            && present(http.origin)
            && present(http.access_control_request_method),
        Reason::CorsRequest,
        Reason::NonCorsRequest,
    )
}

/// Postern's own endpoints.
pub(crate) fn pomerium_routes(input: &Input<'_>) -> Finding {
    let own = ["/.pomerium", "/.well-known/pomerium"]
        .into_iter()
        .any(|prefix| {
            input
                .http
                .path
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
    Finding::new(own, Reason::PomeriumRoute, Reason::NonPomeriumRoute)
}

pub(crate) fn met_preflight(input: &Input<'_>) -> String {
    let show = |header: Option<&str>| header.map_or_else(|| "none".to_owned(), quote);
    format!(
        "method {}, Origin {}, Access-Control-Request-Method {}",
        quote(input.http.method),
        show(input.http.origin),
        show(input.http.access_control_request_method),
    )
}
