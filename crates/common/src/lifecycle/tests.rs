use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::health::Health;
use super::*;

fn get(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer[9..12].parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
    (status, body)
}

#[test]
fn a_guard_holds_readiness_and_says_why() {
    let lifecycle = Lifecycle::new(DrainTiming::immediate());
    let guard = lifecycle.not_ready("authorize.replica");
    assert!(!lifecycle.is_ready());
    assert!(!lifecycle.parts().started(), "starting: no reason told yet");

    guard.because("no databroker reachable");
    assert!(
        lifecycle.parts().started(),
        "waiting for others is no failed start"
    );
    let told = lifecycle.parts().list();
    assert_eq!(
        told["authorize.replica"].error.as_deref(),
        Some("no databroker reachable")
    );

    drop(guard);
    assert!(lifecycle.is_ready());
    let again = lifecycle.not_ready("authorize.replica");
    again.because("listener died");
    assert!(!lifecycle.is_ready());
    again.ready();
    assert!(lifecycle.is_ready());
}

#[test]
fn two_guards_of_one_name_must_both_go() {
    let lifecycle = Lifecycle::new(DrainTiming::immediate());
    let first = lifecycle.not_ready("proxy.listener");
    let second = lifecycle.not_ready("proxy.listener");
    drop(first);
    assert!(!lifecycle.is_ready());
    drop(second);
    assert!(lifecycle.is_ready());
}

#[test]
fn c15_a_degraded_part_is_told_but_holds_nothing() {
    let lifecycle = Lifecycle::new(DrainTiming::immediate());
    let health = Health::start(&lifecycle, "127.0.0.1:0".parse().unwrap()).unwrap();
    let names = ["databroker.storage".to_owned()];
    let guard = lifecycle.degraded("databroker.storage", "Postgres does not answer");
    assert_eq!(get(health.address(), "GET /readyz").0, 200);
    assert_eq!(get(health.address(), "GET /healthz").0, 200);
    assert!(!lifecycle.parts().ready(&names));
    let (status, body) = get(health.address(), "GET /status");
    assert_eq!(status, 200);
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    let part = &body["statuses"]["databroker.storage"];
    assert_eq!(part["error"], "Postgres does not answer");
    assert!(part["since"].is_string());
    drop(guard);
    assert!(lifecycle.parts().ready(&names));
}

#[test]
fn health_endpoints_answer_get_and_head_only() {
    let lifecycle = Lifecycle::new(DrainTiming::immediate());
    let guard = lifecycle.not_ready("proxy.service");
    let health = Health::start(&lifecycle, "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = health.address();
    assert_eq!(get(address, "GET /startupz").0, 503);
    assert_eq!(get(address, "GET /readyz").0, 503);
    assert_eq!(get(address, "GET /healthz").0, 200);
    drop(guard);
    assert_eq!(get(address, "GET /startupz").0, 200);
    let (status, body) = get(address, "GET /readyz");
    assert_eq!(status, 200);
    assert!(
        body.contains(r#""proxy.service":{"status":"RUNNING""#),
        "{body}"
    );
    assert_eq!(get(address, "HEAD /readyz"), (200, String::new()));
    assert_eq!(get(address, "POST /readyz").0, 405);
    assert_eq!(get(address, "GET /nothing").0, 404);
    lifecycle.drain();
    assert_eq!(get(address, "GET /readyz").0, 503);
    assert_eq!(get(address, "GET /healthz").0, 200);
    assert!(get(address, "GET /status").1.contains("TERMINATING"));
}

#[test]
fn a_stuck_runtime_is_not_ready() {
    let lifecycle = Lifecycle::new(DrainTiming::immediate());
    let health = Health::start(&lifecycle, "127.0.0.1:0".parse().unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap();
    let turning = lifecycle.runtimes().watch("data", runtime.handle().clone());
    assert_eq!(get(health.address(), "GET /readyz").0, 200);

    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let (entered, inside) = std::sync::mpsc::channel();
    runtime.spawn(async move {
        entered.send(()).unwrap();
        let _ = blocked.recv();
    });
    inside.recv().unwrap();
    let (status, body) = get(health.address(), "GET /readyz");
    assert_eq!(status, 503);
    assert!(body.contains("runtime.data"), "{body}");
    assert_eq!(get(health.address(), "GET /healthz").0, 200);
    // One that has ended is not asked any more.
    drop(turning);
    assert_eq!(get(health.address(), "GET /readyz").0, 200);
    release.send(()).unwrap();
}

#[test]
fn a_taken_port_is_a_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = Health::start(&Lifecycle::new(DrainTiming::immediate()), address).unwrap_err();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

fn short() -> DrainTiming {
    DrainTiming {
        delay: Duration::from_millis(60),
        settle: Duration::from_millis(40),
        timeout: Duration::from_millis(200),
        ..DrainTiming::default()
    }
}

#[tokio::test]
async fn phases_follow_in_order_and_wait_for_requests() {
    let lifecycle = Lifecycle::new(short());
    let busy = lifecycle.busy();
    let start = tokio::time::Instant::now();
    let watched = lifecycle.clone();
    let times = tokio::spawn(async move {
        let mut times = Vec::new();
        for phase in [
            Phase::Draining,
            Phase::ListenersClosed,
            Phase::IdleClosed,
            Phase::StreamsEnded,
            Phase::Stopping,
        ] {
            watched.reached(phase).await;
            times.push(start.elapsed());
        }
        times
    });
    let ended = lifecycle.clone();
    lifecycle.drain();
    tokio::spawn(async move {
        ended.reached(Phase::IdleClosed).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(busy);
    });
    assert_eq!(lifecycle.run_to_end().await, Exit::Drained);
    let times = times.await.unwrap();
    for (reached, earliest) in times.iter().zip([0, 60, 100, 150, 150]) {
        assert!(*reached >= Duration::from_millis(earliest), "{times:?}");
    }
    assert!(times.is_sorted());
}

#[tokio::test(start_paused = true)]
async fn the_end_of_streams_waits_for_connections_and_for_nothing_else() {
    let from_streams_to_stop = async |connection_lasts: Duration| {
        let lifecycle = Lifecycle::new(short());
        let stopping = lifecycle.stopping();
        lifecycle.spawn(async move { stopping.cancelled().await });
        let (serving, watched) = (lifecycle.serving(), lifecycle.clone());
        let took = tokio::spawn(async move {
            watched.reached(Phase::StreamsEnded).await;
            let begin = tokio::time::Instant::now();
            tokio::spawn(async move {
                tokio::time::sleep(connection_lasts).await;
                drop(serving);
            });
            watched.reached(Phase::Stopping).await;
            begin.elapsed()
        });
        lifecycle.drain();
        assert_eq!(lifecycle.run_to_end().await, Exit::Drained);
        took.await.unwrap()
    };
    let quick = Duration::from_millis(100);
    assert_eq!(from_streams_to_stop(quick).await, quick);
    let longest = short().streams;
    assert_eq!(from_streams_to_stop(longest * 3).await, longest);
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_at_the_deadline() {
    let lifecycle = Lifecycle::new(short());
    let _busy = lifecycle.busy();
    lifecycle.drain();
    assert_eq!(lifecycle.run_to_end().await, Exit::Cut);
    assert_eq!(Exit::Cut.code(), ExitCode::SUCCESS);
}

#[tokio::test(start_paused = true)]
async fn the_second_signal_stops_at_once() {
    let lifecycle = Lifecycle::new(DrainTiming::default());
    let _busy = lifecycle.busy();
    lifecycle.drain();
    let start = tokio::time::Instant::now();
    lifecycle.stop();
    assert_eq!(lifecycle.run_to_end().await, Exit::Cut);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_critical_task_that_ends_is_a_crash() {
    let lifecycle = Lifecycle::new(DrainTiming::default());
    lifecycle.spawn_critical("databroker.feed", async { Err::<(), _>("connection lost") });
    let exit = lifecycle.run_to_end().await;
    let Exit::Crashed { task, cause } = &exit else {
        panic!("{exit:?}")
    };
    assert_eq!(task, "databroker.feed");
    assert!(cause.contains("connection lost"), "{cause}");
    assert_eq!(exit.code(), ExitCode::FAILURE);
}

#[tokio::test]
async fn a_critical_task_that_panics_is_a_crash() {
    let lifecycle = Lifecycle::new(DrainTiming::default());
    lifecycle.spawn_critical("proxy.core", async { panic!("out of luck") });
    let Exit::Crashed { cause, .. } = lifecycle.run_to_end().await else {
        panic!()
    };
    assert!(cause.contains("out of luck"), "{cause}");
}

#[tokio::test]
async fn a_critical_task_may_end_while_draining() {
    let lifecycle = Lifecycle::new(DrainTiming::immediate());
    let draining = lifecycle.draining();
    lifecycle.spawn_critical("proxy.core", async move { draining.cancelled().await });
    lifecycle.drain();
    assert_eq!(lifecycle.run_to_end().await, Exit::Drained);
}

#[tokio::test]
async fn the_first_sigterm_drains_and_the_second_stops() {
    let lifecycle = Lifecycle::new(DrainTiming::default());
    let _busy = lifecycle.busy();
    lifecycle.listen_for_signals().unwrap();
    let ended = tokio::spawn({
        let lifecycle = lifecycle.clone();
        async move { lifecycle.run_to_end().await }
    });
    let terminate = || {
        let pid = std::process::id().to_string();
        let sent = std::process::Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap();
        assert!(sent.success());
    };
    terminate();
    let soon = Duration::from_secs(10);
    let draining = lifecycle.reached(Phase::Draining);
    tokio::time::timeout(soon, draining).await.unwrap();
    assert!(lifecycle.phase() < Phase::Stopping);
    terminate();
    assert_eq!(
        tokio::time::timeout(soon, ended).await.unwrap().unwrap(),
        Exit::Cut
    );
}
