//! What there is to say about a configuration: errors, warnings and notes, each with its place.

use std::fmt;

use super::place::{Place, SourceText};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing to do.
    Note,
    /// Works, but probably not as meant. `check --strict` refuses it.
    Warning,
    /// This configuration is not used.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Stable names of the kinds of diagnostics, for scripts and for searching.
pub mod code {
    pub const SYNTAX: &str = "syntax";
    pub const DUPLICATE_KEY: &str = "duplicate-key";
    pub const UNKNOWN_KEY: &str = "unknown-key";
    pub const REMOVED_KEY: &str = "removed-key";
    pub const UNSUPPORTED: &str = "not-supported-yet";
    pub const IGNORED: &str = "ignored";
    pub const WRONG_TYPE: &str = "wrong-type";
    pub const INVALID_VALUE: &str = "invalid-value";
    pub const MISSING_KEY: &str = "missing-key";
    pub const CONFLICT: &str = "conflict";
    pub const FILE: &str = "unreadable-file";
    pub const SECRET: &str = "bad-secret";
    pub const PUBLIC_SECRET: &str = "public-secret";
    pub const RANDOM_SECRET: &str = "random-secret";
    pub const CERTIFICATE: &str = "bad-certificate";
    pub const SELF_SIGNED: &str = "self-signed-certificate";
    pub const POLICY: &str = "bad-policy";
    pub const SHADOWED: &str = "shadowed-route";
    pub const DIFFERENCE: &str = "differs-from-pomerium";
    pub const INSECURE: &str = "insecure";
    /// More hosts or people than one may think get to see something, by choice.
    pub const EXPOSED: &str = "exposed";
}

/// One thing to say.
#[derive(Debug, Clone)]
pub struct Diagnostic {
    pub severity: Severity,
    /// One of [`code`].
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    pub place: Option<Place>,
    /// What to do.
    pub help: Option<String>,
}

impl Diagnostic {
    pub fn new(severity: Severity, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity,
            code,
            message: message.into(),
            place: None,
            help: None,
        }
    }

    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, message)
    }

    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, code, message)
    }

    pub fn note(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Note, code, message)
    }

    #[must_use]
    pub fn at(mut self, place: &Place) -> Self {
        self.place = Some(place.clone());
        self
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// In one line, for logs.
    pub fn one_line(&self) -> String {
        let mut text = match &self.place {
            Some(place) => format!("config: {}: {place}: {}", self.severity, self.message),
            None => format!("config: {}: {}", self.severity, self.message),
        };
        if let Some(help) = &self.help {
            text.push_str("; ");
            text.push_str(help);
        }
        text
    }
}

/// As a compiler shows it: message, place, excerpt with a caret, help.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}[{}]: {}", self.severity, self.code, self.message)?;
        let mut margin = String::from("  ");
        if let Some(place) = &self.place {
            if let Place::Text { source, span } = place {
                let number = source.line_and_column(span.start).0.to_string();
                margin = " ".repeat(number.len() + 1);
                writeln!(f, "{}--> {place}", " ".repeat(number.len()))?;
                let excerpt = Excerpt::new(source, span.start, span.end);
                writeln!(f, "{margin}|")?;
                writeln!(f, "{number} | {}", excerpt.line)?;
                writeln!(
                    f,
                    "{margin}| {}{}",
                    " ".repeat(excerpt.indent),
                    "^".repeat(excerpt.width)
                )?;
            } else {
                writeln!(f, " --> {place}")?;
            }
        }
        if let Some(help) = &self.help {
            writeln!(f, "{margin}= help: {help}")?;
        }
        Ok(())
    }
}

/// A line as it may be shown: secrets replaced by one `…`.
struct Excerpt {
    line: String,
    indent: usize,
    width: usize,
}

/// Longer lines are cut.
const MAX_WIDTH: usize = 120;

impl Excerpt {
    fn new(source: &SourceText, start: usize, end: usize) -> Self {
        let (line_start, text) = source.line(start);
        let mut line = String::new();
        let (mut indent, mut width) = (0, 0);
        let (mut hidden, mut columns) = (false, 0);
        for (offset, c) in text.char_indices() {
            let byte = line_start + offset;
            let masked = if source.is_understood() {
                source.is_masked(byte)
            } else {
                !may_show_unparsed(text, offset)
            };
            let shown = match (masked, hidden) {
                (true, true) => None,
                (true, false) => Some('…'),
                (false, _) => Some(if c == '\t' { ' ' } else { c }),
            };
            hidden = masked;
            let Some(shown) = shown else { continue };
            if columns == MAX_WIDTH {
                line.push('…');
                break;
            }
            line.push(shown);
            columns += 1;
            if byte < start {
                indent += 1;
            } else if byte < end {
                width += 1;
            }
        }
        Self {
            line: line.trim_end().to_owned(),
            indent,
            width: width.max(1),
        }
    }
}

/// A text that could not be parsed has no known secrets. Of its lines only what stands before the
/// first value is shown, unless the key is known to be harmless.
fn may_show_unparsed(line: &str, offset: usize) -> bool {
    let Some((key, value)) = line.split_once(':') else {
        // No key: the inside of something, maybe of a key in PEM. List items are shown.
        return line
            .trim_start()
            .starts_with(['-', '[', ']', '{', '}', '#'])
            && !line.contains("-----");
    };
    if offset <= key.len() {
        return true;
    }
    let name = key
        .trim_start_matches([' ', '\t', '-', '{', '"'])
        .trim_end_matches(['"', ' ']);
    // A flow map holds more than the first key, and a URL may hold a password.
    let telling = [
        "secret",
        "key",
        "token",
        "password",
        "authorization",
        "@",
        "-----",
    ];
    let value = value.to_ascii_lowercase();
    super::keys::find_anywhere(name).is_some_and(|key| !key.kind.is_secret())
        && !telling.iter().any(|word| value.contains(word))
}

/// Messages quote what was written; a user name and password in a URL are not quoted.
fn without_credentials(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        let end = after
            .find(|c: char| c.is_whitespace() || "/`'\"".contains(c))
            .unwrap_or(after.len());
        let (authority, next) = after.split_at(end);
        let shown = authority
            .rsplit_once('@')
            .map_or(authority.to_owned(), |(_, host)| format!("…@{host}"));
        out.push_str(before);
        out.push_str("://");
        out.push_str(&shown);
        rest = next;
    }
    out.push_str(rest);
    out
}

/// Everything there is to say about one configuration.
#[derive(Debug, Clone, Default)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    pub fn push(&mut self, mut diagnostic: Diagnostic) {
        diagnostic.message = without_credentials(&diagnostic.message);
        diagnostic.help = diagnostic.help.as_deref().map(without_credentials);
        self.0.push(diagnostic);
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    pub fn count(&self, severity: Severity) -> usize {
        self.iter().filter(|d| d.severity == severity).count()
    }

    /// As `check --strict` sees them: every warning is an error, except of what somebody chose to
    /// expose.
    #[must_use]
    pub fn strict(mut self) -> Self {
        for diagnostic in &mut self.0 {
            if diagnostic.severity == Severity::Warning && diagnostic.code != code::EXPOSED {
                diagnostic.severity = Severity::Error;
            }
        }
        self
    }

    /// In the order of the text, the environment last, what has no place first.
    pub fn sort(&mut self) {
        self.0.sort_by_key(|diagnostic| match &diagnostic.place {
            None => (0, String::new(), 0),
            Some(Place::Text { source, span }) => (1, source.name().to_owned(), span.start),
            Some(Place::File(path)) => (2, path.display().to_string(), 0),
            Some(Place::Variable(name)) => (3, name.to_string(), 0),
        });
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{diagnostic}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s16_credentials_in_urls_are_not_quoted() {
        let mut diagnostics = Diagnostics::default();
        diagnostics.push(Diagnostic::error(
            code::INVALID_VALUE,
            "`a://u:p@h/x` and b://u@h:1, not https://h/a@b",
        ));
        assert!(
            diagnostics
                .to_string()
                .contains("`a://…@h/x` and b://…@h:1, not https://h/a@b")
        );
    }

    #[test]
    fn looks_like_a_compilers() {
        let source = SourceText::new("config.yaml", "a: 1\nidle_timout: 5m\n");
        source.mask(Vec::new());
        let place = Place::Text {
            source,
            span: 5..16,
        };
        let text = Diagnostic::error(code::UNKNOWN_KEY, "`idle_timout` is not a key")
            .at(&place)
            .help("did you mean `idle_timeout`?")
            .to_string();
        assert_eq!(
            text,
            "error[unknown-key]: `idle_timout` is not a key\n --> config.yaml:2:1\n  |\n2 | idle_timout: 5m\n  | ^^^^^^^^^^^\n  = help: did you mean `idle_timeout`?\n"
        );
    }

    #[test]
    fn s16_secrets_are_not_shown() {
        let text = "shared_secret: hunter2 # x\n";
        let source = SourceText::new("c.yaml", text);
        source.mask(std::iter::once(15..22).collect());
        let place = Place::Text {
            source,
            span: 15..22,
        };
        let shown = Diagnostic::error(code::SECRET, "too short")
            .at(&place)
            .to_string();
        assert!(
            shown.contains("1 | shared_secret: … # x\n  |                ^\n"),
            "{shown}"
        );

        for line in [
            "shared_secrt: hunter2]",
            "shared_secret: hunter2]",
            "  hunter2AAA",
            "- cookie_secret: hunter2",
            "{address: ':1', shared_secret: hunter2}",
            "idp_provider_url: https://u:hunter2@h",
        ] {
            let place = Place::Text {
                source: SourceText::new("c.yaml", line),
                span: 3..4,
            };
            let shown = Diagnostic::error(code::SYNTAX, "bad")
                .at(&place)
                .to_string();
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        let place = Place::Text {
            source: SourceText::new("c.yaml", "address: [:443"),
            span: 9..10,
        };
        assert!(
            Diagnostic::error(code::SYNTAX, "bad")
                .at(&place)
                .to_string()
                .contains("[:443")
        );
    }
}
