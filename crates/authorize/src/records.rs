//! Records of the databroker as authorize uses them: decoded once when they arrive, with nothing
//! in them that no decision needs.

mod claims;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use postern_common::rpc::stubs::{databroker, session, user};
use postern_common::session as validity;
use prost::Message as _;
use serde_json::{Number, Value};

/// Record types that decisions rest on.
pub mod record_type {
    pub const SESSION: &str = "type.googleapis.com/session.Session";
    pub const USER: &str = "type.googleapis.com/user.User";
    pub const SERVICE_ACCOUNT: &str = "type.googleapis.com/user.ServiceAccount";
    pub const DIRECTORY_USER: &str = "pomerium.io/DirectoryUser";
    pub const DIRECTORY_GROUP: &str = "pomerium.io/DirectoryGroup";
    pub const DEVICE_CREDENTIAL: &str = "type.googleapis.com/pomerium.device.Credential";
    pub const DEVICE_ENROLLMENT: &str = "type.googleapis.com/pomerium.device.Enrollment";
}

pub use claims::Claims;
use claims::Entry;

/// `session.Session` as far as it is needed here, claims unread.
#[derive(Clone, PartialEq, prost::Message)]
struct SessionMessage {
    #[prost(string, tag = "3")]
    user_id: String,
    #[prost(message, optional, tag = "4")]
    expires_at: Option<prost_types::Timestamp>,
    #[prost(message, optional, tag = "6")]
    id_token: Option<session::IdToken>,
    #[prost(message, optional, tag = "7")]
    oauth_token: Option<session::OAuthToken>,
    #[prost(message, repeated, tag = "9")]
    claims: Vec<Entry>,
    #[prost(string, repeated, tag = "10")]
    audience: Vec<String>,
    #[prost(string, optional, tag = "15")]
    impersonate_session_id: Option<String>,
    #[prost(message, repeated, tag = "17")]
    device_credentials: Vec<session::session::DeviceCredential>,
    #[prost(bool, tag = "19")]
    refresh_disabled: bool,
    #[prost(string, tag = "20")]
    idp_id: String,
}

/// `user.User` as far as it is needed here, claims unread.
#[derive(Clone, PartialEq, prost::Message)]
struct UserMessage {
    #[prost(string, tag = "4")]
    email: String,
    #[prost(message, repeated, tag = "9")]
    claims: Vec<Entry>,
}

/// Whether a provider's tokens are kept: only while a loaded route hands one to its upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepTokens {
    No,
    Yes,
}

/// `session.Session`
#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    pub id: Arc<str>,
    pub user_id: Arc<str>,
    pub idp_id: String,
    /// No decision about this session holds beyond; `None`: no limit of its own.
    pub valid_until: Option<Timestamp>,
    pub claims: Claims,
    /// Claims, user, groups and policy come from this session instead.
    pub impersonates: Option<Arc<str>>,
    pub devices: Vec<DeviceCredential>,
    pub tokens: Option<Arc<Tokens>>,
    /// Of the bearer token that the session was made from; empty for other sessions.
    pub audience: Vec<String>,
}

/// What a session proved by WebAuthn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceCredential {
    pub type_id: String,
    /// `None`: the person said that there is none.
    pub credential_id: Option<String>,
}

/// A provider's tokens, for upstreams that are configured to get them.
#[derive(Clone, PartialEq, Eq)]
pub struct Tokens {
    pub access: String,
    pub id: String,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(…)")
    }
}

/// `user.User`
#[derive(Debug, Clone, PartialEq)]
pub struct User {
    pub id: Arc<str>,
    pub email: String,
    pub claims: Claims,
}

/// `user.ServiceAccount`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    pub id: Arc<str>,
    pub user_id: Arc<str>,
    pub valid_until: Option<Timestamp>,
}

/// `pomerium.io/DirectoryUser`: what another writer knows of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryUser {
    pub id: Arc<str>,
    pub email: String,
    pub group_ids: Vec<String>,
}

/// `pomerium.io/DirectoryGroup`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryGroup {
    pub id: Arc<str>,
    pub name: String,
}

/// Why a record can't be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RecordError {
    #[error("record {kind} {id:?} has no payload")]
    NoPayload { kind: String, id: String },
    #[error("record {kind} {id:?} can't be read")]
    Payload {
        kind: String,
        id: String,
        source: prost::DecodeError,
    },
}

fn payload<M: prost::Message + Default>(record: &databroker::Record) -> Result<M, RecordError> {
    let data = record.data.as_ref().ok_or_else(|| RecordError::NoPayload {
        kind: record.r#type.clone(),
        id: record.id.clone(),
    })?;
    // Parts that stay unread need not be copied again.
    M::decode(Bytes::copy_from_slice(&data.value)).map_err(|source| unreadable(record, source))
}

fn unreadable(record: &databroker::Record, source: prost::DecodeError) -> RecordError {
    RecordError::Payload {
        kind: record.r#type.clone(),
        id: record.id.clone(),
        source,
    }
}

impl Session {
    pub fn from_record(record: &databroker::Record, keep: KeepTokens) -> Result<Self, RecordError> {
        let message: SessionMessage = payload(record)?;
        let lifetime = session::Session {
            expires_at: message.expires_at,
            oauth_token: message.oauth_token,
            refresh_disabled: message.refresh_disabled,
            ..session::Session::default()
        };
        let tokens = (keep == KeepTokens::Yes).then(|| {
            Arc::new(Tokens {
                access: lifetime
                    .oauth_token
                    .as_ref()
                    .map(|token| token.access_token.clone())
                    .unwrap_or_default(),
                id: message
                    .id_token
                    .as_ref()
                    .map(|token| token.raw.clone())
                    .unwrap_or_default(),
            })
        });
        Ok(Self {
            id: record.id.as_str().into(),
            valid_until: validity::valid_until(&lifetime),
            user_id: message.user_id.into(),
            idp_id: message.idp_id,
            audience: if message.refresh_disabled {
                message.audience
            } else {
                Vec::new()
            },
            claims: Claims::pack(message.claims).map_err(|source| unreadable(record, source))?,
            impersonates: message
                .impersonate_session_id
                .filter(|id| !id.is_empty())
                .map(Into::into),
            devices: message
                .device_credentials
                .into_iter()
                .map(|device| DeviceCredential {
                    type_id: device.type_id,
                    credential_id: match device.credential {
                        Some(session::session::device_credential::Credential::Id(id)) => Some(id),
                        _ => None,
                    },
                })
                .collect(),
            tokens,
        })
    }
}

impl User {
    pub fn from_record(record: &databroker::Record) -> Result<Self, RecordError> {
        let message: UserMessage = payload(record)?;
        Ok(Self {
            id: record.id.as_str().into(),
            email: message.email,
            claims: Claims::pack(message.claims).map_err(|source| unreadable(record, source))?,
        })
    }
}

impl ServiceAccount {
    pub fn from_record(record: &databroker::Record) -> Result<Self, RecordError> {
        let message: user::ServiceAccount = payload(record)?;
        Ok(Self {
            id: record.id.as_str().into(),
            user_id: message.user_id.into(),
            valid_until: validity::limit(message.expires_at.as_ref()),
        })
    }
}

impl DirectoryUser {
    pub fn from_record(record: &databroker::Record) -> Result<Self, RecordError> {
        let message: prost_types::Struct = payload(record)?;
        let group_ids = match message
            .fields
            .get("group_ids")
            .and_then(|v| v.kind.as_ref())
        {
            Some(prost_types::value::Kind::ListValue(list)) => {
                list.values.iter().filter_map(text).collect()
            }
            _ => Vec::new(),
        };
        Ok(Self {
            id: record.id.as_str().into(),
            email: message
                .fields
                .get("email")
                .and_then(text)
                .unwrap_or_default(),
            group_ids,
        })
    }
}

impl DirectoryGroup {
    pub fn from_record(record: &databroker::Record) -> Result<Self, RecordError> {
        let message: prost_types::Struct = payload(record)?;
        Ok(Self {
            id: record.id.as_str().into(),
            name: message
                .fields
                .get("name")
                .and_then(text)
                .unwrap_or_default(),
        })
    }
}

/// The payload of a record that is a plain object (`google.protobuf.Struct`).
pub fn object(record: &databroker::Record) -> Option<Value> {
    let data = record.data.as_ref()?;
    if !data.type_url.ends_with("google.protobuf.Struct") {
        return None;
    }
    let object = prost_types::Struct::decode(data.value.as_slice()).ok()?;
    Some(json(prost_types::Value {
        kind: Some(prost_types::value::Kind::StructValue(object)),
    }))
}

fn text(value: &prost_types::Value) -> Option<String> {
    match value.kind.as_ref()? {
        prost_types::value::Kind::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

fn json(value: prost_types::Value) -> Value {
    use prost_types::value::Kind;
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => Value::Bool(value),
        Some(Kind::NumberValue(value)) => number(value),
        Some(Kind::StringValue(value)) => Value::String(value),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(json).collect(),
        Some(Kind::StructValue(object)) => object
            .fields
            .into_iter()
            .map(|(name, value)| (name, json(value)))
            .collect(),
    }
}

/// Integers stay integers as far as a double can hold them exactly.
fn number(value: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
        return Value::Number((value as i64).into());
    }
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: &str, id: &str, message: &impl prost::Message) -> databroker::Record {
        databroker::Record {
            r#type: kind.to_owned(),
            id: id.to_owned(),
            data: Some(prost_types::Any {
                type_url: kind.to_owned(),
                value: message.encode_to_vec(),
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_session_carries_its_end() {
        let message = session::Session {
            expires_at: Some(prost_types::Timestamp {
                seconds: 2_000_000_000,
                nanos: 0,
            }),
            ..Default::default()
        };
        let record = record(record_type::SESSION, "s", &message);
        let session = Session::from_record(&record, KeepTokens::No).unwrap();
        let end = Timestamp::from_second(2_000_000_000).unwrap();
        assert_eq!(session.valid_until, Some(end));
    }

    #[test]
    fn integers_stay_integers() {
        for (stored, read) in [
            (42.0, serde_json::json!(42)),
            (1_700_000_000.0, serde_json::json!(1_700_000_000)),
            (-3.0, serde_json::json!(-3)),
            (0.1, serde_json::json!(0.1)),
            (f64::NAN, Value::Null),
        ] {
            assert_eq!(number(stored), read);
        }
    }

    #[test]
    fn s16_tokens_are_not_printed_nor_kept_without_need() {
        let message = session::Session {
            oauth_token: Some(session::OAuthToken {
                access_token: "top-secret".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let record = record(record_type::SESSION, "s", &message);
        assert!(
            Session::from_record(&record, KeepTokens::No)
                .unwrap()
                .tokens
                .is_none()
        );
        let kept = Session::from_record(&record, KeepTokens::Yes).unwrap();
        assert_eq!(kept.tokens.as_ref().unwrap().access, "top-secret");
        assert!(!format!("{kept:?}").contains("top-secret"));
    }

    #[test]
    fn a_damaged_record_is_an_error() {
        let mut damaged = record(record_type::USER, "u", &user::User::default());
        damaged.data.as_mut().unwrap().value = vec![0xff, 0xff];
        assert!(User::from_record(&damaged).is_err());
        damaged.data = None;
        assert!(User::from_record(&damaged).is_err());
    }

    #[test]
    fn directory_records() {
        let text = |text: &str| prost_types::Value {
            kind: Some(prost_types::value::Kind::StringValue(text.to_owned())),
        };
        let list = prost_types::Value {
            kind: Some(prost_types::value::Kind::ListValue(
                prost_types::ListValue {
                    values: vec![text("g1"), text("g2")],
                },
            )),
        };
        let message = prost_types::Struct {
            fields: [
                ("email".to_owned(), text("a@b")),
                ("group_ids".to_owned(), list),
            ]
            .into(),
        };
        let user = DirectoryUser::from_record(&record(record_type::DIRECTORY_USER, "u", &message))
            .unwrap();
        assert_eq!(user.email, "a@b");
        assert_eq!(user.group_ids, ["g1", "g2"]);
    }
}
