//! The least that an authorizer of Envoy's can be.

use postern_common::rpc::stubs::ext_authz::authorization_server::{
    Authorization, AuthorizationServer,
};
use postern_common::rpc::stubs::ext_authz::check_response::HttpResponse;
use postern_common::rpc::stubs::ext_authz::{CheckRequest, CheckResponse, OkHttpResponse};
use postern_common::rpc::stubs::google::rpc;
use tonic::{Request, Response, Status};

struct AlwaysYes;

#[tonic::async_trait]
impl Authorization for AlwaysYes {
    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        Ok(Response::new(CheckResponse {
            status: Some(rpc::Status::default()),
            http_response: Some(HttpResponse::OkResponse(OkHttpResponse::default())),
            ..CheckResponse::default()
        }))
    }
}

pub async fn serve(port: u16) {
    tonic::transport::Server::builder()
        .add_service(AuthorizationServer::new(AlwaysYes))
        .serve(([127, 0, 0, 1], port).into())
        .await
        .expect("a server runs");
}
