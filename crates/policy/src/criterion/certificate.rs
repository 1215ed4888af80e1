//! `client_certificate`, `invalid_client_certificate`: what the client showed in the handshake.

use std::fmt;

use serde_json::Value;

use crate::error::{Place, Report};
use crate::input::{Certificate, ClientCertificate, Input};
use crate::matcher::operand;
use crate::matcher::string::{Case, StringMatcher};
use crate::reason::Reason;
use crate::syntax::kind;
use crate::truth::{Finding, Truth};

/// Conditions that a client's leaf certificate must all meet. Whether it is trusted is another
/// criterion.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CertificateCriterion {
    /// Never empty.
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq)]
enum Condition {
    /// One of these, in lower-case hex.
    Fingerprint(Box<[Box<str>]>),
    /// One of these, in base64.
    SpkiHash(Box<[Box<str>]>),
    /// A name of this kind that matches.
    San(SanKind, StringMatcher),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SanKind {
    Dns,
    Email,
    Uri,
}

impl SanKind {
    const fn names(self, leaf: Certificate<'_>) -> &[String] {
        match self {
            Self::Dns => leaf.san_dns,
            Self::Email => leaf.san_email,
            Self::Uri => leaf.san_uri,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "DNS name",
            Self::Email => "e-mail address",
            Self::Uri => "URI",
        }
    }
}

const NAMES: [&str; 5] = [
    "fingerprint",
    "san_dns",
    "san_email",
    "san_uri",
    "spki_hash",
];

impl CertificateCriterion {
    pub(crate) fn compile(data: &Value, place: &Place, report: &mut Report) -> Option<Self> {
        let Value::Object(members) = data else {
            report.error_with_hint(
                place,
                format!(
                    "`client_certificate` takes an object, this is {}",
                    kind(data)
                ),
                format!("known: {}", NAMES.join(", ")),
            );
            return None;
        };
        if members.is_empty() {
            report.error_with_hint(
                place,
                "the object is empty, so any certificate would match, trusted or not",
                format!("known: {}", NAMES.join(", ")),
            );
            return None;
        }
        let conditions: Vec<_> = members
            .iter()
            .filter_map(|(name, data)| Condition::compile(name, data, &place.key(name), report))
            .collect();
        (conditions.len() == members.len()).then_some(Self { conditions })
    }

    pub(crate) fn evaluate(&self, input: &Input<'_>) -> Finding {
        let holds = input.client_certificate.presented().is_some_and(|leaf| {
            self.conditions
                .iter()
                .all(|condition| condition.holds(leaf))
        });
        Finding::new(
            holds,
            Reason::ClientCertificateOk,
            Reason::ClientCertificateUnauthorized,
        )
    }
}

impl Condition {
    fn compile(name: &str, data: &Value, place: &Place, report: &mut Report) -> Option<Self> {
        let san = |kind, report: &mut Report| {
            StringMatcher::compile(data, Case::Sensitive, place, report)
                .map(|matcher| Self::San(kind, matcher))
        };
        match name {
            "fingerprint" => {
                hashes(data, place, report, fingerprint, FINGERPRINT).map(Self::Fingerprint)
            }
            "spki_hash" => hashes(data, place, report, spki_hash, SPKI_HASH).map(Self::SpkiHash),
            "san_dns" => san(SanKind::Dns, report),
            "san_email" => san(SanKind::Email, report),
            "san_uri" => san(SanKind::Uri, report),
            _ => {
                report.push_unknown(place, "certificate condition", name, NAMES);
                None
            }
        }
    }

    fn holds(&self, leaf: Certificate<'_>) -> bool {
        match self {
            Self::Fingerprint(known) => known.iter().any(|hash| **hash == *leaf.fingerprint),
            Self::SpkiHash(known) => known.iter().any(|hash| **hash == *leaf.spki_hash),
            Self::San(kind, matcher) => kind.names(leaf).iter().any(|name| matcher.matches(name)),
        }
    }
}

const FINGERPRINT: &str = "a SHA-256 fingerprint: 64 hex digits, or 32 pairs with colons between";
const SPKI_HASH: &str = "the base64 of a SHA-256 hash: 44 characters with `=` at the end";

fn hashes(
    data: &Value,
    place: &Place,
    report: &mut Report,
    parse: impl Fn(&str) -> Option<Box<str>>,
    expected: &str,
) -> Option<Box<[Box<str>]>> {
    let wrong = report.errors.len();
    let mut hashes = Vec::new();
    for (text, place) in operand::one_or_more(data, place, report) {
        match parse(text) {
            Some(hash) => hashes.push(hash),
            None => report.error(&place, format!("`{text}` is not {expected}")),
        }
    }
    (report.errors.len() == wrong).then(|| hashes.into())
}

/// Both of openssl's forms, in lower case without colons.
fn fingerprint(text: &str) -> Option<Box<str>> {
    let pairs: Vec<&str> = if text.contains(':') {
        let pairs: Vec<&str> = text.split(':').collect();
        if pairs.iter().any(|pair| pair.len() != 2) {
            return None;
        }
        pairs
    } else {
        vec![text]
    };
    let digits = pairs.concat();
    let is_hash = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hash.then(|| digits.to_ascii_lowercase().into())
}

/// 32 bytes in standard base64: 43 digits, of which the last carries four bits, and one `=`.
fn spki_hash(text: &str) -> Option<Box<str>> {
    let digits = text.strip_suffix('=')?;
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    let last_has_four_bits = digits.ends_with([
        'A', 'E', 'I', 'M', 'Q', 'U', 'Y', 'c', 'g', 'k', 'o', 's', 'w', '0', '4', '8',
    ]);
    (digits.len() == 43 && digits.bytes().all(is_digit) && last_has_four_bits).then(|| text.into())
}

/// No certificate although one is asked for, or one that is not in order.
pub(crate) fn invalid(input: &Input<'_>) -> Finding {
    let (truth, reason) = match input.client_certificate {
        ClientCertificate::Missing => (Truth::True, Reason::ClientCertificateRequired),
        ClientCertificate::Invalid(_) => (Truth::True, Reason::InvalidClientCertificate),
        ClientCertificate::Valid(_) | ClientCertificate::NotAsked(_) => {
            (Truth::False, Reason::ValidClientCertificate)
        }
    };
    Finding { truth, reason }
}

pub(crate) fn met(input: &Input<'_>) -> String {
    let state = match input.client_certificate {
        ClientCertificate::NotAsked(None) => {
            return "no certificate, and none is asked for".to_owned();
        }
        ClientCertificate::Missing => return "no certificate".to_owned(),
        ClientCertificate::NotAsked(Some(_)) => "not verified, as no client CA is configured",
        ClientCertificate::Valid(_) => "valid",
        ClientCertificate::Invalid(_) => "invalid",
    };
    match input.client_certificate.presented() {
        Some(leaf) => format!(
            "certificate {} ({state}), key {}, names: {}",
            leaf.fingerprint,
            leaf.spki_hash,
            [leaf.san_dns, leaf.san_email, leaf.san_uri]
                .concat()
                .join(", "),
        ),
        None => state.to_owned(),
    }
}

impl fmt::Display for CertificateCriterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("client certificate with ")?;
        for (index, condition) in self.conditions.iter().enumerate() {
            if index > 0 {
                f.write_str(" and ")?;
            }
            match condition {
                Condition::Fingerprint(known) => {
                    write!(f, "fingerprint {}", known.join(" or "))?;
                }
                Condition::SpkiHash(known) => write!(f, "key hash {}", known.join(" or "))?,
                Condition::San(kind, matcher) => {
                    write!(f, "a {} that {matcher}", kind.as_str())?;
                }
            }
        }
        Ok(())
    }
}
