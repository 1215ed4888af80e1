//! A small real service for the tests of this room: a registry that names itself.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::{Stream, StreamExt as _};
use tokio::sync::Notify;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::stubs::registry::registry_server::{Registry, RegistryServer};
use super::stubs::registry::{
    ListRequest, RegisterRequest, RegisterResponse, Service, ServiceKind, ServiceList,
};

#[derive(Debug, Clone)]
pub(super) struct Named {
    name: String,
    pub(super) calls: Arc<AtomicUsize>,
    /// Answers UNAVAILABLE.
    pub(super) unavailable: Arc<AtomicBool>,
    /// Lets calls go that ask for `ServiceKind::Proxy`.
    pub(super) release: Arc<Notify>,
}

impl Named {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            calls: Arc::default(),
            unavailable: Arc::default(),
            release: Arc::default(),
        }
    }

    pub(super) fn routes(&self) -> Routes {
        Routes::new(RegistryServer::new(self.clone()))
    }

    pub(super) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn list_itself(&self) -> ServiceList {
        ServiceList {
            services: vec![Service {
                kind: ServiceKind::Registry.into(),
                endpoint: self.name.clone(),
            }],
        }
    }
}

/// Asks for everything.
pub(super) fn all() -> ListRequest {
    ListRequest { kinds: Vec::new() }
}

/// Asks for an answer that waits until it is released.
pub(super) fn slow() -> ListRequest {
    ListRequest {
        kinds: vec![ServiceKind::Proxy.into()],
    }
}

/// Asks for a handler that panics.
pub(super) fn broken() -> ListRequest {
    ListRequest {
        kinds: vec![ServiceKind::Console.into()],
    }
}

#[tonic::async_trait]
impl Registry for Named {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<ServiceList, Status>> + Send>>;

    async fn report(
        &self,
        _: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(RegisterResponse::default()))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ServiceList>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.unavailable.load(Ordering::SeqCst) {
            return Err(Status::unavailable("not now"));
        }
        match request.get_ref().kinds.first() {
            Some(&kind) if kind == i32::from(ServiceKind::Proxy) => self.release.notified().await,
            Some(&kind) if kind == i32::from(ServiceKind::Console) => panic!("asked to"),
            _ => {}
        }
        Ok(Response::new(self.list_itself()))
    }

    async fn watch(&self, _: Request<ListRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let first = futures::stream::iter([Ok(self.list_itself())]);
        Ok(Response::new(
            first.chain(futures::stream::pending()).boxed(),
        ))
    }
}
