//! The request id: on every page, in every log line, in the answer's header.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};

use crate::crypto::random;

/// `X-Request-Id`
pub const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// A fresh id: a random UUID.
pub fn new() -> Arc<str> {
    random::uuid().into()
}

/// The id that a proxy of ours gave a request, for services behind it; else a fresh one. Only a
/// UUID is taken over, so nothing else can get into pages and logs this way.
pub fn received(headers: &HeaderMap) -> Arc<str> {
    headers
        .get(HEADER)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| uuid::Uuid::try_parse(text).ok())
        .map_or_else(new, |id| id.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_uuid_is_taken_over() {
        let with =
            |value: &str| received(&HeaderMap::from_iter([(HEADER, value.parse().unwrap())]));
        let id = "0195a000-a000-7000-8000-00000000a01a";
        assert_eq!(&*with(id), id);
        for text in ["", "1", "<script>", "0195a000"] {
            assert_ne!(&*with(text), text);
            assert!(uuid::Uuid::try_parse(&with(text)).is_ok());
        }
    }
}
