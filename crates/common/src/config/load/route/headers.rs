//! Headers that a route sets, removes, rewrites.

use http::{HeaderName, HeaderValue};

use super::super::super::diagnostic::{Diagnostic, code};
use super::super::super::keys::REWRITE_HEADER;
use super::super::super::route::{
    HeaderTemplate, RequestHeaders, ResponseHeaderRewrite, TemplatePart,
};
use super::super::super::source::Value;
use super::super::http::{Written, header_name, header_value, response_headers, settable_header};
use super::super::reader::{Load, Section};

pub fn request_headers(load: &mut Load<'_>, section: Section<'_>) -> RequestHeaders {
    let mut headers = RequestHeaders::default();
    for (name, value) in section
        .pairs(load, "set_request_headers")
        .unwrap_or_default()
    {
        let (Some(header), Some(_)) = (settable_header(load, &name), header_value(load, &value))
        else {
            continue;
        };
        let template = template(&value.value);
        if template.0.contains(&TemplatePart::Unknown) {
            load.say(
                Diagnostic::warning(code::INVALID_VALUE, format!("`{}` holds a reference that is not known, which gives nothing", name.value))
                    .at(&name.place)
                    .help("references are ${pomerium.access_token}, ${pomerium.id_token}, ${pomerium.jwt}, ${pomerium.client_cert_fingerprint}, ${pomerium.client_cert_san_dns}, ${pomerium.client_cert_san_email} and ${pomerium.request.headers[\"X\"]}; a dollar is $$"),
            );
        }
        headers.set.push((header, template));
    }
    for name in section
        .list(load, "remove_request_headers")
        .unwrap_or_default()
    {
        let Some(header) = header_name(load, &name) else {
            continue;
        };
        if header == http::header::HOST {
            load.say(
                Diagnostic::warning(code::INVALID_VALUE, "`Host` can't be removed").at(&name.place),
            );
        } else {
            headers.remove.push(header);
        }
    }
    headers
}

/// The route's over the global ones; `disable` empties the whole.
pub fn merged_response_headers(
    load: &mut Load<'_>,
    section: Section<'_>,
    global: &[(HeaderName, HeaderValue)],
) -> Vec<(HeaderName, HeaderValue)> {
    match response_headers(load, section) {
        Written::Nothing => global.to_vec(),
        Written::Disable => Vec::new(),
        Written::Headers(own) => {
            let kept = global
                .iter()
                .filter(|(name, _)| !own.iter().any(|(own, _)| own == name));
            kept.cloned().chain(own.iter().cloned()).collect()
        }
    }
}

pub fn rewrites(load: &mut Load<'_>, section: Section<'_>) -> Vec<ResponseHeaderRewrite> {
    let Some(node) = section.node("rewrite_response_headers") else {
        return Vec::new();
    };
    let Value::List(items) = &node.value else {
        section.wrong::<()>(load, "rewrite_response_headers", node);
        return Vec::new();
    };
    let mut found = Vec::new();
    for item in items {
        let Value::Map(map) = &item.value else {
            section.wrong::<()>(load, "rewrite_response_headers", item);
            continue;
        };
        let inner = Section {
            map,
            keys: REWRITE_HEADER,
            prefix: "rewrite_response_headers.",
            place: Some(&item.place),
        };
        let header = inner
            .text(load, "header")
            .and_then(|name| header_name(load, &name));
        let Some(header) = header else {
            if !inner.has("header") {
                load.say(
                    Diagnostic::error(
                        code::MISSING_KEY,
                        "an entry of `rewrite_response_headers` needs `header`",
                    )
                    .at(&item.place),
                );
            }
            continue;
        };
        let value = inner.text_or_empty(load, "value");
        if let Some(value) = &value {
            header_value(load, value);
        }
        found.push(ResponseHeaderRewrite {
            header,
            prefix: inner
                .text_or_empty(load, "prefix")
                .map_or_else(String::new, |text| text.value),
            value: value.map_or_else(String::new, |text| text.value),
        });
    }
    found
}

/// `${ref}` or `$a.b["c"]`; `$$` is a dollar; what is malformed stays as it is.
pub fn template(text: &str) -> HeaderTemplate {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, dollar) = rest.split_at(at);
        literal.push_str(before);
        let after = dollar.strip_prefix('$').unwrap_or(dollar);
        let braced = after.strip_prefix('{');
        let reference = match braced {
            Some(inner) => {
                reference(inner).and_then(|(part, left)| Some((part, left.strip_prefix('}')?)))
            }
            None => reference(after),
        };
        match (after.strip_prefix('$'), reference) {
            (Some(left), _) => {
                literal.push('$');
                rest = left;
            }
            (None, Some((part, left))) => {
                if !literal.is_empty() {
                    parts.push(TemplatePart::Text(std::mem::take(&mut literal)));
                }
                parts.push(part);
                rest = left;
            }
            (None, None) => {
                literal.push('$');
                rest = after;
            }
        }
    }
    literal.push_str(rest);
    if !literal.is_empty() || parts.is_empty() {
        parts.push(TemplatePart::Text(literal));
    }
    HeaderTemplate(parts)
}

/// Identifiers joined by dots, or indexed by `["name"]`.
fn reference(text: &str) -> Option<(TemplatePart, &str)> {
    let (first, mut rest) = identifier(text)?;
    let mut path = vec![first];
    loop {
        if let Some((next, left)) = rest.strip_prefix('.').and_then(identifier) {
            path.push(next);
            rest = left;
        } else if let Some((index, left)) = rest
            .strip_prefix("[\"")
            .and_then(|inner| inner.split_once("\"]"))
        {
            path.push(index);
            rest = left;
        } else {
            return Some((resolve(&path), rest));
        }
    }
}

fn identifier(text: &str) -> Option<(&str, &str)> {
    let start = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.starts_with(start).then_some(())?;
    let end = text
        .find(|c: char| !(start(c) || c == '-'))
        .unwrap_or(text.len());
    Some(text.split_at(end))
}

fn resolve(path: &[&str]) -> TemplatePart {
    match path {
        ["pomerium", "access_token"] => TemplatePart::AccessToken,
        ["pomerium", "id_token"] => TemplatePart::IdToken,
        ["pomerium", "jwt"] => TemplatePart::Jwt,
        ["pomerium", "client_cert_fingerprint"] => TemplatePart::ClientCertFingerprint,
        ["pomerium", "client_cert_san_dns"] => TemplatePart::ClientCertSanDns,
        ["pomerium", "client_cert_san_email"] => TemplatePart::ClientCertSanEmail,
        ["pomerium", "request", "headers", name] => match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) => TemplatePart::RequestHeader(name),
            Err(_) => TemplatePart::Unknown,
        },
        _ => TemplatePart::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates() {
        let text = |text: &str| TemplatePart::Text(text.to_owned());
        for (written, parts) in [
            ("plain", vec![text("plain")]),
            ("", vec![text("")]),
            (
                "Bearer ${pomerium.access_token}",
                vec![text("Bearer "), TemplatePart::AccessToken],
            ),
            (
                "$pomerium.id_token!",
                vec![TemplatePart::IdToken, text("!")],
            ),
            ("a$$b", vec![text("a$b")]),
            ("$", vec![text("$")]),
            ("${pomerium.jwt", vec![text("${pomerium.jwt")]),
            ("cost: $ 5", vec![text("cost: $ 5")]),
            ("${nobody.knows}", vec![TemplatePart::Unknown]),
            (
                "${pomerium.request.headers[\"X-Id\"]}",
                vec![TemplatePart::RequestHeader(HeaderName::from_static("x-id"))],
            ),
        ] {
            assert_eq!(template(written).0, parts, "{written}");
        }
    }
}
