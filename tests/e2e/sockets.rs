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
use postern_tests::wait;
use postern_tests::world::{Setting, World};

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
        .config("drain_delay: 0s\n")
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
