//! Envoy's external authorization: the same decisions for Envoy and others. Only translates.
//!
//! Everything that a decision can say ends as a definite answer: what can't be decided is a 503,
//! because Envoy would turn an error of the call into a 403.

pub(crate) mod bounded;
pub(crate) mod request;
mod response;

use std::sync::Arc;

use postern_common::authz::CheckRequest;
use postern_common::rpc::stubs::ext_authz as proto;
use postern_common::rpc::stubs::ext_authz::authorization_server::Authorization;
use tonic::{Request, Response, Status};

use crate::local::Local;

/// The method that `ext_authz_allow_unauthenticated` opens to anybody.
pub const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The service on the network.
#[derive(Debug, Clone)]
pub struct ExtAuthz {
    local: Arc<Local>,
}

impl ExtAuthz {
    pub fn new(local: Arc<Local>) -> Self {
        Self { local }
    }

    async fn answer(&self, question: &proto::CheckRequest) -> proto::CheckResponse {
        let snapshot = self.local.snapshot();
        let (request, about) = match request::read(question, snapshot.config.http.path) {
            Ok(read) => read,
            Err(error) => return response::unreadable(&error),
        };
        let Some(subject) = about.subject(&snapshot, &request) else {
            return if about.names_a_route() {
                response::other_configuration(&request, &snapshot.look)
            } else {
                response::no_route(&request, &snapshot.look)
            };
        };
        let request = CheckRequest { subject, ..request };
        match self.local.decide(&request).await {
            Ok(decision) => response::decided(&decision, &request, &snapshot),
            Err(_) => response::undecided(&request, &snapshot.look),
        }
    }
}

#[tonic::async_trait]
impl Authorization for ExtAuthz {
    async fn check(
        &self,
        request: Request<proto::CheckRequest>,
    ) -> Result<Response<proto::CheckResponse>, Status> {
        Ok(Response::new(self.answer(&request.into_inner()).await))
    }
}

#[cfg(test)]
mod tests;
