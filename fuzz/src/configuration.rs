//! What operators write, and what they paste from elsewhere.

use std::path::Path;

use jiff::Timestamp;
use postern_common::config::load_text;
use postern_common::rpc::stubs::databroker::Record;
use postern_databroker::query::Filter;
use postern_databroker::storage::Lookup;
use postern_databroker::storage::postgres::settings::Settings;
use postern_policy::{Claims, Input, Outcome, Policy, Session};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value as ProtoValue};
use serde_json::{Value, json};

use crate::input::{CLIENT_SECRET, PROCESS, SHARED_SECRET, lines, now};

/// A line with the format's name, then the text. Either there is a configuration or an error says
/// why not, and no secret is in what is said nor in what is shown.
pub fn configuration(data: &[u8]) {
    let [format, text] = lines(data);
    let Ok(text) = str::from_utf8(text) else {
        return;
    };
    let secrets = [SHARED_SECRET, CLIENT_SECRET];
    // Files may be named, and some of those under /dev never end.
    if text.contains("/dev") || secrets.iter().any(|secret| text.contains(secret)) {
        return;
    }
    let name = match format {
        b"json" => "config.json",
        b"toml" => "config.toml",
        _ => "config.yaml",
    };
    let environment = [
        ("SHARED_SECRET", SHARED_SECRET),
        ("COOKIE_SECRET", SHARED_SECRET),
        ("IDP_CLIENT_SECRET", CLIENT_SECRET),
    ];
    let loaded = load_text(
        Path::new(name),
        text,
        &environment.into_iter().collect(),
        &PROCESS,
    );
    assert_eq!(loaded.config.is_none(), loaded.diagnostics.has_errors());
    let said = loaded.diagnostics.to_string();
    let shown = format!("{loaded:?}");
    for secret in secrets {
        assert!(!said.contains(secret), "a secret in a diagnostic");
        assert!(!shown.contains(secret), "a secret in Debug");
    }
}

/// A policy in JSON. The same facts give the same verdict, a deny rule that always holds lets
/// nobody in, and nobody's verdict changes by time before it says so.
pub fn policy(data: &[u8]) {
    let Ok(written) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    let compiled = Policy::compile(&written);
    let Ok(policy) = compiled else {
        assert!(compiled.is_err_and(|errors| !errors.is_empty()));
        return;
    };
    let mut rules = match written {
        Value::Array(rules) => rules,
        Value::Null => Vec::new(),
        rule => vec![rule],
    };
    rules.push(json!({"deny": {"or": [{"accept": true}]}}));
    let closed = Policy::compile(&Value::Array(rules));
    assert!(closed.is_ok(), "one rule more does not compile");
    let closed = closed.unwrap_or_default();

    let claims = Claims::from([("groups".to_owned(), vec![json!("ops"), json!(42)])]);
    let ann = Session {
        user_id: "ann",
        email: Some("ann@corp.test"),
        session_claims: &claims,
        user_claims: &claims,
        groups: None,
        devices: &[],
    };
    let anonymous = Input::anonymous([203, 0, 113, 9].into(), now());
    let signed_in = Input {
        session: Some(ann),
        ..anonymous
    };
    for input in [anonymous, signed_in] {
        let verdict = policy.evaluate(&input);
        assert_eq!(policy.explain(&input).verdict, verdict);
        assert_ne!(closed.evaluate(&input).outcome(), Outcome::Allow);
        let boundary = policy.next_time_boundary(now());
        assert!(boundary.is_none_or(|at| at > now()));
        let before = boundary
            .unwrap_or(Timestamp::MAX)
            .checked_sub(jiff::SignedDuration::from_nanos(1));
        if let Ok(before) = before {
            let later = Input {
                now: before,
                ..input
            };
            assert_eq!(policy.evaluate(&later).outcome(), verdict.outcome());
        }
    }
    let _words = policy.describe();
}

/// libpq's connection string or URI. What is accepted has a host.
pub fn connection_string(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    match Settings::parse(text, &|_| None) {
        Ok(settings) => assert!(!settings.hosts.is_empty()),
        Err(error) => drop(error.to_string()),
    }
}

/// A filter in JSON. Looking up misses no record that matches.
pub fn query_filter(data: &[u8]) {
    let Ok(Value::Object(written)) = serde_json::from_slice(data) else {
        return;
    };
    let Ok(filter) = Filter::read(&proto(written)) else {
        return;
    };
    let record = Record {
        r#type: "type.googleapis.com/user.User".to_owned(),
        id: "ann".to_owned(),
        ..Record::default()
    };
    if filter.matches(&record, None)
        && let Some(lookups) = filter.lookups(&["email".to_owned()])
    {
        assert!(lookups.contains(&Lookup::Id(record.id)));
    }
}

fn proto(object: serde_json::Map<String, Value>) -> Struct {
    let fields = object.into_iter();
    Struct {
        fields: fields
            .map(|(name, value)| (name, proto_value(value)))
            .collect(),
    }
}

fn proto_value(value: Value) -> ProtoValue {
    ProtoValue {
        kind: Some(match value {
            Value::Null => Kind::NullValue(0),
            Value::Bool(it) => Kind::BoolValue(it),
            Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
            Value::String(text) => Kind::StringValue(text),
            Value::Array(values) => Kind::ListValue(ListValue {
                values: values.into_iter().map(proto_value).collect(),
            }),
            Value::Object(object) => Kind::StructValue(proto(object)),
        }),
    }
}
