//! The primary is lost and a standby promoted: writes go on there, nothing that was acknowledged is missing, and every
//! follower ends with what the new primary has.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record as DnsRecord, RecordType};
use postern_common::config::{DnsOptions, DnsServer, DnsTransport};
use postern_common::crypto::keys::SecretKey;
use postern_common::net::resolver::Resolver;
use postern_common::rpc::stubs::databroker::{
    PutRequest, SyncLatestRequest, SyncRequest, sync_latest_response, sync_response,
};
use postern_databroker::storage::postgres::{Postgres, settings::Settings};
use postern_databroker::storage::sealed::Payloads;
use postern_databroker::storage::{PageStart, Storage};
use postern_databroker::tidy::Housekeeping;
use tokio::net::UdpSocket;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::contract::record;
use crate::eventually;
use crate::feed::{Client, Running, start};
use crate::server;

/// Names of hosts, all on this machine, until one is removed.
#[derive(Clone)]
struct Dns {
    address: SocketAddr,
    removed: Arc<AtomicBool>,
}

impl Dns {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let dns = Self {
            address: socket.local_addr().unwrap(),
            removed: Arc::default(),
        };
        tokio::spawn(dns.clone().serve(socket));
        dns
    }

    async fn serve(self, socket: UdpSocket) {
        let mut buffer = [0; 512];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let query = question.queries[0].clone();
            let mut answer = Message::new(
                question.metadata.id,
                MessageType::Response,
                question.metadata.op_code,
            );
            answer.metadata.recursion_available = true;
            if query.name().to_ascii().starts_with("pg-a") && self.removed.load(Ordering::Relaxed) {
                answer.metadata.response_code = ResponseCode::NXDomain;
            } else if query.query_type() == RecordType::A {
                let data = RData::A(A(Ipv4Addr::LOCALHOST));
                answer.add_answer(DnsRecord::from_rdata(query.name().clone(), 1, data));
            }
            answer.add_query(query);
            socket
                .send_to(&answer.to_vec().unwrap(), from)
                .await
                .unwrap();
        }
    }

    fn resolver(&self) -> Resolver {
        let options = DnsOptions {
            resolvers: vec![DnsServer {
                address: self.address,
                transport: DnsTransport::Udp,
            }],
            ..DnsOptions::default()
        };
        Resolver::new(options).unwrap()
    }
}

/// A primary `pg-a` with two standbys that must both have a commit before it counts, and two databrokers.
struct World {
    a: Arc<server::Postgres>,
    _b: server::Postgres,
    c: Arc<server::Postgres>,
    dns: Dns,
    storage: Arc<dyn Storage>,
    databrokers: Vec<Running>,
}

impl World {
    async fn new() -> Self {
        let dns = Dns::start().await;
        let servers = spawn_blocking(|| {
            let a = server::Postgres::start().unwrap();
            a.database("failover").unwrap();
            let (b, c) = (a.standby().unwrap(), a.standby().unwrap());
            a.psql(
                "postgres",
                "ALTER SYSTEM SET synchronous_standby_names = 'ANY 2 (*)'",
            )
            .unwrap();
            a.psql("postgres", "SELECT pg_reload_conf()").unwrap();
            (a, b, c)
        });
        let (a, b, c) = servers.await.unwrap();
        let uri = format!(
            "postgres://postgres@pg-a.test:{},pg-b.test:{},pg-c.test:{}/failover?sslmode=disable&target_session_attrs=read-write",
            a.port(),
            b.port(),
            c.port(),
        );
        let key = SecretKey::random();
        let mut storages = Vec::new();
        for _ in 0..2 {
            let settings = Settings::parse(&uri, &|_| None).unwrap();
            let payloads = Payloads::sealed(std::slice::from_ref(&key), &[]);
            let stop = CancellationToken::new();
            let storage: Arc<dyn Storage> =
                Arc::new(Postgres::start(settings, payloads, dns.resolver(), stop).unwrap());
            eventually("the database is open", async || {
                storage.head().await.is_ok()
            })
            .await;
            storages.push(storage);
        }
        let databrokers = storages
            .iter()
            .map(|storage| start(Arc::clone(storage), Housekeeping::default()))
            .collect();
        Self {
            a: Arc::new(a),
            _b: b,
            c: Arc::new(c),
            dns,
            storage: storages.remove(0),
            databrokers,
        }
    }

    fn write(&self) -> Writers {
        let stop = CancellationToken::new();
        let acknowledged: Acknowledged = Arc::default();
        for (number, running) in self.databrokers.iter().enumerate() {
            for writer in 0..3 {
                let work = write(
                    running.client.clone(),
                    format!("{number}-{writer}"),
                    Arc::clone(&acknowledged),
                );
                tokio::spawn(stop.clone().run_until_cancelled_owned(work));
            }
        }
        Writers { stop, acknowledged }
    }

    fn follow(&self) -> Vec<Copy> {
        let follow = |running: &Running| {
            let copy = Copy::default();
            tokio::spawn(keep(running.client.clone(), Arc::clone(&copy)));
            copy
        };
        self.databrokers.iter().map(follow).collect()
    }

    /// Makes `c` the primary; returns when it is.
    async fn promote(&self) -> Instant {
        let c = Arc::clone(&self.c);
        spawn_blocking(move || c.promote().unwrap()).await.unwrap();
        Instant::now()
    }

    /// What the primary has: type and id to version.
    async fn records(&self) -> Option<Records> {
        let all = self.storage.page(None, PageStart::Offset(0), 1_000_000);
        let records = all.await.ok()?.into_iter();
        Some(records.map(|it| ((it.r#type, it.id), it.version)).collect())
    }
}

type Records = BTreeMap<(String, String), u64>;
type Copy = Arc<Mutex<Records>>;
type Acknowledged = Arc<Mutex<Vec<(String, Instant)>>>;

struct Writers {
    stop: CancellationToken,
    acknowledged: Acknowledged,
}

impl Writers {
    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// The first that was acknowledged after a moment.
    async fn first_after(&self, moment: Instant) -> Duration {
        let first = || {
            let acknowledged = self.acknowledged.lock().unwrap();
            acknowledged
                .iter()
                .map(|(_, at)| *at)
                .find(|at| *at > moment)
        };
        eventually("it writes again", async || first().is_some()).await;
        first().unwrap() - moment
    }
}

async fn write(mut client: Client, name: String, acknowledged: Acknowledged) {
    for number in 0.. {
        let id = format!("{name}-{number}");
        let records = vec![record("t", &id, b"x")];
        if client.put(PutRequest { records }).await.is_ok() {
            acknowledged.lock().unwrap().push((id, Instant::now()));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Follows as a replica does: everything, then each change, and from the start when it is told so.
async fn keep(mut client: Client, copy: Copy) {
    loop {
        let followed = follow(&mut client, &copy).await;
        if let Err(status) = followed
            && status.code() != Code::Aborted
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn follow(client: &mut Client, copy: &Copy) -> Result<(), Status> {
    let latest = SyncLatestRequest::default();
    let mut stream = client.sync_latest(latest).await?.into_inner();
    let mut records = Records::new();
    let mut at = None;
    while let Some(message) = stream.message().await? {
        match message.response {
            Some(sync_latest_response::Response::Record(it)) => {
                records.insert((it.r#type, it.id), it.version);
            }
            Some(sync_latest_response::Response::Versions(versions)) => at = Some(versions),
            _ => {}
        }
    }
    let at = at.ok_or_else(|| Status::unavailable("cut"))?;
    *copy.lock().unwrap() = records;
    let mut seen = at.latest_record_version;
    // A stream that breaks is taken up where it was.
    loop {
        let request = SyncRequest {
            server_version: at.server_version,
            record_version: seen,
            ..SyncRequest::default()
        };
        match changes(client, request, copy, &mut seen).await {
            Err(status) if status.code() == Code::Aborted => return Err(status),
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn changes(
    client: &mut Client,
    request: SyncRequest,
    copy: &Copy,
    seen: &mut u64,
) -> Result<(), Status> {
    let mut stream = client.sync(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        if let Some(sync_response::Response::Record(record)) = message.response {
            assert!(
                record.version > *seen,
                "{} after {seen}: twice, or out of order",
                record.version
            );
            *seen = record.version;
            let mut copy = copy.lock().unwrap();
            let key = (record.r#type, record.id);
            if record.deleted_at.is_some() {
                copy.remove(&key);
            } else {
                copy.insert(key, record.version);
            }
        }
    }
    Ok(())
}

/// Nothing acknowledged is missing, and both followers have what the primary has.
async fn assert_nothing_is_lost(world: &World, writers: &Writers, copies: &[Copy]) {
    writers.stop.cancel();
    eventually("every follower has what the primary has", async || {
        let Some(records) = world.records().await else {
            return false;
        };
        copies.iter().all(|copy| *copy.lock().unwrap() == records)
    })
    .await;
    let records = world.records().await.unwrap();
    let acknowledged = writers.acknowledged.lock().unwrap();
    for (id, _) in acknowledged.iter() {
        let key = ("t".to_owned(), id.clone());
        assert!(
            records.contains_key(&key),
            "{id} was acknowledged and is lost"
        );
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// On one thread, so that the log is this test's own.
#[tokio::test]
async fn c11_the_primary_is_killed_and_its_name_removed() {
    let log = Log::default();
    let to = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || to.clone())
        .with_ansi(false)
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);

    let world = World::new().await;
    let (writers, copies) = (world.write(), world.follow());
    eventually("there is something to lose", async || writers.count() > 200).await;
    let before = world.storage.head().await.unwrap().server_version;

    let a = Arc::clone(&world.a);
    world.dns.removed.store(true, Ordering::Relaxed);
    spawn_blocking(move || a.stop().unwrap()).await.unwrap();
    let promoted = world.promote().await;
    let took = writers.first_after(promoted).await;
    println!("c11: the first write after {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");

    let count = writers.count();
    eventually("it goes on", async || writers.count() > count + 200).await;
    assert_nothing_is_lost(&world, &writers, &copies).await;
    // The new primary might have lacked commits and given their versions out again.
    let after = world.storage.head().await.unwrap().server_version;
    assert_ne!(before, after);

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let unresolved: Vec<_> = log
        .lines()
        .filter(|line| line.contains("a host of databroker_storage_connection_string"))
        .collect();
    // Once for each of the two databrokers, however many connections were tried.
    assert_eq!(unresolved.len(), 2, "{unresolved:?}");
    assert!(unresolved.iter().all(|line| line.contains("pg-a.test")));
}

/// A primary that keeps its connections and says nothing, as behind a link that died, is given up for the new one.
#[tokio::test]
async fn c11_the_primary_is_frozen() {
    let world = World::new().await;
    let (writers, copies) = (world.write(), world.follow());
    eventually("there is something to lose", async || writers.count() > 100).await;

    let a = Arc::clone(&world.a);
    spawn_blocking(move || a.freeze(true).unwrap())
        .await
        .unwrap();
    let frozen = Instant::now();
    // As long as whoever promotes standbys needs to be sure.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let promoted = world.promote().await;
    let took = writers.first_after(promoted).await;
    println!(
        "c11: the first write {took:?} after the promotion, {:?} after the freeze",
        frozen.elapsed()
    );
    let count = writers.count();
    eventually("it goes on", async || writers.count() > count + 100).await;
    assert_nothing_is_lost(&world, &writers, &copies).await;

    // It can only be stopped while it runs.
    let a = Arc::clone(&world.a);
    spawn_blocking(move || a.freeze(false).unwrap())
        .await
        .unwrap();
    assert!(took < Duration::from_secs(2), "{took:?}");
}
