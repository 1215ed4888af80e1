//! The browser's session here: read from its cookie, made from an identity.

use http::HeaderValue;
use jiff::{SignedDuration, Timestamp};
use postern_common::crypto::handle::{Handle, Place, Purpose};
use postern_common::crypto::random;
use postern_common::rpc::stubs::session::{IdToken, OAuthToken, Session};
use postern_common::rpc::stubs::user::User;
use postern_common::session;
use postern_common::web::cookie::{self, Single};
use postern_common::web::refusal::Refusal;
use postern_identity::{Identity, claims};

use crate::call::Call;
use crate::records::{Written, timestamp};

/// A live session of this browser.
#[derive(Debug, Clone)]
pub(crate) struct Current {
    pub handle: Handle,
    pub record: Session,
}

/// What the session cookie comes to.
#[derive(Debug)]
pub(crate) enum Found {
    /// A session that is alive.
    Alive(Box<Current>),
    /// None; with what removes a cookie that is good for nothing.
    None { clear: Vec<HeaderValue> },
}

/// Reads the cookie and asks the databroker. That the databroker doesn't answer is a refusal
/// (503), never "signed out".
pub(crate) async fn find(call: &Call) -> Result<Found, Box<Refusal>> {
    let snapshot = &call.snapshot;
    let name = &snapshot.cookies.session;
    let handle = cookie::single(cookie::values(&call.headers, name), |value| {
        let handle = Handle::decode(snapshot.shared(), value).map_err(|e| e.to_string())?;
        handle
            .acceptable(Place::Authenticate, &call.host, None)
            .map_err(|e| e.to_string())?;
        Ok::<_, String>(handle)
    });
    let clear = || {
        cookie::clear(name, snapshot.session_scope(), call.now)
            .into_iter()
            .collect()
    };
    let handle = match handle {
        Single::One(handle) => handle,
        Single::Absent => return Ok(Found::None { clear: Vec::new() }),
        Single::Bad(cause) => {
            tracing::info!(
                "request-id" = &*call.request_id,
                cause,
                "the session cookie is not valid"
            );
            return Ok(Found::None { clear: clear() });
        }
        Single::Conflict => {
            tracing::warn!(
                "request-id" = &*call.request_id,
                "two different valid session cookies: one was planted, neither counts"
            );
            let clear = cookie::clear_everywhere(name, &call.host, call.now);
            return Ok(Found::None { clear });
        }
    };
    let record = call
        .service
        .records
        .get::<Session>(&handle.id)
        .await
        .map_err(|error| {
            let refusal = call.unavailable(
                "Sessions can't be read at the moment. Nothing was lost; try again.",
                &error,
            );
            Box::new(refusal.link(call.try_again()))
        })?;
    match record {
        Some(record) if session::is_valid(&record, call.now) => {
            Ok(Found::Alive(Box::new(Current { handle, record })))
        }
        _ => Ok(Found::None { clear: clear() }),
    }
}

/// The records of somebody who has just signed in, under a session id that nobody knew before.
/// The claims are the provider's answer of this moment and nothing older.
pub(crate) fn records(
    identity: &Identity,
    idp_id: &str,
    lifetime: SignedDuration,
    audience: Vec<String>,
    now: Timestamp,
) -> (User, Session) {
    let flat = claims::flatten(&identity.claims);
    let text = |name| {
        claims::text(&identity.claims, name)
            .unwrap_or_default()
            .to_owned()
    };
    let user = User {
        id: identity.subject.clone(),
        name: text("name"),
        email: text("email"),
        claims: claims::to_list_values(&flat),
        ..User::default()
    };
    let ends = now.saturating_add(lifetime).unwrap_or(Timestamp::MAX);
    let tokens = &identity.tokens;
    let session = Session {
        id: random::uuid(),
        user_id: identity.subject.clone(),
        idp_id: idp_id.to_owned(),
        issued_at: Some(timestamp(now)),
        accessed_at: Some(timestamp(now)),
        expires_at: Some(timestamp(ends)),
        id_token: identity.id_token.as_ref().map(|token| IdToken {
            issuer: token.issuer.clone(),
            subject: token.subject.clone(),
            expires_at: Some(timestamp(token.expires_at)),
            issued_at: token.issued_at.map(timestamp),
            raw: token.raw.clone(),
        }),
        oauth_token: Some(OAuthToken {
            access_token: tokens.access_token.clone(),
            token_type: tokens.token_type.clone(),
            refresh_token: tokens.refresh_token.clone().unwrap_or_default(),
            expires_at: tokens.expires_at.map(timestamp),
        }),
        claims: claims::to_list_values(&flat),
        user_info_claims: identity.user_info_claims.clone(),
        audience,
        ..Session::default()
    };
    (user, session)
}

/// The handle for authenticate's own cookie.
pub(crate) fn own_handle(
    session: &Session,
    written: Written,
    issuer: &str,
    now: Timestamp,
) -> Handle {
    Handle {
        id: session.id.clone(),
        subject: session.user_id.clone(),
        issuer: issuer.to_owned(),
        audience: session.audience.clone(),
        idp_id: session.idp_id.clone(),
        issued_at: now.as_second(),
        record_version: written.record_version,
        server_version: written.server_version,
        purpose: Some(Purpose::Authenticate),
    }
}

/// `Set-Cookie` with a handle for this browser here; its end slides with every use, the
/// session's does not.
pub(crate) fn cookie(call: &Call, handle: &Handle) -> Option<HeaderValue> {
    let snapshot = &call.snapshot;
    let value = handle.encode(snapshot.shared().first()?);
    cookie::set(
        &snapshot.cookies.session,
        &value,
        snapshot.session_scope(),
        snapshot.config.cookie.expire,
        call.now,
    )
}

/// A time of a record.
pub(crate) fn time(at: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    at.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok())
}
