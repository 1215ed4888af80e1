//! Facts that own what an `Input` borrows.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Certificate, Claims, ClientCertificate, Device, Http, Input, Outcome, Policy, Session, Verdict,
};

#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) origin: Option<String>,
    pub(super) requested_method: Option<String>,
    pub(super) ip: String,
    pub(super) certificate: Shown,
    pub(super) now: Timestamp,
    pub(super) person: Option<Person>,
    pub(super) records: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Person {
    pub(super) user_id: String,
    pub(super) email: Option<String>,
    pub(super) session_claims: Claims,
    pub(super) user_claims: Claims,
    pub(super) groups: Option<Vec<String>>,
    pub(super) devices: Vec<OwnDevice>,
}

#[derive(Debug, Clone)]
pub(super) struct OwnDevice {
    pub(super) type_id: String,
    pub(super) credential_id: String,
    pub(super) approved: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Shown {
    NotAsked(Option<Leaf>),
    Missing,
    Valid(Leaf),
    Invalid(Leaf),
}

#[derive(Debug, Clone, Default)]
pub(super) struct Leaf {
    pub(super) fingerprint: String,
    pub(super) spki_hash: String,
    pub(super) san_dns: Vec<String>,
    pub(super) san_email: Vec<String>,
    pub(super) san_uri: Vec<String>,
}

impl Leaf {
    fn borrow(&self) -> Certificate<'_> {
        Certificate {
            fingerprint: &self.fingerprint,
            spki_hash: &self.spki_hash,
            san_dns: &self.san_dns,
            san_email: &self.san_email,
            san_uri: &self.san_uri,
        }
    }
}

/// `GET /` by nobody, on a Wednesday.
pub(super) fn anonymous() -> Facts {
    Facts {
        method: "GET".to_owned(),
        path: "/".to_owned(),
        origin: None,
        requested_method: None,
        ip: "203.0.113.9".to_owned(),
        certificate: Shown::NotAsked(None),
        now: "2025-06-04T12:00:00Z".parse().unwrap(),
        person: None,
        records: BTreeMap::new(),
    }
}

/// `name@domain` is signed in, with these flattened claims.
pub(super) fn signed_in(email: &str, claims: &Value) -> Facts {
    let claims = claims.as_object().unwrap().iter().map(|(name, values)| {
        let values = match values {
            Value::Array(values) => values.clone(),
            one => vec![one.clone()],
        };
        (name.clone(), values)
    });
    let person = Person {
        user_id: format!("id-of-{email}"),
        email: Some(email.to_owned()),
        session_claims: claims.collect(),
        ..Person::default()
    };
    Facts {
        person: Some(person),
        ..anonymous()
    }
}

impl Facts {
    pub(super) fn person(&mut self) -> &mut Person {
        self.person.as_mut().unwrap()
    }

    pub(super) fn with<R>(&self, decide: impl FnOnce(&Input<'_>) -> R) -> R {
        let devices: Vec<Device<'_>> = self
            .person
            .iter()
            .flat_map(|person| &person.devices)
            .map(|device| Device {
                type_id: &device.type_id,
                credential_id: &device.credential_id,
                approved: device.approved,
            })
            .collect();
        let session = self.person.as_ref().map(|person| Session {
            user_id: &person.user_id,
            email: person.email.as_deref(),
            session_claims: &person.session_claims,
            user_claims: &person.user_claims,
            groups: person.groups.as_deref(),
            devices: &devices,
        });
        let client_certificate = match &self.certificate {
            Shown::NotAsked(leaf) => ClientCertificate::NotAsked(leaf.as_ref().map(Leaf::borrow)),
            Shown::Missing => ClientCertificate::Missing,
            Shown::Valid(leaf) => ClientCertificate::Valid(leaf.borrow()),
            Shown::Invalid(leaf) => ClientCertificate::Invalid(leaf.borrow()),
        };
        decide(&Input {
            http: Http {
                method: &self.method,
                path: &self.path,
                origin: self.origin.as_deref(),
                access_control_request_method: self.requested_method.as_deref(),
            },
            client_ip: self.ip.parse().unwrap(),
            client_certificate,
            now: self.now,
            session,
            records: &self.records,
        })
    }

    pub(super) fn verdict(&self, policy: &Policy) -> Verdict {
        self.with(|input| policy.evaluate(input))
    }

    pub(super) fn outcome(&self, policy: &Policy) -> Outcome {
        self.verdict(policy).outcome()
    }
}

pub(super) fn compile(policy: &Value) -> Policy {
    Policy::compile(policy).unwrap_or_else(|errors| panic!("{policy}: {errors:?}"))
}

/// Whether one criterion in an allow rule lets in.
pub(super) fn lets_in(criterion: &Value, facts: &Facts) -> bool {
    let policy = compile(&serde_json::json!({"allow": {"and": [criterion]}}));
    facts.outcome(&policy) == Outcome::Allow
}

/// Whether a deny rule with one criterion keeps out of a public route.
pub(super) fn keeps_out(criterion: &Value, facts: &Facts) -> bool {
    let policy = compile(&serde_json::json!({
        "allow": {"or": [{"accept": true}]},
        "deny": {"or": [criterion]},
    }));
    facts.outcome(&policy) != Outcome::Allow
}

/// The reason of one criterion.
pub(super) fn reason(criterion: &Value, facts: &Facts) -> String {
    let policy = compile(&serde_json::json!({"allow": {"and": [criterion]}}));
    facts.verdict(&policy).allow.reasons.to_string()
}
