//! The public listener's HTTP: time-outs, headers, paths.

use std::time::Duration;

use http::{HeaderName, HeaderValue, header};

use super::super::diagnostic::{Diagnostic, code};
use super::super::options::{
    Codec, EscapedSlashes, HttpOptions, IdentityHeaders, IssuerFormat, PathNormalization,
    ServerTls, UnderscoreHeaders,
};
use super::super::place::At;
use super::super::source::Value;
use super::reader::{Load, Section};

pub fn http(load: &mut Load<'_>, root: Section<'_>, tls: &ServerTls) -> HttpOptions {
    let seconds = Duration::from_secs;
    let codec = root.choice(
        load,
        "codec_type",
        &[
            ("auto", Some(Codec::Auto)),
            ("http1", Some(Codec::Http1)),
            ("http2", Some(Codec::Http2)),
            ("http3", None),
        ],
    );
    if codec == Some(None)
        && let Some(node) = root.node("codec_type")
    {
        load.say(
            Diagnostic::warning(
                code::UNSUPPORTED,
                "`codec_type: http3` is not supported yet; HTTP/1.1 and HTTP/2 are served",
            )
            .at(&node.place),
        );
    }
    let merge = root.flag(load, "merge_slashes").unwrap_or(true);
    let dots = root.flag(load, "normalize_path").unwrap_or(true);
    let escaped = root.choice(
        load,
        "path_with_escaped_slashes_action",
        &[
            ("keep_unchanged", EscapedSlashes::Keep),
            ("reject_request", EscapedSlashes::Reject),
            ("unescape_and_redirect", EscapedSlashes::UnescapeAndRedirect),
            ("unescape_and_forward", EscapedSlashes::UnescapeAndForward),
        ],
    );
    let underscores = root.choice(
        load,
        "headers_with_underscores_action",
        &[
            ("allow", UnderscoreHeaders::Allow),
            ("reject_request", UnderscoreHeaders::Reject),
            ("drop_header", UnderscoreHeaders::Drop),
        ],
    );
    let hops = root.number::<usize>(load, "xff_num_trusted_hops");
    let skip_append = root.flag(load, "skip_xff_append").unwrap_or(false);
    HttpOptions {
        codec: codec.flatten().unwrap_or(Codec::Auto),
        timeout_read: root.duration(load, "timeout_read").unwrap_or(seconds(30)),
        timeout_write: root
            .duration(load, "timeout_write")
            .unwrap_or(Duration::ZERO),
        timeout_idle: root.duration(load, "timeout_idle").unwrap_or(seconds(300)),
        default_upstream_timeout: root
            .duration(load, "default_upstream_timeout")
            .unwrap_or(seconds(30)),
        set_response_headers: global_response_headers(load, root, tls),
        trusted_hops: hops.map_or(0, |hops| hops.value),
        append_forwarded_for: !skip_append,
        path: PathNormalization {
            merge_slashes: merge,
            dot_segments: dots,
            escaped_slashes: escaped.unwrap_or(EscapedSlashes::Reject),
        },
        underscore_headers: underscores.unwrap_or(UnderscoreHeaders::Reject),
    }
}

/// What `set_response_headers` says: nothing, that none shall be set, or which.
pub enum Written {
    Nothing,
    Disable,
    Headers(Vec<(HeaderName, HeaderValue)>),
}

pub fn response_headers(load: &mut Load<'_>, section: Section<'_>) -> Written {
    let Some(pairs) = section.pairs(load, "set_response_headers") else {
        return Written::Nothing;
    };
    if pairs
        .iter()
        .any(|(name, _)| name.value.eq_ignore_ascii_case("disable"))
    {
        return Written::Disable;
    }
    let headers = pairs.iter().filter_map(|(name, value)| {
        // Pomerium's values are format strings, in which a per cent sign is doubled.
        let text = At::new(value.value.replace("%%", "%"), value.place.clone());
        Some((settable_header(load, name)?, header_value(load, &text)?))
    });
    Written::Headers(headers.collect())
}

fn global_response_headers(
    load: &mut Load<'_>,
    root: Section<'_>,
    tls: &ServerTls,
) -> Vec<(HeaderName, HeaderValue)> {
    match response_headers(load, root) {
        Written::Disable => Vec::new(),
        Written::Headers(headers) => headers,
        Written::Nothing => {
            let mut headers = vec![
                (
                    http::header::X_FRAME_OPTIONS,
                    HeaderValue::from_static("SAMEORIGIN"),
                ),
                (
                    http::header::X_XSS_PROTECTION,
                    HeaderValue::from_static("1; mode=block"),
                ),
            ];
            // A browser that remembers HSTS can't pass by a certificate it does not know.
            if matches!(tls, ServerTls::Certificates(list) if list.iter().any(|certificate| !certificate.self_signed))
            {
                headers.push((
                    http::header::STRICT_TRANSPORT_SECURITY,
                    HeaderValue::from_static("max-age=31536000; includeSubDomains; preload"),
                ));
            }
            headers
        }
    }
}

pub fn header_name(load: &mut Load<'_>, name: &At<String>) -> Option<HeaderName> {
    if let Ok(header) = HeaderName::from_bytes(name.value.trim().as_bytes()) {
        Some(header)
    } else {
        load.invalid(
            &name.place,
            format!("`{}` is no name of a header", name.value),
        );
        None
    }
}

/// The name of a header that may be set. What frames a message or belongs to one connection is
/// not for a configuration: with a wrong length, the end of one message is read as another.
pub fn settable_header(load: &mut Load<'_>, name: &At<String>) -> Option<HeaderName> {
    const OF_CONNECTION: [HeaderName; 7] = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::HOST,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    let header = header_name(load, name)?;
    if !OF_CONNECTION.contains(&header) {
        return Some(header);
    }
    let diagnostic = Diagnostic::warning(
        code::INVALID_VALUE,
        format!(
            "`{}` can't be set and is left out: it belongs to the connection",
            name.value
        ),
    );
    let diagnostic = diagnostic.at(&name.place);
    load.say(if header == header::HOST {
        diagnostic.help("use `host_rewrite`")
    } else if header == header::UPGRADE || header == header::CONNECTION {
        diagnostic.help("use `allow_websockets`")
    } else {
        diagnostic
    });
    None
}

pub fn header_value(load: &mut Load<'_>, value: &At<String>) -> Option<HeaderValue> {
    if let Ok(header) = HeaderValue::from_str(&value.value) {
        Some(header)
    } else {
        load.invalid(
            &value.place,
            "a value of a header can't hold line ends or other control characters",
        );
        None
    }
}

pub fn issuer_format(load: &mut Load<'_>, section: Section<'_>) -> Option<IssuerFormat> {
    section.choice(
        load,
        "jwt_issuer_format",
        &[
            ("hostonly", IssuerFormat::HostOnly),
            ("issuerhostonly", IssuerFormat::HostOnly),
            ("host_only", IssuerFormat::HostOnly),
            ("issuer_host_only", IssuerFormat::HostOnly),
            ("uri", IssuerFormat::Uri),
            ("issueruri", IssuerFormat::Uri),
            ("issuer_uri", IssuerFormat::Uri),
        ],
    )
}

pub fn identity(load: &mut Load<'_>, root: Section<'_>) -> IdentityHeaders {
    let filter = root.list(load, "jwt_groups_filter").unwrap_or_default();
    IdentityHeaders {
        claims_headers: claims_headers(load, root),
        groups_filter: filter.into_iter().map(|group| group.value).collect(),
        assertion_reuse: root
            .duration(load, "jwt_assertion_reuse")
            .unwrap_or(Duration::from_secs(60)),
    }
}

/// A map header → claim, or a list of claims, each in `x-pomerium-claim-CLAIM`.
fn claims_headers(load: &mut Load<'_>, root: Section<'_>) -> Vec<(HeaderName, String)> {
    let Some(node) = root.node("jwt_claims_headers") else {
        return Vec::new();
    };
    let pairs: Vec<(At<String>, String)> = if matches!(node.value, Value::Map(_)) {
        let pairs = root.pairs(load, "jwt_claims_headers").unwrap_or_default();
        pairs
            .into_iter()
            .map(|(header, claim)| (header, claim.value))
            .collect()
    } else {
        let claims = root.list(load, "jwt_claims_headers").unwrap_or_default();
        let named = claims.into_iter().map(|claim| {
            let claim = At::new(claim.value.trim().to_owned(), claim.place);
            (
                At::new(format!("x-pomerium-claim-{}", claim.value), claim.place),
                claim.value,
            )
        });
        named.collect()
    };
    let mut headers: Vec<(HeaderName, String)> = Vec::new();
    for (header, claim) in pairs {
        if let Some(name) = settable_header(load, &header) {
            headers.push((name, claim));
        }
    }
    headers
}
