//! The pages: who to sign in as, and signing out.

use std::sync::Arc;

use askama::Template;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use postern_common::web::page::{Forms, respond};
use url::Url;

use super::store::{Code, Grant};
use super::{Client, Idp, Person, Redirects};

/// Form or query values; of several with one name the first counts.
pub type Values = Vec<(String, String)>;

pub fn values(text: &str) -> Values {
    url::form_urlencoded::parse(text.as_bytes())
        .into_owned()
        .collect()
}

pub fn get<'a>(values: &'a Values, name: &str) -> Option<&'a str> {
    values
        .iter()
        .find(|(n, _)| n == name)
        .map(|(_, v)| v.as_str())
}

#[derive(Template)]
#[template(path = "idp-people.html")]
struct PeoplePage<'a> {
    client: &'a str,
    /// The query of the request under way, sent back with the choice.
    request: &'a str,
    people: &'a [Person],
}

#[derive(Template)]
#[template(path = "idp-message.html")]
struct MessagePage<'a> {
    message: &'a str,
}

fn message(idp: &Idp, status: StatusCode, title: &str, message: &str) -> Response {
    respond(
        &idp.look,
        status,
        title,
        Forms::None,
        &MessagePage { message },
    )
    .map(Into::into)
}

fn refuse(idp: &Idp, text: &str) -> Response {
    let title = "This sign-in cannot go on";
    message(idp, StatusCode::BAD_REQUEST, title, text)
}

/// A request that may go on. An error before the redirect URI is known to be the client's own is
/// shown here; sending it there would let anybody use this provider to send people anywhere.
struct Request<'a> {
    client: &'a Client,
    redirect_uri: Url,
    values: Values,
}

impl<'a> Request<'a> {
    fn parse(idp: &'a Idp, query: &str) -> Result<Self, &'static str> {
        let values = values(query);
        let client = get(&values, "client_id")
            .and_then(|id| idp.client(id))
            .ok_or("The application that sent you here is not registered (client_id).")?;
        let redirect_uri = get(&values, "redirect_uri")
            .filter(|uri| match &client.redirects {
                Redirects::Any => true,
                Redirects::Only(known) => known.iter().any(|k| k == uri),
            })
            .and_then(|uri| Url::parse(uri).ok())
            .filter(|uri| matches!(uri.scheme(), "https" | "http"))
            .ok_or(
                "The address to return to is not registered for this application (redirect_uri).",
            )?;
        Ok(Self {
            client,
            redirect_uri,
            values,
        })
    }

    fn get(&self, name: &str) -> Option<&str> {
        get(&self.values, name)
    }

    /// What is wrong with the request, as an error code of RFC 6749 4.1.2.1 or OIDC Core 3.1.2.6.
    fn problem(&self) -> Option<&'static str> {
        let openid = self
            .get("scope")
            .is_some_and(|s| s.split(' ').any(|one| one == "openid"));
        if self.get("response_type") != Some("code") {
            Some("unsupported_response_type")
        } else if !openid {
            Some("invalid_scope")
        } else if self.get("code_challenge").is_some()
            && self.get("code_challenge_method") != Some("S256")
        {
            Some("invalid_request")
        } else if self.get("prompt") == Some("none") {
            Some("login_required")
        } else {
            None
        }
    }

    fn answer(&self, idp: &Idp, name: &str, value: &str) -> Response {
        let mut url = self.redirect_uri.clone();
        {
            let mut query = url.query_pairs_mut();
            query.append_pair(name, value);
            if let Some(state) = self.get("state") {
                query.append_pair("state", state);
            }
            query.append_pair("iss", &idp.config.issuer);
        }
        Redirect::to(url.as_str()).into_response()
    }
}

/// Shows the people to sign in as.
pub async fn ask(State(idp): State<Arc<Idp>>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let request = match Request::parse(&idp, &query) {
        Ok(request) => request,
        Err(text) => return refuse(&idp, text),
    };
    if let Some(problem) = request.problem() {
        return request.answer(&idp, "error", problem);
    }
    let page = PeoplePage {
        client: &request.client.id,
        request: &query,
        people: &idp.config.people,
    };
    respond(&idp.look, StatusCode::OK, "Sign in", Forms::Some, &page).map(Into::into)
}

/// Somebody was picked, or nobody.
pub async fn picked(State(idp): State<Arc<Idp>>, body: String) -> Response {
    let form = values(&body);
    let request = match Request::parse(&idp, get(&form, "request").unwrap_or_default()) {
        Ok(request) => request,
        Err(text) => return refuse(&idp, text),
    };
    if let Some(problem) = request.problem() {
        return request.answer(&idp, "error", problem);
    }
    let Some(person) = get(&form, "person").and_then(|id| idp.person(id)) else {
        return request.answer(&idp, "error", "access_denied");
    };
    let now = Timestamp::now();
    let code = Code {
        grant: Grant {
            person: person.id.clone(),
            client: request.client.id.clone(),
            nonce: request.get("nonce").map(str::to_owned),
            signed_in: now,
        },
        redirect_uri: request.get("redirect_uri").unwrap_or_default().to_owned(),
        challenge: request.get("code_challenge").map(str::to_owned),
        made: now,
    };
    let code = idp.store().add_code(code);
    request.answer(&idp, "code", &code)
}

/// OpenID Connect RP-Initiated Logout 1.0.
pub async fn sign_out(
    State(idp): State<Arc<Idp>>,
    RawQuery(query): RawQuery,
    body: String,
) -> Response {
    let mut values = values(&query.unwrap_or_default());
    values.extend(self::values(&body));
    let hint = get(&values, "id_token_hint").and_then(hinted);
    let client = get(&values, "client_id")
        .or(hint.as_ref().map(|h| h.client.as_str()))
        .and_then(|id| idp.client(id));
    if let (Some(client), Some(hint)) = (client, &hint) {
        idp.store().sign_out(&hint.person, &client.id);
    }
    let target = get(&values, "post_logout_redirect_uri").and_then(|uri| Url::parse(uri).ok());
    if let (Some(client), Some(mut target)) = (client, target)
        && may_return(client, &target)
    {
        if let Some(state) = get(&values, "state") {
            target.query_pairs_mut().append_pair("state", state);
        }
        return Redirect::to(target.as_str()).into_response();
    }
    message(
        &idp,
        StatusCode::OK,
        "Signed out",
        "You are signed out of the demo's identity provider.",
    )
}

fn may_return(client: &Client, target: &Url) -> bool {
    matches!(target.scheme(), "https" | "http")
        && match &client.redirects {
            Redirects::Any => true,
            Redirects::Only(known) => known
                .iter()
                .filter_map(|k| Url::parse(k).ok())
                .any(|k| k.origin() == target.origin()),
        }
}

struct Hint {
    person: String,
    client: String,
}

/// Who an ID token is about. It is a hint, expired ones count too, and what it leads to is that
/// somebody signs in again: so its signature is not looked at.
fn hinted(token: &str) -> Option<Hint> {
    let payload = token.split('.').nth(1)?;
    let claims: serde_json::Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    let text = |name: &str| claims.get(name)?.as_str().map(str::to_owned);
    Some(Hint {
        person: text("sub")?,
        client: text("aud")?,
    })
}
