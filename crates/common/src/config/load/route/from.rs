//! `from`

use url::Url;

use super::super::super::diagnostic::{Diagnostic, code};
use super::super::super::route::{FromScheme, RouteFrom};
use super::super::reader::{Load, Section};

const HELP: &str = "write it like https://app.example.com, https://*.example.com or tcp+https://db.example.com:5432";

pub fn from(load: &mut Load<'_>, section: Section<'_>) -> Option<RouteFrom> {
    let also = section
        .text(load, "tls_downstream_server_name")
        .map(|name| name.value.to_ascii_lowercase());
    let Some(text) = section.text(load, "from") else {
        if !section.has("from") {
            let mut diagnostic =
                Diagnostic::error(code::MISSING_KEY, "this route has no `from`").help(HELP);
            if let Some(place) = section.place {
                diagnostic = diagnostic.at(place);
            }
            load.say(diagnostic);
        }
        return None;
    };
    let mut complain = |message: &str| {
        load.say(
            Diagnostic::error(code::INVALID_VALUE, format!("`from`: {message}"))
                .at(&text.place)
                .help(HELP),
        );
        None
    };
    let written = text.value.trim();
    let (scheme, url) = match written.split_once("://") {
        Some(("https", _)) => ("https", written.to_owned()),
        Some(("http", _)) => ("http", written.to_owned()),
        Some(("tcp+https", rest)) => ("tcp", format!("https://{rest}")),
        Some((other, _)) => return complain(&format!("there is no scheme `{other}`")),
        None => return complain("this is no URL"),
    };
    let url = match Url::parse(&url) {
        Ok(url) => url,
        Err(error) => return complain(&error.to_string()),
    };
    let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
        return complain("there is no host");
    };
    if !url.username().is_empty() || url.password().is_some() {
        return complain("a user name has no place here");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return complain("a query or fragment has no place here");
    }
    let scheme = match scheme {
        "tcp" => {
            let named: Vec<String> = url
                .path()
                .split('/')
                .filter(|part| !part.is_empty())
                .map(str::to_ascii_lowercase)
                .collect();
            let authorities = if named.is_empty() {
                vec![format!("{host}:{}", url.port().unwrap_or(443))]
            } else {
                named
            };
            if let Some(bad) = authorities.iter().find(|authority| !has_port(authority)) {
                return complain(&format!("`{bad}` needs a port"));
            }
            FromScheme::Tcp { authorities }
        }
        _ if !matches!(url.path(), "" | "/") => {
            return complain("a path has no place here; use `prefix`, `path` or `regex`");
        }
        "http" => FromScheme::Http,
        _ => FromScheme::Https,
    };
    if scheme == FromScheme::Http {
        load.say(
            Diagnostic::note(code::DIFFERENCE, "`from` by http is treated as https")
                .at(&text.place),
        );
    }
    Some(RouteFrom {
        scheme,
        host: host.trim_end_matches('.').to_owned(),
        port: url.port(),
        also,
        text: text.value,
    })
}

fn has_port(authority: &str) -> bool {
    authority
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}
