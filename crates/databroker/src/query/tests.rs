use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::{Any, ListValue};
use serde_json::json;

use super::*;

fn value(json: &serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(it) => Kind::BoolValue(*it),
        serde_json::Value::Number(it) => Kind::NumberValue(it.as_f64().unwrap()),
        serde_json::Value::String(it) => Kind::StringValue(it.clone()),
        serde_json::Value::Array(it) => Kind::ListValue(ListValue {
            values: it.iter().map(value).collect(),
        }),
        serde_json::Value::Object(_) => Kind::StructValue(object(json)),
    };
    Value { kind: Some(kind) }
}

fn object(json: &serde_json::Value) -> Struct {
    let fields: BTreeMap<_, _> = json
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, it)| (key.clone(), value(it)))
        .collect();
    Struct { fields }
}

fn read(json: &serde_json::Value) -> Result<Filter, FilterError> {
    Filter::read(&object(json))
}

fn eq(path: &str, value: &str) -> Filter {
    Filter::Equals {
        path: path.to_owned(),
        value: value.to_owned(),
    }
}

fn record(id: &str, payload: &serde_json::Value) -> Record {
    Record {
        r#type: "t".to_owned(),
        id: id.to_owned(),
        data: Some(Any {
            type_url: "type.googleapis.com/google.protobuf.Struct".to_owned(),
            value: object(payload).encode_to_vec(),
        }),
        ..Record::default()
    }
}

fn matches(filter: &serde_json::Value, record: &Record) -> bool {
    let payload = record.data.as_ref().and_then(Payload::read);
    read(filter).unwrap().matches(record, payload.as_ref())
}

#[test]
fn filters_are_read() {
    for (json, filter) in [
        (json!({}), Filter::And(vec![])),
        (json!({ "a": 1 }), eq("a", "1")),
        (json!({ "a": { "b": "c" } }), eq("a.b", "c")),
        (json!({ "a.b": "c" }), eq("a.b", "c")),
        (json!({ "a": { "$eq": true } }), eq("a", "true")),
        (
            json!({ "b": "2", "a": "1" }),
            Filter::And(vec![eq("a", "1"), eq("b", "2")]),
        ),
        (
            json!({ "a": ["1", "2"] }),
            Filter::Or(vec![eq("a", "1"), eq("a", "2")]),
        ),
        (
            json!({ "$or": [{ "id": "x" }, { "$index": "x" }] }),
            Filter::Or(vec![eq("id", "x"), eq("$index", "x")]),
        ),
        (json!({ "$and": [{ "id": "x" }] }), eq("id", "x")),
        (
            json!({ "a": { "$not": "1" } }),
            Filter::Not(Box::new(eq("a", "1"))),
        ),
        (
            json!({ "$not": { "a": "1" } }),
            Filter::Not(Box::new(eq("a", "1"))),
        ),
    ] {
        assert_eq!(read(&json), Ok(filter), "{json}");
    }
}

#[test]
fn what_is_not_understood_is_an_error() {
    assert_eq!(
        read(&json!({ "$or": { "a": 1 } })),
        Err(FilterError::NotAList("$or".to_owned()))
    );
    assert_eq!(
        read(&json!({ "a": { "$contains": "x" } })),
        Err(FilterError::Unsupported("$contains".to_owned()))
    );
    let mut deep = json!("x");
    for _ in 0..40 {
        deep = json!({ "a": deep });
    }
    assert_eq!(read(&deep), Err(FilterError::TooBig));
    let wide: Vec<_> = (0..2_000).map(|n| json!({ "id": n.to_string() })).collect();
    assert_eq!(read(&json!({ "$or": wide })), Err(FilterError::TooBig));
}

#[test]
fn lookups_cover_everything_that_can_match() {
    let indexable = ["user_id".to_owned()];
    let lookups = |json| read(&json).unwrap().lookups(&indexable);
    let id = |id: &str| Lookup::Id(id.to_owned());
    let network = |text: &str| Lookup::Network(text.parse().unwrap());
    let field = |value: &str| Lookup::Field {
        path: "user_id".to_owned(),
        value: value.to_owned(),
    };
    assert_eq!(lookups(json!({ "id": "x" })), Some(vec![id("x")]));
    assert_eq!(
        lookups(json!({ "$or": [{ "id": "x" }, { "$index": "x" }] })),
        Some(vec![id("x")])
    );
    assert_eq!(
        lookups(json!({ "$or": [{ "id": "10.0.0.1" }, { "$index": "10.0.0.1" }] })),
        Some(vec![id("10.0.0.1"), network("10.0.0.1/32")]),
    );
    assert_eq!(
        lookups(json!({ "user_id": ["a", "b"], "x": "y" })),
        Some(vec![field("a"), field("b")])
    );
    assert_eq!(
        lookups(json!({ "$or": [{ "id": "x" }, { "y": "z" }] })),
        None
    );
    assert_eq!(lookups(json!({ "id": { "$not": "x" } })), None);
    assert_eq!(lookups(json!({})), None);
}

#[test]
fn records_match_by_id_type_field_and_network() {
    let record = record(
        "r",
        &json!({ "name": "ann", "$index": { "cidr": "10.0.0.0/8" } }),
    );
    for yes in [
        json!({ "id": "r" }),
        json!({ "type": "t" }),
        json!({ "name": "ann" }),
        json!({ "name": ["bob", "ann"] }),
        json!({ "$index": "10.1.2.3" }),
        json!({ "$index": "::ffff:10.1.2.3" }),
        json!({ "$index": "10.1.0.0/16" }),
        json!({ "name": { "$not": "bob" } }),
        json!({}),
    ] {
        assert!(matches(&yes, &record), "{yes}");
    }
    for no in [
        json!({ "id": "s" }),
        json!({ "name": "Ann" }),
        json!({ "$index": "11.0.0.1" }),
        json!({ "$index": "0.0.0.0/0" }),
        json!({ "$index": "nonsense" }),
        json!({ "other": "null" }),
        json!({ "name": [] }),
        json!({ "$or": [] }),
    ] {
        assert!(!matches(&no, &record), "{no}");
    }
}
