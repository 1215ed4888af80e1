//! What listens, in which way, for whom.

use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postern_tests::left_out;
use postern_tests::person::Person;
use postern_tests::ports;
use postern_tests::program::Program;
use postern_tests::site::Site;
use postern_tests::wait;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const SECRETS: &str = "
authenticate_service_url: https://auth.corp.test
shared_secret: dGVzdHMgc2hhcmUgdGhpcyBzZWNyZXQsIDMyIGJ5dGU=
";

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate and its key, PEM.
fn issue(authority: &Authority, name: &str) -> (String, String) {
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// What a scraper reads, and the certificate that it was shown.
async fn scrape(
    address: SocketAddr,
    trusted: &Path,
    client: Option<&(String, String)>,
) -> Result<(String, CertificateDer<'static>), String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(trusted).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes());
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder
                .with_client_auth_cert(chain.map(Result::unwrap).collect(), key)
                .unwrap()
        }
    };
    let scraped = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await?;
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>((answer, shown.into_owned()))
    };
    let scraped = tokio::time::timeout(Duration::from_secs(20), scraped).await;
    scraped.unwrap().map_err(|error| error.to_string())
}

/// TLS on /metrics: who reads it needs a certificate of the right authority, and renewed files
/// count from the next handshake on.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_scraped_over_tls() {
    let site = Site::new();
    let (ours, strangers) = (authority(), authority());
    let address: SocketAddr = format!("127.0.0.1:{}", ports::row(1)).parse().unwrap();
    let grpc = format!("127.0.0.1:{}", ports::row(1));
    let file = |name: &str, text: &str| std::fs::write(site.path(name), text).unwrap();
    let (certificate, key) = issue(&ours, "localhost");
    file("authority.pem", &ours.pem());
    file("metrics.pem", &certificate);
    file("metrics-key.pem", &key);
    let config = format!(
        "{SECRETS}grpc_insecure: true\nmetrics_address: {address}\n\
         metrics_certificate_file: {{SITE}}/metrics.pem\n\
         metrics_certificate_key_file: {{SITE}}/metrics-key.pem\n\
         metrics_client_ca_file: {{SITE}}/authority.pem\n"
    );
    let environment = [("GRPC_ADDRESS", grpc.as_str())];
    let mut databroker = Program::start(&site, "postern-databroker", &config, &environment);
    databroker
        .until_ready_says("200", |answer| answer.status == 200)
        .await;

    let trusted = site.path("authority.pem");
    let scraper = issue(&ours, "scraper");
    let (page, first) = scrape(address, &trusted, Some(&scraper)).await.unwrap();
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(page.contains("pomerium_build_info{"), "{page}");
    let stranger = issue(&strangers, "scraper");
    for client in [None, Some(&stranger)] {
        let refused = scrape(address, &trusted, client).await;
        assert!(refused.is_err(), "{refused:?}");
    }
    let mut clear = TcpStream::connect(address).await.unwrap();
    clear
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    clear.read_to_end(&mut answer).await.unwrap();
    assert!(!answer.starts_with(b"HTTP"), "clear text is not answered");

    // Renewed, and another authority for clients, without a restart.
    let (certificate, key) = issue(&ours, "localhost");
    file("metrics-key.pem", &key);
    file("metrics.pem", &certificate);
    let renewed = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    assert_ne!(first, renewed);
    wait::until(
        "the renewed certificate",
        Duration::from_secs(10),
        async || match scrape(address, &trusted, Some(&scraper)).await {
            Ok((_, shown)) if shown == renewed => Ok(()),
            other => Err(other.map(|(page, _)| page)),
        },
    )
    .await;
    let both = site.path("both.pem");
    std::fs::write(&both, format!("{}{}", ours.pem(), strangers.pem())).unwrap();
    std::fs::rename(&both, &trusted).unwrap();
    wait::until("the new authority", Duration::from_secs(10), async || {
        scrape(address, &trusted, Some(&stranger)).await.map(drop)
    })
    .await;
}

/// `tls_derive`: services that share a secret trust each other without certificates.
#[tokio::test(flavor = "multi_thread")]
async fn derived_certificates_join_services_that_share_the_secret() {
    let grpc = format!("127.0.0.1:{}", ports::row(1));
    let common = format!(
        "{SECRETS}tls_derive: databroker.int.corp.test\n\
         override_certificate_name: databroker.int.corp.test\n\
         databroker_service_url: https://{grpc}\n"
    );
    let site = Site::new();
    let environment = [("GRPC_ADDRESS", grpc.as_str())];
    let mut databroker = Program::start(&site, "postern-databroker", &common, &environment);
    databroker
        .until_ready_says("200", |answer| answer.status == 200)
        .await;

    let own = format!("127.0.0.1:{}", ports::row(1));
    let environment = [("GRPC_ADDRESS", own.as_str())];
    let other_site = Site::new();
    let mut authorize = Program::start(&other_site, "postern-authorize", &common, &environment);
    authorize
        .until_ready_says("200", |answer| answer.status == 200)
        .await;
    drop(authorize);

    // Without the key the certificate is one of a stranger.
    let distrustful = common.replacen("tls_derive", "# tls_derive", 1);
    let site = Site::new();
    let mut authorize = Program::start(&site, "postern-authorize", &distrustful, &environment);
    let told = authorize
        .until_ready_says("503 because of the certificate", |answer| {
            answer.status == 503 && answer.text().contains("unknown issuer")
        })
        .await;
    assert!(told.text().contains("databroker"), "{}", told.text());
}

const WEB: &str = "
authenticate_service_url: https://auth.corp.test
idp_provider: oidc
idp_provider_url: http://localhost:1
idp_client_id: postern
idp_client_secret: for-tests-only
shared_secret: dGVzdHMgc2hhcmUgdGhpcyBzZWNyZXQsIDMyIGJ5dGU=
cookie_secret: dGVzdHMgc2VhbCBjb29raWVzIHdpdGggdGhpcyBvbmU=
certificate_file: {SITE}/certificate.pem
certificate_key_file: {SITE}/certificate-key.pem
routes:
- {from: 'https://app.corp.test', response: {status: 200, body: hello}, allow_public_unauthenticated_access: true}
";

/// A user without a name and without rights, as in our images.
const NOBODY: [&str; 4] = [
    "setpriv",
    "--reuid=65532",
    "--regid=65532",
    "--clear-groups",
];

/// Whether `test` can run programs as another user here.
fn can_be_another(test: &str) -> bool {
    let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    if !root {
        left_out::note(test, "only root can run a program as another user");
    }
    root
}

/// A site that everybody may look into.
fn open_site() -> Site {
    let site = Site::new();
    let all = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(site.directory.path(), all).unwrap();
    site
}

fn errors(said: &str) -> Vec<&str> {
    let lines = said.lines();
    lines
        .filter(|line| line.contains("\"level\":\"error\""))
        .collect()
}

/// Where authenticate has a process, and perhaps a host, of its own.
#[tokio::test(flavor = "multi_thread")]
async fn authenticate_alone_sends_clear_text_to_https() {
    let site = Site::new();
    let address = || format!("127.0.0.1:{}", ports::row(1));
    let (public, clear) = (address(), address());
    let config = format!("{WEB}databroker_service_url: http://127.0.0.1:1\n");
    let environment = [
        ("ADDRESS", public.as_str()),
        ("HTTP_REDIRECT_ADDR", clear.as_str()),
    ];
    let mut program = Program::start(&site, "postern-authenticate", &config, &environment);
    program
        .until_ready_says("200", |answer| answer.status == 200)
        .await;
    let ask = async |path: &str| {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: auth.corp.test\r\nConnection: close\r\n\r\n");
        let mut stream = TcpStream::connect(&clear).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let sent = ask("/.pomerium/?x=1").await;
    assert!(sent.starts_with("HTTP/1.1 301"), "{sent}");
    let location = "location: https://auth.corp.test/.pomerium/?x=1\r\n";
    assert!(sent.contains(location), "{sent}");
    let healthy = ask("/healthz").await;
    assert!(healthy.starts_with("HTTP/1.1 200"), "{healthy}");
}

#[tokio::test(flavor = "multi_thread")]
async fn c55_a_low_port_without_the_right_is_told_in_one_line() {
    let test = "c55_a_low_port_without_the_right_is_told_in_one_line";
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if first.is_ok_and(|first| first.trim() == "0") {
        return left_out::note(test, "every user may listen on every port here");
    }
    if !can_be_another(test) {
        return;
    }
    for (key, variable) in [
        ("address", "ADDRESS"),
        ("grpc_address", "GRPC_ADDRESS"),
        ("http_redirect_addr", "HTTP_REDIRECT_ADDR"),
        ("metrics_address", "METRICS_ADDRESS"),
    ] {
        let site = open_site();
        let key_file = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(&site.certificates.key, key_file).unwrap();
        let free = format!("127.0.0.1:{}", ports::row(1));
        let environment = [("ADDRESS", free.as_str()), (variable, "127.0.0.1:443")];
        let program = Program::start_under(&NOBODY, &site, "postern", WEB, &environment);
        let (said, code) = program.refused().await;
        assert_eq!(code, Some(1), "{key}: {said}");
        let errors = errors(&said);
        assert_eq!(errors.len(), 1, "{said}");
        for part in [
            key,
            "port 443",
            "CAP_NET_BIND_SERVICE",
            "or set",
            "above 1023",
        ] {
            assert!(errors[0].contains(part), "{key}: {part}: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_not_be_read_is_told_with_owner_and_remedy() {
    if !can_be_another("a_key_that_may_not_be_read_is_told_with_owner_and_remedy") {
        return;
    }
    let site = open_site();
    let key = site.certificates.key.clone();
    let address = format!("127.0.0.1:{}", ports::row(1));
    let environment = [("ADDRESS", address.as_str())];
    let program = Program::start_under(&NOBODY, &site, "postern", WEB, &environment);
    let (said, code) = program.refused().await;
    assert_eq!(code, Some(1), "{said}");
    let file = key.display().to_string();
    for part in [
        "unreadable-file",
        "permission denied",
        &file,
        "belongs to user 0 with mode 0600",
        "this process is user 65532",
        &format!("chmod 644 {file}"),
        "certificate_key_file",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // What it says to do helps.
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut program = Program::start_under(&NOBODY, &site, "postern", WEB, &environment);
    program
        .until_ready_says("200", |answer| answer.status == 200)
        .await;
}

fn descriptors(program: &Program) -> Vec<String> {
    let file = format!("/proc/{}/limits", program.process.id());
    let limits = std::fs::read_to_string(file).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words = line.unwrap().split_whitespace().skip(3).take(2);
    words.map(str::to_owned).collect()
}

/// Connections leave room for what else needs a file descriptor, so health still answers.
#[tokio::test(flavor = "multi_thread")]
async fn connections_stay_below_the_limit_of_file_descriptors() {
    let site = Site::new();
    let port = ports::row(1);
    let address = format!("127.0.0.1:{port}");
    let environment = [("ADDRESS", address.as_str())];
    let mut program = Program::start_under(
        &["prlimit", "--nofile=100:300"],
        &site,
        "postern",
        WEB,
        &environment,
    );
    program
        .until_ready_says("200", |answer| answer.status == 200)
        .await;
    assert_eq!(
        descriptors(&program),
        ["300", "300"],
        "taken up to the hard limit"
    );

    let mut held = Vec::new();
    for _ in 0..400 {
        held.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    }
    assert_eq!(program.health("/readyz").await.unwrap().status, 200);
    // 300 / 2.2 of them are kept, the others closed at once.
    wait::until(
        "the rest to be closed",
        Duration::from_secs(10),
        async || {
            let open = held.iter().filter(|stream| is_open(stream)).count();
            if open == 136 { Ok(()) } else { Err(open) }
        },
    )
    .await;
    assert!(
        !program
            .process
            .output()
            .contains("no file descriptor is left")
    );
    drop(held);
    let nobody = Person::program(&site.certificates.authority);
    let url = format!("https://app.corp.test:{port}/");
    wait::until(
        "service as before",
        Duration::from_secs(10),
        async || match nobody.try_get(&url).await {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await;
}

fn is_open(stream: &TcpStream) -> bool {
    match stream.try_read(&mut [0]) {
        Ok(_) => false,
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    }
}
