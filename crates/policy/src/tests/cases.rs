//! Cases from public bug reports.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::facts::{anonymous, compile, keeps_out, lets_in, signed_in};
use crate::{Outcome, Policy, Reason, Shorthand, Truth};

#[test]
fn c22_a_claim_that_is_not_there_is_one_refusal_and_no_sign_in() {
    let policy = compile(&json!([{"allow": {"and": [{"claim/groups": "eng"}]}}]));
    let bob = signed_in("bob@corp.test", &json!({"groups": ["sales"]}));
    assert_eq!(
        bob.outcome(&policy),
        Outcome::Denied {
            reasons: Reason::ClaimUnauthorized.into()
        }
    );
    let ann = signed_in("ann@corp.test", &json!({"groups": ["eng", "ops"]}));
    assert_eq!(ann.outcome(&policy), Outcome::Allow);
    assert_eq!(anonymous().outcome(&policy), Outcome::Unauthenticated);
}

#[test]
fn c30_has_works_as_the_bare_value_does() {
    let ann = signed_in("ann@corp.test", &json!({"groups": ["eng", "ops"]}));
    let bob = signed_in("bob@corp.test", &json!({"groups": ["sales"]}));
    for claim in [json!({"has": "ops"}), json!("ops")] {
        let policy = compile(&json!([
            {"allow": {"and": [{"domain": {"is": "corp.test"}}, {"claim/groups": claim}]}}
        ]));
        assert_eq!(ann.outcome(&policy), Outcome::Allow);
        assert!(matches!(bob.outcome(&policy), Outcome::Denied { .. }));
    }
}

#[test]
fn c30_contains_under_claim_is_an_error_that_names_has() {
    let errors = Policy::compile(&json!([
        {"allow": {"and": [{"domain": {"is": "corp.test"}}, {"claim/groups": {"contains": "ops"}}]}}
    ]))
    .unwrap_err();
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].pointer, "/0/allow/and/1/claim~1groups/contains");
    assert_eq!(errors[0].hint.as_deref(), Some("use `has`"));
}

#[test]
fn c30_route_keys_and_policy_are_joined_by_or_and_told_in_words() {
    let shorthand = Shorthand {
        idp_claims: BTreeMap::from([("groups".to_owned(), vec![json!("sales")])]),
        ..Shorthand::default()
    };
    let policy = json!([
        {"allow": {"and": [{"domain": {"is": "corp.test"}}, {"claim/groups": {"has": "ops"}}]}}
    ]);
    let policy = Policy::for_route(&shorthand, Some(&policy)).unwrap();
    let ann = signed_in("ann@corp.test", &json!({"groups": ["eng", "ops"]}));
    let bob = signed_in("bob@corp.test", &json!({"groups": ["sales"]}));
    let eve = signed_in("eve@other.test", &json!({"groups": ["ops"]}));
    assert_eq!(ann.outcome(&policy), Outcome::Allow);
    assert_eq!(bob.outcome(&policy), Outcome::Allow);
    assert!(matches!(eve.outcome(&policy), Outcome::Denied { .. }));
    assert_eq!(
        policy.describe(),
        "Allowed if claim `groups` has \"sales\"\n  \
         or if e-mail domain is \"corp.test\" and claim `groups` has \"ops\""
    );
}

/// The claims of the case, flattened as they are stored.
fn odd_claims() -> Value {
    json!({
        "a": null,
        "n": 42,
        "b": true,
        "nested.x": ["p", "q"],
        "mix": [1, "two"],
        "Dept": "R&D",
    })
}

#[test]
fn c31_odd_claims() {
    let ann = signed_in("ann@corp.test", &odd_claims());
    for (criterion, expected) in [
        (json!({"claim/a": ""}), false),
        (json!({"claim/a": "null"}), false),
        (json!({"claim/gone": ""}), false),
        (json!({"claim/nested.x": "q"}), true),
        (json!({"claim/nested/x": "q"}), true),
        (json!({"claim/nested": "q"}), false),
        (json!({"claim/mix": "two"}), true),
        (json!({"claim/Dept": "R&D"}), true),
        (json!({"claim/dept": "R&D"}), false),
        // One rule: a number or boolean counts as its text.
        (json!({"claim/n": 42}), true),
        (json!({"claim/n": "42"}), true),
        (json!({"claim/n": "42.0"}), false),
        (json!({"claim/n": 42.0}), true),
        (json!({"claim/b": true}), true),
        (json!({"claim/b": "true"}), true),
        (json!({"claim/b": 1}), false),
        (json!({"claim/mix": 1}), true),
    ] {
        assert_eq!(lets_in(&criterion, &ann), expected, "{criterion}");
    }
}

#[test]
fn c31_explain_shows_type_and_value_met() {
    let ann = signed_in("ann@corp.test", &odd_claims());
    for (name, met) in [
        ("a", "null"),
        ("gone", "no such claim"),
        ("n", "number 42"),
        ("b", "boolean true"),
        ("nested/x", "list of 2: text \"p\", text \"q\""),
        ("mix", "list of 2: number 1, text \"two\""),
        ("Dept", "text \"R&D\""),
    ] {
        let claim = format!("claim/{name}");
        let policy = compile(&json!({"allow": {"and": [{claim: "x"}]}}));
        let explanation = ann.with(|input| policy.explain(input));
        let criterion = &explanation.rules[0].criteria[0];
        assert_eq!(criterion.met, met);
        assert_eq!(criterion.truth, Truth::False);
        assert!(explanation.to_string().contains(met), "{explanation}");
    }
}

#[test]
fn c35_domains_have_no_case() {
    let ann = signed_in("Ann@CORP.test", &json!({}));
    for domain in ["Corp.Test", "corp.test", "CORP.TEST"] {
        assert!(
            lets_in(&json!({"domain": {"is": domain}}), &ann),
            "{domain}"
        );
        let shorthand = Shorthand {
            domains: vec![domain.to_owned(), "else.test".to_owned()],
            ..Shorthand::default()
        };
        let policy = Policy::for_route(&shorthand, None).unwrap();
        assert_eq!(ann.outcome(&policy), Outcome::Allow, "{domain}");
    }
    assert!(!lets_in(&json!({"email": "ann@corp.test"}), &ann));
}

#[test]
fn c29_a_claim_that_is_kept_elsewhere_lets_nobody_in_and_nobody_past() {
    let ann = signed_in("ann@corp.test", &json!({"_claim_names.groups": "src1"}));
    let exclude = json!({"claim/groups": {"exclude": "contractors"}});
    assert!(!lets_in(&json!({"claim/groups": "eng"}), &ann));
    assert!(!lets_in(&exclude, &ann));
    assert!(keeps_out(
        &json!({"claim/groups": {"exclude": "eng"}}),
        &ann
    ));
    // Somebody who plainly has no groups is in none of them, as in Pomerium.
    let bob = signed_in("bob@corp.test", &json!({}));
    assert!(lets_in(&exclude, &bob));
}

/// Providers differ in whether they keep the case that somebody wrote their address in.
#[test]
fn c35_the_case_of_an_address_lets_nobody_past() {
    let shouts = signed_in("EVE@other.test", &json!({}));
    for rules in [
        json!({"deny": {"or": [{"email": "eve@other.test"}]}, "allow": {"or": [{"authenticated_user": 1}]}}),
        json!({"deny": {"and": [{"email": {"in": ["a@b.test", "Eve@other.test"]}}]}, "allow": {"or": [{"authenticated_user": 1}]}}),
        json!({"deny": {"nor": [{"email": {"not_in": ["eve@other.test"]}}]}, "allow": {"or": [{"authenticated_user": 1}]}}),
        json!({"allow": {"not": [{"email": {"starts_with": "eve@"}}]}}),
        json!({"allow": {"and": [{"email": {"not": "eve@other.test"}}]}}),
        // Where a match would let in, case counts.
        json!({"allow": {"and": [{"email": "eve@other.test"}]}}),
        json!({"deny": {"not": [{"email": "eve@other.test"}]}, "allow": {"or": [{"authenticated_user": 1}]}}),
        json!({"deny": {"or": [{"email": {"not": "eve@other.test"}}]}, "allow": {"or": [{"authenticated_user": 1}]}}),
    ] {
        let policy = compile(&json!([rules]));
        assert_ne!(shouts.outcome(&policy), Outcome::Allow, "{rules}");
    }
}

/// Anonymous visitors, deny rules about the person, and allow rules that may or may not need one.
#[test]
fn c81_a_deny_rule_about_the_person_sends_to_sign_in_only_where_it_matters() {
    let deny = json!({"or": [{"email": {"is": "eve@other.test"}}]});
    let private = compile(&json!([
        {"deny": deny, "allow": {"or": [{"authenticated_user": true}]}}
    ]));
    let public = compile(&json!([{"deny": deny, "allow": {"or": [{"accept": true}]}}]));
    let eve = signed_in("eve@other.test", &json!({}));
    let ann = signed_in("ann@corp.test", &json!({}));
    let denied = Outcome::Denied {
        reasons: Reason::EmailOk.into(),
    };
    assert_eq!(anonymous().outcome(&private), Outcome::Unauthenticated);
    assert_eq!(eve.outcome(&private), denied);
    assert_eq!(ann.outcome(&private), Outcome::Allow);
    assert_eq!(anonymous().outcome(&public), Outcome::Allow);
    assert_eq!(eve.outcome(&public), denied);
    assert_eq!(ann.outcome(&public), Outcome::Allow);
}

#[test]
fn c81_in_other_clothes() {
    for deny in [
        json!({"or": [{"claim/groups": "banned"}]}),
        json!({"or": [{"user": "eve"}, {"domain": "other.test"}]}),
        json!({"and": [{"domain": "other.test"}, {"http_method": "GET"}]}),
        json!({"or": [{"groups": "banned"}, {"device": {"type": "any"}}]}),
        json!({"or": [{"authenticated_user": true}]}),
    ] {
        let public = compile(&json!([{"deny": deny}, {"allow": {"or": [{"accept": true}]}}]));
        assert_eq!(anonymous().outcome(&public), Outcome::Allow, "{deny}");
        let private = compile(&json!([{"deny": deny}, {"allow": {"or": [{"user": "ann"}]}}]));
        assert_eq!(
            anonymous().outcome(&private),
            Outcome::Unauthenticated,
            "{deny}"
        );
    }
}
