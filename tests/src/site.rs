//! What surrounds Postern in a test: certificates, an OpenID provider, an upstream.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::Router;
use postern::demo::{CertificateFiles, ensure_certificates};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A directory with a certificate for `*.corp.test`, as the cases have it, and `*.localhost`.
pub struct Site {
    pub directory: tempfile::TempDir,
    pub certificates: CertificateFiles,
}

impl Site {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let names = ["corp.test", "*.corp.test", "localhost", "*.localhost"].map(str::to_owned);
        let certificates = ensure_certificates(directory.path(), &names).expect("certificates");
        Self {
            directory,
            certificates,
        }
    }

    /// The authority that issued the certificates.
    pub fn authority(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(&self.certificates.authority)
            .expect("a PEM file")
            .collect::<Result<_, _>>()
            .expect("certificates")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

/// A server of the test's own; it ends with this value.
pub struct Server {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(router: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Self::on(listener, router)
    }

    /// For servers that must know their own address before they exist.
    pub fn on(listener: TcpListener, router: Router) -> Self {
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("a server runs");
        });
        Self { address, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}
