//! Whatever the JSON, nothing panics.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::facts::{anonymous, signed_in};
use crate::{Policy, Shorthand};

/// Words that lead deeper into the compiler than random ones.
const WORDS: [&str; 62] = [
    "allow",
    "deny",
    "and",
    "or",
    "not",
    "nor",
    "action",
    "accept",
    "reject",
    "authenticated_user",
    "user",
    "email",
    "domain",
    "claim",
    "claim/",
    "claim/a",
    "claim/a/b.c",
    "groups",
    "source_ip",
    "http_method",
    "http_path",
    "cors_preflight",
    "pomerium_routes",
    "client_certificate",
    "invalid_client_certificate",
    "device",
    "date",
    "day_of_week",
    "time_of_day",
    "record",
    "mcp_tool",
    "ssh_ca",
    "is",
    "in",
    "not_in",
    "contains",
    "starts_with",
    "ends_with",
    "has",
    "exclude",
    "fingerprint",
    "spki_hash",
    "san_dns",
    "type",
    "approved",
    "field",
    "exists",
    "<",
    ">=",
    "=",
    "after",
    "before",
    "timezone",
    "UTC",
    "Europe/Berlin",
    "mon-fri",
    "9:00",
    "10.0.0.0/8",
    "::/0",
    "2025-01-01",
    "",
    "~/",
];

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => proptest::sample::select(&WORDS[..]).prop_map(str::to_owned),
        1 => "\\PC{0,12}",
        1 => any::<String>(),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::vec((word(), inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// A policy whose outer shape is right, so that the data of criteria is reached.
fn near_policy() -> impl Strategy<Value = Value> {
    let criterion = (word(), value()).prop_map(|(name, data)| json!({name: data}));
    let operator = proptest::sample::select(&["and", "or", "not", "nor"][..]);
    let action = proptest::sample::select(&["allow", "deny"][..]);
    let rule = (action, operator, proptest::collection::vec(criterion, 0..4))
        .prop_map(|(action, operator, criteria)| json!({action: {operator: criteria}}));
    proptest::collection::vec(rule, 0..4).prop_map(Value::from)
}

fn use_it(policy: &Value, claims: &Value) {
    let route = Policy::for_route(
        &Shorthand {
            idp_claims: [("a".to_owned(), vec![policy.clone()])].into(),
            domains: vec!["@".to_owned()],
            ..Shorthand::default()
        },
        Some(policy),
    );
    for compiled in [Policy::compile(policy), route] {
        match compiled {
            Ok(compiled) => {
                let mut ann = signed_in("ann@corp.test", &json!({"a": claims, "groups": claims}));
                ann.records.insert("type".to_owned(), claims.clone());
                for facts in [anonymous(), ann] {
                    let _ = facts.outcome(&compiled);
                    let _ = facts.with(|input| compiled.explain(input)).to_string();
                    let _ = compiled.next_time_boundary(facts.now);
                }
                let _ = compiled.describe();
            }
            Err(errors) => {
                assert!(!errors.is_empty());
                for error in errors {
                    assert!(!error.to_string().is_empty());
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn s52_any_json_compiles_or_is_refused(policy in value(), claims in value()) {
        use_it(&policy, &claims);
    }

    #[test]
    fn s52_anything_under_a_criterion_compiles_or_is_refused(
        policy in near_policy(),
        claims in value(),
    ) {
        use_it(&policy, &claims);
        // And an error leads to where it is.
        if let Err(errors) = Policy::compile(&policy) {
            for error in errors {
                prop_assert!(policy.pointer(&error.pointer).is_some(), "{error}");
            }
        }
    }

    #[test]
    fn s52_any_text_is_an_address(address in any::<String>(), quoted in "[\"@\\\\a.]{0,12}") {
        let policy = Policy::compile(&json!({"allow": {"or": [{"domain": "a.a"}]}})).unwrap();
        for address in [address, quoted] {
            let ann = signed_in(&address, &json!({}));
            let _ = ann.outcome(&policy);
            let _ = ann.with(|input| policy.explain(input)).to_string();
        }
    }

    #[test]
    fn s52_any_text_is_a_time_a_day_a_network_or_a_mistake(text in prop_oneof![
        any::<String>(),
        "[0-9:. apmAPM]{0,14}",
        "[0-9TZ:+. -]{0,26}",
        "[a-z,* -]{0,12}",
        "[0-9a-f:./]{0,20}",
    ]) {
        let policy = json!({"allow": {"or": [
            {"time_of_day": {"timezone": "UTC", "after": text}},
            {"time_of_day": {"timezone": text, "after": "1:00"}},
            {"date": {"after": text}},
            {"day_of_week": text},
            {"source_ip": text},
            {"client_certificate": {"fingerprint": text, "spki_hash": text}},
        ]}});
        use_it(&policy, &json!(null));
    }
}
