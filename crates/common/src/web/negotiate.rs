//! What the client is and what it can read.

use http::{HeaderMap, HeaderValue, header};

use super::accept;

/// The form in which a client reads an answer that is not the upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Html,
    Json,
    Plain,
    /// Status in headers, HTTP status 200.
    Grpc,
    GrpcWeb,
    /// A `Status` object, as `kubectl` shows it.
    Kubernetes,
}

/// Who is asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// A person's browser that opens a page: can be sent to sign in.
    Browser,
    /// Everything else, scripts of pages and prefetching included: gets an answer, no redirect.
    Program,
}

/// The form of an answer, by content type, user agent and `Accept`.
pub fn form(headers: &HeaderMap) -> Form {
    if text(headers.get(header::USER_AGENT)).contains("kubernetes/") {
        return Form::Kubernetes;
    }
    if let Some(form) = grpc(headers) {
        return form;
    }
    let wanted = Wanted::of(headers);
    match wanted.form {
        Some(form) => form,
        // Scripts mostly take anything; a page would tell them nothing, nor those who want no page.
        None if is_script(headers) || wanted.first == First::Other => Form::Json,
        None => Form::Html,
    }
}

/// Whether a client without a session may be sent to sign in. (A handle in a header makes it a
/// program too; that is for the caller to see.)
pub fn client(headers: &HeaderMap) -> Client {
    let prefetch = text(headers.get("sec-purpose")).contains("prefetch")
        || text(headers.get("purpose")).eq_ignore_ascii_case("prefetch");
    if prefetch || grpc(headers).is_some() || is_script(headers) {
        return Client::Program;
    }
    match headers.get("sec-fetch-mode") {
        Some(mode) => browser_if(mode == "navigate"),
        // Old browsers and bare tools, which take anything, are sent along as well.
        None => browser_if(matches!(
            Wanted::of(headers).first,
            First::Anything | First::Form(Form::Html)
        )),
    }
}

fn browser_if(navigation: bool) -> Client {
    if navigation {
        Client::Browser
    } else {
        Client::Program
    }
}

/// A request that a script of a page makes. A WebSocket is opened by one, and can follow nobody
/// to a page; not every browser says so in `Sec-Fetch-Mode`.
fn is_script(headers: &HeaderMap) -> bool {
    headers
        .get("sec-fetch-mode")
        .is_some_and(|mode| mode != "navigate")
        || text(headers.get(header::UPGRADE)).eq_ignore_ascii_case("websocket")
        || text(headers.get("x-requested-with")).eq_ignore_ascii_case("xmlhttprequest")
}

fn grpc(headers: &HeaderMap) -> Option<Form> {
    let content_type = text(headers.get(header::CONTENT_TYPE)).to_ascii_lowercase();
    let rest = content_type.strip_prefix("application/grpc")?;
    let ends = |rest: &str| rest.is_empty() || rest.starts_with(['+', ';', ' ']);
    if ends(rest) {
        return Some(Form::Grpc);
    }
    let rest = rest.strip_prefix("-web")?;
    ends(rest.strip_prefix("-text").unwrap_or(rest)).then_some(Form::GrpcWeb)
}

/// What `Accept` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    first: First,
    /// The form that it names with the greatest weight of those that we have.
    form: Option<Form>,
}

/// What it prefers to all else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    /// `*/*`, or nothing that can be read.
    Anything,
    Form(Form),
    /// A picture, a stream of events, or none of what it names.
    Other,
}

impl Wanted {
    /// Of two entries with the same weight the first one counts, and any before `*/*`.
    fn of(headers: &HeaderMap) -> Self {
        let mut first = None;
        let mut form = None;
        for entry in accept::entries(headers) {
            let kind = First::of(&entry);
            let rank = (entry.weight, kind != First::Anything);
            let none = ((0.0, true), First::Other);
            if rank > first.get_or_insert(none).0 {
                first = Some((rank, kind));
            }
            let best = form.map_or(0.0, |(weight, _)| weight);
            if let First::Form(named) = kind
                && entry.weight > best
            {
                form = Some((entry.weight, named));
            }
        }
        Self {
            first: first.map_or(First::Anything, |(_, kind)| kind),
            form: form.map(|(_, form)| form),
        }
    }
}

impl First {
    fn of(entry: &accept::Entry<'_>) -> Self {
        let is = |kinds: &[&str]| kinds.iter().any(|kind| entry.is(kind));
        if is(&["text/html", "text/*", "application/xhtml+xml"]) {
            Self::Form(Form::Html)
        } else if is(&["application/json", "application/*"]) {
            Self::Form(Form::Json)
        } else if is(&["text/plain"]) {
            Self::Form(Form::Plain)
        } else if is(&["*/*"]) {
            Self::Anything
        } else {
            Self::Other
        }
    }
}

fn text(value: Option<&HeaderValue>) -> &str {
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHROME: &str =
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";

    const IMAGE: &str = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap()))
            .collect()
    }

    #[test]
    fn forms() {
        for (pairs, expected) in [
            (&[][..], Form::Html),
            (&[("accept", "*/*")], Form::Html),
            (&[("accept", CHROME)], Form::Html),
            (&[("accept", "nonsense")], Form::Html),
            (&[("accept", "application/json")], Form::Json),
            (&[("accept", "application/json, text/html")], Form::Json),
            (
                &[("accept", "application/json;q=0.5, text/html")],
                Form::Html,
            ),
            (
                &[("accept", "text/html;q=0, application/json;q=0.1")],
                Form::Json,
            ),
            (
                &[("accept", "text/plain, application/json;q=0.9")],
                Form::Plain,
            ),
            (&[("accept", "text/event-stream")], Form::Json),
            (&[("accept", "image/avif,*/*;q=0.8")], Form::Json),
            (
                &[("accept", "application/xml, text/html;q=0.5")],
                Form::Html,
            ),
            (&[("accept", "text/html;q=high")], Form::Html),
            (&[("accept", "*/*"), ("sec-fetch-mode", "cors")], Form::Json),
            (&[("x-requested-with", "xmlhttprequest")], Form::Json),
            (&[("content-type", "application/grpc")], Form::Grpc),
            (&[("content-type", "application/grpc+proto")], Form::Grpc),
            (&[("content-type", "application/grpc-web")], Form::GrpcWeb),
            (
                &[("content-type", "application/grpc-web-text+proto")],
                Form::GrpcWeb,
            ),
            (&[("content-type", "application/grpcish")], Form::Html),
            (
                &[("user-agent", "kubectl/v1.30 (linux/amd64) kubernetes/abc")],
                Form::Kubernetes,
            ),
        ] {
            assert_eq!(form(&headers(pairs)), expected, "{pairs:?}");
        }
    }

    #[test]
    fn c25_who_is_sent_to_sign_in() {
        for (pairs, expected) in [
            (&[][..], Client::Browser),
            (&[("accept", "*/*")], Client::Browser),
            (&[("accept", CHROME)], Client::Browser),
            (
                &[("accept", CHROME), ("sec-fetch-mode", "navigate")],
                Client::Browser,
            ),
            (
                &[("accept", CHROME), ("sec-fetch-mode", "no-cors")],
                Client::Program,
            ),
            (
                &[("accept", "*/*"), ("sec-fetch-mode", "cors")],
                Client::Program,
            ),
            (
                &[("accept", CHROME), ("x-requested-with", "XMLHttpRequest")],
                Client::Program,
            ),
            (&[("upgrade", "websocket")], Client::Program),
            (&[("upgrade", "h2c")], Client::Browser),
            (&[("accept", "application/json")], Client::Program),
            (&[("accept", "text/plain")], Client::Program),
            (&[("accept", "text/event-stream")], Client::Program),
            (&[("accept", "application/xml")], Client::Program),
            (&[("accept", "text/html;q=0")], Client::Program),
            // As axios asks.
            (
                &[("accept", "application/json, text/plain, */*")],
                Client::Program,
            ),
            (&[("accept", "*/*, application/json")], Client::Program),
            // As browsers ask for what is on a page; with Sec-Fetch-Mode, and without.
            (&[("accept", IMAGE)], Client::Program),
            (
                &[("accept", IMAGE), ("sec-fetch-mode", "no-cors")],
                Client::Program,
            ),
            (&[("accept", "text/css,*/*;q=0.1")], Client::Program),
            // A picture in a tab of its own.
            (
                &[("accept", IMAGE), ("sec-fetch-mode", "navigate")],
                Client::Browser,
            ),
            (
                &[("accept", "text/html, application/xhtml+xml, image/jxr, */*")],
                Client::Browser,
            ),
            (&[("accept", "image/png;q=0.5, text/html")], Client::Browser),
            (&[("accept", "nonsense")], Client::Browser),
            (&[("accept", "application/json;q=x")], Client::Browser),
            (&[("accept", "")], Client::Browser),
            (&[("content-type", "application/grpc")], Client::Program),
            (&[("content-type", "application/grpc-web")], Client::Program),
            (
                &[
                    ("sec-fetch-mode", "navigate"),
                    ("sec-purpose", "prefetch;prerender"),
                ],
                Client::Program,
            ),
        ] {
            assert_eq!(client(&headers(pairs)), expected, "{pairs:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(accept in "[ -~]{0,100}", content_type in "[ -~]{0,60}") {
            let headers = headers(&[("accept", &accept), ("content-type", &content_type)]);
            let _ = (form(&headers), client(&headers));
        }
    }
}
