//! A running proxy with certificates of a throw-away CA.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postern_common::authz::Authorizer;
use postern_common::config::{Config, ProcessSecrets, load_text};
use postern_common::lifecycle::{DrainTiming, Exit, Lifecycle};
use postern_common::rpc::Transport;
use postern_common::rpc::token::TokenKeys;
use postern_common::telemetry::metrics::Metrics;
use postern_proxy::{Deciding, Listeners, Peers, run_on};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;

pub const SHARED: &str = "yM8aAeZc3VOSnmgCcCIKVmz6kSC5YtULfKQr2LDIFeY=";

/// A certificate authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn der(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// Certificate and key, both PEM.
    pub fn issue(&self, names: &[&str]) -> (String, String) {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let params = CertificateParams::new(names).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub fn server(&self, names: &[&str], alpn: &[&str]) -> Arc<rustls::ServerConfig> {
        let (certificate, key) = self.issue(names);
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let provider = postern_common::tls::provider();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// YAML of `certificates`, inline.
pub fn certificates(issued: &[(String, String)]) -> String {
    use base64::Engine as _;
    let text = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
    let mut yaml = String::from("certificates:\n");
    for (certificate, key) in issued {
        yaml += &format!("- cert: {}\n  key: {}\n", text(certificate), text(key));
    }
    yaml
}

pub fn config(added: &str) -> Arc<Config> {
    let text = format!(
        "services: proxy\nauthenticate_service_url: https://auth.corp.test\n\
         authorize_service_url: http://127.0.0.1:1\ndatabroker_service_url: http://127.0.0.1:1\n\
         shared_secret: {SHARED}\ncookie_secret: 1pvXsrWdiTKPnNv3x6ehRzqrOYLM9TMmvE3tKmXQ9vM=\n\
         address: 127.0.0.1:0\n{added}"
    );
    let loaded = load_text(
        Path::new("config.yaml"),
        &text,
        &std::iter::empty::<(&str, &str)>().collect(),
        &ProcessSecrets::default(),
    );
    loaded
        .config
        .unwrap_or_else(|| panic!("{}", loaded.diagnostics))
}

pub struct Proxy {
    pub address: SocketAddr,
    pub redirect: Option<SocketAddr>,
    pub lifecycle: Lifecycle,
    pub config: watch::Sender<Arc<Config>>,
    pub authority: Arc<Authority>,
    pub metrics: Metrics,
    ended: Option<tokio::task::JoinHandle<Result<(), postern_proxy::RunError>>>,
}

impl Proxy {
    /// TLS for `*.corp.test`, and whatever the configuration adds.
    pub async fn start(added: &str, authorizer: Arc<dyn Authorizer>) -> Self {
        let authority = Arc::new(Authority::new());
        let issued = [authority.issue(&["*.corp.test", "corp.test"])];
        let added = format!("{}{added}", certificates(&issued));
        Self::with(
            &config(&added),
            authorizer,
            authority,
            None,
            DrainTiming::immediate(),
        )
    }

    pub async fn start_draining(
        added: &str,
        authorizer: Arc<dyn Authorizer>,
        timing: DrainTiming,
    ) -> Self {
        let authority = Arc::new(Authority::new());
        let issued = [authority.issue(&["*.corp.test"])];
        let added = format!("{}{added}", certificates(&issued));
        Self::with(&config(&added), authorizer, authority, None, timing)
    }

    pub fn with(
        config: &Arc<Config>,
        authorizer: Arc<dyn Authorizer>,
        authority: Arc<Authority>,
        authenticate: Option<axum::Router>,
        timing: DrainTiming,
    ) -> Self {
        let lifecycle = Lifecycle::new(timing);
        let listeners = Listeners::bind(config, 2).unwrap();
        let (address, redirect) = (listeners.address(), listeners.redirect_address());
        let (sender, receiver) = watch::channel(Arc::clone(config));
        let metrics = Metrics::default();
        let peers = Peers {
            authorizer: Deciding::Here(authorizer),
            databroker: Transport::local(tonic::service::Routes::default()),
            keys: TokenKeys::new(config.secrets.shared.clone()),
            authenticate,
            metrics: metrics.clone(),
        };
        let life = lifecycle.clone();
        let starting = life.not_ready(postern_proxy::PART);
        let ended =
            tokio::spawn(async move { run_on(listeners, receiver, peers, &life, starting).await });
        Self {
            address,
            redirect,
            lifecycle,
            config: sender,
            authority,
            metrics,
            ended: Some(ended),
        }
    }

    /// Drains, and returns how the process would have ended.
    pub async fn drained(mut self) -> Exit {
        self.lifecycle.drain();
        let exit = self.lifecycle.run_to_end().await;
        let ended = self.ended.take().unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(10), ended).await;
        ended.expect("proxy ends").unwrap().unwrap();
        exit
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.lifecycle.stop();
    }
}
