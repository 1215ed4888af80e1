//! Peers and upstreams with one thing wrong.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use http::{HeaderName, HeaderValue, Response};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// An authorize that is well but for what it says about itself.
pub struct Peer {
    pub date: Option<&'static str>,
    pub version: &'static str,
}

impl Peer {
    pub async fn serve(self, address: &str) {
        let listener = TcpListener::bind(address).await.unwrap();
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter
            .set_service_status("pomerium-authorize", tonic_health::ServingStatus::Serving)
            .await;
        let router = tonic::service::Routes::new(health).into_axum_router();
        let router = router.layer(axum::middleware::map_response(
            move |mut response: Response<Body>| {
                let headers = response.headers_mut();
                let version = HeaderName::from_static("x-postern-version");
                headers.insert(version, HeaderValue::from_static(self.version));
                if let Some(date) = self.date {
                    headers.insert(http::header::DATE, HeaderValue::from_static(date));
                }
                std::future::ready(response)
            },
        ));
        tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
    }
}

/// Says something to everybody who comes.
pub async fn talks(address: &str, words: &'static [u8]) {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(words).await;
                // Until the other end has read it.
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            });
        }
    });
}

/// When a certificate holds.
#[derive(Clone, Copy)]
pub enum Life {
    Now,
    Over,
    NotYet,
    /// Another day of a year.
    Nearly,
}

impl Life {
    fn span(self) -> (SystemTime, SystemTime) {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        let now = SystemTime::from(jiff::Timestamp::now());
        match self {
            Self::Now => (now - DAY, now + 100 * DAY),
            Self::Over => (now - 2 * DAY, now - DAY),
            Self::NotYet => (now + DAY, now + 100 * DAY),
            Self::Nearly => (now - 364 * DAY, now + DAY),
        }
    }
}

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Certificate and key.
    pub fn issue(&self, names: &[&str], life: Life) -> (String, String) {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        let (from, to) = life.span();
        params.not_before = from.into();
        params.not_after = to.into();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A server of TLS that says nothing else; its port on this machine.
    pub async fn serve(&self, name: &str, life: Life) -> u16 {
        let (certificate, key) = self.issue(&[name], life);
        let chain = rustls_pki_types::CertificateDer::pem_slice_iter(certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(postern_common::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    if let Ok(mut stream) = acceptor.accept(stream).await {
                        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                    }
                });
            }
        });
        port
    }
}
