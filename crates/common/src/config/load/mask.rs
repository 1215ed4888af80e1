//! Which parts of a text are secrets, so that no excerpt shows them.

use std::ops::Range;
use std::sync::Arc;

use super::super::keys::{self, GLOBAL, Key, Kind, ROUTE};
use super::super::place::{Place, SourceText};
use super::super::source::{Map, Node, Value};

/// Marks values of secret keys, of unknown ones (they may be misspelt secrets), and whatever looks
/// like a credential, in every text that the tree came from. A text keeps its first marks.
pub fn secrets(root: &Map) {
    let mut found = Found::default();
    map(&mut found, root, GLOBAL);
    found.apply();
}

/// Marks what looks like a credential in a text within the text.
pub fn embedded(node: &Node) {
    let mut found = Found::default();
    suspicious(&mut found, node);
    found.see(&node.place, None);
    found.apply();
}

/// Ranges to hide, by text.
#[derive(Default)]
struct Found(Vec<(Arc<SourceText>, Vec<Range<usize>>)>);

impl Found {
    /// Notes that a text was read, and maybe a range of it that must not be shown.
    fn see(&mut self, place: &Place, hidden: Option<Range<usize>>) {
        let Place::Text { source, .. } = place else {
            return;
        };
        match self
            .0
            .iter_mut()
            .find(|(known, _)| Arc::ptr_eq(known, source))
        {
            Some((_, ranges)) => ranges.extend(hidden),
            None => self
                .0
                .push((Arc::clone(source), hidden.into_iter().collect())),
        }
    }

    fn apply(self) {
        for (source, ranges) in self.0 {
            source.mask(ranges);
        }
    }
}

fn map(found: &mut Found, map: &Map, table: &[Key]) {
    map.dropped.iter().for_each(|node| hide(found, node));
    for (name, node) in &map.entries {
        found.see(&name.place, None);
        match keys::find(table, &name.value).map(|key| key.kind) {
            None => hide(found, node),
            Some(kind) if kind.is_secret() => hide(found, node),
            Some(Kind::Routes) => each(found, node, ROUTE),
            Some(Kind::Object(inner) | Kind::Objects(inner)) => each(found, node, inner),
            Some(Kind::Any | Kind::Map) => suspicious(found, node),
            Some(_) => credentials(found, node),
        }
    }
}

fn each(found: &mut Found, node: &Node, table: &[Key]) {
    match &node.value {
        Value::Map(inner) => map(found, inner, table),
        Value::List(items) => items.iter().for_each(|item| each(found, item, table)),
        Value::Null | Value::Scalar(_) => credentials(found, node),
    }
}

fn hide(found: &mut Found, node: &Node) {
    match &node.value {
        Value::Null => {}
        Value::Scalar(_) => {
            if let Place::Text { span, .. } = &node.place {
                found.see(&node.place, Some(span.clone()));
            }
        }
        Value::List(items) => items.iter().for_each(|item| hide(found, item)),
        Value::Map(map) => map.entries.iter().for_each(|(_, node)| hide(found, node)),
    }
}

/// Free-form parts: names tell.
fn suspicious(found: &mut Found, node: &Node) {
    match &node.value {
        Value::Map(map) => {
            for (name, node) in &map.entries {
                let name = name.value.to_ascii_lowercase();
                let telling = [
                    "secret",
                    "token",
                    "password",
                    "authorization",
                    "api_key",
                    "apikey",
                    "private",
                ];
                if telling.iter().any(|word| name.contains(word)) {
                    hide(found, node);
                } else {
                    suspicious(found, node);
                }
            }
        }
        Value::List(items) => items.iter().for_each(|item| suspicious(found, item)),
        Value::Scalar(_) => credentials(found, node),
        Value::Null => {}
    }
}

/// A URL with a password in it.
fn credentials(found: &mut Found, node: &Node) {
    match &node.value {
        Value::Scalar(scalar) => {
            let authority = scalar
                .text
                .split_once("://")
                .map_or("", |(_, rest)| rest.split('/').next().unwrap_or(""));
            if authority.contains('@') || scalar.text.contains("PRIVATE KEY") {
                hide(found, node);
            }
        }
        Value::List(items) => items.iter().for_each(|item| credentials(found, item)),
        Value::Map(map) => map
            .entries
            .iter()
            .for_each(|(_, node)| credentials(found, node)),
        Value::Null => {}
    }
}
