//! TLS towards clients: the certificate by SNI, client certificates, session tickets.

use std::sync::Arc;

use postern_common::config::{Config, DownstreamMtls, MtlsEnforcement, ServerCertificate};
use postern_common::crypto::keys::SecretKey;
use postern_common::tls;
use postern_common::tls::tickets::{SettingsHash, SharedTickets};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};

/// TLS of the public listener for one set of certificates.
#[derive(Debug)]
pub(crate) struct PublicTls {
    pub server: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    client_certificates: ClientCertificates,
    /// Tickets are sealed with them.
    secrets: Vec<SecretKey>,
}

/// What is asked of clients, to tell whether a reload changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ClientCertificates {
    roots: Vec<CertificateDer<'static>>,
    revocation_lists: Vec<Vec<u8>>,
    required: bool,
    codec: postern_common::config::Codec,
}

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("TLS versions and suites do not fit together")]
    Setup(#[source] rustls::Error),
    #[error("downstream_mtls: client certificates cannot be verified")]
    Clients(#[source] tls::TlsError),
}

impl PublicTls {
    /// `certificates` is never empty.
    pub(crate) fn new(
        certificates: &[Arc<ServerCertificate>],
        config: &Config,
    ) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let resolver = Arc::new(Certificates(certificates.to_vec()));
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?;
        let builder = match &config.downstream_mtls {
            None => builder.with_no_client_auth(),
            Some(mtls) => builder.with_client_cert_verifier(client_verifier(mtls, &provider)?),
        };
        let mut server = builder.with_cert_resolver(Arc::clone(&resolver) as _);
        server.alpn_protocols = match config.http.codec {
            postern_common::config::Codec::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            postern_common::config::Codec::Http1 => vec![b"http/1.1".to_vec()],
            postern_common::config::Codec::Http2 => vec![b"h2".to_vec()],
        };
        // A session never resumes across certificates or client-certificate rules. One ticket a
        // handshake: with none, clients wait for a delayed acknowledgement.
        let client_certificates = ClientCertificates::of(config);
        let settings = settings(certificates, &client_certificates);
        server.ticketer = Arc::new(SharedTickets::new(&config.secrets.shared, settings));
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 1;
        Ok(Self {
            server: Arc::new(server),
            certificates: resolver,
            client_certificates,
            secrets: config.secrets.shared.clone(),
        })
    }

    /// Whether this is already what a configuration asks for.
    pub(crate) fn serves(&self, certificates: &[Arc<ServerCertificate>], config: &Config) -> bool {
        let same = |(ours, theirs): (&Arc<ServerCertificate>, &Arc<ServerCertificate>)| {
            Arc::ptr_eq(ours, theirs) || ours.key.cert == theirs.key.cert
        };
        self.certificates.0.len() == certificates.len()
            && self.certificates.0.iter().zip(certificates).all(same)
            && self.client_certificates == ClientCertificates::of(config)
            && self.secrets == config.secrets.shared
    }

    /// Whether a connection that was opened for `sni` may carry requests for `host`: the same
    /// certificate answers for both (RFC 9110 7.4, RFC 9113 9.1.2).
    pub(crate) fn may_carry(&self, sni: Option<&str>, host: &str) -> bool {
        let Some(sni) = sni else {
            return true;
        };
        if sni.eq_ignore_ascii_case(host) {
            return true;
        }
        let (opened, asked) = (
            self.certificates.choose(Some(sni)),
            self.certificates.choose(Some(host)),
        );
        match (opened, asked) {
            (Some(opened), Some(asked)) => Arc::ptr_eq(opened, asked),
            _ => false,
        }
    }
}

impl ClientCertificates {
    fn of(config: &Config) -> Self {
        let mtls = config.downstream_mtls.as_ref();
        Self {
            roots: mtls.map(|mtls| mtls.roots.clone()).unwrap_or_default(),
            revocation_lists: mtls
                .map(|mtls| mtls.revocation_lists.clone())
                .unwrap_or_default(),
            required: mtls.is_some_and(|m| m.enforcement == MtlsEnforcement::RejectConnection),
            codec: config.http.codec,
        }
    }
}

/// What tells listeners apart between which no session resumes.
fn settings(certificates: &[Arc<ServerCertificate>], clients: &ClientCertificates) -> SettingsHash {
    let mut parts: Vec<&[u8]> = Vec::new();
    for certificate in certificates {
        parts.push(b"certificate");
        parts.extend(certificate.key.cert.iter().map(AsRef::<[u8]>::as_ref));
    }
    parts.push(b"roots");
    parts.extend(clients.roots.iter().map(AsRef::<[u8]>::as_ref));
    parts.push(b"revocation lists");
    parts.extend(clients.revocation_lists.iter().map(Vec::as_slice));
    let rule = if clients.required {
        "required"
    } else {
        "judged"
    };
    parts.push(rule.as_bytes());
    SettingsHash::of(parts)
}

/// Exact names before wildcards before the first one (C84).
#[derive(Debug)]
struct Certificates(Vec<Arc<ServerCertificate>>);

impl Certificates {
    fn choose(&self, name: Option<&str>) -> Option<&Arc<ServerCertificate>> {
        let by_name = name.and_then(|name| {
            let name = name.trim_end_matches('.');
            let exact = |c: &&Arc<ServerCertificate>| {
                c.names.iter().any(|known| known.eq_ignore_ascii_case(name))
            };
            let wildcard = |c: &&Arc<ServerCertificate>| {
                c.names.iter().any(|pattern| wildcard_covers(pattern, name))
            };
            self.0
                .iter()
                .find(exact)
                .or_else(|| self.0.iter().find(wildcard))
        });
        by_name.or_else(|| self.0.first())
    }
}

/// `*` in a certificate stands for exactly one label (RFC 9525 6.3).
fn wildcard_covers(pattern: &str, name: &str) -> bool {
    let Some(suffix) = pattern.strip_prefix("*.") else {
        return false;
    };
    name.split_once('.')
        .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(suffix))
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let chosen = self.choose(hello.server_name())?;
        tracing::debug!(
            tls_sni_hostname = hello.server_name(),
            certificate = chosen.origin,
            "certificate chosen"
        );
        Some(Arc::clone(&chosen.key))
    }
}

fn client_verifier(
    mtls: &DownstreamMtls,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(mtls.roots.iter().cloned());
    let hints = roots.subjects();
    if mtls.enforcement != MtlsEnforcement::RejectConnection {
        return Ok(Arc::new(Judged {
            provider: Arc::clone(provider),
            hints,
        }));
    }
    tls::require_clients_of(&mtls.roots, &mtls.revocation_lists).map_err(TlsError::Clients)
}

/// Any client certificate, or none: authorize judges it, with the request in view. The handshake
/// only proves that the client has the key.
#[derive(Debug)]
struct Judged {
    provider: Arc<CryptoProvider>,
    hints: Vec<DistinguishedName>,
}

impl ClientCertVerifier for Judged {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[&str]) -> Arc<ServerCertificate> {
        let key = rcgen::generate_simple_self_signed(
            names.iter().map(ToString::to_string).collect::<Vec<_>>(),
        )
        .unwrap();
        let private = aws_lc_rs::sign::any_supported_type(
            &rustls::pki_types::PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into()),
        )
        .unwrap();
        Arc::new(ServerCertificate {
            key: Arc::new(CertifiedKey::new(vec![key.cert.der().clone()], private)),
            names: names.iter().map(ToString::to_string).collect(),
            self_signed: false,
            not_after: 0,
            origin: names.join(","),
        })
    }

    fn certificates() -> Certificates {
        Certificates(vec![
            certificate(&["first.test"]),
            certificate(&["*.dev.corp.test"]),
            certificate(&["x.dev.corp.test"]),
            certificate(&["app.corp.test"]),
        ])
    }

    #[test]
    fn c84_exact_then_wildcard_then_the_first() {
        let certificates = certificates();
        let chosen = |name| certificates.choose(name).unwrap().origin.clone();
        assert_eq!(chosen(Some("app.corp.test")), "app.corp.test");
        assert_eq!(chosen(Some("APP.corp.test.")), "app.corp.test");
        assert_eq!(chosen(Some("y.dev.corp.test")), "*.dev.corp.test");
        assert_eq!(chosen(Some("x.dev.corp.test")), "x.dev.corp.test");
        assert_eq!(chosen(Some("x.y.dev.corp.test")), "first.test");
        assert_eq!(chosen(Some("unknown.test")), "first.test");
        assert_eq!(chosen(None), "first.test");
    }

    fn config(shared: u8, mtls: Option<DownstreamMtls>) -> Arc<Config> {
        let secret = |byte| SecretKey::from_bytes([byte; 32]).to_base64();
        let text = format!(
            "authenticate_service_url: https://auth.test\ninsecure_server: true\n\
             shared_secret: {}\ncookie_secret: {}\n",
            secret(shared),
            secret(99)
        );
        let loaded = postern_common::config::load_text(
            std::path::Path::new("config.yaml"),
            &text,
            &postern_common::config::source::Environment::default(),
            &postern_common::config::ProcessSecrets::default(),
        );
        let mut config = Arc::into_inner(loaded.config.unwrap()).unwrap();
        config.downstream_mtls = mtls;
        Arc::new(config)
    }

    fn mtls(root: &ServerCertificate, enforcement: MtlsEnforcement) -> DownstreamMtls {
        DownstreamMtls {
            roots: root.key.cert.clone(),
            revocation_lists: Vec::new(),
            enforcement,
            subject_alt_names: Vec::new(),
            max_depth: Some(1),
        }
    }

    /// A client that keeps its tickets and meets one server after the other.
    struct Client(Arc<rustls::ClientConfig>);

    impl Client {
        fn new(trusted: &ServerCertificate) -> Self {
            let mut roots = RootCertStore::empty();
            roots.add(trusted.key.cert[0].clone()).unwrap();
            let config = rustls::ClientConfig::builder_with_provider(Arc::new(
                aws_lc_rs::default_provider(),
            ))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
            Self(Arc::new(config))
        }

        fn resumes_at(&self, server: &PublicTls) -> bool {
            let name = rustls::pki_types::ServerName::try_from("app.test").unwrap();
            let mut client = rustls::ClientConnection::new(Arc::clone(&self.0), name).unwrap();
            let mut server = rustls::ServerConnection::new(Arc::clone(&server.server)).unwrap();
            let mut wire = Vec::new();
            while client.wants_write() || server.wants_write() {
                while client.wants_write() {
                    client.write_tls(&mut wire).unwrap();
                }
                let mut rest = wire.as_slice();
                while !rest.is_empty() {
                    server.read_tls(&mut rest).unwrap();
                    server.process_new_packets().unwrap();
                }
                wire.clear();
                while server.wants_write() {
                    server.write_tls(&mut wire).unwrap();
                }
                let mut rest = wire.as_slice();
                while !rest.is_empty() {
                    client.read_tls(&mut rest).unwrap();
                    client.process_new_packets().unwrap();
                }
                wire.clear();
            }
            client.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
        }
    }

    #[test]
    fn s40_a_session_resumes_at_another_proxy_and_never_across_settings() {
        let shown = [certificate(&["app.test"])];
        let proxy = |shared, mtls| PublicTls::new(&shown, &config(shared, mtls)).unwrap();
        let (a, b) = (proxy(1, None), proxy(1, None));
        let client = Client::new(&shown[0]);
        assert!(!client.resumes_at(&a));
        assert!(client.resumes_at(&b));
        assert!(client.resumes_at(&a));

        let judged = MtlsEnforcement::Policy;
        let other = [certificate(&["app.test"])];
        for different in [
            proxy(2, None),
            proxy(1, Some(mtls(&shown[0], judged))),
            proxy(1, Some(mtls(&other[0], judged))),
        ] {
            let client = Client::new(&shown[0]);
            assert!(!client.resumes_at(&a));
            assert!(!client.resumes_at(&different));
        }
        let renewed = PublicTls::new(&other, &config(1, None)).unwrap();
        assert!(!renewed.serves(&shown, &config(1, None)));
        assert!(
            !a.serves(&shown, &config(2, None)),
            "tickets follow the secret"
        );
        assert!(a.serves(&shown, &config(1, None)));
    }
}
