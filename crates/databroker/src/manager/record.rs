//! Between session records and what providers give.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use postern_common::rpc::stubs::databroker::Record;
use postern_common::rpc::stubs::session::{IdToken, OAuthToken, Session};
use postern_identity::claims::{self, flatten, to_list_values};
use postern_identity::{Claims, Tokens};
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Any, ListValue};

use crate::storage::timestamp;

pub(crate) const SESSION: &str = "type.googleapis.com/session.Session";
pub(crate) const USER: &str = "type.googleapis.com/user.User";

/// Times up to the end of 1970 mean that there is none.
const NEVER: i64 = 365 * 24 * 60 * 60;

/// A time of a record.
pub(crate) fn instant(time: &prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::from_second(time.seconds)
        .ok()?
        .checked_add(SignedDuration::from_nanos(i64::from(time.nanos)))
        .ok()
        .filter(|time| time.as_second() >= NEVER)
}

pub(crate) fn session(record: &Record) -> Option<Session> {
    let data = record.data.as_ref().filter(|d| d.type_url == SESSION)?;
    let mut session = Session::decode(data.value.as_slice()).ok()?;
    // What the record is filed under is its name.
    session.id.clone_from(&record.id);
    Some(session)
}

pub(crate) fn any(type_url: &str, message: &impl prost::Message) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value: message.encode_to_vec(),
    }
}

pub(crate) fn oauth_token(tokens: &Tokens) -> OAuthToken {
    OAuthToken {
        access_token: tokens.access_token.clone(),
        token_type: tokens.token_type.clone(),
        expires_at: tokens.expires_at.map(timestamp),
        refresh_token: tokens.refresh_token.clone().unwrap_or_default(),
    }
}

pub(crate) fn id_token(token: &postern_identity::IdToken) -> IdToken {
    IdToken {
        issuer: token.issuer.clone(),
        subject: token.subject.clone(),
        expires_at: Some(timestamp(token.expires_at)),
        issued_at: token.issued_at.map(timestamp),
        raw: token.raw.clone(),
    }
}

/// `sub` of the session's ID token; without one (GitHub) that of its claims.
pub(crate) fn expected_subject(session: &Session) -> Option<String> {
    let of_token = session.id_token.as_ref().map(|t| t.subject.clone());
    of_token.filter(|s| !s.is_empty()).or_else(|| {
        match session.claims.get("sub")?.values.first()?.kind.as_ref()? {
            Kind::StringValue(subject) => Some(subject.clone()),
            _ => None,
        }
    })
}

/// Claims in the form in which records hold them.
pub(crate) type FlatClaims = HashMap<String, ListValue>;

/// The claims that a session has now: those of its newest ID token, and user info over them.
/// Nothing of the old is kept, so that what was taken from a person at the provider is gone here.
/// One exception: claims that the ID token only points to (`_claim_names`) and that were fetched
/// at sign-in are not in either of the two, and stay.
pub(crate) fn renewed_claims(
    old: &FlatClaims,
    id_token: Claims,
    user_info: Option<Claims>,
) -> (Claims, FlatClaims) {
    let mut all = claims::combine(id_token, user_info);
    let pointers = all.remove("_claim_names");
    all.remove("_claim_sources");
    let mut flat: FlatClaims = to_list_values(&flatten(&all));
    if let Some(serde_json::Value::Object(names)) = pointers {
        for name in names.keys().filter(|name| !all.contains_key(*name)) {
            let below = format!("{name}.");
            let kept = old
                .iter()
                .filter(|(k, _)| *k == name || k.starts_with(&below));
            flat.extend(kept.map(|(k, v)| (k.clone(), v.clone())));
        }
    }
    (all, flat)
}

/// The claims of a new ID token over the old ones, where user info can't be had and so nothing is
/// known about the rest.
pub(crate) fn overlaid_claims(old: &FlatClaims, id_token: Claims) -> (Claims, FlatClaims) {
    let (all, new) = renewed_claims(old, id_token, None);
    let renewed = |key: &str| all.contains_key(key.split('.').next().unwrap_or(key));
    let mut flat: FlatClaims = old
        .iter()
        .filter(|(key, _)| !renewed(key))
        .map(|(key, values)| (key.clone(), values.clone()))
        .collect();
    flat.extend(new);
    (all, flat)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims_of(value: &serde_json::Value) -> Claims {
        value.as_object().unwrap().clone()
    }

    fn flat(value: &serde_json::Value) -> FlatClaims {
        to_list_values(&flatten(&claims_of(value)))
    }

    #[test]
    fn w4_what_is_gone_at_the_provider_is_gone_here() {
        let old = flat(&json!({"groups": ["eng", "ops"], "team": "a", "sub": "ann"}));
        let (_, new) = renewed_claims(
            &old,
            claims_of(&json!({"sub": "ann", "name": "Ann"})),
            Some(claims_of(&json!({"sub": "ann", "groups": ["ops"]}))),
        );
        assert_eq!(
            new,
            flat(&json!({"sub": "ann", "name": "Ann", "groups": ["ops"]}))
        );
    }

    #[test]
    fn c29_fetched_claims_stay_while_nothing_says_otherwise() {
        let old = flat(&json!({"groups": ["g1"], "other": 1}));
        let pointing = claims_of(&json!({"sub": "ann", "_claim_names": {"groups": "src1"}}));
        let (_, new) = renewed_claims(&old, pointing.clone(), None);
        assert_eq!(new, flat(&json!({"sub": "ann", "groups": ["g1"]})));
        let info = claims_of(&json!({"groups": ["g2"]}));
        let (_, new) = renewed_claims(&old, pointing, Some(info));
        assert_eq!(new, flat(&json!({"sub": "ann", "groups": ["g2"]})));
    }

    #[test]
    fn without_user_info_only_the_id_tokens_claims_are_new() {
        let old = flat(&json!({"groups": ["g1"], "org": {"a": 1, "b": 2}, "name": "Ann"}));
        let new = claims_of(&json!({"name": "Anna", "org": {"a": 3}}));
        let (_, claims) = overlaid_claims(&old, new);
        let expected = flat(&json!({"groups": ["g1"], "org": {"a": 3}, "name": "Anna"}));
        assert_eq!(claims, expected);
    }

    #[test]
    fn no_time_is_no_time() {
        let time = |seconds| instant(&prost_types::Timestamp { seconds, nanos: 5 });
        assert_eq!(time(0), None);
        assert_eq!(time(-62_135_596_800), None, "year 1, as Go writes it");
        assert_eq!(time(1_767_225_600).unwrap().as_second(), 1_767_225_600);
    }
}
