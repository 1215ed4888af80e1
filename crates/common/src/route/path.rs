//! The one normal form of a path.
//!
//! RFC 3986 6.2.2: unreserved characters are decoded, the rest of the escapes is in upper case,
//! dot segments are resolved, then runs of slashes become one. What a URL should have escaped and
//! did not (`ä`, `{`) is escaped. Whatever a backend could read in two ways is refused.

use std::borrow::Cow;

use crate::config::{EscapedSlashes, PathNormalization};

/// Why a path was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    #[error("the path contains a per cent sign without two hexadecimal digits")]
    Escape,
    #[error("the path contains a control character")]
    Control,
    #[error("the path contains a backslash")]
    Backslash,
    #[error("the path contains an escaped slash or backslash")]
    EscapedSlash,
    #[error("the path contains an overlong encoding")]
    Overlong,
    #[error("the path contains a dot segment with a parameter")]
    DotParameter,
    #[error("the path contains a dot segment")]
    DotSegment,
    /// `path_with_escaped_slashes_action: unescape_and_redirect`: the client shall ask for this
    /// path instead.
    #[error("the path contains an escaped slash")]
    RedirectTo(String),
}

/// Brings a path into its normal form. Doing it twice changes nothing.
///
/// With `normalize_path: false` dot segments are refused instead of resolved: to forward them as
/// they are would let policy and upstream see different paths.
pub fn normalize_path(path: &str, rules: PathNormalization) -> Result<Cow<'_, str>, PathError> {
    if !path.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    if is_normal(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let Unescaped { path, slashes } = unescape(path.as_bytes(), rules.escaped_slashes)?;
    let path = resolve_dots(&path, rules.dot_segments)?;
    let path = if rules.merge_slashes {
        merge_slashes(path)
    } else {
        path
    };
    if slashes && rules.escaped_slashes == EscapedSlashes::UnescapeAndRedirect {
        // A browser reads `//evil.test` in a `Location` as another host, and `merge_slashes` may
        // be off.
        return Err(PathError::RedirectTo(format!(
            "/{}",
            path.trim_start_matches('/')
        )));
    }
    Ok(Cow::Owned(path))
}

/// Quick check for the common case; a false "no" costs only time.
fn is_normal(path: &[u8]) -> bool {
    let mut previous = b'x';
    for &byte in path {
        let suspicious = previous == b'/' && (byte == b'/' || byte == b'.');
        if suspicious || byte == b'%' || !is_plain(byte) {
            return false;
        }
        previous = byte;
    }
    true
}

/// RFC 3986 2.3
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// May stand in a path as it is.
fn is_plain(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(
            byte,
            b'/' | b':'
                | b'@'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
                | b'['
                | b']'
        )
}

struct Unescaped {
    path: String,
    /// An escaped slash was written out.
    slashes: bool,
}

fn unescape(path: &[u8], escaped_slashes: EscapedSlashes) -> Result<Unescaped, PathError> {
    let mut out = String::with_capacity(path.len() + 8);
    let mut slashes = false;
    let mut bytes = path.iter().copied();
    // The byte before, if it was escaped and stays so: overlong forms need two.
    let mut lead = None;
    while let Some(byte) = bytes.next() {
        let (value, escaped) = match byte {
            b'%' => (
                hex_pair(bytes.next(), bytes.next()).ok_or(PathError::Escape)?,
                true,
            ),
            b'\\' => return Err(PathError::Backslash),
            byte => (byte, false),
        };
        if value == 0 || (!escaped && value.is_ascii_control()) {
            return Err(PathError::Control);
        }
        if is_overlong(lead, value) {
            return Err(PathError::Overlong);
        }
        lead = escaped.then_some(value);
        match (escaped, value) {
            (true, b'/' | b'\\') => match escaped_slashes {
                EscapedSlashes::Reject => return Err(PathError::EscapedSlash),
                EscapedSlashes::Keep => push_escape(&mut out, value),
                EscapedSlashes::UnescapeAndForward | EscapedSlashes::UnescapeAndRedirect => {
                    out.push('/');
                    slashes = true;
                }
            },
            (true, value) if is_unreserved(value) => out.push(char::from(value)),
            (false, value) if is_plain(value) => out.push(char::from(value)),
            (_, value) => push_escape(&mut out, value),
        }
    }
    Ok(Unescaped { path: out, slashes })
}

fn hex_pair(high: Option<u8>, low: Option<u8>) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high?)? * 16 + digit(low?)?).ok()
}

fn push_escape(out: &mut String, value: u8) {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).map(|c| c.to_ascii_uppercase());
    out.push('%');
    out.extend(digit(value >> 4));
    out.extend(digit(value & 0xf));
}

/// Encodings of a character in more bytes than it needs; lenient decoders make `/` or `.` of them.
/// Raw bytes come out of a `str` and can't be overlong.
fn is_overlong(lead: Option<u8>, value: u8) -> bool {
    matches!(value, 0xc0 | 0xc1)
        || matches!(
            (lead, value),
            (Some(0xe0), 0x80..=0x9f) | (Some(0xf0), 0x80..=0x8f)
        )
}

/// RFC 3986 5.2.4
fn resolve_dots(path: &str, resolve: bool) -> Result<String, PathError> {
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_in_dots = false;
    for segment in path.split('/').skip(1) {
        ends_in_dots = false;
        match segment {
            "." | ".." if !resolve => return Err(PathError::DotSegment),
            "." => ends_in_dots = true,
            ".." => {
                segments.pop();
                ends_in_dots = true;
            }
            // Some servers drop the parameter first and then climb.
            s if s.starts_with(".;") || s.starts_with("..;") => {
                return Err(PathError::DotParameter);
            }
            s => segments.push(s),
        }
    }
    if ends_in_dots {
        segments.push("");
    }
    let mut out = String::with_capacity(path.len());
    for segment in segments {
        out.push('/');
        out.push_str(segment);
    }
    if out.is_empty() {
        out.push('/');
    }
    Ok(out)
}

fn merge_slashes(path: String) -> String {
    if !path.contains("//") {
        return path;
    }
    let mut out = String::with_capacity(path.len());
    let mut after_slash = false;
    for c in path.chars() {
        if !(c == '/' && after_slash) {
            out.push(c);
        }
        after_slash = c == '/';
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: PathNormalization = PathNormalization {
        merge_slashes: true,
        dot_segments: true,
        escaped_slashes: EscapedSlashes::Reject,
    };

    fn normal(path: &str) -> Result<String, PathError> {
        normalize_path(path, RULES).map(Cow::into_owned)
    }

    #[test]
    fn c32_dot_segments_are_resolved_before_anything_looks() {
        for (path, expected) in [
            ("/public/../admin", "/admin"),
            ("/public/%2e%2e/admin", "/admin"),
            ("/public/%2E./admin", "/admin"),
            ("/public/./x", "/public/x"),
            ("/PUBLIC/x", "/PUBLIC/x"),
            ("/../../x", "/x"),
            ("/a/..", "/"),
            ("/a/b/.", "/a/b/"),
            ("/a/b/..", "/a/"),
            ("/..", "/"),
            ("/a//../b", "/a/b"),
            ("//a///b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("/...", "/..."),
            ("/.well-known/x", "/.well-known/x"),
        ] {
            assert_eq!(normal(path).as_deref(), Ok(expected), "{path}");
        }
    }

    #[test]
    fn c33_what_two_readers_could_read_differently_is_refused() {
        for (path, error) in [
            ("/public/%2f..%2fadmin", PathError::EscapedSlash),
            ("/public/%5c..%5cadmin", PathError::EscapedSlash),
            ("/public/\\..\\admin", PathError::Backslash),
            ("/public/%00", PathError::Control),
            ("/public/\u{1}", PathError::Control),
            ("/public/..;/admin", PathError::DotParameter),
            ("/public/.;a=b/admin", PathError::DotParameter),
            ("/public/%c0%ae%c0%ae/admin", PathError::Overlong),
            ("/public/%e0%80%af", PathError::Overlong),
            ("/public/%f0%80%80%af", PathError::Overlong),
            ("/public/%", PathError::Escape),
            ("/public/%2", PathError::Escape),
            ("/public/%zz", PathError::Escape),
            ("public", PathError::NotAbsolute),
            ("*", PathError::NotAbsolute),
            ("", PathError::NotAbsolute),
        ] {
            assert_eq!(normal(path), Err(error), "{path}");
        }
        assert_eq!(normal("/public;a=b/../admin").as_deref(), Ok("/admin"));
        assert_eq!(normal("/public;a=b/x").as_deref(), Ok("/public;a=b/x"));
        let twice = "/public/%252e%252e/admin";
        assert_eq!(normal(twice).as_deref(), Ok(twice));
    }

    #[test]
    fn c87_bytes_survive() {
        for path in [
            "/a/%0A/b", "/%C3%A4", "/a%20b", "/a+b", "/a%3Bb", "/x%25", "/%E4",
        ] {
            assert_eq!(normal(path).as_deref(), Ok(path));
        }
        assert_eq!(normal("/ä").as_deref(), Ok("/%C3%A4"));
        assert_eq!(normal("/%c3%a4").as_deref(), Ok("/%C3%A4"));
        assert_eq!(normal("/%7euser/%41").as_deref(), Ok("/~user/A"));
        assert_eq!(normal("/{x}|y").as_deref(), Ok("/%7Bx%7D%7Cy"));
    }

    #[test]
    fn escaped_slashes_by_configuration() {
        let with = |escaped_slashes| PathNormalization {
            escaped_slashes,
            ..RULES
        };
        let path = "/a%2Fb%5cc/../d";
        assert_eq!(
            normalize_path(path, with(EscapedSlashes::Keep)).as_deref(),
            Ok("/d")
        );
        assert_eq!(
            normalize_path("/a%2fb", with(EscapedSlashes::Keep)).as_deref(),
            Ok("/a%2Fb")
        );
        assert_eq!(
            normalize_path(path, with(EscapedSlashes::UnescapeAndForward)).as_deref(),
            Ok("/a/b/d")
        );
        assert_eq!(
            normalize_path(path, with(EscapedSlashes::UnescapeAndRedirect)),
            Err(PathError::RedirectTo("/a/b/d".to_owned()))
        );
    }

    #[test]
    fn s13_no_redirect_leads_to_another_host() {
        for merge_slashes in [true, false] {
            let rules = PathNormalization {
                merge_slashes,
                escaped_slashes: EscapedSlashes::UnescapeAndRedirect,
                ..RULES
            };
            for path in [
                "/%2fevil.test",
                "/%2F%2fevil.test",
                "/%5cevil.test",
                "//evil.test%2f..",
                "/a/..//%2fevil.test",
            ] {
                let Err(PathError::RedirectTo(to)) = normalize_path(path, rules) else {
                    panic!("{path} is redirected");
                };
                assert!(to.starts_with('/') && !to.starts_with("//"), "{path}: {to}");
            }
        }
    }

    #[test]
    fn switches() {
        let keep = PathNormalization {
            merge_slashes: false,
            ..RULES
        };
        assert_eq!(normalize_path("//a//b", keep).as_deref(), Ok("//a//b"));
        let off = PathNormalization {
            dot_segments: false,
            ..RULES
        };
        assert_eq!(normalize_path("/a/%2e./b", off), Err(PathError::DotSegment));
    }

    /// Pieces that are dangerous together.
    fn hostile_path() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "/", "//", ".", "..", "%2e", "%2E", "%2f", "%5C", "%25", "%252e", ";", "a", "B", "%41",
            "%c0", "%ae", "%e0", "%80", "ä", "{", "%00", "\\", "+", "%20", "*", "%zz",
        ]);
        prop::collection::vec(piece, 0..16).prop_map(|pieces| format!("/{}", pieces.concat()))
    }

    fn any_rules() -> impl Strategy<Value = PathNormalization> {
        let slashes = prop::sample::select(vec![
            EscapedSlashes::Keep,
            EscapedSlashes::Reject,
            EscapedSlashes::UnescapeAndForward,
        ]);
        (any::<bool>(), any::<bool>(), slashes).prop_map(
            |(merge_slashes, dot_segments, escaped_slashes)| PathNormalization {
                merge_slashes,
                dot_segments,
                escaped_slashes,
            },
        )
    }

    proptest! {
        #[test]
        fn s26_twice_is_once(path in hostile_path(), rules in any_rules()) {
            if let Ok(once) = normalize_path(&path, rules) {
                let twice = normalize_path(&once, rules).map(Cow::into_owned);
                prop_assert_eq!(twice.as_deref(), Ok(&*once));
            }
        }

        #[test]
        fn s26_nothing_is_left_to_resolve(path in hostile_path(), rules in any_rules()) {
            if let Ok(normal) = normalize_path(&path, rules) {
                let decoded = percent_encoding::percent_decode_str(&normal).collect::<Vec<u8>>();
                if rules.escaped_slashes != EscapedSlashes::Keep {
                    for segment in decoded.split(|b| *b == b'/') {
                        prop_assert!(segment != b"." && segment != b"..", "{normal}");
                    }
                    prop_assert!(!decoded.contains(&b'\\'));
                }
                prop_assert!(!decoded.contains(&0));
                prop_assert!(!rules.merge_slashes || !normal.contains("//"));
                prop_assert!(normal.starts_with('/') && normal.is_ascii());
            }
        }

        #[test]
        fn s26_any_text_is_handled(path in ".{0,64}") {
            if let Ok(once) = normalize_path(&path, RULES) {
                let twice = normal(&once);
                prop_assert_eq!(twice.as_deref(), Ok(&*once));
            }
        }
    }
}
