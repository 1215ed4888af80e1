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

/// What a session knew of the person by an ID token.
pub(crate) enum Base {
    /// The provider has just sent it.
    New(Claims),
    /// It is that of the sign-in, or of an earlier refresh.
    Stored(Claims),
}

/// Claims to store.
pub(crate) struct Renewed {
    /// As the provider has them.
    pub all: Claims,
    pub flat: FlatClaims,
    /// Names of those that user info has given, sorted.
    pub of_user_info: Vec<String>,
}

/// The claims that a session has now: those of its newest ID token, and user info over them.
/// Nothing of the old is kept, so that what was taken from a person at the provider is gone here.
/// That goes for what user info gave once and leaves out now, although an ID token that is older
/// still says it.
///
/// One exception: claims that the ID token only points to (`_claim_names`) and that were fetched
/// at sign-in are not in either of the two, and stay.
pub(crate) fn renewed_claims(old: &Session, base: Base, user_info: Option<Claims>) -> Renewed {
    let (mut id_token, given_before) = match base {
        Base::New(claims) => (claims, &[][..]),
        Base::Stored(claims) => (claims, &old.user_info_claims[..]),
    };
    let mut of_user_info = given_before.to_vec();
    if let Some(info) = &user_info {
        for name in given_before.iter().filter(|name| !info.contains_key(*name)) {
            forget(&mut id_token, name);
        }
        of_user_info.extend(info.keys().cloned());
    }
    of_user_info.sort_unstable();
    of_user_info.dedup();
    let mut all = claims::combine(id_token, user_info);
    let pointers = all.remove("_claim_names");
    all.remove("_claim_sources");
    let mut flat: FlatClaims = to_list_values(&flatten(&all));
    if let Some(serde_json::Value::Object(names)) = pointers {
        for name in names.keys().filter(|name| !all.contains_key(*name)) {
            let below = format!("{name}.");
            let kept = old
                .claims
                .iter()
                .filter(|(k, _)| *k == name || k.starts_with(&below));
            flat.extend(kept.map(|(k, v)| (k.clone(), v.clone())));
        }
    }
    Renewed {
        all,
        flat,
        of_user_info,
    }
}

/// Takes out a claim, and what says where it lies.
fn forget(claims: &mut Claims, name: &str) {
    claims.remove(name);
    if let Some(serde_json::Value::Object(names)) = claims.get_mut("_claim_names") {
        names.remove(name);
    }
}

/// The claims of a new ID token over the old ones, where user info can't be had and so nothing is
/// known about the rest.
pub(crate) fn overlaid_claims(old: &Session, id_token: Claims) -> Renewed {
    let new = renewed_claims(old, Base::New(id_token), None);
    let renewed = |key: &str| new.all.contains_key(key.split('.').next().unwrap_or(key));
    let mut flat: FlatClaims = old
        .claims
        .iter()
        .filter(|(key, _)| !renewed(key))
        .map(|(key, values)| (key.clone(), values.clone()))
        .collect();
    flat.extend(new.flat);
    Renewed {
        all: new.all,
        flat,
        of_user_info: old.user_info_claims.clone(),
    }
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

    fn session_with(claims: &serde_json::Value, of_user_info: &[&str]) -> Session {
        Session {
            claims: flat(claims),
            user_info_claims: of_user_info.iter().map(|name| (*name).to_owned()).collect(),
            ..Session::default()
        }
    }

    fn stored(claims: &serde_json::Value) -> Base {
        Base::Stored(claims_of(claims))
    }

    #[test]
    fn w4_what_is_gone_at_the_provider_is_gone_here() {
        let old = session_with(
            &json!({"groups": ["eng", "ops"], "team": "a", "sub": "ann"}),
            &[],
        );
        let new = renewed_claims(
            &old,
            stored(&json!({"sub": "ann", "name": "Ann"})),
            Some(claims_of(&json!({"sub": "ann", "groups": ["ops"]}))),
        );
        assert_eq!(
            new.flat,
            flat(&json!({"sub": "ann", "name": "Ann", "groups": ["ops"]}))
        );
        assert_eq!(new.of_user_info, ["groups", "sub"]);
    }

    /// A person in no group has no `groups` at all at some providers.
    #[test]
    fn c28_what_user_info_stops_giving_is_gone_although_the_id_token_has_it() {
        let in_token = json!({"sub": "ann", "name": "Ann", "groups": ["eng"]});
        let mut session = session_with(&in_token, &["groups", "sub"]);
        let info = claims_of(&json!({"sub": "ann"}));
        // Again and again, by the same old ID token.
        for _ in 0..2 {
            let new = renewed_claims(&session, stored(&in_token), Some(info.clone()));
            assert_eq!(new.flat, flat(&json!({"sub": "ann", "name": "Ann"})));
            (session.claims, session.user_info_claims) = (new.flat, new.of_user_info);
        }
        // What a newer ID token says, holds; what user info never gave, too.
        let new = Base::New(claims_of(&in_token));
        let new = renewed_claims(&session, new, Some(info.clone()));
        assert_eq!(new.flat, flat(&in_token));
        (session.claims, session.user_info_claims) = (new.flat, new.of_user_info);
        let new = renewed_claims(&session, stored(&in_token), Some(info));
        assert_eq!(new.flat, flat(&in_token));

        let pointing = json!({"sub": "ann", "_claim_names": {"groups": "src1"}});
        let session = session_with(&json!({"groups": ["eng"]}), &["groups"]);
        let info = claims_of(&json!({"sub": "ann"}));
        let new = renewed_claims(&session, stored(&pointing), Some(info));
        assert_eq!(new.flat, flat(&json!({"sub": "ann"})));
    }

    #[test]
    fn c29_fetched_claims_stay_while_nothing_says_otherwise() {
        let old = session_with(&json!({"groups": ["g1"], "other": 1}), &[]);
        let pointing = json!({"sub": "ann", "_claim_names": {"groups": "src1"}});
        let new = renewed_claims(&old, stored(&pointing), None);
        assert_eq!(new.flat, flat(&json!({"sub": "ann", "groups": ["g1"]})));
        let info = claims_of(&json!({"groups": ["g2"]}));
        let new = renewed_claims(&old, stored(&pointing), Some(info));
        assert_eq!(new.flat, flat(&json!({"sub": "ann", "groups": ["g2"]})));
    }

    #[test]
    fn without_user_info_only_the_id_tokens_claims_are_new() {
        let claims = json!({"groups": ["g1"], "org": {"a": 1, "b": 2}, "name": "Ann"});
        let old = session_with(&claims, &["groups"]);
        let new = claims_of(&json!({"name": "Anna", "org": {"a": 3}}));
        let new = overlaid_claims(&old, new);
        let expected = flat(&json!({"groups": ["g1"], "org": {"a": 3}, "name": "Anna"}));
        assert_eq!(new.flat, expected);
        assert_eq!(new.of_user_info, ["groups"]);
    }

    #[test]
    fn no_time_is_no_time() {
        let time = |seconds| instant(&prost_types::Timestamp { seconds, nanos: 5 });
        assert_eq!(time(0), None);
        assert_eq!(time(-62_135_596_800), None, "year 1, as Go writes it");
        assert_eq!(time(1_767_225_600).unwrap().as_second(), 1_767_225_600);
    }
}
