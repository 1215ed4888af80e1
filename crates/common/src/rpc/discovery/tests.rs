use postern_test_dns::{Answer, ResponseCode, TestDns};

use super::*;
use crate::net::test_dns::options;
use crate::tls::tests::Authority;
use crate::tls::{Alpn, client_config};

fn target(url: &str) -> Result<Target, TargetError> {
    let tls = client_config(&Authority::new("x").trust(), Alpn::H2, None).unwrap();
    Target::new(&url.parse().unwrap(), &tls, None)
}

fn addresses(endpoints: &Endpoints) -> Vec<String> {
    endpoints.keys().map(ToString::to_string).collect()
}

#[test]
fn urls_are_taken_apart() {
    let plain = target("http://databroker").unwrap();
    assert_eq!((plain.host.as_str(), plain.port), ("databroker", 80));
    assert!(plain.tls.is_none());
    assert_eq!(plain.to_string(), "http://databroker");
    let secure = target("https://[fd00::1]:5443/x").unwrap();
    assert_eq!((secure.host.as_str(), secure.port), ("fd00::1", 5443));
    assert_eq!(secure.to_string(), "https://[fd00::1]:5443");
    assert!(secure.tls.is_some());
    assert!(target("ftp://x").is_err());
    assert!(target("unix:/run/x").is_err());
}

#[test]
fn override_certificate_name_replaces_the_host() {
    let tls = client_config(&Authority::new("x").trust(), Alpn::H2, None).unwrap();
    let url = "https://10.0.0.1".parse().unwrap();
    let named = Target::new(&url, &tls, Some("*.corp.test")).unwrap();
    assert_eq!(named.tls.unwrap().name.to_str(), "example.corp.test");
}

#[test]
fn look_ups_follow_the_ttl_within_bounds() {
    let options = DnsOptions::default();
    let seconds = Duration::from_secs;
    assert_eq!(until_next(seconds(600), &options), seconds(5));
    assert_eq!(until_next(seconds(3), &options), seconds(3));
    assert_eq!(until_next(seconds(0), &options), seconds(1));
    let fast = DnsOptions {
        refresh_rate: Duration::from_millis(20),
        ..options
    };
    assert_eq!(until_next(seconds(600), &fast), Duration::from_millis(20));
}

#[tokio::test]
async fn c05_the_last_good_set_stays_until_there_is_a_new_one() {
    let dns = TestDns::start().await;
    dns.set_addresses("a.test", &["10.0.0.1", "10.0.0.2"]);
    dns.set_addresses("b.test", &["10.0.0.2", "10.0.0.3"]);
    let mut options = options(&dns);
    options.refresh_rate = Duration::from_millis(10);
    options.failure_refresh_rate = Duration::from_millis(10);
    options.query_timeout = Duration::from_millis(50);
    let targets = vec![
        target("http://a.test").unwrap(),
        target("http://b.test:80").unwrap(),
    ];
    let discovery = Arc::new(Discovery::new(targets, Resolver::new(options).unwrap()));
    let mut endpoints = discovery.endpoints();
    tokio::spawn(Arc::clone(&discovery).run());
    let both = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];
    endpoints
        .wait_for(|set| addresses(set) == both)
        .await
        .unwrap();
    let shared = Arc::clone(&endpoints.borrow()["10.0.0.2:80".parse().as_ref().unwrap()]);
    assert_eq!(shared.host, "a.test");

    for failure in [
        Answer::Fails(ResponseCode::NXDomain),
        Answer::Fails(ResponseCode::ServFail),
        Answer::Empty,
        Answer::Silence,
    ] {
        dns.set("a.test", failure);
        let before = dns.asked("a.test");
        while dns.asked("a.test") < before + 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(addresses(&endpoints.borrow()), both);
        let (_, lookup) = discovery.lookups().remove(0);
        assert!(lookup.failing.is_some() && lookup.confirmed.is_some());
    }
    dns.set_addresses("a.test", &["10.0.0.7"]);
    let new = ["10.0.0.2:80", "10.0.0.3:80", "10.0.0.7:80"];
    let changed = endpoints.wait_for(|set| addresses(set) == new);
    tokio::time::timeout(Duration::from_secs(5), changed)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(discovery.lookups()[0].1.failing, None);
}
