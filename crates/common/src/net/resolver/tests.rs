use postern_test_dns::{Answer, ResponseCode, TestDns};

use super::super::test_dns::options;
use super::*;

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn addresses_and_their_ttl_are_never_cached() {
    let dns = TestDns::start().await;
    let resolver = Resolver::new(options(&dns)).unwrap();
    dns.set(
        "db.test",
        Answer::Addresses(ips(&["10.0.0.1", "10.0.0.2"]), 600),
    );
    let found = resolver.lookup("db.test").await.unwrap();
    assert_eq!(found.addresses, ips(&["10.0.0.1", "10.0.0.2"]));
    let ttl = found.ttl.unwrap().as_secs();
    assert!((598..=600).contains(&ttl), "{ttl}");

    dns.set("db.test", Answer::Addresses(ips(&["10.0.0.3"]), 600));
    assert_eq!(
        resolver.lookup("DB.test").await.unwrap().addresses,
        ips(&["10.0.0.3"])
    );
}

#[tokio::test]
async fn c05_failures_are_told_apart() {
    let dns = TestDns::start().await;
    let resolver = Resolver::new(options(&dns)).unwrap();
    let ask = async || resolver.lookup("db.test").await.unwrap_err();
    dns.set("db.test", Answer::Fails(ResponseCode::NXDomain));
    assert!(matches!(ask().await, LookupError::NoAddress { .. }));
    dns.set("db.test", Answer::Empty);
    assert!(matches!(ask().await, LookupError::NoAddress { .. }));
    dns.set("db.test", Answer::Fails(ResponseCode::ServFail));
    let failed = ask().await;
    assert!(matches!(failed, LookupError::NoAnswer { .. }), "{failed:?}");
    dns.set("db.test", Answer::Silence);
    let silent = ask().await;
    assert!(matches!(silent, LookupError::NoAnswer { .. }), "{silent:?}");
    assert!(matches!(
        resolver.lookup("a b").await.unwrap_err(),
        LookupError::NoAddress { .. } | LookupError::BadName { .. }
    ));
}

#[tokio::test]
async fn families() {
    let dns = TestDns::start().await;
    dns.set(
        "both.test",
        Answer::Addresses(ips(&["10.0.0.1", "fd00::1"]), 5),
    );
    dns.set("six.test", Answer::Addresses(ips(&["fd00::6"]), 5));
    let ask = async |family, name| {
        let options = DnsOptions {
            lookup_family: family,
            ..options(&dns)
        };
        let found = Resolver::new(options).unwrap().lookup(name).await;
        found.map(|found| found.addresses).unwrap_or_default()
    };
    assert_eq!(
        ask(LookupFamily::V4Preferred, "both.test").await,
        ips(&["10.0.0.1"])
    );
    assert_eq!(
        ask(LookupFamily::V4Preferred, "six.test").await,
        ips(&["fd00::6"])
    );
    assert_eq!(
        ask(LookupFamily::All, "both.test").await,
        ips(&["10.0.0.1", "fd00::1"])
    );
    assert_eq!(ask(LookupFamily::All, "six.test").await, ips(&["fd00::6"]));
    assert_eq!(
        ask(LookupFamily::Auto, "both.test").await,
        ips(&["fd00::1"])
    );
    assert_eq!(
        ask(LookupFamily::V6Only, "both.test").await,
        ips(&["fd00::1"])
    );
    assert_eq!(ask(LookupFamily::V4Only, "six.test").await, ips(&[]));
}

#[tokio::test]
async fn literals_and_localhost_ask_nobody() {
    let dns = TestDns::start().await;
    let resolver = Resolver::new(options(&dns)).unwrap();
    for (host, address) in [
        ("192.0.2.1", "192.0.2.1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("localhost", "127.0.0.1"),
        ("Hello.LOCALHOST", "127.0.0.1"),
    ] {
        let found = resolver.lookup(host).await.unwrap();
        assert_eq!(
            (found.addresses, found.ttl),
            (ips(&[address]), None),
            "{host}"
        );
        assert_eq!(dns.asked(host), 0);
    }
}

#[tokio::test]
async fn the_hosts_file_wins_for_both_families() {
    let dns = TestDns::start().await;
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "10.9.9.9 db.test db\n10.9.9.8 db.test\n").unwrap();
    let options = DnsOptions {
        lookup_family: LookupFamily::All,
        ..options(&dns)
    };
    let resolver = Resolver::with_files(options, "/nowhere".into(), hosts).unwrap();
    dns.set("db.test", Answer::Silence);
    let found = resolver.lookup("db.test").await.unwrap();
    assert_eq!(found.addresses, ips(&["10.9.9.9", "10.9.9.8"]));
    assert_eq!(found.ttl, Some(NOT_FROM_DNS));
    assert_eq!(dns.asked("db.test"), 0);
}

#[test]
fn resolv_conf_is_followed_and_may_be_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resolv.conf");
    std::fs::write(
        &path,
        "nameserver 192.0.2.53\nsearch corp.test\noptions ndots:5\n",
    )
    .unwrap();
    let (config, options) = system(&path).unwrap();
    assert_eq!(config.name_servers()[0].ip, ips(&["192.0.2.53"])[0]);
    assert_eq!((config.search().len(), options.ndots), (1, 5));
    let tcp = over_tcp(config);
    assert_eq!(tcp.name_servers()[0].connections.len(), 1);
    assert_eq!(tcp.search().len(), 1);
    let (none, _) = system(Path::new("/nowhere")).unwrap();
    assert_eq!(none.name_servers()[0].ip, ips(&["127.0.0.1"])[0]);
}

#[tokio::test]
async fn a_name_with_an_underscore_is_a_name() {
    let dns = TestDns::start().await;
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "10.9.9.9 my_host\n").unwrap();
    let resolver = Resolver::with_files(options(&dns), "/nowhere".into(), hosts).unwrap();
    for name in ["my_service", "a_.corp_x.test", "_grpc.test", "XN_Y.test"] {
        let asked = name.to_ascii_lowercase();
        dns.set(&asked, Answer::Addresses(ips(&["10.0.0.1"]), 5));
        let found = resolver.lookup(name).await.unwrap();
        assert_eq!(found.addresses, ips(&["10.0.0.1"]), "{name}");
    }
    let found = resolver.lookup("my_host").await.unwrap();
    assert_eq!(found.addresses, ips(&["10.9.9.9"]));
    dns.set(
        "xn--bcher-kva.test",
        Answer::Addresses(ips(&["10.0.0.2"]), 5),
    );
    let found = resolver.lookup("bücher.test").await.unwrap();
    assert_eq!(found.addresses, ips(&["10.0.0.2"]));
    for name in ["a b", "a..b", "a/b"] {
        let failed = resolver.lookup(name).await.unwrap_err();
        assert!(
            matches!(failed, LookupError::BadName { .. }),
            "{name}: {failed:?}"
        );
    }
}

#[tokio::test]
async fn other_servers_leave_the_search_list_as_it_is() {
    let dns = TestDns::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resolv.conf");
    let name = "db.ns.svc.cluster.test";
    dns.set(name, Answer::Addresses(ips(&["10.0.0.1"]), 5));
    let ask = async |resolv_conf: &str, host: &str| {
        std::fs::write(&path, resolv_conf).unwrap();
        let resolver = Resolver::with_files(options(&dns), path.clone(), "/nowhere".into());
        resolver.unwrap().lookup(host).await.map(|it| it.addresses)
    };
    // As a kubelet writes it, and without any server.
    let search = "search ns.svc.cluster.test svc.cluster.test\noptions ndots:5\n";
    for resolv_conf in [
        search.to_owned(),
        format!("nameserver 192.0.2.53\n{search}"),
    ] {
        for host in ["db", "db.ns"] {
            let found = ask(&resolv_conf, host).await;
            assert_eq!(found.unwrap(), ips(&["10.0.0.1"]), "{resolv_conf}{host}");
        }
    }
    // With ndots:5 the list goes first.
    assert_eq!(dns.asked("db.ns"), 0);
    assert!(ask("search :\n", "db").await.is_err());
    assert_eq!(ask("search :\n", name).await.unwrap(), ips(&["10.0.0.1"]));
}
