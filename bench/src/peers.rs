//! The upstream and the peers, from the configurations in `peers/`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use postern_tests::binaries::repository;
use postern_tests::ports;
use postern_tests::process::Process;
use postern_tests::site::Site;
use postern_tests::wait;

/// Where each of them listens, on loopback.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// The upstream, for those who authorize nobody.
    pub plain: u16,
    /// The upstream that wants an assertion.
    pub asserted: u16,
    pub echo: u16,
    pub nginx: u16,
    pub nginx_auth: u16,
    pub haproxy: u16,
    pub envoy: u16,
    pub envoy_yes: u16,
    pub envoy_postern: u16,
    pub always_yes: u16,
}

impl Ports {
    pub fn free(echo: u16) -> Self {
        let first = ports::row(9);
        Self {
            plain: first,
            asserted: first + 1,
            echo,
            nginx: first + 2,
            nginx_auth: first + 3,
            haproxy: first + 4,
            envoy: first + 5,
            envoy_yes: first + 6,
            envoy_postern: first + 7,
            always_yes: first + 8,
        }
    }
}

pub struct Peers {
    pub _upstream: Process,
    pub nginx: Process,
    pub haproxy: Process,
    pub envoy: Process,
    pub always_yes: Process,
}

impl Drop for Peers {
    /// The workers of nginx outlive a master that is killed.
    fn drop(&mut self) {
        if self.nginx.has_ended().is_none() {
            self.nginx.signal("TERM");
        }
        let patience = Instant::now() + Duration::from_secs(5);
        while self.nginx.has_ended().is_none() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Starts the upstream, which everybody needs to be there.
pub async fn start_upstream(site: &Site, ports: Ports) -> Process {
    let gibibyte = std::fs::File::create(site.path("1gib")).expect("a file can be made");
    gibibyte.set_len(1 << 30).expect("a sparse file");
    let file = configuration(site, "upstream.conf", ports, 0);
    let upstream = Process::start("upstream", site.directory.path(), nginx(&file));
    listening(ports.plain).await;
    upstream
}

/// Starts those that Postern is compared with. `authorize`: Postern's own, for Envoy.
pub async fn start(site: &Site, ports: Ports, authorize: u16, upstream: Process) -> Peers {
    let directory = site.directory.path();
    let certificate = std::fs::read_to_string(&site.certificates.certificate).expect("a file");
    let key = std::fs::read_to_string(&site.certificates.key).expect("a file");
    std::fs::write(site.path("bundle.pem"), certificate + &key).expect("the bundle is written");
    let file = |name| configuration(site, name, ports, authorize);

    let mut haproxy = Command::new("haproxy");
    haproxy.arg("-db").arg("-f").arg(file("haproxy.cfg"));
    let mut envoy = Command::new(envoy_binary());
    envoy.arg("-c").arg(file("envoy.yaml"));
    envoy.args(["--concurrency", &cores().to_string()]);
    envoy.args(["--log-level", "error", "--disable-hot-restart"]);
    let mut always_yes = Command::new(std::env::current_exe().expect("a program has a path"));
    always_yes.args(["always-yes", &ports.always_yes.to_string()]);

    let peers = Peers {
        _upstream: upstream,
        nginx: Process::start("nginx", directory, nginx(&file("nginx.conf"))),
        haproxy: Process::start("haproxy", directory, haproxy),
        always_yes: Process::start("always-yes", directory, always_yes),
        envoy: Process::start("envoy", directory, envoy),
    };
    for port in [
        ports.nginx,
        ports.nginx_auth,
        ports.haproxy,
        ports.always_yes,
        ports.envoy,
        ports.envoy_yes,
        ports.envoy_postern,
    ] {
        listening(port).await;
    }
    peers
}

fn nginx(file: &Path) -> Command {
    let mut command = Command::new("nginx");
    command.arg("-c").arg(file).args(["-e", "stderr"]);
    command
}

fn envoy_binary() -> PathBuf {
    let lib = repository().join(".tools/bench/lib");
    let pythons = std::fs::read_dir(&lib).into_iter().flatten().flatten();
    pythons
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|it| it.exists())
        .expect("Envoy is installed; run bench/prepare.sh first, as `just bench` does")
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Fills in a template of `peers/`.
fn configuration(site: &Site, name: &str, ports: Ports, authorize: u16) -> PathBuf {
    let template = repository().join("bench/peers").join(name);
    let mut text = std::fs::read_to_string(&template)
        .unwrap_or_else(|error| panic!("{}: {error}", template.display()));
    let show = |path: &Path| path.display().to_string();
    let values = [
        ("DIR", show(site.directory.path())),
        ("CERTIFICATE", show(&site.certificates.certificate)),
        ("KEY", show(&site.certificates.key)),
        ("BUNDLE", show(&site.path("bundle.pem"))),
        ("CORES", cores().to_string()),
        ("KIBIBYTE", "x".repeat(1024)),
        ("PLAIN", ports.plain.to_string()),
        ("UPSTREAM", ports.plain.to_string()),
        ("ASSERTED", ports.asserted.to_string()),
        ("ECHO", ports.echo.to_string()),
        ("NGINX", ports.nginx.to_string()),
        ("NGINX_AUTH", ports.nginx_auth.to_string()),
        ("HAPROXY", ports.haproxy.to_string()),
        ("ENVOY", ports.envoy.to_string()),
        ("ENVOY_YES", ports.envoy_yes.to_string()),
        ("ENVOY_POSTERN", ports.envoy_postern.to_string()),
        ("YES", ports.always_yes.to_string()),
        ("AUTHORIZE", authorize.to_string()),
    ];
    for (key, value) in values {
        text = text.replace(&format!("{{{key}}}"), &value);
    }
    let path = site.path(name);
    std::fs::write(&path, text).expect("a configuration is written");
    path
}

async fn listening(port: u16) {
    let what = format!("a listener on port {port}");
    wait::until(&what, Duration::from_secs(30), async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await
    })
    .await;
}
