//! Claims: putting them right, and the flat form in which records and policies hold them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value as ProtoValue};
use serde_json::Value;

use crate::provider::Claims;

/// Integers beyond this lose digits in a double, which is what a protobuf number is.
const MAX_EXACT: u64 = 1 << 53;

/// Objects joined with `.`, every value a list: what PPL's `claim/…` and the records see.
///
/// `{"a":{"b":1}}` becomes `a.b: [1]`; arrays keep their members (objects and lists inside stay
/// what they are); text, numbers, booleans and null become lists of one; an empty object nothing.
/// A dot in a key is not escaped, so two paths can meet: their values are then joined.
pub fn flatten(claims: &Claims) -> BTreeMap<String, Vec<Value>> {
    let mut out = BTreeMap::new();
    for (key, value) in claims {
        flatten_into(&mut out, key, value);
    }
    out
}

fn flatten_into(out: &mut BTreeMap<String, Vec<Value>>, path: &str, value: &Value) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                flatten_into(out, &format!("{path}.{key}"), value);
            }
        }
        Value::Array(members) => out
            .entry(path.to_owned())
            .or_default()
            .extend(members.iter().cloned()),
        other => out.entry(path.to_owned()).or_default().push(other.clone()),
    }
}

/// Flat claims as the records hold them.
///
/// Integers too large for a double become text, so that no digit is lost.
pub fn to_list_values<M>(flat: &BTreeMap<String, Vec<Value>>) -> M
where
    M: FromIterator<(String, ListValue)>,
{
    flat.iter()
        .map(|(key, values)| {
            let values = values.iter().map(to_proto).collect();
            (key.clone(), ListValue { values })
        })
        .collect()
}

/// A JSON value as a protobuf one.
pub fn to_proto(value: &Value) -> ProtoValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(b) => Kind::BoolValue(*b),
        Value::String(s) => Kind::StringValue(s.clone()),
        Value::Number(n) => number(n),
        Value::Array(values) => Kind::ListValue(ListValue {
            values: values.iter().map(to_proto).collect(),
        }),
        Value::Object(members) => Kind::StructValue(Struct {
            fields: members
                .iter()
                .map(|(k, v)| (k.clone(), to_proto(v)))
                .collect(),
        }),
    };
    ProtoValue { kind: Some(kind) }
}

fn number(n: &serde_json::Number) -> Kind {
    let exact = n.as_i64().map(i64::unsigned_abs).or_else(|| n.as_u64());
    match (exact, n.as_f64()) {
        (Some(magnitude), _) if magnitude > MAX_EXACT => Kind::StringValue(n.to_string()),
        (_, Some(double)) if double.is_finite() => Kind::NumberValue(double),
        _ => Kind::StringValue(n.to_string()),
    }
}

/// The user id that claims name: `oid` (Azure), else `sub`.
pub fn subject(claims: &Claims) -> Option<&str> {
    ["oid", "sub"]
        .into_iter()
        .filter_map(|name| text(claims, name))
        .find(|id| !id.is_empty())
}

/// A claim that is text.
pub fn text<'a>(claims: &'a Claims, name: &str) -> Option<&'a str> {
    claims.get(name).and_then(Value::as_str)
}

/// A claim that says something. Some providers write `null` for what others leave out.
pub(crate) fn said<'a>(claims: &'a Claims, name: &str) -> Option<&'a Value> {
    claims.get(name).filter(|value| !value.is_null())
}

/// What is known of a person: the ID token's claims, then those of user info, which win. These
/// replace whatever was known before: a claim that neither holds any more is gone.
pub fn combine(id_token: Claims, user_info: Option<Claims>) -> Claims {
    let mut claims = merge(id_token, user_info.unwrap_or_default());
    put_right(&mut claims);
    claims
}

/// The claims of an ID token that was verified when it was stored; its signature is not looked at
/// again. Never for a token that comes from outside.
pub fn of_stored_id_token(raw: &str) -> Option<Claims> {
    let payload = raw.split('.').nth(1)?;
    let bytes = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Both sets in one; the second wins.
pub(crate) fn merge(mut first: Claims, second: Claims) -> Claims {
    first.extend(second);
    first
}

/// Repairs what providers are known to send: `email_verified` as text, the address under `mail`.
pub(crate) fn put_right(claims: &mut Claims) {
    if let Some(Value::String(verified)) = claims.get("email_verified") {
        let verified = verified.eq_ignore_ascii_case("true");
        claims.insert("email_verified".into(), Value::Bool(verified));
    }
    if said(claims, "email").is_none()
        && let Some(mail) = text(claims, "mail")
            .filter(|m| m.contains('@'))
            .map(str::to_owned)
    {
        claims.insert("email".into(), Value::String(mail));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: &Value) -> Claims {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn flattening() {
        let flat = flatten(&map(&json!({
            "a": {"b": 1, "c": {"d": [true, {"x": 1}, [2]]}},
            "null": null, "text": "t", "empty": {}, "none": [],
            "big": 9_007_199_254_740_993_u64,
        })));
        let expected: BTreeMap<String, Vec<Value>> = [
            ("a.b", vec![json!(1)]),
            ("a.c.d", vec![json!(true), json!({"x": 1}), json!([2])]),
            ("null", vec![Value::Null]),
            ("text", vec![json!("t")]),
            ("none", vec![]),
            ("big", vec![json!(9_007_199_254_740_993_u64)]),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v))
        .collect();
        assert_eq!(flat, expected);
    }

    #[test]
    fn integers_keep_their_digits() {
        let flat = flatten(&map(
            &json!({"n": 1_700_000_000, "big": 9_007_199_254_740_993_u64}),
        ));
        let lists: BTreeMap<String, ListValue> = to_list_values(&flat);
        assert_eq!(
            lists["n"].values[0].kind,
            Some(Kind::NumberValue(1_700_000_000.0))
        );
        assert_eq!(
            lists["big"].values[0].kind,
            Some(Kind::StringValue("9007199254740993".into()))
        );
    }

    #[test]
    fn oid_before_sub_and_only_text() {
        assert_eq!(subject(&map(&json!({"sub": "s", "oid": "o"}))), Some("o"));
        assert_eq!(subject(&map(&json!({"sub": "s", "oid": ""}))), Some("s"));
        assert_eq!(subject(&map(&json!({"sub": 7}))), None);
    }

    #[test]
    fn known_oddities_are_put_right() {
        let mut claims = map(&json!({"email_verified": "true", "mail": "a@b.test"}));
        put_right(&mut claims);
        assert_eq!(
            Value::Object(claims),
            json!({
                "email_verified": true, "mail": "a@b.test", "email": "a@b.test"
            })
        );
        let mut claims = map(&json!({"mail": "not an address"}));
        put_right(&mut claims);
        assert!(!claims.contains_key("email"));
    }

    proptest::proptest! {
        /// Leaves are neither lost nor invented: as many values come out as leaves went in.
        #[test]
        fn every_leaf_is_kept(leaves in proptest::collection::btree_map("[a-z]{1,4}", 0_i64..9, 0..8),
                              nested in proptest::collection::btree_map("[a-z]{1,4}", 0_i64..9, 0..8)) {
            let mut claims: Claims = leaves.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            claims.insert("nested".into(), json!(nested));
            let count: usize = flatten(&claims).values().map(Vec::len).sum();
            let expected = leaves.keys().filter(|k| *k != "nested").count() + nested.len();
            proptest::prop_assert_eq!(count, expected);
        }
    }
}
