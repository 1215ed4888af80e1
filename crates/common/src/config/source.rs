//! What was written, before anything is known of what it means: a tree in which every key and
//! every value knows its place.

mod environment;
mod tree_json;
mod tree_toml;
mod yaml;

use std::path::Path;
use std::sync::Arc;

pub use environment::Environment;
pub(super) use environment::overlay;
pub(super) use yaml::parse as parse_yaml;

use super::diagnostic::{Diagnostic, Diagnostics, code};
use super::place::{At, Place, SourceText};

/// A value as written.
#[derive(Debug, Clone)]
pub struct Node {
    pub value: Value,
    pub place: Place,
}

#[derive(Debug, Clone)]
pub enum Value {
    Null,
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Map),
}

/// The text of a scalar, as written but for quotes and escapes, and what it looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scalar {
    pub text: String,
    pub look: Look,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    Text,
    Bool,
    /// By the grammar of JSON: `08` and `1_000` are text.
    Number,
}

/// Entries in the order of the text, each name once.
#[derive(Debug, Clone, Default)]
pub struct Map {
    pub entries: Vec<(At<String>, Node)>,
    /// Values that count for nothing, as their key was there before. They may be secrets.
    pub(super) dropped: Vec<Node>,
}

impl Node {
    pub fn text(text: impl Into<String>, place: Place) -> Self {
        Self {
            value: Value::Scalar(Scalar {
                text: text.into(),
                look: Look::Text,
            }),
            place,
        }
    }

    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// What stands here, in words.
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Scalar(scalar) => match scalar.look {
                Look::Text => "text",
                Look::Bool => "a boolean",
                Look::Number => "a number",
            },
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }
}

impl Map {
    /// Names are compared without case, as Pomerium does.
    pub fn get(&self, name: &str) -> Option<&Node> {
        self.entries
            .iter()
            .find(|(key, _)| key.value.eq_ignore_ascii_case(name))
            .map(|(_, node)| node)
    }

    pub fn key(&self, name: &str) -> Option<&At<String>> {
        self.entries
            .iter()
            .find(|(key, _)| key.value.eq_ignore_ascii_case(name))
            .map(|(key, _)| key)
    }

    /// Replaces what is there.
    pub(super) fn set(&mut self, name: &str, node: Node) {
        self.entries
            .retain(|(key, _)| !key.value.eq_ignore_ascii_case(name));
        let key = At::new(name.to_owned(), node.place.clone());
        self.entries.push((key, node));
    }

    /// The map under `name`, made if need be: what is left empty holds nothing, and takes anything.
    pub(super) fn child(&mut self, name: &str, place: &Place) -> Option<&mut Self> {
        if !self
            .entries
            .iter()
            .any(|(key, _)| key.value.eq_ignore_ascii_case(name))
        {
            self.set(
                name,
                Node {
                    value: Value::Map(Self::default()),
                    place: place.clone(),
                },
            );
        }
        let (_, node) = self
            .entries
            .iter_mut()
            .find(|(key, _)| key.value.eq_ignore_ascii_case(name))?;
        if node.is_null() {
            node.value = Value::Map(Self::default());
        }
        match &mut node.value {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }
}

/// Reads a file's text by the format that its name tells.
pub(super) fn parse(
    path: &Path,
    source: &Arc<SourceText>,
    diagnostics: &mut Diagnostics,
) -> Option<Map> {
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .map(str::to_ascii_lowercase);
    let whole = Place::Text {
        source: Arc::clone(source),
        span: 0..0,
    };
    let node = match extension.as_deref() {
        // JSON is YAML.
        Some("yaml" | "yml" | "json") => yaml::parse(source, diagnostics)?,
        Some("toml") => tree_toml::parse(source, diagnostics)?,
        _ => {
            diagnostics.push(
                Diagnostic::error(
                    code::FILE,
                    format!("cannot tell the format of {} from its name", path.display()),
                )
                .help("name it .yaml, .json or .toml"),
            );
            return None;
        }
    };
    match node.value {
        Value::Map(map) => Some(map),
        Value::Null => Some(Map::default()),
        _ => {
            diagnostics.push(
                Diagnostic::error(
                    code::WRONG_TYPE,
                    "the configuration is not a map of keys to values",
                )
                .at(&whole),
            );
            None
        }
    }
}

#[cfg(test)]
mod tests;
