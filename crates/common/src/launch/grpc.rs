//! The gRPC listener of a process that runs authorize or databroker.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tonic::service::Routes;

use super::Launched;
use crate::config::{GrpcListenerSecurity, ServerCertificate, Service};
use crate::net::listen::{ListenError, listen};
use crate::rpc::server::{self, HealthName, Server};
use crate::tls::{self, Alpn, Certificates, SwapCertificates, TlsError};

#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("grpc_address {address}: cannot listen there")]
    Register {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("TLS of the gRPC listener")]
    Tls(#[from] TlsError),
}

/// Serves `routes` on `grpc_address` in the background. Does nothing where the configuration
/// keeps that listener shut.
pub fn serve(launched: &Launched, routes: Routes, services: &[Service]) -> Result<(), GrpcError> {
    let config = Arc::clone(&launched.config.borrow());
    let Some(address) = config.listen.grpc else {
        return Ok(());
    };
    let listener = listen("grpc_address", address, config.listen.share)?;
    let listener = TcpListener::from_std(listener)
        .map_err(|source| GrpcError::Register { address, source })?;
    let tls = match &config.grpc.listener {
        GrpcListenerSecurity::ClearText => None,
        GrpcListenerSecurity::Tls(list) => {
            let swap = SwapCertificates::new(certificates(list));
            follow(launched, Arc::clone(&swap));
            Some(tls::server_config(swap, Alpn::H2, None)?)
        }
    };
    tracing::info!(%address, tls = tls.is_some(), "gRPC listens");
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
                    // Clear text instead of TLS needs a restart.
                    if let GrpcListenerSecurity::Tls(list) =
                        &config.borrow_and_update().grpc.listener
                    {
                        swap.replace(certificates(list));
                    }
                }
            }),
    );
}

fn certificates(list: &[Arc<ServerCertificate>]) -> Certificates {
    Certificates::new(
        list.iter()
            .map(|certificate| (certificate.names.as_slice(), Arc::clone(&certificate.key))),
    )
}
