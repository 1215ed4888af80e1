//! Where the keys of a configuration stand, for whoever has something to say about them later.

use std::collections::BTreeMap;

use super::super::diagnostic::Diagnostics;
use super::super::place::Place;
use super::super::source::{self, Map, Value};
use super::reader::scalar;
use super::{Origin, read_file};

/// Places of the keys at the top, and of routes.
#[derive(Debug, Clone, Default)]
pub struct Places {
    keys: BTreeMap<String, Place>,
    /// By `from` as written; the first of several.
    routes: BTreeMap<String, Place>,
}

impl Places {
    /// What cannot be read has no places.
    pub fn of(origin: &Origin) -> Self {
        let mut unsaid = Diagnostics::default();
        let read = |path| {
            let source = read_file(path, &mut unsaid)?;
            source::parse(path, &source, &mut unsaid)
        };
        let mut map = origin
            .file
            .as_deref()
            .map_or(Some(Map::default()), read)
            .unwrap_or_default();
        source::overlay(&mut map, &origin.environment, &mut unsaid);
        let mut places = Self::default();
        for (key, _) in &map.entries {
            places
                .keys
                .insert(key.value.to_ascii_lowercase(), key.place.clone());
        }
        if let Some(Value::List(routes)) = map.get("routes").map(|node| &node.value) {
            for route in routes {
                if let Value::Map(route) = &route.value
                    && let Some(from) = route.get("from").and_then(scalar)
                {
                    places.routes.entry(from.value).or_insert(from.place);
                }
            }
        }
        places
    }

    /// Where a key stands, if it is set.
    pub fn key(&self, name: &str) -> Option<&Place> {
        self.keys.get(name)
    }

    /// Where the first route stands that has this `from`.
    pub fn route(&self, from: &str) -> Option<&Place> {
        self.routes.get(from)
    }
}
