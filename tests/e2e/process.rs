//! A process from its start to its end: health, reload, drain, and what it tells about itself.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use http::StatusCode;
use postern_tests::binaries::binary;
use postern_tests::cluster::{Cluster, Layout};
use postern_tests::person::Person;
use postern_tests::ports;
use postern_tests::postgres::Postgres;
use postern_tests::upstream::Upstream;
use postern_tests::wait;
use postern_tests::world::{Setting, World};

const SERVICES: [&str; 4] = ["databroker", "authorize", "authenticate", "proxy"];

async fn status(cluster: &Cluster, service: &str, path: &str) -> StatusCode {
    cluster
        .program()
        .get(&cluster.health(service, path))
        .await
        .status
}

async fn until_status(cluster: &Cluster, service: &str, path: &str, wanted: u16, limit: Duration) {
    let url = cluster.health(service, path);
    let nobody = cluster.program();
    wait::until(
        &format!("{url} to answer {wanted}"),
        limit,
        async || match nobody.try_get(&url).await {
            Ok(answer) if answer.status == wanted => Ok(()),
            Ok(answer) => Err(format!("{} {}", answer.status, answer.text())),
            Err(error) => Err(error),
        },
    )
    .await;
}

async fn held(layout: Layout) -> (World, Upstream) {
    let upstream = Upstream::start().await;
    let routes = format!(
        "- {{from: 'https://free.corp.test:{{PORT}}', to: '{}', allow_public_unauthenticated_access: true}}\n",
        upstream.server.url()
    );
    let world = World::start_with(Setting::new(layout).routes(routes)).await;
    (world, upstream)
}

/// SIGTERM: not ready at once, everything under way ends well, then the process does.
#[tokio::test(flavor = "multi_thread")]
async fn c14_a_drain_loses_nothing() {
    for layout in [Layout::AllInOne, Layout::Split] {
        let (mut world, upstream) = held(layout).await;
        let nobody = world.cluster.program();
        let url = world.cluster.url("free", "/hold");
        let slow = tokio::spawn({
            let (nobody, url) = (nobody.clone(), url.clone());
            async move { nobody.get(&url).await }
        });
        upstream.until_seen("/hold").await;

        world.cluster.process("proxy").signal("TERM");
        until_status(
            &world.cluster,
            "proxy",
            "/readyz",
            503,
            Duration::from_secs(1),
        )
        .await;
        assert_eq!(status(&world.cluster, "proxy", "/healthz").await, 200);
        // Whoever has not heard of it yet is still served, and told to go elsewhere next time.
        let late = nobody.get(&world.cluster.url("free", "/late")).await;
        assert_eq!(late.status, StatusCode::OK, "{}", late.text());
        assert_eq!(late.header("connection"), Some("close"));

        // The listener closes while the slow request goes on.
        wait::until(
            "the listener to close",
            Duration::from_secs(20),
            async || match tokio::net::TcpStream::connect(("127.0.0.1", world.cluster.port)).await {
                Ok(_) => Err("open"),
                Err(_) => Ok(()),
            },
        )
        .await;
        assert!(world.cluster.process("proxy").has_ended().is_none());
        upstream.release();
        let answer = slow.await.unwrap();
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.text().contains("reached"));
        let ended = world.cluster.process("proxy").ended().await;
        assert_eq!(ended.code(), Some(0));

        if layout == Layout::Split {
            for service in ["authenticate", "authorize", "databroker"] {
                world.cluster.process(service).signal("TERM");
            }
            for service in ["authenticate", "authorize", "databroker"] {
                let ended = world.cluster.process(service).ended().await;
                assert_eq!(ended.code(), Some(0), "{service}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() {
    let (mut world, upstream) = held(Layout::AllInOne).await;
    let nobody = world.cluster.program();
    let url = world.cluster.url("free", "/hold");
    let slow = tokio::spawn(async move { nobody.try_get(&url).await });
    upstream.until_seen("/hold").await;
    world.cluster.process("proxy").signal("TERM");
    until_status(
        &world.cluster,
        "proxy",
        "/readyz",
        503,
        Duration::from_secs(1),
    )
    .await;
    let second = Instant::now();
    world.cluster.process("proxy").signal("TERM");
    world.cluster.process("proxy").ended().await;
    // The drain alone would hold out for more than half a minute.
    assert!(second.elapsed() < Duration::from_secs(5));
    let cut = slow.await.unwrap();
    assert!(
        cut.as_ref()
            .map_or(true, |answer| answer.status != StatusCode::OK),
        "{cut:?}"
    );
}

/// Only Bob may use app; the usual file lets in everybody who is signed in.
fn only_bob(file: &str) -> String {
    let changed = file.replacen(
        "allow_any_authenticated_user: true",
        "allowed_users: [bob@corp.test]",
        1,
    );
    assert_ne!(changed, file);
    changed
}

fn in_place(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
}

fn by_rename(file: &Path, text: &str) {
    let new = file.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, file).unwrap();
}

/// As kubelet does with a ConfigMap.
fn by_link(file: &Path, text: &str) {
    let target = file.with_extension("target");
    std::fs::write(&target, text).unwrap();
    let link = file.with_extension("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    std::fs::rename(&link, file).unwrap();
}

async fn until_answer(person: &Person, url: &str, wanted: StatusCode, what: &str) {
    let what = format!("{wanted} after a write {what}");
    wait::until(&what, Duration::from_secs(2), async || {
        let answer = person.get(url).await;
        assert!(
            matches!(answer.status, StatusCode::OK | StatusCode::FORBIDDEN),
            "no other failure: {} {}",
            answer.status,
            answer.text()
        );
        if answer.status == wanted {
            Ok(())
        } else {
            Err(answer.status)
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c58_reload() {
    for layout in [Layout::AllInOne, Layout::Split] {
        let mut world = World::start(layout, "").await;
        let ann = world.cluster.browser();
        let url = world.cluster.url("app", "/");
        world.sign_in(&ann, &url, "ann").await;
        let file = world.cluster.config_file();
        let everybody = std::fs::read_to_string(&file).unwrap();
        let bob = only_bob(&everybody);
        for (what, write) in [
            ("in place", in_place as fn(&Path, &str)),
            ("by rename", by_rename),
            ("by a link", by_link),
        ] {
            write(&file, &bob);
            until_answer(&ann, &url, StatusCode::FORBIDDEN, what).await;
            write(&file, &everybody);
            until_answer(&ann, &url, StatusCode::OK, what).await;
        }
        // Broken, half, and empty files change nothing and are complained about.
        let half = bob.split_once("allowed_users").unwrap().0;
        for broken in ["routes: [{from: nowhere}]\n", half, ""] {
            let before = complaints(&mut world.cluster);
            by_rename(&file, broken);
            wait::until("a complaint", Duration::from_secs(5), async || {
                if complaints(&mut world.cluster) > before {
                    Ok(())
                } else {
                    Err(broken)
                }
            })
            .await;
            assert_eq!(ann.get(&url).await.status, StatusCode::OK, "{broken}");
        }
        by_rename(&file, &bob);
        until_answer(&ann, &url, StatusCode::FORBIDDEN, "after broken ones").await;
    }
}

/// With `config_hot_reload: false` files may change at any time; SIGHUP takes them over.
#[tokio::test(flavor = "multi_thread")]
async fn sighup_reloads_what_is_not_watched() {
    for layout in [Layout::AllInOne, Layout::Split] {
        let mut world = World::start(layout, "runtime_flags: {config_hot_reload: false}\n").await;
        let ann = world.cluster.browser();
        let url = world.cluster.url("app", "/");
        world.sign_in(&ann, &url, "ann").await;
        let file = world.cluster.config_file();
        let everybody = std::fs::read_to_string(&file).unwrap();
        by_rename(&file, &only_bob(&everybody));
        // Longer than a watched file would take.
        let unchanged = Instant::now();
        while unchanged.elapsed() < Duration::from_secs(2) {
            assert_eq!(
                ann.get(&url).await.status,
                StatusCode::OK,
                "not asked to reload"
            );
        }
        let hang_up = |cluster: &Cluster| cluster.processes.iter().for_each(|it| it.signal("HUP"));
        hang_up(&world.cluster);
        until_answer(&ann, &url, StatusCode::FORBIDDEN, "and SIGHUP").await;

        let before = complaints(&mut world.cluster);
        by_rename(&file, "routes: [{from: nowhere}]\n");
        hang_up(&world.cluster);
        wait::until("a complaint", Duration::from_secs(5), async || {
            if complaints(&mut world.cluster) > before {
                Ok(())
            } else {
                Err("none")
            }
        })
        .await;
        assert_eq!(ann.get(&url).await.status, StatusCode::FORBIDDEN);

        by_rename(&file, &everybody);
        hang_up(&world.cluster);
        until_answer(&ann, &url, StatusCode::OK, "and SIGHUP").await;
        for process in &mut world.cluster.processes {
            assert!(process.has_ended().is_none(), "{}", process.name);
        }
    }
}

/// Secrets rotate while people are signed in: add the new one as second everywhere, then make it
/// the first, then remove the old one.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_rotate_without_signing_anybody_out() {
    const NEW_SHARED: &str = "cm90YXRlZCBzaGFyZWQgc2VjcmV0LCAzMiBieXRlcy4=";
    const NEW_COOKIE: &str = "cm90YXRlZCBjb29raWUgc2VjcmV0LCAzMiBieXRlcy4=";
    let world = World::start(Layout::Split, "").await;
    let url = world.cluster.url("app", "/");
    let keys = world.cluster.url("app", "/.well-known/pomerium/jwks.json");
    let file = world.cluster.config_file();
    let old = std::fs::read_to_string(&file).unwrap();
    let with = |make: fn(&str, &str) -> String| {
        let mut text = old.clone();
        for (key, new) in [("shared_secret", NEW_SHARED), ("cookie_secret", NEW_COOKIE)] {
            let line = text.lines().find(|line| line.starts_with(key)).unwrap();
            let before = line.split('\'').nth(1).unwrap();
            let after = format!("{key}: {}", make(before, new));
            text = text.replace(line, &after);
        }
        text
    };
    let ann = world.cluster.browser();
    world.sign_in(&ann, &url, "ann").await;
    let kids = async || -> Vec<String> {
        let published = ann.get(&keys).await.json();
        let keys = published["keys"].as_array().unwrap().iter();
        keys.map(|key| key["kid"].as_str().unwrap().to_owned())
            .collect()
    };
    let before = kids().await;
    assert_eq!(before.len(), 1);
    for (what, text, published) in [
        ("added", with(|old, new| format!("[{old}, {new}]")), 2),
        ("first", with(|old, new| format!("[{new}, {old}]")), 2),
    ] {
        let was = kids().await;
        by_rename(&file, &text);
        wait::until(what, Duration::from_secs(10), async || {
            let now = kids().await;
            if now.len() == published && now != was {
                Ok(())
            } else {
                Err(now)
            }
        })
        .await;
        assert!(
            kids().await.contains(&before[0]),
            "verifiers still find the old key"
        );
        assert_eq!(ann.get(&url).await.status, StatusCode::OK, "{what}");
        let bob = world.cluster.browser();
        let greeted = world.sign_in(&bob, &url, "bob").await;
        assert_eq!(greeted.status, StatusCode::OK, "{what}: {}", greeted.text());
    }
    // Who signed in under the new secret stays; the old one opens nothing any more.
    let eve = world.cluster.browser();
    world.sign_in(&eve, &url, "eve").await;
    by_rename(&file, &with(|_, new| format!("'{new}'")));
    wait::until("removed", Duration::from_secs(10), async || {
        let status = ann.get(&url).await.status;
        if status == StatusCode::FOUND {
            Ok(())
        } else {
            Err(status)
        }
    })
    .await;
    assert_eq!(eve.get(&url).await.status, StatusCode::OK);
}

/// How many lines of the process that decides are errors about the configuration.
fn complaints(cluster: &mut Cluster) -> usize {
    let output = cluster.process("authorize").output();
    output
        .lines()
        .filter(|line| line.contains("\"error\"") && line.contains("config"))
        .count()
}

/// A database that is gone makes the databroker unready and nothing else; no liveness fails.
#[tokio::test(flavor = "multi_thread")]
async fn c15_postgres_goes_away() {
    let postgres = Postgres::start().unwrap();
    let storage = format!(
        "databroker_storage_type: postgres\ndatabroker_storage_connection_string: '{}'\n",
        postgres.uri("postgres")
    );
    let world = World::start(Layout::Split, &storage).await;
    let ann = world.cluster.browser();
    let url = world.cluster.url("app", "/");
    world.sign_in(&ann, &url, "ann").await;

    postgres.stop().unwrap();
    let limit = Duration::from_secs(30);
    until_status(&world.cluster, "databroker", "/readyz", 503, limit).await;
    for service in SERVICES {
        assert_eq!(
            status(&world.cluster, service, "/healthz").await,
            200,
            "{service}"
        );
        if service != "databroker" {
            assert_eq!(
                status(&world.cluster, service, "/readyz").await,
                200,
                "{service}"
            );
        }
    }
    let told = world
        .cluster
        .program()
        .get(&world.cluster.health("databroker", "/status"))
        .await
        .json();
    let part = &told["statuses"]["databroker"];
    assert!(
        part["error"].is_string() && part["since"].is_string(),
        "{told}"
    );
    assert_eq!(ann.get(&url).await.status, StatusCode::OK, "goes on");

    // Who is new waits, and is told so.
    let bob = world.cluster.browser();
    let page = bob.follow(&url).await.pop().unwrap();
    assert_eq!(
        page.status,
        StatusCode::SERVICE_UNAVAILABLE,
        "{}",
        page.text()
    );
    assert!(page.header("retry-after").is_some());

    postgres.resume().unwrap();
    until_status(&world.cluster, "databroker", "/readyz", 200, limit).await;
    let greeted = world.sign_in(&bob, &url, "bob").await;
    assert_eq!(greeted.status, StatusCode::OK, "{}", greeted.text());
}

fn health(program: &str, address: &str) -> (String, Option<i32>) {
    let output = Command::new(binary(program))
        .arg("health")
        .env("HEALTH_CHECK_ADDR", address)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (said, output.status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn c54_the_binary_checks_its_own_health() {
    let mut world = World::start(Layout::Split, "").await;
    for service in SERVICES {
        let url = world.cluster.health(service, "");
        let address = url.strip_prefix("http://").unwrap();
        let program = format!("postern-{service}");
        let (said, code) = health(&program, address);
        assert_eq!(code, Some(0), "{service}: {said}");

        world.cluster.process(service).signal("TERM");
        let limit = Duration::from_secs(1);
        until_status(&world.cluster, service, "/readyz", 503, limit).await;
        let (said, code) = health(&program, address);
        assert_eq!(code, Some(1), "{service} drains: {said}");

        world.cluster.kill(service).await;
        let (said, code) = health(&program, address);
        assert_eq!(code, Some(1), "{service} is gone: {said}");
        assert!(said.contains("no answer"), "{said}");
    }
}

#[test]
fn every_program_explains_itself() {
    for (program, arguments, parts) in [
        (
            "postern",
            &["--help"][..],
            &[
                "--config",
                "demo",
                "check",
                "health",
                "/pomerium/config.yaml",
            ][..],
        ),
        ("postern", &["check", "--help"], &["--strict", "--explain"]),
        (
            "postern",
            &["demo", "--help"],
            &["--services", "--write", "--port"],
        ),
        (
            "postern-proxy",
            &["--help"],
            &["--config", "health", "--version"],
        ),
        (
            "postern-authorize",
            &["--help"],
            &["--config", "health", "--version"],
        ),
        (
            "postern-authenticate",
            &["--help"],
            &["--config", "health", "--version"],
        ),
        (
            "postern-databroker",
            &["--help"],
            &["--config", "health", "--version"],
        ),
        (
            "postern-proxy",
            &["health", "--help"],
            &["--addr", "HEALTH_CHECK_ADDR"],
        ),
        ("postern-proxy", &["-version"], &["postern-proxy 0."]),
    ] {
        let output = Command::new(binary(program))
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{program} {arguments:?}");
        let help = String::from_utf8(output.stdout).unwrap();
        for part in parts {
            assert!(
                help.contains(part),
                "{program} {arguments:?}: {part}: {help}"
            );
        }
    }
}

/// What a user reads on a page finds the line that tells more, in every process that had a part.
#[tokio::test(flavor = "multi_thread")]
async fn the_id_on_the_page_is_in_the_log() {
    let mut world = World::start(Layout::Split, "").await;
    let bob = world.cluster.browser();
    let page = world
        .sign_in(&bob, &world.cluster.url("eng", "/"), "bob")
        .await;
    assert_eq!(page.status, StatusCode::FORBIDDEN);
    let id = page.header("x-request-id").unwrap().to_owned();
    for service in ["proxy", "authorize"] {
        let process = world.cluster.process(service);
        let line = wait::until("the line", Duration::from_secs(5), async || {
            let output = process.output();
            let line = output.lines().find(|line| line.contains(&id));
            line.map(str::to_owned).ok_or(output)
        })
        .await;
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["request-id"], id.as_str(), "{line}");
    }
    for process in &world.cluster.processes {
        let output = process.output();
        assert!(!output.is_empty());
        for line in output.lines() {
            let line: serde_json::Value = serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{}: {error}: {line}", process.name));
            assert!(
                line["level"].is_string()
                    && line["time"].is_string()
                    && line["message"].is_string(),
                "{line}"
            );
        }
        for secret in [
            postern_tests::cluster::SHARED_SECRET,
            postern::demo::idp::CLIENT_SECRET,
        ] {
            assert!(!output.contains(secret), "{} tells a secret", process.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_for_prometheus() {
    let port = ports::row(1);
    let config = format!("metrics_address: 127.0.0.1:{port}\n");
    let world = World::start(Layout::AllInOne, &config).await;
    let nobody = world.cluster.program();
    nobody.get(&world.cluster.url("open", "/")).await;
    let answer = nobody
        .get(&format!("http://127.0.0.1:{port}/metrics"))
        .await;
    assert_eq!(answer.status, StatusCode::OK);
    let kind = answer.header("content-type").unwrap();
    assert!(
        kind.starts_with("text/plain") || kind.starts_with("application/openmetrics-text"),
        "{kind}"
    );
    let text = answer.text();
    let mut samples = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        assert!(
            name.starts_with(|c: char| c.is_ascii_lowercase()),
            "{line:?}"
        );
        assert!(value.parse::<f64>().is_ok(), "{line:?}");
        samples += 1;
    }
    assert!(samples > 10, "{text}");
    assert!(
        text.contains("# TYPE ") && text.contains("build_info"),
        "{text}"
    );
    // Not on the public listener.
    let public = nobody.get(&world.cluster.url("app", "/metrics")).await;
    assert_ne!(public.status, StatusCode::OK);
}
