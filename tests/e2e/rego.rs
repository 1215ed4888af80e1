//! Policies that Rego can say too, said in Rego: an engine that this project did not write agrees
//! (line 38 of the security checklist).
//!
//! The translation is as plain as can be, a rule a criterion. What has no counterpart there is left
//! to the reference evaluator of the policy crate: people who are not signed in, facts that are
//! missing, times.

use std::fmt::Write as _;

use jiff::Timestamp;
use postern_policy::{Claims, Http, Input, Outcome, Policy, Session};
use serde_json::{Value, json};

const POLICIES: usize = 150;
const INPUTS: usize = 6;

const EMAILS: [&str; 4] = [
    "ann@corp.test",
    "bob@corp.test",
    "ANN@corp.test",
    "eve@Other.test",
];
const DOMAINS: [&str; 4] = ["corp.test", "Corp.Test", "other.test", "test"];
const USERS: [&str; 3] = ["ann", "bob", "eve"];
const METHODS: [&str; 3] = ["GET", "POST", "OPTIONS"];
const PATHS: [&str; 4] = ["/", "/admin", "/admin/x", "/a b'c"];
const GROUPS: [&str; 4] = ["eng", "ops", "sales", "é"];

/// Numbers that look random and are the same in every run (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) >> 33).expect("31 bits") % below
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.roll(from.len())]
    }

    fn some(&mut self, from: &[&str]) -> Vec<String> {
        let chosen = from.iter().filter(|_| self.roll(2) == 0);
        chosen.map(|&text| text.to_owned()).collect()
    }
}

/// A criterion in both languages; the second are the conditions of a Rego rule, all of which hold.
struct Criterion {
    ppl: Value,
    rego: Vec<String>,
}

/// Whether case counts.
#[derive(Debug, Clone, Copy)]
enum Case {
    Counts,
    /// Only where that lets fewer people in.
    Cautious {
        closes: bool,
    },
}

impl Case {
    fn folds(self, test: &str) -> bool {
        match self {
            Self::Counts => false,
            Self::Cautious { closes } => ["not", "not_in"].contains(&test) != closes,
        }
    }
}

fn text_matcher(
    dice: &mut Dice,
    subject: &str,
    texts: &[&str],
    case: Case,
) -> (Value, Vec<String>) {
    let mut tests = serde_json::Map::new();
    let mut rego = Vec::new();
    for _ in 0..=dice.roll(2) {
        let text = dice.pick(texts);
        let part = &text[..text.len() / 2];
        let (whole, part) = (
            json!(text),
            json!(if part.is_empty() { text } else { part }),
        );
        let mut list = dice.some(texts);
        list.push(text.to_owned());
        let list = json!(list);
        let (name, operand) = match dice.roll(7) {
            0 => ("is", whole),
            1 => ("not", whole),
            2 => ("contains", part),
            3 => ("starts_with", part),
            4 => ("ends_with", part),
            5 => ("in", list),
            _ => ("not_in", list),
        };
        // Rego has no test without regard to case: both sides are made small.
        let (asked, value) = if case.folds(name) {
            let small = operand.to_string().to_ascii_lowercase();
            (format!("lower({subject})"), small)
        } else {
            (subject.to_owned(), operand.to_string())
        };
        let condition = match name {
            "is" => format!("{asked} == {value}"),
            "not" => format!("{asked} != {value}"),
            "contains" => format!("contains({asked}, {value})"),
            "starts_with" => format!("startswith({asked}, {value})"),
            "ends_with" => format!("endswith({asked}, {value})"),
            "in" => format!("{asked} in {value}"),
            _ => format!("not {asked} in {value}"),
        };
        if tests.insert(name.to_owned(), operand).is_none() {
            rego.push(condition);
        } else {
            // The same name twice: what stands in the policy is the second.
            return text_matcher(dice, subject, texts, case);
        }
    }
    (Value::Object(tests), rego)
}

fn list_matcher(dice: &mut Dice, subject: &str) -> (Value, Vec<String>) {
    let text = json!(dice.pick(&GROUPS));
    let (matcher, condition) = match dice.roll(4) {
        0 => (text.clone(), format!("{text} in {subject}")),
        1 => (json!({"has": text}), format!("{text} in {subject}")),
        2 => (json!({"is": text}), format!("{subject} == [{text}]")),
        _ => (json!({"exclude": text}), format!("not {text} in {subject}")),
    };
    (matcher, vec![condition])
}

/// `closes`: whether it refuses, and does not allow, when it holds.
fn criterion(dice: &mut Dice, closes: bool) -> Criterion {
    let (name, (data, rego)) = match dice.roll(11) {
        0 => ("accept", (json!(true), vec!["true".to_owned()])),
        1 => ("reject", (json!(true), vec!["false".to_owned()])),
        2 => ("authenticated_user", (json!(true), vec!["true".to_owned()])),
        3 => (
            "email",
            text_matcher(dice, "input.email", &EMAILS, Case::Cautious { closes }),
        ),
        4 => (
            "user",
            text_matcher(dice, "input.user", &USERS, Case::Counts),
        ),
        5 => (
            "http_method",
            text_matcher(dice, "input.method", &METHODS, Case::Counts),
        ),
        6 => (
            "http_path",
            text_matcher(dice, "input.path", &PATHS, Case::Counts),
        ),
        7 => ("groups", list_matcher(dice, "input.groups")),
        8 => ("claim/dept", list_matcher(dice, "input.dept")),
        9 => {
            // In Rego without regard to case, by making all of it small.
            let domain = dice.pick(&DOMAINS);
            let condition = format!(
                "lower(split(input.email, \"@\")[1]) == {}",
                json!(domain.to_ascii_lowercase())
            );
            ("domain", (json!({"is": domain}), vec![condition]))
        }
        _ => {
            let first = dice.pick(&["10", "192"]);
            let condition = format!("startswith(input.ip, \"{first}.\")");
            (
                "source_ip",
                (json!(format!("{first}.0.0.0/8")), vec![condition]),
            )
        }
    };
    Criterion {
        ppl: json!({name: data}),
        rego,
    }
}

/// The policy, and what it is in Rego.
fn policy(dice: &mut Dice) -> (Value, String) {
    let mut module = String::from(
        "package policy\nimport rego.v1\ndefault allow := false\ndefault deny := false\n\
         default ok := false\nok if {\n  allow\n  not deny\n}\n",
    );
    let mut rules = Vec::new();
    let mut count = 0;
    for _ in 0..=dice.roll(3) {
        let action = dice.pick(&["allow", "allow", "deny"]);
        let operator = dice.pick(&["and", "or", "not", "nor"]);
        let closes = (action == "deny") != ["not", "nor"].contains(&operator);
        let criteria: Vec<_> = (0..=dice.roll(3))
            .map(|_| criterion(dice, closes))
            .collect();
        let mut terms = Vec::new();
        for criterion in &criteria {
            let name = format!("c{count}");
            count += 1;
            let conditions = criterion.rego.join("\n  ");
            writeln!(
                module,
                "default {name} := false\n{name} if {{\n  {conditions}\n}}"
            )
            .unwrap();
            terms.push(match operator {
                "not" | "nor" => format!("not {name}"),
                _ => name,
            });
        }
        // All of them in one rule, or a rule for each.
        let bodies = match operator {
            "and" | "not" => vec![terms.join("\n  ")],
            _ => terms,
        };
        for body in bodies {
            writeln!(module, "{action} if {{\n  {body}\n}}").unwrap();
        }
        let criteria: Vec<_> = criteria
            .into_iter()
            .map(|criterion| criterion.ppl)
            .collect();
        rules.push(json!({action: {operator: criteria}}));
    }
    (json!(rules), module)
}

fn input(dice: &mut Dice) -> Value {
    json!({
        "email": dice.pick(&EMAILS),
        "user": dice.pick(&USERS),
        "method": dice.pick(&METHODS),
        "path": dice.pick(&PATHS),
        "groups": dice.some(&GROUPS),
        "dept": dice.some(&GROUPS),
        "ip": dice.pick(&["10.1.2.3", "192.0.2.7", "203.0.113.9"]),
    })
}

fn is_allowed(policy: &Policy, input: &Value) -> bool {
    let text = |name: &str| input[name].as_str().unwrap();
    let list = |name: &str| input[name].as_array().unwrap().clone();
    let claims = Claims::from([
        ("groups".to_owned(), list("groups")),
        ("dept".to_owned(), list("dept")),
    ]);
    let none = Claims::new();
    let facts = Input {
        http: Http {
            method: text("method"),
            path: text("path"),
            ..Http::default()
        },
        session: Some(Session {
            user_id: text("user"),
            email: Some(text("email")),
            session_claims: &claims,
            user_claims: &none,
            groups: None,
            devices: &[],
        }),
        ..Input::anonymous(text("ip").parse().unwrap(), Timestamp::UNIX_EPOCH)
    };
    policy.evaluate(&facts).outcome() == Outcome::Allow
}

#[test]
fn s38_a_rego_engine_agrees() {
    let mut dice = Dice(38);
    let mut cases = Vec::new();
    for _ in 0..POLICIES {
        let (policy, module) = policy(&mut dice);
        let inputs: Vec<_> = (0..INPUTS).map(|_| input(&mut dice)).collect();
        cases.push((policy, module, inputs));
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let asked: Vec<_> = cases
        .iter()
        .map(|(_, module, inputs)| json!({"module": module, "inputs": inputs}))
        .collect();
    std::fs::write(file.path(), json!(asked).to_string()).unwrap();
    let said = postern_tests::python::run("rego.py", &[file.path().to_str().unwrap()]);
    let said: Vec<Vec<bool>> = serde_json::from_str(&said).unwrap();
    assert_eq!(said.len(), POLICIES);
    let mut allowed = 0;
    for ((policy, module, inputs), said) in cases.iter().zip(said) {
        let compiled =
            Policy::compile(policy).unwrap_or_else(|errors| panic!("{policy}: {errors:?}"));
        assert_eq!(said.len(), INPUTS);
        for (input, said) in inputs.iter().zip(said) {
            allowed += usize::from(said);
            let ours = is_allowed(&compiled, input);
            assert_eq!(ours, said, "\n{policy}\n{module}\n{input}");
        }
    }
    // Neither always yes nor always no.
    let all = POLICIES * INPUTS;
    assert!(
        (all / 10..all * 9 / 10).contains(&allowed),
        "{allowed} of {all}"
    );
}
