//! Where in a trace something happens, as W3C Trace Context writes it, and which traces are kept. Pure.

use std::fmt;

use hmac::{Hmac, Mac as _};
use http::{HeaderMap, HeaderValue};
use sha2::Sha256;

use super::TRACEPARENT;

/// The bit of `traceparent` that says that spans are kept.
const SAMPLED: u8 = 1;

/// A span, and the trace that it is part of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub(super) trace: [u8; 16],
    pub(super) span: [u8; 8],
    /// Whether its spans are kept.
    pub(super) kept: bool,
}

impl Place {
    /// Reads a `traceparent`. Later versions have the same beginning.
    pub fn parse(text: &str) -> Option<Self> {
        let (front, rest) = text.split_at_checked(55)?;
        let mut parts = front.split('-');
        let version: [u8; 1] = bytes(parts.next()?)?;
        let trace: [u8; 16] = bytes(parts.next()?)?;
        let span: [u8; 8] = bytes(parts.next()?)?;
        let flags: [u8; 1] = bytes(parts.next()?)?;
        let whole = match version {
            [0] => rest.is_empty(),
            [0xff] => false,
            _ => rest.is_empty() || rest.starts_with('-'),
        };
        let [flags] = flags;
        (whole && parts.next().is_none() && trace != [0; 16] && span != [0; 8]).then_some(Self {
            trace,
            span,
            kept: flags & SAMPLED != 0,
        })
    }

    /// Where the sender of a request stands. Two `traceparent`s say nothing.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut sent = headers.get_all(TRACEPARENT).iter();
        match (sent.next(), sent.next()) {
            (Some(one), None) => Self::parse(one.to_str().ok()?),
            _ => None,
        }
    }

    /// For the next one on the way.
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::try_from(self.to_string()).ok()
    }

    /// This place, if its spans are kept.
    pub fn if_kept(self) -> Option<Self> {
        self.kept.then_some(self)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{}-{}-{:02x}",
            hex::encode(self.trace),
            hex::encode(self.span),
            u8::from(self.kept)
        )
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Lower case only, by the specification.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
    (lower && hex::decode_to_slice(text, &mut out).is_ok()).then_some(out)
}

/// Which traces are kept.
///
/// Whoever knows the shared secret comes to the same result about a trace, so proxy and authenticate
/// agree without having to believe what a request says. Who does not know it cannot make an id that
/// is kept.
pub(super) struct Sampler {
    pub ratio: f64,
    pub key: [u8; 32],
}

impl Sampler {
    /// The place of a request that comes from outside, and the span that its sender names. The sender
    /// chooses the trace, and may ask not to be traced; that it asks to be is not enough.
    pub(super) fn admit(
        &self,
        asked: Option<Place>,
        trace: [u8; 16],
        span: [u8; 8],
    ) -> (Place, Option<[u8; 8]>) {
        let trace = asked.map_or(trace, |asked| asked.trace);
        let wanted = asked.is_none_or(|asked| asked.kept);
        let kept = wanted && self.keeps(&trace);
        (Place { trace, span, kept }, asked.map(|asked| asked.span))
    }

    fn keeps(&self, trace: &[u8; 16]) -> bool {
        if self.ratio >= 1.0 || self.ratio <= 0.0 {
            return self.ratio >= 1.0;
        }
        // A key of any length is taken.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.key) else {
            return false;
        };
        mac.update(b"postern trace");
        mac.update(trace);
        let number = mac.finalize().into_bytes();
        let number = number.first_chunk().copied().map(u32::from_be_bytes);
        number.is_some_and(|number| f64::from(number) < self.ratio * 2_f64.powi(32))
    }
}

impl fmt::Debug for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sampler({})", self.ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn traceparents_are_read_as_w3c_writes_them() {
        let place = Place::parse(TEXT).unwrap();
        assert!(place.kept);
        assert_eq!(place.to_string(), TEXT);
        let not_kept = format!("{}0", &TEXT[..54]);
        assert_eq!(Place::parse(&not_kept).unwrap().to_string(), not_kept);
        // A later version may say more.
        for good in [
            format!("01{}", &TEXT[2..]),
            format!("cc{}-more", &TEXT[2..]),
        ] {
            assert_eq!(Place::parse(&good), Some(place), "{good}");
        }
        for bad in [
            String::new(),
            TEXT[..54].to_owned(),
            TEXT.to_uppercase(),
            format!("{TEXT}-more"),
            format!("{TEXT} "),
            format!("ff{}", &TEXT[2..]),
            format!("cc{}more", &TEXT[2..]),
            TEXT.replace('-', "_"),
            TEXT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            TEXT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            TEXT.replace("00f067aa0ba902b7", "00f067aa0ba902bx"),
            format!("é{}", &TEXT[2..]),
        ] {
            assert_eq!(Place::parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn clients_choose_the_trace_and_not_whether_it_is_kept() {
        let (trace, span) = ([1; 16], [2; 8]);
        let asked = Place::parse(TEXT).unwrap();
        let sampler = |ratio| Sampler {
            ratio,
            key: [7; 32],
        };
        let admit = |ratio, asked| sampler(ratio).admit(asked, trace, span);

        let (place, parent) = admit(1.0, None);
        assert_eq!((place.trace, place.kept, parent), (trace, true, None));
        let (place, parent) = admit(1.0, Some(asked));
        assert_eq!((place.trace, place.span), (asked.trace, span));
        assert_eq!((place.kept, parent), (true, Some(asked.span)));
        assert!(!admit(0.0, Some(asked)).0.kept);
        let not_wanted = Place {
            kept: false,
            ..asked
        };
        assert!(!admit(1.0, Some(not_wanted)).0.kept);
    }

    #[test]
    fn the_share_is_kept_and_nobody_without_the_key_can_tell_which() {
        let kept = |key: u8| {
            let sampler = Sampler {
                ratio: 0.25,
                key: [key; 32],
            };
            let ids = (0_u128..4000).map(u128::to_be_bytes);
            ids.map(|id| sampler.keeps(&id)).collect::<Vec<_>>()
        };
        let one = kept(1);
        let share = one.iter().filter(|kept| **kept).count();
        assert!((850..1150).contains(&share), "{share}");
        assert_eq!(one, kept(1));
        assert_ne!(one, kept(2));
    }
}
