use postern_common::config::Route;
use postern_policy::Reason;
use serde_json::{Value, json};

use super::*;
use crate::certificate::{CertificateFact, Leaf};
use crate::facts::Rejection;
use crate::records::Claims;
use crate::testing::{NOW, ann, at, request, route};

fn facts(visitor: Visitor) -> Facts {
    Facts {
        visitor,
        ..Facts::default()
    }
}

fn person(email: &str, groups: &[&str]) -> Visitor {
    let mut person = ann();
    let user = crate::records::User {
        email: email.to_owned(),
        ..person.user.as_deref().unwrap().clone()
    };
    person.user = Some(user.into());
    if let crate::facts::PersonKind::Session { own, .. } = &mut person.kind {
        let mut session = (**own).clone();
        session.claims = Claims::of(json!({"groups": groups}));
        *own = session.into();
    }
    Visitor::Person(Box::new(person))
}

fn outcome(policy: &Value, visitor: Visitor) -> Outcome {
    let route = route("r", policy);
    decide(&request("/", &[]), &route, &facts(visitor), at(NOW)).outcome
}

/// What happened, in one word.
fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Allow => "allow",
        Outcome::SignIn => "sign-in",
        Outcome::Deny(Denial::Policy(_)) => "deny",
        Outcome::Deny(Denial::Device) => "device",
        Outcome::Deny(Denial::ClientCertificate(_)) => "certificate",
        Outcome::Deny(Denial::RouteNotFound) => "not-found",
        Outcome::Deny(Denial::InvalidToken) => "token",
        Outcome::Deny(Denial::CookieAndBearer) => "both",
    }
}

#[test]
fn a_table_of_situations() {
    let public = json!([{"allow": {"or": [{"accept": true}]}}]);
    let anyone = json!([{"allow": {"or": [{"authenticated_user": true}]}}]);
    let eng = json!([{"allow": {"and": [{"claim/groups": "eng"}]}}]);
    let but_eve = json!([
        {"allow": {"or": [{"authenticated_user": true}]},
         "deny": {"or": [{"email": {"is": "eve@other.test"}}]}}
    ]);
    let public_but_eve = json!([
        {"allow": {"or": [{"accept": true}]},
         "deny": {"or": [{"email": {"is": "eve@other.test"}}]}}
    ]);
    let nobody = json!([]);
    let get_only = json!([{"allow": {"or": [{"accept": true}]},
        "deny": {"or": [{"http_method": {"is": "GET"}}]}}]);
    let anonymous = || Visitor::Anonymous;
    let gone = || Visitor::Rejected(Rejection::Gone);
    let ann = || person("ann@corp.test", &["eng", "ops"]);
    let bob = || person("bob@corp.test", &["sales"]);
    let eve = || person("eve@other.test", &[]);
    for (name, policy, visitor, expected) in [
        ("public, nobody", &public, anonymous(), "allow"),
        ("public, session gone", &public, gone(), "allow"),
        ("public, ann", &public, ann(), "allow"),
        ("anyone, nobody", &anyone, anonymous(), "sign-in"),
        ("anyone, session gone", &anyone, gone(), "sign-in"),
        ("anyone, bob", &anyone, bob(), "allow"),
        ("eng, nobody", &eng, anonymous(), "sign-in"),
        ("eng, ann", &eng, ann(), "allow"),
        // c22: one answer, never back to sign-in.
        ("eng, bob", &eng, bob(), "deny"),
        // c81
        ("but eve, nobody", &but_eve, anonymous(), "sign-in"),
        ("but eve, eve", &but_eve, eve(), "deny"),
        ("but eve, bob", &but_eve, bob(), "allow"),
        (
            "public but eve, nobody",
            &public_but_eve,
            anonymous(),
            "allow",
        ),
        ("public but eve, eve", &public_but_eve, eve(), "deny"),
        ("no rules, nobody", &nobody, anonymous(), "deny"),
        ("no rules, ann", &nobody, ann(), "deny"),
        ("denied for all, nobody", &get_only, anonymous(), "deny"),
        (
            "invalid token on a public route",
            &public,
            Visitor::InvalidToken,
            "token",
        ),
        (
            "cookie and bearer",
            &public,
            Visitor::CookieAndBearer,
            "both",
        ),
    ] {
        assert_eq!(word(outcome(policy, visitor)), expected, "{name}");
    }
}

#[test]
fn c31_values_of_claims() {
    let claims = json!({
        "a": [null], "n": [42], "b": [true], "nested.x": ["p", "q"],
        "mix": [1, "two"], "Dept": ["R&D"]
    });
    let visitor = || {
        let mut person = ann();
        if let crate::facts::PersonKind::Session { own, .. } = &mut person.kind {
            let mut session = (**own).clone();
            session.claims = Claims::of(claims.clone());
            *own = session.into();
        }
        Visitor::Person(Box::new(person))
    };
    for (claim, value, expected) in [
        ("claim/a", json!(""), "deny"),
        ("claim/gone", json!(""), "deny"),
        ("claim/nested.x", json!("q"), "allow"),
        ("claim/nested/x", json!("q"), "allow"),
        ("claim/mix", json!("two"), "allow"),
        ("claim/Dept", json!("R&D"), "allow"),
        ("claim/n", json!("42"), "allow"),
        ("claim/n", json!(42), "allow"),
        ("claim/b", json!("true"), "allow"),
    ] {
        let policy = json!([{"allow": {"and": [{claim: value}]}}]);
        assert_eq!(
            word(outcome(&policy, visitor())),
            expected,
            "{claim} {value}"
        );
    }
}

#[test]
fn c35_domains_match_in_any_case() {
    let policy = json!([{"allow": {"and": [{"domain": {"is": "Corp.Test"}}]}}]);
    assert_eq!(
        word(outcome(&policy, person("Ann@CORP.test", &[]))),
        "allow"
    );
}

#[test]
fn s36_an_ambiguous_address_has_no_domain() {
    let policy = json!([{"allow": {"and": [{"domain": {"is": "corp.test"}}]}}]);
    for email in ["ann@evil.test@corp.test", "@corp.test", "", "corp.test"] {
        assert_eq!(
            word(outcome(&policy, person(email, &[]))),
            "deny",
            "{email}"
        );
    }
}

#[test]
fn s37_the_address_of_the_trusted_hops_counts() {
    let policy = json!([{"allow": {"or": [{"source_ip": "10.0.0.0/8"}]}}]);
    let route = route("r", &policy);
    for (address, expected) in [
        ("10.0.0.9", "allow"),
        ("::ffff:10.0.0.9", "allow"),
        ("203.0.113.5", "deny"),
    ] {
        let mut request = request("/", &[("x-forwarded-for", "10.0.0.1")]);
        request.client_address = address.parse().unwrap();
        let ruling = decide(&request, &route, &facts(Visitor::Anonymous), at(NOW));
        assert_eq!(word(ruling.outcome), expected, "{address}");
    }
}

#[test]
fn s02_the_policy_sees_the_path_that_is_forwarded() {
    let policy = json!([{"allow": {"and": [{"http_path": {"starts_with": "/a b"}}]}}]);
    let route = route("r", &policy);
    for (path, expected) in [
        ("/a%20b/c", "allow"),
        ("/a+b", "deny"),
        ("/%61%20b%ff", "allow"),
        ("/%ff/a%20b", "deny"),
    ] {
        let ruling = decide(
            &request(path, &[]),
            &route,
            &facts(Visitor::Anonymous),
            at(NOW),
        );
        assert_eq!(word(ruling.outcome), expected, "{path}");
    }
}

#[test]
fn c25_a_preflight_where_the_route_allows_it() {
    let policy =
        json!([{"allow": {"or": [{"cors_preflight": true}, {"authenticated_user": true}]}}]);
    let route = route("r", &policy);
    let mut preflight = request(
        "/",
        &[
            ("origin", "https://app.corp.test"),
            ("access-control-request-method", "GET"),
        ],
    );
    preflight.method = http::Method::OPTIONS;
    let ruling = decide(&preflight, &route, &facts(Visitor::Anonymous), at(NOW));
    assert_eq!(ruling.outcome, Outcome::Allow);
    let plain = decide(
        &request("/", &[]),
        &route,
        &facts(Visitor::Anonymous),
        at(NOW),
    );
    assert_eq!(plain.outcome, Outcome::SignIn);
}

fn mtls_route() -> Route {
    route(
        "r",
        &json!([
            {"allow": {"or": [{"accept": true}]},
             "deny": {"or": [{"invalid_client_certificate": true}]}}
        ]),
    )
}

#[test]
fn client_certificates() {
    let leaf = || std::sync::Arc::new(Leaf::default());
    for (fact, expected) in [
        (CertificateFact::NotAsked(None), Outcome::Allow),
        (CertificateFact::Valid(leaf()), Outcome::Allow),
        (
            CertificateFact::Missing,
            Outcome::Deny(Denial::ClientCertificate(CertificateProblem::Required)),
        ),
        (
            CertificateFact::Invalid(leaf()),
            Outcome::Deny(Denial::ClientCertificate(CertificateProblem::Invalid)),
        ),
    ] {
        let facts = Facts {
            certificate: fact,
            ..Facts::default()
        };
        let ruling = decide(&request("/", &[]), &mtls_route(), &facts, at(NOW));
        assert_eq!(ruling.outcome, expected);
    }
}

#[test]
fn own_endpoints() {
    for (path, expected) in [
        ("/.pomerium/", Outcome::Allow),
        ("/.pomerium/callback/", Outcome::Allow),
        ("/.pomerium/sign_out", Outcome::Allow),
        ("/.pomerium/api/v1/login", Outcome::Allow),
        ("/.pomerium/user", Outcome::SignIn),
        ("/.pomerium/jwt", Outcome::SignIn),
        ("/.pomerium/routes", Outcome::SignIn),
        ("/.pomerium/api/v1/routes", Outcome::SignIn),
        ("/.pomerium/webauthn", Outcome::SignIn),
    ] {
        let request = request(path, &[]);
        let nobody = decide_own_endpoint(&request, &facts(Visitor::Anonymous));
        assert_eq!(nobody.outcome, expected, "{path}");
        let ann = decide_own_endpoint(&request, &facts(Visitor::Person(Box::new(ann()))));
        assert_eq!(ann.outcome, Outcome::Allow, "{path}");
        assert_eq!(ann.valid_until, Some(at(NOW + 3600)));
    }
}

#[test]
fn s09_a_ruling_does_not_outlive_the_session() {
    let policy = json!([{"allow": {"or": [{"authenticated_user": true}]}}]);
    let visitor = Visitor::Person(Box::new(ann()));
    let ruling = decide(
        &request("/", &[]),
        &route("r", &policy),
        &facts(visitor),
        at(NOW),
    );
    assert_eq!(ruling.valid_until, Some(at(NOW + 3600)));

    let timed = json!([{"allow": {"and": [
        {"authenticated_user": true},
        {"time_of_day": {"timezone": "UTC", "before": "00:10"}}
    ]}}]);
    let visitor = Visitor::Person(Box::new(ann()));
    let ruling = decide(
        &request("/", &[]),
        &route("r", &timed),
        &facts(visitor),
        at(NOW),
    );
    assert_eq!(ruling.outcome, Outcome::Allow);
    assert!(
        ruling
            .valid_until
            .is_some_and(|until| until <= at(NOW + 601))
    );
}

#[test]
fn reasons_are_those_of_the_rules_that_decided() {
    let policy = json!([
        {"allow": {"or": [{"authenticated_user": true}]},
         "deny": {"or": [{"email": {"is": "eve@other.test"}}]}}
    ]);
    let of = |visitor| {
        decide(
            &request("/", &[]),
            &route("r", &policy),
            &facts(visitor),
            at(NOW),
        )
        .reasons()
    };
    assert_eq!(of(person("ann@corp.test", &[])), Reason::UserOk.into());
    assert_eq!(of(person("eve@other.test", &[])), Reason::EmailOk.into());
    assert_eq!(of(Visitor::Anonymous), Reason::UserUnauthenticated.into());
    assert_eq!(
        Ruling::deny(Denial::RouteNotFound).reasons(),
        Reason::RouteNotFound.into()
    );
}

#[test]
fn a_service_account_has_its_users_claims() {
    let mut account = ann();
    account.kind = crate::facts::PersonKind::ServiceAccount;
    let user = crate::records::User {
        claims: Claims::of(json!({"groups": ["robots"]})),
        ..account.user.as_deref().unwrap().clone()
    };
    account.user = Some(user.into());
    let policy = json!([{"allow": {"and": [{"claim/groups": "robots"}]}}]);
    assert_eq!(
        word(outcome(&policy, Visitor::Person(Box::new(account)))),
        "allow"
    );
}
