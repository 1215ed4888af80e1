//! Where a value was written.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// A text that configuration was read from, kept for messages.
pub struct SourceText {
    /// Path as given, or what an environment variable held.
    name: String,
    text: String,
    /// Byte ranges of secrets. Not set until the text has been understood.
    masks: OnceLock<Vec<Range<usize>>>,
    /// Where lines start, once somebody has asked for one.
    lines: OnceLock<Vec<usize>>,
}

impl SourceText {
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            text: text.into(),
            masks: OnceLock::new(),
            lines: OnceLock::new(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// Tells which parts must never be shown. Only the first call counts.
    pub(super) fn mask(&self, ranges: Vec<Range<usize>>) {
        // A second mask could only come from reading the same text twice, with the same result.
        let _ = self.masks.set(ranges);
    }

    pub(super) fn is_understood(&self) -> bool {
        self.masks.get().is_some()
    }

    /// Line and column of a byte, both from 1; columns count characters.
    pub fn line_and_column(&self, byte: usize) -> (usize, usize) {
        let before = self.text.get(..byte).unwrap_or(&self.text);
        let lines = self.lines.get_or_init(|| {
            let ends = self.text.match_indices('\n').map(|(end, _)| end + 1);
            std::iter::once(0).chain(ends).collect()
        });
        let line = lines.partition_point(|start| *start <= before.len());
        let start = line.checked_sub(1).and_then(|line| lines.get(line));
        let column = before.get(*start.unwrap_or(&0)..).unwrap_or_default();
        (line, column.chars().count() + 1)
    }

    /// The line that holds `byte`, without its end, and where it starts.
    pub(super) fn line(&self, byte: usize) -> (usize, &str) {
        let before = self.text.get(..byte).unwrap_or(&self.text);
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let rest = self.text.get(start..).unwrap_or_default();
        (start, rest.lines().next().unwrap_or_default())
    }

    /// Whether a byte belongs to a secret.
    pub(super) fn is_masked(&self, byte: usize) -> bool {
        let masks = self.masks.get().map(Vec::as_slice).unwrap_or_default();
        masks.iter().any(|range| range.contains(&byte))
    }
}

impl fmt::Debug for SourceText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceText")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Where a value stands.
#[derive(Debug, Clone)]
pub enum Place {
    Text {
        source: Arc<SourceText>,
        span: Range<usize>,
    },
    /// An environment variable.
    Variable(Arc<str>),
    /// A whole file.
    File(Arc<Path>),
}

impl Place {
    pub fn file(path: &Path) -> Self {
        Self::File(path.into())
    }
}

/// `config.yaml:3:7`, or `environment variable ADDRESS`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text { source, span } => {
                let (line, column) = source.line_and_column(span.start);
                write!(f, "{}:{line}:{column}", source.name())
            }
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub struct At<T> {
    pub value: T,
    pub place: Place,
}

impl<T> At<T> {
    pub fn new(value: T, place: Place) -> Self {
        Self { value, place }
    }
}
