//! Postern as its users start it: in one process, in four, or in two of each.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use postern::demo::idp::{CLIENT_ID, CLIENT_SECRET};
use postern_test_dns::{Answer, TestDns};

use crate::binaries::binary;
use crate::person::Person;
use crate::ports;
use crate::process::Process;
use crate::relay::{Relay, Target};
use crate::site::Site;
use crate::wait;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    AllInOne,
    /// One process a service, all on one address.
    Split,
    /// Two processes a service, each on an address of its own, found by name; a balancer in front
    /// of the proxies. Needs Postgres.
    Fleet,
}

/// From the proxy's port to the health listeners, in one process and in four the first of them.
const HEALTH: u16 = 4;

/// From the proxy's port to the metrics of a process of a fleet.
const METRICS: u16 = 5;

/// Of each service in a fleet.
const REPLICAS: u8 = 2;

const SERVICES: [&str; 4] = ["databroker", "authorize", "authenticate", "proxy"];

/// Of every cluster: any 32 bytes will do, as long as all services have the same.
pub const SHARED_SECRET: &str = "dGVzdHMgc2hhcmUgdGhpcyBzZWNyZXQsIDMyIGJ5dGU=";

pub struct Cluster {
    /// In one process one; in four: databroker, authorize, authenticate, proxy; in a fleet as many
    /// of each as there are. Dropped before the directory that their output is in.
    pub processes: Vec<Process>,
    pub site: Site,
    /// Of the proxy, or of the balancer in front of all: `https://NAME.corp.test:PORT`.
    pub port: u16,
    programs: Vec<Program>,
    fleet: Option<Fleet>,
}

/// What a fleet has beside its processes.
struct Fleet {
    dns: TestDns,
    balancer: Relay,
}

/// What it takes to start one of the processes, again and again.
struct Program {
    /// `postern-SERVICE`, in a fleet `postern-SERVICE-NUMBER`.
    name: String,
    binary: String,
    /// Where it serves what it is for.
    serves: SocketAddr,
    health: SocketAddr,
    environment: Vec<(&'static str, String)>,
    /// Opened before it starts, and handed over.
    socket: Option<OwnedFd>,
    /// As many file descriptors as it may have; `None`: as the tests may.
    descriptors: Option<u32>,
}

/// Becomes the program with a limit on file descriptors.
const LIMITED: &str = "ulimit -n \"$0\"; exec \"$@\"";

/// Opens file descriptor 3 as systemd hands it over, and becomes the program.
const HAND_OVER: &str =
    "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$0\" \"$@\"";

/// What a test adds to the configuration that every cluster has.
pub struct Plan {
    pub layout: Layout,
    /// The issuer of the OpenID provider.
    pub provider: String,
    /// YAML, keys and values at the top level, `routes` among them. `{PORT}` stands for the
    /// proxy's port.
    pub config: String,
    /// Of a fleet: names on this machine that its name server knows from the start.
    pub names: Vec<String>,
}

impl Cluster {
    /// Starts everything and waits until it is ready.
    pub async fn start(plan: Plan) -> Self {
        Self::start_on(Site::new(), plan).await
    }

    /// The same with certificates that are there already.
    pub async fn start_on(site: Site, plan: Plan) -> Self {
        let port = ports::row(8);
        let mut config = configuration(&site, &plan, port);
        let programs = match plan.layout {
            Layout::AllInOne => vec![Program::all_in_one(port)],
            Layout::Split => (0_u8..4)
                .map(|service| Program::split(service, port))
                .collect(),
            Layout::Fleet => (0_u8..4)
                .flat_map(|service| (1..=REPLICAS).map(move |number| (service, number)))
                .map(|(service, number)| Program::fleet(service, number, port))
                .collect(),
        };
        let fleet = match plan.layout {
            Layout::Fleet => {
                let fleet = Fleet::start(&programs, port, &plan.names).await;
                let resolver = fleet.dns.address;
                writeln!(config, "dns_resolvers: ['udp://{resolver}']").expect("text grows");
                Some(fleet)
            }
            _ => None,
        };
        std::fs::write(site.path("config.yaml"), config).expect("the configuration is written");
        let processes = programs
            .iter()
            .map(|program| program.start(&site))
            .collect();
        let mut cluster = Self {
            processes,
            site,
            port,
            programs,
            fleet,
        };
        cluster.ready().await;
        cluster
    }

    /// Where the process of `service` stands in [`Self::processes`]: `authorize`, or in a fleet
    /// `authorize-2`.
    fn index(&self, service: &str) -> usize {
        let name = format!("postern-{service}");
        let found = self.processes.iter().position(|it| it.name == name);
        // In one process all services are in the first.
        found.unwrap_or_else(|| {
            assert!(self.fleet.is_none(), "no {name} in this fleet");
            0
        })
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
        let health = self.programs[self.index(service)].health;
        format!("http://{health}{path}")
    }

    /// Where the process of `service` answers calls, or browsers.
    pub fn serves(&self, service: &str) -> SocketAddr {
        self.programs[self.index(service)].serves
    }

    /// Of a fleet: its name server, which says where `SERVICE.corp.test` is.
    pub fn dns(&self) -> &TestDns {
        &self.fleet.as_ref().expect("a fleet").dns
    }

    /// All metrics of a process of a fleet, as they are now; none while it is away.
    pub async fn metrics(&self, service: &str) -> String {
        let mut address = self.programs[self.index(service)].health;
        address.set_port(self.port + METRICS);
        let url = format!("http://{address}/metrics");
        let answer = self.program().try_get(&url).await;
        answer.map(|answer| answer.text()).unwrap_or_default()
    }

    /// Of a fleet: starts one more of `service`, which no name leads to yet.
    pub fn add(&mut self, service: &str, number: u8) {
        let service = SERVICES.iter().zip(0..).find(|(name, _)| **name == service);
        let (_, service) = service.expect("one of the services");
        let program = Program::fleet(service, number, self.port);
        self.processes.push(program.start(&self.site));
        self.programs.push(program);
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

    /// From its next start on, the process of `service` is handed this socket, as systemd does it.
    pub fn hand_over(&mut self, service: &str, socket: impl Into<OwnedFd>) {
        let index = self.index(service);
        self.programs[index].socket = Some(socket.into());
    }

    /// From its next start on, the process of `service` has this in its environment.
    pub fn tell(&mut self, service: &str, variable: &'static str, value: &str) {
        let index = self.index(service);
        let environment = &mut self.programs[index].environment;
        environment.push((variable, value.to_owned()));
    }

    /// From its next start on, the process of `service` may have so many file descriptors.
    pub fn limit(&mut self, service: &str, descriptors: u32) {
        let index = self.index(service);
        self.programs[index].descriptors = Some(descriptors);
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

    /// Waits until every process is ready, and the balancer knows it.
    pub async fn ready(&mut self) {
        let nobody = Person::program(&self.site.certificates.authority);
        for (process, program) in self.processes.iter_mut().zip(&self.programs) {
            let url = format!("http://{}/readyz", program.health);
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
        // A proxy is ready whoever else is; what is asked before it has found authorize is 503.
        for program in &self.programs {
            let url = format!("http://{}/status", program.health);
            let what = format!("{} to have found authorize", program.name);
            wait::until(&what, Duration::from_secs(30), async || {
                let status = nobody.try_get(&url).await?.json();
                match &status["statuses"]["rpc.pomerium-authorize"]["error"] {
                    serde_json::Value::Null => Ok(()),
                    error => Err(error.to_string()),
                }
            })
            .await;
        }
        if let Some(fleet) = &self.fleet {
            wait::until("the balancer", Duration::from_secs(30), async || {
                fleet
                    .balancer
                    .is_complete()
                    .then_some(())
                    .ok_or("incomplete")
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
    fn all_in_one(port: u16) -> Self {
        let own = [("GRPC_ADDRESS", loopback(port + 1).to_string())];
        Self::new(
            "postern",
            loopback(port),
            "ADDRESS",
            loopback(port + HEALTH),
        )
        .with(own)
    }

    fn split(service: u8, port: u16) -> Self {
        let health = loopback(port + HEALTH + u16::from(service));
        Self::of_service(service, loopback(port), health)
    }

    /// On an address that no other cluster and no other process has.
    fn fleet(service: u8, number: u8, port: u16) -> Self {
        let [high, low] = port.to_be_bytes();
        let ip = Ipv4Addr::new(127, high, low, 10 * (service + 1) + number);
        let at = |port| SocketAddr::new(IpAddr::V4(ip), port);
        let mut program = Self::of_service(service, at(port), at(port + HEALTH))
            .with([("METRICS_ADDRESS", at(port + METRICS).to_string())]);
        program.name = format!("{}-{number}", program.name);
        program
    }

    /// `base`: where the proxy would serve on this address.
    fn of_service(service: u8, base: SocketAddr, health: SocketAddr) -> Self {
        let name = SERVICES[usize::from(service)];
        let (variable, offset) = match name {
            "authorize" | "databroker" => ("GRPC_ADDRESS", 1 + u16::from(service)),
            "authenticate" => ("ADDRESS", 1 + u16::from(service)),
            _ => ("ADDRESS", 0),
        };
        let serves = SocketAddr::new(base.ip(), base.port() + offset);
        Self::new(&format!("postern-{name}"), serves, variable, health)
            .with([("SERVICES", name.to_owned())])
    }

    fn new(binary: &str, serves: SocketAddr, variable: &'static str, health: SocketAddr) -> Self {
        Self {
            name: binary.to_owned(),
            binary: binary.to_owned(),
            serves,
            health,
            environment: vec![
                (variable, serves.to_string()),
                ("HEALTH_CHECK_ADDR", health.to_string()),
            ],
            socket: None,
            descriptors: None,
        }
    }

    fn with(mut self, more: [(&'static str, String); 1]) -> Self {
        self.environment.extend(more);
        self
    }

    fn start(&self, site: &Site) -> Process {
        let binary = binary(&self.binary);
        let (mut command, stdin) = match (&self.socket, self.descriptors) {
            (None, None) => (Command::new(binary), Stdio::null()),
            (None, Some(descriptors)) => {
                let mut command = Command::new("sh");
                let limit = descriptors.to_string();
                command.arg("-c").arg(LIMITED).arg(limit).arg(binary);
                (command, Stdio::null())
            }
            (Some(socket), _) => {
                let socket = socket.try_clone().expect("a socket can be shared");
                let mut command = Command::new("sh");
                command.arg("-c").arg(HAND_OVER).arg(binary);
                (command, Stdio::from(socket))
            }
        };
        command
            .arg("--config")
            .arg(site.path("config.yaml"))
            .envs(self.environment.iter().cloned());
        Process::start_with(&self.name, site.directory.path(), command, stdin)
    }
}

impl Fleet {
    async fn start(programs: &[Program], port: u16, names: &[String]) -> Self {
        let dns = TestDns::start().await;
        for name in names {
            dns.set_addresses(name, &["127.0.0.1"]);
        }
        let of = |service: &str| {
            let binary = format!("postern-{service}");
            programs.iter().filter(move |it| it.binary == binary)
        };
        for service in SERVICES {
            let addresses = of(service).map(|program| program.serves.ip()).collect();
            dns.set(&name_of(service), Answer::Addresses(addresses, 2));
        }
        let targets = of("proxy").map(|it| Target::checked(it.serves, it.health));
        Self {
            dns,
            balancer: Relay::balance(loopback(port), targets.collect()).await,
        }
    }
}

/// What a fleet's name server calls a service.
pub fn name_of(service: &str) -> String {
    format!("{service}.corp.test")
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
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
    if plan.layout != Layout::AllInOne {
        let host = |service: &str| match plan.layout {
            Layout::Fleet => name_of(service),
            _ => "localhost".to_owned(),
        };
        let url =
            |scheme: &str, service: &str, port: u16| format!("{scheme}://{}:{port}", host(service));
        line("authorize_service_url", &url("http", "authorize", port + 2));
        line(
            "databroker_service_url",
            &url("http", "databroker", port + 1),
        );
        line(
            "authenticate_internal_service_url",
            &url("https", "authenticate", port + 3),
        );
        line("grpc_insecure", "true");
    }
    text.push_str(&plan.config.replace("{PORT}", &port.to_string()));
    text
}
