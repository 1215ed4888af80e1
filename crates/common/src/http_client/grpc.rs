//! gRPC to a service that is not ours, such as a collector. Calls between our own go by `rpc`.

use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, Error, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tonic::body::Body;
use tower::Service;

use super::{Connector, IDLE, MAX_HEADERS};
use crate::net::Resolver;
use crate::tls::{self, Alpn, TlsError, Trust};

/// HTTP/2 alone; in clear text with prior knowledge. Deadlines are the caller's.
#[derive(Clone)]
pub struct GrpcClient(Client<Connector, Body>);

impl std::fmt::Debug for GrpcClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GrpcClient")
    }
}

impl GrpcClient {
    /// Trusts `trust`; the connection belongs to the runtime that makes the first call.
    pub fn new(resolver: &Resolver, trust: &Trust) -> Result<Self, TlsError> {
        let connector = Connector {
            resolver: resolver.clone(),
            tls: tls::client_config(trust, Alpn::H2, None)?,
            trust: trust.told().into(),
        };
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .http2_only(true)
            .http2_max_header_list_size(MAX_HEADERS)
            .build(connector);
        Ok(Self(client))
    }
}

impl Service<Request<Body>> for GrpcClient {
    type Response = Response<Incoming>;
    type Error = Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> ResponseFuture {
        self.0.request(request)
    }
}
