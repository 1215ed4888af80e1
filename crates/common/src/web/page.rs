//! The frame that every page shares: one style, no script, a strict Content-Security-Policy.

use askama::Template;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use sha2::{Digest as _, Sha256};
use url::Url;

use crate::config::Branding;

/// How pages look under a configuration; built once for each.
#[derive(Debug, Clone)]
pub struct Look {
    style: String,
    /// Hash source of `style` and the origins that images come from.
    policy: String,
    logo: Option<String>,
    favicon: Option<String>,
    first_paragraph: Option<String>,
}

/// Whether a page holds a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forms {
    None,
    /// Browsers apply `form-action` to every redirect that answers a form too, and sign-out goes
    /// from the route's host by authenticate to a provider's unknown host. So such pages do
    /// without the directive; that nothing can inject a form is held by escaping.
    Some,
}

const STYLE: &str = include_str!("../../templates/style.css");

impl Look {
    /// Values of `branding` that are no color or no https image are left out: they would end up
    /// in the style sheet and in the policy.
    pub fn new(branding: &Branding) -> Self {
        let color = |name, value: &Option<String>| {
            let value = value.as_deref().filter(|value| is_color(value))?;
            Some(format!("--{name}:{value};"))
        };
        let colors: String = [
            color("primary", &branding.primary_color),
            color("secondary", &branding.secondary_color),
        ]
        .into_iter()
        .flatten()
        .collect();
        let style = if colors.is_empty() {
            STYLE.to_owned()
        } else {
            format!("{STYLE}:root{{{colors}}}")
        };
        let images = [&branding.logo_url, &branding.favicon_url].map(|url| image(url.as_deref()));
        let mut sources = vec!["data:".to_owned()];
        for (_, source) in images.iter().flatten() {
            if !sources.contains(source) {
                sources.push(source.clone());
            }
        }
        let policy = format!(
            "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; img-src {}; style-src 'sha256-{}'",
            sources.join(" "),
            STANDARD.encode(Sha256::digest(&style)),
        );
        let [logo, favicon] = images.map(|image| image.map(|(url, _)| url));
        Self {
            style,
            policy,
            logo,
            favicon,
            first_paragraph: branding.error_message_first_paragraph.clone(),
        }
    }

    /// `error_message_first_paragraph`
    pub fn first_paragraph(&self) -> Option<&str> {
        self.first_paragraph.as_deref()
    }
}

impl Default for Look {
    fn default() -> Self {
        Self::new(&Branding::default())
    }
}

/// A page: `content` in the common frame.
pub fn respond(
    look: &Look,
    status: StatusCode,
    title: &str,
    forms: Forms,
    content: &impl Template,
) -> Response<Bytes> {
    let rendered = content.render().and_then(|body| {
        Base {
            look,
            title,
            body: &body,
        }
        .render()
    });
    // Rendering into memory doesn't fail; if it did, the status would still be right.
    let body = rendered.unwrap_or_else(|_| title.to_owned());
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("same-origin"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    let policy = match forms {
        Forms::None => format!("{}; form-action 'none'", look.policy),
        Forms::Some => look.policy.clone(),
    };
    let policy = HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static(
        "default-src 'none'; frame-ancestors 'none'",
    ));
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}

#[derive(Template)]
#[template(path = "base.html")]
struct Base<'a> {
    look: &'a Look,
    title: &'a str,
    /// Already escaped, by its own template.
    body: &'a str,
}

/// `#rgb`, `#rrggbb`, with alpha, or a color's name.
fn is_color(text: &str) -> bool {
    match text.strip_prefix('#') {
        Some(digits) => {
            matches!(digits.len(), 3 | 4 | 6 | 8) && digits.bytes().all(|b| b.is_ascii_hexdigit())
        }
        None => (3..=24).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphabetic()),
    }
}

/// An image's URL with the source that the policy needs for it.
fn image(url: Option<&str>) -> Option<(String, String)> {
    let url = Url::parse(url?).ok()?;
    let source = match url.scheme() {
        "data" => "data:".to_owned(),
        "https" => url.origin().ascii_serialization(),
        _ => return None,
    };
    Some((url.into(), source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Template)]
    #[template(source = "<p>{{ text }}</p>", ext = "html")]
    struct Sample<'a> {
        text: &'a str,
    }

    fn render(branding: &Branding, forms: Forms) -> (String, String) {
        let content = Sample { text: "<b>" };
        let response = respond(
            &Look::new(branding),
            StatusCode::OK,
            "Title & more",
            forms,
            &content,
        );
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY]
            .to_str()
            .unwrap();
        (
            String::from_utf8(response.body().to_vec()).unwrap(),
            policy.to_owned(),
        )
    }

    /// The style of a page, as a browser hashes it.
    fn style_hash(page: &str) -> String {
        let style = page
            .split("<style>")
            .nth(1)
            .unwrap()
            .split("</style>")
            .next()
            .unwrap();
        format!("'sha256-{}'", STANDARD.encode(Sha256::digest(style)))
    }

    #[test]
    fn s45_policy_allows_this_style_and_no_script() {
        let branding = Branding {
            primary_color: Some("#336699".into()),
            logo_url: Some("https://cdn.example.com/logo.svg?x=1&y=2".into()),
            favicon_url: Some("https://cdn.example.com/favicon.ico".into()),
            ..Branding::default()
        };
        let (page, policy) = render(&branding, Forms::None);
        assert!(policy.contains(&style_hash(&page)), "{policy}");
        assert!(
            policy.contains("img-src data: https://cdn.example.com;"),
            "{policy}"
        );
        assert!(policy.contains("form-action 'none'"));
        assert!(!policy.contains("script-src") && !page.contains("<script"));
        assert!(page.contains("--primary:#336699"));
        assert!(
            page.contains("Title &#38; more") && page.contains("&#60;b&#62;"),
            "{page}"
        );
        let (_, policy) = render(&branding, Forms::Some);
        assert!(!policy.contains("form-action"));
    }

    #[test]
    fn s45_branding_can_not_break_out() {
        let evil = "red;}</style><script>x</script>";
        let branding = Branding {
            primary_color: Some(evil.into()),
            secondary_color: Some("#12345".into()),
            logo_url: Some("javascript:alert(1)".into()),
            favicon_url: Some("https://e.example/\"><script>".into()),
            error_message_first_paragraph: Some(evil.into()),
        };
        let (page, policy) = render(&branding, Forms::None);
        assert!(
            !page.contains("<script") && !page.contains("javascript:"),
            "{page}"
        );
        assert!(policy.contains(&style_hash(&page)));
    }

    #[test]
    fn pages_can_be_read_by_everyone() {
        let (page, _) = render(&Branding::default(), Forms::None);
        for needed in [
            "<!doctype html>",
            "lang=\"en\"",
            "name=\"viewport\"",
            "<main",
            "<h1",
        ] {
            assert!(page.contains(needed), "{needed}");
        }
        assert!(STYLE.contains("prefers-color-scheme: dark") && STYLE.contains(":focus-visible"));
    }
}
