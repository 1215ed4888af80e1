use std::collections::HashMap;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use postern_test_dns::TestDns;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tonic::Code;
use tonic::service::Routes;

use super::super::stubs::registry::registry_client::RegistryClient;
use super::super::test_service::{Named, all, slow};
use super::super::transport::{Failure, TransportError};
use super::super::{Transport, server, token};
use super::*;
use crate::crypto::keys::SecretKey;
use crate::lifecycle::{DrainTiming, Lifecycle, NotReady};
use crate::net::test_dns::options;
use crate::tls::tests::{Authority, serving};
use crate::tls::{Alpn, Certificate, client_config, server_config};

/// Far beyond what anything here takes: a busy machine must not look like a fault.
const SOON: Duration = Duration::from_secs(60);
/// What is silent for longer counts as gone. Tests that freeze something wait for it.
const PATIENCE: Duration = Duration::from_secs(2);
const HEALTH: &str = "pomerium-test";

/// A server on a thread of its own, so that it can be frozen and killed like a process.
struct Replica {
    address: SocketAddr,
    service: Named,
    lifecycle: Lifecycle,
    /// Held while it serves.
    part: Option<NotReady>,
    runtime: Option<tokio::runtime::Runtime>,
}

struct Frozen {
    /// Dropping it lets the replica go on.
    _release: mpsc::Sender<()>,
}

impl Replica {
    fn start(address: &str) -> Self {
        Self::start_with(address, |routes| routes, None)
    }

    fn start_with(
        address: &str,
        wrap: impl FnOnce(Routes) -> Routes,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Self {
        let listener = StdListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let service = Named::new(&address.ip().to_string());
        let lifecycle = Lifecycle::new(DrainTiming::immediate());
        drop(lifecycle.not_ready("test.part"));
        let mut server = server::Server::new(wrap(service.routes()));
        server.tls = tls;
        let names = [HEALTH, "pomerium-databroker"].map(|name| server::HealthName {
            service: name.to_owned(),
            parts: vec!["test.part".to_owned()],
        });
        server.health = names.into();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let running = lifecycle.clone();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            server::serve(listener, server, &running).await;
        });
        Self {
            address,
            service,
            lifecycle,
            part: None,
            runtime: Some(runtime),
        }
    }

    fn set_serving(&mut self, serving: bool) {
        self.part = (!serving).then(|| self.lifecycle.not_ready("test.part"));
    }

    fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    /// Nothing runs any more, but the kernel still accepts connections for it.
    fn freeze(&self) -> Frozen {
        let (release, blocked) = mpsc::channel();
        let (entered, inside) = mpsc::channel();
        self.runtime.as_ref().unwrap().spawn(async move {
            entered.send(()).unwrap();
            let _ = blocked.recv();
        });
        inside.recv().unwrap();
        Frozen { _release: release }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn config(dns: &TestDns, url: &str) -> RemoteConfig {
    let mut options = options(dns);
    options.refresh_rate = Duration::from_millis(50);
    options.failure_refresh_rate = Duration::from_millis(50);
    RemoteConfig {
        urls: vec![url.parse().unwrap()],
        tls: client_config(&Authority::new("x").trust(), Alpn::H2, None).unwrap(),
        certificate_name: None,
        service: HEALTH.to_owned(),
        keys: None,
        resolver: Resolver::new(options).unwrap(),
        calls: CallTiming {
            wait_for_endpoint: SOON,
            answer: SOON,
            ..CallTiming::default()
        },
        probes: ProbeTiming {
            first_patience: PATIENCE,
            quick_interval: Duration::from_millis(50),
            quick_patience: PATIENCE,
            ..ProbeTiming::default()
        },
        metrics: CallMetrics::default(),
        parts: Parts::default(),
    }
}

async fn until(transport: &Transport, what: &str, condition: impl Fn(&[EndpointStatus]) -> bool) {
    let mut changes = transport.changes().unwrap();
    let wait = async {
        while !condition(&transport.endpoints()) {
            changes.changed().await.unwrap();
        }
    };
    let come = tokio::time::timeout(SOON, wait).await;
    assert!(come.is_ok(), "{what}: {:?}", transport.endpoints());
}

async fn until_ready(transport: &Transport, count: usize) {
    until(transport, &format!("{count} ready"), |endpoints| {
        endpoints.len() == count && endpoints.iter().all(|one| one.state == State::Ready)
    })
    .await;
}

/// Calls `times` times, all must be answered; how often each replica did.
async fn share(transport: &Transport, times: usize) -> HashMap<String, usize> {
    let mut client = RegistryClient::new(transport.clone());
    let mut shares = HashMap::new();
    for _ in 0..times {
        let list = client.list(all()).await.unwrap().into_inner();
        *shares.entry(list.services[0].endpoint.clone()).or_default() += 1;
    }
    shares
}

/// What the transport has counted.
fn counted(transport: &Transport, count: impl Fn(&CallCounts) -> &Counter) -> u64 {
    count(&transport.counts().unwrap()).get()
}

async fn pair(dns: &TestDns, first: &str, second: &str) -> (Replica, Replica, Transport) {
    pair_called(dns, first, second, config(dns, "http://svc.test:1").calls).await
}

async fn pair_called(
    dns: &TestDns,
    first: &str,
    second: &str,
    calls: CallTiming,
) -> (Replica, Replica, Transport) {
    let one = Replica::start(&format!("{first}:0"));
    let port = one.address.port();
    let two = Replica::start(&format!("{second}:{port}"));
    dns.set_addresses("svc.test", &[first, second]);
    let mut config = config(dns, &format!("http://svc.test:{port}"));
    config.calls = calls;
    let transport = Transport::remote(config).unwrap();
    until_ready(&transport, 2).await;
    (one, two, transport)
}

#[tokio::test(flavor = "multi_thread")]
async fn c03_new_addresses_share_the_calls_and_old_ones_leave() {
    let dns = TestDns::start().await;
    let one = Replica::start("127.0.0.21:0");
    let port = one.address.port();
    let two = Replica::start(&format!("127.0.0.22:{port}"));
    dns.set_addresses("svc.test", &["127.0.0.21"]);
    let transport = Transport::remote(config(&dns, &format!("http://svc.test:{port}"))).unwrap();
    until_ready(&transport, 1).await;
    assert_eq!(share(&transport, 20).await["127.0.0.21"], 20);

    dns.set_addresses("svc.test", &["127.0.0.21", "127.0.0.22"]);
    until_ready(&transport, 2).await;
    let shares = share(&transport, 200).await;
    assert!(shares.values().all(|&calls| calls >= 60), "{shares:?}");

    let mut client = RegistryClient::new(transport.clone());
    let waiting = tokio::spawn(async move { client.list(slow()).await });
    let calls = one.service.calls() + two.service.calls();
    while one.service.calls() + two.service.calls() == calls {
        tokio::task::yield_now().await;
    }
    dns.set_addresses("svc.test", &["127.0.0.22"]);
    until_ready(&transport, 1).await;
    assert_eq!(share(&transport, 20).await["127.0.0.22"], 20);
    one.service.release.notify_one();
    two.service.release.notify_one();
    assert!(
        waiting.await.unwrap().is_ok(),
        "a call under way at a removed address is finished"
    );
}

/// DNS may also lie by naming somebody else.
#[tokio::test(flavor = "multi_thread")]
async fn c05_addresses_where_nobody_answers_do_not_replace_good_ones() {
    let dns = TestDns::start().await;
    let one = Replica::start("127.0.0.141:0");
    let port = one.address.port();
    dns.set_addresses("svc.test", &["127.0.0.141"]);
    let transport = Transport::remote(config(&dns, &format!("http://svc.test:{port}"))).unwrap();
    until_ready(&transport, 1).await;

    dns.set_addresses("svc.test", &["127.0.0.142"]);
    let other = SocketAddr::from(([127, 0, 0, 142], port));
    until(&transport, "the other is known", |endpoints| {
        endpoints.iter().any(|it| it.address == other)
    })
    .await;
    assert_eq!(share(&transport, 20).await["127.0.0.141"], 20);

    // Once somebody is there, the first is left, though it answers.
    let two = Replica::start(&other.to_string());
    until(
        &transport,
        "the other alone",
        |endpoints| matches!(endpoints, [it] if it.address == other && it.state == State::Ready),
    )
    .await;
    assert_eq!(share(&transport, 20).await["127.0.0.142"], 20);

    // One that is not named and ends is not tried again.
    dns.set_addresses("svc.test", &["127.0.0.143"]);
    until(&transport, "a third is known", |endpoints| {
        endpoints.len() == 2
    })
    .await;
    drop(two);
    until(
        &transport,
        "the third alone",
        |endpoints| matches!(endpoints, [it] if it.address.ip() == Ipv4Addr::new(127, 0, 0, 143)),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c02_a_killed_replica_costs_no_call() {
    let dns = TestDns::start().await;
    let (mut one, two, transport) = pair(&dns, "127.0.0.31", "127.0.0.32").await;
    // Questions under way at both; the answers of the survivor are let go later.
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let mut client = RegistryClient::new(transport.clone());
            tokio::spawn(async move { client.list(slow()).await })
        })
        .collect();
    while one.service.calls() == 0 || two.service.calls() == 0 {
        tokio::task::yield_now().await;
    }
    one.kill();
    assert_eq!(share(&transport, 200).await["127.0.0.32"], 200);
    let released = tokio::spawn({
        let release = Arc::clone(&two.service.release);
        async move {
            loop {
                release.notify_waiters();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    for call in waiting {
        tokio::time::timeout(SOON, call)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
    released.abort();
    assert!(counted(&transport, |counts| &counts.moved) > 0);
}

/// A device between client and replica. When it forgets its connections, what comes on them
/// vanishes, and nobody is told.
async fn device(ip: &str, replica: SocketAddr) -> Arc<AtomicUsize> {
    let listener = tokio::net::TcpListener::bind((ip, replica.port()))
        .await
        .unwrap();
    let forgotten = Arc::new(AtomicUsize::new(0));
    let times = Arc::clone(&forgotten);
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = tokio::net::TcpStream::connect(replica).await.unwrap();
            let (client, server) = (client.into_split(), server.into_split());
            tokio::spawn(pass(client.0, server.1, Arc::clone(&times)));
            tokio::spawn(pass(server.0, client.1, Arc::clone(&times)));
        }
    });
    forgotten
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, forgotten: Arc<AtomicUsize>) {
    let born = forgotten.load(Ordering::SeqCst);
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(n) = from.read(&mut buffer).await
        && n > 0
    {
        if forgotten.load(Ordering::SeqCst) == born && to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
    if forgotten.load(Ordering::SeqCst) != born {
        // Not even the end passes.
        std::future::pending::<()>().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c01_connections_that_were_silently_forgotten_cost_no_call() {
    let dns = TestDns::start().await;
    let replica = Replica::start("127.0.0.101:0");
    let port = replica.address.port();
    let forgotten = device("127.0.0.102", replica.address).await;
    dns.set_addresses("svc.test", &["127.0.0.102"]);
    let transport = Transport::remote(config(&dns, &format!("http://svc.test:{port}"))).unwrap();
    until_ready(&transport, 1).await;
    for _ in 0..2 {
        let moved = counted(&transport, |counts| &counts.moved);
        forgotten.fetch_add(1, Ordering::SeqCst);
        assert_eq!(share(&transport, 100).await["127.0.0.101"], 100);
        assert!(counted(&transport, |counts| &counts.moved) > moved);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c66_a_frozen_replica_costs_no_call_and_comes_back() {
    let dns = TestDns::start().await;
    let (one, _two, transport) = pair(&dns, "127.0.0.41", "127.0.0.42").await;
    let frozen = one.freeze();
    let elsewhere = || counted(&transport, |c| &c.hedged) + counted(&transport, |c| &c.moved);
    let shares = share(&transport, 50).await;
    assert_eq!(shares["127.0.0.42"], 50);
    // It is passed over soon: only the first calls had to be asked elsewhere.
    assert!((1..25).contains(&elsewhere()), "{}", elsewhere());
    until(&transport, "noticed", |endpoints| {
        endpoints
            .iter()
            .filter(|one| one.state == State::Ready)
            .count()
            == 1
    })
    .await;
    let before = elsewhere();
    share(&transport, 200).await;
    assert_eq!(elsewhere(), before, "nobody asks it any more");
    drop(frozen);
    until_ready(&transport, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_decides_who_gets_calls() {
    let dns = TestDns::start().await;
    let (mut one, _two, transport) = pair(&dns, "127.0.0.51", "127.0.0.52").await;
    one.set_serving(false);
    let ready = |endpoints: &[EndpointStatus]| {
        endpoints
            .iter()
            .filter(|one| one.state == State::Ready)
            .count()
    };
    until(&transport, "one left", |endpoints| ready(endpoints) == 1).await;
    assert_eq!(share(&transport, 20).await["127.0.0.52"], 20);
    assert_eq!(transport.each().len(), 1);
    assert_eq!(
        transport.each()[0].peer().unwrap().ip().to_string(),
        "127.0.0.52"
    );
    one.set_serving(true);
    until_ready(&transport, 2).await;
    let mut peers: Vec<_> = transport
        .each()
        .iter()
        .filter_map(Transport::peer)
        .collect();
    peers.sort();
    for (peer, transport) in peers.iter().zip(["127.0.0.51", "127.0.0.52"]) {
        assert_eq!(peer.ip().to_string(), transport);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_nobody_ready_a_call_fails_closed_in_time() {
    let dns = TestDns::start().await;
    let (mut one, mut two, transport) =
        pair_called(&dns, "127.0.0.61", "127.0.0.62", CallTiming::default()).await;
    let mut also = config(&dns, &format!("http://svc.test:{}", one.address.port()));
    also.parts = Parts::default();
    let parts = also.parts.clone();
    let watched = Transport::remote(also).unwrap();
    until_ready(&watched, 2).await;
    one.kill();
    two.kill();
    until(&watched, "told", |_| {
        !parts.ready(&["rpc.pomerium-test".to_owned()])
    })
    .await;
    assert!(
        parts.all_ready(),
        "others being away does not make this process unready"
    );
    until(&transport, "none left", |endpoints| {
        endpoints.iter().all(|one| one.state != State::Ready)
    })
    .await;
    let start = std::time::Instant::now();
    let status = RegistryClient::new(transport.clone())
        .list(all())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let error = TransportError::behind(&status).unwrap();
    assert_eq!(error.failure, Failure::NoEndpoint);
    let told = error.to_string();
    assert!(
        told.contains("127.0.0.61") && told.contains("onnection refused"),
        "{told}"
    );
    assert!(start.elapsed() >= Duration::from_millis(900));

    // A waiting call is served as soon as somebody is back.
    let address = one.address.to_string();
    let call = tokio::spawn(async move {
        let mut client = RegistryClient::new(transport);
        loop {
            if let Ok(list) = client.list(all()).await {
                return list.into_inner().services[0].endpoint.clone();
            }
        }
    });
    let _back = Replica::start(&address);
    let served = tokio::time::timeout(SOON, call).await.unwrap().unwrap();
    assert_eq!(served, "127.0.0.61");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_is_told_by_type() {
    let dns = TestDns::start().await;
    let mut one = Replica::start("127.0.0.71:0");
    dns.set_addresses("svc.test", &["127.0.0.71"]);
    let url = format!("http://svc.test:{}", one.address.port());
    let transport = Transport::remote(config(&dns, &url)).unwrap();
    let mut client = RegistryClient::new(transport);
    let mut stream = client.watch(all()).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    one.kill();
    let end = tokio::time::timeout(SOON, stream.message())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
    assert_eq!(
        TransportError::behind(&end).unwrap().failure,
        Failure::Broken
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn c52_a_replica_with_another_secret_gets_no_calls() {
    let dns = TestDns::start().await;
    let (ours, other) = (SecretKey::random(), SecretKey::random());
    let guard = |key: &SecretKey| {
        let keys = TokenKeys::new(vec![key.clone()]);
        |routes| token::require(routes, keys, &[])
    };
    let good = Replica::start_with("127.0.0.81:0", guard(&ours), None);
    let port = good.address.port();
    let bad = Replica::start_with(&format!("127.0.0.82:{port}"), guard(&other), None);
    dns.set_addresses("svc.test", &["127.0.0.81", "127.0.0.82"]);
    let mut config = config(&dns, &format!("http://svc.test:{port}"));
    let keys = TokenKeys::new(vec![ours]);
    config.keys = Some(keys.clone());
    // Nothing is frozen here, and a busy machine must not look like it.
    config.probes.first_patience = SOON;
    config.probes.quick_patience = SOON;
    let parts = config.parts.clone();
    let part = ["rpc.pomerium-test".to_owned()];
    assert!(!parts.ready(&part));
    let transport = Transport::remote(config).unwrap();
    let told = |replica: &Replica| {
        let status = parts.list().remove("rpc.pomerium-test")?;
        status.attributes.get(&replica.address.to_string()).cloned()
    };
    // What is told follows what is so.
    until(&transport, "one ready, one refused", |endpoints| {
        endpoints.iter().any(|one| one.state == State::Ready)
            && endpoints.iter().any(|one| {
                matches!(&one.state, State::Refusing { why } if why.contains("shared secrets differ"))
            })
            && told(&good).is_some_and(|told| told.starts_with("ready, since"))
            && told(&bad).is_some_and(|told| told.contains("shared secrets differ"))
    })
    .await;
    let mut client = RegistryClient::with_interceptor(transport, keys.for_client());
    for _ in 0..50 {
        client.list(all()).await.unwrap();
    }
    assert_eq!((good.service.calls(), bad.service.calls()), (50, 0));
    assert!(parts.ready(&part) && parts.all_ready());
}

/// Endpoints change on several threads at once; who looked first must not tell last.
#[tokio::test]
async fn what_is_told_is_never_older_than_the_last_change() {
    const ENDPOINTS: u8 = 4;
    let tls = client_config(&Authority::new("x").trust(), Alpn::H2, None).unwrap();
    let url = "http://svc.test:1".parse().unwrap();
    let target = Arc::new(Target::new(&url, &tls, None).unwrap());
    let metrics = CallMetrics::default();
    let endpoints: Vec<_> = (1..=ENDPOINTS)
        .map(|n| {
            let address = SocketAddr::from(([127, 0, 0, n], 1));
            let meters = metrics.meters.of(HEALTH, address);
            Arc::new(Endpoint::new(address, Arc::clone(&target), meters))
        })
        .collect();
    let balancer = Balancer::new(
        url.to_string(),
        CallTiming::default(),
        metrics.of(HEALTH),
        watch::Sender::new(0),
    );
    balancer.endpoints.store(Arc::new(endpoints.clone()));
    let resolver = Resolver::new(crate::config::DnsOptions::default()).unwrap();
    let discovery = Discovery::new(Vec::new(), resolver);
    let told = Told {
        parts: Parts::default(),
        name: "rpc".to_owned(),
        service: HEALTH.to_owned(),
        held: Mutex::default(),
        split_patience: SOON,
        lines: RateLimit::new(SOON),
        replaced: CancellationToken::new(),
    };
    let turn = std::sync::Barrier::new(endpoints.len());
    let (told, balancer, discovery, turn) = (&told, &balancer, &discovery, &turn);
    std::thread::scope(|threads| {
        for endpoint in &endpoints {
            threads.spawn(move || {
                for round in 0..2_000 {
                    let why = format!("round {round}");
                    turn.wait();
                    endpoint.show(&State::Refusing { why: why.clone() }, None);
                    told.publish(balancer, discovery);
                    turn.wait();
                    let facts = told.parts.list().remove("rpc").unwrap().attributes;
                    let all = facts.values().all(|fact| fact.starts_with(&why));
                    assert!(
                        all && facts.len() == usize::from(ENDPOINTS),
                        "{why}: {facts:?}"
                    );
                }
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_by_the_overridden_name() {
    let dns = TestDns::start().await;
    let authority = Authority::new("internal");
    let certificate: Certificate = authority.issue(&["*.corp.test"], (2090, 1, 1));
    let tls = server_config(serving(&[&certificate]), Alpn::H2, None).unwrap();
    let one = Replica::start_with("127.0.0.91:0", |routes| routes, Some(tls));
    dns.set_addresses("svc.test", &["127.0.0.91"]);
    let mut config = config(&dns, &format!("https://svc.test:{}", one.address.port()));
    config.tls = client_config(&authority.trust(), Alpn::H2, None).unwrap();
    let wrong = Transport::remote(config.clone()).unwrap();
    until(&wrong, "refused", |endpoints| {
        endpoints.iter().any(|one| {
            matches!(&one.state, State::Waiting { why, .. }
                if why.contains("name svc.test not among *.corp.test"))
        })
    })
    .await;
    config.certificate_name = Some("*.corp.test".to_owned());
    let transport = Transport::remote(config).unwrap();
    assert_eq!(share(&transport, 3).await["127.0.0.91"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_no_postern_is_asked_rarely() {
    let dns = TestDns::start().await;
    let (port, checks) = foreign_server("127.0.0.101").await;
    dns.set_addresses("svc.test", &["127.0.0.101"]);
    let mut config = config(&dns, &format!("http://svc.test:{port}"));
    config.probes.quick_interval = Duration::from_millis(1);
    let transport = Transport::remote(config).unwrap();
    assert_eq!(share(&transport, 100).await.len(), 1);
    assert_eq!(checks.load(std::sync::atomic::Ordering::SeqCst), 1);
}

/// Serves without health and without our version header, and counts questions about health.
async fn foreign_server(ip: &str) -> (u16, Arc<std::sync::atomic::AtomicUsize>) {
    server_that_says(ip, None).await
}

/// The same with a header on every answer.
async fn server_that_says(
    ip: &str,
    header: Option<(&'static str, &'static str)>,
) -> (u16, Arc<std::sync::atomic::AtomicUsize>) {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tower::ServiceExt as _;
    let listener = tokio::net::TcpListener::bind((ip, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let checks = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (routes, seen) = (Named::new(ip).routes(), Arc::clone(&checks));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (routes, seen) = (routes.clone(), Arc::clone(&seen));
            let service = hyper::service::service_fn(move |request: http::Request<_>| {
                if request.uri().path().starts_with("/grpc.health.v1.Health/") {
                    seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                }
                let answer = routes.clone().oneshot(request.map(tonic::body::Body::new));
                async move {
                    let mut answer = answer.await;
                    if let (Ok(answer), Some((name, value))) = (&mut answer, header) {
                        let value = http::HeaderValue::from_static(value);
                        answer.headers_mut().insert(name, value);
                    }
                    answer
                }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    (port, checks)
}

/// The reason why the only endpoint of `config` gets no calls, once it has `part` in it, and that
/// nothing is let through meanwhile.
async fn refused_because(mut config: RemoteConfig, part: &str) -> String {
    config.calls = CallTiming::default();
    let parts = config.parts.clone();
    let name = format!("rpc.{}", config.service);
    let transport = Transport::remote(config).unwrap();
    let told = |state: &State| match state {
        State::Waiting { why, .. } | State::Refusing { why } => why.contains(part),
        _ => false,
    };
    until(&transport, part, |endpoints| {
        endpoints.iter().any(|one| told(&one.state))
    })
    .await;
    let status = RegistryClient::new(transport.clone())
        .list(all())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let part_status = parts.list().remove(&name).unwrap();
    assert!(part_status.error.is_some(), "{part_status:?}");
    format!("{:?}", part_status.attributes)
}

/// Answers whatever comes with `bytes`.
async fn says(ip: &str, bytes: &'static [u8]) -> u16 {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind((ip, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = [0; 64];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(bytes).await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_speaks_something_else_is_told_as_that() {
    let dns = TestDns::start().await;
    let ip = "127.0.0.111";
    dns.set_addresses("svc.test", &[ip]);
    let url = |scheme: &str, port: u16| config(&dns, &format!("{scheme}://svc.test:{port}"));

    let port = says(ip, b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await;
    refused_because(url("http", port), "it speaks HTTP/1.1").await;
    let port = says(ip, b"SSH-2.0-OpenSSH_9.2\r\n").await;
    refused_because(url("http", port), "it speaks SSH").await;
    refused_because(url("https", port), "it answers in clear text").await;

    // TLS where clear text is asked for, and the reverse, with our own server.
    let authority = Authority::new("internal");
    let certificate: Certificate = authority.issue(&["svc.test"], (2090, 1, 1));
    let tls = server_config(serving(&[&certificate]), Alpn::H2, None).unwrap();
    let secure = Replica::start_with(&format!("{ip}:0"), |routes| routes, Some(tls));
    refused_because(url("http", secure.address.port()), "it expects TLS").await;
    let clear = Replica::start(&format!("{ip}:0"));
    let port = clear.address.port();
    refused_because(url("https", port), "TLS").await;

    // A web server with TLS.
    let web = server_config(serving(&[&certificate]), Alpn::H2OrHttp1, None).unwrap();
    let mut web = Arc::unwrap_or_clone(web);
    web.alpn_protocols = vec![b"http/1.1".to_vec()];
    let web = Replica::start_with(&format!("{ip}:0"), |routes| routes, Some(Arc::new(web)));
    let mut config = url("https", web.address.port());
    config.tls = client_config(&authority.trust(), Alpn::H2, None).unwrap();
    refused_because(config, "TLS").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_are_no_good_are_told_with_the_reason() {
    let dns = TestDns::start().await;
    let ip = "127.0.0.112";
    dns.set_addresses("svc.test", &[ip]);
    let authority = Authority::new("internal");
    for (names, until, trusted, part) in [
        (&["svc.test"][..], (2020, 1, 1), true, "expired"),
        (&["other.test"], (2090, 1, 1), true, "not among other.test"),
        (&["svc.test"], (2090, 1, 1), false, "unknown issuer"),
    ] {
        let certificate: Certificate = authority.issue(names, until);
        let tls = server_config(serving(&[&certificate]), Alpn::H2, None).unwrap();
        let one = Replica::start_with(&format!("{ip}:0"), |routes| routes, Some(tls));
        let mut config = config(&dns, &format!("https://svc.test:{}", one.address.port()));
        if trusted {
            config.tls = client_config(&authority.trust(), Alpn::H2, None).unwrap();
        }
        refused_because(config, part).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_ports_that_lead_nowhere_are_told() {
    let dns = TestDns::start().await;
    let taken = StdListener::bind("127.0.0.113:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    drop(taken);
    dns.set_addresses("svc.test", &["127.0.0.113"]);
    refused_because(config(&dns, &format!("http://svc.test:{port}")), "refused").await;

    let config = config(&dns, "http://nowhere.test:1");
    let parts = config.parts.clone();
    let _transport = Transport::remote(config).unwrap();
    let told = async {
        let mut changes = parts.changes();
        loop {
            let part = parts.list().remove("rpc.pomerium-test");
            let fact = part.and_then(|part| part.attributes.get("http://nowhere.test:1").cloned());
            if let Some(fact) = fact {
                return fact;
            }
            let _ = tokio::time::timeout(Duration::from_millis(100), changes.changed()).await;
        }
    };
    let fact = tokio::time::timeout(SOON, told).await.unwrap();
    assert!(fact.contains("never resolved"), "{fact}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_versions_work_beside_ours_only_when_they_are_near() {
    let dns = TestDns::start().await;
    let ip = "127.0.0.114";
    dns.set_addresses("svc.test", &[ip]);
    let (port, _) = server_that_says(ip, Some((super::super::VERSION_HEADER, "0.1.99"))).await;
    let near = config(&dns, &format!("http://svc.test:{port}"));
    let (parts, metrics) = (near.parts.clone(), near.metrics.clone());
    let transport = Transport::remote(near).unwrap();
    assert_eq!(share(&transport, 3).await.len(), 1);
    let address = format!("{ip}:{port}");
    let fact = parts.list()["rpc.pomerium-test"].attributes[&address].clone();
    assert!(fact.contains("runs version 0.1.99"), "{fact}");
    let labels = vec![("service", HEALTH.to_owned())];
    assert_eq!(metrics.other_versions.get_or_create(&labels).get(), 1);

    let (port, _) = server_that_says(ip, Some((super::super::VERSION_HEADER, "7.0.0"))).await;
    let far = config(&dns, &format!("http://svc.test:{port}"));
    refused_because(far, "versions differ too much").await;
    let (port, _) = server_that_says(ip, Some(("x-pomerium-version", "v0.30.0"))).await;
    let mut foreign = config(&dns, &format!("http://svc.test:{port}"));
    foreign.service = "pomerium-authorize".to_owned();
    refused_because(foreign, "Pomerium's authorize").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_whose_calls_fail_is_left_out() {
    let dns = TestDns::start().await;
    // Nobody is asked twice for being slow, which would count against the other one.
    let calls = CallTiming {
        second_question: SOON,
        ..CallTiming::default()
    };
    let (one, two, transport) = pair_called(&dns, "127.0.0.115", "127.0.0.116", calls).await;
    one.service
        .unavailable
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let each = transport.each();
    let of_one = |endpoint: &&Transport| endpoint.peer() == Some(one.address);
    let at_one = each.iter().find(of_one).unwrap();
    for _ in 0..5 {
        assert!(!at_one.is_left_out());
        let mut client = RegistryClient::new(at_one.clone());
        assert!(client.list(all()).await.is_err());
    }
    assert!(at_one.is_left_out());
    assert_eq!(share(&transport, 100).await["127.0.0.116"], 100);
    assert_eq!(one.service.calls(), 5, "it is not even asked");
    // When nobody can, somebody is asked all the same, and the answer is the servers' own.
    two.service
        .unavailable
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let status = RegistryClient::new(transport.clone())
        .list(all())
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "not now")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_configuration_is_taken_over_without_a_lost_call() {
    let dns = TestDns::start().await;
    let one = Replica::start("127.0.0.117:0");
    let two = Replica::start("127.0.0.118:0");
    dns.set_addresses("one.test", &["127.0.0.117"]);
    dns.set_addresses("two.test", &["127.0.0.118"]);
    let url = |name: &str, replica: &Replica| {
        config(
            &dns,
            &format!("http://{name}.test:{}", replica.address.port()),
        )
    };
    let transport = Transport::remote(url("one", &one)).unwrap();
    until_ready(&transport, 1).await;
    let chosen = transport.each().remove(0);
    let waiting = tokio::spawn({
        let mut client = RegistryClient::new(transport.clone());
        async move { client.list(slow()).await }
    });
    while one.service.calls() == 0 {
        tokio::task::yield_now().await;
    }
    let calls = tokio::spawn({
        let transport = transport.clone();
        async move {
            let mut shares = HashMap::new();
            while !shares.contains_key("127.0.0.118") {
                for (name, calls) in share(&transport, 10).await {
                    *shares.entry(name).or_insert(0) += calls;
                }
            }
            shares
        }
    });
    transport.replace(url("two", &two)).await.unwrap();
    let shares = tokio::time::timeout(SOON, calls).await.unwrap().unwrap();
    assert!(shares.contains_key("127.0.0.118"), "{shares:?}");
    assert_eq!(share(&transport, 20).await["127.0.0.118"], 20);
    assert!(!chosen.is_same_endpoint(&transport.each()[0]));
    one.service.release.notify_one();
    assert!(waiting.await.unwrap().is_ok(), "finished where it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_leads_to_one_endpoint_and_shows_whether_it_lives() {
    let local = tokio::task::LocalSet::new();
    let test = async {
        let dns = TestDns::start().await;
        let (mut one, _two, transport) = pair(&dns, "127.0.0.131", "127.0.0.132").await;
        let mut each = transport.each().into_iter();
        let chosen = each
            .find(|endpoint| endpoint.peer() == Some(one.address))
            .unwrap();
        let line = chosen.dial(SOON).await.unwrap();
        for _ in 0..20 {
            let list = RegistryClient::new(line.clone()).list(all()).await.unwrap();
            assert_eq!(list.into_inner().services[0].endpoint, "127.0.0.131");
        }
        assert!(line.answers().await);
        let frozen = one.freeze();
        let mut asked = std::pin::pin!(line.answers());
        let moment = Duration::from_millis(100);
        let silent = tokio::time::timeout(moment, &mut asked).await.is_err();
        assert!(silent, "nobody is there who could answer");
        drop(frozen);
        assert!(tokio::time::timeout(SOON, asked).await.unwrap());
        one.kill();
        // What runs there still comes to the end of its turn, and may answer until then.
        let ended = async { while line.answers().await {} };
        tokio::time::timeout(SOON, ended).await.unwrap();
        let many = transport.dial(SOON).await.unwrap_err();
        assert_eq!(many.failure, Failure::NotSent);
    };
    local.run_until(test).await;
}

/// `ServerInfo` and nothing else, as a databroker answers it.
fn records(server_version: u64) -> Routes {
    let info = super::super::stubs::databroker::ServerInfoResponse {
        server_version,
        ..Default::default()
    };
    databroker("ServerInfo", &info)
}

/// A databroker with one method that always gives the same answer.
fn databroker(method: &str, message: &impl prost::Message) -> Routes {
    use http_body_util::BodyExt as _;
    let mut frame = vec![0; 5];
    message.encode(&mut frame).unwrap();
    frame[4] = u8::try_from(frame.len() - 5).unwrap();
    let answer = move || {
        let body = http_body_util::Full::new(bytes::Bytes::from(frame.clone()));
        let trailers = async {
            let status = http::HeaderValue::from_static("0");
            Some(Ok(http::HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                status,
            )])))
        };
        let body = axum::body::Body::new(body.with_trailers(trailers));
        let kind = [("content-type", "application/grpc")];
        std::future::ready((kind, body))
    };
    let path = format!("/databroker.DataBrokerService/{method}");
    Routes::from(axum::Router::new().route(&path, axum::routing::post(answer)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_with_an_id_is_asked_elsewhere_and_another_is_not() {
    use super::super::WriteId;
    use super::super::stubs::databroker::data_broker_service_client::DataBrokerServiceClient;
    use super::super::stubs::databroker::{PutRequest, PutResponse};
    let dns = TestDns::start().await;
    let start = |address: &str, server_version| {
        let written = PutResponse {
            server_version,
            ..PutResponse::default()
        };
        Replica::start_with(address, |_| databroker("Put", &written), None)
    };
    let one = start("127.0.0.133:0", 1);
    let port = one.address.port();
    let _two = start(&format!("127.0.0.134:{port}"), 2);
    dns.set_addresses("svc.test", &["127.0.0.133", "127.0.0.134"]);
    let mut config = config(&dns, &format!("http://svc.test:{port}"));
    // Nothing else finds out that it is frozen.
    config.probes.quick_patience = SOON;
    let transport = Transport::remote(config).unwrap();
    until_ready(&transport, 2).await;
    let frozen = one.freeze();
    let put = async |id: Option<WriteId>, limit: Duration| {
        let mut request = tonic::Request::new(PutRequest::default());
        request.set_timeout(limit);
        if let Some(id) = id {
            id.attach(&mut request);
        }
        DataBrokerServiceClient::new(transport.clone())
            .put(request)
            .await
    };
    let elsewhere = || counted(&transport, |c| &c.hedged) + counted(&transport, |c| &c.moved);
    let mut lost = 0;
    while lost < 2 {
        let limit = CallTiming::default().second_question * 2;
        lost += usize::from(put(None, limit).await.is_err());
    }
    assert_eq!(elsewhere(), 0, "it might be done twice");
    for _ in 0..20 {
        let written = put(Some(WriteId::random()), SOON).await.unwrap();
        assert_eq!(written.into_inner().server_version, 2);
    }
    assert!(elsewhere() > 0);
    drop(frozen);
}

#[tokio::test(flavor = "multi_thread")]
async fn databrokers_with_different_records_are_a_loud_error() {
    let dns = TestDns::start().await;
    let start = |address: &str, version| Replica::start_with(address, |_| records(version), None);
    let one = start("127.0.0.119:0", 7);
    let port = one.address.port();
    let two = start(&format!("127.0.0.120:{port}"), 8);
    dns.set_addresses("svc.test", &["127.0.0.119", "127.0.0.120"]);
    let mut config = config(&dns, &format!("http://svc.test:{port}"));
    config.service = "pomerium-databroker".to_owned();
    config.keys = Some(TokenKeys::new(vec![SecretKey::random()]));
    config.probes.records_interval = Duration::from_millis(50);
    let (parts, metrics) = (config.parts.clone(), config.metrics.clone());
    let _transport = Transport::remote(config).unwrap();
    let error = || parts.list().remove("rpc.pomerium-databroker")?.error;
    let until = async |what: &str, condition: &dyn Fn(Option<String>) -> bool| {
        let wait = async {
            let mut changes = parts.changes();
            while !condition(error()) {
                let _ = tokio::time::timeout(Duration::from_millis(100), changes.changed()).await;
            }
        };
        let come = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(come.is_ok(), "{what}: {:?}", parts.list());
    };
    until("a split brain", &|error| {
        error.is_some_and(|error| {
            error.contains("split brain")
                && error.contains("127.0.0.119")
                && error.contains("127.0.0.120")
        })
    })
    .await;
    let labels = vec![("service", "pomerium-databroker".to_owned())];
    assert_eq!(metrics.records.get_or_create(&labels).get(), 2);
    drop(two);
    // It may need a moment to leave its address.
    let address = format!("127.0.0.120:{port}");
    until("a free address", &|_| StdListener::bind(&address).is_ok()).await;
    let _same = start(&address, 7);
    until("the end of it", &|error| error.is_none()).await;
}
