//! What `postern check` says, as findings. Notes and what is exposed by choice are left to it.

use postern_common::config::diagnostic::{Diagnostic, Severity, code};

use super::finding::{Check, Finding, Level};

/// `name` is that of the configuration.
pub fn finding(name: &str, diagnostic: &Diagnostic) -> Option<Finding> {
    let level = match diagnostic.severity {
        Severity::Error => Level::Error,
        Severity::Warning if diagnostic.code != code::EXPOSED => Level::Warning,
        Severity::Warning | Severity::Note => return None,
    };
    Some(Finding {
        level,
        code: Some(diagnostic.code),
        place: diagnostic.place.as_ref().map(ToString::to_string),
        help: diagnostic.help.clone(),
        ..Finding::ok(Check::Configuration, name, &diagnostic.message)
    })
}
