//! Token, introspection and revocation endpoints: what applications ask, not browsers.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use postern_common::crypto::equal;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::authorize::{Values, get, values};
use super::store::{Grant, Issued};
use super::{Client, Idp};

fn refused(code: &str) -> Response {
    let body = Json(json!({"error": code}));
    if code == "invalid_client" {
        let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"demo\"")];
        return (StatusCode::UNAUTHORIZED, challenge, body).into_response();
    }
    let cache = [(header::CACHE_CONTROL, "no-store")];
    (StatusCode::BAD_REQUEST, cache, body).into_response()
}

/// The client that asks, by Basic or by form (RFC 6749 2.3.1), not by both; else an error code.
fn client<'a>(
    idp: &'a Idp,
    headers: &HeaderMap,
    form: &Values,
) -> Result<&'a Client, &'static str> {
    let given = match headers.get(header::AUTHORIZATION) {
        Some(_) if get(form, "client_secret").is_some() => return Err("invalid_request"),
        Some(value) => value.to_str().ok().and_then(basic),
        None => get(form, "client_id")
            .map(str::to_owned)
            .zip(get(form, "client_secret").map(str::to_owned)),
    };
    let (id, secret) = given.ok_or("invalid_client")?;
    idp.client(&id)
        .filter(|client| equal(client.secret.as_bytes(), secret.as_bytes()))
        .ok_or("invalid_client")
}

fn basic(value: &str) -> Option<(String, String)> {
    let decoded = STANDARD.decode(value.strip_prefix("Basic ")?).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (id, secret) = decoded.split_once(':')?;
    let plain = |part: &str| {
        let pairs = format!("x={part}");
        url::form_urlencoded::parse(pairs.as_bytes())
            .next()
            .map(|(_, v)| v.into_owned())
    };
    plain(id).zip(plain(secret))
}

pub async fn token(State(idp): State<Arc<Idp>>, headers: HeaderMap, body: String) -> Response {
    let form = values(&body);
    let client = match client(&idp, &headers, &form) {
        Ok(client) => client,
        Err(code) => return refused(code),
    };
    let now = Timestamp::now();
    let expires = now
        .checked_add(SignedDuration::try_from(idp.config.lifetime).unwrap_or(SignedDuration::MAX))
        .unwrap_or(Timestamp::MAX);
    let issued = match get(&form, "grant_type") {
        Some("authorization_code") => redeem(&idp, client, &form, now, expires),
        Some("refresh_token") => get(&form, "refresh_token")
            .and_then(|token| idp.store().refresh(token, &client.id, expires)),
        _ => return refused("unsupported_grant_type"),
    };
    match issued.and_then(|issued| answer(&idp, &issued, now, expires)) {
        Some(body) => ([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response(),
        None => refused("invalid_grant"),
    }
}

fn redeem(
    idp: &Idp,
    client: &Client,
    form: &Values,
    now: Timestamp,
    expires: Timestamp,
) -> Option<Issued> {
    let mut store = idp.store();
    let code = store.take_code(get(form, "code")?, now)?;
    let proven = match &code.challenge {
        None => true,
        Some(challenge) => get(form, "code_verifier").is_some_and(|verifier| {
            let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier));
            equal(hash.as_bytes(), challenge.as_bytes())
        }),
    };
    let same = code.grant.client == client.id
        && get(form, "redirect_uri") == Some(code.redirect_uri.as_str());
    (proven && same).then(|| store.begin(code.grant, expires))
}

fn answer(idp: &Idp, issued: &Issued, now: Timestamp, expires: Timestamp) -> Option<Value> {
    Some(json!({
        "access_token": issued.access,
        "token_type": "Bearer",
        "expires_in": idp.config.lifetime.as_secs(),
        "refresh_token": issued.refresh,
        "id_token": id_token(idp, &issued.grant, &issued.access, now, expires)?,
    }))
}

/// Who somebody is stands in the ID token; groups and names of people in user info as well.
fn id_token(
    idp: &Idp,
    grant: &Grant,
    access: &str,
    now: Timestamp,
    expires: Timestamp,
) -> Option<String> {
    let mut claims = idp.person(&grant.person)?.claims();
    let members = claims.as_object_mut()?;
    let hash = Sha256::digest(access);
    let (half, _) = hash.split_at(hash.len() / 2);
    for (name, value) in [
        ("iss", json!(idp.config.issuer)),
        ("aud", json!(grant.client)),
        ("azp", json!(grant.client)),
        ("iat", json!(now.as_second())),
        ("exp", json!(expires.as_second())),
        ("auth_time", json!(grant.signed_in.as_second())),
        ("at_hash", json!(URL_SAFE_NO_PAD.encode(half))),
    ] {
        members.insert(name.to_owned(), value);
    }
    if let Some(nonce) = &grant.nonce {
        members.insert("nonce".to_owned(), json!(nonce));
    }
    idp.keys.as_ref()?.sign(&claims).ok()
}

/// RFC 7662.
pub async fn introspect(State(idp): State<Arc<Idp>>, headers: HeaderMap, body: String) -> Response {
    let form = values(&body);
    let client = match client(&idp, &headers, &form) {
        Ok(client) => client,
        Err(code) => return refused(code),
    };
    let now = Timestamp::now();
    let known = get(&form, "token")
        .and_then(|token| idp.store().expiry(token))
        .filter(|(grant, expires)| now < *expires && grant.client == client.id);
    Json(match known {
        Some((grant, expires)) => json!({
            "active": true, "sub": grant.person, "aud": grant.client, "client_id": grant.client,
            "iss": idp.config.issuer, "exp": expires.as_second(), "token_type": "Bearer",
        }),
        None => json!({"active": false}),
    })
    .into_response()
}

/// RFC 7009: tokens that are not known are gone already.
pub async fn revoke(State(idp): State<Arc<Idp>>, headers: HeaderMap, body: String) -> Response {
    let form = values(&body);
    match client(&idp, &headers, &form) {
        Ok(client) => {
            if let Some(token) = get(&form, "token") {
                idp.store().revoke(token, &client.id);
            }
            StatusCode::OK.into_response()
        }
        Err(code) => refused(code),
    }
}
