//! Everything that is measured, started and signed in.

use postern_tests::cluster::Layout;
use postern_tests::ports;
use postern_tests::site::{Server, Site};
use postern_tests::world::{honest, provider_at};

use crate::client::Connector;
use crate::peers::{self, Peers, Ports};
use crate::postern::Postern;
use crate::subject::{Subject, Who};
use crate::{checks, echo};

pub struct Stage {
    pub subjects: Vec<Subject>,
    /// Trusts the certificates of the peers.
    pub issuer: String,
    pub ports: Ports,
    pub all_in_one: Postern,
    pub split: Postern,
    pub peers: Peers,
    /// Of the peers, and of scratch files. Dropped after everything that runs in it.
    pub site: Site,
    _echo: Server,
    _provider: Server,
}

impl Stage {
    pub async fn set() -> Self {
        let issuer = format!("http://localhost:{}", ports::row(1));
        let provider = provider_at(&issuer, honest(&issuer)).await;
        let echo = echo::start().await;
        let site = Site::new();
        let ports = Ports::free(echo.address.port());
        let upstream = peers::start_upstream(&site, ports).await;
        let all_in_one = Postern::start(Layout::AllInOne, &issuer, ports).await;
        let split = Postern::start(Layout::Split, &issuer, ports).await;
        let authorize = split.cluster.serves("authorize").port();
        let peers = peers::start(&site, ports, authorize, upstream).await;
        let mut stage = Self {
            subjects: Vec::new(),
            issuer,
            ports,
            all_in_one,
            split,
            peers,
            site,
            _echo: echo,
            _provider: provider,
        };
        stage.subjects = stage.subjects();
        for subject in &stage.subjects {
            checks::answers(&stage.connector(subject.who), subject);
        }
        stage
    }

    /// A client that trusts the certificate of a subject.
    pub fn connector(&self, who: Who) -> Connector {
        Connector::new(match who {
            Who::AllInOne => self.all_in_one.cluster.site.authority(),
            Who::Split => self.split.cluster.site.authority(),
            _ => self.site.authority(),
        })
    }

    fn subjects(&self) -> Vec<Subject> {
        let (peers, ports) = (&self.peers, self.ports);
        let peer = |who, port, processes| Subject {
            who,
            port,
            authority: self.split.authority.clone(),
            cookie: self.split.allowed.clone(),
            refused: None,
            processes,
        };
        let nginx = || vec![("nginx", peers.nginx.id())];
        let envoy = ("envoy", peers.envoy.id());
        let authorize = ("authorize", self.split.cluster.process_id("authorize"));
        vec![
            peer(Who::Nginx, ports.nginx, nginx()),
            peer(Who::NginxAuth, ports.nginx_auth, nginx()),
            peer(
                Who::Haproxy,
                ports.haproxy,
                vec![("haproxy", peers.haproxy.id())],
            ),
            peer(Who::Envoy, ports.envoy, vec![envoy]),
            peer(
                Who::EnvoyYes,
                ports.envoy_yes,
                vec![envoy, ("authorizer", peers.always_yes.id())],
            ),
            peer(
                Who::EnvoyPostern,
                ports.envoy_postern,
                vec![envoy, authorize],
            ),
            self.all_in_one.subject(),
            self.split.subject(),
        ]
    }
}
