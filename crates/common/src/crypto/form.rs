//! Form encoding exactly as Go's `net/url` writes it, since signatures cover its output.

use std::fmt::Write as _;

/// A query that is no form: a bad `%` escape, a `;`, or bytes that are no UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("query is not form encoded")]
pub struct Malformed;

/// Decodes a query. Pomerium drops malformed pairs silently; here the whole query is refused,
/// since nobody honest sends one and nothing may ride along outside of what is read.
pub fn parse(query: &str) -> Result<Vec<(String, String)>, Malformed> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            if pair.contains(';') {
                return Err(Malformed);
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}

fn decode(text: &str) -> Result<String, Malformed> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => match (bytes.next().and_then(digit), bytes.next().and_then(digit)) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err(Malformed),
            },
            other => other,
        });
    }
    String::from_utf8(out).map_err(|_| Malformed)
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

/// Encodes pairs sorted by name; values of one name keep their order.
pub fn encode_sorted<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut pairs: Vec<(&str, &str)> = pairs.into_iter().collect();
    pairs.sort_by_key(|(name, _)| *name);
    let mut out = String::new();
    for (name, value) in pairs {
        if !out.is_empty() {
            out.push('&');
        }
        encode(name, &mut out);
        out.push('=');
        encode(value, &mut out);
    }
    out
}

fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            b' ' => out.push('+'),
            // Writing into a String can't fail.
            other => drop(write!(out, "%{other:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_as_go_does() {
        let encoded = encode_sorted([("b", "a b&=+/ü'()*!~"), ("a", "2"), ("a", "1")]);
        assert_eq!(encoded, "a=2&a=1&b=a+b%26%3D%2B%2F%C3%BC%27%28%29%2A%21~");
    }

    #[test]
    fn malformed_is_refused() {
        for query in ["a=%", "a=%2", "a=%zz", "a;b=1", "a=%ff", "%=1"] {
            assert_eq!(parse(query), Err(Malformed), "{query}");
        }
        assert_eq!(parse("&&a&b=&=c").unwrap().len(), 3);
    }

    proptest! {
        #[test]
        fn parse_returns_what_was_encoded(mut pairs: Vec<(String, String)>) {
            let text = encode_sorted(pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())));
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            prop_assert_eq!(parse(&text).unwrap(), pairs);
        }

        #[test]
        fn parse_never_panics(query in ".{0,200}") {
            let _ = parse(&query);
        }
    }
}
