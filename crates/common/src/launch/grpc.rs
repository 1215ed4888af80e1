//! The gRPC listener of a process that runs authorize or databroker.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tonic::service::Routes;

use super::Launched;
use crate::config::{Config, GrpcListenerSecurity, ServerTls, Service};
use crate::rpc::server::{self, HealthName, Server};
use crate::tls::{self, Alpn, Certificates, SwapCertificates, TlsError};

#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    #[error(
        "cannot listen on {address}; is another process using the port, or does a port below 1024 \
         need CAP_NET_BIND_SERVICE or another `grpc_address`?"
    )]
    Bind {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("TLS of the gRPC listener")]
    Tls(#[from] TlsError),
}

/// Serves `routes` on `grpc_address` in the background. Does nothing where the configuration
/// keeps that listener shut.
pub async fn serve(
    launched: &Launched,
    routes: Routes,
    services: &[Service],
) -> Result<(), GrpcError> {
    let config = Arc::clone(&launched.config.borrow());
    let Some(address) = config.listen.grpc else {
        return Ok(());
    };
    let tls = match config.grpc.listener {
        GrpcListenerSecurity::ClearText => None,
        GrpcListenerSecurity::Tls => {
            let swap = SwapCertificates::new(certificates(&config));
            follow(launched, Arc::clone(&swap));
            Some(tls::server_config(swap, Alpn::H2, None)?)
        }
    };
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| GrpcError::Bind { address, source })?;
    let server = Server {
        tls,
        health: services
            .iter()
            .map(|service| HealthName {
                service: format!("pomerium-{service}"),
                parts: vec![service.name().to_owned()],
            })
            .collect(),
        ..Server::new(routes)
    };
    tracing::info!(%address, security = ?config.grpc.listener, "gRPC listens");
    let lifecycle = launched.lifecycle.clone();
    launched
        .lifecycle
        .spawn_critical("gRPC listener", async move {
            server::serve(listener, server, &lifecycle).await;
        });
    Ok(())
}

/// The next handshake uses the newest certificates.
fn follow(launched: &Launched, swap: Arc<SwapCertificates>) {
    let mut config = launched.config.clone();
    launched.lifecycle.spawn(
        launched
            .lifecycle
            .stopping()
            .run_until_cancelled_owned(async move {
                while config.changed().await.is_ok() {
                    let new = certificates(&config.borrow_and_update());
                    swap.replace(new);
                }
            }),
    );
}

fn certificates(config: &Config) -> Certificates {
    match &config.server_tls {
        ServerTls::Off => Certificates::default(),
        ServerTls::Certificates(list) => Certificates::new(
            list.iter()
                .map(|certificate| (certificate.names.as_slice(), Arc::clone(&certificate.key))),
        ),
    }
}
