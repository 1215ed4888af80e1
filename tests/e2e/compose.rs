//! The High Availability page's example on a real Docker engine.

use std::process::Command;
use std::time::Duration;

use http::StatusCode;
use postern_tests::binaries::repository;
use postern_tests::docker;
use postern_tests::form::Form;
use postern_tests::left_out;
use postern_tests::person::Person;
use postern_tests::wait;
use postern_tests::world::header_seen;

const SITE: &str = "https://httpbin.localhost.pomerium.io";
const SERVICES: [&str; 4] = ["proxy", "authorize", "authenticate", "databroker"];

/// Takes the example down again, also when the test fails, and then shows what containers said.
struct Up;

impl Up {
    fn compose(arguments: &[&str]) -> Command {
        let mut command = Command::new(repository().join("deploy/compose/run.sh"));
        command.args(arguments);
        command
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for service in SERVICES {
                let logs = Command::new("docker")
                    .args(["logs", &container(service)])
                    .output();
                println!("──── {service}: {logs:?}");
            }
        }
        let _ = Self::compose(&["down"]).output();
    }
}

fn container(service: &str) -> String {
    format!("postern-page_pomerium-{service}_1")
}

fn health(service: &str) -> String {
    let mut inspect = Command::new("docker");
    inspect.args([
        "inspect",
        "--format",
        "{{.State.Health.Status}}",
        &container(service),
    ]);
    docker::run(&mut inspect).trim().to_owned()
}

async fn signs_in_on_the_page(arguments: &[&str]) {
    let _up = Up;
    docker::run(&mut Up::compose(arguments));
    for service in SERVICES {
        wait::until(
            &format!("{service} to be healthy"),
            Duration::from_secs(90),
            async || match health(service).as_str() {
                "healthy" => Ok(()),
                other => Err(other.to_owned()),
            },
        )
        .await;
    }

    let authority = repository().join("deploy/compose/page/rootCA.pem");
    let ann = Person::browser(&authority);
    let page = ann.follow(SITE).await.pop().unwrap();
    assert_eq!(page.status, StatusCode::OK, "{}", page.text());
    let picked = Form::of(&page).send(&ann, &[("person", "ann")]).await;
    let greeted = ann
        .follow(picked.location().unwrap().as_str())
        .await
        .pop()
        .unwrap();
    assert_eq!(greeted.status, StatusCode::OK, "{}", greeted.text());
    assert!(greeted.text().contains("Hello, Ann"), "{}", greeted.text());

    let seen = ann
        .clone()
        .with_header("accept", "application/json")
        .get(SITE)
        .await
        .json();
    assert_eq!(seen["path"], "/get", "the path in `to`");
    assert!(header_seen(&seen, "x-pomerium-jwt-assertion").is_some());

    let stranger = Person::program(&authority).get(SITE).await;
    assert_eq!(stranger.status, StatusCode::UNAUTHORIZED);
}

/// With the image of each service, then with the all-in-one image in all four places.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_runs_as_it_is_written() {
    if !docker::available() {
        left_out::note("compose", "no Docker engine can be reached");
        return;
    }
    let mut list = Command::new("docker");
    list.args(["images", "--quiet", "postern/postern"]);
    assert!(
        !docker::run(&mut list).trim().is_empty(),
        "the images are not built; run `just images` first, as `just test` does"
    );
    signs_in_on_the_page(&["up"]).await;
    signs_in_on_the_page(&["up", "--all-in-one-image"]).await;
}

/// The files are those of the page, but for image names and the provider's three values.
#[test]
fn the_files_are_the_pages() {
    let page = include_str!("page.txt");
    let lines = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| line.trim().trim_start_matches("- ").to_owned())
            .filter(|line| !line.is_empty())
            .collect()
    };
    let ours = |name: &str| {
        std::fs::read_to_string(repository().join("deploy/compose/page").join(name)).unwrap()
    };
    let (config, compose) = page.split_once("\n---\n").unwrap();
    let differ = |theirs: &str, ours: &str| {
        [
            "idp_provider:",
            "idp_client_id:",
            "idp_client_secret:",
            "image:",
        ]
        .iter()
        .any(|key| theirs.starts_with(key) && ours.starts_with(key))
    };
    for (theirs, ours) in [
        (config, ours("config.yaml")),
        (compose, ours("docker-compose.yaml")),
    ] {
        let (theirs, ours) = (lines(theirs), lines(&ours));
        assert_eq!(theirs.len(), ours.len());
        for (theirs, ours) in theirs.iter().zip(&ours) {
            assert!(
                theirs == ours || differ(theirs, ours),
                "{theirs:?} became {ours:?}"
            );
        }
    }
}
