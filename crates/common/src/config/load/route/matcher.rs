//! `prefix`, `path`, `regex`

use super::super::super::diagnostic::{Diagnostic, code};
use super::super::super::options::PathNormalization;
use super::super::super::place::At;
use super::super::super::route::{FromScheme, PathMatcher, RouteFrom};
use super::super::reader::{Load, Section};
use super::whole_match;
use crate::route::normalize_path;

/// At most one is used, in Pomerium's order: regex, path, prefix.
pub fn matcher(
    load: &mut Load<'_>,
    section: Section<'_>,
    from: Option<&RouteFrom>,
    rules: PathNormalization,
) -> Option<PathMatcher> {
    let regex = section.text(load, "regex");
    let path = section.text(load, "path");
    let prefix = section.text(load, "prefix");
    let given: Vec<(&str, &At<String>)> = [("regex", &regex), ("path", &path), ("prefix", &prefix)]
        .into_iter()
        .filter_map(|(name, value)| value.as_ref().map(|value| (name, value)))
        .collect();
    let tcp = from.is_some_and(|from| matches!(from.scheme, FromScheme::Tcp { .. }));
    if let Some((name, value)) = given.first().filter(|_| tcp) {
        load.say(
            Diagnostic::warning(
                code::CONFLICT,
                format!("`{name}` has no effect on a TCP route"),
            )
            .at(&value.place),
        );
        return Some(PathMatcher::Any);
    }
    if let [(used, _), rest @ ..] = given.as_slice() {
        for (name, value) in rest {
            load.say(
                Diagnostic::warning(
                    code::CONFLICT,
                    format!("`{name}` has no effect, as `{used}` is set too"),
                )
                .at(&value.place),
            );
        }
    }
    if let Some(regex) = regex {
        return whole_match(load, "regex", &regex).map(PathMatcher::Regex);
    }
    if let Some(path) = path {
        return normal(load, "path", &path, rules).map(PathMatcher::Exact);
    }
    match prefix {
        Some(prefix) => {
            normal(load, "prefix", &prefix, rules).map(|prefix| match prefix.as_str() {
                "/" => PathMatcher::Any,
                _ => PathMatcher::Prefix(prefix),
            })
        }
        None => Some(PathMatcher::Any),
    }
}

/// Requests are compared in normal form, so what they are compared with must have it as well.
fn normal(
    load: &mut Load<'_>,
    name: &str,
    text: &At<String>,
    rules: PathNormalization,
) -> Option<String> {
    match normalize_path(&text.value, rules) {
        Ok(path) => Some(path.into_owned()),
        Err(error) => {
            load.say(
                Diagnostic::error(code::INVALID_VALUE, format!("`{name}` can never match: {error}"))
                    .at(&text.place)
                    .help("paths begin with a slash, and are compared after dot segments and needless escapes are gone"),
            );
            None
        }
    }
}
