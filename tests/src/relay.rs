//! A TCP relay between the parts: a layer 4 balancer when it has several targets, and a network
//! that can be cut.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How often a balancer asks its targets whether they are ready, and how long it waits for one.
const CHECK_EVERY: Duration = Duration::from_millis(250);
const CHECK_PATIENCE: Duration = Duration::from_secs(1);

/// What a relay does with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Carries them.
    Open,
    /// Resets connections, and new ones at once.
    Cut,
    /// Neither carries nor closes: what was sent is lost, and nobody is told.
    Silent,
}

/// Where a relay leads.
#[derive(Debug)]
pub struct Target {
    address: SocketAddr,
    /// Its health listener; without one it is always taken for ready.
    health: Option<SocketAddr>,
    ready: AtomicBool,
}

impl Target {
    /// One that is asked on `health` whether it is ready.
    pub fn checked(address: SocketAddr, health: SocketAddr) -> Self {
        Self {
            address,
            health: Some(health),
            ready: AtomicBool::new(false),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Link {
    way: Way,
    /// Connections of an earlier era have been forgotten.
    era: u64,
}

pub struct Relay {
    pub address: SocketAddr,
    targets: Arc<Vec<Target>>,
    link: watch::Sender<Link>,
    tasks: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Between `address` and one target.
    pub async fn start(address: SocketAddr, target: SocketAddr) -> Self {
        let target = Target {
            address: target,
            health: None,
            ready: AtomicBool::new(true),
        };
        Self::balance(address, vec![target]).await
    }

    /// Spreads connections over the targets that are ready.
    pub async fn balance(address: SocketAddr, targets: Vec<Target>) -> Self {
        let listener = TcpListener::bind(address)
            .await
            .expect("the relay's address is free");
        let link = watch::Sender::new(Link {
            way: Way::Open,
            era: 0,
        });
        let targets = Arc::new(targets);
        let checks = (0..targets.len()).map(|index| {
            let targets = Arc::clone(&targets);
            tokio::spawn(async move { check(&targets[index]).await })
        });
        let mut tasks: Vec<_> = checks.collect();
        let accepting = accept(listener, Arc::clone(&targets), link.subscribe());
        tasks.push(tokio::spawn(accepting));
        Self {
            address,
            targets,
            link,
            tasks,
        }
    }

    /// Whether every target takes connections.
    pub fn is_complete(&self) -> bool {
        let ready = |target: &Target| target.ready.load(Ordering::Relaxed);
        self.targets.iter().all(ready)
    }

    /// What happens from now on. Connections that met a silent relay stay lost afterwards, those
    /// that were made meanwhile too.
    pub fn set(&self, way: Way) {
        self.link.send_modify(|link| {
            link.way = way;
            link.era += u64::from(way != Way::Open);
        });
    }

    /// As a device that has lost its table: open connections are silent from now on, new ones pass.
    pub fn forget(&self) {
        self.link.send_modify(|link| link.era += 1);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, targets: Arc<Vec<Target>>, link: watch::Receiver<Link>) {
    let turn = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        let (targets, turn, link) = (Arc::clone(&targets), Arc::clone(&turn), link.clone());
        tokio::spawn(async move {
            // Both ends of a connection may break at any time; that is what they are there for.
            let _ = carry(client, &targets, &turn, link).await;
        });
    }
}

async fn carry(
    mut client: TcpStream,
    targets: &[Target],
    turn: &AtomicUsize,
    mut link: watch::Receiver<Link>,
) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let now = *link.borrow();
    if now.way != Way::Open {
        // Without the relay there is nobody left who could be told.
        let _ = link.wait_for(|link| link.way == Way::Cut).await;
        return reset(&client);
    }
    let Some(mut server) = connect(targets, turn).await else {
        return reset(&client);
    };
    server.set_nodelay(true)?;
    tokio::select! {
        ended = tokio::io::copy_bidirectional(&mut client, &mut server) => {
            if ended.is_err() {
                reset(&client)?;
                reset(&server)?;
            }
            return Ok(());
        }
        _ = link.wait_for(|link| link.era > now.era) => {}
    }
    // Without the relay there is nobody left who could be told.
    let _ = link.wait_for(|link| link.way == Way::Cut).await;
    reset(&client)?;
    reset(&server)
}

/// The next one that is ready and accepts.
async fn connect(targets: &[Target], turn: &AtomicUsize) -> Option<TcpStream> {
    let first = turn.fetch_add(1, Ordering::Relaxed);
    for offset in 0..targets.len() {
        let target = &targets[(first + offset) % targets.len()];
        if !target.ready.load(Ordering::Relaxed) {
            continue;
        }
        if let Ok(stream) = TcpStream::connect(target.address).await {
            return Some(stream);
        }
    }
    None
}

/// Without what was still to be sent, once it is dropped.
fn reset(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_zero_linger()
}

async fn check(target: &Target) {
    let Some(health) = target.health else {
        return;
    };
    loop {
        let ready = tokio::time::timeout(CHECK_PATIENCE, is_ready(health)).await;
        let ready = matches!(ready, Ok(Ok(true)));
        target.ready.store(ready, Ordering::Relaxed);
        tokio::time::sleep(CHECK_EVERY).await;
    }
}

async fn is_ready(health: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(health).await?;
    stream
        .write_all(b"GET /readyz HTTP/1.1\r\nhost: balancer\r\nconnection: close\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}
