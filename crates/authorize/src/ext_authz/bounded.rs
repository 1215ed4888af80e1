//! A bound on the questions of Envoys that are under way.
//!
//! One more is answered at once, before it is read: with a definite 503, because Envoy would turn
//! an error of the call, RESOURCE_EXHAUSTED as any other, into a 403.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use postern_common::rpc::stubs::ext_authz as proto;
use prometheus_client::metrics::counter::Counter;
use prost::Message as _;
use tokio::sync::Semaphore;
use tonic::Code;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use super::response;

/// As many as one stream of decisions has: nearly every question is answered at once, and those
/// that are not wait for the databroker.
pub const UNDER_WAY: usize = 1024;

/// A service of which only so many calls are under way.
#[derive(Debug, Clone)]
pub struct Bounded<S> {
    inner: S,
    places: Arc<Semaphore>,
    shed: Counter,
}

impl<S> Bounded<S> {
    pub fn new(inner: S, calls: usize, shed: Counter) -> Self {
        Self {
            inner,
            places: Arc::new(Semaphore::new(calls)),
            shed,
        }
    }
}

impl<S: NamedService> NamedService for Bounded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Bounded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.shed.inc();
            return Box::pin(std::future::ready(Ok(answer(&busy()))));
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            drop(place);
            answer
        })
    }
}

fn busy() -> proto::CheckResponse {
    let mut refusal = Response::new(Bytes::from_static(
        b"too many requests wait for a decision\n",
    ));
    *refusal.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    refusal.headers_mut().insert(header::CONTENT_TYPE, text);
    let seconds = HeaderValue::from_static("1");
    refusal.headers_mut().insert(header::RETRY_AFTER, seconds);
    response::refused(refusal, Code::Unavailable)
}

/// A whole gRPC answer: one message, and that all is well.
fn answer(message: &proto::CheckResponse) -> Response<Body> {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    // Not compressed.
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    frame.extend_from_slice(&message.encode_to_vec());
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(frame.freeze())
        .with_trailers(std::future::ready(Some(Ok::<_, Infallible>(trailers))));
    let mut answer = Response::new(Body::new(body));
    let grpc = HeaderValue::from_static("application/grpc");
    answer.headers_mut().insert(header::CONTENT_TYPE, grpc);
    answer
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use postern_common::rpc::Transport;
    use postern_common::rpc::stubs::ext_authz::authorization_client::AuthorizationClient;
    use postern_common::rpc::stubs::ext_authz::authorization_server::{
        Authorization, AuthorizationServer,
    };
    use postern_common::rpc::stubs::ext_authz::check_response::HttpResponse;
    use tokio::sync::Notify;
    use tonic::service::Routes;
    use tonic::{Request, Response, Status};

    use super::*;

    /// Says that it was asked, and answers once it may.
    #[derive(Default)]
    struct Slow {
        asked: Notify,
        may: Notify,
    }

    #[tonic::async_trait]
    impl Authorization for Slow {
        async fn check(
            &self,
            _: Request<proto::CheckRequest>,
        ) -> Result<Response<proto::CheckResponse>, Status> {
            self.asked.notify_one();
            self.may.notified().await;
            Ok(Response::new(proto::CheckResponse::default()))
        }
    }

    /// What a broken bound would leave waiting for ever.
    async fn soon<T>(what: impl Future<Output = T>) -> T {
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, what).await.expect("in time")
    }

    #[tokio::test]
    async fn one_too_many_gets_a_definite_503_at_once() {
        let (slow, shed) = (Arc::new(Slow::default()), Counter::default());
        let server = AuthorizationServer::from_arc(Arc::clone(&slow));
        let bounded = Bounded::new(server, 1, shed.clone());
        let client = AuthorizationClient::new(Transport::local(Routes::new(bounded)));
        let ask = || {
            let mut client = client.clone();
            async move { client.check(proto::CheckRequest::default()).await.unwrap() }
        };
        let first = tokio::spawn(ask());
        soon(slow.asked.notified()).await;
        let refused = soon(ask()).await.into_inner();
        assert_eq!(refused.status.unwrap().code, Code::Unavailable as i32);
        let Some(HttpResponse::DeniedResponse(denied)) = refused.http_response else {
            panic!("not denied")
        };
        assert_eq!(denied.status.unwrap().code, 503);
        let headers = denied.headers.into_iter().filter_map(|it| it.header);
        let mut names = headers.map(|header| header.key);
        assert!(names.any(|name| name == "retry-after"));
        assert_eq!(shed.get(), 1);
        // The place is free again once the first is answered, or its caller has left.
        slow.may.notify_one();
        soon(first).await.unwrap();
        let left = tokio::spawn(ask());
        soon(slow.asked.notified()).await;
        left.abort();
        assert!(left.await.unwrap_err().is_cancelled());
        slow.may.notify_one();
        assert_eq!(
            soon(ask()).await.into_inner(),
            proto::CheckResponse::default()
        );
        assert_eq!(shed.get(), 1);
    }
}
