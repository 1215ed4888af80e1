//! TOML to a tree with places.

use std::ops::Range;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::{Look, Map, Node, Scalar, Value};
use crate::config::diagnostic::{Diagnostic, Diagnostics, code};
use crate::config::place::{At, Place, SourceText};

/// `None` when the text is no TOML; every reason is among the diagnostics.
pub fn parse(source: &Arc<SourceText>, diagnostics: &mut Diagnostics) -> Option<Node> {
    let (table, errors) = DeTable::parse_recoverable(source.text());
    for error in &errors {
        let mut diagnostic = Diagnostic::error(
            code::SYNTAX,
            format!("this is no valid TOML: {}", error.message()),
        );
        if let Some(span) = error.span() {
            diagnostic = diagnostic.at(&place(source, span));
        }
        diagnostics.push(diagnostic);
    }
    if !errors.is_empty() {
        return None;
    }
    let span = table.span();
    Some(Node {
        value: Value::Map(map(source, table.get_ref())),
        place: place(source, span),
    })
}

fn place(source: &Arc<SourceText>, span: Range<usize>) -> Place {
    Place::Text {
        source: Arc::clone(source),
        span,
    }
}

fn map(source: &Arc<SourceText>, table: &DeTable<'_>) -> Map {
    let mut entries: Vec<_> = table
        .iter()
        .map(|(key, value)| {
            let name = At::new(key.get_ref().to_string(), place(source, key.span()));
            (
                key.span().start,
                (name, node(source, value.get_ref(), value.span())),
            )
        })
        .collect();
    // The library sorts by name.
    entries.sort_by_key(|(start, _)| *start);
    Map {
        entries: entries.into_iter().map(|(_, entry)| entry).collect(),
        ..Map::default()
    }
}

fn node(source: &Arc<SourceText>, value: &DeValue<'_>, span: Range<usize>) -> Node {
    let scalar = |text: String, look| Value::Scalar(Scalar { text, look });
    let value = match value {
        DeValue::String(text) => scalar(text.to_string(), Look::Text),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => scalar(number.to_string(), Look::Number),
            Err(_) => scalar(number.to_string(), Look::Text),
        },
        DeValue::Float(number) => scalar(number.as_str().to_owned(), Look::Number),
        DeValue::Boolean(value) => scalar(value.to_string(), Look::Bool),
        DeValue::Datetime(time) => scalar(time.to_string(), Look::Text),
        DeValue::Array(list) => Value::List(
            list.iter()
                .map(|item| node(source, item.get_ref(), item.span()))
                .collect(),
        ),
        DeValue::Table(table) => Value::Map(map(source, table)),
    };
    Node {
        value,
        place: place(source, span),
    }
}
