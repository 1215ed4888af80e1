//! Mistakes in policies: all at once, each with its place and a way out.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{Policy, PolicyError, Shorthand};

fn mistakes(policy: &Value) -> Vec<PolicyError> {
    Policy::compile(policy).unwrap_err()
}

#[test]
fn s34_every_mistake_is_told_at_once_with_its_place() {
    let errors = mistakes(&json!([
        {"allow": {"or": [{"accept": 1}, {"email": "a"}, {"emial": "a"}]}},
        {"alow": {"or": []}},
        {"deny": {"xor": []}},
        {"deny": {"or": {"email": "a"}}},
        {"allow": {"or": ["accept", {"email": "a", "domain": "b"}, {}, 1]}},
        {"allow": []},
        7,
        {"allow": {"and": [{"claim/groups": {"contains": "a"}}, {"user": {"has": "a"}}]}},
    ]));
    let found: Vec<(&str, &str)> = errors
        .iter()
        .map(|error| (error.pointer.as_str(), error.message.as_str()))
        .collect();
    for expected in [
        ("/0/allow/or/2/emial", "unknown criterion `emial`"),
        ("/1/alow", "unknown action `alow`"),
        ("/2/deny/xor", "unknown operator `xor`"),
        (
            "/3/deny/or",
            "`or` takes a list of criteria, this is an object",
        ),
        ("/4/allow/or/1", "a criterion has exactly one key"),
        ("/4/allow/or/2", "a criterion has exactly one key"),
        ("/5/allow", "`allow` holds operators, this is a list"),
        (
            "/6",
            "a rule is an object with `allow` or `deny`, this is a number",
        ),
        (
            "/7/allow/and/0/claim~1groups/contains",
            "`contains` is no matcher for a list of values",
        ),
        (
            "/7/allow/and/1/user/has",
            "`has` is no matcher for one text",
        ),
    ] {
        assert!(found.contains(&expected), "{expected:?} in {found:#?}");
    }
    assert_eq!(errors.len(), 12, "{found:#?}");
}

#[test]
fn every_pointer_leads_to_a_value() {
    let policy = json!([
        {"allow": {"or": [
            {"emial": 1}, {"claim": "x"}, {"claim/a/b": {"is": null}}, {"email": {}},
            {"email": {"in": [1, null]}}, {"source_ip": ["x", 1]}, {"source_ip": null},
            {"client_certificate": {"fingerprint": ["x"], "san": 1, "spki_hash": 1}},
            {"device": {"approved": "maybe", "id": 1}}, {"device": {}},
            {"date": {"after": "x", "before": 1}}, {"date": {}}, {"day_of_week": "someday"},
            {"day_of_week": {"is": 1, "timezone": "x"}}, {"day_of_week": {}},
            {"time_of_day": {"after": "25:00"}}, {"time_of_day": {"timezone": "UTC"}},
            {"time_of_day": {"timezone": "UTC", "after": "1:00", "before": "1:00"}},
            {"record": {}}, {"record": {"type": "x", "field": "y", "~/": 1}},
            {"record": {"type": "x", "exists": true, "field": "y", "is": 1}},
            {"record": {"type": "x", "field": "y", ">": "1"}}, {"email/x": "y"}, {"and": []},
            {"mcp_tool": "x"}, {"ssh_username": "x"}, 1, "accept", {}, {"domain": ["x"]},
        ]}}
    ]);
    let errors = mistakes(&policy);
    for error in &errors {
        assert!(policy.pointer(&error.pointer).is_some(), "{error}");
        assert!(!error.message.is_empty());
    }
    // At least one for each element.
    for index in 0..policy[0]["allow"]["or"].as_array().unwrap().len() {
        let start = format!("/0/allow/or/{index}");
        assert!(
            errors
                .iter()
                .any(|error| error.pointer == start
                    || error.pointer.starts_with(&format!("{start}/"))),
            "{start}: {errors:#?}"
        );
    }
}

#[test]
fn hints_name_what_was_meant() {
    for (criterion, hint) in [
        (json!({"emial": 1}), "did you mean `email`?"),
        (json!({"http-method": 1}), "did you mean `http_method`?"),
        (json!({"claims/groups": 1}), "did you mean `claim/NAME`?"),
        (json!({"allowed_users": 1}), "did you mean `user`?"),
        (json!({"ip": 1}), "did you mean `source_ip`?"),
        (
            json!({"email/x": 1}),
            "write `email`, or `claim/…` for a claim",
        ),
        (
            json!({"claim": 1}),
            "write it behind a slash, such as `claim/groups`",
        ),
        (
            json!({"claim/": 1}),
            "write it behind a slash, such as `claim/groups`",
        ),
        (json!("accept"), "write `accept: true`?"),
        (
            json!({"device": {}}),
            "write `{type: any}` for any registered device",
        ),
    ] {
        let errors = mistakes(&json!({"allow": {"or": [criterion]}}));
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].hint.as_deref(), Some(hint), "{criterion}");
    }
    let errors = mistakes(&json!({"allow": {"or": [{"frobnicate": 1}]}}));
    assert!(
        errors[0]
            .hint
            .as_deref()
            .unwrap()
            .starts_with("known: accept, ")
    );
}

#[test]
fn what_is_not_built_yet_says_so() {
    for name in ["mcp_tool", "ssh_username", "ssh_publickey", "ssh_ca"] {
        let errors = mistakes(&json!({"allow": {"or": [{name: "x"}]}}));
        assert_eq!(
            errors[0].message,
            format!("criterion `{name}` is not supported yet")
        );
    }
}

#[test]
fn a_policy_is_a_rule_or_a_list_of_rules() {
    for policy in [json!(null), json!(true), json!(1), json!("allow: {}")] {
        let errors = mistakes(&policy);
        assert_eq!(
            (errors.len(), errors[0].pointer.as_str()),
            (1, ""),
            "{policy}"
        );
    }
}

#[test]
fn places_in_a_route_start_at_the_route() {
    let shorthand = Shorthand {
        idp_claims: BTreeMap::from([(
            "groups".to_owned(),
            vec![json!("ok"), json!(null), json!(["a"])],
        )]),
        ..Shorthand::default()
    };
    let policy = json!({"allow": {"or": [{"nope": 1}]}});
    let errors = Policy::for_route(&shorthand, Some(&policy)).unwrap_err();
    let pointers: Vec<&str> = errors.iter().map(|error| error.pointer.as_str()).collect();
    assert_eq!(
        pointers,
        [
            "/allowed_idp_claims/groups/1",
            "/allowed_idp_claims/groups/2",
            "/policy/allow/or/0/nope",
        ]
    );
}
