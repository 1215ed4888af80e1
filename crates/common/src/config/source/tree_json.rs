//! A tree as a plain JSON value, for parts that are read by someone else; and the way back from a
//! JSON pointer to a place.

use serde_json::Value as Json;

use super::{Look, Node, Value};
use crate::config::place::Place;

impl Node {
    pub fn to_json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Scalar(scalar) => match scalar.look {
                Look::Text => Json::String(scalar.text.clone()),
                Look::Bool => Json::Bool(scalar.text.eq_ignore_ascii_case("true")),
                Look::Number => serde_json::from_str(&scalar.text)
                    .unwrap_or_else(|_| Json::String(scalar.text.clone())),
            },
            Value::List(list) => list.iter().map(Self::to_json).collect(),
            Value::Map(map) => map
                .entries
                .iter()
                .map(|(key, node)| (key.value.clone(), node.to_json()))
                .collect(),
        }
    }

    /// The place of the key that a JSON pointer ends with, if it ends with one.
    pub fn key_place(&self, pointer: &str) -> Option<Place> {
        let (parent, name) = pointer.rsplit_once('/')?;
        let mut node = self;
        for step in parent.split('/').skip(1) {
            let step = step.replace("~1", "/").replace("~0", "~");
            node = match &node.value {
                Value::List(list) => list.get(step.parse::<usize>().ok()?)?,
                Value::Map(map) => &map.entries.iter().find(|(key, _)| key.value == step)?.1,
                Value::Null | Value::Scalar(_) => return None,
            };
        }
        let name = name.replace("~1", "/").replace("~0", "~");
        match &node.value {
            Value::Map(map) => map
                .entries
                .iter()
                .find(|(key, _)| key.value == name)
                .map(|(key, _)| key.place.clone()),
            _ => None,
        }
    }

    /// The place that a JSON pointer (RFC 6901) leads to. Where the last step names a key, the
    /// key is meant; a pointer that leads too far ends at the last thing that exists.
    pub fn place_of(&self, pointer: &str) -> Place {
        let mut node = self;
        let mut place = &self.place;
        for step in pointer.split('/').skip(1) {
            let step = step.replace("~1", "/").replace("~0", "~");
            match &node.value {
                Value::List(list) => {
                    match step.parse::<usize>().ok().and_then(|index| list.get(index)) {
                        Some(item) => (node, place) = (item, &item.place),
                        None => break,
                    }
                }
                Value::Map(map) => match map.entries.iter().find(|(key, _)| key.value == step) {
                    Some((key, value)) => {
                        node = value;
                        place = if matches!(value.value, Value::Scalar(_)) {
                            &value.place
                        } else {
                            &key.place
                        };
                    }
                    None => break,
                },
                Value::Null | Value::Scalar(_) => break,
            }
        }
        match &node.value {
            // An element of a list is best shown by the key it begins with.
            Value::Map(map) if std::ptr::eq(place, &raw const node.place) => map
                .entries
                .first()
                .map_or_else(|| place.clone(), |(key, _)| key.place.clone()),
            _ => place.clone(),
        }
    }
}
