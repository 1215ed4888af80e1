//! Certificates, and which requests a connection may carry.

use std::sync::Arc;

use http::{Method, StatusCode};
use postern_common::lifecycle::DrainTiming;
use postern_common::net::listen::ListenError;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::authorizer::Scripted;
use crate::support::client::{Http2, get, read, request2, tls};
use crate::support::proxy::{Authority, Proxy, certificates, config};
use crate::support::soon;
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

/// A ClientHello by hand, as no TLS library of today makes it any more.
fn client_hello(version: [u8; 2], suites: &[u16], versions: &[u8]) -> Vec<u8> {
    fn with_length<const N: usize>(bytes: &[u8]) -> Vec<u8> {
        let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        [&length[4 - N..], bytes].concat()
    }
    let suites: Vec<u8> = suites
        .iter()
        .flat_map(|suite| suite.to_be_bytes())
        .collect();
    let mut extensions = Vec::new();
    let mut extension = |kind: u16, data: &[u8]| {
        extensions.extend(kind.to_be_bytes());
        extensions.extend(with_length::<2>(data));
    };
    // server_name, groups (x25519, P-256), point formats, signature algorithms, versions
    let name = [&[0][..], &with_length::<2>(b"a.corp.test")].concat();
    extension(0, &with_length::<2>(&name));
    extension(10, &with_length::<2>(&[0, 29, 0, 23]));
    extension(11, &[1, 0]);
    extension(13, &with_length::<2>(&[4, 3, 8, 4, 4, 1, 2, 1]));
    if !versions.is_empty() {
        extension(43, &with_length::<1>(versions));
    }
    let mut hello = version.to_vec();
    hello.extend([7; 32]);
    hello.push(0);
    hello.extend(with_length::<2>(&suites));
    hello.extend([1, 0]);
    hello.extend(with_length::<2>(&extensions));
    let handshake = [&[1][..], &with_length::<3>(&hello)].concat();
    [&[22, 3, 1][..], &with_length::<2>(&handshake)].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn s40_old_versions_and_weak_suites_are_refused() {
    let proxy = Proxy::start("routes: []\n", Scripted::allowing()).await;
    // The first byte of the answer: 22 goes on with the handshake, 21 refuses it.
    let answer = async |version, suites: &[u16], versions: &[u8]| {
        let mut stream = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
        let hello = client_hello(version, suites, versions);
        stream.write_all(&hello).await.unwrap();
        soon("an answer", stream.read_u8()).await.unwrap()
    };
    // ECDHE with AES-GCM or ChaCha20 and an ECDSA certificate.
    let strong = [0xc02b, 0xcca9];
    let (tls12, tls11, tls10, ssl3) = ([3, 3], [3, 2], [3, 1], [3, 0]);
    assert_eq!(
        answer(tls12, &strong, &[]).await,
        22,
        "the hello is well made"
    );
    for version in [tls11, tls10, ssl3] {
        assert_eq!(answer(version, &strong, &[]).await, 21, "{version:?}");
        assert_eq!(answer(tls12, &strong, &version).await, 21, "{version:?}");
    }
    for (suite, name) in [
        (0xc009, "ECDHE-ECDSA-AES128-CBC-SHA"),
        (0xc023, "ECDHE-ECDSA-AES128-CBC-SHA256"),
        (0xc008, "ECDHE-ECDSA-3DES"),
        (0xc007, "ECDHE-ECDSA-RC4"),
        (0x009c, "RSA-AES128-GCM, no forward secrecy"),
        (0x002f, "RSA-AES128-CBC"),
        (0xc006, "ECDHE-ECDSA-NULL"),
        (0xc018, "ECDH-anon"),
    ] {
        assert_eq!(answer(tls12, &[suite], &[]).await, 21, "{name}");
    }
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
            postern_proxy::BindError::Listen(ListenError::Taken { key: "address", .. })
        ),
        "{error}"
    );
}
