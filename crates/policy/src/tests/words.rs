//! What people read: descriptions, explanations, notes.

use serde_json::{Value, json};

use super::facts::{anonymous, compile, signed_in};
use crate::{Policy, Shorthand};

#[test]
fn a_policy_is_told_in_words() {
    let policy = compile(&json!([
        {"allow": {
            "and": [{"email": {"starts_with": "a", "not": "abc"}}, {"source_ip": ["10.0.0.0/8", "::1"]}],
            "not": [{"http_method": {"in": ["PUT", "POST"]}}, {"cors_preflight": true}],
        }},
        {"deny": {
            "or": [{"record": {"type": "hr", "field": "score", "<": 3}}],
            "nor": [{"day_of_week": {"is": "mon-wed", "timezone": "Europe/Berlin"}}, {"accept": 1}],
        }},
    ]))
    .with_client_certificate_deny();
    let words = policy.describe();
    for part in [
        "Allowed if e-mail address is not \"abc\" and starts with \"a\" and client address in \
         10.0.0.0/8, ::1/128",
        "\n  or if not (method is one of \"POST\", \"PUT\") and not (a CORS preflight)",
        "\nDenied all the same if not (day is monday, tuesday, wednesday (Europe/Berlin)) or not (anybody)",
        "\n  or if record \"hr\", field `score` < 3",
        "\n  or if no valid client certificate",
    ] {
        assert!(words.contains(part), "{part}\nin\n{words}");
    }
    assert_eq!(
        Policy::default().describe(),
        "Nobody is allowed: there is no allow rule."
    );
}

#[test]
fn long_lists_are_cut() {
    let users: Vec<String> = (0..10_000).map(|index| format!("user{index}")).collect();
    let networks: Vec<String> = (0..10_000)
        .map(|index| format!("10.{}.{}.0/24", index / 256, index % 256))
        .collect();
    let policy =
        compile(&json!({"allow": {"or": [{"user": {"in": users}}, {"source_ip": networks}]}}));
    let words = policy.describe();
    assert!(words.len() < 2000, "{}", words.len());
    assert!(words.contains("and 9980 more"), "{words}");
}

#[test]
fn an_explanation_shows_what_was_asked_and_met() {
    let policy = compile(&json!([
        {"allow": {"and": [{"domain": "corp.test"}, {"claim/groups": "ops"}]}},
        {"deny": {"or": [{"source_ip": "10.0.0.0/8"}]}},
    ]));
    let bob = signed_in("bob@corp.test", &json!({"groups": ["sales"]}));
    assert_eq!(
        bob.with(|input| policy.explain(input)).to_string(),
        "denied (claim-unauthorized)\n\
         allow and: does not match (/0/allow/and)\n  \
           e-mail domain is \"corp.test\": true, met \"corp.test\" (domain-ok)\n  \
           claim `groups` has \"ops\": false, met text \"sales\" (claim-unauthorized)\n\
         deny or: does not match (/1/deny/or)\n  \
           client address in 10.0.0.0/8: false, met 203.0.113.9 (source-ip-unauthorized)"
    );
    assert!(
        anonymous()
            .with(|input| policy.explain(input))
            .to_string()
            .starts_with("sign-in needed (user-unauthenticated)\n")
    );
}

fn notes(policy: &Value) -> Vec<(String, String)> {
    compile(policy)
        .notes()
        .iter()
        .map(|note| (note.pointer.clone(), note.message.clone()))
        .collect()
}

#[test]
fn notes_point_at_what_pomerium_does_differently() {
    for (policy, pointer, part) in [
        (
            json!({"allow": {"not": [{"email": "eve@other.test"}]}}),
            "/allow/not/0",
            "in Pomerium it can be true of everybody",
        ),
        (
            json!({"allow": {"or": [{"claim/x": {"exclude": "y"}}]}}),
            "/allow/or/0",
            "in Pomerium it can be true of everybody",
        ),
        (
            json!({"deny": {"not": [{"domain": "corp.test"}]}}),
            "/deny/not/0",
            "asked to sign in",
        ),
        (
            json!([{"allow": {"and": [{"accept": 1}]}}, {"deny": {"or": [{"user": "eve"}]}}]),
            "/1/deny/or/0",
            "the route is public",
        ),
        (
            json!({"allow": {"or": [{"claim/Dept": "x"}]}}),
            "/allow/or/0/claim~1Dept",
            "`dept`",
        ),
        (
            json!({"allow": {"or": [{"http_method": "get"}]}}),
            "/allow/or/0/http_method",
            "upper case",
        ),
        (
            json!({"allow": {"or": [{"domain": "@corp.test"}]}}),
            "/allow/or/0/domain",
            "`@`",
        ),
        (
            json!({"allow": {"or": [{"authenticated_user": false}]}}),
            "/allow/or/0/authenticated_user",
            "ignored",
        ),
    ] {
        let notes = notes(&policy);
        assert_eq!(notes.len(), 1, "{policy}: {notes:?}");
        assert_eq!(notes[0].0, pointer);
        assert!(notes[0].1.contains(part), "{notes:?}");
    }
}

#[test]
fn what_is_as_in_pomerium_needs_no_note() {
    for policy in [
        json!({"allow": {"and": [{"domain": "corp.test"}, {"claim/groups": "x"}]}}),
        json!({"allow": {"not": [{"email": {"not": "ann@corp.test"}}]}}),
        json!([{"allow": {"or": [{"user": "x"}]}}, {"deny": {"or": [{"user": "y"}]}}]),
        json!({"deny": {"not": [{"source_ip": "10.0.0.0/8"}]}}),
    ] {
        assert_eq!(notes(&policy), [], "{policy}");
    }
    let shorthand = Shorthand {
        domains: vec!["@corp.test".to_owned()],
        ..Shorthand::default()
    };
    let policy = Policy::for_route(&shorthand, None).unwrap();
    assert_eq!(policy.notes()[0].pointer, "/allowed_domains/0");
}
