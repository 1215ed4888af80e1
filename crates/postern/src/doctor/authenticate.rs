//! authenticate as the proxies reach it: its answers, its secret, its clock.

use std::net::SocketAddr;

use http::{Method, StatusCode};
use jiff::Timestamp;
use postern_common::net::{ConnectError, Stream};
use postern_common::rpc::token;
use postern_proxy::examine::authenticate_tls;
use url::Url;

use super::cause::is_outage;
use super::code;
use super::finding::{Cause, Check, Finding, Level};
use super::reach::{AskError, Question, ask, reach};
use super::site::{Site, clock};

/// What names it to the proxies.
pub const KEY: &str = "authenticate_internal_service_url";
/// Answers only who has the shared secret.
const VERIFY: &str = "/.pomerium/verify-access-token";

pub async fn check(site: &Site) -> Vec<Finding> {
    let urls = &site.config.urls;
    let Some(internal) = &urls.authenticate_internal else {
        return Vec::new();
    };
    let tls = match internal.scheme() {
        "https" => match authenticate_tls(internal, &urls.authenticate, &site.trust) {
            Ok(tls) => Some(tls),
            Err(why) => {
                let cause = Cause::new(code::TLS_FAILS, why);
                return vec![
                    Finding::error(Check::Authenticate, internal.as_str(), cause).key(KEY),
                ];
            }
        },
        _ => None,
    };
    let host = internal.host_str().unwrap_or_default();
    let port = internal.port_or_known_default().unwrap_or(443);
    let reached = match reach(site, host, port, tls.as_ref()).await {
        Ok(reached) => reached,
        Err(error) => {
            let subject = internal.as_str().trim_end_matches('/');
            return vec![
                Finding::error(Check::Authenticate, subject, Cause::from(&error)).key(KEY),
            ];
        }
    };
    let asking = reached
        .into_iter()
        .map(|(address, stream)| one(site, internal, address, stream));
    let mut findings: Vec<_> = futures::future::join_all(asking)
        .await
        .into_iter()
        .flatten()
        .collect();
    if findings.iter().any(|finding| finding.level == Level::Ok) {
        for finding in &mut findings {
            if is_outage(finding.code) {
                finding.level = Level::Warning;
            }
        }
    }
    findings
}

async fn one(
    site: &Site,
    internal: &Url,
    address: SocketAddr,
    stream: Result<Stream, ConnectError>,
) -> Vec<Finding> {
    let subject = address.to_string();
    let wrong = |cause| vec![Finding::error(Check::Authenticate, &subject, cause).key(KEY)];
    let stream = match stream {
        Ok(stream) => stream,
        Err(error) => return wrong(Cause::from(&error)),
    };
    let mut url = site.config.urls.authenticate.clone();
    url.set_path(VERIFY);
    // Over clear text inside, whatever browsers use.
    let _ = url.set_scheme(internal.scheme());
    let now = Timestamp::now();
    let secret = site.config.secrets.shared.first();
    let question = Question {
        method: Method::POST,
        url: &url,
        headers: secret
            .map(|secret| (token::METADATA_KEY, token::sign(secret, now)))
            .into_iter()
            .collect(),
    };
    let answer = match ask(stream, question).await {
        Ok(answer) => answer,
        Err(AskError::Silent(after)) => {
            let message = format!("it takes connections and gives no answer within {after:?}");
            return wrong(
                Cause::new(code::SILENT, message)
                    .help("it is stuck or overloaded: look at its log, and start it again"),
            );
        }
        Err(AskError::Broken(why)) => {
            return wrong(
                Cause::new(
                    code::OTHER_PROTOCOL,
                    format!("it does not answer HTTP: {why}"),
                )
                .help("correct the port and the scheme of the URL"),
            );
        }
    };
    let date = answer.headers().get(http::header::DATE);
    let date = date.and_then(|date| jiff::fmt::rfc2822::parse(date.to_str().ok()?).ok());
    let clock = clock(
        Check::Authenticate,
        &subject,
        date.map(|date| date.timestamp()),
    );
    if let Some(finding) = clock {
        return vec![finding.key(KEY)];
    }
    match answer.status() {
        // It looked at the token first, and then found no question.
        StatusCode::BAD_REQUEST => {
            let message = "answers, and has our shared secret";
            vec![Finding::ok(Check::Authenticate, subject, message).key(KEY)]
        }
        StatusCode::UNAUTHORIZED => {
            let cause = Cause::new(
                code::SECRETS_DIFFER,
                "shared secrets differ: it does not accept our token",
            )
            .help("give both the same `shared_secret`; to change it see docs/rotate-secrets.md");
            vec![Finding::error(Check::Authenticate, subject, cause).key("shared_secret")]
        }
        status => wrong(
            Cause::new(
                code::NOT_POSTERN,
                format!(
                    "what answers there is not authenticate: status {}",
                    status.as_u16()
                ),
            )
            .help("let the URL lead to authenticate"),
        ),
    }
}
