use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::certificates::Choice;
use super::*;

/// A certificate authority made for one test.
pub(crate) struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pub(crate) certificate: CertificateDer<'static>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self {
            params,
            key,
            certificate,
        }
    }

    pub(crate) fn issue(&self, names: &[&str], until: (i32, u8, u8)) -> Certificate {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until.0, until.1, until.2);
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Certificate::from_der(vec![certificate.der().clone()], "test", key, "test key").unwrap()
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust::nobody()
            .and(std::slice::from_ref(&self.certificate), "/t/ca.pem")
            .unwrap()
    }
}

pub(crate) fn serving(certificates: &[&Certificate]) -> Arc<SwapCertificates> {
    SwapCertificates::new(set(certificates))
}

fn set(certificates: &[&Certificate]) -> Certificates {
    Certificates::new(
        certificates
            .iter()
            .map(|one| (one.facts.names.as_slice(), Arc::clone(&one.key))),
    )
}

const FAR: (i32, u8, u8) = (2090, 1, 1);

pub(crate) async fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    name: &str,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let _ = TlsAcceptor::from(server).accept(stream).await;
    });
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connected = TlsConnector::from(client).connect(name, stream);
    tokio::time::timeout(Duration::from_secs(10), connected)
        .await
        .unwrap()
}

async fn refused(trust: &Trust, certificate: &Certificate, name: &str) -> String {
    let client = client_config(trust, Alpn::H2, None).unwrap();
    let server = server_config(serving(&[certificate]), Alpn::H2, None).unwrap();
    let error = handshake(client, server, name).await.unwrap_err();
    PeerError::find(&error).unwrap().explain(trust.told())
}

#[tokio::test]
async fn c47_a_refused_certificate_is_explained() {
    let authority = Authority::new("ours");
    let good = authority.issue(&["up.corp.test"], FAR);
    let client = client_config(&authority.trust(), Alpn::H2OrHttp1, None).unwrap();
    let server = server_config(serving(&[&good]), Alpn::H2, None).unwrap();
    let stream = handshake(client, server, "up.corp.test").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));

    let stranger = Authority::new("stranger").trust();
    let told = refused(&stranger, &good, "up.corp.test").await;
    assert_eq!(told, "unknown issuer: not signed by /t/ca.pem");
    let old = authority.issue(&["up.corp.test"], (2021, 3, 4));
    let told = refused(&authority.trust(), &old, "up.corp.test").await;
    assert_eq!(told, "expired on 2021-03-04T00:00:00Z");
    let two = authority.issue(&["a.test", "b.test"], FAR);
    let told = refused(&authority.trust(), &two, "up.corp.test").await;
    assert_eq!(told, "name up.corp.test not among a.test, b.test");
}

#[test]
fn c84_exact_before_wildcard_before_the_first() {
    let authority = Authority::new("ours");
    let app = authority.issue(&["app.corp.test"], FAR);
    let dev = authority.issue(&["*.dev.corp.test", "App.dev.corp.test"], FAR);
    let all = set(&[&app, &dev]);
    let choose = |name| {
        let (key, choice) = all.choose(name, |_| true).unwrap();
        let which = if Arc::ptr_eq(&key, &app.key) {
            "app"
        } else {
            "dev"
        };
        (which, choice)
    };
    assert_eq!(choose(Some("app.corp.test")), ("app", Choice::Exact));
    assert_eq!(choose(Some("APP.corp.test")), ("app", Choice::Exact));
    assert_eq!(choose(Some("x.dev.corp.test")), ("dev", Choice::Wildcard));
    assert_eq!(choose(Some("app.dev.corp.test")), ("dev", Choice::Exact));
    assert_eq!(choose(Some("x.y.dev.corp.test")), ("app", Choice::First));
    assert_eq!(choose(Some("dev.corp.test")), ("app", Choice::First));
    assert_eq!(choose(Some("unknown.test")), ("app", Choice::First));
    assert_eq!(choose(Some("127.0.0.1")), ("app", Choice::First));
    assert_eq!(choose(None), ("app", Choice::First));
    assert!(Certificates::default().choose(None, |_| true).is_none());
}

#[tokio::test]
async fn s43_a_replaced_certificate_is_used_by_the_next_handshake() {
    let authority = Authority::new("ours");
    let (old, new) = (
        authority.issue(&["a.test"], FAR),
        authority.issue(&["a.test"], FAR),
    );
    let shown = serving(&[&old]);
    let server = server_config(shown.clone(), Alpn::H2, None).unwrap();
    let client = client_config(&authority.trust(), Alpn::H2, None).unwrap();
    for (replaced, expected) in [(None, &old), (Some(&new), &new)] {
        if let Some(new) = replaced {
            shown.replace(set(&[new]));
        }
        // A new client each time: a resumed session would not show the certificate again.
        let client = Arc::new((*client).clone());
        let stream = handshake(client, Arc::clone(&server), "a.test")
            .await
            .unwrap();
        let seen = stream.get_ref().1.peer_certificates().unwrap().to_vec();
        assert_eq!(seen, expected.key.cert);
    }
}

#[test]
fn pem_errors_name_file_and_block() {
    let authority = Authority::new("ours");
    let params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let issuer = Issuer::from_params(&authority.params, &authority.key);
    let chain = params.signed_by(&key, &issuer).unwrap().pem();
    let key = key.serialize_pem();

    let loaded = Certificate::from_pem(chain.as_bytes(), "a.pem", key.as_bytes(), "a.key").unwrap();
    assert_eq!(loaded.facts.names, ["a.test"]);
    let refuse = |chain: &str, key: &str| {
        Certificate::from_pem(chain.as_bytes(), "a.pem", key.as_bytes(), "a.key")
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        refuse(&chain, &other.serialize_pem()),
        "the private key in a.key does not belong to the certificate in a.pem"
    );
    assert_eq!(
        refuse(&key, &key),
        "a.pem: no certificate in it; found: private key"
    );
    assert_eq!(
        refuse(&chain, &chain),
        "a.key: no private key in it; found: certificate"
    );
    assert_eq!(
        refuse("", &key),
        "a.pem: no certificate in it; found: nothing"
    );
    let cut = format!("{chain}-----BEGIN CERTIFICATE-----\nAAAA\n");
    assert!(
        refuse(&cut, &key).starts_with("a.pem: block 2 is not readable"),
        "{}",
        refuse(&cut, &key)
    );
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let told = refuse(&format!("{chain}{garbage}"), &key);
    assert!(
        told.starts_with("a.pem: block 2 is no valid certificate"),
        "{told}"
    );
    let locked =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    assert!(refuse(&chain, locked).contains("encrypted"));
}

#[test]
fn nobody_to_trust_is_an_error() {
    let error = client_config(&Trust::nobody(), Alpn::H2, None).unwrap_err();
    assert!(error.to_string().contains("certificate_authority"));
}
