//! Claims as a copy of very many sessions can hold them: in one piece.
//!
//! As a map of lists of values, ten claims and ten groups take about two kilobytes; here they take
//! little more than their text. A decision reads one or two of them.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use postern_policy::ClaimSource;
use prost::{DecodeError, Message as _};
use prost_types::value::Kind;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::json;

/// Claims by name: flattened keys, always lists. Equal ones are equal byte for byte.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// For each claim, in the order of names, two pieces: the name, and the values. For each value
    /// one byte that tells its kind, and a piece.
    packed: Box<[u8]>,
}

/// The piece is a text.
const TEXT: u8 = 0;
/// The piece is a `google.protobuf.Value`.
const OTHER: u8 = 1;

/// An entry of `map<string, google.protobuf.ListValue>`, values unread.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "bytes", tag = "2")]
    values: Bytes,
}

/// `google.protobuf.ListValue`, values unread.
#[derive(Clone, PartialEq, prost::Message)]
struct List {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    values: Vec<Bytes>,
}

impl Claims {
    /// From a map on the wire. Fails for what is no such map, so that nobody decides by a part of it.
    pub fn pack(mut entries: Vec<Entry>) -> Result<Self, DecodeError> {
        // Of several entries with one name the last counts.
        entries.reverse();
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        entries.dedup_by(|earlier, last| earlier.name == last.name);
        let mut packed = Vec::new();
        let mut values = Vec::new();
        for entry in entries {
            values.clear();
            for value in List::decode(entry.values)?.values {
                pack_value(&mut values, &value)?;
            }
            put(&mut packed, entry.name.as_bytes());
            put(&mut packed, &values);
        }
        Ok(Self {
            packed: packed.into(),
        })
    }

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

/// Puts a piece behind its length, which is four bytes.
fn put(packed: &mut Vec<u8>, piece: &[u8]) {
    // Records are smaller than 4 GiB by far.
    let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
    packed.extend(length.to_le_bytes());
    packed.extend(piece);
}

/// The next piece.
fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (piece, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(piece)
}

fn pack_value(packed: &mut Vec<u8>, value: &[u8]) -> Result<(), DecodeError> {
    if let Some(text) = short_text(value) {
        packed.push(TEXT);
        put(packed, text.as_bytes());
        return Ok(());
    }
    if let Some(Kind::StringValue(text)) = prost_types::Value::decode(value)?.kind {
        packed.push(TEXT);
        put(packed, text.as_bytes());
    } else {
        packed.push(OTHER);
        put(packed, value);
    }
    Ok(())
}

/// What nearly every value is: a text of less than 128 bytes and nothing else.
fn short_text(value: &[u8]) -> Option<&str> {
    const FIELD_AND_TYPE: u8 = (3 << 3) | 2;
    let [FIELD_AND_TYPE, length @ 0..128, text @ ..] = value else {
        return None;
    };
    let text = (text.len() == usize::from(*length)).then_some(text)?;
    std::str::from_utf8(text).ok()
}

fn unpack(mut values: &[u8]) -> Vec<Value> {
    let value = || {
        let (kind, rest) = values.split_first()?;
        values = rest;
        let piece = take(&mut values)?;
        Some(match *kind {
            TEXT => Value::String(String::from_utf8_lossy(piece).into_owned()),
            // It was packed here.
            _ => json(prost_types::Value::decode(piece).unwrap_or_default()),
        })
    };
    std::iter::from_fn(value).collect()
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
        let claims: std::collections::BTreeMap<String, Vec<Value>> =
            serde_json::from_value(claims).unwrap();
        let entries = claims.into_iter().map(|(name, values)| Entry {
            name,
            values: list(values).encode_to_vec().into(),
        });
        Self::pack(entries.collect()).unwrap()
    }
}

#[cfg(test)]
fn list(values: Vec<Value>) -> prost_types::ListValue {
    let values = values.into_iter().map(proto).collect();
    prost_types::ListValue { values }
}

#[cfg(test)]
fn proto(value: Value) -> prost_types::Value {
    let kind = match value {
        Value::String(text) => Kind::StringValue(text),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
        Value::Null => Kind::NullValue(0),
        Value::Array(values) => Kind::ListValue(list(values)),
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
        let long = "x".repeat(300);
        let all = json!({
            "groups": ["a", "b"], "empty": [], "": ["no name", ""], "n": [42, 0.5], "b": [true, null],
            "long": [long, "x".repeat(127), "x".repeat(128)], "deep": [{"a": [1, "b"]}, []],
        });
        let claims = Claims::of(all.clone());
        assert_eq!(serde_json::to_value(&claims).unwrap(), all);
        assert_eq!(claims.get("groups"), Some(vec![json!("a"), json!("b")]));
        assert_eq!(claims.get("empty"), Some(Vec::new()));
        assert_eq!(claims.get("group"), None);
        assert_eq!(Claims::default().get("groups"), None);
        assert_eq!(Claims::default().all().count(), 0);
    }

    #[test]
    fn of_two_entries_with_one_name_the_last_counts_as_in_every_map() {
        let entry = |name: &str, value: &str| Entry {
            name: name.to_owned(),
            values: list(vec![json!(value)]).encode_to_vec().into(),
        };
        let entries = [entry("b", "1"), entry("a", "2"), entry("b", "3")];
        let claims = Claims::pack(entries.into()).unwrap();
        assert_eq!(claims, Claims::of(json!({"a": ["2"], "b": ["3"]})));
    }

    #[test]
    fn c85_damaged_values_are_errors() {
        let field = |tag: u8, bytes: &[u8]| {
            let length = u8::try_from(bytes.len()).unwrap();
            [&[tag, length][..], bytes].concat()
        };
        let text = |bytes: &[u8]| field(26, bytes);
        let listed = |value: &[u8]| field(10, value);
        let pack = |values: Vec<u8>| {
            let values = values.into();
            let name = "n".to_owned();
            Claims::pack(vec![Entry { name, values }])
        };
        assert!(pack(listed(&text(b"good"))).is_ok());
        assert!(pack(listed(&text(b"no text: \xff"))).is_err());
        assert!(pack(listed(&[26, 5, b'x'])).is_err(), "cut off");
        assert!(pack(vec![10, 5, 26]).is_err(), "cut off");
        assert!(pack(listed(&[0xff])).is_err());
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
