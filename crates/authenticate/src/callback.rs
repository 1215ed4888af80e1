//! `/oauth2/callback`: back from the provider.
//!
//! Nothing in the answer is believed, not even an error, before `state` has been opened, found to
//! be of this browser, young enough, and used for the first time.

use http::StatusCode;
use jiff::SignedDuration;
use postern_common::crypto::random;
use postern_common::crypto::signed_url::param;
use postern_common::crypto::state::{STATE_LIFETIME, SignIn};
use postern_common::web::cookie::Single;
use postern_common::web::refusal::{Link, Refusal};
use postern_identity::{CodeExchange, Identity};
use url::Url;

use crate::call::{Answer, Call, redirect, with_cookies};
use crate::records::Once;
use crate::session;
use crate::sign_in::{csrf_cookie, provider, provider_failed, read_csrf};
use crate::snapshot::path;

/// What a provider's answer carries (RFC 6749 4.1.2, RFC 9207).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    state: Option<String>,
    code: Option<String>,
    error: Option<String>,
    description: Option<String>,
    issuer: Option<String>,
}

impl Parameters {
    /// From the query, or from the body of a form that the provider has posted. What occurs twice
    /// counts as absent.
    pub(crate) fn read(pairs: &[(String, String)]) -> Self {
        let single = |name: &str| {
            let mut values = pairs
                .iter()
                .filter(|(n, _)| n == name)
                .map(|(_, value)| value);
            let first = values.next().filter(|value| !value.is_empty());
            if values.next().is_some() {
                None
            } else {
                first.cloned()
            }
        };
        Self {
            state: single("state"),
            code: single("code"),
            error: single("error"),
            description: single("error_description"),
            issuer: single("iss"),
        }
    }
}

/// `GET` or `POST /oauth2/callback`.
pub(crate) async fn handle(call: &Call, parameters: Parameters) -> Answer {
    let state = parameters.state.as_deref().unwrap_or_default();
    let sign_in = SignIn::open(call.snapshot.cookie_keys(), state).map_err(|error| {
        call.bad_request(
            "The identity provider's answer does not belong to a sign-in that began here. Open the page that you wanted again.",
            &error,
        )
    })?;
    let again = again(call, &sign_in.url);
    let refuse = |status, reason: &str, cause: &dyn std::fmt::Display| {
        let refusal = call.refuse(status, reason, cause);
        Box::new(linked(*refusal, again.clone()))
    };
    match read_csrf(call) {
        Single::One(token) if token == sign_in.csrf => {}
        found => {
            return Err(refuse(
                StatusCode::BAD_REQUEST,
                "This sign-in began in another browser, or this browser has not kept its cookie. Cookies must be allowed here to sign in.",
                &format!("CSRF: {}", described(&found)),
            ));
        }
    }
    if !sign_in.is_fresh(call.now) {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "This sign-in took longer than five minutes and has expired.",
            &"state is too old, or the clocks of this deployment differ",
        ));
    }
    let name = format!("postern/sign-in/{}", sign_in.id());
    let lifetime = STATE_LIFETIME.checked_mul(2).unwrap_or(SignedDuration::MAX);
    let once = call
        .service
        .records
        .once(&name, &random::uuid(), lifetime)
        .await;
    match once {
        Ok(Once::First) => {}
        // Reloaded, or reached by the back button: where it was going, by way of the session that
        // the first use has made.
        Ok(Once::Again) => return onward(call, &sign_in.url),
        Err(error) => {
            return Err(Box::new(linked(
                *call.unavailable(
                    "The store of sessions cannot be reached, so nobody can sign in at the moment. Try again in a few seconds.",
                    &error,
                ),
                again,
            )));
        }
    }
    if let Some(error) = &parameters.error {
        let cause = format!(
            "{error}: {}",
            parameters.description.as_deref().unwrap_or("-")
        );
        let (status, reason) = match error.as_str() {
            "access_denied" | "unauthorized_client" => (
                StatusCode::UNAUTHORIZED,
                "The identity provider did not let you sign in, or you cancelled.",
            ),
            "temporarily_unavailable" | "server_error" => (
                StatusCode::SERVICE_UNAVAILABLE,
                "The identity provider cannot sign you in at the moment. Try again in a few seconds.",
            ),
            _ => (
                StatusCode::BAD_REQUEST,
                "The identity provider reported an error.",
            ),
        };
        return Err(refuse(status, reason, &cause));
    }
    let Some(code) = parameters.code.as_deref() else {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "The identity provider's answer is incomplete.",
            &"no code",
        ));
    };
    let provider = provider(call, idp_id(&sign_in.url).as_deref())?;
    let exchange = CodeExchange {
        code,
        code_verifier: &sign_in.pkce_verifier,
        nonce: &sign_in.nonce,
        redirect_uri: &call.snapshot.url(path::CALLBACK, None),
        issuer_parameter: parameters.issuer.as_deref(),
        now: call.now,
    };
    let identity = provider
        .exchange(exchange)
        .await
        .map_err(|error| Box::new(linked(provider_failed(call, &error), again.clone())))?;
    let cookie = establish(call, &identity, provider.id())
        .await
        .map_err(|refusal| Box::new(linked(*refusal, again)))?;
    // The token stays the same for other tabs; its cookie starts anew.
    let csrf = csrf_cookie(call, &sign_in.csrf);
    Ok(with_cookies(
        onward(call, &sign_in.url)?,
        cookie.into_iter().chain(csrf),
    ))
}

/// Writes the records of a new session and gives its cookie.
async fn establish(
    call: &Call,
    identity: &Identity,
    idp_id: &str,
) -> Result<Option<http::HeaderValue>, Box<Refusal>> {
    let snapshot = &call.snapshot;
    let lifetime = SignedDuration::try_from(snapshot.config.cookie.expire)
        .unwrap_or(SignedDuration::from_hours(14));
    let audience = vec![snapshot.external.clone()];
    let (user, record) = session::records(identity, idp_id, lifetime, audience, call.now);
    let written = call
        .service
        .records
        .save(user, &record)
        .await
        .map_err(|error| {
            call.unavailable(
            "You were recognised, but the session could not be stored. Try again in a few seconds.",
            &error,
        )
        })?;
    tracing::info!(
        target: "postern::audit",
        event = "sign-in",
        "request-id" = &*call.request_id,
        "session-id" = record.id,
        "user-id" = record.user_id,
        "idp-id" = idp_id,
        "signed in"
    );
    Ok(session::cookie(
        call,
        &session::own_handle(&record, written, &snapshot.external, call.now),
    ))
}

/// On to where the sign-in was for. The URL was sealed here; its signature may have run out while
/// the person was at the provider, so it gets a new one.
fn onward(call: &Call, url: &Url) -> Answer {
    let url = if url.path() == path::SIGN_IN {
        call.sign(url)?
    } else {
        url.clone()
    };
    Ok(redirect(url.as_str()))
}

/// A way on from an error page: the page that the person wanted, which begins anew.
fn again(call: &Call, url: &Url) -> Option<Link> {
    let wanted = url
        .query_pairs()
        .find(|(name, _)| name == param::REDIRECT_URI)?
        .1;
    let target = call.snapshot.targets.browser(&wanted).ok()?;
    Some(Link {
        href: target.location,
        text: "Start again",
    })
}

fn linked(refusal: Refusal, link: Option<Link>) -> Refusal {
    match link {
        Some(link) => refusal.link(link),
        None => refusal,
    }
}

fn idp_id(url: &Url) -> Option<String> {
    let value = url.query_pairs().find(|(name, _)| name == param::IDP_ID)?.1;
    (!value.is_empty()).then(|| value.into_owned())
}

fn described<T, E: std::fmt::Display>(found: &Single<T, E>) -> String {
    match found {
        Single::Absent => "the browser sent no cookie".to_owned(),
        Single::One(_) => "the cookie is of another browser".to_owned(),
        Single::Bad(error) => error.to_string(),
        Single::Conflict => "two different valid cookies; one was planted".to_owned(),
    }
}
