//! Postern with two people signed in: one whom the policy lets pass, and one whom it does not.

use std::fmt::Write as _;

use postern_tests::cluster::{Cluster, Layout, Plan};
use postern_tests::databroker::handle_of;
use postern_tests::form::Form;
use postern_tests::person::Person;

use crate::client::Connector;
use crate::peers::Ports;
use crate::subject::{Subject, Who};

/// Every request is decided by the domain of the address and by a claim, and gets an assertion and
/// headers with claims. Peers log nothing, so it does not either.
const CONFIG: &str = "
log_level: warn
ext_authz_allow_unauthenticated: true
pass_identity_headers: true
jwt_claims_headers: [email, groups]
routes:
- from: 'https://app.corp.test:{PORT}'
  path: /ws
  to: 'http://127.0.0.1:{ECHO}'
  allow_websockets: true
  policy: &policy [{allow: {and: [{domain: {is: corp.test}}, {claim/groups: eng}]}}]
- from: 'https://app.corp.test:{PORT}'
  path: /upload
  to: 'http://127.0.0.1:{ECHO}'
  timeout: 0s
  policy: *policy
- from: 'https://app.corp.test:{PORT}'
  to: 'http://127.0.0.1:{ASSERTED}'
  timeout: 0s
  policy: *policy
";

/// That of the routes above.
const POLICY: &str = "[{allow: {and: [{domain: {is: corp.test}}, {claim/groups: eng}]}}]";

pub struct Postern {
    pub cluster: Cluster,
    pub authority: String,
    /// `Cookie` of ann, of the group eng.
    pub allowed: String,
    /// `Cookie` of bob, who is not.
    pub refused: String,
    layout: Layout,
}

pub fn config(ports: Ports) -> String {
    CONFIG
        .replace("{ECHO}", &ports.echo.to_string())
        .replace("{ASSERTED}", &ports.asserted.to_string())
}

/// The same for one route, with settings and other routes before it.
pub fn with_routes(ports: Ports, settings: &str, routes: &str) -> String {
    let text = config(ports);
    let head = text
        .split(
            "routes:
",
        )
        .next()
        .unwrap_or_default();
    let last = guarded(
        ports,
        ["'https://app.corp.test:{PORT}'".to_owned()].into_iter(),
    );
    format!(
        "{head}{settings}routes:
{routes}{last}"
    )
}

/// So many more routes as that of [`with_routes`] is, each with a host of its own.
pub fn hosts(ports: Ports, count: usize) -> String {
    let from = |number| format!("'https://app{number}.corp.test:{{PORT}}'");
    guarded(ports, (0..count).map(from))
}

/// Routes with the usual policy, each with a `from` and whatever else stands behind it.
pub fn guarded(ports: Ports, from: impl Iterator<Item = String>) -> String {
    let (to, mut text) = (ports.asserted, String::new());
    for from in from {
        writeln!(
            text,
            "- {{from: {from}, to: 'http://127.0.0.1:{to}', policy: {POLICY}}}"
        )
        .expect("text grows");
    }
    text
}

impl Postern {
    pub async fn start(layout: Layout, issuer: &str, ports: Ports) -> Self {
        Self::start_with(layout, issuer, config(ports)).await
    }

    pub async fn start_with(layout: Layout, issuer: &str, config: String) -> Self {
        let cluster = Cluster::start(Plan {
            layout,
            provider: issuer.to_owned(),
            config,
            names: Vec::new(),
        })
        .await;
        Self {
            allowed: sign_in(&cluster, "app", "ann").await,
            refused: sign_in(&cluster, "app", "bob").await,
            authority: format!("app.corp.test:{}", cluster.port),
            layout,
            cluster,
        }
    }

    /// As one of those who are measured.
    pub fn subject(&self) -> Subject {
        let (who, names): (_, &[_]) = match self.layout {
            Layout::AllInOne => (Who::AllInOne, &["postern"]),
            Layout::Split => (Who::Split, &["proxy", "authorize"]),
            Layout::Fleet => (
                Who::Split,
                &["proxy-1", "proxy-2", "authorize-1", "authorize-2"],
            ),
        };
        Subject {
            who,
            port: self.cluster.port,
            authority: self.authority.clone(),
            cookie: self.allowed.clone(),
            refused: Some(self.refused.clone()),
            processes: names
                .iter()
                .map(|name| (*name, self.cluster.process_id(name)))
                .collect(),
        }
    }

    /// A client that trusts its certificate.
    pub fn connector(&self) -> Connector {
        Connector::new(self.cluster.site.authority())
    }
}

/// Signs in at the demo's provider to open a host; the cookie that this leaves.
pub async fn sign_in(cluster: &Cluster, host: &str, name: &str) -> String {
    let person = cluster.browser();
    let url = cluster.url(host, "/");
    let page = last(&person, &url).await;
    let chosen = Form::of(&page).send(&person, &[("person", name)]).await;
    let next = chosen.location().expect("the provider sends people back");
    last(&person, next.as_str()).await;
    let host = format!("{host}.corp.test");
    let _handle = handle_of(&person, &host);
    let cookies = person.cookies(&host);
    format!("_pomerium={}", cookies["_pomerium"])
}

async fn last(person: &Person, url: &str) -> postern_tests::person::Answer {
    person.follow(url).await.pop().expect("an answer")
}
