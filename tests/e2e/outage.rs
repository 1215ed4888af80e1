//! Everything of one kind away, and back at other addresses.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use postern_test_dns::Answer;
use postern_tests::cluster::{Layout, name_of};
use postern_tests::postgres::Postgres;
use postern_tests::wait;
use postern_tests::world::World;
use tokio::time::sleep;

/// Longer than the log holds lines about a peer back.
const OUTAGE: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread")]
async fn c07_every_databroker_is_stopped_and_started_elsewhere() {
    let postgres = Postgres::start().unwrap();
    let storage = format!(
        "databroker_storage_type: postgres\ndatabroker_storage_connection_string: '{}'\n",
        postgres.uri("postgres")
    );
    let mut world = World::start(Layout::Fleet, &storage).await;
    let url = world.cluster.url("app", "/");
    let ann = world.cluster.browser();
    world.sign_in(&ann, &url, "ann").await;

    for replica in ["databroker-1", "databroker-2"] {
        world.cluster.kill(replica).await;
    }
    let end = Instant::now() + OUTAGE;
    while Instant::now() < end {
        assert_eq!(ann.get(&url).await.status, StatusCode::OK, "goes on");
        let page = world.cluster.browser().follow(&url).await.pop().unwrap();
        let told = page.text();
        assert_eq!(page.status, StatusCode::SERVICE_UNAVAILABLE, "{told}");
        assert!(page.header("retry-after").is_some(), "{told}");
        // People come now and then.
        sleep(Duration::from_millis(300)).await;
    }

    for number in [3, 4] {
        world.cluster.add("databroker", number);
    }
    let back = ["databroker-3", "databroker-4"].map(|it| world.cluster.serves(it).ip());
    let dns = world.cluster.dns();
    dns.set(&name_of("databroker"), Answer::Addresses(back.to_vec(), 2));
    wait::until("signing in to work", Duration::from_secs(60), async || {
        let bob = world.cluster.browser();
        match postern_tests::world::sign_in(&world.issuer, &bob, &url, "bob").await {
            Ok(page) if page.status == StatusCode::OK => Ok(()),
            Ok(page) => Err(format!("{} {}", page.status, page.text())),
            Err(error) => Err(error),
        }
    })
    .await;
    assert_eq!(ann.get(&url).await.status, StatusCode::OK, "still");
    for caller in [
        "authorize-1",
        "authorize-2",
        "authenticate-1",
        "authenticate-2",
    ] {
        let process = world.cluster.process(caller);
        assert!(process.has_ended().is_none(), "{caller} went on");
        let said = process.output();
        let lost = times_of(&said, "endpoint lost");
        assert!(!lost.is_empty(), "{caller}: {said}");
        for (peer, times) in lost {
            for pair in times.windows(2) {
                let apart = pair[1].duration_since(pair[0]);
                let least = SignedDuration::from_millis(9_900);
                assert!(apart >= least, "{caller} about {peer}: {times:?}");
            }
        }
    }
}

/// When a line of the log said this, by the peer that it was about.
fn times_of(log: &str, message: &str) -> BTreeMap<String, Vec<Timestamp>> {
    let mut times = BTreeMap::<_, Vec<_>>::new();
    for line in log.lines() {
        let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else {
            continue;
        };
        if line["message"] == message {
            let peer = line["peer"].as_str().unwrap().to_owned();
            let time = line["time"].as_str().unwrap().parse().unwrap();
            times.entry(peer).or_default().push(time);
        }
    }
    times
}
