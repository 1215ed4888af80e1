//! `Accept`, read and weighed (RFC 9110 12.5.1).

use http::{HeaderMap, header};

/// How many entries are looked at.
const MAX: usize = 32;

/// What a client takes, and how gladly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Entry<'a> {
    /// `text/html`, `text/*` or `*/*`, in the client's case.
    pub kind: &'a str,
    /// From 0, not at all, to 1.
    pub weight: f32,
}

impl Entry<'_> {
    pub(crate) fn is(&self, kind: &str) -> bool {
        self.kind.eq_ignore_ascii_case(kind)
    }
}

/// The entries in the client's order, without those that can't be read.
pub(crate) fn entries(headers: &HeaderMap) -> impl Iterator<Item = Entry<'_>> {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .take(MAX)
        .filter_map(entry)
}

fn entry(text: &str) -> Option<Entry<'_>> {
    let mut parts = text.split(';').map(str::trim);
    let kind = parts.next()?;
    let (class, name) = kind.split_once('/')?;
    if class.is_empty() || name.is_empty() {
        return None;
    }
    let weight = parts
        .filter_map(|part| part.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
    let weight: f32 = match weight {
        Some((_, weight)) => weight.trim().parse().ok()?,
        None => 1.0,
    };
    (0.0..=1.0)
        .contains(&weight)
        .then_some(Entry { kind, weight })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_left_out() {
        let mut headers = HeaderMap::new();
        for value in [
            "text/html , Text/Plain;version=1 ; Q=0.5,a/b;q= .25",
            "nonsense, /x, x/, a/b;q=2, a/b;q=-1, a/b;q=nan, a/b;q=x, *; q=.2,,",
            "*/*;q=0",
        ] {
            headers.append(header::ACCEPT, value.parse().unwrap());
        }
        let read: Vec<_> = entries(&headers)
            .map(|entry| (entry.kind, entry.weight))
            .collect();
        let expected = [
            ("text/html", 1.0),
            ("Text/Plain", 0.5),
            ("a/b", 0.25),
            ("*/*", 0.0),
        ];
        assert_eq!(read, expected);
        assert!(entries(&headers).any(|entry| entry.is("text/plain")));
    }
}
