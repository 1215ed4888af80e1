//! A real upstream: tells what it got, streams, breaks off, upgrades.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What an upstream got.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub headers: HeaderMap,
    pub version: http::Version,
}

#[derive(Clone)]
pub struct Upstream {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    pub connections: Arc<AtomicUsize>,
    ticking: Arc<AtomicUsize>,
}

/// An answer of `/ticks` that goes on.
struct Ticking(Arc<AtomicUsize>);

impl Ticking {
    fn on(upstream: &Upstream) -> Self {
        upstream.ticking.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(&upstream.ticking))
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Upstream {
    pub async fn http() -> Self {
        Self::start(None).await
    }

    pub async fn https(tls: Arc<rustls::ServerConfig>) -> Self {
        Self::start(Some(tls)).await
    }

    async fn start(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = Self {
            address: listener.local_addr().unwrap(),
            seen: Arc::default(),
            connections: Arc::default(),
            ticking: Arc::default(),
        };
        let this = upstream.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                this.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(this.clone().connection(stream, tls.clone()));
            }
        });
        upstream
    }

    async fn connection(self, stream: TcpStream, tls: Option<Arc<rustls::ServerConfig>>) {
        stream.set_nodelay(true).unwrap();
        let service = service_fn(move |request| {
            let this = self.clone();
            async move { this.answer(request).await }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().preserve_header_case(true);
        match tls {
            None => drop(
                builder
                    .serve_connection_with_upgrades(TokioIo::new(stream), service)
                    .await,
            ),
            Some(tls) => {
                if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                    let io = TokioIo::new(stream);
                    drop(builder.serve_connection_with_upgrades(io, service).await);
                }
            }
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers of `/ticks` that go on.
    pub fn ticking(&self) -> usize {
        self.ticking.load(Ordering::SeqCst)
    }

    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub fn last(&self) -> Seen {
        self.seen
            .lock()
            .unwrap()
            .last()
            .cloned()
            .expect("the upstream was asked")
    }

    async fn answer(
        self,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, std::io::Error> {
        self.seen.lock().unwrap().push(Seen {
            method: request.method().to_string(),
            target: request.uri().path_and_query().unwrap().to_string(),
            headers: request.headers().clone(),
            version: request.version(),
        });
        let path = request.uri().path().to_owned();
        Ok(match path.as_str() {
            // Sends back what comes, as it comes.
            "/echo" => {
                let body = request
                    .into_body()
                    .map_err(std::io::Error::other)
                    .boxed_unsync();
                Response::new(body)
            }
            "/trailers" => with_trailers(
                ("content-type", "application/grpc"),
                &[("grpc-status", "5")],
            ),
            // With trailers of HTTP/1.1, one of them announced.
            "/checked" => with_trailers(
                ("trailer", "X-Checksum"),
                &[("x-checksum", "abc"), ("x-other", "x")],
            ),
            // Ends in the middle.
            "/broken" => {
                let frames = futures::stream::iter([Ok(Frame::data(Bytes::from("half")))]);
                let end = futures::stream::once(async {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Err(std::io::Error::other("broken"))
                });
                let mut response = Response::new(stream(frames.chain(end)));
                response
                    .headers_mut()
                    .insert("content-length", "8".parse().unwrap());
                response
            }
            // A byte each 50 ms, for ever.
            "/ticks" => {
                let ticks = futures::stream::unfold(Ticking::on(&self), |ticking| async {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Some((Ok(Frame::data(Bytes::from("."))), ticking))
                });
                Response::new(stream(ticks))
            }
            "/never" => std::future::pending().await,
            "/slow" => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                full("slow")
            }
            "/cookies" => {
                let mut response = full("ok");
                for value in ["_pomerium=evil", "theme=dark"] {
                    response
                        .headers_mut()
                        .append("set-cookie", value.parse().unwrap());
                }
                response
                    .headers_mut()
                    .insert("x-frame-options", "ALLOWALL".parse().unwrap());
                response
            }
            // Says that it keeps the connection, and closes it.
            "/closes" => {
                let mut response = full("closing");
                response
                    .headers_mut()
                    .insert("connection", "close".parse().unwrap());
                response
            }
            "/ws" | "/spdy" => {
                let upgrade = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let mut io = TokioIo::new(upgrade.await.unwrap());
                    let mut buffer = [0; 1024];
                    while let Ok(n @ 1..) = io.read(&mut buffer).await {
                        // A masked frame comes back unmasked, anything else as it is.
                        let back = unmask(&buffer[..n]).unwrap_or_else(|| buffer[..n].to_vec());
                        if io.write_all(&back).await.is_err() {
                            break;
                        }
                    }
                });
                let token = request.headers()[UPGRADE].clone();
                let mut response = full("");
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                let headers = response.headers_mut();
                headers.insert(CONNECTION, "Upgrade".parse().unwrap());
                headers.insert(UPGRADE, token);
                if let Some(key) = request.headers().get("sec-websocket-key") {
                    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(
                        key.as_bytes(),
                    );
                    headers.insert("sec-websocket-accept", accept.parse().unwrap());
                }
                response
            }
            // Switches without being asked.
            "/rude" => {
                let mut response = full("");
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                response
                    .headers_mut()
                    .insert(CONNECTION, "Upgrade".parse().unwrap());
                response
                    .headers_mut()
                    .insert(UPGRADE, "websocket".parse().unwrap());
                response
            }
            _ => full("hello"),
        })
    }
}

fn unmask(frame: &[u8]) -> Option<Vec<u8>> {
    let [first, second, mask @ ..] = frame else {
        return None;
    };
    let length = usize::from(second & 0x7f);
    if second & 0x80 == 0 || length > 125 || mask.len() != 4 + length {
        return None;
    }
    let payload = mask[4..]
        .iter()
        .enumerate()
        .map(|(i, byte)| byte ^ mask[i % 4]);
    let mut out = vec![*first, second & 0x7f];
    out.extend(payload);
    Some(out)
}

fn full(text: &'static str) -> Response<Body> {
    Response::new(
        Full::from(text)
            .map_err(|never: Infallible| match never {})
            .boxed_unsync(),
    )
}

/// Some data, and these trailers after it.
fn with_trailers(
    header: (&'static str, &str),
    trailers: &[(&'static str, &str)],
) -> Response<Body> {
    let field = |(name, value): (&'static str, &str)| {
        (http::HeaderName::from_static(name), value.parse().unwrap())
    };
    let trailers: HeaderMap = trailers.iter().copied().map(field).collect();
    let frames = [
        Ok(Frame::data(Bytes::from("data"))),
        Ok(Frame::trailers(trailers)),
    ];
    let mut response = Response::new(stream(futures::stream::iter(frames)));
    response.headers_mut().extend([field(header)]);
    response
}

fn stream(
    frames: impl futures::Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send + 'static,
) -> Body {
    StreamBody::new(frames).boxed_unsync()
}
