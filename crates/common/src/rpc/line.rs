//! A connection of one's own to one endpoint, on the thread of who opened it.
//!
//! Calls on a [`Transport`](super::Transport) share the connection that the endpoint's driver keeps,
//! on the runtime of the transport. Who keeps a long, busy stream opens a line, so that nothing of it
//! crosses threads. Whether the endpoint is well, the driver tells all the same.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tokio_util::sync::DropGuard;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tower::Service;

use super::connection::{Direct, Endpoint};
use super::dial::open;
use super::transport::{Failure, TransportError, call_local};
use crate::net::LocalExecutor;
use crate::telemetry::log::chain;

/// A connection of one's own. It is cut when the last clone is dropped, whatever still runs on it.
#[derive(Debug, Clone)]
pub struct Line {
    way: Way,
}

#[derive(Debug, Clone)]
enum Way {
    /// A server in this process needs no connection.
    Local(Routes),
    Wire {
        direct: Direct,
        _cut: Arc<DropGuard>,
    },
}

impl Line {
    pub(super) fn local(routes: Routes) -> Self {
        Self {
            way: Way::Local(routes),
        }
    }

    /// Must be called inside of a `LocalSet`.
    pub(super) async fn dial(endpoint: &Endpoint, limit: Duration) -> Result<Self, TransportError> {
        let target = &endpoint.target;
        let opened = open(endpoint.address, target, LocalExecutor, limit).await;
        let opened = opened.map_err(|why| {
            TransportError::new(Failure::NotSent, Some(endpoint.address), chain(&why))
        })?;
        let connection = opened.connection;
        tokio::task::spawn_local(async move {
            // Who calls on it sees how it ended.
            let _ = connection.await;
        });
        Ok(Self {
            way: Way::Wire {
                direct: Direct {
                    sender: opened.sender,
                    target: Arc::clone(target),
                },
                _cut: Arc::new(opened.cut),
            },
        })
    }

    /// Returns once the peer has answered a question over this connection, whatever it said. `false`
    /// when the connection has ended instead.
    pub async fn answers(&self) -> bool {
        let asked = HealthClient::new(self.clone())
            .check(HealthCheckRequest::default())
            .await;
        match asked {
            Ok(_) => true,
            Err(status) => TransportError::behind(&status).is_none(),
        }
    }
}

impl Service<Request<Body>> for Line {
    type Response = Response<Body>;
    type Error = TransportError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, TransportError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match &mut self.way {
            Way::Local(routes) => Box::pin(call_local(routes.clone(), request)),
            Way::Wire { direct, .. } => direct.call(request),
        }
    }
}
