//! `/.pomerium/sign_out` and `/.pomerium/signed_out`.
//!
//! A session ends by a link that one of our proxies has signed and that names it, or by a form of
//! ours in the same browser; never because some page embeds an image. A link says nothing about
//! the browser that opens it: whose session here is not that of the link's person is asked.

use std::time::Duration;

use axum::response::Response;
use http::{HeaderValue, Method, StatusCode};
use postern_common::crypto::form;
use postern_common::crypto::signed_url::param;
use postern_common::rpc::stubs::session::Session;
use postern_common::web::cookie::{self, Scope, Single};
use postern_common::web::page::Forms;
use postern_common::web::refusal::{Link, Refusal};
use postern_identity::{EndSession, Tokens};
use url::Url;

use crate::call::{Answer, Call, redirect, with_cookies};
use crate::pages::{SignOutPage, SignedOutPage};
use crate::session::{self, Found};
use crate::sign_in::{csrf_cookie, csrf_token, provider, read_csrf};
use crate::snapshot::path;

/// Name of the hidden field that proves that a form is ours.
pub(crate) const FORM_TOKEN: &str = "token";

/// How long the signed-out page remembers where to go on to.
const REMEMBERED: Duration = Duration::from_secs(300);

/// `GET` or `POST /.pomerium/sign_out`; `body` is that of a form.
pub(crate) async fn handle(call: &Call, body: &str) -> Answer {
    if let Ok(signed) = call.verify()
        && let Some(id) = signed.get(param::SESSION_ID).filter(|id| !id.is_empty())
    {
        return by_link(call, id, signed.get(param::REDIRECT_URI)).await;
    }
    let wanted = unsigned_target(&call.query);
    if call.method != Method::POST {
        return confirm(call, wanted.as_deref()).await;
    }
    let fields = form::parse(body).unwrap_or_default();
    let token = fields
        .iter()
        .find(|(name, _)| name == FORM_TOKEN)
        .map(|(_, value)| value);
    let ours = match (read_csrf(call), token) {
        (Single::One(csrf), Some(token)) => csrf.form_value_is(call.snapshot.cookie_keys(), token),
        _ => false,
    };
    if !ours {
        let refusal = call.bad_request(
            "This form is not valid any more.",
            &"sign-out form without the token of this browser",
        );
        let link = Link {
            href: path::SIGN_OUT.to_owned(),
            text: "Sign out",
        };
        return Err(Box::new(refusal.link(link)));
    }
    let (ended, cookies) = match session::find(call).await? {
        Found::None { clear } => (Vec::new(), clear),
        Found::Alive(current) => (vec![current.record], clear_session(call)),
    };
    end(call, &ended).await?;
    let target = target(call, wanted.as_deref());
    Ok(onward(call, &ended, target.as_ref(), cookies).await)
}

/// Asks whether to sign out. The form leads back here and carries only a target that is allowed.
async fn confirm(call: &Call, wanted: Option<&str>) -> Answer {
    let current = match session::find(call).await? {
        Found::Alive(current) => current,
        Found::None { clear } => return Ok(with_cookies(redirect(path::SIGNED_OUT), clear)),
    };
    let (csrf, mut cookies) = csrf_token(call);
    cookies.extend(csrf_cookie(call, &csrf));
    let token = call
        .snapshot
        .cookie_keys()
        .first()
        .map(|key| csrf.form_value(key));
    let wanted = wanted.filter(|text| call.snapshot.targets.browser(text).is_ok());
    let action = match wanted {
        Some(wanted) => {
            let query = form::encode_sorted([(param::REDIRECT_URI, wanted)]);
            format!("{}?{query}", path::SIGN_OUT)
        }
        None => path::SIGN_OUT.to_owned(),
    };
    let page = SignOutPage {
        action: &action,
        token_name: FORM_TOKEN,
        token: token.as_deref().unwrap_or_default(),
        user: &current.handle.subject,
    };
    Ok(with_cookies(
        call.page("Sign out?", Forms::Some, &page),
        cookies,
    ))
}

/// By a signed link: ends the session that it names, and that of this browser here if it is the
/// same person's. The link of somebody else, or one whose session is gone, is no sign that this
/// browser's person wants to leave, so they are asked.
async fn by_link(call: &Call, id: &str, wanted: Option<&str>) -> Answer {
    let named = call.service.records.get::<Session>(id).await;
    let named = named.map_err(|error| not_ended(call, &error))?;
    let mut ended: Vec<Session> = named.into_iter().collect();
    let mut cookies = Vec::new();
    match session::find(call).await? {
        Found::None { clear } => cookies = clear,
        Found::Alive(current) => {
            let same_user = ended
                .first()
                .is_some_and(|named| named.user_id == current.record.user_id);
            if current.record.id != id && !same_user {
                end(call, &ended).await?;
                return confirm(call, wanted).await;
            }
            cookies.extend(clear_session(call));
            if current.record.id != id {
                ended.push(current.record);
            }
        }
    }
    end(call, &ended).await?;
    let target = target(call, wanted);
    Ok(onward(call, &ended, target.as_ref(), cookies).await)
}

fn clear_session(call: &Call) -> Vec<HeaderValue> {
    let scope = call.snapshot.session_scope();
    let cleared = cookie::clear(&call.snapshot.cookies.session, scope, call.now);
    cleared.into_iter().collect()
}

/// Deletes the records, then takes the tokens back.
async fn end(call: &Call, ended: &[Session]) -> Result<(), Box<Refusal>> {
    for session in ended {
        let deleted = call.service.records.delete(session, call.now).await;
        deleted.map_err(|error| not_ended(call, &error))?;
        tracing::info!(
            target: "postern::audit",
            event = "sign-out",
            "request-id" = &*call.request_id,
            "session-id" = session.id,
            "user-id" = session.user_id,
            "signed out"
        );
    }
    for session in ended {
        revoke(call, session).await;
    }
    Ok(())
}

/// To the provider's sign-out page if it has one, else to the target.
async fn onward(
    call: &Call,
    ended: &[Session],
    target: Option<&Url>,
    mut cookies: Vec<HeaderValue>,
) -> Response {
    let at_provider = match ended.last() {
        Some(session) => end_session(call, session, target).await,
        None => None,
    };
    let location = match (at_provider, target) {
        (Some(sign_out), target) => {
            if let (Some(target), false) = (target, sign_out.returns_to_target) {
                cookies.extend(remember(call, target));
            }
            sign_out.url.into()
        }
        (None, Some(target)) => String::from(target.clone()),
        (None, None) => path::SIGNED_OUT.to_owned(),
    };
    with_cookies(redirect(&location), cookies)
}

/// `GET /.pomerium/signed_out`.
pub(crate) fn signed_out(call: &Call) -> Response {
    let name = &call.snapshot.cookies.signed_out;
    let mut remembered = cookie::values(&call.headers, name);
    let (first, second) = (remembered.next(), remembered.next());
    if first.is_none() {
        return call.page("You are signed out", Forms::None, &SignedOutPage);
    }
    let clear = cookie::clear(name, signed_out_scope(), call.now);
    // Whoever can plant a cookie must not choose where to.
    let target = first
        .filter(|_| second.is_none())
        .and_then(|text| target(call, Some(text)));
    let response = match target {
        Some(target) => redirect(target.as_str()),
        None => call.page("You are signed out", Forms::None, &SignedOutPage),
    };
    with_cookies(response, clear)
}

/// Where to go afterwards: what was asked for if it is one of our hosts, else
/// `signout_redirect_url`.
fn target(call: &Call, wanted: Option<&str>) -> Option<Url> {
    let configured = call.snapshot.config.signout_redirect_url.as_ref();
    let wanted = wanted.and_then(|text| {
        let listed = configured.filter(|url| url.as_str() == text).cloned();
        listed.or_else(|| {
            call.snapshot
                .targets
                .browser(text)
                .ok()
                .map(|target| target.url)
        })
    });
    wanted.or_else(|| configured.cloned())
}

fn unsigned_target(query: &str) -> Option<String> {
    let pairs = form::parse(query).ok()?;
    pairs
        .into_iter()
        .find(|(name, _)| name == param::REDIRECT_URI)
        .map(|(_, value)| value)
}

/// Takes the tokens back. The session has ended already, so a provider that doesn't answer is
/// only logged.
async fn revoke(call: &Call, session: &Session) {
    let Some(token) = &session.oauth_token else {
        return;
    };
    let Ok(provider) = provider(call, Some(&session.idp_id)) else {
        return;
    };
    let tokens = Tokens {
        access_token: token.access_token.clone(),
        token_type: token.token_type.clone(),
        refresh_token: Some(token.refresh_token.clone()).filter(|token| !token.is_empty()),
        expires_at: session::time(token.expires_at.as_ref()),
    };
    if let Err(error) = provider.revoke(&tokens).await {
        tracing::warn!(
            "request-id" = &*call.request_id,
            "session-id" = session.id,
            %error,
            "the session has ended, but the provider did not take its tokens back"
        );
    }
}

/// The provider's own sign-out page, if it has one.
async fn end_session(
    call: &Call,
    session: &Session,
    target: Option<&Url>,
) -> Option<postern_identity::SignOut> {
    let provider = provider(call, Some(&session.idp_id)).ok()?;
    let request = EndSession {
        id_token_hint: session.id_token.as_ref().map(|token| token.raw.as_str()),
        target,
        signed_out: &call.snapshot.url(path::SIGNED_OUT, None),
    };
    match provider.end_session_url(request).await {
        Ok(sign_out) => sign_out,
        Err(error) => {
            tracing::warn!(
                "request-id" = &*call.request_id,
                %error,
                "the session has ended here, but the provider's sign-out page is not known"
            );
            None
        }
    }
}

fn remember(call: &Call, target: &Url) -> Option<HeaderValue> {
    let name = &call.snapshot.cookies.signed_out;
    cookie::set(
        name,
        target.as_str(),
        signed_out_scope(),
        REMEMBERED,
        call.now,
    )
}

fn signed_out_scope() -> Scope<'static> {
    Scope {
        path: path::SIGNED_OUT,
        ..Scope::HOST
    }
}

/// Nobody is told to be signed out who is not.
fn not_ended(call: &Call, error: &crate::records::RecordsError) -> Box<Refusal> {
    let refusal = call.refuse(
        StatusCode::SERVICE_UNAVAILABLE,
        "You are still signed in: the session could not be ended at the moment. Try again in a few seconds.",
        error,
    );
    Box::new(refusal.link(Link {
        href: path::SIGN_OUT.to_owned(),
        text: "Try again",
    }))
}
