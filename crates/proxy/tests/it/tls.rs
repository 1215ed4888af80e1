//! Certificates, and which requests a connection may carry.

use std::sync::Arc;

use http::{Method, StatusCode};
use postern_common::lifecycle::DrainTiming;

use crate::support::authorizer::Scripted;
use crate::support::client::{Http2, get, read, request2, tls};
use crate::support::proxy::{Authority, Proxy, certificates, config};
use crate::support::upstream::Upstream;

#[tokio::test(flavor = "multi_thread")]
async fn c42_s27_a_connection_carries_what_its_certificate_covers() {
    let upstream = Upstream::http().await;
    let to = upstream.url();
    let authority = Arc::new(Authority::new());
    let issued = [
        authority.issue(&["*.corp.test"]),
        authority.issue(&["c.other.test"]),
    ];
    let added = format!(
        "{}routes:\n- {{from: 'https://a.corp.test', to: '{to}'}}\n- {{from: 'https://b.corp.test', to: '{to}'}}\n- {{from: 'https://c.other.test', to: '{to}'}}\n",
        certificates(&issued)
    );
    let authorizer = Scripted::allowing();
    let proxy = Proxy::with(
        &config(&added),
        authorizer,
        authority,
        None,
        DrainTiming::immediate(),
    );
    let mut client = Http2::open(&proxy, "a.corp.test").await;
    let mut ask = async |host: &str| {
        let response = client
            .send(request2(Method::GET, host, "/", &[]))
            .await
            .unwrap();
        read(response).await.unwrap().status
    };
    assert_eq!(ask("a.corp.test").await, StatusCode::OK);
    assert_eq!(ask("b.corp.test").await, StatusCode::OK);
    assert_eq!(ask("c.other.test").await, StatusCode::MISDIRECTED_REQUEST);
    assert_eq!(
        get(&proxy, "c.other.test", "/", &[]).await.status,
        StatusCode::OK
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn s43_a_renewed_certificate_serves_the_next_handshake() {
    let proxy = Proxy::start("routes: []\n", Scripted::allowing()).await;
    let leaf = async |proxy: &Proxy| {
        let stream = tls(proxy, "a.corp.test", "http/1.1").await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let before = leaf(&proxy).await;
    let renewed = [proxy.authority.issue(&["*.corp.test"])];
    proxy
        .config
        .send_replace(config(&format!("{}routes: []\n", certificates(&renewed))));
    let mut after = leaf(&proxy).await;
    for _ in 0..200 {
        if after != before {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        after = leaf(&proxy).await;
    }
    panic!("still the old certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn c84_names_choose_certificates() {
    let authority = Arc::new(Authority::new());
    let issued = [
        authority.issue(&["first.test"]),
        authority.issue(&["app.corp.test"]),
        authority.issue(&["*.dev.corp.test"]),
    ];
    let added = format!("{}routes: []\n", certificates(&issued));
    let proxy = Proxy::with(
        &config(&added),
        Scripted::allowing(),
        authority,
        None,
        DrainTiming::immediate(),
    );
    for good in ["app.corp.test", "x.dev.corp.test", "first.test"] {
        assert!(tls(&proxy, good, "h2").await.is_ok(), "{good}");
    }
    // The first one is shown, and the client sees that it is for another name.
    for other in ["x.y.dev.corp.test", "unknown.test", "127.0.0.1"] {
        let error = tls(&proxy, other, "h2").await.unwrap_err();
        assert!(error.to_string().contains("first.test"), "{other}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = config(&format!("insecure_server: true\nroutes: []\n# {address}\n"));
    let mut other = Arc::try_unwrap(config).unwrap();
    other.listen.public = Some(address);
    let error = postern_proxy::Listeners::bind(&other, 2).unwrap_err();
    assert!(
        matches!(
            error,
            postern_proxy::BindError::Taken { key: "address", .. }
        ),
        "{error}"
    );
}
