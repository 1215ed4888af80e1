//! Where a policy is wrong, and what to do about it.

use std::borrow::Cow;

use crate::notes::Note;

/// A mistake in a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}{}", place(.pointer), advice(.hint.as_deref()))]
pub struct PolicyError {
    /// JSON pointer (RFC 6901) to the place: relative to the policy for
    /// [`Policy::compile`](crate::Policy::compile), to the route for
    /// [`Policy::for_route`](crate::Policy::for_route).
    pub pointer: String,
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

fn place(pointer: &str) -> String {
    if pointer.is_empty() {
        String::new()
    } else {
        format!("{pointer}: ")
    }
}

fn advice(hint: Option<&str>) -> String {
    hint.map(|hint| format!(" ({hint})")).unwrap_or_default()
}

/// A place in the JSON that is being compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place(String);

impl Place {
    pub(crate) fn root() -> Self {
        Self(String::new())
    }

    #[must_use]
    pub(crate) fn key(&self, key: &str) -> Self {
        let escaped: Cow<'_, str> = if key.contains(['~', '/']) {
            key.replace('~', "~0").replace('/', "~1").into()
        } else {
            key.into()
        };
        Self(format!("{}/{escaped}", self.0))
    }

    #[must_use]
    pub(crate) fn index(&self, index: usize) -> Self {
        Self(format!("{}/{index}", self.0))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What compiling finds beside the policy itself: every mistake, and remarks.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) errors: Vec<PolicyError>,
    pub(crate) notes: Vec<Note>,
}

impl Report {
    pub(crate) fn error(&mut self, place: &Place, message: impl Into<String>) {
        self.push(place, message.into(), None);
    }

    pub(crate) fn error_with_hint(
        &mut self,
        place: &Place,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.push(place, message.into(), Some(hint.into()));
    }

    fn push(&mut self, place: &Place, message: String, hint: Option<String>) {
        self.errors.push(PolicyError {
            pointer: place.as_str().to_owned(),
            message,
            hint,
        });
    }

    pub(crate) fn note(&mut self, place: &Place, message: impl Into<String>) {
        self.notes.push(Note {
            pointer: place.as_str().to_owned(),
            message: message.into(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_escaped() {
        let place = Place::root().index(0).key("claim/a~b").key("is");
        assert_eq!(place.as_str(), "/0/claim~1a~0b/is");
    }

    #[test]
    fn an_error_reads_as_a_sentence() {
        let error = PolicyError {
            pointer: "/0/allow".to_owned(),
            message: "unknown".to_owned(),
            hint: Some("use `or`".to_owned()),
        };
        assert_eq!(error.to_string(), "/0/allow: unknown (use `or`)");
    }
}
