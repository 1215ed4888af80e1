use hyper::client::conn::http2::SendRequest;
use tokio::io::AsyncReadExt as _;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tower::service_fn as tower_fn;

use super::super::stubs::registry::registry_client::RegistryClient;
use super::super::test_service::{Named, all, broken, slow};
use super::*;
use crate::lifecycle::{DrainTiming, Exit};

const SOON: Duration = Duration::from_secs(10);

async fn start(lifecycle: &Lifecycle, service: &Named) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = Server::new(service.routes());
    server.health = vec![HealthName {
        service: "pomerium-databroker".to_owned(),
        parts: vec!["databroker.storage".to_owned()],
    }];
    let running = lifecycle.clone();
    lifecycle.spawn(async move { serve(listener, server, &running).await });
    address
}

async fn connect(address: SocketAddr) -> SendRequest<Body> {
    try_connect(address).await.unwrap()
}

async fn try_connect(address: SocketAddr) -> Option<SendRequest<Body>> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .ok()?;
    tokio::spawn(connection);
    Some(sender)
}

macro_rules! client {
    ($client:ident, $sender:expr) => {{
        let sender = $sender.clone();
        let service = tower_fn(move |mut request: Request<Body>| {
            let mut sender = sender.clone();
            let path = request.uri().path().to_owned();
            *request.uri_mut() = format!("http://test{path}").parse().unwrap();
            async move {
                sender.ready().await?;
                sender.send_request(request).await
            }
        });
        $client::new(service)
    }};
}

#[tokio::test]
async fn calls_and_their_version_header() {
    let lifecycle = Lifecycle::new(DrainTiming::immediate());
    let service = Named::new("a");
    let address = start(&lifecycle, &service).await;
    let sender = connect(address).await;
    let answer = client!(RegistryClient, sender).list(all()).await.unwrap();
    assert!(answer.metadata().get(VERSION_HEADER).is_some());
    assert_eq!(answer.get_ref().services[0].endpoint, "a");
}

#[tokio::test]
async fn s04_a_panic_costs_its_call_only() {
    let lifecycle = Lifecycle::new(DrainTiming::immediate());
    let service = Named::new("a");
    let sender = connect(start(&lifecycle, &service).await).await;
    let mut open = client!(RegistryClient, sender)
        .watch(all())
        .await
        .unwrap()
        .into_inner();
    assert!(open.message().await.unwrap().is_some());
    let refused = client!(RegistryClient, sender)
        .list(broken())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    assert!(!refused.message().contains("asked to"), "{refused}");
    client!(RegistryClient, sender).list(all()).await.unwrap();
}

#[tokio::test]
async fn the_clients_deadline_is_kept() {
    let lifecycle = Lifecycle::new(DrainTiming::immediate());
    let service = Named::new("a");
    let sender = connect(start(&lifecycle, &service).await).await;
    let mut request = tonic::Request::new(slow());
    request.set_timeout(Duration::from_millis(30));
    let refused = client!(RegistryClient, sender)
        .list(request)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn health_follows_the_parts() {
    let lifecycle = Lifecycle::new(DrainTiming::immediate());
    let guard = lifecycle.not_ready("databroker.storage");
    let service = Named::new("a");
    let sender = connect(start(&lifecycle, &service).await).await;
    let request = HealthCheckRequest {
        service: "pomerium-databroker".to_owned(),
    };
    let mut health = client!(HealthClient, sender);
    let mut watch = health.watch(request.clone()).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert_eq!(first.status, ServingStatus::NotServing as i32);
    drop(guard);
    let next = tokio::time::timeout(SOON, watch.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(next.status, ServingStatus::Serving as i32);
    let _guard = lifecycle.degraded("databroker.storage", "Postgres is away");
    let next = tokio::time::timeout(SOON, watch.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(next.status, ServingStatus::NotServing as i32);
    let whole = HealthCheckRequest {
        service: String::new(),
    };
    let answer = health.check(whole).await.unwrap().into_inner();
    assert_eq!(
        answer.status,
        ServingStatus::Serving as i32,
        "degraded holds nothing"
    );
    let unknown = HealthCheckRequest {
        service: "nobody".to_owned(),
    };
    assert_eq!(
        health.check(unknown).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn a_drain_finishes_calls_ends_streams_and_loses_nothing() {
    let lifecycle = Lifecycle::new(DrainTiming {
        delay: Duration::from_millis(200),
        settle: Duration::from_millis(50),
        ..DrainTiming::default()
    });
    let service = Named::new("a");
    let address = start(&lifecycle, &service).await;
    let sender = connect(address).await;
    let mut stream = client!(RegistryClient, sender)
        .watch(all())
        .await
        .unwrap()
        .into_inner();
    assert!(stream.message().await.unwrap().is_some());
    let mut waiting = client!(RegistryClient, sender);
    let waiting = tokio::spawn(async move { waiting.list(slow()).await });
    while service.calls() < 2 {
        tokio::task::yield_now().await;
    }

    lifecycle.drain();
    let ended = tokio::spawn({
        let lifecycle = lifecycle.clone();
        async move { lifecycle.run_to_end().await }
    });
    // New connections are still served, as balancers have not noticed yet.
    let fresh = connect(address).await;
    client!(RegistryClient, fresh).list(all()).await.unwrap();
    lifecycle.reached(Phase::ListenersClosed).await;
    client!(RegistryClient, fresh).list(all()).await.unwrap();

    // The stream lasts as long as calls are in flight; then the server ends it.
    lifecycle.reached(Phase::IdleClosed).await;
    assert_eq!(lifecycle.phase(), Phase::IdleClosed);
    service.release.notify_one();
    assert!(waiting.await.unwrap().is_ok());
    let end = tokio::time::timeout(SOON, stream.message())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
    assert_eq!(ended.await.unwrap(), Exit::Drained);
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_busy_server_keeps_its_bound() {
    let lifecycle = Lifecycle::new(DrainTiming::immediate());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = Named::new("a");
    let mut server = Server::new(service.routes());
    server.max_connections = 1;
    let running = lifecycle.clone();
    lifecycle.spawn(async move { serve(listener, server, &running).await });
    let first = connect(address).await;
    client!(RegistryClient, first).list(all()).await.unwrap();
    // The newest is shed at once, so that its client can try elsewhere.
    let mut second = TcpStream::connect(address).await.unwrap();
    let closed = tokio::time::timeout(SOON, second.read(&mut [0; 1])).await;
    assert!(matches!(closed.unwrap(), Ok(0) | Err(_)));
    client!(RegistryClient, first).list(all()).await.unwrap();
    drop(first);
    tokio::time::timeout(SOON, async {
        loop {
            let third = try_connect(address).await;
            if let Some(third) = third
                && client!(RegistryClient, third).list(all()).await.is_ok()
            {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

/// The clock runs ahead whenever nothing else is to do.
#[tokio::test(start_paused = true)]
async fn s17_watching_health_does_not_hold_a_strangers_connection() {
    let lifecycle = Lifecycle::new(DrainTiming::immediate());
    let service = Named::new("a");
    let address = start(&lifecycle, &service).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let request = HealthCheckRequest {
        service: String::new(),
    };
    let watch = client!(HealthClient, sender).watch(request).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(600), connection).await;
    assert!(ended.is_ok(), "it is closed though its watch is open");
    drop(watch);
}

#[test]
fn calls_that_may_not_be_made_are_refusals() {
    for (status, refusal) in [
        (Status::unauthenticated("no token"), true),
        (Status::unimplemented("no such method"), true),
        (Status::unavailable("later"), false),
        (Status::not_found("no record"), false),
    ] {
        let headers = status.clone().into_http::<Body>().headers().clone();
        assert_eq!(super::refusal(&headers).is_some(), refusal, "{status}");
    }
    assert_eq!(super::refusal(&HeaderMap::new()), None);
}
