//! Postern as its users start it: in one process, or in four.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use postern::demo::idp::{CLIENT_ID, CLIENT_SECRET};

use crate::binaries::binary;
use crate::person::Person;
use crate::ports;
use crate::process::Process;
use crate::site::Site;
use crate::wait;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    AllInOne,
    Split,
}

/// From the proxy's port to the first health listener.
const HEALTH: u16 = 4;

const SERVICES: [&str; 4] = ["databroker", "authorize", "authenticate", "proxy"];

/// Of every cluster: any 32 bytes will do, as long as all services have the same.
pub const SHARED_SECRET: &str = "dGVzdHMgc2hhcmUgdGhpcyBzZWNyZXQsIDMyIGJ5dGU=";

pub struct Cluster {
    /// In one process one; in four: databroker, authorize, authenticate, proxy. Dropped before the
    /// directory that their output is in.
    pub processes: Vec<Process>,
    pub site: Site,
    /// Of the proxy: `https://NAME.corp.test:PORT`.
    pub port: u16,
    programs: Vec<Program>,
}

/// What it takes to start one of the processes, again and again.
struct Program {
    name: String,
    environment: Vec<(&'static str, String)>,
}

/// What a test adds to the configuration that every cluster has.
pub struct Plan {
    pub layout: Layout,
    /// The issuer of the OpenID provider.
    pub provider: String,
    /// YAML, keys and values at the top level, `routes` among them. `{PORT}` stands for the
    /// proxy's port.
    pub config: String,
}

impl Cluster {
    /// Starts everything and waits until it is ready.
    pub async fn start(plan: Plan) -> Self {
        Self::start_on(Site::new(), plan).await
    }

    /// The same with certificates that are there already.
    pub async fn start_on(site: Site, plan: Plan) -> Self {
        let mut cluster = Self::launch(site, &plan);
        cluster.ready().await;
        cluster
    }

    /// Starts everything.
    pub fn launch(site: Site, plan: &Plan) -> Self {
        let port = ports::row(8);
        let path = site.path("config.yaml");
        std::fs::write(&path, configuration(&site, plan, port))
            .expect("the configuration is written");
        let mut programs: Vec<_> = match plan.layout {
            Layout::AllInOne => vec![Program {
                name: "postern".to_owned(),
                environment: vec![
                    ("ADDRESS", loopback(port)),
                    ("GRPC_ADDRESS", loopback(port + 1)),
                ],
            }],
            Layout::Split => SERVICES
                .iter()
                .zip(1..)
                .map(|(service, offset)| {
                    let variable = match *service {
                        "authorize" | "databroker" => "GRPC_ADDRESS",
                        _ => "ADDRESS",
                    };
                    let own = if *service == "proxy" {
                        port
                    } else {
                        port + offset
                    };
                    Program {
                        name: format!("postern-{service}"),
                        environment: vec![
                            ("SERVICES", (*service).to_owned()),
                            (variable, loopback(own)),
                        ],
                    }
                })
                .collect(),
        };
        for (program, offset) in programs.iter_mut().zip(HEALTH..) {
            let address = loopback(port + offset);
            program.environment.push(("HEALTH_CHECK_ADDR", address));
        }
        let processes = programs
            .iter()
            .map(|program| program.start(&site))
            .collect();
        Self {
            processes,
            site,
            port,
            programs,
        }
    }

    /// Where the process of `service` stands in [`Self::processes`].
    fn index(&self, service: &str) -> usize {
        let name = format!("postern-{service}");
        let found = self.processes.iter().position(|it| it.name == name);
        // In one process all services are in the first.
        found.unwrap_or(0)
    }

    /// The process that runs `service`.
    pub fn process(&mut self, service: &str) -> &mut Process {
        let index = self.index(service);
        &mut self.processes[index]
    }

    /// Of the process that runs `service`, as the kernel numbers it.
    pub fn process_id(&self, service: &str) -> u32 {
        self.processes[self.index(service)].id()
    }

    /// A page of the health listener of the process that runs `service`.
    pub fn health(&self, service: &str, path: &str) -> String {
        let index = u16::try_from(self.index(service)).expect("a few processes");
        format!("http://127.0.0.1:{}{path}", self.port + HEALTH + index)
    }

    /// Where the process of `service` answers calls, in four processes.
    pub fn grpc_port(&self, service: &str) -> u16 {
        let offset = u16::try_from(self.index(service)).expect("a few processes");
        self.port + 1 + offset
    }

    pub fn config_file(&self) -> PathBuf {
        self.site.path("config.yaml")
    }

    /// Ends the process of `service` as a crash does.
    pub async fn kill(&mut self, service: &str) {
        let process = self.process(service);
        process.signal("KILL");
        process.ended().await;
    }

    /// Starts the process of `service` anew, after its end.
    pub fn start_again(&mut self, service: &str) {
        let index = self.index(service);
        self.processes[index] = self.programs[index].start(&self.site);
    }

    /// Ends every process at once and starts all of them.
    pub async fn restart_everything(&mut self) {
        for process in &mut self.processes {
            process.signal("KILL");
        }
        for process in &mut self.processes {
            process.ended().await;
        }
        self.processes = self
            .programs
            .iter()
            .map(|program| program.start(&self.site))
            .collect();
        self.ready().await;
    }

    /// Waits until every process is ready.
    pub async fn ready(&mut self) {
        let nobody = Person::program(&self.site.certificates.authority);
        for (process, offset) in self.processes.iter_mut().zip(HEALTH..) {
            let url = format!("http://127.0.0.1:{}/readyz", self.port + offset);
            let what = format!("{} to be ready", process.name);
            wait::until(&what, Duration::from_secs(30), async || {
                assert!(process.has_ended().is_none(), "{} ended", process.name);
                match nobody.try_get(&url).await {
                    Ok(answer) if answer.status.is_success() => Ok(()),
                    Ok(answer) => Err(answer.text()),
                    Err(error) => Err(error),
                }
            })
            .await;
        }
    }

    /// `https://NAME.corp.test:PORT` and a path.
    pub fn url(&self, name: &str, path: &str) -> String {
        format!("https://{name}.corp.test:{}{path}", self.port)
    }

    pub fn browser(&self) -> Person {
        Person::browser(&self.site.certificates.authority)
    }

    pub fn program(&self) -> Person {
        Person::program(&self.site.certificates.authority)
    }
}

impl Program {
    fn start(&self, site: &Site) -> Process {
        let mut command = Command::new(binary(&self.name));
        command
            .arg("--config")
            .arg(site.path("config.yaml"))
            .envs(self.environment.iter().cloned());
        Process::start(&self.name, site.directory.path(), command)
    }
}

fn loopback(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn configuration(site: &Site, plan: &Plan, port: u16) -> String {
    let mut text = String::new();
    let files = &site.certificates;
    let mut line = |key: &str, value: &str| writeln!(text, "{key}: '{value}'").expect("text grows");
    line(
        "authenticate_service_url",
        &format!("https://auth.corp.test:{port}"),
    );
    line("idp_provider", "oidc");
    line("idp_provider_url", &plan.provider);
    line("idp_client_id", CLIENT_ID);
    line("idp_client_secret", CLIENT_SECRET);
    line("certificate_file", &files.certificate.display().to_string());
    line("certificate_key_file", &files.key.display().to_string());
    line(
        "certificate_authority_file",
        &files.authority.display().to_string(),
    );
    line("shared_secret", SHARED_SECRET);
    line(
        "cookie_secret",
        "dGVzdHMgc2VhbCBjb29raWVzIHdpdGggdGhpcyBvbmU=",
    );
    if plan.layout == Layout::Split {
        line(
            "authorize_service_url",
            &format!("http://127.0.0.1:{}", port + 2),
        );
        line(
            "databroker_service_url",
            &format!("http://127.0.0.1:{}", port + 1),
        );
        line(
            "authenticate_internal_service_url",
            &format!("https://localhost:{}", port + 3),
        );
        line("grpc_insecure", "true");
    }
    text.push_str(&plan.config.replace("{PORT}", &port.to_string()));
    text
}
