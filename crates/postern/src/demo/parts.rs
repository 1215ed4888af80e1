//! Parts of the demo, each as a process of its own: for compose files and scripts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use postern_common::tls::{
    self, Alpn, Certificate, Certificates, PemError, SwapCertificates, TlsError, Trust, pem,
};
use tokio::net::TcpListener;

use super::certificates::{self, CertificateError};
use super::idp::{self, DemoIdp, Redirects};
use super::listener::TlsListener;
use super::sample::{self, KeysError, Published, PublishedKeys};

#[derive(Debug, clap::Subcommand)]
pub enum Part {
    /// The OpenID provider alone
    Provider {
        #[command(flatten)]
        server: ServerArgs,
        /// The URL that browsers and Postern reach it by
        #[arg(long)]
        issuer: String,
    },
    /// The sample application alone
    Upstream {
        #[command(flatten)]
        server: ServerArgs,
        /// A URL that the application is reached by through Postern; its host is the audience of
        /// assertions. May be repeated
        #[arg(long, required = true)]
        public_url: Vec<String>,
        /// PEM file of an authority to trust beside the system's, to fetch the assertion's keys
        #[arg(long)]
        authority_file: Option<PathBuf>,
    },
    /// Make a certificate authority and a certificate, where nothing of the kind is there yet
    Certificates {
        /// Where ca.pem, certificate.pem and certificate-key.pem go
        directory: PathBuf,
        /// DNS names, wildcards included
        #[arg(required = true)]
        names: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
pub struct ServerArgs {
    /// Where to listen; without a host on every interface
    #[arg(long)]
    address: String,
    /// PEM file of the certificate chain
    #[arg(long)]
    certificate_file: PathBuf,
    /// PEM file of its key
    #[arg(long)]
    certificate_key_file: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum PartError {
    #[error("{0:?} is no address to listen on, such as :8443 or 127.0.0.1:8443")]
    Address(String),
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Certificates(#[from] CertificateError),
}

/// Runs until it is killed, or until the files are written.
pub async fn run(part: Part) -> Result<(), PartError> {
    match part {
        Part::Provider { server, issuer } => {
            serve(server, idp::router(DemoIdp::new(&issuer, Redirects::Any))).await
        }
        Part::Upstream {
            server,
            public_url,
            authority_file,
        } => {
            let mut trust = Trust::system();
            if let Some(file) = authority_file {
                let origin = file.display().to_string();
                trust = trust.and(&pem::certificates(&read(&file)?, &origin)?, &origin)?;
            }
            let names: Vec<_> = public_url
                .iter()
                .map(|url| Published::at(url))
                .collect::<Result<_, _>>()?;
            let keys = PublishedKeys::new(&names, &trust)?;
            serve(server, sample::router(Arc::new(keys))).await
        }
        Part::Certificates { directory, names } => {
            certificates::ensure(&directory, &names)?;
            Ok(())
        }
    }
}

async fn serve(args: ServerArgs, router: Router) -> Result<(), PartError> {
    let certificate = Certificate::from_pem(
        &read(&args.certificate_file)?,
        &args.certificate_file.display().to_string(),
        &read(&args.certificate_key_file)?,
        &args.certificate_key_file.display().to_string(),
    )?;
    // The only one, so whatever name is asked for.
    let certificates = Certificates::new([(&[][..], certificate.key)]);
    let config = tls::server_config(SwapCertificates::new(certificates), Alpn::H2OrHttp1, None)?;
    let address = listen_address(&args.address)?;
    let listen = |source| PartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let listener = TlsListener::new(listener, config).map_err(listen)?;
    // It never ends by itself.
    axum::serve(listener, router).await.map_err(listen)
}

/// `:8443` is every interface.
fn listen_address(text: &str) -> Result<SocketAddr, PartError> {
    let full = match text.strip_prefix(':') {
        Some(port) => format!("0.0.0.0:{port}"),
        None => text.to_owned(),
    };
    full.parse()
        .map_err(|_| PartError::Address(text.to_owned()))
}

fn read(path: &Path) -> Result<Vec<u8>, PartError> {
    std::fs::read(path).map_err(|source| PartError::Read {
        path: path.to_owned(),
        source,
    })
}
