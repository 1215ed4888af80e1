#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        reason = "tests may panic"
    )
)]
//! Who may pass: the Pomerium Policy Language (PPL), compiled and evaluated natively.
//!
//! JSON values in, verdict out. This crate does no I/O, knows no clock and holds no state: facts
//! about a request are gathered by the caller, and the same policy with the same facts always gives
//! the same [`Verdict`].
//!
//! ```
//! use postern_policy::{Claims, Input, Outcome, Policy, Session};
//! use serde_json::json;
//!
//! let policy = Policy::compile(&json!([
//!     {"allow": {"and": [{"domain": {"is": "corp.test"}}, {"claim/groups": {"has": "ops"}}]}}
//! ])).unwrap();
//!
//! let claims = Claims::from([("groups".to_owned(), vec![json!("eng"), json!("ops")])]);
//! let none = Claims::new();
//! let ann = Session {
//!     user_id: "ann",
//!     email: Some("ann@corp.test"),
//!     session_claims: &claims,
//!     user_claims: &none,
//!     groups: None,
//!     devices: &[],
//! };
//! # let now = "2025-06-01T12:00:00Z".parse().unwrap();
//! # let request = Input::anonymous("203.0.113.9".parse().unwrap(), now);
//! assert_eq!(policy.evaluate(&request).outcome(), Outcome::Unauthenticated);
//! let request = Input { session: Some(ann), ..request };
//! assert_eq!(policy.evaluate(&request).outcome(), Outcome::Allow);
//! ```
//!
//! # The language
//!
//! A policy is a rule or a list of rules. A rule has `allow`, `deny` or both; under each stand
//! operators, and under each operator a list of criteria:
//!
//! ```yaml
//! - allow:
//!     and:                          # all are true
//!       - domain: {is: corp.test}
//!       - claim/groups: ops
//! - allow:
//!     or:                           # at least one is true
//!       - source_ip: 10.0.0.0/8
//!   deny:
//!     or:
//!       - email: {is: eve@corp.test}
//! ```
//!
//! The other two operators are `not` (none is true) and `nor` (not all are true). Several operators
//! and several rules are joined by or. Access needs a true `allow` and no true `deny`. The criteria
//! are the files of `criterion`, what they compare with is in `matcher`.
//!
//! # What is missing never opens a door
//!
//! Criteria such as `email` or `claim/…` are about a person. Without a session there is none, and a
//! negated test (`email: {not: …}`, `claim/x: {exclude: …}`, or any criterion under `not` or `nor`)
//! would be true of everybody. So each criterion has one of four values, [`Truth`]: true, false, and
//! each of them *by absence* of the fact that it asks for. An `allow` rule counts only what is true
//! outright. A `deny` rule counts both: whoever must not be outside of `corp.test` is not let past
//! it by being nobody, but is asked to sign in.
//!
//! The same holds for an e-mail address that has no readable domain, for somebody without an e-mail
//! address, for groups of which nothing is known, and for a claim of which the provider says that it
//! is kept elsewhere (`_claim_names`). A claim that a signed-in person plainly does not have is an
//! empty list, as in Pomerium.
//!
//! # Values of claims
//!
//! A number or boolean counts as its text ([`claim_text`]): `42` matches `42` and `"42"`, `true`
//! matches `true` and `"true"`, and the same text goes into headers. Null, objects, nested lists and
//! numbers too large to be exact match nothing.
//!
//! # From facts to answer
//!
//! | step | here |
//! |---|---|
//! | compile, all errors at once, each with its place | [`Policy::compile`], [`Policy::for_route`] |
//! | what must be gathered | [`Policy::needs`] |
//! | the facts | [`Input`] |
//! | both halves of the decision with their reasons | [`Policy::evaluate`], [`Verdict`] |
//! | what the visitor gets | [`Verdict::outcome`], [`Outcome`] |
//! | until when that holds | [`Policy::next_time_boundary`] |
//! | for people: the rules in words, how each criterion came out, what would differ in Pomerium | [`Policy::describe`], [`Policy::explain`], [`Policy::notes`] |

mod compile;
mod criterion;
mod describe;
mod error;
mod evaluate;
mod explain;
mod hint;
mod input;
mod matcher;
mod needs;
mod notes;
mod policy;
mod reason;
mod shorthand;
mod syntax;
mod text;
mod truth;
mod verdict;

#[cfg(test)]
mod tests;

pub use error::PolicyError;
pub use explain::{CriterionExplanation, Explanation, RuleExplanation};
pub use input::{
    Certificate, ClaimSource, Claims, ClientCertificate, Device, Http, Input, NoRecords, Records,
    Session,
};
pub use needs::{Fact, Needs};
pub use notes::Note;
pub use policy::{Action, Operator, Origin, Policy};
pub use reason::{Reason, Reasons};
pub use shorthand::Shorthand;
pub use text::claim_text;
pub use truth::Truth;
pub use verdict::{CertificateProblem, Outcome, RuleResult, Verdict};
