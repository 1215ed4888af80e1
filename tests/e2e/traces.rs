//! A request is one trace, whatever processes it goes through, and tracing costs no request.

use std::time::Duration;

use http::StatusCode;
use postern_tests::cluster::Layout;
use postern_tests::collector::{Collector, Seen, name, way_up};
use postern_tests::ports;
use postern_tests::wait;
use postern_tests::world::{Setting, World, header_seen};
use tokio::net::TcpListener;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const ABOVE: &str = "00f067aa0ba902b7";

fn to(endpoint: &str, more: &str) -> String {
    format!(
        "otel_traces_exporter: otlp\notel_exporter_otlp_endpoint: '{endpoint}'\n\
         otel_bsp_schedule_delay: 100\n{more}"
    )
}

fn bytes(hex: &str) -> Vec<u8> {
    let pairs = (0..hex.len()).step_by(2).map(|at| &hex[at..at + 2]);
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

/// Asks for the open route as the span `ABOVE` of the trace `TRACE`.
async fn ask(world: &World, trace: &str, flags: &str) -> Option<String> {
    let sent = format!("00-{trace}-{ABOVE}-{flags}");
    let program = world.cluster.program().with_header("traceparent", &sent);
    let url = world.cluster.url("open", "/some/path?token=s3cret");
    let answer = program.get(&url).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    header_seen(&answer.json(), "traceparent")
}

/// The spans of a request for the open route, once all have come.
async fn of_request(collector: &Collector) -> Vec<Seen> {
    collector
        .until("a whole trace", |seen| {
            let ours = seen.iter().filter(|it| it.span.trace_id == bytes(TRACE));
            let ours: Vec<_> = ours.cloned().collect();
            (ours.len() >= 5).then_some(ours)
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_one_trace() {
    for layout in [Layout::AllInOne, Layout::Split] {
        let collector = Collector::start().await;
        let config = to(
            &collector.server.url(),
            "otel_exporter_otlp_protocol: grpc\notel_exporter_otlp_headers: {x-key: told}\n",
        );
        let world = World::start_with(Setting::new(layout).config(config)).await;
        let (proxy, authorize, authenticate, databroker) = match layout {
            Layout::AllInOne => ["postern"; 4].into(),
            _ => [
                "postern-proxy",
                "postern-authorize",
                "postern-authenticate",
                "postern-databroker",
            ]
            .into(),
        };

        let told = ask(&world, TRACE, "01").await.unwrap();
        let seen = of_request(&collector).await;
        let find = |name: &str| seen.iter().find(|it| it.span.name == name).unwrap();
        let outside = bytes(ABOVE);
        let way = |name: &str| way_up(&seen, find(name), &outside).unwrap();
        let server = seen
            .iter()
            .find(|it| it.span.parent_span_id == outside)
            .unwrap();
        let whole = name(server);
        assert!(whole.starts_with(&format!("{proxy} GET ")), "{whole}");
        assert_eq!(
            way("upstream"),
            [format!("{proxy} upstream"), whole.clone()]
        );
        assert_eq!(
            way("policy"),
            [
                format!("{authorize} policy"),
                format!("{authorize} decide"),
                format!("{proxy} authorize"),
                whole.clone()
            ]
        );
        assert_eq!(seen.len(), 5);
        assert!(told.starts_with(&format!("00-{TRACE}-")), "{told}");
        assert!(told.ends_with("-01"), "{told}");
        assert_eq!(bytes(&told[36..52]), find("upstream").span.span_id);
        assert_eq!(server.says("http.response.status_code").unwrap(), "200");
        assert_eq!(server.says("url.path").unwrap(), "/some/path");
        assert_eq!(server.says("server.address").unwrap(), "open.corp.test");
        assert_eq!(find("decide").says("postern.decision").unwrap(), "allow");
        let ids = ["postern.request_id", "postern.route_id"];
        for id in ids {
            assert_eq!(server.says(id), find("decide").says(id), "{id}");
        }
        assert_eq!(server.headers["x-key"], "told");

        // A sign-in: from the browser's way back through authenticate to the new record.
        let ann = world.cluster.browser();
        let page = world.cluster.url("app", "/");
        let answer = world.sign_in(&ann, &page, "ann").await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let written = collector
            .until("the session's way", |seen| {
                let mut puts = seen.iter().filter(|it| it.span.name.ends_with("/Put"));
                puts.find_map(|put| way_up(seen, put, &[]))
            })
            .await;
        let mut expected = vec![
            format!("{databroker} databroker.DataBrokerService/Put"),
            format!("{authenticate} GET /oauth2/callback"),
        ];
        if layout == Layout::Split {
            expected.push(format!("{proxy} upstream"));
        }
        expected.push(format!("{proxy} GET pomerium-authenticate"));
        assert_eq!(written, expected);

        let everything = format!("{:?}", collector.seen());
        for secret in ["s3cret", "ann@", "eyJ", "pomerium_session", "_pomerium="] {
            assert!(!everything.contains(secret), "{secret}");
        }
    }
}

/// Who asks not to be traced is not; the upstream learns it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_kept_says_so() {
    let collector = Collector::start().await;
    let config = to(
        &collector.server.url(),
        "otel_exporter_otlp_protocol: grpc\n",
    );
    let world = World::start_with(Setting::new(Layout::AllInOne).config(config)).await;
    let other = TRACE.replace('4', "5");
    let told = ask(&world, &other, "00").await.unwrap();
    assert!(told.starts_with(&format!("00-{other}-")), "{told}");
    assert!(told.ends_with("-00"), "{told}");
    ask(&world, TRACE, "01").await;
    of_request(&collector).await;
    let unasked = |it: &Seen| it.span.trace_id == bytes(&other);
    assert!(!collector.seen().iter().any(unasked));
}

/// Who is told to end sends what it has, and by HTTP too.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_are_sent_at_the_end() {
    let collector = Collector::start().await;
    let config = to(
        &collector.server.url(),
        "otel_exporter_otlp_protocol: http/protobuf\notel_exporter_otlp_headers: {x-key: told}\n",
    );
    let config = config.replace("delay: 100", "delay: 600000");
    let mut world = World::start_with(Setting::new(Layout::AllInOne).config(config)).await;
    ask(&world, TRACE, "01").await;
    let process = world.cluster.process("proxy");
    process.signal("TERM");
    assert!(process.ended().await.success());
    let seen = of_request(&collector).await;
    assert_eq!(seen[0].headers["x-key"], "told");
    assert_eq!(seen[0].headers["content-type"], "application/x-protobuf");
}

/// One that is away, and one that takes connections and says nothing: requests do not notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_down_costs_spans_and_nothing_else() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_at = format!("http://{}", silent.local_addr().unwrap());
    let nobody = format!("http://127.0.0.1:{}", ports::row(1));
    for endpoint in [nobody, silent_at] {
        let metrics = ports::row(1);
        let more = format!(
            "otel_exporter_otlp_protocol: grpc\notel_exporter_otlp_timeout: 200\n\
             otel_bsp_max_export_batch_size: 1\nmetrics_address: '127.0.0.1:{metrics}'\n"
        );
        let setting = Setting::new(Layout::AllInOne).config(to(&endpoint, &more));
        let mut world = World::start_with(setting).await;
        for _ in 0..20 {
            ask(&world, TRACE, "01").await;
        }
        let url = format!("http://127.0.0.1:{metrics}/metrics");
        let scraper = world.cluster.program();
        wait::until("lost spans", Duration::from_secs(20), async || {
            let page = scraper.get(&url).await.text();
            let mut lines = page.lines();
            let line = lines
                .find(|line| line.starts_with("postern_traces_dropped_total{why=\"collector\"}"));
            let lost = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            lost.filter(|lost| *lost > 0.0).ok_or(page)
        })
        .await;
        let process = world.cluster.process("proxy");
        process.signal("TERM");
        assert!(process.ended().await.success());
    }
}
