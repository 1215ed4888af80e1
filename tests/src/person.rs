//! Somebody with an HTTP client and a cookie jar of their own, or a program without one.
//!
//! Every name resolves to this machine, and redirects are followed only when asked to, so that a
//! test sees each answer.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, client::IntoClientRequest};
use url::Url;

/// What CONNECT opens.
pub type Tunnel = TlsStream<TcpStream>;

pub type WebSocket = WebSocketStream<TlsStream<TcpStream>>;

/// No answer may take longer.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone)]
pub struct Person {
    tls: TlsConnector,
    /// What every request of this person carries.
    headers: HeaderMap,
    /// Host → cookie name → value.
    jar: Arc<Mutex<BTreeMap<String, BTreeMap<String, String>>>>,
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub url: Url,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Person {
    /// A browser that trusts `authority`.
    pub fn browser(authority: &std::path::Path) -> Self {
        let mut person = Self::program(authority);
        person.headers.insert(
            header::ACCEPT,
            HeaderValue::from_static("text/html,application/xhtml+xml,*/*;q=0.8"),
        );
        person
            .headers
            .insert("sec-fetch-mode", HeaderValue::from_static("navigate"));
        person
    }

    /// A program: it says that it takes JSON, and keeps cookies all the same.
    pub fn program(authority: &std::path::Path) -> Self {
        Self {
            tls: trusting(authority, &[]),
            headers: HeaderMap::from_iter([(
                header::ACCEPT,
                HeaderValue::from_static("application/json"),
            )]),
            jar: Arc::default(),
        }
    }

    /// The same person, one more header on every request.
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(
            HeaderName::from_static(name),
            value.parse().expect("a header value"),
        );
        self
    }

    pub fn cookies(&self, host: &str) -> BTreeMap<String, String> {
        let jar = self
            .jar
            .lock()
            .expect("no test panics with the jar in hand");
        jar.get(host).cloned().unwrap_or_default()
    }

    pub fn set_cookie(&self, host: &str, name: &str, value: &str) {
        let mut jar = self
            .jar
            .lock()
            .expect("no test panics with the jar in hand");
        jar.entry(host.to_owned())
            .or_default()
            .insert(name.to_owned(), value.to_owned());
    }

    pub async fn get(&self, url: &str) -> Answer {
        self.send(Method::GET, url, Bytes::new()).await
    }

    /// Follows redirects to the end and gives every answer on the way.
    pub async fn follow(&self, url: &str) -> Vec<Answer> {
        or_panic(self.try_follow(url).await)
    }

    /// As [`Self::follow`], but a failure is an outcome.
    pub async fn try_follow(&self, url: &str) -> Result<Vec<Answer>, String> {
        let mut answers = vec![self.try_get(url).await?];
        while let Some(next) = answers.last().and_then(Answer::location) {
            assert!(answers.len() < 20, "redirected in circles: {answers:#?}");
            answers.push(self.try_get(next.as_str()).await?);
        }
        Ok(answers)
    }

    /// Sends a form as a page of the same site would; a failure is an outcome.
    pub async fn post_form(&self, url: &str, fields: &[(&str, &str)]) -> Result<Answer, String> {
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        self.clone()
            .with_header("content-type", "application/x-www-form-urlencoded")
            .with_header("sec-fetch-site", "same-origin")
            .try_send(Method::POST, url, Bytes::from(body))
            .await
    }

    pub async fn send(&self, method: Method, url: &str, body: Bytes) -> Answer {
        or_panic(self.try_send(method, url, body).await)
    }

    pub async fn try_get(&self, url: &str) -> Result<Answer, String> {
        self.try_send(Method::GET, url, Bytes::new()).await
    }

    /// As [`Self::send`], but a failure is an outcome.
    async fn try_send(&self, method: Method, url: &str, body: Bytes) -> Result<Answer, String> {
        let url = Url::parse(url).map_err(|error| format!("{url}: {error}"))?;
        match tokio::time::timeout(PATIENCE, self.exchange(method, &url, body)).await {
            Ok(Ok(answer)) => {
                self.keep_cookies(&answer);
                Ok(answer)
            }
            Ok(Err(error)) => Err(format!("{url}: {error}")),
            Err(_) => Err(format!("no answer from {url} within {PATIENCE:?}")),
        }
    }

    /// Opens a WebSocket; the error is the answer that came instead.
    pub async fn websocket(&self, url: &str) -> Result<WebSocket, http::Response<Option<Vec<u8>>>> {
        let mut request = url.into_client_request().expect("a WebSocket's URL");
        let host = request.uri().host().expect("a host").to_owned();
        let cookies = self.cookie_header(&host);
        if !cookies.is_empty() {
            let cookies = cookies.parse().expect("a header value");
            request.headers_mut().insert(header::COOKIE, cookies);
        }
        let port = request.uri().port_u16().expect("a port");
        let connecting = async {
            let stream = self.connect(&host, port).await.expect("a connection");
            tokio_tungstenite::client_async(request, stream).await
        };
        let outcome = tokio::time::timeout(PATIENCE, connecting)
            .await
            .unwrap_or_else(|_| panic!("no WebSocket from {url} within {PATIENCE:?}"));
        match outcome {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(response)) => Err(*response),
            Err(error) => panic!("{url}: {error}"),
        }
    }

    /// Opens a tunnel to `destination` at the proxy of `url`; the error is the head of the answer
    /// that came instead.
    pub async fn tunnel(&self, url: &str, destination: &str) -> Result<Tunnel, String> {
        let url = Url::parse(url).expect("a URL");
        let (host, port) = (url.host_str().expect("a host"), url.port().expect("a port"));
        let mut request = format!("CONNECT {destination} HTTP/1.1\r\nhost: {destination}\r\n");
        for (name, value) in &self.headers {
            let value = value.to_str().expect("a header is text");
            write!(request, "{name}: {value}\r\n").expect("text grows");
        }
        request.push_str("\r\n");
        let connecting = async {
            let mut stream = self.connect(host, port).await.expect("a connection");
            stream
                .write_all(request.as_bytes())
                .await
                .expect("it can be sent");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a whole head"));
            }
            (stream, String::from_utf8_lossy(&head).into_owned())
        };
        let (stream, head) = tokio::time::timeout(PATIENCE, connecting)
            .await
            .unwrap_or_else(|_| panic!("no answer from {url} within {PATIENCE:?}"));
        if head.starts_with("HTTP/1.1 200") {
            Ok(stream)
        } else {
            Err(head)
        }
    }

    /// Sends bytes as they are to the host and port of `url`, and gives all that comes back.
    pub async fn raw(&self, url: &str, bytes: &[u8]) -> String {
        let url = Url::parse(url).expect("a URL");
        let (host, port) = (url.host_str().expect("a host"), url.port().expect("a port"));
        let mut stream = self.connect(host, port).await.expect("a connection");
        stream.write_all(bytes).await.expect("it can be sent");
        let mut answer = Vec::new();
        // Whoever refuses may cut the connection; what came until then counts.
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .expect("the connection is closed");
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn connect(&self, host: &str, port: u16) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect((address_of(host), port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
        self.tls.connect(name, stream).await
    }

    /// The value of `Cookie` for a host.
    pub fn cookie_header(&self, host: &str) -> String {
        self.cookies(host)
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
            .join("; ")
    }

    async fn exchange(
        &self,
        method: Method,
        url: &Url,
        body: Bytes,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let host = url.host_str().ok_or("a URL without a host")?;
        let port = url.port_or_known_default().ok_or("a URL without a port")?;
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(&url[url::Position::BeforePath..url::Position::AfterQuery])
            .header(header::HOST, authority);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let cookies = self.cookie_header(host);
        if !cookies.is_empty() {
            request = request.header(header::COOKIE, cookies);
        }
        let request = request.body(Full::new(body))?;
        let response = if url.scheme() == "https" {
            round_trip(TokioIo::new(self.connect(host, port).await?), request).await?
        } else {
            let stream = TcpStream::connect((address_of(host), port)).await?;
            stream.set_nodelay(true)?;
            round_trip(TokioIo::new(stream), request).await?
        };
        let (head, body) = response.into_parts();
        Ok(Answer {
            url: url.clone(),
            status: head.status,
            headers: head.headers,
            body,
        })
    }

    fn keep_cookies(&self, answer: &Answer) {
        let mut jar = self
            .jar
            .lock()
            .expect("no test panics with the jar in hand");
        let host = answer.url.host_str().unwrap_or_default().to_owned();
        let cookies = jar.entry(host).or_default();
        for line in answer.set_cookies() {
            let (pair, attributes) = line.split_once(';').unwrap_or((&line, ""));
            let (name, value) = pair.split_once('=').expect("a cookie has a name");
            let gone = attributes
                .split(';')
                .any(|attribute| attribute.trim().eq_ignore_ascii_case("max-age=0"));
            if gone {
                cookies.remove(name);
            } else {
                cookies.insert(name.to_owned(), value.to_owned());
            }
        }
    }
}

fn or_panic<T>(outcome: Result<T, String>) -> T {
    outcome.unwrap_or_else(|error| panic!("{error}"))
}

/// TLS to whoever has a certificate of `authority`, offering these protocols.
pub fn trusting(authority: &std::path::Path, protocols: &[&str]) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority).expect("a PEM file") {
        roots
            .add(certificate.expect("a certificate"))
            .expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider knows TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| (*name).into()).collect();
    TlsConnector::from(Arc::new(config))
}

/// Where a URL's host is: every name is this machine.
fn address_of(host: &str) -> IpAddr {
    host.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

async fn round_trip<I>(
    io: I,
    request: Request<Full<Bytes>>,
) -> Result<http::Response<Bytes>, Box<dyn std::error::Error + Send + Sync>>
where
    I: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let driver = tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    driver.abort();
    Ok(http::Response::from_parts(head, body))
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Where a redirect leads.
    pub fn location(&self) -> Option<Url> {
        let target = self
            .header("location")
            .filter(|_| self.status.is_redirection())?;
        Some(self.url.join(target).expect("a location is a URL"))
    }

    pub fn set_cookies(&self) -> Vec<String> {
        self.headers
            .get_all(header::SET_COOKIE)
            .iter()
            .map(|value| value.to_str().expect("a cookie is text").to_owned())
            .collect()
    }
}
