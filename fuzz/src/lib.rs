//! A function for every parser that strangers feed: `fn(&[u8])`, which panics where the parser does
//! or where a law does not hold.
//!
//! `tests/replay.rs` tries each with the inputs under `corpus/` and with mutations of them, as part
//! of the ordinary tests; `libfuzzer/` drives them as far as one likes. See `README.md`.

mod configuration;
mod input;
mod message;
mod request;
mod secret;

pub use configuration::{configuration, connection_string, policy, query_filter};
pub use message::{decision_answer, decision_question, ext_authz, proxy_protocol};
pub use request::{cookies, form, negotiate, redirect, route, target, traceparent};
pub use secret::{csrf_cookie, handle, rpc_token, seal, sign_in_state, signed_url};

/// A target: its name, which is that of its folder under `corpus/`, and its function.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 21] = [
    ("configuration", configuration),
    ("connection_string", connection_string),
    ("cookies", cookies),
    ("csrf_cookie", csrf_cookie),
    ("decision_answer", decision_answer),
    ("decision_question", decision_question),
    ("ext_authz", ext_authz),
    ("form", form),
    ("handle", handle),
    ("negotiate", negotiate),
    ("policy", policy),
    ("proxy_protocol", proxy_protocol),
    ("query_filter", query_filter),
    ("redirect", redirect),
    ("route", route),
    ("rpc_token", rpc_token),
    ("seal", seal),
    ("sign_in_state", sign_in_state),
    ("signed_url", signed_url),
    ("target", target),
    ("traceparent", traceparent),
];
