//! Postern with two people signed in: one whom the policy lets pass, and one whom it does not.

use postern_tests::cluster::{Cluster, Layout, Plan};
use postern_tests::databroker::handle_of;
use postern_tests::form::Form;
use postern_tests::person::Person;

use crate::peers::Ports;

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

pub struct Postern {
    pub cluster: Cluster,
    pub authority: String,
    /// `Cookie` of ann, of the group eng.
    pub allowed: String,
    /// `Cookie` of bob, who is not.
    pub refused: String,
}

pub fn config(ports: Ports) -> String {
    CONFIG
        .replace("{ECHO}", &ports.echo.to_string())
        .replace("{ASSERTED}", &ports.asserted.to_string())
}

impl Postern {
    pub async fn start(layout: Layout, issuer: &str, ports: Ports) -> Self {
        let cluster = Cluster::start(Plan {
            layout,
            provider: issuer.to_owned(),
            config: config(ports),
            names: Vec::new(),
        })
        .await;
        Self {
            allowed: sign_in(&cluster, "ann").await,
            refused: sign_in(&cluster, "bob").await,
            authority: format!("app.corp.test:{}", cluster.port),
            cluster,
        }
    }
}

/// Signs in at the demo's provider; the cookie that this leaves.
async fn sign_in(cluster: &Cluster, name: &str) -> String {
    let person = cluster.browser();
    let url = cluster.url("app", "/");
    let page = last(&person, &url).await;
    let chosen = Form::of(&page).send(&person, &[("person", name)]).await;
    let next = chosen.location().expect("the provider sends people back");
    last(&person, next.as_str()).await;
    let _handle = handle_of(&person, "app.corp.test");
    let cookies = person.cookies("app.corp.test");
    format!("_pomerium={}", cookies["_pomerium"])
}

async fn last(person: &Person, url: &str) -> postern_tests::person::Answer {
    person.follow(url).await.pop().expect("an answer")
}
