//! The usual surroundings: a cluster, the demo's provider with its three people, the sample
//! application, and routes to it.

use std::sync::Arc;

use axum::Router;
use postern::demo::idp::{self, DemoIdp, Redirects};
use postern::demo::sample::{self, Published, PublishedKeys};
use postern_common::tls::Trust;
use tokio::net::TcpListener;
use url::Url;

use crate::cluster::{Cluster, Layout, Plan};
use crate::form::Form;
use crate::person::{Answer, Person};
use crate::ports;
use crate::site::{Server, Site};

/// `app`: everybody who is signed in. `eng`: the group eng. `open`: everybody.
const ROUTES: &str = "
pass_identity_headers: true
jwt_claims_headers: [email, groups]
routes:
- {from: 'https://app.corp.test:{PORT}', to: '{APP}', allow_any_authenticated_user: true, allow_websockets: true}
- {from: 'https://eng.corp.test:{PORT}', to: '{APP}', policy: [{allow: {and: [{claim/groups: eng}]}}]}
- {from: 'https://open.corp.test:{PORT}', to: '{APP}', allow_public_unauthenticated_access: true}
";

pub struct World {
    pub cluster: Cluster,
    /// `None` while it is down.
    pub provider: Option<Server>,
    pub issuer: String,
    pub application: Server,
}

/// Makes a provider for an issuer.
pub type MakeProvider = Box<dyn FnOnce(&str) -> Router + Send>;

/// What differs from the usual surroundings.
pub struct Setting {
    pub layout: Layout,
    /// YAML beside the routes.
    pub config: String,
    /// Entries after the usual routes.
    pub routes: String,
    /// Of a fleet: names on this machine that its name server knows from the start.
    pub names: Vec<String>,
    /// Without it there is no provider at the start.
    pub provider: Option<MakeProvider>,
}

impl Setting {
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            config: String::new(),
            routes: String::new(),
            names: Vec::new(),
            provider: Some(Box::new(honest)),
        }
    }

    pub fn config(mut self, text: impl Into<String>) -> Self {
        self.config = text.into();
        self
    }

    pub fn names(mut self, names: &[&str]) -> Self {
        self.names = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    pub fn routes(mut self, text: impl Into<String>) -> Self {
        self.routes = text.into();
        self
    }
}

/// The demo's provider as it is.
pub fn honest(issuer: &str) -> Router {
    idp::router(DemoIdp::new(issuer, Redirects::Any))
}

/// What the sample application says that it saw under a header's name.
pub fn header_seen(seen: &serde_json::Value, name: &str) -> Option<String> {
    seen["headers"]
        .as_array()
        .expect("the sample application lists headers")
        .iter()
        .find(|pair| pair[0] == name)
        .and_then(|pair| pair[1].as_str())
        .map(str::to_owned)
}

impl World {
    /// `config`: YAML beside the routes.
    pub async fn start(layout: Layout, config: &str) -> Self {
        Self::start_with(Setting::new(layout).config(config)).await
    }

    pub async fn start_with(setting: Setting) -> Self {
        let issuer = format!("http://localhost:{}", ports::row(1));
        let provider = match setting.provider {
            Some(make) => Some(provider_at(&issuer, make(&issuer)).await),
            None => None,
        };
        let site = Site::new();
        // The application learns where keys are published only once ports are known.
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let application = format!("http://{}", listener.local_addr().expect("an address"));
        let plan = Plan {
            layout: setting.layout,
            names: setting.names,
            provider: issuer.clone(),
            config: format!(
                "{}{}{}",
                setting.config,
                ROUTES.replace("{APP}", &application),
                setting.routes
            ),
        };
        let cluster = Cluster::start_on(site, plan).await;
        let trust = Trust::nobody()
            .and(&cluster.site.authority(), "the test's authority")
            .expect("an authority");
        let names = ["app", "eng", "open"].map(|name| Published {
            audience: format!("{name}.corp.test"),
            // The name resolves nowhere; the certificate is for localhost too.
            url: format!(
                "https://localhost:{}/.well-known/pomerium/jwks.json",
                cluster.port
            ),
        });
        let keys = PublishedKeys::new(&names, &trust).expect("keys");
        let application = Server::on(listener, sample::router(Arc::new(keys)));
        Self {
            cluster,
            provider,
            issuer,
            application,
        }
    }

    /// Opens `url`, picks `name` at the provider and follows the way back.
    pub async fn sign_in(&self, person: &Person, url: &str, name: &str) -> Answer {
        let page = sign_in(&self.issuer, person, url, name).await;
        page.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Picks `name` on the provider's page; where that leads.
    pub async fn choose(&self, person: &Person, page: &Answer, name: &str) -> Url {
        let next = choose(person, page, name).await;
        next.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Presses the button on the user's own page and follows to the end.
    pub async fn sign_out(&self, person: &Person) -> Answer {
        let page = person.get(&self.cluster.url("app", "/.pomerium/")).await;
        let answer = Form::of(&page).send(person, &[]).await;
        match answer.location() {
            Some(next) => person.follow(next.as_str()).await.pop().expect("an answer"),
            None => answer,
        }
    }
}

/// Opens `url`, picks `name` at the provider `issuer` and follows the way back.
pub async fn sign_in(
    issuer: &str,
    person: &Person,
    url: &str,
    name: &str,
) -> Result<Answer, String> {
    let last = |mut answers: Vec<Answer>| answers.pop().ok_or("no answer");
    let page = last(person.try_follow(url).await?)?;
    if !page.url.as_str().starts_with(issuer) {
        return Ok(page);
    }
    let next = choose(person, &page, name).await?;
    Ok(last(person.try_follow(next.as_str()).await?)?)
}

async fn choose(person: &Person, page: &Answer, name: &str) -> Result<Url, String> {
    let fields = [("person", name)];
    let chosen = Form::of(page).try_send(person, &fields).await?;
    chosen
        .location()
        .ok_or_else(|| format!("the provider does not send {name} back: {}", chosen.text()))
}

/// Serves `router` where `issuer` says.
pub async fn provider_at(issuer: &str, router: Router) -> Server {
    let port = Url::parse(issuer)
        .ok()
        .and_then(|url| url.port())
        .expect("an issuer with a port");
    let listener = TcpListener::bind(("127.0.0.1", port))
        .await
        .expect("the provider's port is free");
    Server::on(listener, router)
}
