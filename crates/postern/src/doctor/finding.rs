//! What is found: a line for every edge that works, a cause and a remedy for every one that does not.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Works, but not as meant, or not for long.
    Warning,
    /// Does not work.
    Error,
}

/// What was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Check {
    Configuration,
    Host,
    Listeners,
    Certificates,
    Authorize,
    Databroker,
    Authenticate,
    Routes,
    Upstreams,
    Provider,
    Storage,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Configuration => "configuration",
            Self::Host => "host",
            Self::Listeners => "listeners",
            Self::Certificates => "certificates",
            Self::Authorize => "authorize",
            Self::Databroker => "databroker",
            Self::Authenticate => "authenticate",
            Self::Routes => "routes",
            Self::Upstreams => "upstreams",
            Self::Provider => "provider",
            Self::Storage => "storage",
        })
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: Check,
    pub level: Level,
    /// One of [`super::code`], or of what `postern check` says; none where all is well.
    pub code: Option<&'static str>,
    /// Whom or what it is about: an address, a host, a certificate.
    pub subject: String,
    pub message: String,
    /// The key that it follows from.
    pub key: Option<Cow<'static, str>>,
    /// Where that key stands.
    pub place: Option<String>,
    /// What to do.
    pub help: Option<String>,
}

impl Finding {
    pub fn ok(check: Check, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Ok,
            code: None,
            subject: subject.into(),
            message: message.into(),
            key: None,
            place: None,
            help: None,
        }
    }

    pub fn new(level: Level, check: Check, subject: impl Into<String>, cause: Cause) -> Self {
        Self {
            level,
            code: Some(cause.code),
            help: cause.help.map(Cow::into_owned),
            ..Self::ok(check, subject, cause.message)
        }
    }

    pub fn error(check: Check, subject: impl Into<String>, cause: Cause) -> Self {
        Self::new(Level::Error, check, subject, cause)
    }

    pub fn warning(check: Check, subject: impl Into<String>, cause: Cause) -> Self {
        Self::new(Level::Warning, check, subject, cause)
    }

    /// It follows from this key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Cow<'static, str>>) -> Self {
        self.key = Some(key.into());
        self
    }
}

/// Why something does not work, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// One of [`super::code`].
    pub code: &'static str,
    pub message: String,
    pub help: Option<Cow<'static, str>>,
}

impl Cause {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            help: None,
        }
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<Cow<'static, str>>) -> Self {
        self.help = Some(help.into());
        self
    }
}
