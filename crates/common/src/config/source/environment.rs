//! The environment over the file.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Map, Node, Value, yaml};
use crate::config::diagnostic::{Diagnostic, Diagnostics, code};
use crate::config::keys::{GLOBAL, Key, Kind};
use crate::config::place::{At, Place, SourceText};

/// Environment variables, as they were when somebody looked.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl std::fmt::Debug for Environment {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Environment {
    /// That of this process. Names or values that are no UTF-8 can't be ours.
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// An empty variable counts as unset.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(
            variables
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }
}

/// Puts what the environment says over what the file says.
pub fn overlay(root: &mut Map, environment: &Environment, diagnostics: &mut Diagnostics) {
    for key in GLOBAL {
        let variable = key.variable();
        if let Some(text) = environment.get(&variable)
            && let Some(node) = read(key, &variable, text, diagnostics)
        {
            root.set(key.name, node);
        }
        let Kind::Object(nested) = key.kind else {
            continue;
        };
        for inner in nested {
            let variable = format!("{variable}_{}", inner.variable());
            let Some(text) = environment.get(&variable) else {
                continue;
            };
            let place = Place::Variable(variable.as_str().into());
            let Some(node) = read(inner, &variable, text, diagnostics) else {
                continue;
            };
            if let Some(map) = root.child(key.name, &place) {
                map.set(inner.name, node);
            }
        }
    }
}

fn read(key: &Key, variable: &str, text: &str, diagnostics: &mut Diagnostics) -> Option<Node> {
    let place = Place::Variable(variable.into());
    let list = |text: &str| {
        let items = text
            .split(',')
            .map(|item| Node::text(item, place.clone()))
            .collect();
        Node {
            value: Value::List(items),
            place: place.clone(),
        }
    };
    match key.kind {
        // A list of claims, by commas or blanks.
        _ if key.name == "jwt_claims_headers" && !text.trim_start().starts_with('{') => {
            let claims = text.split([',', ' ']).filter(|claim| !claim.is_empty());
            Some(list(&claims.collect::<Vec<_>>().join(",")))
        }
        Kind::List if !text.trim_start().starts_with('[') => Some(list(text)),
        // OpenTelemetry's own form, whose values are percent-encoded: read where the list in a file is.
        Kind::SecretMap if key.name.starts_with("otel_") && !text.trim_start().starts_with('{') => {
            Some(list(text))
        }
        Kind::Map | Kind::SecretMap if !text.trim_start().starts_with('{') => {
            Some(pairs(text, &place, diagnostics)?)
        }
        Kind::List
        | Kind::Map
        | Kind::SecretMap
        | Kind::Object(_)
        | Kind::Objects(_)
        | Kind::Any
        | Kind::Policy => structure(variable, text, key.kind.is_secret(), diagnostics),
        Kind::Routes => {
            // `base64` breaks its lines.
            let packed: String = text.split_whitespace().collect();
            let Some(yaml) = STANDARD
                .decode(packed)
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
            else {
                diagnostics.push(
                    Diagnostic::error(code::INVALID_VALUE, format!("{variable} is not base64 of YAML"))
                        .at(&place)
                        .help(format!("set it to the output of `base64 -w0 routes.yaml`, or put `{}` into the file", key.name)),
                );
                return None;
            };
            structure(variable, &yaml, false, diagnostics)
        }
        _ => Some(Node::text(text, place)),
    }
}

/// JSON or YAML in a variable. Its text gets a name of its own, so that messages can point into it.
fn structure(
    variable: &str,
    text: &str,
    secret: bool,
    diagnostics: &mut Diagnostics,
) -> Option<Node> {
    let source = SourceText::new(format!("${variable}"), text);
    if secret {
        source.mask(std::iter::once(0..text.len()).collect());
    }
    yaml::parse(&source, diagnostics)
}

/// `K:V,K2:V2`, or with `=`.
fn pairs(text: &str, place: &Place, diagnostics: &mut Diagnostics) -> Option<Node> {
    let mut map = Map::default();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        let Some((name, value)) = pair.split_once([':', '=']) else {
            diagnostics.push(
                Diagnostic::error(
                    code::INVALID_VALUE,
                    "expected a JSON object, or pairs such as `Name:value,Other:value`",
                )
                .at(place),
            );
            return None;
        };
        map.entries.push((
            At::new(name.trim().to_owned(), place.clone()),
            Node::text(value.trim(), place.clone()),
        ));
    }
    Some(Node {
        value: Value::Map(map),
        place: place.clone(),
    })
}
