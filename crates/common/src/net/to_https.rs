//! `http_redirect_addr`: sends clear-text HTTP to HTTPS, and answers health checks.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::accept::{Bounds, accept};
use super::in_use::{InUse, Patience};
use super::proxy_protocol::{self, Header};
use super::served;
use crate::authz::Scheme;
use crate::config::{Config, ProxyProtocol};
use crate::lifecycle::{Lifecycle, Phase};
use crate::route::{Authority, authority_of};
use crate::web::credentials::without_session;
use crate::web::redirect::visible;

/// From the first byte of a request's head to its last.
const HEAD: Duration = Duration::from_secs(15);

/// Each carries next to nothing.
const BOUNDS: Bounds = Bounds {
    kind: "redirect",
    connections: 4096,
};

/// The head of a request takes no longer either, between two of them as well.
const PATIENCE: Patience = Patience {
    first_call: HEAD,
    idle: HEAD,
};

/// Serves until the listeners close.
pub async fn serve(
    listener: std::net::TcpListener,
    config: watch::Receiver<Arc<Config>>,
    lifecycle: &Lifecycle,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "http_redirect_addr cannot be served"),
    };
    accept(listener, BOUNDS, lifecycle, |mut stream, _| {
        let (config, lifecycle) = (config.clone(), lifecycle.clone());
        async move {
            let proxy_protocol = config.borrow().listen.proxy_protocol;
            if proxy_protocol == ProxyProtocol::Required
                && !without_header(&mut stream, &lifecycle).await
            {
                return;
            }
            let in_use = InUse::new();
            let calls = Arc::clone(&in_use);
            let draining = lifecycle.clone();
            let service = service_fn(move |request| {
                let call = calls.call();
                let answer = answer(&request, draining.phase() >= Phase::Draining);
                drop(call);
                std::future::ready(Ok::<_, Infallible>(answer))
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(stream), service);
            let shut =
                |connection: Pin<&mut http1::Connection<_, _>>| connection.graceful_shutdown();
            let (connection, in_use) = (pin!(connection), (&*in_use, PATIENCE));
            // A client that breaks off is no event.
            let _ = served::run(connection, shut, Phase::IdleClosed, in_use, &lifecycle).await;
        }
    })
    .await;
}

/// Takes the PROXY header off a connection, if it has one. `false`: the connection is of no use.
async fn without_header(stream: &mut TcpStream, lifecycle: &Lifecycle) -> bool {
    let reading = timeout(HEAD, proxy_protocol::read(stream, Header::Optional));
    tokio::select! {
        read = reading => matches!(read, Ok(Ok(_))),
        () = lifecycle.reached(Phase::IdleClosed) => false,
    }
}

fn answer<B>(request: &Request<B>, draining: bool) -> Response<Full<Bytes>> {
    let mut response = redirect(request, draining);
    if draining {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response
}

fn redirect<B>(request: &Request<B>, draining: bool) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    let path = request.uri().path();
    if matches!(path, "/ping" | "/healthz") {
        if draining && path == "/healthz" {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            *response.body_mut() = Full::from("draining\n");
        } else {
            *response.body_mut() = Full::from("OK\n");
        }
        let text = HeaderValue::from_static("text/plain");
        response.headers_mut().insert(CONTENT_TYPE, text);
        return response;
    }
    let location = https(request);
    match location.and_then(|location| HeaderValue::try_from(location).ok()) {
        Some(location) => {
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            response.headers_mut().insert(LOCATION, location);
        }
        None => *response.status_mut() = StatusCode::BAD_REQUEST,
    }
    response
}

/// The same address over HTTPS, where its path is judged. A port belongs to clear text, so it is
/// left out. `None`: the request names no host, or no path.
fn https<B>(request: &Request<B>) -> Option<String> {
    let uri = request.uri();
    let authority = authority_of(uri, request.headers()).ok()?;
    let authority = Authority::parse(authority, Scheme::Http).ok()?;
    let path = uri.path();
    if *request.method() == Method::CONNECT || !path.starts_with('/') {
        return None;
    }
    let (host, path) = (authority.name(), visible(path));
    let query = uri
        .query()
        .map(without_session)
        .filter(|query| !query.is_empty());
    Some(match query {
        Some(query) => format!("https://{host}{path}?{}", visible(&query)),
        None => format!("https://{host}{path}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_same_over_https() {
        let location = |method: Method, target: &str, host: &str| {
            let request = Request::builder().method(method).uri(target);
            let request = request.header("host", host).body(()).unwrap();
            let answer = answer(&request, false);
            let location = answer.headers().get(LOCATION);
            (
                answer.status().as_u16(),
                location.map(|location| location.to_str().unwrap().to_owned()),
            )
        };
        for (target, host, expected) in [
            ("/", "A.test:80", "https://a.test/"),
            (
                "/a%2Fb/../c//d?x=%2f&y='",
                "a.test",
                "https://a.test/a%2Fb/../c//d?x=%2f&y='",
            ),
            ("//evil.test/x", "a.test", "https://a.test//evil.test/x"),
            ("/%00/ä?ö", "a.test", "https://a.test/%00/%C3%A4?%C3%B6"),
            ("/x?pomerium_session=s&b", "a.test", "https://a.test/x?b"),
            ("http://a.test:8080/x", "a.test:8080", "https://a.test/x"),
        ] {
            let found = location(Method::GET, target, host);
            assert_eq!(found, (301, Some(expected.to_owned())), "{target}");
        }
        for (method, target, host) in [
            (Method::CONNECT, "a.test:443", "a.test:443"),
            (Method::CONNECT, "http://a.test/x", "a.test"),
            (Method::OPTIONS, "*", "a.test"),
            (Method::GET, "/", "user@a.test"),
            (Method::GET, "http://b.test/", "a.test"),
        ] {
            assert_eq!(location(method, target, host), (400, None), "{target}");
        }
    }
}
