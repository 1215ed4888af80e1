//! The identity provider: reachable, itself, and willing to take our requests.

use std::collections::BTreeSet;

use postern_common::config::Config;
use postern_common::net::connect::ClientTls;
use postern_common::tls::{self, Alpn};
use postern_identity::{HttpClient, ProviderFault, ProviderSettings, default_url, examine};
use rustls::pki_types::ServerName;
use url::Url;

use super::code;
use super::finding::{Cause, Check, Finding};
use super::reach::reach;
use super::site::{Site, clock};

/// Clients of routes are asked about too, but not without end.
const MAX_CLIENTS: usize = 32;

pub async fn check(site: &Site) -> Vec<Finding> {
    let mut known = BTreeSet::new();
    let mut settings = ProviderSettings::all(&site.config);
    settings.retain(|settings| known.insert(settings.id.clone()));
    let Some(first) = settings.first() else {
        return Vec::new();
    };
    let url = first.url.as_deref().or(default_url(first.kind));
    let url = url.unwrap_or_default().to_owned();
    let url = url.as_str();
    if let Some(finding) = unreachable(site, url).await {
        return vec![finding];
    }
    let http = HttpClient::from(site.client.clone());
    let callback = callback(&site.config);
    let asking = settings.into_iter().take(MAX_CLIENTS).map(|settings| {
        let (http, callback) = (&http, &callback);
        async move {
            let client = settings.client_id.clone();
            (client, examine(settings, http, callback).await)
        }
    });
    let mut findings = Vec::new();
    let mut clocks = None;
    for (client, examined) in futures::future::join_all(asking).await {
        clocks = clocks.or(examined.clock);
        if examined.faults.is_empty() {
            let message = format!("answers, and knows the client {client}");
            findings.push(Finding::ok(Check::Provider, url, message).key("idp_provider_url"));
        }
        for fault in examined.faults {
            let finding = told(url, &client, &fault);
            // What is wrong with the provider is wrong for each client.
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
    }
    findings.extend(clock(Check::Provider, url, clocks).map(|it| it.key("idp_provider_url")));
    findings
}

fn callback(config: &Config) -> Url {
    let mut url = config.urls.authenticate.clone();
    url.set_path("/oauth2/callback");
    url
}

/// Name, TCP and TLS, told apart.
async fn unreachable(site: &Site, url: &str) -> Option<Finding> {
    let parsed = Url::parse(url).ok()?;
    let host = parsed.host_str()?;
    let tls = match parsed.scheme() {
        "https" => Some(ClientTls {
            config: tls::client_config(&site.trust, Alpn::H2OrHttp1, None).ok()?,
            name: ServerName::try_from(host.to_owned()).ok()?,
        }),
        _ => None,
    };
    let port = parsed.port_or_known_default()?;
    let cause = match reach(site, host, port, tls.as_ref()).await {
        Err(error) => Cause::from(&error),
        Ok(reached) => {
            let mut failed = None;
            for (_, stream) in reached {
                match stream {
                    Ok(_) => return None,
                    Err(error) => failed = Some(Cause::from(&error)),
                }
            }
            failed?
        }
    };
    Some(Finding::error(Check::Provider, url, cause).key("idp_provider_url"))
}

fn told(url: &str, client: &str, fault: &ProviderFault) -> Finding {
    let finding = |code, key, help: &'static str| {
        let cause = Cause::new(code, fault.to_string()).help(help);
        Finding::error(Check::Provider, url, cause).key(key)
    };
    match fault {
        ProviderFault::Settings(_) => finding(
            code::PROVIDER_DOCUMENT,
            "idp_provider",
            "set all of `idp_provider`, `idp_provider_url`, `idp_client_id` and `idp_client_secret`",
        ),
        ProviderFault::Document(_) => finding(
            code::PROVIDER_DOCUMENT,
            "idp_provider_url",
            "set `idp_provider_url` to the issuer, letter by letter, under which \
             /.well-known/openid-configuration lies",
        ),
        ProviderFault::Keys(_) | ProviderFault::NoKeys => finding(
            code::PROVIDER_KEYS,
            "idp_provider_url",
            "let the provider publish RSA (2048 bits or more), P-256, P-384 or Ed25519 keys",
        ),
        ProviderFault::SignInPage { .. } => finding(
            code::PROVIDER_REFUSES_SIGN_IN,
            "idp_client_id",
            "register the redirect URI, which is `authenticate_service_url` with the path \
             /oauth2/callback, and the scopes of `idp_scopes` for this client",
        ),
        ProviderFault::Client(_) => {
            let cause = Cause::new(
                code::PROVIDER_REJECTS_CLIENT,
                format!("client {client}: {fault}"),
            )
            .help("compare `idp_client_id` and `idp_client_secret` with the registration");
            Finding::error(Check::Provider, url, cause).key("idp_client_secret")
        }
        ProviderFault::Endpoint(_) => finding(
            code::PROVIDER_UNREACHABLE,
            "idp_provider_url",
            "the provider has trouble, or what its document names cannot be reached from here",
        ),
    }
}
