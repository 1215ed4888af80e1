//! The demo's Postern: child processes of this same program, and their health.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use postern_common::config::Service;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use super::{Layout, Places, Ports};

/// How long the processes may take until all of them are ready.
const START: Duration = Duration::from_secs(30);
/// How long they may take to drain.
const STOP: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("cannot start {name}")]
    Start {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("{name} ended; its last words are in {}", log.display())]
    Ended { name: String, log: PathBuf },
    #[error("{name} is not ready after {} s; see {}", START.as_secs(), log.display())]
    NotReady { name: String, log: PathBuf },
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
}

pub struct Processes(Vec<Process>);

struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    health: SocketAddr,
}

/// A process to be: its name and what its environment adds to the shared configuration.
struct Plan {
    name: String,
    environment: Vec<(&'static str, String)>,
    health: SocketAddr,
}

impl Processes {
    pub fn start(
        layout: Layout,
        config: &Path,
        directory: &Path,
        places: &Places,
    ) -> Result<Self, ProcessError> {
        plans(layout, places)
            .into_iter()
            .map(|plan| {
                let log = directory.join(format!("{}.log", plan.name));
                let name = plan.name.clone();
                start(plan, config, log).map_err(|source| ProcessError::Start { name, source })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Waits until every process says that it is ready.
    pub async fn ready(&mut self) -> Result<(), ProcessError> {
        let deadline = Instant::now() + START;
        for process in &mut self.0 {
            while !is_ready(process.health).await {
                if matches!(process.child.try_wait(), Ok(Some(_))) {
                    return Err(ProcessError::Ended {
                        name: process.name.clone(),
                        log: process.log.clone(),
                    });
                }
                if Instant::now() > deadline {
                    return Err(ProcessError::NotReady {
                        name: process.name.clone(),
                        log: process.log.clone(),
                    });
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Returns when one of them has ended, well or not: the demo without it is over.
    pub async fn ended(&mut self) -> ProcessError {
        let ended = self.0.iter_mut().map(|process| {
            Box::pin(async {
                let _ = process.child.wait().await;
                ProcessError::Ended {
                    name: process.name.clone(),
                    log: process.log.clone(),
                }
            })
        });
        futures::future::select_all(ended).await.0
    }

    /// Lets them drain.
    pub async fn stop(&mut self) {
        for process in &self.0 {
            if let Some(pid) = process.child.id() {
                // The drain that an orchestrator would ask for.
                let _ = Command::new("kill").arg(pid.to_string()).status().await;
            }
        }
        for process in &mut self.0 {
            if timeout(STOP, process.child.wait()).await.is_err() {
                let _ = process.child.kill().await;
            }
        }
    }
}

/// Ctrl-C or SIGTERM. Listen before there are processes that could be left behind.
pub struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupt {
    pub fn listen() -> Result<Self, ProcessError> {
        let listen = |kind| signal(kind).map_err(ProcessError::Signals);
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    pub async fn came(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn plans(layout: Layout, places: &Places) -> Vec<Plan> {
    let health = |offset| places.ports.address(Ports::HEALTH + offset);
    match layout {
        Layout::All => vec![Plan {
            name: "postern".to_owned(),
            environment: vec![(
                "GRPC_ADDRESS",
                places.ports.address(Ports::AUTHORIZE).to_string(),
            )],
            health: health(0),
        }],
        Layout::Split => Service::ALL
            .into_iter()
            .zip(0..)
            .map(|(service, offset)| Plan {
                name: format!("postern-{service}"),
                environment: vec![
                    ("SERVICES", service.to_string()),
                    match service {
                        Service::Proxy => ("ADDRESS", places.address.to_string()),
                        Service::Authenticate => (
                            "ADDRESS",
                            places.ports.address(Ports::AUTHENTICATE).to_string(),
                        ),
                        Service::Authorize => (
                            "GRPC_ADDRESS",
                            places.ports.address(Ports::AUTHORIZE).to_string(),
                        ),
                        Service::Databroker => (
                            "GRPC_ADDRESS",
                            places.ports.address(Ports::DATABROKER).to_string(),
                        ),
                    },
                ],
                health: health(offset),
            })
            .collect(),
    }
}

fn start(plan: Plan, config: &Path, log: PathBuf) -> io::Result<Process> {
    let output = File::options().create(true).append(true).open(&log)?;
    let child = Command::new(std::env::current_exe()?)
        .arg("--config")
        .arg(config)
        .envs(plan.environment)
        .env("HEALTH_CHECK_ADDR", plan.health.to_string())
        .stdin(Stdio::null())
        .stderr(output.try_clone()?)
        .stdout(output)
        .kill_on_drop(true)
        // Ctrl-C reaches the demo, which stops its processes in its own order.
        .process_group(0)
        .spawn()?;
    Ok(Process {
        name: plan.name,
        child,
        log,
        health: plan.health,
    })
}

async fn is_ready(health: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(health).await?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        io::Result::Ok(status.ends_with(b" 200"))
    };
    matches!(timeout(Duration::from_secs(1), ask).await, Ok(Ok(true)))
}
