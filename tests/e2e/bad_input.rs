//! What is wrong with the input is said clearly, and nothing worse happens.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use postern_tests::binaries::{binary, repository};
use postern_tests::cluster::{Cluster, Layout, Plan};
use postern_tests::ports;
use postern_tests::postgres::Postgres;
use postern_tests::program::Program;
use postern_tests::site::Site;
use postern_tests::wait;

const SECRETS: &str = "
shared_secret: dGVzdHMgc2hhcmUgdGhpcyBzZWNyZXQsIDMyIGJ5dGU=
cookie_secret: dGVzdHMgc2VhbCBjb29raWVzIHdpdGggdGhpcyBvbmU=
";

const AUTHENTICATE: &str = "authenticate_service_url: https://auth.corp.test\n";

const REST: &str = "
authenticate_service_url: https://auth.corp.test
idp_provider: oidc
idp_provider_url: http://localhost:1
idp_client_id: postern
idp_client_secret: for-tests-only
certificate_file: {SITE}/certificate.pem
certificate_key_file: {SITE}/certificate-key.pem
routes:
- {from: 'https://app.corp.test', to: 'http://127.0.0.1:1', allow_any_authenticated_user: true}
";

/// Starts the whole of Postern, which must refuse, and gives what it says.
async fn refusal_of(config: &str) -> String {
    let site = Site::new();
    let address = format!("127.0.0.1:{}", ports::row(1));
    let program = Program::start(&site, "postern", config, &[("ADDRESS", &address)]);
    let (said, code) = program.refused().await;
    assert_eq!(code, Some(1), "{said}");
    said
}

fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_secrets_are_refused_with_the_way_to_make_one() {
    let short = refusal_of(&format!(
        "shared_secret: c2hvcnQ=\ncookie_secret: '***'\n{REST}"
    ))
    .await;
    // Both at once, with place and remedy; the values themselves never.
    assert_says(
        &short,
        &[
            "`shared_secret`: 5 bytes, but 32 are needed",
            "`cookie_secret`: not standard base64",
            "head -c32 /dev/urandom | base64",
            "config.yaml:1:",
            "config.yaml:2:",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_service_names_the_secret_that_it_lacks() {
    let site = Site::new();
    let config =
        format!("{REST}\ngrpc_insecure: true\ndatabroker_service_url: http://127.0.0.1:1\n");
    let program = Program::start(&site, "postern-authorize", &config, &[]);
    let (said, code) = program.refused().await;
    assert_eq!(code, Some(1), "{said}");
    assert_says(&said, &["`shared_secret` must be set"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_certificates_and_keys_name_the_file() {
    let other = Site::new();
    let key = other.certificates.key.display().to_string();
    let of_another = REST.replace("{SITE}/certificate-key.pem", &key);
    let said = refusal_of(&format!("{SECRETS}{of_another}")).await;
    assert_says(&said, &["certificate", &key]);

    let missing = REST.replace("{SITE}/certificate.pem", "{SITE}/nowhere.pem");
    let said = refusal_of(&format!("{SECRETS}{missing}")).await;
    assert_says(&said, &["there is no file", "nowhere.pem"]);

    let garbage = REST.replace("{SITE}/certificate-key.pem", "{SITE}/config.yaml");
    let said = refusal_of(&format!("{SECRETS}{garbage}")).await;
    assert_says(&said, &["config.yaml", "key"]);

    let said = refusal_of(&format!("{SECRETS}signing_key: bm8ga2V5\n{REST}")).await;
    assert_says(&said, &["`signing_key`"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_url_is_told_at_once() {
    let config = REST
        .replace("https://auth.corp.test", "auth.corp.test")
        .replace("http://127.0.0.1:1", "gopher://up")
        .replace("http://localhost:1", "https://ann:pw@idp.corp.test");
    let said = refusal_of(&format!("{SECRETS}{config}")).await;
    assert_says(
        &said,
        &["`authenticate_service_url`", "gopher", "`idp_provider_url`"],
    );
    assert!(!said.contains("ann:pw"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_yaml_names_line_and_column() {
    let said = refusal_of("routes:\n- from: 'https://app.corp.test\n").await;
    assert_says(&said, &["error[syntax]", "config.yaml:"]);
}

/// A key that nobody knows is a warning with the likely one; Postern starts.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_is_warned_of_and_costs_no_start() {
    let mut cluster = Cluster::start_on(
        Site::new(),
        Plan {
            layout: Layout::AllInOne,
            provider: "http://localhost:1".to_owned(),
            config: "cookie_expires: 1h\nroutes: []\n".to_owned(),
            names: Vec::new(),
        },
    )
    .await;
    let said = cluster.process("proxy").output();
    assert_says(&said, &["cookie_expires", "did you mean `cookie_expire`?"]);
    let warning = said
        .lines()
        .find(|line| line.contains("cookie_expires"))
        .unwrap();
    let warning: serde_json::Value = serde_json::from_str(warning).unwrap();
    assert_eq!(warning["level"], "warn");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named_with_its_key() {
    for (key, variable) in [
        ("address", "ADDRESS"),
        ("grpc_address", "GRPC_ADDRESS"),
        ("metrics_address", "METRICS_ADDRESS"),
        ("http_redirect_addr", "HTTP_REDIRECT_ADDR"),
        ("health_check_addr", "HEALTH_CHECK_ADDR"),
    ] {
        let site = Site::new();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let free = format!("127.0.0.1:{}", ports::row(1));
        let config = format!("{SECRETS}{REST}");
        let environment = [("ADDRESS", free.as_str()), (variable, address.as_str())];
        let program = Program::start(&site, "postern", &config, &environment);
        let (said, code) = program.refused().await;
        assert_eq!(code, Some(1), "{key}: {said}");
        assert_says(&said, &[key, &address]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_of_one_service_runs_no_other() {
    let site = Site::new();
    let config = format!("{SECRETS}{REST}");
    let program = Program::start(
        &site,
        "postern-authorize",
        &config,
        &[("SERVICES", "proxy")],
    );
    let (said, code) = program.refused().await;
    assert_eq!(code, Some(1), "{said}");
    assert_says(
        &said,
        &["this program is authorize", "`services` asks for proxy"],
    );
}

fn databroker(site: &Site, postgres: &Postgres) -> Program {
    let config = format!(
        "{SECRETS}{AUTHENTICATE}grpc_insecure: true\ndatabroker_storage_type: postgres\n\
         databroker_storage_connection_string: '{}'\n",
        postgres.uri("postgres")
    );
    let address = format!("127.0.0.1:{}", ports::row(1));
    Program::start(
        site,
        "postern-databroker",
        &config,
        &[("GRPC_ADDRESS", &address)],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_may_come_later() {
    let postgres = Postgres::start().unwrap();
    postgres.stop().unwrap();
    let site = Site::new();
    let mut databroker = databroker(&site, &postgres);
    let port = postgres.port().to_string();
    databroker
        .until_ready_says("503 and where Postgres was sought", |answer| {
            answer.status == 503 && answer.text().contains(&port)
        })
        .await;
    assert_eq!(databroker.health("/healthz").await.unwrap().status, 200);

    postgres.resume().unwrap();
    databroker
        .until_ready_says("200", |answer| answer.status == 200)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_schema_is_left_alone() {
    let postgres = Postgres::start().unwrap();
    postgres
        .psql(
            "postgres",
            "CREATE SCHEMA postern;
             CREATE TABLE postern.migrations (version integer PRIMARY KEY, compatible_from integer NOT NULL);
             INSERT INTO postern.migrations VALUES (99, 99)",
        )
        .unwrap();
    let site = Site::new();
    let mut databroker = databroker(&site, &postgres);
    databroker
        .until_ready_says("503 because of a newer version", |answer| {
            let text = answer.text();
            answer.status == 503
                && text.contains("newer version (99")
                && text.contains("nothing was changed")
        })
        .await;
    assert_eq!(databroker.health("/healthz").await.unwrap().status, 200);
    let tables = postgres
        .psql(
            "postgres",
            "SELECT string_agg(table_name, ',') FROM information_schema.tables WHERE table_schema = 'postern'",
        )
        .unwrap();
    assert_eq!(tables, "migrations");
    let rows = postgres
        .psql("postgres", "SELECT * FROM postern.migrations")
        .unwrap();
    assert_eq!(rows, "99|99");
}

/// Two databrokers on one database, of which one has another shared secret: it neither reads nor
/// harms what it cannot open.
#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_key_for_the_records_is_told() {
    let postgres = Postgres::start().unwrap();
    let storage = format!(
        "databroker_storage_type: postgres\ndatabroker_storage_connection_string: '{}'\n",
        postgres.uri("postgres")
    );
    let world = postern_tests::world::World::start(Layout::AllInOne, &storage).await;
    let ann = world.cluster.browser();
    world
        .sign_in(&ann, &world.cluster.url("app", "/"), "ann")
        .await;

    let site = Site::new();
    let mut stranger = databroker(&site, &postgres);
    // With the same secret all is well.
    stranger
        .until_ready_says("200", |answer| answer.status == 200)
        .await;
    drop(stranger);
    let config = format!(
        "{}{AUTHENTICATE}grpc_insecure: true\n{storage}",
        SECRETS.replace("dGVzdHMgc2hhcmUg", "AAAAAAAAAAAAAAAA")
    );
    let address = format!("127.0.0.1:{}", ports::row(1));
    let environment = [("GRPC_ADDRESS", address.as_str())];
    let mut stranger = Program::start(&site, "postern-databroker", &config, &environment);
    stranger
        .until_ready_says("503 because of the key", |answer| {
            answer.status == 503 && answer.text().contains("key")
        })
        .await;
    assert_eq!(
        ann.get(&world.cluster.url("app", "/")).await.status,
        200,
        "nothing was lost"
    );
}

/// With a provider's values, of which the page leaves one to the reader.
fn check(arguments: &[&str]) -> (String, Option<i32>) {
    let output = Command::new(binary("postern"))
        .arg("check")
        .args(arguments)
        .env("IDP_PROVIDER_URL", "https://idp.example.com")
        .current_dir(repository())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    (said, output.status.code())
}

#[test]
fn the_pages_configuration_is_valid_but_not_strictly() {
    let page = "deploy/compose/page/config.yaml";
    let (said, code) = check(&[page]);
    assert_eq!(code, Some(0), "{said}");
    assert_says(
        &said,
        &[
            "is valid: 1 route",
            "`shared_secret` IS PUBLISHED",
            "`cookie_secret` IS PUBLISHED",
        ],
    );
    let (said, code) = check(&["--strict", page]);
    assert_eq!(code, Some(1), "{said}");
    assert_says(&said, &["error[public-secret]", "is not valid"]);
}

#[test]
fn check_tells_a_file_that_is_not_there() {
    let (said, code) = check(&["/nowhere/config.yaml"]);
    assert_eq!(code, Some(1), "{said}");
    assert_says(&said, &["/nowhere/config.yaml"]);
}

/// A process that cannot start ends at once, and says so in a time that people wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_start_leaves_nothing_behind() {
    let port = ports::row(1);
    let site = Site::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let environment = [
        ("ADDRESS", format!("127.0.0.1:{port}")),
        ("GRPC_ADDRESS", taken.local_addr().unwrap().to_string()),
    ];
    let environment: Vec<_> = environment
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let program = Program::start(&site, "postern", &format!("{SECRETS}{REST}"), &environment);
    let (said, code) = program.refused().await;
    assert_eq!(code, Some(1), "{said}");
    wait::until("the port to be free", Duration::from_secs(5), async || {
        TcpListener::bind(("127.0.0.1", port))
    })
    .await;
}
