//! What a request is aimed at, in the one form that match, policy and upstream share.

use std::sync::Arc;

use http::header::HOST;
use http::{HeaderMap, Method, StatusCode, Uri};
use url::Url;

use super::host::{Authority, HostError};
use super::path::{PathError, normalize_path};
use crate::authz::Scheme;
use crate::config::PathNormalization;

/// Host, path and query of a request.
///
/// There is no other way to get at a request's path, so what is authorized is what is forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub scheme: Scheme,
    pub authority: Authority,
    pub form: TargetForm,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetForm {
    Resource {
        /// Normalised, still percent-encoded.
        path: Arc<str>,
        /// As the client sent it, without the question mark.
        query: Option<Arc<str>>,
    },
    /// `CONNECT host:port`: the authority is the far end. Its port is kept even if it is the
    /// default one of the scheme.
    Tunnel { host_and_port: Arc<str> },
}

/// A request's target as it arrived.
#[derive(Debug, Clone, Copy)]
pub struct RawTarget<'a> {
    pub method: &'a Method,
    /// Of the connection, or of trusted hops.
    pub scheme: Scheme,
    /// From [`authority_of`].
    pub authority: &'a str,
    pub uri: &'a Uri,
}

/// Why a request has no target. Each of them is the client's fault: 400, but for a redirect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Path(PathError),
    #[error("CONNECT needs a host and a port")]
    Tunnel,
    /// The client shall ask for this path and query instead.
    #[error("the path contains an escaped slash")]
    RedirectTo(String),
}

impl TargetError {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::RedirectTo(_) => StatusCode::TEMPORARY_REDIRECT,
            Self::Host(_) | Self::Path(_) | Self::Tunnel => StatusCode::BAD_REQUEST,
        }
    }
}

impl Target {
    pub fn parse(raw: RawTarget<'_>, rules: PathNormalization) -> Result<Self, TargetError> {
        let authority = Authority::parse(raw.authority, raw.scheme)?;
        // CONNECT with a path is a WebSocket over HTTP/2 (RFC 8441), a resource like any other.
        let form = if *raw.method == Method::CONNECT && raw.uri.scheme().is_none() {
            tunnel(&authority, raw)?
        } else {
            resource(raw.uri.path(), raw.uri.query(), rules)?
        };
        Ok(Self {
            scheme: raw.scheme,
            authority,
            form,
        })
    }

    /// The target of a GET for this URL, for questions such as "which route is this URL on?".
    pub fn of_url(url: &Url, rules: PathNormalization) -> Result<Self, TargetError> {
        let scheme = match url.scheme() {
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            _ => return Err(HostError::Malformed.into()),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(HostError::UserInfo.into());
        }
        let host = url.host_str().ok_or(HostError::Missing)?;
        let authority = match url.port() {
            Some(port) => Authority::parse(&format!("{host}:{port}"), scheme)?,
            None => Authority::parse(host, scheme)?,
        };
        Ok(Self {
            scheme,
            authority,
            form: resource(url.path(), url.query(), rules)?,
        })
    }

    /// Empty for a tunnel.
    pub fn path(&self) -> &str {
        match &self.form {
            TargetForm::Resource { path, .. } => path,
            TargetForm::Tunnel { .. } => "",
        }
    }

    pub fn query(&self) -> Option<&str> {
        match &self.form {
            TargetForm::Resource { query, .. } => query.as_deref(),
            TargetForm::Tunnel { .. } => None,
        }
    }

    /// For a request line: `path?query`.
    pub fn path_and_query(&self) -> String {
        match self.query() {
            Some(query) => format!("{}?{query}", self.path()),
            None => self.path().to_owned(),
        }
    }

    pub fn is_tunnel(&self) -> bool {
        matches!(self.form, TargetForm::Tunnel { .. })
    }

    /// The URL that the client asked for, as it stands in redirects.
    pub fn url(&self) -> String {
        format!(
            "{}://{}{}",
            self.scheme.as_str(),
            self.authority,
            self.path_and_query()
        )
    }
}

fn resource(
    path: &str,
    query: Option<&str>,
    rules: PathNormalization,
) -> Result<TargetForm, TargetError> {
    let path = normalize_path(path, rules).map_err(|error| match error {
        PathError::RedirectTo(path) => TargetError::RedirectTo(match query {
            Some(query) => format!("{path}?{query}"),
            None => path,
        }),
        error => TargetError::Path(error),
    })?;
    Ok(TargetForm::Resource {
        path: path.into(),
        query: query.map(Into::into),
    })
}

fn tunnel(authority: &Authority, raw: RawTarget<'_>) -> Result<TargetForm, TargetError> {
    let port = raw.uri.port_u16().ok_or(TargetError::Tunnel)?;
    Ok(TargetForm::Tunnel {
        host_and_port: format!("{}:{port}", authority.name()).into(),
    })
}

/// The one host that a request names: `:authority`, an absolute form, or `Host`. Two that differ
/// are refused, and so are two `Host` fields (RFC 9112 3.2).
pub fn authority_of<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Result<&'a str, HostError> {
    let mut fields = headers.get_all(HOST).iter();
    let field = match (fields.next(), fields.next()) {
        (_, Some(_)) => return Err(HostError::Several),
        (Some(value), None) => Some(value.to_str().map_err(|_| HostError::Malformed)?),
        (None, None) => None,
    };
    match (uri.authority(), field) {
        (Some(authority), Some(field)) if !authority.as_str().eq_ignore_ascii_case(field) => {
            Err(HostError::Contradiction)
        }
        (Some(authority), _) => Ok(authority.as_str()),
        (None, Some(field)) => Ok(field),
        (None, None) => Err(HostError::Missing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EscapedSlashes;
    use http::HeaderValue;
    use proptest::prelude::*;

    const RULES: PathNormalization = PathNormalization {
        merge_slashes: true,
        dot_segments: true,
        escaped_slashes: EscapedSlashes::Reject,
    };

    fn parse(method: &Method, authority: &str, uri: &str) -> Result<Target, TargetError> {
        let uri: Uri = uri.parse().unwrap();
        Target::parse(
            RawTarget {
                method,
                scheme: Scheme::Https,
                authority,
                uri: &uri,
            },
            RULES,
        )
    }

    #[test]
    fn resource_and_its_url() {
        let target = parse(&Method::GET, "App.Test:443", "/a/../b?x=%2e&y").unwrap();
        assert_eq!(target.path(), "/b");
        assert_eq!(target.query(), Some("x=%2e&y"));
        assert_eq!(target.url(), "https://app.test/b?x=%2e&y");
    }

    #[test]
    fn tunnels_keep_their_port() {
        let target = parse(&Method::CONNECT, "db.test:443", "db.test:443").unwrap();
        assert!(
            matches!(&target.form, TargetForm::Tunnel { host_and_port } if &**host_and_port == "db.test:443")
        );
        assert_eq!(target.authority.port(), None);
        assert_eq!(
            parse(&Method::CONNECT, "db.test", "db.test"),
            Err(TargetError::Tunnel)
        );
        let websocket = parse(&Method::CONNECT, "a.test", "https://a.test/ws").unwrap();
        assert_eq!(websocket.path(), "/ws");
    }

    #[test]
    fn c33_the_query_never_takes_part() {
        let target = parse(&Method::GET, "a.test", "/public?../admin").unwrap();
        assert_eq!(
            (target.path(), target.query()),
            ("/public", Some("../admin"))
        );
    }

    #[test]
    fn s27_one_host_or_none() {
        let headers = |values: &[&'static str]| {
            let mut map = HeaderMap::new();
            for value in values {
                map.append(HOST, HeaderValue::from_static(value));
            }
            map
        };
        let origin: Uri = "/x".parse().unwrap();
        let absolute: Uri = "http://a.test/x".parse().unwrap();
        assert_eq!(authority_of(&origin, &headers(&["a.test"])), Ok("a.test"));
        assert_eq!(authority_of(&absolute, &headers(&[])), Ok("a.test"));
        assert_eq!(authority_of(&absolute, &headers(&["A.test"])), Ok("a.test"));
        assert_eq!(
            authority_of(&absolute, &headers(&["b.test"])),
            Err(HostError::Contradiction)
        );
        assert_eq!(
            authority_of(&origin, &headers(&["a.test", "a.test"])),
            Err(HostError::Several)
        );
        assert_eq!(
            authority_of(&origin, &headers(&[])),
            Err(HostError::Missing)
        );
    }

    #[test]
    fn urls_with_user_names_have_no_target() {
        let url = Url::parse("https://a.test@evil.test/").unwrap();
        assert_eq!(Target::of_url(&url, RULES), Err(HostError::UserInfo.into()));
        let url = Url::parse("https://a.test:8443/x/?q").unwrap();
        assert_eq!(
            Target::of_url(&url, RULES).unwrap().url(),
            "https://a.test:8443/x/?q"
        );
    }

    proptest! {
        /// Forwarding a target and reading it again gives the same target: what policy saw is
        /// what the upstream gets.
        #[test]
        fn s02_what_is_forwarded_is_what_was_authorized(path in "/[a-zA-Z0-9./%;+~_-]{0,24}", query in proptest::option::of("[a-z0-9%=&./?]{0,12}")) {
            let uri = match &query { Some(q) => format!("{path}?{q}"), None => path };
            let Ok(parsed) = uri.parse::<Uri>() else { return Ok(()) };
            let read = |uri: &Uri| Target::parse(
                RawTarget { method: &Method::GET, scheme: Scheme::Https, authority: "a.test", uri },
                RULES,
            );
            if let Ok(target) = read(&parsed) {
                let forwarded: Uri = target.path_and_query().parse().unwrap();
                prop_assert_eq!(read(&forwarded), Ok(target));
            }
        }
    }
}
