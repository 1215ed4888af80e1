//! How rules combine, and what the visitor gets.

use serde_json::json;

use super::facts::{Leaf, OwnDevice, Shown, anonymous, compile, keeps_out, lets_in, signed_in};
use crate::{CertificateProblem, Outcome, Policy, Reason, Reasons, Shorthand};

fn denied(reasons: &[Reason]) -> Outcome {
    Outcome::Denied {
        reasons: reasons.iter().copied().collect(),
    }
}

#[test]
fn operators_are_named_as_in_pomerium() {
    let yes = json!({"accept": true});
    let no = json!({"reject": true});
    for (operator, criteria, expected) in [
        ("and", json!([yes, yes]), true),
        ("and", json!([yes, no]), false),
        ("or", json!([yes, no]), true),
        ("or", json!([no, no]), false),
        ("not", json!([no, no]), true),
        ("not", json!([yes, no]), false),
        ("nor", json!([yes, no]), true),
        ("nor", json!([yes, yes]), false),
        ("and", json!([]), false),
        ("or", json!([]), false),
        ("not", json!([]), false),
        ("nor", json!([]), false),
    ] {
        let policy = compile(&json!({"allow": {operator: criteria}}));
        let outcome = anonymous().outcome(&policy);
        assert_eq!(outcome == Outcome::Allow, expected, "{operator} {criteria}");
    }
}

#[test]
fn operators_and_rules_are_joined_by_or() {
    let yes = json!([{"accept": 1}]);
    let no = json!([{"reject": 1}]);
    for policy in [
        json!({"allow": {"and": no, "or": yes}}),
        json!({"allow": {"not": no, "or": no}}),
        json!([{"allow": {"or": no}}, {"allow": {"or": yes}}]),
        json!([{"deny": {"or": no}}, {"allow": {"or": yes}}]),
        json!([{}, {"allow": {}}, {"allow": {"or": yes, "action": "allow"}}]),
    ] {
        assert_eq!(
            anonymous().outcome(&compile(&policy)),
            Outcome::Allow,
            "{policy}"
        );
    }
}

#[test]
fn s34_deny_beats_allow() {
    let yes = json!([{"accept": 1}]);
    for policy in [
        json!({"allow": {"or": yes}, "deny": {"or": yes}}),
        json!([{"allow": {"or": yes}}, {"deny": {"and": yes}}]),
        json!([{"deny": {"nor": [{"reject": 1}]}}, {"allow": {"or": yes}}, {"allow": {"or": yes}}]),
    ] {
        let outcome = anonymous().outcome(&compile(&policy));
        assert!(
            matches!(outcome, Outcome::Denied { .. }),
            "{policy} {outcome:?}"
        );
    }
}

#[test]
fn s34_an_empty_policy_denies_and_asks_nobody_to_sign_in() {
    for policy in [
        Policy::default(),
        compile(&json!([])),
        compile(&json!({})),
        compile(&json!({"allow": {"and": [], "not": []}})),
        Policy::for_route(&Shorthand::default(), None).unwrap(),
    ] {
        assert_eq!(anonymous().outcome(&policy), denied(&[]));
        let ann = signed_in("ann@corp.test", &json!({}));
        assert_eq!(ann.outcome(&policy), denied(&[]));
    }
}

#[test]
fn reasons_are_those_of_the_parts_that_decided() {
    let ann = signed_in("ann@corp.test", &json!({}));
    let reasons = |operator: &str, criteria| {
        let policy = compile(&json!({"allow": {operator: criteria}}));
        ann.verdict(&policy).allow.reasons.to_string()
    };
    let mixed = || json!([{"domain": "corp.test"}, {"http_method": "PUT"}, {"user": "bob"}]);
    assert_eq!(
        reasons("and", mixed()),
        "http-method-unauthorized, user-unauthorized"
    );
    assert_eq!(reasons("or", mixed()), "domain-ok");
    assert_eq!(reasons("not", mixed()), "domain-ok");
    assert_eq!(
        reasons("nor", mixed()),
        "http-method-unauthorized, user-unauthorized"
    );
}

#[test]
fn an_anonymous_visitor_is_asked_to_sign_in_where_it_depends_on_who_they_are() {
    for criteria in [
        json!([{"domain": "corp.test"}]),
        json!([{"authenticated_user": true}]),
        json!([{"claim/groups": "eng"}, {"source_ip": "10.0.0.0/8"}]),
        json!([{"device": {"type": "any"}}]),
    ] {
        for operator in ["and", "or"] {
            let policy = compile(&json!({"allow": {operator: criteria}}));
            assert_eq!(
                anonymous().outcome(&policy),
                Outcome::Unauthenticated,
                "{criteria}"
            );
        }
    }
    let policy = compile(&json!({"allow": {"or": [{"source_ip": "10.0.0.0/8"}]}}));
    assert_eq!(
        anonymous().outcome(&policy),
        denied(&[Reason::SourceIpUnauthorized])
    );
}

#[test]
fn without_a_session_no_test_about_the_person_lets_in_negated_or_not() {
    for criterion in [
        json!({"authenticated_user": true}),
        json!({"user": {"not": "eve"}}),
        json!({"user": {"not_in": ["eve"]}}),
        json!({"email": {"not": "eve@other.test"}}),
        json!({"email": {"not_in": ["eve@other.test"]}}),
        json!({"email": ""}),
        json!({"domain": {"not": "other.test"}}),
        json!({"claim/groups": {"exclude": "banned"}}),
        json!({"groups": {"exclude": "banned"}}),
        json!({"device": {"approved": false}}),
        json!({"device": {"approved": true}}),
    ] {
        for operator in ["and", "or", "not", "nor"] {
            let policy = compile(&json!({"allow": {operator: [criterion]}}));
            let outcome = anonymous().outcome(&policy);
            assert_eq!(outcome, Outcome::Unauthenticated, "{operator} {criterion}");
        }
    }
}

#[test]
fn without_a_session_a_deny_rule_that_names_who_may_pass_asks_to_sign_in() {
    for deny in [
        json!({"not": [{"domain": "corp.test"}]}),
        json!({"nor": [{"domain": "corp.test"}]}),
        json!({"or": [{"domain": {"not": "corp.test"}}]}),
        json!({"or": [{"claim/groups": {"exclude": "eng"}}]}),
    ] {
        let policy = compile(&json!([{"allow": {"or": [{"accept": 1}]}}, {"deny": deny}]));
        assert_eq!(
            anonymous().outcome(&policy),
            Outcome::Unauthenticated,
            "{deny}"
        );
        let ann = signed_in("ann@corp.test", &json!({"groups": ["eng"]}));
        assert_eq!(ann.outcome(&policy), Outcome::Allow, "{deny}");
        let eve = signed_in("eve@other.test", &json!({"groups": ["ops"]}));
        assert!(
            matches!(eve.outcome(&policy), Outcome::Denied { .. }),
            "{deny}"
        );
    }
}

#[test]
fn a_deny_rule_that_holds_for_everybody_spares_a_sign_in() {
    let policy = compile(&json!({
        "allow": {"or": [{"authenticated_user": true}]},
        "deny": {"or": [{"source_ip": "203.0.113.0/24"}, {"email": {"not": "ann@corp.test"}}]},
    }));
    assert_eq!(anonymous().outcome(&policy), denied(&[Reason::SourceIpOk]));
    let mut elsewhere = anonymous();
    elsewhere.ip = "198.51.100.1".to_owned();
    assert_eq!(elsewhere.outcome(&policy), Outcome::Unauthenticated);
}

#[test]
fn s36_an_address_without_a_clear_domain_lets_nobody_in_and_nobody_past() {
    let eve = signed_in("ann@corp.test@other.test", &json!({}));
    for domain in ["corp.test", "other.test", "corp.test@other.test", ""] {
        assert!(!lets_in(&json!({"domain": domain}), &eve));
        assert!(!lets_in(&json!({"domain": {"not": domain}}), &eve));
        assert!(keeps_out(&json!({"domain": {"not": domain}}), &eve));
        let policy = compile(&json!({"allow": {"not": [{"domain": domain}]}}));
        assert_eq!(eve.outcome(&policy), denied(&[Reason::DomainUnauthorized]));
    }
}

#[test]
fn s36_somebody_without_an_address_has_none_that_differs() {
    let mut ann = signed_in("", &json!({}));
    for email in [Some(String::new()), None] {
        ann.person().email = email;
        for criterion in ["email", "domain"] {
            assert!(!lets_in(&json!({criterion: ""}), &ann));
            assert!(!lets_in(
                &json!({criterion: {"not": "eve@other.test"}}),
                &ann
            ));
            assert!(keeps_out(&json!({criterion: {"not": "corp.test"}}), &ann));
        }
    }
}

#[test]
fn a_missing_device_can_be_registered() {
    let policy = compile(&json!({
        "allow": {"and": [{"domain": "corp.test"}, {"device": {"type": "enclave_only"}}]}
    }));
    let mut ann = signed_in("ann@corp.test", &json!({}));
    ann.person().devices.push(OwnDevice {
        type_id: "any".to_owned(),
        credential_id: "key".to_owned(),
        approved: true,
    });
    assert_eq!(
        ann.outcome(&policy),
        Outcome::DeviceUnauthenticated {
            device_type: "enclave_only".into()
        }
    );
    assert_eq!(anonymous().outcome(&policy), Outcome::Unauthenticated);
    ann.person().devices[0].type_id = "enclave_only".to_owned();
    assert_eq!(ann.outcome(&policy), Outcome::Allow);

    let approved = compile(&json!({
        "allow": {"and": [{"device": {"type": "enclave_only", "approved": true}}]}
    }));
    ann.person().devices[0].approved = false;
    assert_eq!(
        ann.outcome(&approved),
        denied(&[Reason::DeviceUnauthorized])
    );
}

#[test]
fn a_deny_rule_can_ask_for_a_device_too() {
    let policy = compile(&json!({
        "allow": {"or": [{"accept": true}]},
        "deny": {"not": [{"device": {"type": "enclave_only"}}]},
    }));
    assert_eq!(
        signed_in("ann@corp.test", &json!({})).outcome(&policy),
        Outcome::DeviceUnauthenticated {
            device_type: "enclave_only".into()
        }
    );
    assert_eq!(anonymous().outcome(&policy), Outcome::Unauthenticated);
}

#[test]
fn a_bad_client_certificate_comes_before_everything_else() {
    let required = Outcome::ClientCertificate(CertificateProblem::Required);
    let invalid = Outcome::ClientCertificate(CertificateProblem::Invalid);
    let shorthand = Shorthand {
        any_authenticated_user: true,
        ..Shorthand::default()
    };
    let private = Policy::for_route(&shorthand, None)
        .unwrap()
        .with_client_certificate_deny();
    let nothing = Policy::default().with_client_certificate_deny();
    let mut facts = anonymous();
    facts.certificate = Shown::Missing;
    assert_eq!(facts.outcome(&private), required);
    assert_eq!(facts.outcome(&nothing), required);
    facts.certificate = Shown::Invalid(Leaf::default());
    assert_eq!(facts.outcome(&private), invalid);
    facts.certificate = Shown::Valid(Leaf::default());
    assert_eq!(facts.outcome(&private), Outcome::Unauthenticated);
    assert_eq!(facts.outcome(&nothing), denied(&[]));
    facts.certificate = Shown::NotAsked(None);
    assert_eq!(facts.outcome(&private), Outcome::Unauthenticated);

    let in_allow = compile(&json!({"allow": {"not": [{"invalid_client_certificate": true}]}}));
    facts.certificate = Shown::Missing;
    assert_eq!(facts.outcome(&in_allow), required);
}

#[test]
fn route_keys_let_in_by_any_of_them() {
    let shorthand = Shorthand {
        cors_preflight: true,
        domains: vec!["corp.test".to_owned()],
        users: vec![
            "id-of-eve@other.test".to_owned(),
            "zoe@else.test".to_owned(),
        ],
        ..Shorthand::default()
    };
    let policy = Policy::for_route(&shorthand, None).unwrap();
    for email in ["ann@corp.test", "eve@other.test", "zoe@else.test"] {
        assert_eq!(
            signed_in(email, &json!({})).outcome(&policy),
            Outcome::Allow,
            "{email}"
        );
    }
    let mallory = signed_in("mallory@else.test", &json!({}));
    assert_eq!(
        mallory.outcome(&policy),
        denied(&[
            Reason::NonCorsRequest,
            Reason::DomainUnauthorized,
            Reason::UserUnauthorized,
            Reason::EmailUnauthorized,
        ])
    );
    let mut preflight = anonymous();
    assert_eq!(preflight.outcome(&policy), Outcome::Unauthenticated);
    preflight.method = "OPTIONS".to_owned();
    preflight.origin = Some("https://app.corp.test".to_owned());
    preflight.requested_method = Some("PUT".to_owned());
    assert_eq!(preflight.outcome(&policy), Outcome::Allow);
    let public = Shorthand {
        public: true,
        ..Shorthand::default()
    };
    let policy = Policy::for_route(&public, None).unwrap();
    assert_eq!(anonymous().outcome(&policy), Outcome::Allow);
    assert_eq!(
        anonymous().verdict(&policy).allow.reasons,
        Reasons::from(Reason::Accept)
    );
}
