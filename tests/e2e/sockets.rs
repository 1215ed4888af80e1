//! Sockets that are opened outside and handed over, and what systemd is told.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postern_tests::binaries::binary;
use postern_tests::cluster::{Cluster, Layout};
use postern_tests::load::{Load, Witness};
use postern_tests::person::Person;
use postern_tests::ports;
use postern_tests::process::Process;
use postern_tests::wait;
use postern_tests::world::{Setting, World};
use tokio::sync::watch;
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(20);

/// Requests a second.
const LOAD: u32 = 40;

/// Hears what systemd would.
struct Ear {
    heard: Arc<Mutex<Vec<String>>>,
}

impl Ear {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&heard);
        std::thread::spawn(move || {
            let mut datagram = [0; 4096];
            while let Ok(n) = socket.recv(&mut datagram) {
                let text = String::from_utf8_lossy(&datagram[..n]).into_owned();
                let lines = text.lines().map(str::to_owned);
                into.lock().unwrap().extend(lines);
            }
        });
        Self { heard }
    }

    /// Waits until something was said that begins so, and forgets everything up to there.
    async fn until(&self, wanted: &str) {
        wait::until(wanted, SOON, async || {
            let mut heard = self.heard.lock().unwrap();
            let found = heard.iter().position(|line| line.starts_with(wanted));
            match found {
                Some(index) => {
                    heard.drain(..=index);
                    Ok(())
                }
                None => Err(heard.clone()),
            }
        })
        .await;
    }
}

async fn stop(cluster: &mut Cluster, service: &str) {
    let process = cluster.process(service);
    process.signal("TERM");
    let ended = process.ended().await;
    assert_eq!(ended.code(), Some(0));
}

/// Opens what a service that has ended would listen on, hands it over and starts the service.
async fn on_a_socket_of_ours(cluster: &mut Cluster, service: &str) -> TcpListener {
    let socket = TcpListener::bind(cluster.serves(service)).unwrap();
    cluster.hand_over(service, socket.try_clone().unwrap());
    cluster.start_again(service);
    cluster.ready().await;
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_whose_socket_stays_open_restarts_unnoticed() {
    let witness = Witness::start().await;
    let setting = Setting::new(Layout::Split)
        .config("drain_delay: 2s\n")
        .routes(witness.routes());
    let mut world = World::start_with(setting).await;
    let path = world.cluster.site.path("notify");
    let ear = Ear::at(&path);
    let cluster = &mut world.cluster;
    cluster.tell("proxy", "NOTIFY_SOCKET", path.to_str().unwrap());
    cluster.tell("proxy", "WATCHDOG_USEC", "600000");
    stop(cluster, "proxy").await;
    let _socket = on_a_socket_of_ours(cluster, "proxy").await;
    ear.until("READY=1").await;
    ear.until("STATUS=running").await;
    ear.until("WATCHDOG=1").await;
    ear.until("WATCHDOG=1").await;
    cluster.process("proxy").signal("HUP");
    ear.until("RELOADING=1").await;
    ear.until("MONOTONIC_USEC=").await;
    ear.until("READY=1").await;

    let load = Load::start(&world, LOAD).await;
    for _ in 0..3 {
        let before = witness.count();
        wait::until("the load", SOON, async || {
            let more = witness.count() - before;
            (more >= 20).then_some(()).ok_or(more)
        })
        .await;
        // As `systemctl restart` does it.
        stop(&mut world.cluster, "proxy").await;
        world.cluster.start_again("proxy");
        world.cluster.ready().await;
        ear.until("STOPPING=1").await;
        ear.until("EXTEND_TIMEOUT_USEC=").await;
        ear.until("READY=1").await;
    }
    let report = load.stop().await;
    assert!(report.sent() > 60);
    assert_eq!(report.failed(), 0, "{:?}", report.problems());
    assert_eq!(witness.wrong(), Vec::<String>::new());
}

/// Exit code of `postern-SERVICE health`.
fn health(cluster: &Cluster, service: &str) -> Option<i32> {
    let url = cluster.health(service, "");
    Command::new(binary(&format!("postern-{service}")))
        .args(["health", "--addr", url.trim_start_matches("http://")])
        .output()
        .unwrap()
        .status
        .code()
}

/// A socket that is shared can be shut from outside; nothing else can do that to a listener.
#[tokio::test(flavor = "multi_thread")]
async fn c54_a_service_whose_listener_dies_is_unhealthy_and_ends() {
    let setting = Setting::new(Layout::Split).config("drain_delay: 3s\n");
    let mut world = World::start_with(setting).await;
    let cluster = &mut world.cluster;
    for service in ["databroker", "authorize", "authenticate", "proxy"] {
        stop(cluster, service).await;
        let socket = on_a_socket_of_ours(cluster, service).await;
        assert_eq!(health(cluster, service), Some(0), "{service}");
        // Nobody else has one to lose.
        for other in ["databroker", "authorize", "authenticate", "proxy"] {
            assert!(cluster.process(other).has_ended().is_none(), "{other}");
        }
        socket2::SockRef::from(&socket)
            .shutdown(std::net::Shutdown::Read)
            .unwrap();
        wait::until("unhealthy", SOON, async || match health(cluster, service) {
            Some(1) => Ok(()),
            other => Err(other),
        })
        .await;
        let process = cluster.process(service);
        assert_eq!(process.ended().await.code(), Some(1), "{service}");
        assert!(process.output().contains(" listener"), "{service}");
        drop(socket);
        on_a_socket_of_ours(cluster, service).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_nobody_asked_for_is_refused() {
    let mut world = World::start_with(Setting::new(Layout::Split)).await;
    let cluster = &mut world.cluster;
    stop(cluster, "databroker").await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let (there, wanted) = (
        elsewhere.local_addr().unwrap(),
        cluster.serves("databroker"),
    );
    let no_tcp = UdpSocket::bind("127.0.0.1:0").unwrap();
    for (socket, said) in [
        (
            OwnedFd::from(elsewhere),
            format!(
                "listens on {there}, where this process is told to listen nowhere (grpc_address {wanted}, "
            ),
        ),
        (
            OwnedFd::from(no_tcp),
            "is no listening TCP socket".to_owned(),
        ),
    ] {
        cluster.hand_over("databroker", socket);
        cluster.start_again("databroker");
        let process = cluster.process("databroker");
        assert_eq!(process.ended().await.code(), Some(1));
        let output = process.output();
        assert!(output.contains(&said), "{output}");
    }
}

/// A proxy beside that of the cluster, on the same port.
fn beside(cluster: &Cluster, name: &str, health: u16) -> Process {
    let mut command = Command::new(binary("postern-proxy"));
    command
        .arg("--config")
        .arg(cluster.config_file())
        .env("ADDRESS", cluster.serves("proxy").to_string())
        .env("HEALTH_CHECK_ADDR", format!("127.0.0.1:{health}"));
    Process::start(name, cluster.site.directory.path(), command)
}

async fn until_ready(cluster: &Cluster, process: &mut Process, health: u16) {
    let nobody = cluster.program();
    let url = format!("http://127.0.0.1:{health}/readyz");
    wait::until("ready", SOON, async || {
        assert!(process.has_ended().is_none(), "{}", process.output());
        match nobody.try_get(&url).await {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Asks on a new connection each time, until it is told to stop; how often, and what went wrong.
async fn fresh(nobody: Person, url: String, stop: watch::Receiver<bool>) -> (usize, Vec<String>) {
    let (mut count, mut failures) = (0, Vec::new());
    while !*stop.borrow() {
        count += 1;
        match nobody.try_get(&url).await {
            Ok(answer) if answer.status == 200 => {}
            Ok(answer) => failures.push(format!("{} {}", answer.status, answer.text())),
            Err(error) => failures.push(error),
        }
    }
    (count, failures)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_proxies_on_one_port_take_over_from_each_other() {
    let witness = Witness::start().await;
    let setting = Setting::new(Layout::Split)
        .config("drain_delay: 0s\nreuse_port: true\n")
        .routes(witness.routes());
    let mut world = World::start_with(setting).await;
    let cluster = &mut world.cluster;
    let (nobody, url) = (cluster.program(), cluster.url("free", "/anybody/1"));
    let stop = watch::Sender::new(false);
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        clients.spawn(fresh(nobody.clone(), url.clone(), stop.subscribe()));
    }
    let health = [ports::row(1), ports::row(1)];
    let mut running: Option<Process> = None;
    for round in 0..4 {
        let health = health[round % 2];
        let mut next = beside(cluster, &format!("beside-{round}"), health);
        until_ready(cluster, &mut next, health).await;
        let before = witness.count();
        wait::until("the load", SOON, async || {
            let more = witness.count() - before;
            (more >= 50).then_some(()).ok_or(more)
        })
        .await;
        let old = match &mut running {
            Some(old) => old,
            None => cluster.process("proxy"),
        };
        old.signal("TERM");
        assert_eq!(old.ended().await.code(), Some(0));
        running = Some(next);
    }
    stop.send_replace(true);
    let mut sent = 0;
    while let Some(client) = clients.join_next().await {
        let (count, failures) = client.unwrap();
        assert_eq!(failures, Vec::<String>::new());
        sent += count;
    }
    assert!(sent > 200, "{sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_told_unless_it_is_shared() {
    let world = World::start_with(Setting::new(Layout::Split)).await;
    let mut second = beside(&world.cluster, "second", ports::row(1));
    assert_eq!(second.ended().await.code(), Some(1));
    assert!(
        second.output().contains("the port is taken"),
        "{}",
        second.output()
    );
}
