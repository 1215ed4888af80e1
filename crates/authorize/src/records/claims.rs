//! Claims as a copy of very many sessions can hold them: in one piece.
//!
//! As a map of lists of values, ten claims and ten groups take about two kilobytes; here they take
//! little more than their text. A decision reads one or two of them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use postern_policy::ClaimSource;
use prost::Message as _;
use prost_types::ListValue;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::json;

/// Claims by name: flattened keys, always lists. Equal ones are equal byte for byte.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// For each claim, in the order of names: length of the name, the name, length of the values,
    /// the values (`google.protobuf.ListValue`). Lengths are four bytes.
    packed: Box<[u8]>,
}

impl Claims {
    pub fn get(&self, name: &str) -> Option<Vec<Value>> {
        let (_, values) = self.pieces().find(|(known, _)| *known == name.as_bytes())?;
        Some(unpack(values))
    }

    pub fn all(&self) -> impl Iterator<Item = (Cow<'_, str>, Vec<Value>)> {
        self.pieces()
            .map(|(name, values)| (String::from_utf8_lossy(name), unpack(values)))
    }

    fn pieces(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &*self.packed;
        std::iter::from_fn(move || Some((take(&mut rest)?, take(&mut rest)?)))
    }
}

/// The next piece, behind its length.
fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (piece, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(piece)
}

fn unpack(values: &[u8]) -> Vec<Value> {
    // It was packed here.
    let list = ListValue::decode(values).unwrap_or_default();
    list.values.into_iter().map(json).collect()
}

impl FromIterator<(String, ListValue)> for Claims {
    fn from_iter<I: IntoIterator<Item = (String, ListValue)>>(claims: I) -> Self {
        let sorted: BTreeMap<_, _> = claims.into_iter().collect();
        let mut packed = Vec::new();
        let mut put = |piece: &[u8]| {
            // Records are smaller than 4 GiB by far.
            let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            packed.extend(length.to_le_bytes());
            packed.extend(piece);
        };
        for (name, values) in sorted {
            put(name.as_bytes());
            put(&values.encode_to_vec());
        }
        Self {
            packed: packed.into(),
        }
    }
}

impl ClaimSource for Claims {
    fn get(&self, name: &str) -> Option<Cow<'_, [Value]>> {
        Self::get(self, name).map(Cow::Owned)
    }
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.all()).finish()
    }
}

impl Serialize for Claims {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.all())
    }
}

#[cfg(test)]
impl Claims {
    /// From an object of lists.
    pub fn of(claims: Value) -> Self {
        let claims: BTreeMap<String, Vec<Value>> = serde_json::from_value(claims).unwrap();
        claims
            .into_iter()
            .map(|(name, values)| {
                let values = values.into_iter().map(proto).collect();
                (name, ListValue { values })
            })
            .collect()
    }
}

#[cfg(test)]
fn proto(value: Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::String(text) => Kind::StringValue(text),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
        Value::Null => Kind::NullValue(0),
        Value::Array(values) => Kind::ListValue(ListValue {
            values: values.into_iter().map(proto).collect(),
        }),
        Value::Object(fields) => Kind::StructValue(prost_types::Struct {
            fields: fields
                .into_iter()
                .map(|(name, it)| (name, proto(it)))
                .collect(),
        }),
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let all = json!({"groups": ["a", "b"], "empty": [], "": ["no name"], "n": [42, 0.5], "b": [true, null]});
        let claims = Claims::of(all.clone());
        assert_eq!(serde_json::to_value(&claims).unwrap(), all);
        assert_eq!(claims.get("groups"), Some(vec![json!("a"), json!("b")]));
        assert_eq!(claims.get("empty"), Some(Vec::new()));
        assert_eq!(claims.get("group"), None);
        assert_eq!(Claims::default().get("groups"), None);
        assert_eq!(Claims::default().all().count(), 0);
    }

    #[test]
    fn a_session_of_ten_claims_and_ten_groups_is_small() {
        let groups: Vec<_> = (0..10).map(|n| format!("group-name-{n}")).collect();
        let mut all = json!({"groups": groups});
        for n in 0..9 {
            all[format!("a_claim_{n}")] = json!([format!("the value of claim {n}")]);
        }
        let size = Claims::of(all).packed.len();
        assert!(size < 700, "{size} bytes");
    }
}
