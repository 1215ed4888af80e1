//! The service on a real socket.

use std::sync::Arc;

use postern_common::config::{ServerCertificate, ServerTls};
use postern_common::lifecycle::{DrainTiming, Lifecycle, Phase};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::support::{HOST, World};
use crate::serve::{ListenerTls, serve};

async fn ping(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
    let request = format!("GET /ping HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"OK\n") {
        let read = stream.read_buf(&mut answer).await.unwrap();
        assert_ne!(
            read,
            0,
            "closed after {:?}",
            String::from_utf8_lossy(&answer)
        );
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn c14_a_drain_finishes_what_is_open() {
    let world = World::new();
    let timing = DrainTiming {
        settle: std::time::Duration::from_secs(60),
        ..DrainTiming::immediate()
    };
    let lifecycle = Lifecycle::new(timing);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (router, serving) = (world.router.clone(), lifecycle.clone());
    let server = tokio::spawn(async move { serve(listener, None, router, &serving).await });
    let mut open = TcpStream::connect(address).await.unwrap();
    assert!(!ping(&mut open).await.contains("connection: close"));
    lifecycle.drain();
    let draining = lifecycle.clone();
    tokio::spawn(async move { draining.run_to_end().await });
    lifecycle.reached(Phase::ListenersClosed).await;
    server.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
    // A connection that was open is served once more, and told that it was the last time.
    assert!(ping(&mut open).await.contains("connection: close"));
    assert_eq!(open.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn tls_by_the_configured_certificate() {
    let signed = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
    let der = signed.cert.der().clone();
    let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
    let certified = rustls::sign::CertifiedKey::from_der(
        vec![der.clone()],
        key,
        &postern_common::tls::provider(),
    );
    let world = World::with(|config| {
        config.server_tls = ServerTls::Certificates(vec![Arc::new(ServerCertificate {
            key: Arc::new(certified.unwrap()),
            names: vec![HOST.into()],
            self_signed: false,
            not_after: i64::MAX,
            origin: "test".into(),
        })]);
    });
    let tls = ListenerTls::new(&world.config).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let lifecycle = Lifecycle::new(DrainTiming::immediate());
    let (router, serving) = (world.router.clone(), lifecycle.clone());
    tokio::spawn(async move { serve(listener, tls, router, &serving).await });
    let client = client(der);
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(HOST).unwrap();
    let mut stream = client.connect(name, stream).await.unwrap();
    assert!(ping(&mut stream).await.starts_with("HTTP/1.1 200 OK"));
}

fn client(trusted: CertificateDer<'static>) -> tokio_rustls::TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(postern_common::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tokio_rustls::TlsConnector::from(Arc::new(config))
}
