//! YAML (and JSON, which is YAML) to a tree with places.
//!
//! Reads the events of the parser instead of deserializing: text keys need the
//! scalar as it was written (`1_000`, `yes`, `08`), and so does every place.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use granit_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::{Look, Map, Node, Scalar, Value};
use crate::config::diagnostic::{Diagnostic, Diagnostics, code};
use crate::config::place::{At, Place, SourceText};

/// Values of one document, aliases counted as often as they are used: an alias bomb ends here.
const MAX_NODES: usize = 1_000_000;

/// `None` when the text is no YAML; the reason is among the diagnostics.
pub fn parse(source: &Arc<SourceText>, diagnostics: &mut Diagnostics) -> Option<Node> {
    let mut builder = Builder {
        source,
        diagnostics,
        stack: Vec::new(),
        anchors: HashMap::new(),
        nodes: 0,
        root: None,
    };
    match builder.run() {
        Ok(()) => Some(builder.root.unwrap_or(Node {
            value: Value::Null,
            place: Place::Text {
                source: Arc::clone(source),
                span: 0..0,
            },
        })),
        Err(diagnostic) => {
            diagnostics.push(diagnostic);
            None
        }
    }
}

struct Builder<'a> {
    source: &'a Arc<SourceText>,
    diagnostics: &'a mut Diagnostics,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    root: Option<Node>,
}

/// A collection that is not closed yet.
struct Frame {
    place: Place,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map {
        map: Map,
        key: Option<At<String>>,
        /// `<<`: what the map takes over where it says nothing itself.
        merged: Vec<Map>,
    },
}

impl Builder<'_> {
    fn run(&mut self) -> Result<(), Diagnostic> {
        let mut documents = 0;
        let source = Arc::clone(self.source);
        for event in Parser::new_from_str(source.text()) {
            let (event, span) = event.map_err(|error| {
                let at = byte(source.text(), error.marker());
                Diagnostic::error(
                    code::SYNTAX,
                    format!("this is no valid YAML: {}", error.info()),
                )
                .at(&self.place(at..at + 1))
            })?;
            match event {
                Event::DocumentStart(..) => {
                    documents += 1;
                    if documents > 1 {
                        return Err(Diagnostic::error(
                            code::SYNTAX,
                            "a second document begins here",
                        )
                        .at(&self.span(&span))
                        .help("a configuration is one document"));
                    }
                }
                Event::Scalar(text, style, anchor, tag) => {
                    let plain = style == ScalarStyle::Plain;
                    let value = scalar(&text, plain, tag.as_deref());
                    let node = Node {
                        value,
                        place: self.span(&span),
                    };
                    self.anchor(anchor, &node);
                    self.add(node, plain && text == "<<")?;
                }
                Event::Alias(id) => {
                    let place = self.span(&span);
                    let Some(node) = self.anchors.get(&id) else {
                        return Err(Diagnostic::error(
                            code::SYNTAX,
                            "this alias stands inside of what it names",
                        )
                        .at(&place));
                    };
                    let mut node = node.clone();
                    self.nodes += count(&node);
                    node.place = place;
                    self.add(node, false)?;
                }
                Event::SequenceStart(_, anchor, _) => {
                    self.open(anchor, &span, Content::List(Vec::new()));
                }
                Event::MappingStart(_, anchor, _) => {
                    self.open(
                        anchor,
                        &span,
                        Content::Map {
                            map: Map::default(),
                            key: None,
                            merged: Vec::new(),
                        },
                    );
                }
                Event::SequenceEnd | Event::MappingEnd => self.close()?,
                _ => {}
            }
        }
        Ok(())
    }

    fn open(&mut self, anchor: usize, span: &Span, content: Content) {
        let place = self.span(span);
        self.stack.push(Frame {
            place,
            anchor,
            content,
        });
    }

    fn close(&mut self) -> Result<(), Diagnostic> {
        let Some(frame) = self.stack.pop() else {
            return Ok(());
        };
        let value = match frame.content {
            Content::List(list) => Value::List(list),
            Content::Map {
                mut map, merged, ..
            } => {
                for (key, node) in merged.into_iter().flat_map(|m| m.entries) {
                    if map.get(&key.value).is_none() {
                        map.entries.push((key, node));
                    } else {
                        map.dropped.push(node);
                    }
                }
                Value::Map(map)
            }
        };
        let node = Node {
            value,
            place: frame.place,
        };
        self.anchor(frame.anchor, &node);
        self.add(node, false)
    }

    fn anchor(&mut self, anchor: usize, node: &Node) {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
    }

    /// Puts a finished node where it belongs.
    fn add(&mut self, node: Node, is_merge_key: bool) -> Result<(), Diagnostic> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(
                Diagnostic::error(code::SYNTAX, format!("more than {MAX_NODES} values"))
                    .at(&node.place),
            );
        }
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut frame.content {
            Content::List(list) => list.push(node),
            Content::Map { map, key, merged } => match key.take() {
                None => *key = Some(key_of(node, is_merge_key)?),
                Some(name) if name.value == MERGE => match node.value {
                    Value::Map(map) => merged.push(map),
                    Value::List(list) => {
                        merged.extend(list.into_iter().filter_map(|node| match node.value {
                            Value::Map(map) => Some(map),
                            _ => None,
                        }));
                    }
                    _ => {
                        return Err(Diagnostic::error(
                            code::SYNTAX,
                            "`<<` needs a map or a list of maps",
                        )
                        .at(&node.place));
                    }
                },
                Some(name) => match map
                    .entries
                    .iter()
                    .find(|(known, _)| known.value == name.value)
                {
                    Some((first, _)) => {
                        self.diagnostics.push(
                            Diagnostic::error(
                                code::DUPLICATE_KEY,
                                format!("`{}` stands here a second time", name.value),
                            )
                            .at(&name.place)
                            .help(format!("the first is at {}", first.place)),
                        );
                        map.dropped.push(node);
                    }
                    None => map.entries.push((name, node)),
                },
            },
        }
        Ok(())
    }

    fn span(&self, span: &Span) -> Place {
        let text = self.source.text();
        let start = byte(text, &span.start);
        self.place(start..byte(text, &span.end).max(start))
    }

    fn place(&self, span: Range<usize>) -> Place {
        Place::Text {
            source: Arc::clone(self.source),
            span,
        }
    }
}

/// Can't be written by anyone: a plain `<<` only.
const MERGE: &str = "\0<<";

fn key_of(node: Node, is_merge_key: bool) -> Result<At<String>, Diagnostic> {
    let text = match node.value {
        _ if is_merge_key => MERGE.to_owned(),
        Value::Scalar(scalar) => scalar.text,
        Value::Null => "null".to_owned(),
        Value::List(_) | Value::Map(_) => {
            return Err(Diagnostic::error(code::SYNTAX, "a key must be text").at(&node.place));
        }
    };
    Ok(At::new(text, node.place))
}

fn byte(text: &str, marker: &granit_parser::Marker) -> usize {
    marker.byte_offset().unwrap_or_else(|| {
        text.char_indices()
            .nth(marker.index())
            .map_or(text.len(), |(byte, _)| byte)
    })
}

fn count(node: &Node) -> usize {
    match &node.value {
        Value::Null | Value::Scalar(_) => 1,
        Value::List(list) => 1 + list.iter().map(count).sum::<usize>(),
        Value::Map(map) => {
            1 + map
                .entries
                .iter()
                .map(|(_, node)| 1 + count(node))
                .sum::<usize>()
        }
    }
}

fn scalar(text: &str, plain: bool, tag: Option<&Tag>) -> Value {
    let look = match tag.and_then(Tag::core_suffix) {
        Some("str" | "binary") => Look::Text,
        _ if !plain => Look::Text,
        _ => match text {
            "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
            "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => Look::Bool,
            _ if is_json_number(text) => Look::Number,
            _ => Look::Text,
        },
    };
    Value::Scalar(Scalar {
        text: text.to_owned(),
        look,
    })
}

/// RFC 8259 section 6. Anything looser (`08`, `1_000`, `.5`, `0x1f`) stays text, so that an
/// employee number keeps its zeros.
pub(super) fn is_json_number(text: &str) -> bool {
    text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
        && serde_json::from_str::<serde_json::Number>(text).is_ok()
}
