//! A naive evaluator, written from the specification with no eye to speed, and the laws that the
//! compiled one must keep on random policies and facts.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::facts::{Facts, Leaf, OwnDevice, Person, Shown, anonymous, compile};
use crate::{CertificateProblem, Claims, Outcome, RuleResult};

type Reasons = BTreeSet<String>;

/// What a criterion says: is it true, is that only for want of a fact, and why.
struct Said {
    holds: bool,
    for_want: bool,
    reason: &'static str,
}

fn plain(holds: bool, ok: &'static str, otherwise: &'static str) -> Said {
    Said {
        holds,
        for_want: false,
        reason: if holds { ok } else { otherwise },
    }
}

/// The text of a scalar that may be compared.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(boolean) => Some(boolean.to_string()),
        Value::Number(number) => match number.as_f64() {
            Some(double) if !number.is_f64() || double.abs() < 9e15 => {
                let text = number.to_string();
                Some(text.strip_suffix(".0").unwrap_or(&text).to_owned())
            }
            _ => None,
        },
        _ => None,
    }
}

/// All tests of a string matcher, and whether each is a negative one.
fn string_tests(data: &Value) -> Vec<(String, Value)> {
    match data {
        Value::Object(tests) => tests
            .iter()
            .map(|(name, data)| (name.clone(), data.clone()))
            .collect(),
        bare => vec![("is".to_owned(), bare.clone())],
    }
}

fn string_holds(data: &Value, subject: &str, fold: bool) -> bool {
    string_holds_folded(data, subject, |_| fold)
}

fn string_holds_folded(data: &Value, subject: &str, folds: impl Fn(&str) -> bool) -> bool {
    string_tests(data).iter().all(|(name, data)| {
        let fold = |text: &str| {
            if folds(name) {
                text.to_ascii_lowercase()
            } else {
                text.to_owned()
            }
        };
        let subject = fold(subject);
        let operand = || fold(&text(data).unwrap());
        let among = || {
            data.as_array()
                .unwrap()
                .iter()
                .any(|item| fold(&text(item).unwrap()) == subject)
        };
        match name.as_str() {
            "is" => subject == operand(),
            "not" => subject != operand(),
            "contains" => subject.contains(&operand()),
            "starts_with" => subject.starts_with(&operand()),
            "ends_with" => subject.ends_with(&operand()),
            "in" => among(),
            "not_in" => !among(),
            other => panic!("{other}"),
        }
    })
}

fn list_holds(data: &Value, items: &[Value]) -> bool {
    let tests = match data {
        Value::Object(tests) => tests.clone(),
        bare => [("has".to_owned(), bare.clone())].into_iter().collect(),
    };
    tests.iter().all(|(name, operand)| {
        let equal = items
            .iter()
            .filter(|item| text(item).is_some() && text(item) == text(operand))
            .count();
        match name.as_str() {
            "has" => equal > 0,
            "is" => equal == 1 && items.len() == 1,
            "exclude" => equal == 0,
            other => panic!("{other}"),
        }
    })
}

/// It says only what must not be, so it is true of nothing.
fn only_negative(data: &Value) -> bool {
    match data {
        Value::Object(tests) => tests
            .keys()
            .all(|name| ["not", "not_in", "exclude"].contains(&name.as_str())),
        _ => false,
    }
}

/// By counting, where the crate scans.
fn domain(address: &str) -> Option<String> {
    if address.contains(|c: char| c.is_control()) {
        return None;
    }
    let at = address.rfind('@')?;
    let (local, domain) = (&address[..at], &address[at + 1..]);
    let quoted = local.len() > 2 && local.starts_with('"') && local.ends_with('"');
    let inner_quotes = local.matches('"').count();
    let clear = if quoted {
        inner_quotes == 2
    } else {
        inner_quotes == 0 && !local.is_empty() && !local.contains('@')
    };
    (clear && !domain.is_empty() && !domain.contains('"')).then(|| domain.to_owned())
}

fn find_claim(person: &Person, name: &str) -> Option<Vec<Value>> {
    for name in [name.to_owned(), name.replace('/', ".")] {
        for claims in [&person.session_claims, &person.user_claims] {
            if let Some(values) = claims.get(&name) {
                return Some(values.clone());
            }
        }
    }
    None
}

#[expect(clippy::too_many_lines, reason = "one arm a criterion")]
fn say(name: &str, data: &Value, closes: bool, facts: &Facts) -> Said {
    let about_person = |holds: Option<bool>, ok, otherwise| match (&facts.person, holds) {
        (None, _) => Said {
            holds: only_negative(data),
            for_want: true,
            reason: "user-unauthenticated",
        },
        (Some(_), None) => Said {
            holds: only_negative(data),
            for_want: true,
            reason: otherwise,
        },
        (Some(_), Some(holds)) => plain(holds, ok, otherwise),
    };
    let person = facts.person.as_ref();
    let email = person
        .and_then(|person| person.email.clone())
        .filter(|email| !email.is_empty());
    if let Some(claim) = name.strip_prefix("claim/") {
        let values = person.and_then(|person| match find_claim(person, claim) {
            None if find_claim(person, &format!("_claim_names.{claim}")).is_some() => None,
            values => Some(values.unwrap_or_default()),
        });
        let holds = values.map(|values| list_holds(data, &values));
        return about_person(holds, "claim-ok", "claim-unauthorized");
    }
    match name {
        "accept" => plain(true, "accept", ""),
        "reject" => plain(false, "", "reject"),
        "authenticated_user" => about_person(Some(true), "user-ok", ""),
        "user" => {
            let holds = person.map(|person| string_holds(data, &person.user_id, false));
            about_person(holds, "user-ok", "user-unauthorized")
        }
        "email" => {
            // Whatever refuses more.
            let folds = |test: &str| (test != "not" && test != "not_in") == closes;
            let holds = email.map(|email| string_holds_folded(data, &email, folds));
            about_person(holds, "email-ok", "email-unauthorized")
        }
        "domain" => {
            let domain = email.and_then(|email| domain(&email));
            let holds = domain.map(|domain| string_holds(data, &domain, true));
            about_person(holds, "domain-ok", "domain-unauthorized")
        }
        "groups" => {
            let groups = person.and_then(|person| match &person.groups {
                Some(groups) => Some(groups.iter().map(|group| json!(group)).collect()),
                None => find_claim(person, "groups"),
            });
            let holds = groups.map(|groups| list_holds(data, &groups));
            about_person(holds, "groups-ok", "groups-unauthorized")
        }
        "device" => {
            let Some(person) = person else {
                return about_person(None, "", "");
            };
            let wanted = data["type"].as_str().unwrap_or("any");
            let of_type: Vec<_> = person
                .devices
                .iter()
                .filter(|device| device.type_id == wanted)
                .collect();
            if of_type.is_empty() {
                return plain(false, "", "device-unauthenticated");
            }
            let holds = of_type.iter().any(|device| {
                (data["is"].is_null() || data["is"] == json!(device.credential_id))
                    && (data["approved"].is_null() || data["approved"] == json!(device.approved))
            });
            plain(holds, "device-ok", "device-unauthorized")
        }
        "source_ip" => {
            let (network, length) = data.as_str().unwrap().split_once('/').unwrap();
            let number = |address: &str| {
                u64::from(u32::from(address.parse::<std::net::Ipv4Addr>().unwrap()))
            };
            let shift = 32 - length.parse::<u32>().unwrap();
            let client = facts.ip.trim_start_matches("::ffff:");
            let holds = number(network) >> shift == number(client) >> shift;
            plain(holds, "source-ip-ok", "source-ip-unauthorized")
        }
        "http_method" => plain(
            string_holds(data, &facts.method, false),
            "http-method-ok",
            "http-method-unauthorized",
        ),
        "http_path" => plain(
            string_holds(data, &facts.path, false),
            "http-path-ok",
            "http-path-unauthorized",
        ),
        "cors_preflight" => plain(
            facts.method == "OPTIONS" && facts.origin.is_some() && facts.requested_method.is_some(),
            "cors-request",
            "non-cors-request",
        ),
        "invalid_client_certificate" => match facts.certificate {
            Shown::Missing => plain(true, "client-certificate-required", ""),
            Shown::Invalid(_) => plain(true, "invalid-client-certificate", ""),
            _ => plain(false, "", "valid-client-certificate"),
        },
        "client_certificate" => {
            let leaf = match &facts.certificate {
                Shown::NotAsked(leaf) => leaf.as_ref(),
                Shown::Missing => None,
                Shown::Valid(leaf) | Shown::Invalid(leaf) => Some(leaf),
            };
            let holds = leaf.is_some_and(|leaf| {
                leaf.san_dns
                    .iter()
                    .any(|name| string_holds(&data["san_dns"], name, false))
            });
            plain(
                holds,
                "client-certificate-ok",
                "client-certificate-unauthorized",
            )
        }
        "date" => {
            let after = data["after"].as_str().unwrap().parse().unwrap();
            plain(facts.now >= after, "date-ok", "date-unauthorized")
        }
        "record" => {
            let record = facts.records.get(data["type"].as_str().unwrap());
            if let Some(wanted) = data["exists"].as_bool() {
                return match (record, &facts.person) {
                    (None, None) => Said {
                        holds: !wanted,
                        for_want: true,
                        reason: "user-unauthenticated",
                    },
                    _ => plain(
                        record.is_some() == wanted,
                        "record-ok",
                        "record-unauthorized",
                    ),
                };
            }
            let field = data["field"].as_str().unwrap();
            match (record.and_then(|record| record.get(field)), &facts.person) {
                (Some(value), _) => plain(
                    string_holds(&json!({"is": data["is"]}), value.as_str().unwrap(), false),
                    "record-ok",
                    "record-unauthorized",
                ),
                (None, None) if record.is_none() => Said {
                    holds: false,
                    for_want: true,
                    reason: "user-unauthenticated",
                },
                (None, _) => Said {
                    holds: false,
                    for_want: true,
                    reason: "record-unauthorized",
                },
            }
        }
        other => panic!("{other}"),
    }
}

#[derive(Default)]
struct Half {
    /// Reasons of the rules that match whoever asks, and of those that match a stranger.
    settled: Vec<Reasons>,
    pending: Vec<Reasons>,
    missed: Vec<Reasons>,
    /// Types of devices that are missed.
    devices: Vec<String>,
}

impl Half {
    fn matched(&self) -> bool {
        !self.settled.is_empty() || !self.pending.is_empty()
    }

    fn reasons(&self) -> Reasons {
        let deciding = if !self.settled.is_empty() {
            &self.settled
        } else if !self.pending.is_empty() {
            &self.pending
        } else {
            &self.missed
        };
        deciding.iter().flatten().cloned().collect()
    }
}

fn evaluate(policy: &Value, action: &str, facts: &Facts) -> Half {
    let mut half = Half::default();
    for rule in policy.as_array().unwrap() {
        let Some(operators) = rule.get(action).and_then(Value::as_object) else {
            continue;
        };
        for (operator, criteria) in operators {
            let criteria = criteria.as_array().unwrap();
            if criteria.is_empty() {
                continue;
            }
            let negate = operator == "not" || operator == "nor";
            let mut yes = Vec::new();
            let mut no = Vec::new();
            for criterion in criteria {
                let (name, data) = criterion.as_object().unwrap().iter().next().unwrap();
                let said = say(name, data, (action == "deny") != negate, facts);
                if said.reason == "device-unauthenticated" {
                    half.devices
                        .push(data["type"].as_str().unwrap_or("any").to_owned());
                }
                let counts = (said.holds != negate) && (action == "deny" || !said.for_want);
                if counts {
                    yes.push(said.reason.to_owned());
                } else {
                    no.push(said.reason.to_owned());
                }
            }
            let stranger = "user-unauthenticated";
            let all = operator == "and" || operator == "not";
            let matched = if all { no.is_empty() } else { !yes.is_empty() };
            if !matched {
                half.missed.push(no.into_iter().collect());
                continue;
            }
            let certain: Reasons = yes
                .iter()
                .filter(|reason| *reason != stranger)
                .cloned()
                .collect();
            let all_certain = yes.iter().all(|reason| reason != stranger);
            if (all && all_certain) || (!all && !certain.is_empty()) {
                half.settled.push(certain);
            } else {
                half.pending.push(yes.into_iter().collect());
            }
        }
    }
    half
}

/// Order of CP 4.3, with only those rules having a say that decided.
fn outcome(allow: &Half, deny: &Half) -> String {
    let certificate = |reasons: &Reasons| {
        ["client-certificate-required", "invalid-client-certificate"]
            .into_iter()
            .find(|reason| reasons.contains(*reason))
            .map(str::to_owned)
    };
    let (half, reasons) = if deny.matched() {
        (deny, deny.reasons())
    } else {
        if allow.matched() {
            return "allow".to_owned();
        }
        (allow, allow.reasons())
    };
    if deny.matched()
        && let Some(problem) = certificate(&reasons)
    {
        return problem;
    }
    if reasons.contains("user-unauthenticated") {
        return "sign-in".to_owned();
    }
    if reasons.contains("device-unauthenticated") {
        return format!("device {}", half.devices[0]);
    }
    if let Some(problem) = certificate(&reasons) {
        return problem;
    }
    format!("denied {reasons:?}")
}

fn told(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Allow => "allow".to_owned(),
        Outcome::Unauthenticated => "sign-in".to_owned(),
        Outcome::DeviceUnauthenticated { device_type } => format!("device {device_type}"),
        Outcome::ClientCertificate(CertificateProblem::Required) => {
            "client-certificate-required".to_owned()
        }
        Outcome::ClientCertificate(CertificateProblem::Invalid) => {
            "invalid-client-certificate".to_owned()
        }
        Outcome::Denied { reasons } => format!("denied {:?}", strings(*reasons)),
    }
}

fn strings(reasons: crate::Reasons) -> Reasons {
    reasons
        .iter()
        .map(|reason| reason.as_str().to_owned())
        .collect()
}

fn words() -> impl Strategy<Value = String> {
    proptest::sample::select(&["a", "b", "ab", "A", "", "42", "true"][..]).prop_map(str::to_owned)
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => words().prop_map(Value::from),
        1 => Just(json!(42)),
        1 => Just(json!(42.0)),
        1 => Just(json!(true)),
    ]
}

fn part() -> impl Strategy<Value = Value> {
    scalar().prop_filter("not empty", |value| *value != json!(""))
}

/// `subjects` are values that facts really have.
fn string_matcher(subjects: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let subject = prop_oneof![
        3 => proptest::sample::select(subjects).prop_map(Value::from),
        1 => scalar(),
    ];
    let several = proptest::collection::vec(subject.clone(), 0..3);
    let test = prop_oneof![
        subject.clone().prop_map(|value| ("is", value)),
        subject.clone().prop_map(|value| ("not", value)),
        part().prop_map(|value| ("contains", value)),
        part().prop_map(|value| ("starts_with", value)),
        part().prop_map(|value| ("ends_with", value)),
        several
            .clone()
            .prop_map(|values| ("in", Value::from(values))),
        several.prop_map(|values| ("not_in", Value::from(values))),
    ];
    prop_oneof![
        1 => subject,
        3 => test.clone().prop_map(|(name, data)| json!({name: data})),
        1 => (test.clone(), test).prop_map(|((a, x), (b, y))| json!({a: x, b: y})),
    ]
}

fn list_matcher() -> impl Strategy<Value = Value> {
    prop_oneof![
        scalar(),
        scalar().prop_map(|value| json!({"has": value})),
        scalar().prop_map(|value| json!({"is": value})),
        scalar().prop_map(|value| json!({"exclude": value})),
        (scalar(), scalar()).prop_map(|(a, b)| json!({"has": a, "exclude": b})),
    ]
}

const EMAILS: [&str; 9] = [
    "ann@corp.test",
    "Ann@CORP.test",
    "eve@other.test",
    "ann@corp.test@other.test",
    "\"a@b\"@corp.test",
    "\"\"@corp.test",
    "@corp.test",
    "ann@corp.test\n",
    "",
];
const DOMAINS: [&str; 4] = [
    "corp.test",
    "Corp.Test",
    "other.test",
    "corp.test@other.test",
];
const CLAIMS: [&str; 4] = ["x", "n.x", "n/x", "groups"];

fn criterion() -> impl Strategy<Value = Value> {
    prop_oneof![
        1 => Just(json!({"accept": true})),
        1 => Just(json!({"reject": true})),
        1 => Just(json!({"authenticated_user": true})),
        1 => Just(json!({"cors_preflight": true})),
        1 => Just(json!({"invalid_client_certificate": true})),
        2 => string_matcher(&["ann", "eve"]).prop_map(|data| json!({"user": data})),
        3 => string_matcher(&EMAILS).prop_map(|data| json!({"email": data})),
        3 => string_matcher(&DOMAINS).prop_map(|data| json!({"domain": data})),
        4 => (proptest::sample::select(&CLAIMS[..]), list_matcher())
            .prop_map(|(name, data)| json!({format!("claim/{name}"): data})),
        2 => list_matcher().prop_map(|data| json!({"groups": data})),
        2 => proptest::sample::select(&["10.0.0.0/8", "203.0.113.0/24", "0.0.0.0/0"][..])
            .prop_map(|network| json!({"source_ip": network})),
        2 => string_matcher(&["GET", "OPTIONS"]).prop_map(|data| json!({"http_method": data})),
        1 => string_matcher(&["/", "/ab"]).prop_map(|data| json!({"http_path": data})),
        1 => string_matcher(&["a", "b"])
            .prop_map(|data| json!({"client_certificate": {"san_dns": data}})),
        2 => proptest::sample::select(vec![
            json!({"type": "any"}),
            json!({"type": "enclave_only"}),
            json!({"is": "key1"}),
            json!({"is": "key2", "approved": true}),
            json!({"approved": false}),
        ]).prop_map(|data| json!({"device": data})),
        1 => Just(json!({"date": {"after": "2025-06-04T12:00:00Z"}})),
        2 => proptest::sample::select(vec![
            json!({"type": "hr", "exists": true}),
            json!({"type": "hr", "exists": false}),
            json!({"type": "hr", "field": "country", "is": "DE"}),
            json!({"type": "hr", "field": "gone", "is": "DE"}),
        ]).prop_map(|data| json!({"record": data})),
    ]
}

fn policy() -> impl Strategy<Value = Value> {
    let criteria = proptest::collection::vec(criterion(), 0..4);
    let operators = proptest::collection::btree_map(
        proptest::sample::select(&["and", "or", "not", "nor"][..]),
        criteria,
        0..3,
    );
    let rule = proptest::collection::btree_map(
        proptest::sample::select(&["allow", "allow", "deny"][..]),
        operators,
        0..3,
    );
    proptest::collection::vec(rule, 0..4).prop_map(|rules| json!(rules))
}

fn claims() -> impl Strategy<Value = Claims> {
    let value = prop_oneof![
        6 => scalar(),
        1 => Just(json!(null)),
        1 => Just(json!(["a"])),
        1 => Just(json!({"a": "a"})),
        1 => Just(json!(1e300)),
    ];
    proptest::collection::btree_map(
        proptest::sample::select(&["x", "n.x", "n/x", "groups", "_claim_names.x"][..])
            .prop_map(str::to_owned),
        proptest::collection::vec(value, 0..3),
        0..4,
    )
}

fn person() -> impl Strategy<Value = Person> {
    let device = (
        proptest::sample::select(&["any", "enclave_only"][..]),
        proptest::sample::select(&["key1", "key2"][..]),
        any::<bool>(),
    )
        .prop_map(|(type_id, credential_id, approved)| OwnDevice {
            type_id: type_id.to_owned(),
            credential_id: credential_id.to_owned(),
            approved,
        });
    (
        proptest::sample::select(&["ann", "eve"][..]),
        proptest::option::of(proptest::sample::select(&EMAILS[..])),
        claims(),
        claims(),
        proptest::option::of(proptest::collection::vec(words(), 0..3)),
        proptest::collection::vec(device, 0..3),
    )
        .prop_map(
            |(user_id, email, session_claims, user_claims, groups, devices)| Person {
                user_id: user_id.to_owned(),
                email: email.map(str::to_owned),
                session_claims,
                user_claims,
                groups,
                devices,
            },
        )
}

fn facts() -> impl Strategy<Value = Facts> {
    let leaf = proptest::collection::vec(words(), 0..2)
        .prop_map(|san_dns| Leaf {
            san_dns,
            ..Leaf::default()
        })
        .boxed();
    let certificate = prop_oneof![
        proptest::option::of(leaf.clone()).prop_map(Shown::NotAsked),
        Just(Shown::Missing),
        leaf.clone().prop_map(Shown::Valid),
        leaf.prop_map(Shown::Invalid),
    ];
    (
        proptest::option::of(person()),
        proptest::sample::select(&["GET", "OPTIONS"][..]),
        proptest::sample::select(&["/", "/ab", "/x"][..]),
        proptest::sample::select(&["10.1.2.3", "203.0.113.9", "::ffff:10.1.2.3"][..]),
        certificate,
        any::<bool>(),
        any::<bool>(),
        0..2_i64,
    )
        .prop_map(
            |(person, method, path, ip, certificate, cors, record, later)| {
                let mut facts = Facts {
                    person,
                    method: method.to_owned(),
                    path: path.to_owned(),
                    ip: ip.to_owned(),
                    certificate,
                    ..anonymous()
                };
                if cors {
                    facts.origin = Some("https://app.corp.test".to_owned());
                    facts.requested_method = Some("PUT".to_owned());
                }
                if record {
                    facts
                        .records
                        .insert("hr".to_owned(), json!({"country": "DE"}));
                }
                facts.now += jiff::Span::new().seconds(later - 1);
                facts
            },
        )
}

/// The policy without what asks about people, wherever it could help to let somebody in.
fn without_people(policy: &Value) -> Value {
    let about_person = |criterion: &Value| {
        let name = criterion.as_object().unwrap().keys().next().unwrap();
        let name = name.split('/').next().unwrap();
        [
            "authenticated_user",
            "user",
            "email",
            "domain",
            "claim",
            "groups",
            "device",
        ]
        .contains(&name)
    };
    let mut policy = policy.clone();
    for rule in policy.as_array_mut().unwrap() {
        let Some(operators) = rule.get_mut("allow").and_then(Value::as_object_mut) else {
            continue;
        };
        for (operator, criteria) in operators.iter_mut() {
            let criteria = criteria.as_array_mut().unwrap();
            if operator == "and" || operator == "not" {
                if criteria.iter().any(about_person) {
                    criteria.clear();
                }
            } else {
                criteria.retain(|criterion| !about_person(criterion));
            }
        }
    }
    policy
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn s38_the_compiled_and_the_naive_evaluator_agree(policy in policy(), facts in facts()) {
        let compiled = compile(&policy);
        let verdict = facts.verdict(&compiled);
        let allow = evaluate(&policy, "allow", &facts);
        let deny = evaluate(&policy, "deny", &facts);
        let check = |result: RuleResult, half: &Half| -> Result<(), TestCaseError> {
            prop_assert_eq!(result.matched, half.matched());
            prop_assert_eq!(strings(result.reasons), half.reasons());
            Ok(())
        };
        check(verdict.allow, &allow)?;
        check(verdict.deny, &deny)?;
        prop_assert_eq!(told(&verdict.outcome()), outcome(&allow, &deny));
        let explained = facts.with(|input| compiled.explain(input));
        prop_assert_eq!(explained.verdict, verdict);
    }

    #[test]
    fn s34_whatever_a_deny_rule_matches_gets_no_access(policy in policy(), facts in facts()) {
        let verdict = facts.verdict(&compile(&policy));
        if verdict.deny.matched {
            prop_assert_ne!(verdict.outcome(), Outcome::Allow);
        }
        prop_assert!(verdict.allow.matched || verdict.outcome() != Outcome::Allow);
    }

    /// An anonymous visitor gets in only by what has nothing to do with people.
    #[test]
    fn s01_no_criterion_about_a_person_lets_anybody_in_without_one(
        policy in policy(),
        mut facts in facts(),
    ) {
        facts.person = None;
        if facts.outcome(&compile(&policy)) == Outcome::Allow {
            let rest = compile(&without_people(&policy));
            prop_assert_eq!(facts.outcome(&rest), Outcome::Allow);
        }
    }

    /// The order of rules means nothing.
    #[test]
    fn s38_rules_in_another_order_say_the_same(policy in policy(), facts in facts()) {
        let mut reversed = policy.clone();
        reversed.as_array_mut().unwrap().reverse();
        let verdict = facts.verdict(&compile(&policy));
        let other = facts.verdict(&compile(&reversed));
        prop_assert_eq!(verdict.allow, other.allow);
        prop_assert_eq!(verdict.deny, other.deny);
    }
}
