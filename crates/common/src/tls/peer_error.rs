//! Why a peer's certificate was refused, in words that say what to do.

use std::error::Error;
use std::fmt;

use jiff::Timestamp;
use rustls::CertificateError;
use rustls::pki_types::UnixTime;

/// The reason that a certificate was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerError {
    /// Its chain does not end at somebody we trust.
    UnknownIssuer,
    /// It is too old.
    Expired {
        /// Its end, where known.
        on: Option<Timestamp>,
    },
    /// It is not valid yet; or our clock is wrong.
    NotYetValid {
        /// Its beginning, where known.
        from: Option<Timestamp>,
    },
    /// It was issued for other names.
    WrongName {
        /// The name we asked for.
        expected: String,
        /// The names it has.
        presented: Vec<String>,
    },
    /// It was revoked.
    Revoked,
    /// Anything else.
    Other(String),
}

impl PeerError {
    /// Finds the reason in an error's chain; `None` when the error is about something else.
    pub fn find(error: &(dyn Error + 'static)) -> Option<Self> {
        causes(error).find_map(|cause| match cause.downcast_ref() {
            Some(rustls::Error::InvalidCertificate(cause)) => Some(Self::of(cause)),
            _ => None,
        })
    }

    fn of(cause: &CertificateError) -> Self {
        match cause {
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            CertificateError::Expired => Self::Expired { on: None },
            CertificateError::ExpiredContext { not_after, .. } => Self::Expired {
                on: time(*not_after),
            },
            CertificateError::NotValidYet => Self::NotYetValid { from: None },
            CertificateError::NotValidYetContext { not_before, .. } => Self::NotYetValid {
                from: time(*not_before),
            },
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => Self::WrongName {
                expected: expected.to_str().into_owned(),
                presented: presented.iter().map(|name| plain(name)).collect(),
            },
            CertificateError::Revoked => Self::Revoked,
            other => Self::Other(other.to_string()),
        }
    }

    /// The whole sentence, with where our trust comes from (see [`super::Trust::told`]).
    pub fn explain(&self, trust: &str) -> String {
        match self {
            Self::UnknownIssuer => format!("unknown issuer: not signed by {trust}"),
            other => other.to_string(),
        }
    }
}

/// Whether TLS failed because the peer answered with something else.
pub fn is_clear_text(error: &(dyn Error + 'static)) -> bool {
    causes(error)
        .any(|cause| matches!(cause.downcast_ref(), Some(rustls::Error::InvalidMessage(_))))
}

/// An error and what is behind it.
pub fn causes<'e>(
    error: &'e (dyn Error + 'static),
) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| behind(*error))
}

fn behind<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e (dyn Error + 'static)> {
    // An io::Error hides the error inside of it from `source`.
    let hidden = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    match hidden {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

fn time(time: UnixTime) -> Option<Timestamp> {
    Timestamp::from_second(i64::try_from(time.as_secs()).ok()?).ok()
}

/// webpki tells names as `DnsName("a.test")` and `IpAddress(127.0.0.1)`.
fn plain(name: &str) -> String {
    let inner = name
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"').to_owned()
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownIssuer => f.write_str("unknown issuer"),
            Self::Expired { on: Some(on) } => write!(f, "expired on {on}"),
            Self::Expired { on: None } => f.write_str("expired"),
            Self::NotYetValid { from: Some(from) } => write!(f, "not valid before {from}"),
            Self::NotYetValid { from: None } => f.write_str("not valid yet"),
            Self::WrongName {
                expected,
                presented,
            } if presented.is_empty() => {
                write!(
                    f,
                    "name {expected} is not in the certificate, which has no names"
                )
            }
            Self::WrongName {
                expected,
                presented,
            } => {
                write!(f, "name {expected} not among {}", presented.join(", "))
            }
            Self::Revoked => f.write_str("revoked"),
            Self::Other(reason) => f.write_str(reason),
        }
    }
}

impl Error for PeerError {}
