//! `postern doctor` before a running fleet: faults are put in one by one, and each is recognised as
//! itself, with nothing else beside it.

mod clinic;
mod fakes;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::Duration;

use base64::Engine as _;
use postern_test_dns::{Answer, ResponseCode};
use postern_tests::cluster::name_of;
use postern_tests::ports;
use postern_tests::program::Program;
use postern_tests::site::Site;
use postern_tests::world::{honest, provider_at};

use self::clinic::{Clinic, Said};
use self::fakes::{Authority, Peer};

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_fleet_is_found_healthy_and_each_fault_is_found_alone() {
    let mut clinic = Clinic::open().await;
    let healthy = clinic.say(&clinic.config);
    healthy.is(&[]);
    let checks: BTreeSet<_> = healthy
        .findings()
        .map(|it| it["check"].as_str().unwrap().to_owned())
        .collect();
    let all = [
        "authenticate",
        "authorize",
        "certificates",
        "configuration",
        "databroker",
        "host",
        "listeners",
        "provider",
        "routes",
        "storage",
        "upstreams",
    ];
    assert_eq!(checks, all.map(str::to_owned).into());

    names(&clinic);
    peers(&clinic).await;
    upstreams(&clinic).await;
    storage(&clinic);
    provider(&mut clinic).await;
    this_host(&clinic);
    outages(&mut clinic).await;

    all_in_one(&clinic);

    // Nothing was changed by all the looking.
    clinic.say(&clinic.config).is(&[]);
}

/// What one process would do itself is not looked for elsewhere, whatever the configuration names.
fn all_in_one(clinic: &Clinic) {
    let mut config = clinic.config.clone();
    for name in ["authorize", "authenticate", "databroker"].map(name_of) {
        assert!(config.contains(&name));
        config = config.replace(&name, "nowhere.corp.test");
    }
    let said = Said::of(&clinic.run(&[], &config, &[("SERVICES", "all")]));
    said.is(&[]);
    let unused: BTreeSet<_> = said
        .findings()
        .filter(|it| it["subject"] == "this process")
        .map(|it| it["check"].as_str().unwrap().to_owned())
        .collect();
    let seams = ["authenticate", "authorize", "databroker"];
    assert_eq!(unused, seams.map(str::to_owned).into());
}

fn names(clinic: &Clinic) {
    let dns = clinic.world.cluster.dns();
    let databrokers = ["databroker-1", "databroker-2"]
        .map(|it| clinic.world.cluster.serves(it).ip())
        .to_vec();
    let name = name_of("databroker");
    dns.set(&name, Answer::Fails(ResponseCode::NXDomain));
    let said = clinic.say(&clinic.config);
    said.is_about("error databroker name-unknown", &name);
    let place = said.findings().next().unwrap()["place"].as_str().unwrap();
    assert!(place.contains("doctor.yaml:"), "{place}");
    dns.set(&name, Answer::Addresses(databrokers, 2));

    dns.set("spare.corp.test", Answer::Fails(ResponseCode::NXDomain));
    let said = clinic.say(&clinic.config);
    said.is_about("warning routes name-unknown", "spare.corp.test");
    dns.set_addresses("spare.corp.test", &["127.0.0.1"]);

    dns.set("silent.corp.test", Answer::Silence);
    let said = clinic.spare("http://silent.corp.test");
    said.is_about("error upstreams name-server-silent", "silent.corp.test");
}

async fn peers(clinic: &Clinic) {
    clinic
        .with("http://authorize.", "https://authorize.")
        .is(&["error authorize clear-text"]);

    let port = clinic.port_of("authorize-1");
    let at = |last: u8| {
        let [high, low] = port.to_be_bytes();
        format!("127.{high}.{low}.{last}")
    };
    let stranger = Site::new();
    let other_secret = clinic
        .config
        .replace("dGVzdHMgc2hhcmUg", "AAAAAAAAAAAAAAAA");
    let address = format!("{}:{port}", at(201));
    let mut other = Program::start(
        &stranger,
        "postern-authorize",
        &other_secret,
        &[("GRPC_ADDRESS", &address)],
    );
    other
        .until_ready_says("503", |answer| answer.status == 503)
        .await;
    clinic
        .beside("authorize", &at(201))
        .is_about("error authorize secrets-differ", &address);

    let port = clinic.port_of("databroker-1");
    let address = format!("{}:{port}", at(202));
    let mut alone = Program::start(
        &stranger,
        "postern-databroker",
        &clinic.config,
        &[
            ("GRPC_ADDRESS", &address),
            ("DATABROKER_STORAGE_TYPE", "memory"),
        ],
    );
    alone
        .until_ready_says("200", |answer| answer.status == 200)
        .await;
    clinic
        .beside("databroker", &at(202))
        .is_about("error databroker split-brain", &address);

    let port = clinic.port_of("authorize-1");
    let behind = Peer {
        date: Some("Mon, 06 Nov 2023 08:49:37 GMT"),
        version: env!("CARGO_PKG_VERSION"),
    };
    behind.serve(&format!("{}:{port}", at(203))).await;
    clinic
        .beside("authorize", &at(203))
        .is_about("error authorize clocks-differ", &at(203));

    let newer = Peer {
        date: None,
        version: "0.1.999",
    };
    newer.serve(&format!("{}:{port}", at(204))).await;
    clinic
        .beside("authorize", &at(204))
        .is_about("warning authorize versions-differ", &at(204));

    let far = Peer {
        date: None,
        version: "7.0.0",
    };
    far.serve(&format!("{}:{port}", at(205))).await;
    clinic
        .beside("authorize", &at(205))
        .is_about("error authorize versions-differ", &at(205));

    fakes::talks(&format!("{}:{port}", at(206)), b"SSH-2.0-OpenSSH_9.9\r\n").await;
    clinic
        .beside("authorize", &at(206))
        .is_about("error authorize other-protocol", &at(206));

    let said = clinic.with(
        "authenticate_internal_service_url: 'https:",
        "authenticate_internal_service_url: 'http:",
    );
    said.is(&["error authenticate other-protocol"]);
    clinic
        .and("cookie_nam: x")
        .is(&["warning configuration unknown-key"]);
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let key = base64::engine::general_purpose::STANDARD.encode(key);
    clinic
        .and(&format!("signing_key: {key}"))
        .is(&["error routes signing-keys-differ"]);
}

async fn upstreams(clinic: &Clinic) {
    let spare = clinic.spare.url();
    let free = ports::row(1);
    clinic
        .spare(&format!("http://127.0.0.1:{free}"))
        .is(&["error upstreams connection-refused"]);
    clinic
        .spare(&spare.replace("http:", "https:"))
        .is(&["error upstreams clear-text"]);

    let authority = Authority::new();
    let file = clinic.world.cluster.site.path("spare-ca.pem");
    std::fs::write(&file, authority.pem()).unwrap();
    let known = format!(", tls_custom_ca_file: '{}'}}", file.display());
    let with = |url: &str, known: &str| {
        let line = clinic
            .config
            .lines()
            .find(|line| line.contains(&spare))
            .unwrap();
        let changed = line.replace(&spare, url);
        let changed = format!("{}{known}", changed.trim_end_matches('}'));
        clinic.with(line, &changed)
    };
    let good = authority.serve("backend.corp.test", fakes::Life::Now).await;
    clinic
        .spare(&format!("http://backend.corp.test:{good}"))
        .is(&["error upstreams tls-expected"]);
    let url = format!("https://backend.corp.test:{good}");
    with(&url, &known).is(&[]);
    with(&url, "}").is(&["error upstreams certificate-unknown-authority"]);
    let expired = authority
        .serve("backend.corp.test", fakes::Life::Over)
        .await;
    with(&format!("https://backend.corp.test:{expired}"), &known)
        .is(&["error upstreams certificate-expired"]);
    let early = authority
        .serve("backend.corp.test", fakes::Life::NotYet)
        .await;
    with(&format!("https://backend.corp.test:{early}"), &known)
        .is(&["error upstreams certificate-not-yet-valid"]);
    let other = authority.serve("other.test", fakes::Life::Now).await;
    with(&format!("https://backend.corp.test:{other}"), &known)
        .is(&["error upstreams certificate-wrong-name"]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    clinic
        .spare(&format!("http://{}", silent.local_addr().unwrap()))
        .is(&["error upstreams silent"]);
}

fn storage(clinic: &Clinic) {
    let postgres = &clinic.postgres;
    let uri = postgres.uri("postgres");
    clinic
        .with(&uri, &postgres.uri("nowhere"))
        .is(&["error storage storage-no-database"]);
    clinic
        .with(&uri, &uri.replace("postgres@", "nobody@"))
        .is(&["error storage storage-login"]);
    postgres
        .psql("postgres", "CREATE ROLE guest LOGIN")
        .unwrap();
    clinic
        .with(&uri, &uri.replace("postgres@", "guest@"))
        .is(&["error storage storage-no-rights"]);
    let free = ports::row(1).to_string();
    clinic
        .with(&uri, &uri.replace(&postgres.port().to_string(), &free))
        .is(&["error storage connection-refused"]);

    postgres.psql("postgres", "CREATE DATABASE newer").unwrap();
    postgres
        .psql(
            "newer",
            "CREATE SCHEMA postern;
             CREATE TABLE postern.migrations (version integer PRIMARY KEY, compatible_from integer NOT NULL);
             INSERT INTO postern.migrations VALUES (99, 99)",
        )
        .unwrap();
    clinic
        .with(&uri, &postgres.uri("newer"))
        .is(&["error storage storage-newer-schema"]);

    let standby = postgres.standby().unwrap();
    clinic
        .with(&uri, &standby.uri("postgres"))
        .is(&["error storage storage-read-only"]);
    let both = |first: u16| {
        let hosts = format!("127.0.0.1:{first},127.0.0.1:{}/", postgres.port());
        uri.replace(&format!("127.0.0.1:{}/", postgres.port()), &hosts)
    };
    clinic.with(&uri, &both(standby.port())).is(&[]);
    clinic
        .with(&uri, &both(free.parse().unwrap()))
        .is(&["warning storage connection-refused"]);

    // What the shared secret sealed stays readable.
    let keys = "databroker_storage_keys: dGVzdHMgc2VhbCBzdG9yYWdlIHdpdGggdGhpcyBvbmU=";
    clinic.and(keys).is(&[]);
}

async fn provider(clinic: &mut Clinic) {
    let issuer = clinic.world.issuer.clone();
    clinic
        .with(&format!("'{issuer}'"), &format!("'{issuer}/'"))
        .is(&["error provider provider-document"]);
    let line = clinic
        .config
        .lines()
        .find(|line| line.starts_with("idp_client_secret:"))
        .unwrap()
        .to_owned();
    clinic
        .with(&line, "idp_client_secret: something-else")
        .is(&["error provider provider-rejects-client"]);

    clinic.world.provider = None;
    clinic
        .say(&clinic.config)
        .is_about("error provider connection-refused", &issuer);
    clinic.world.provider = Some(provider_at(&issuer, honest(&issuer)).await);
}

fn this_host(clinic: &Clinic) {
    let site = &clinic.world.cluster.site;
    let certificate = site.certificates.certificate.display().to_string();
    let key = site.certificates.key.display().to_string();
    let authority = Authority::new();
    let own = |names: &[&str], life| {
        let (chain, private) = authority.issue(names, life);
        std::fs::write(site.path("own.pem"), chain).unwrap();
        std::fs::write(site.path("own-key.pem"), private).unwrap();
        let config = clinic
            .config
            .replace(&certificate, &site.path("own.pem").display().to_string());
        let config = config.replace(&key, &site.path("own-key.pem").display().to_string());
        clinic.say(&config)
    };
    own(&["*.corp.test"], fakes::Life::Over).is(&["error certificates certificate-expired"]);
    own(&["*.corp.test"], fakes::Life::NotYet)
        .is(&["error certificates certificate-not-yet-valid"]);
    own(&["*.corp.test"], fakes::Life::Nearly)
        .is(&["warning certificates certificate-expires-soon"]);
    let some = ["auth", "app", "eng", "open"].map(|it| format!("{it}.corp.test"));
    own(&some.each_ref().map(String::as_str), fakes::Life::Now)
        .is_about("error certificates certificate-missing", "spare.corp.test");
    let missing = clinic.config.replace(&key, "/nowhere/key.pem");
    clinic
        .say(&missing)
        .is(&["error configuration unreadable-file"]);

    let health = format!("127.0.0.1:{}", ports::row(1));
    let free = format!("127.0.0.1:{}", ports::row(1));
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let held = holder.local_addr().unwrap().to_string();
    let said = Said::of(&clinic.run(
        &[],
        &clinic.config,
        &[
            ("ADDRESS", &held),
            ("GRPC_ADDRESS", &free),
            ("HEALTH_CHECK_ADDR", &health),
        ],
    ));
    said.is_about("error listeners port-taken", &held);
    // TEST-NET-1 is on no machine.
    let said = Said::of(&clinic.run(&[], &clinic.config, &[("ADDRESS", "192.0.2.1:443")]));
    said.is_about("error listeners address-not-here", "192.0.2.1");

    let runner = ["prlimit", "--nofile=512:512"];
    Said::of(&clinic.run(&runner, &clinic.config, &[])).is(&["warning host few-descriptors"]);
}

async fn outages(clinic: &mut Clinic) {
    let authorize = clinic.world.cluster.serves("authorize-2").to_string();
    clinic.world.cluster.process("authorize-2").signal("STOP");
    let said = clinic.say(&clinic.config);
    clinic.world.cluster.process("authorize-2").signal("CONT");
    said.is_about("warning authorize silent", &authorize);

    clinic.world.cluster.kill("authorize-2").await;
    let said = clinic.say(&clinic.config);
    said.is_about("warning authorize connection-refused", &authorize);
    clinic.world.cluster.start_again("authorize-2");
    clinic.world.cluster.ready().await;

    // Where a proxy runs that shows as databrokers that are not ready.
    clinic.postgres.stop().unwrap();
    postern_tests::wait::until(
        "databrokers to notice",
        Duration::from_secs(30),
        async || {
            let url = clinic.world.cluster.health("databroker-1", "/readyz");
            let answer = clinic.world.cluster.program().try_get(&url).await?;
            if answer.status == 503 {
                Ok(())
            } else {
                Err(answer.text())
            }
        },
    )
    .await;
    let said = clinic.say(&clinic.config);
    said.is(&[
        "error databroker not-ready",
        "error storage connection-refused",
    ]);
    clinic.postgres.resume().unwrap();
    clinic.world.cluster.ready().await;
}
