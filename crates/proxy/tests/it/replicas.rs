//! Several replicas of authorize behind one name: they come, go, freeze, drain; links are lost.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use postern_common::authz::{AuthorizeError, Decision, Revisit};
use postern_common::config::{DnsOptions, DnsServer, DnsTransport};
use postern_common::lifecycle::{DrainTiming, Lifecycle, NotReady, Parts};
use postern_common::net::Resolver;
use postern_common::rpc::Transport;
use postern_common::rpc::client::{CallMetrics, CallTiming, ProbeTiming, RemoteConfig};
use postern_common::rpc::server::{HealthName, Server, serve};
use postern_common::rpc::stubs::authorize::decisions_server::DecisionsServer;
use postern_common::rpc::token::TokenKeys;
use postern_common::tls::{Alpn, Trust, client_config};
use postern_proxy::{Remote, Streams};
use postern_test_dns::TestDns;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};

use crate::support::authorize::{Service, question};
use crate::support::authorizer::Scripted;
use crate::support::{eventually, soon};

const NAME: &str = "pomerium-authorize";
const PART: &str = "authorize";

/// A replica on a thread of its own, so that it can be frozen and killed like a process.
struct Replica {
    address: SocketAddr,
    service: Service,
    lifecycle: Lifecycle,
    /// Held while it does not serve.
    drains: Option<NotReady>,
    runtime: Option<tokio::runtime::Runtime>,
}

/// Dropping it lets the replica go on.
struct Frozen {
    _release: mpsc::Sender<()>,
}

impl Replica {
    fn start(address: &str) -> Self {
        let listener = StdListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let service = Service::new(Scripted::allowing());
        let lifecycle = Lifecycle::new(DrainTiming::immediate());
        drop(lifecycle.not_ready(PART));
        let routes = tonic::service::Routes::new(DecisionsServer::new(service.clone()));
        let mut server = Server::new(routes);
        server.health = vec![HealthName {
            service: NAME.to_owned(),
            parts: vec![PART.to_owned()],
        }];
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let running = lifecycle.clone();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            serve(listener, server, &running).await;
        });
        Self {
            address,
            service,
            lifecycle,
            drains: None,
            runtime: Some(runtime),
        }
    }

    fn questions(&self) -> usize {
        self.service.script.questions()
    }

    fn drain(&mut self) {
        self.drains = Some(self.lifecycle.not_ready(PART));
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

/// Two replicas, a name server, and a core that asks.
struct Fleet {
    dns: TestDns,
    transport: Transport,
    streams: Rc<Streams>,
}

impl Fleet {
    /// `dns` names `addresses` on `port`.
    async fn new(addresses: &[&str], port: u16) -> Self {
        let dns = TestDns::start().await;
        dns.set_addresses("authorize.test", addresses);
        let config = crate::support::proxy::config("insecure_server: true\nroutes: []\n");
        let keys = TokenKeys::new(config.secrets.shared.clone());
        let refresh = Duration::from_millis(50);
        let resolver = Resolver::new(DnsOptions {
            resolvers: vec![DnsServer {
                transport: DnsTransport::Udp,
                address: dns.address,
            }],
            refresh_rate: refresh,
            failure_refresh_rate: refresh,
            ..DnsOptions::default()
        });
        let transport = Transport::remote(RemoteConfig {
            urls: vec![format!("http://authorize.test:{port}").parse().unwrap()],
            tls: client_config(&Trust::system(), Alpn::H2, None).unwrap(),
            certificate_name: None,
            service: NAME.to_owned(),
            keys: Some(keys.clone()),
            resolver: resolver.unwrap(),
            calls: CallTiming::default(),
            probes: ProbeTiming::default(),
            metrics: CallMetrics::default(),
            parts: Parts::default(),
        });
        let transport = transport.unwrap();
        let (_, config) = watch::channel(config);
        let lifecycle = Lifecycle::new(DrainTiming::immediate());
        let streams = Remote::new(transport.clone(), keys, config).open(&lifecycle);
        let fleet = Self {
            dns,
            transport,
            streams,
        };
        fleet.until_ready(addresses.len()).await;
        fleet
    }

    /// Waits until so many replicas get calls.
    async fn until_ready(&self, count: usize) {
        let mut changes = self.transport.changes().unwrap();
        let wait = async {
            while self.transport.each().len() != count {
                changes.changed().await.unwrap();
            }
        };
        soon(&format!("{count} replicas"), wait).await;
    }

    /// Asks `count` questions, some at a time; each must be decided.
    async fn decided(&self, count: usize) {
        for _ in 0..count / 4 {
            let four = (0..4).map(|_| self.streams.check(question("r")));
            for answer in soon("decisions", futures::future::join_all(four)).await {
                assert!(matches!(answer, Ok(Decision::Allow(_))), "{answer:?}");
            }
        }
    }

    /// Asks until `replica` has been asked too.
    async fn until_asked(&self, replica: &Replica) {
        let before = replica.questions();
        let wait = async {
            while replica.questions() == before {
                self.decided(4).await;
            }
        };
        soon("the replica is asked", wait).await;
    }
}

/// Two replicas that are asked both.
async fn pair(first: &str, second: &str) -> (Replica, Replica, Fleet) {
    let one = Replica::start(&format!("{first}:0"));
    let port = one.address.port();
    let two = Replica::start(&format!("{second}:{port}"));
    let fleet = Fleet::new(&[first, second], port).await;
    fleet.until_asked(&one).await;
    fleet.until_asked(&two).await;
    (one, two, fleet)
}

/// Plays a core.
async fn on_core<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

#[tokio::test(flavor = "multi_thread")]
async fn c03_replicas_come_and_go() {
    on_core(async {
        let one = Replica::start("127.0.1.1:0");
        let port = one.address.port();
        let fleet = Fleet::new(&["127.0.1.1"], port).await;
        fleet.decided(20).await;
        let two = Replica::start(&format!("127.0.1.2:{port}"));
        fleet
            .dns
            .set_addresses("authorize.test", &["127.0.1.1", "127.0.1.2"]);
        fleet.until_asked(&two).await;
        let streams = one.service.streams.load(Ordering::SeqCst);
        let before = (one.questions(), two.questions());
        fleet.decided(200).await;
        let asked = (one.questions() - before.0, two.questions() - before.1);
        assert!(asked.0 >= 60 && asked.1 >= 60, "{asked:?} of 200");
        assert_eq!(
            one.service.streams.load(Ordering::SeqCst),
            streams,
            "nothing was cut to achieve it"
        );

        // A question that is open where nobody is asked any more is answered there.
        let mut revisits = fleet.streams.revisits();
        one.service.held.send_replace(true);
        two.service.held.send_replace(true);
        let batches = || one.service.batches.load(Ordering::SeqCst);
        let before = batches();
        let open: Vec<_> = (0..8)
            .map(|_| {
                let streams = Rc::clone(&fleet.streams);
                spawn_local(async move { streams.check(question("r")).await })
            })
            .collect();
        let sent = async {
            while batches() == before {
                tokio::task::yield_now().await;
            }
        };
        soon("it is asked", sent).await;
        fleet.dns.set_addresses("authorize.test", &["127.0.1.2"]);
        fleet.until_ready(1).await;
        one.service.held.send_replace(false);
        let first = soon("an answer", futures::future::select_all(open)).await;
        two.service.held.send_replace(false);
        let rest = soon("answers", futures::future::join_all(first.2)).await;
        for answer in rest.into_iter().chain([first.0]) {
            let answer = answer.unwrap();
            assert!(answer.is_ok(), "{answer:?}");
        }
        let open = || one.service.open.load(Ordering::SeqCst);
        eventually("its stream is closed", open, |open| *open == 0).await;
        let asked = one.questions();
        fleet.decided(100).await;
        assert_eq!(one.questions(), asked);
        // It can't tell any more what changes.
        let told = soon("a revisit", revisits.recv()).await.unwrap();
        assert_eq!(told, Revisit::Everything);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c02_a_killed_replica_costs_no_question() {
    on_core(async {
        let (mut one, two, fleet) = pair("127.0.1.11", "127.0.1.12").await;
        one.kill();
        fleet.decided(200).await;
        let again = Replica::start(&one.address.to_string());
        fleet.until_asked(&again).await;
        drop(two);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c66_a_frozen_replica_costs_no_question_and_comes_back() {
    on_core(async {
        let (one, two, fleet) = pair("127.0.1.21", "127.0.1.22").await;
        let frozen = one.freeze();
        fleet.decided(200).await;
        let asked = two.questions();
        assert!(asked >= 200, "{asked}");
        drop(frozen);
        fleet.until_asked(&one).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_replica_gets_no_questions() {
    on_core(async {
        let (mut one, two, fleet) = pair("127.0.1.31", "127.0.1.32").await;
        one.drain();
        fleet.until_ready(1).await;
        let open = || one.service.open.load(Ordering::SeqCst);
        eventually("its stream is closed", open, |open| *open == 0).await;
        let asked = one.questions();
        fleet.decided(200).await;
        assert_eq!(one.questions(), asked);
        one.drains = None;
        fleet.until_asked(&one).await;
        drop(two);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_only_replica_that_drains_is_asked_until_its_successor_is_there() {
    on_core(async {
        let mut one = Replica::start("127.0.1.61:0");
        let port = one.address.port();
        let fleet = Fleet::new(&["127.0.1.61"], port).await;
        fleet.decided(4).await;
        one.drain();
        fleet.until_ready(0).await;
        fleet.decided(40).await;

        let two = Replica::start(&format!("127.0.1.62:{port}"));
        fleet
            .dns
            .set_addresses("authorize.test", &["127.0.1.61", "127.0.1.62"]);
        fleet.until_asked(&two).await;
        let open = || one.service.open.load(Ordering::SeqCst);
        eventually("its stream is closed", open, |open| *open == 0).await;
        let asked = one.questions();
        fleet.decided(40).await;
        assert_eq!(one.questions(), asked);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_core_that_begins_hears_when_there_is_somebody_to_ask() {
    on_core(async {
        let one = Replica::start("127.0.1.51:0");
        let fleet = Fleet::new(&[], one.address.port()).await;
        let answer = soon("an error", fleet.streams.check(question("r"))).await;
        assert!(
            matches!(answer, Err(AuthorizeError::Unreachable { .. })),
            "{answer:?}"
        );
        assert!(fleet.streams.found().now_or_never().is_none());
        fleet.dns.set_addresses("authorize.test", &["127.0.1.51"]);
        soon("authorize is found", fleet.streams.found()).await;
        fleet.decided(4).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c66_with_all_of_them_frozen_nothing_passes_and_all_recovers() {
    on_core(async {
        let (one, two, fleet) = pair("127.0.1.41", "127.0.1.42").await;
        let frozen = (one.freeze(), two.freeze());
        let many = (0..20).map(|_| fleet.streams.check(question("r")));
        for answer in soon("errors", futures::future::join_all(many)).await {
            assert!(
                matches!(answer, Err(AuthorizeError::Unreachable { .. })),
                "{answer:?}"
            );
        }
        drop(frozen);
        let again = async { while fleet.streams.check(question("r")).await.is_err() {} };
        soon("recovery", again).await;
        fleet.until_asked(&one).await;
        fleet.until_asked(&two).await;
    })
    .await;
}

/// A device between proxy and replica. When it forgets its connections, what comes on them vanishes,
/// and nobody is told.
async fn device(address: SocketAddr, replica: SocketAddr) -> Arc<AtomicUsize> {
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
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
async fn c01_links_that_were_silently_forgotten_cost_no_question() {
    on_core(async {
        let one = Replica::start("127.0.1.51:0");
        let port = one.address.port();
        let two = Replica::start(&format!("127.0.1.52:{port}"));
        let between = |ip: &str| format!("{ip}:{port}").parse().unwrap();
        let devices = [
            device(between("127.0.1.53"), one.address).await,
            device(between("127.0.1.54"), two.address).await,
        ];
        for addresses in [&["127.0.1.53", "127.0.1.54"][..], &["127.0.1.53"]] {
            let fleet = Fleet::new(addresses, port).await;
            fleet.until_asked(&one).await;
            let mut revisits = fleet.streams.revisits();
            for device in &devices {
                device.fetch_add(1, Ordering::SeqCst);
            }
            fleet.decided(100).await;
            let told = soon("a revisit", revisits.recv()).await.unwrap();
            assert_eq!(told, Revisit::Everything, "what changed was missed");
        }
    })
    .await;
}

/// Nobody asks: the transport finds it out, and the streams are opened anew all the same, so that
/// changes are heard of.
#[tokio::test(flavor = "multi_thread")]
async fn c01_idle_streams_that_were_forgotten_are_opened_anew() {
    on_core(async {
        let one = Replica::start("127.0.1.61:0");
        let between = SocketAddr::new([127, 0, 1, 62].into(), one.address.port());
        let device = device(between, one.address).await;
        let fleet = Fleet::new(&["127.0.1.62"], one.address.port()).await;
        fleet.until_asked(&one).await;
        let streams = || one.service.streams.load(Ordering::SeqCst);
        let before = streams();
        device.fetch_add(1, Ordering::SeqCst);
        let since = Instant::now();
        while streams() == before {
            assert!(
                since.elapsed() < Duration::from_secs(20),
                "still the old stream"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
