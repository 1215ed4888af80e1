//! Who may: the shorthand keys and `policy`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use postern_policy::{Policy, Shorthand};
use serde_json::Value as Json;

use super::super::super::diagnostic::{Diagnostic, Diagnostics, code};
use super::super::super::options::MtlsEnforcement;
use super::super::super::place::{At, Place, SourceText};
use super::super::super::source::{Node, Value, parse_yaml};
use super::super::mask;
use super::super::reader::{Load, Section};

/// The databroker says once a second how current it is, so less than this would close routes in good times.
const LEAST_DATA_AGE: Duration = Duration::from_secs(2);

/// `max_data_age`; `None`: no limit.
pub fn max_data_age(
    load: &mut Load<'_>,
    section: Section<'_>,
    default: Option<Duration>,
) -> Option<Duration> {
    let Some(limit) = section.duration(load, "max_data_age") else {
        return default;
    };
    if !limit.is_zero()
        && limit < LEAST_DATA_AGE
        && let Some(node) = section.node("max_data_age")
    {
        load.invalid(
            &node.place,
            "`max_data_age` is at least 2s, or 0s for none: the databroker says once a second how current it is",
        );
    }
    (!limit.is_zero()).then_some(limit)
}

pub fn policy(
    load: &mut Load<'_>,
    section: Section<'_>,
    route: &Node,
    mtls: Option<MtlsEnforcement>,
) -> Option<Policy> {
    let public = section
        .flag(load, "allow_public_unauthenticated_access")
        .unwrap_or(false);
    let any = section
        .flag(load, "allow_any_authenticated_user")
        .unwrap_or(false);
    let users = section.list(load, "allowed_users").unwrap_or_default();
    let domains = section.list(load, "allowed_domains").unwrap_or_default();
    let preflight = section.flag(load, "cors_allow_preflight").unwrap_or(false);
    conflicts(load, section, public, any, &users, &domains);
    let shorthand = Shorthand {
        public,
        cors_preflight: preflight,
        any_authenticated_user: any,
        domains: domains.into_iter().map(|domain| domain.value).collect(),
        users: users.into_iter().map(|user| user.value).collect(),
        idp_claims: idp_claims(load, section)?,
    };
    let written = written(load, section)?;
    let json = written.as_ref().map(Node::to_json);
    // Pointers of the policy's own text start below it when it was a text in the text.
    let embedded = section
        .node("policy")
        .is_some_and(|node| matches!(node.value, Value::Scalar(_)));
    let place = |pointer: &str, message: &str| {
        let (node, pointer) = match (&written, pointer.strip_prefix("/policy")) {
            (Some(node), Some(rest)) if embedded => (node, rest),
            _ => (route, pointer),
        };
        // What is said about a key is shown at the key, else at its value.
        let last = pointer
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .replace("~1", "/")
            .replace("~0", "~");
        let key = node
            .key_place(pointer)
            .filter(|_| message.contains(&format!("`{last}`")));
        key.unwrap_or_else(|| node.place_of(pointer))
    };
    let policy = match Policy::for_route(&shorthand, json.as_ref()) {
        Ok(policy) => policy,
        Err(errors) => {
            for error in errors {
                let place = place(&error.pointer, &error.message);
                let mut diagnostic = Diagnostic::error(code::POLICY, error.message).at(&place);
                if let Some(hint) = error.hint {
                    diagnostic = diagnostic.help(hint);
                }
                load.say(diagnostic);
            }
            return None;
        }
    };
    for note in policy.notes() {
        load.say(
            Diagnostic::note(code::DIFFERENCE, note.message.clone())
                .at(&place(&note.pointer, &note.message)),
        );
    }
    nobody(load, section, &shorthand, json.as_ref());
    Some(match mtls {
        Some(MtlsEnforcement::PolicyWithDefaultDeny | MtlsEnforcement::RejectConnection) => {
            policy.with_client_certificate_deny()
        }
        Some(MtlsEnforcement::Policy) | None => policy,
    })
}

fn conflicts(
    load: &mut Load<'_>,
    section: Section<'_>,
    public: bool,
    any: bool,
    users: &[At<String>],
    domains: &[At<String>],
) {
    let mut conflict = |one: &str, other: &str| {
        let mut diagnostic = Diagnostic::error(
            code::CONFLICT,
            format!("`{one}` and `{other}` contradict each other"),
        )
        .help(format!("remove `{one}`, or `{other}`"));
        if let Some(place) = section.place(other) {
            diagnostic = diagnostic.at(place);
        }
        load.say(diagnostic);
    };
    if public && any {
        conflict(
            "allow_public_unauthenticated_access",
            "allow_any_authenticated_user",
        );
    }
    for (list, name) in [(users, "allowed_users"), (domains, "allowed_domains")] {
        if list.is_empty() {
            continue;
        }
        if public {
            conflict("allow_public_unauthenticated_access", name);
        }
        if any {
            conflict("allow_any_authenticated_user", name);
        }
    }
}

/// `allowed_idp_claims`: claim → value or values.
fn idp_claims(load: &mut Load<'_>, section: Section<'_>) -> Option<BTreeMap<String, Vec<Json>>> {
    let mut claims = BTreeMap::new();
    let Some(node) = section.node("allowed_idp_claims") else {
        return Some(claims);
    };
    let Value::Map(map) = &node.value else {
        load.say(
            Diagnostic::error(
                code::WRONG_TYPE,
                format!(
                    "`allowed_idp_claims` takes a map of claims to values, but here is {}",
                    node.kind()
                ),
            )
            .at(&node.place),
        );
        return None;
    };
    for (claim, node) in &map.entries {
        if claim.value.chars().any(|c| c.is_ascii_uppercase()) {
            load.say(
                Diagnostic::note(
                    code::DIFFERENCE,
                    format!(
                        "matches the claim `{}` as written; Pomerium would look for `{}`",
                        claim.value,
                        claim.value.to_ascii_lowercase()
                    ),
                )
                .at(&claim.place),
            );
        }
        let values = match node.to_json() {
            Json::Array(values) => values,
            Json::Null => Vec::new(),
            one => vec![one],
        };
        claims.insert(claim.value.clone(), values);
    }
    Some(claims)
}

/// The tree of `policy`; one written as a text holds YAML. Outer `None`: it is no YAML.
#[expect(clippy::option_option, reason = "absent and broken are told apart")]
fn written(load: &mut Load<'_>, section: Section<'_>) -> Option<Option<Node>> {
    let Some(node) = section.node("policy") else {
        return Some(None);
    };
    let Value::Scalar(scalar) = &node.value else {
        return Some(Some(node.clone()));
    };
    let source = SourceText::new(format!("policy ({})", node.place), scalar.text.as_str());
    let mut found = Diagnostics::default();
    let parsed = parse_yaml(&Arc::clone(&source), &mut found);
    for diagnostic in &found {
        load.say(diagnostic.clone());
    }
    if let Some(node) = &parsed {
        mask::embedded(node);
    }
    parsed.map(Some)
}

/// A route that lets nobody in is rarely meant.
fn nobody(load: &mut Load<'_>, section: Section<'_>, shorthand: &Shorthand, policy: Option<&Json>) {
    let has_allow = |rule: &Json| rule.get("allow").is_some();
    let written = match policy {
        Some(Json::Array(rules)) => rules.iter().any(has_allow),
        Some(rule) => has_allow(rule),
        None => false,
    };
    if written || *shorthand != Shorthand::default() {
        return;
    }
    let mut diagnostic = Diagnostic::warning(code::POLICY, "this route lets nobody in: no key of it allows anyone")
        .help("add `policy`, `allow_any_authenticated_user: true` or `allow_public_unauthenticated_access: true`");
    if let Some(place) = section.place {
        let place: &Place = place;
        diagnostic = diagnostic.at(place);
    }
    load.say(diagnostic);
}
