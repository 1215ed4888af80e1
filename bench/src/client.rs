//! A blocking HTTP/1.1 client on TLS: a thread each, so that a latency holds no timer's grain.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::{CertificateDer, ServerName};

/// No answer may take longer.
const PATIENCE: Duration = Duration::from_secs(60);

pub type Tls = StreamOwned<ClientConnection, TcpStream>;

#[derive(Debug, Clone)]
pub struct Connector {
    tls: Arc<ClientConfig>,
}

pub struct Connection {
    stream: Tls,
    /// Read and not used yet.
    buffer: Vec<u8>,
}

/// An answer's status, and its body's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub length: usize,
}

impl Connector {
    pub fn new(authority: Vec<CertificateDer<'static>>) -> Self {
        let mut roots = RootCertStore::empty();
        for certificate in authority {
            roots.add(certificate).expect("an authority");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        tls.resumption = rustls::client::Resumption::disabled();
        Self { tls: Arc::new(tls) }
    }

    /// Connects to `port` on loopback for the host of `authority`.
    pub fn tls(&self, port: u16, authority: &str) -> io::Result<Tls> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let host = authority.split(':').next().unwrap_or_default().to_owned();
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        let session =
            ClientConnection::new(Arc::clone(&self.tls), name).map_err(io::Error::other)?;
        Ok(StreamOwned::new(session, stream))
    }

    /// The body of a page of `port`, without TLS.
    pub fn plain(port: u16, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        let head = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (_, body) = text.split_once("\r\n\r\n").unwrap_or_default();
        Ok(body.to_owned())
    }

    /// Whether a page of `port` is there and says 200.
    pub fn is_ok(port: u16, path: &str) -> bool {
        let asked = TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| {
            let head = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
            stream.write_all(head.as_bytes())?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text.split(' ').nth(1) == Some("200"))
        });
        asked.unwrap_or(false)
    }

    pub fn connect(&self, port: u16, authority: &str) -> io::Result<Connection> {
        Ok(Connection {
            stream: self.tls(port, authority)?,
            buffer: Vec::new(),
        })
    }
}

impl Connection {
    /// Sends a head and reads the answer, whose body is dropped.
    pub fn exchange(&mut self, head: &str) -> io::Result<Answer> {
        self.stream.write_all(head.as_bytes())?;
        let (status, length) = self.head()?;
        let mut left = length.saturating_sub(self.buffer.len());
        self.buffer.drain(..length.min(self.buffer.len()));
        let mut sink = vec![0; left.min(1 << 16)];
        while left > 0 {
            let n = self.stream.read(&mut sink)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left = left.saturating_sub(n);
        }
        Ok(Answer { status, length })
    }

    /// The same, and gives the body.
    pub fn body(&mut self, head: &str) -> io::Result<(u16, Vec<u8>)> {
        self.stream.write_all(head.as_bytes())?;
        let (status, length) = self.head()?;
        while self.buffer.len() < length {
            self.more()?;
        }
        Ok((status, self.buffer.drain(..length).collect()))
    }

    /// Sends a head and `length` bytes after it.
    pub fn upload(&mut self, head: &str, length: usize) -> io::Result<Answer> {
        self.stream.write_all(head.as_bytes())?;
        let chunk = vec![0; 1 << 16];
        let mut left = length;
        while left > 0 {
            let n = left.min(chunk.len());
            self.stream.write_all(&chunk[..n])?;
            left -= n;
        }
        self.exchange("")
    }

    /// Status and `Content-Length`.
    fn head(&mut self) -> io::Result<(u16, usize)> {
        let end = loop {
            let found = self.buffer.windows(4).position(|it| it == b"\r\n\r\n");
            match found {
                Some(at) => break at + 4,
                None => self.more()?,
            }
        };
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let status = head.get(9..12).and_then(|it| it.parse().ok());
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .and_then(|value| value.trim().parse().ok());
        status
            .zip(length.or(Some(0)))
            .ok_or_else(|| io::Error::other(format!("no HTTP: {head}")))
    }

    fn more(&mut self) -> io::Result<()> {
        let mut chunk = [0; 1 << 14];
        let n = self.stream.read(&mut chunk)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.extend_from_slice(&chunk[..n]);
        Ok(())
    }
}
