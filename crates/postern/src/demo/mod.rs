//! `postern demo`: everything on one machine, to try and to read.
//!
//! The demo itself is only an OpenID provider, a sample application and a supervisor. Postern runs
//! beside it as it always does, in one process or four, from a configuration file that the demo
//! wrote and that anyone may edit while it runs.

mod certificates;
mod files;
pub mod idp;
mod listener;
mod parts;
mod processes;
pub mod sample;
mod text;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpListener;

pub use certificates::{CertificateError, CertificateFiles, ensure as ensure_certificates};
use files::WriteError;
use idp::DemoIdp;
use listener::ClearListener;
use parts::{Part, PartError};
use postern_common::tls::{PemError, TlsError, Trust, pem};
use processes::{Interrupt, ProcessError, Processes};
use sample::{KeysError, Published, PublishedKeys};

/// Of the certificate. OpenSSL takes no wildcard right below the top, so the demo's own names
/// stand beside it.
const NAMES: [&str; 6] = [
    "hello.localhost",
    "engineering.localhost",
    "public.localhost",
    "auth.localhost",
    "localhost",
    "*.localhost",
];

/// How many processes the demo's Postern is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// One process runs all four services.
    All,
    /// A process for each service; they talk gRPC.
    Split,
}

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DemoArgs {
    #[command(subcommand)]
    part: Option<Part>,
    /// One process for all services, or one for each
    #[arg(long, value_enum, default_value = "all")]
    services: Layout,
    /// Keep the configuration, certificates and logs in this directory and start from what is
    /// there; without it they live in a temporary one
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// The port to open in the browser; the demo also uses the nine ports after it, all on loopback
    #[arg(long, default_value_t = 8443)]
    port: u16,
}

/// Addresses and URLs of everything in the demo.
#[derive(Debug)]
pub struct Places {
    pub address: SocketAddr,
    pub hello: String,
    pub engineering: String,
    pub public: String,
    pub authenticate: String,
    pub authenticate_internal: String,
    pub authorize: String,
    pub databroker: String,
    pub provider: String,
    pub sample: String,
    pub certificates: CertificateFiles,
    ports: Ports,
}

/// Ten ports in a row, on loopback.
#[derive(Debug, Clone, Copy)]
struct Ports {
    first: u16,
}

impl Ports {
    const PROVIDER: u16 = 1;
    const SAMPLE: u16 = 2;
    const AUTHENTICATE: u16 = 3;
    const AUTHORIZE: u16 = 4;
    const DATABROKER: u16 = 5;
    /// The first of four health listeners, or the only one.
    const HEALTH: u16 = 6;

    fn address(self, offset: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.first.saturating_add(offset)))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("cannot make a temporary directory")]
    Directory(#[source] std::io::Error),
    #[error(transparent)]
    Certificates(#[from] CertificateError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("cannot listen on {address}; choose other ports with --port")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Trust(#[from] TlsError),
    #[error("cannot read the demo's own certificate authority")]
    Authority(#[from] PemError),
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Part(#[from] PartError),
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// Runs until interrupted.
pub async fn run(args: DemoArgs) -> Result<(), DemoError> {
    if let Some(part) = args.part {
        return Ok(parts::run(part).await?);
    }
    let temporary = tempfile::Builder::new()
        .prefix("postern-demo-")
        .tempdir()
        .map_err(DemoError::Directory)?;
    let directory = args.write.unwrap_or_else(|| temporary.path().to_owned());
    let names = NAMES.map(str::to_owned);
    let places = Places::new(args.port, certificates::ensure(&directory, &names)?);
    let config = files::ensure_config(&directory, &places, args.services == Layout::Split)?;

    let provider = listen(places.ports.address(Ports::PROVIDER)).await?;
    let application = listen(places.ports.address(Ports::SAMPLE)).await?;
    let names = [&places.hello, &places.engineering, &places.public];
    let names: Vec<_> = names
        .into_iter()
        .map(|url| Published::at(url))
        .collect::<Result<_, _>>()?;
    let keys = PublishedKeys::new(&names, &trust(&places.certificates.authority)?)?;
    let idp = DemoIdp::for_postern_at(&places.provider, &places.authenticate);
    let provider = axum::serve(provider, idp::router(idp));
    let application = axum::serve(application, sample::router(Arc::new(keys)));

    let mut interrupt = Interrupt::listen()?;
    let mut processes = Processes::start(args.services, &config, &directory, &places)?;
    let failed = async {
        if let Err(error) = processes.ready().await {
            return error;
        }
        text::print(&places, &config, &directory);
        processes.ended().await
    };
    let result = tokio::select! {
        error = failed => Err(error),
        () = interrupt.came() => Ok(()),
        // Neither server ends by itself.
        _ = provider.into_future() => Ok(()),
        _ = application.into_future() => Ok(()),
    };
    processes.stop().await;
    Ok(result?)
}

impl Places {
    fn new(port: u16, certificates: CertificateFiles) -> Self {
        let ports = Ports { first: port };
        let host = |name: &str| format!("https://{name}.localhost:{port}");
        Self {
            address: ports.address(0),
            hello: host("hello"),
            engineering: host("engineering"),
            public: host("public"),
            authenticate: host("auth"),
            authenticate_internal: format!(
                "https://auth.localhost:{}",
                ports.address(Ports::AUTHENTICATE).port()
            ),
            authorize: format!("http://{}", ports.address(Ports::AUTHORIZE)),
            databroker: format!("http://{}", ports.address(Ports::DATABROKER)),
            provider: format!("http://localhost:{}", ports.address(Ports::PROVIDER).port()),
            sample: format!("http://{}", ports.address(Ports::SAMPLE)),
            certificates,
            ports,
        }
    }
}

/// The system's authorities and the one in `file`.
fn trust(file: &Path) -> Result<Trust, DemoError> {
    let text = std::fs::read(file).map_err(|source| DemoError::Read {
        path: file.to_owned(),
        source,
    })?;
    let origin = file.display().to_string();
    Ok(Trust::system().and(&pem::certificates(&text, &origin)?, &origin)?)
}

async fn listen(address: SocketAddr) -> Result<ClearListener, DemoError> {
    TcpListener::bind(address)
        .await
        .map(ClearListener)
        .map_err(|source| DemoError::Listen { address, source })
}
