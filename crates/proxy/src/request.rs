//! Reads a request: one normal form of host, path and client address. What is ambiguous is
//! refused.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_TYPE, LOCATION, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};
use postern_common::authz::{CheckRequest, CheckSubject, ClientCertificate, Scheme};
use postern_common::config::UnderscoreHeaders;
use postern_common::route::{RawTarget, Target, TargetError, TargetForm, authority_of};
use postern_common::telemetry::trace::Place;
use tokio::time::Instant;

use crate::address::Address;
use crate::body::Body;
use crate::connection::Client;
use crate::forward::headers::{X_FORWARDED_FOR, X_FORWARDED_PROTO, has_token};
use crate::refuse::Stop;
use crate::snapshot::Snapshot;

/// What a request is, apart from its headers and body.
#[derive(Debug)]
pub(crate) struct Request {
    pub id: Arc<str>,
    pub received: Instant,
    /// What the upstream gets: of a WebSocket by extended CONNECT, GET.
    pub method: Method,
    pub target: Target,
    /// The peer of the connection.
    pub peer: Address,
    /// The client after trusted hops.
    pub client_address: Address,
    pub client_certificate: Option<Arc<ClientCertificate>>,
    pub upgrade: Option<Upgrade>,
    pub grpc: bool,
    /// Where it stands in a trace; `None` where nothing is traced.
    pub trace: Option<Place>,
}

/// A request to change the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Upgrade {
    /// As sent.
    pub token: HeaderValue,
    /// By extended CONNECT on HTTP/2 (RFC 8441): answered with 200, without the key.
    pub extended: bool,
}

/// Reads the head of a request on the connection `client`.
pub(crate) fn read(
    head: &mut Parts,
    id: Arc<str>,
    received: Instant,
    client: &Client,
    snapshot: &Snapshot,
) -> Result<Request, Stop> {
    let http = &snapshot.config.http;
    check_method(&head.method)?;
    check_transfer_encoding(head)?;
    check_underscores(&mut head.headers, http.underscore_headers)?;
    let scheme = scheme(&head.headers, client.is_tls, http.trusted_hops);
    let authority = authority_of(&head.uri, &head.headers)
        .map_err(|error| Stop::bad_request("invalid_host", error.to_string()))?;
    let raw = RawTarget {
        method: &head.method,
        scheme,
        authority,
        uri: &head.uri,
    };
    let target = Target::parse(raw, http.path).map_err(|error| refuse_target(&error))?;
    let upgrade = upgrade(head);
    check_connect(&head.method, &target, upgrade.as_ref())?;
    let method = method(head, upgrade.as_ref());
    check_connection(&target, client, snapshot)?;
    let client_address = client_address(&head.headers, &client.peer, http.trusted_hops)?;
    Ok(Request {
        id,
        received,
        method,
        peer: client.peer.clone(),
        client_address,
        client_certificate: client.certificate.clone(),
        grpc: is_grpc(&head.headers),
        target,
        upgrade,
        trace: None,
    })
}

impl Request {
    /// The question to authorize about it.
    pub(crate) fn question(&self, subject: CheckSubject, headers: HeaderMap) -> CheckRequest {
        let (host, path, query) = match &self.target.form {
            TargetForm::Resource { path, query } => (
                Arc::clone(self.target.authority.text()),
                Arc::clone(path),
                query.clone(),
            ),
            TargetForm::Tunnel { host_and_port } => (Arc::clone(host_and_port), "".into(), None),
        };
        CheckRequest {
            request_id: Arc::clone(&self.id),
            subject,
            method: self.method.clone(),
            scheme: self.target.scheme,
            host,
            path,
            query,
            headers,
            client_address: self.client_address.ip(),
            client_certificate: self.client_certificate.clone(),
            trace: None,
        }
    }
}

fn refuse_target(error: &TargetError) -> Stop {
    if let TargetError::RedirectTo(location) = error {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = error.status();
        match HeaderValue::try_from(location) {
            Ok(location) => {
                response.headers_mut().insert(LOCATION, location);
                return Stop::response(response, "path_normalization_redirect");
            }
            Err(_) => return Stop::bad_request("path_normalization_failed", error.to_string()),
        }
    }
    Stop::bad_request("path_normalization_failed", error.to_string())
}

/// Methods are case-sensitive (RFC 9110 9.1), but many applications read `delete` as `DELETE`:
/// a rule about the one must not be passed with the other.
fn check_method(method: &Method) -> Result<(), Stop> {
    const STANDARD: [Method; 9] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::CONNECT,
        Method::OPTIONS,
        Method::TRACE,
        Method::PATCH,
    ];
    let respelled = STANDARD.iter().any(|standard| {
        method != standard && method.as_str().eq_ignore_ascii_case(standard.as_str())
    });
    if respelled {
        let text = "the method is a standard one in another case";
        return Err(Stop::bad_request("invalid_method", text));
    }
    Ok(())
}

/// hyper takes any coding that ends in `chunked`, and lists; whoever comes after us may not.
fn check_transfer_encoding(head: &Parts) -> Result<(), Stop> {
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    let plain = match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => {
            head.version == Version::HTTP_11
                && coding
                    .as_bytes()
                    .trim_ascii()
                    .eq_ignore_ascii_case(b"chunked")
        }
        (Some(_), Some(_)) => false,
    };
    if plain {
        return Ok(());
    }
    let text = "the transfer coding of the request is not plain `chunked`";
    Err(Stop::bad_request("invalid_transfer_encoding", text))
}

fn check_underscores(headers: &mut HeaderMap, action: UnderscoreHeaders) -> Result<(), Stop> {
    let has_underscore = |name: &http::HeaderName| name.as_str().contains('_');
    if action == UnderscoreHeaders::Allow || !headers.keys().any(has_underscore) {
        return Ok(());
    }
    if action == UnderscoreHeaders::Reject {
        let text = "a header's name contains an underscore (headers_with_underscores_action)";
        return Err(Stop::bad_request("unexpected_underscore", text));
    }
    let names: Vec<_> = headers
        .keys()
        .filter(|name| has_underscore(name))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
    Ok(())
}

/// A tunnel names its far end and nothing else (RFC 9110 9.3.6); CONNECT with a path is one over
/// HTTP/2 that names a protocol (RFC 8441).
fn check_connect(method: &Method, target: &Target, upgrade: Option<&Upgrade>) -> Result<(), Stop> {
    let extended = upgrade.is_some_and(|upgrade| upgrade.extended);
    if *method != Method::CONNECT || target.is_tunnel() || extended {
        return Ok(());
    }
    let text = "CONNECT takes a host and a port, and no path";
    Err(Stop::bad_request("invalid_method", text))
}

/// By whichever protocol a WebSocket comes, it is the same request to policies, logs and upstreams:
/// the GET with `Upgrade` that HTTP/1.1 has for it (RFC 6455 4.1).
fn method(head: &mut Parts, upgrade: Option<&Upgrade>) -> Method {
    match upgrade {
        Some(upgrade) if upgrade.extended => {
            head.headers.insert(UPGRADE, upgrade.token.clone());
            Method::GET
        }
        _ => head.method.clone(),
    }
}

/// 421: the connection was opened for a name with another certificate (RFC 9110 15.5.20).
fn check_connection(target: &Target, client: &Client, snapshot: &Snapshot) -> Result<(), Stop> {
    let Some(tls) = snapshot
        .tls
        .as_ref()
        .filter(|_| client.is_tls && !target.is_tunnel())
    else {
        return Ok(());
    };
    if tls.may_carry(client.sni.as_deref(), target.authority.name()) {
        return Ok(());
    }
    let text = "this connection was opened for another host; open one for this host";
    Err(Stop::new(StatusCode::MISDIRECTED_REQUEST, "misdirected_request", text).grpc(14))
}

fn scheme(headers: &HeaderMap, is_tls: bool, trusted_hops: usize) -> Scheme {
    let own = if is_tls { Scheme::Https } else { Scheme::Http };
    if trusted_hops == 0 {
        return own;
    }
    // Some proxies add to it as to a list; the last one is nearest.
    let fields = headers.get_all(X_FORWARDED_PROTO).iter();
    let last = fields.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    match last.last().map(<[u8]>::trim_ascii) {
        Some(proto) if proto.eq_ignore_ascii_case(b"https") => Scheme::Https,
        Some(proto) if proto.eq_ignore_ascii_case(b"http") => Scheme::Http,
        _ => own,
    }
}

/// The entry of `X-Forwarded-For` that the first trusted hop wrote, counted from the right; the
/// peer if there are fewer. An entry that is there and tells no address is refused: another
/// address in its place would be somebody else's, whom a policy may trust.
fn client_address(
    headers: &HeaderMap,
    peer: &Address,
    trusted_hops: usize,
) -> Result<Address, Stop> {
    let Some(from_right) = trusted_hops.checked_sub(1) else {
        return Ok(peer.clone());
    };
    // Bytes, not text: what a client wrote further left must not hide what a hop wrote.
    let entries: Vec<&[u8]> = headers
        .get_all(X_FORWARDED_FOR)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        // RFC 9110 5.6.1.2: empty elements do not count.
        .filter(|entry| !entry.is_empty())
        .collect();
    match entries.iter().rev().nth(from_right) {
        None => Ok(peer.clone()),
        Some(entry) => address(entry).map(Address::from).ok_or_else(|| {
            let text = "X-Forwarded-For has no address where xff_num_trusted_hops looks for one.";
            Stop::bad_request("invalid_forwarded_for", text)
        }),
    }
}

/// Some proxies write a port, or brackets.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let entry = std::str::from_utf8(entry).ok()?;
    let bare = entry.trim_start_matches('[').trim_end_matches(']');
    bare.parse().ok().or_else(|| {
        let with_port: std::net::SocketAddr = entry.parse().ok()?;
        Some(with_port.ip())
    })
}

fn upgrade(head: &Parts) -> Option<Upgrade> {
    if head.version == Version::HTTP_2 {
        let protocol = head.extensions.get::<hyper::ext::Protocol>()?;
        let token = HeaderValue::try_from(protocol.as_str()).ok()?;
        return Some(Upgrade {
            token,
            extended: true,
        });
    }
    // RFC 9110 7.8: in HTTP/1.0 it means nothing.
    let token = head
        .headers
        .get(UPGRADE)
        .filter(|_| head.version == Version::HTTP_11)?;
    // An offer that any server may leave aside (RFC 7540 3.2). Some clients make it with every
    // request in clear text; what they want is an answer.
    if token.as_bytes().trim_ascii().eq_ignore_ascii_case(b"h2c") {
        return None;
    }
    let nominated = head
        .headers
        .get_all(CONNECTION)
        .iter()
        .any(|v| has_token(v, "upgrade"));
    nominated.then(|| Upgrade {
        token: token.clone(),
        extended: false,
    })
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let value = value.as_bytes();
        value
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn client_after(headers: &HeaderMap, peer: &str, hops: usize) -> Option<IpAddr> {
        let peer = Address::from(ip(peer));
        client_address(headers, &peer, hops)
            .ok()
            .map(|client| client.ip())
    }

    #[test]
    fn c44_the_client_after_trusted_hops() {
        let headers = map(&[("x-forwarded-for", "203.0.113.5, 198.51.100.7")]);
        let (peer, is) = ("10.0.0.9", |text| Some(ip(text)));
        assert_eq!(client_after(&headers, peer, 0), is(peer));
        assert_eq!(client_after(&headers, peer, 1), is("198.51.100.7"));
        assert_eq!(client_after(&headers, peer, 2), is("203.0.113.5"));
        assert_eq!(client_after(&headers, peer, 3), is(peer));
        let two = map(&[
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "[2001:db8::1]:9"),
        ]);
        assert_eq!(client_after(&two, peer, 1), is("2001:db8::1"));
    }

    #[test]
    fn c44_what_a_client_wrote_does_not_hide_what_a_hop_wrote() {
        let peer = "10.0.0.9";
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_bytes(b"\xe9, 1.2.3.4, 198.51.100.7").unwrap();
        headers.insert(X_FORWARDED_FOR, value);
        assert_eq!(client_after(&headers, peer, 1), Some(ip("198.51.100.7")));
        assert_eq!(client_after(&headers, peer, 2), Some(ip("1.2.3.4")));
        assert_eq!(client_after(&headers, peer, 3), None, "refused");
        assert_eq!(client_after(&headers, peer, 4), Some(ip(peer)));
        for junk in ["junk", "1.1.1.1, unknown", "1.1.1.1, _hidden"] {
            let headers = map(&[("x-forwarded-for", junk)]);
            assert_eq!(client_after(&headers, peer, 1), None, "{junk}");
            assert_eq!(client_after(&headers, peer, 0), Some(ip(peer)), "{junk}");
        }
        let gaps = map(&[("x-forwarded-for", "1.1.1.1, , 2.2.2.2,")]);
        assert_eq!(client_after(&gaps, peer, 1), Some(ip("2.2.2.2")));
        assert_eq!(client_after(&gaps, peer, 2), Some(ip("1.1.1.1")));
    }

    #[test]
    fn c44_the_scheme_after_trusted_hops() {
        let headers = map(&[("x-forwarded-proto", "https")]);
        assert_eq!(scheme(&headers, false, 1), Scheme::Https);
        assert_eq!(scheme(&headers, false, 0), Scheme::Http);
        for (proto, is_tls, expected) in [
            ("gopher", true, Scheme::Https),
            ("HTTPS", false, Scheme::Https),
            ("https,https", false, Scheme::Https),
            ("http, https ", false, Scheme::Https),
            ("https, Http", true, Scheme::Http),
            ("https,", false, Scheme::Http),
        ] {
            let headers = map(&[("x-forwarded-proto", proto)]);
            assert_eq!(scheme(&headers, is_tls, 1), expected, "{proto}");
        }
        let two = map(&[
            ("x-forwarded-proto", "http"),
            ("x-forwarded-proto", "https"),
        ]);
        assert_eq!(scheme(&two, false, 1), Scheme::Https);
    }

    #[test]
    fn s28_connect_is_a_tunnel_or_names_its_protocol() {
        let extended = Upgrade {
            token: HeaderValue::from_static("websocket"),
            extended: true,
        };
        let switched = Upgrade {
            extended: false,
            ..extended.clone()
        };
        for (method, uri, upgrade, good) in [
            (Method::CONNECT, "a.test:443", None, true),
            (Method::CONNECT, "https://a.test/x", None, false),
            (Method::CONNECT, "https://a.test/x", Some(&switched), false),
            (Method::CONNECT, "https://a.test/x", Some(&extended), true),
            (Method::GET, "https://a.test/x", None, true),
        ] {
            let raw = RawTarget {
                method: &method,
                scheme: Scheme::Https,
                authority: "a.test",
                uri: &uri.parse().unwrap(),
            };
            let target = Target::parse(raw, rules()).unwrap();
            let checked = check_connect(&method, &target, upgrade);
            assert_eq!(checked.is_ok(), good, "{method} {uri} {upgrade:?}");
        }
    }

    #[test]
    fn c38_a_websocket_is_a_get_by_either_protocol() {
        let mut head = head(Version::HTTP_2, &[("sec-websocket-version", "13")]);
        head.method = Method::CONNECT;
        let upgrade = Upgrade {
            token: HeaderValue::from_static("websocket"),
            extended: true,
        };
        assert_eq!(method(&mut head, Some(&upgrade)), Method::GET);
        assert_eq!(head.headers["upgrade"], "websocket");
        head.headers.remove("upgrade");
        assert_eq!(method(&mut head, None), Method::CONNECT);
        assert!(!head.headers.contains_key("upgrade"));
    }

    fn rules() -> postern_common::config::PathNormalization {
        postern_common::config::PathNormalization {
            merge_slashes: true,
            dot_segments: true,
            escaped_slashes: postern_common::config::EscapedSlashes::Reject,
        }
    }

    fn head(version: Version, pairs: &[(&'static str, &str)]) -> Parts {
        let (mut head, ()) = http::Request::new(()).into_parts();
        head.version = version;
        head.headers = map(pairs);
        head
    }

    #[test]
    fn s23_only_plain_chunked() {
        for (codings, good) in [
            (&["chunked"][..], true),
            (&["Chunked "], true),
            (&[",chunked"], false),
            (&["gzip, chunked"], false),
            (&["chunked", "chunked"], false),
            (&["xchunked"], false),
        ] {
            let pairs: Vec<_> = codings.iter().map(|c| ("transfer-encoding", *c)).collect();
            let checked = check_transfer_encoding(&head(Version::HTTP_11, &pairs));
            assert_eq!(checked.is_ok(), good, "{codings:?}");
        }
        let old = head(Version::HTTP_10, &[("transfer-encoding", "chunked")]);
        assert!(check_transfer_encoding(&old).is_err());
    }

    #[test]
    fn underscores_are_refused_dropped_or_kept() {
        let mut headers = map(&[("x_a", "1"), ("x-b", "2")]);
        assert!(check_underscores(&mut headers, UnderscoreHeaders::Reject).is_err());
        check_underscores(&mut headers, UnderscoreHeaders::Allow).unwrap();
        assert_eq!(headers.len(), 2);
        check_underscores(&mut headers, UnderscoreHeaders::Drop).unwrap();
        assert_eq!(headers, map(&[("x-b", "2")]));
    }

    #[test]
    fn an_upgrade_is_nominated_or_none() {
        let given = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
        ];
        let found = upgrade(&head(Version::HTTP_11, &given)).unwrap();
        assert_eq!(
            (found.token.to_str().unwrap(), found.extended),
            ("WebSocket", false)
        );
        assert_eq!(
            upgrade(&head(Version::HTTP_11, &[("upgrade", "websocket")])),
            None
        );
    }

    #[test]
    fn s28_an_offer_of_h2c_is_left_aside() {
        let given = [
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABk"),
        ];
        assert_eq!(upgrade(&head(Version::HTTP_11, &given)), None);
        let websocket = [("connection", "Upgrade"), ("upgrade", "websocket")];
        assert_eq!(upgrade(&head(Version::HTTP_10, &websocket)), None);
    }

    #[test]
    fn s02_a_standard_method_has_one_spelling() {
        for (method, good) in [
            ("DELETE", true),
            ("delete", false),
            ("Get", false),
            ("PROPFIND", true),
            ("propfind", true),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(check_method(&method).is_ok(), good, "{method}");
        }
    }

    #[test]
    fn grpc_by_content_type() {
        for (value, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x", true),
            ("application/grpc-web", false),
            ("text/plain", false),
        ] {
            assert_eq!(is_grpc(&map(&[("content-type", value)])), grpc, "{value}");
        }
    }

    proptest! {
        #[test]
        fn addresses_never_panic(text in ".{0,40}", hops in 0..4usize) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = text.parse() {
                headers.insert("x-forwarded-for", value);
            }
            let _ = client_address(&headers, &ip("10.0.0.9").into(), hops);
        }
    }
}
