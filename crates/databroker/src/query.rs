//! Filters of `Query`: read from a `Struct`, planned, and held against records. Pure.

use ipnet::IpNet;
use postern_common::rpc::stubs::databroker::Record;
use prost_types::{Struct, Value, value::Kind};

use crate::payload::{Payload, parse_network};
use crate::storage::Lookup;

/// How deep a filter may nest.
const MAX_DEPTH: usize = 16;
/// How many conditions a filter may have.
const MAX_CONDITIONS: usize = 1_000;

/// What a record must fulfil.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    And(Vec<Filter>),
    Or(Vec<Filter>),
    Not(Box<Filter>),
    /// The text at a path; see [`Payload::text_at`]. `id`, `type` and `$index` are the record's own.
    Equals {
        path: String,
        value: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    #[error("{0} in a filter must be a list")]
    NotAList(String),
    #[error("the filter operator {0} is not implemented; = , $and, $or and $not are")]
    Unsupported(String),
    #[error("a filter may have at most {MAX_CONDITIONS} conditions and {MAX_DEPTH} levels")]
    TooBig,
    #[error("no record has a {0} with NUL")]
    Nul(&'static str),
}

const EQUALS: [&str; 5] = ["=", "==", "$eq", "$equals", "$is"];
const UNSUPPORTED: [&str; 16] = [
    "$after",
    "$before",
    "$contains",
    "$doesNotContain",
    "!=",
    "$doesNotEqual",
    "$endsWith",
    ">",
    ">=",
    "<",
    "<=",
    "$isAnyOf",
    "$isEmpty",
    "$isNotEmpty",
    "$onOrAfter",
    "$onOrBefore",
];

impl Filter {
    pub fn read(filter: &Struct) -> Result<Self, FilterError> {
        let mut budget = MAX_CONDITIONS;
        read_object(filter, "", 0, &mut budget)
    }

    /// Ways to find every record that can match, or `None` when all of the kind have to be looked at.
    pub fn lookups(&self, indexable: &[String]) -> Option<Vec<Lookup>> {
        match self {
            // One part that can be looked up is enough; the fewer lookups the better.
            Self::And(parts) => parts
                .iter()
                .filter_map(|part| part.lookups(indexable))
                .min_by_key(Vec::len),
            Self::Or(parts) => {
                let each: Option<Vec<_>> =
                    parts.iter().map(|part| part.lookups(indexable)).collect();
                each.map(|lookups| lookups.concat())
            }
            Self::Not(_) => None,
            Self::Equals { path, value } => match path.as_str() {
                "id" => Some(vec![Lookup::Id(value.clone())]),
                "$index" => Some(
                    parse_network(value)
                        .map(Lookup::Network)
                        .into_iter()
                        .collect(),
                ),
                path if indexable.iter().any(|it| it == path) => Some(vec![Lookup::Field {
                    path: path.to_owned(),
                    value: value.clone(),
                }]),
                _ => None,
            },
        }
    }

    /// Whether an address is looked up in the networks of records.
    pub fn asks_for_network(&self) -> bool {
        match self {
            Self::And(parts) | Self::Or(parts) => parts.iter().any(Self::asks_for_network),
            Self::Not(part) => part.asks_for_network(),
            Self::Equals { path, .. } => path == "$index",
        }
    }

    /// How close a record that matches comes to what was looked up: its id the closest, then the
    /// longer the prefix of its network.
    pub fn closeness(&self, record: &Record, payload: Option<&Payload>) -> Closeness {
        match self {
            Self::And(parts) | Self::Or(parts) => {
                let each = parts.iter().map(|part| part.closeness(record, payload));
                each.max().unwrap_or(Closeness::Any)
            }
            Self::Not(_) => Closeness::Any,
            Self::Equals { path, value } => match path.as_str() {
                "id" if record.id == *value => Closeness::Id,
                "$index" => containing(payload, value).map_or(Closeness::Any, |network| {
                    Closeness::Network(network.prefix_len())
                }),
                _ => Closeness::Any,
            },
        }
    }

    /// `payload` is the record's, if it can be read.
    pub fn matches(&self, record: &Record, payload: Option<&Payload>) -> bool {
        match self {
            Self::And(parts) => parts.iter().all(|part| part.matches(record, payload)),
            Self::Or(parts) => parts.iter().any(|part| part.matches(record, payload)),
            Self::Not(part) => !part.matches(record, payload),
            Self::Equals { path, value } => match path.as_str() {
                "id" => record.id == *value,
                "type" => record.r#type == *value,
                "$index" => containing(payload, value).is_some(),
                path => payload.and_then(|payload| payload.text_at(path)).as_ref() == Some(value),
            },
        }
    }
}

/// See [`Filter::closeness`]; the greatest comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Closeness {
    Any,
    Network(u8),
    Id,
}

/// The network of a record, if it contains the one that is asked for.
fn containing(payload: Option<&Payload>, asked: &str) -> Option<IpNet> {
    let ours = payload.and_then(Payload::network)?;
    parse_network(asked)
        .filter(|asked| ours.contains(asked))
        .map(|_| ours)
}

fn read_object(
    object: &Struct,
    path: &str,
    depth: usize,
    budget: &mut usize,
) -> Result<Filter, FilterError> {
    if depth > MAX_DEPTH {
        return Err(FilterError::TooBig);
    }
    let mut parts = Vec::with_capacity(object.fields.len());
    for (key, value) in &object.fields {
        parts.push(match key.as_str() {
            "$and" => all(Filter::And, read_list(key, value, path, depth, budget)?),
            "$or" => all(Filter::Or, read_list(key, value, path, depth, budget)?),
            "$not" => Filter::Not(Box::new(read_value(value, path, depth + 1, budget)?)),
            key if EQUALS.contains(&key) => read_value(value, path, depth + 1, budget)?,
            key if UNSUPPORTED.contains(&key) => {
                return Err(FilterError::Unsupported(key.to_owned()));
            }
            key if path.is_empty() => read_value(value, key, depth + 1, budget)?,
            key => read_value(value, &format!("{path}.{key}"), depth + 1, budget)?,
        });
    }
    Ok(all(Filter::And, parts))
}

fn read_value(
    value: &Value,
    path: &str,
    depth: usize,
    budget: &mut usize,
) -> Result<Filter, FilterError> {
    *budget = budget.checked_sub(1).ok_or(FilterError::TooBig)?;
    if depth > MAX_DEPTH {
        return Err(FilterError::TooBig);
    }
    let text = match value.kind.as_ref() {
        Some(Kind::StructValue(object)) => return read_object(object, path, depth, budget),
        Some(Kind::ListValue(list)) => {
            let parts = list
                .values
                .iter()
                .map(|value| read_value(value, path, depth + 1, budget));
            return Ok(all(Filter::Or, parts.collect::<Result<_, _>>()?));
        }
        Some(Kind::StringValue(text)) => text.clone(),
        Some(Kind::NumberValue(number)) => number.to_string(),
        Some(Kind::BoolValue(it)) => it.to_string(),
        Some(Kind::NullValue(_)) | None => String::from("null"),
    };
    for name in ["id", "type"] {
        if path == name && text.contains('\0') {
            return Err(FilterError::Nul(name));
        }
    }
    Ok(Filter::Equals {
        path: path.to_owned(),
        value: text,
    })
}

fn read_list(
    key: &str,
    value: &Value,
    path: &str,
    depth: usize,
    budget: &mut usize,
) -> Result<Vec<Filter>, FilterError> {
    let Some(Kind::ListValue(list)) = value.kind.as_ref() else {
        return Err(FilterError::NotAList(key.to_owned()));
    };
    list.values
        .iter()
        .map(|value| read_value(value, path, depth + 1, budget))
        .collect()
}

/// A single part stands for itself.
fn all(join: fn(Vec<Filter>) -> Filter, mut parts: Vec<Filter>) -> Filter {
    if parts.len() == 1 {
        parts.swap_remove(0)
    } else {
        join(parts)
    }
}

#[cfg(test)]
mod tests;
