//! Copying the fields that a mask names from one payload into another. Pure; unknown fields of the target survive.

use std::collections::HashMap;

use postern_common::rpc::stubs::databroker::Record;
use prost::Message as _;
use prost_reflect::{DynamicMessage, ReflectMessage as _};
use prost_types::Any;

use crate::payload::{Payload, field_named};
use crate::storage::RecordKey;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    #[error("the record holds {found:?}, the patch {patch:?}")]
    OtherType { found: String, patch: String },
    #[error(
        "payloads of type {0:?} are not known here, so single fields cannot be changed; use Put"
    )]
    UnknownType(String),
    #[error("the field mask names {path:?}, which {message} does not have")]
    UnknownPath { path: String, message: String },
    #[error("a record of the patch has no data")]
    NoData,
}

/// `target` with the fields of `source` that `mask` names. A named field that `source` does not set is cleared.
pub fn patch(target: &Any, source: &Any, mask: &[String]) -> Result<Any, PatchError> {
    if target.type_url != source.type_url {
        return Err(PatchError::OtherType {
            found: target.type_url.clone(),
            patch: source.type_url.clone(),
        });
    }
    let read =
        |data| Payload::read(data).ok_or_else(|| PatchError::UnknownType(source.type_url.clone()));
    let (mut into, from) = (read(target)?.0, read(source)?.0);
    for path in mask {
        copy(&mut into, Some(&from), path, path)?;
    }
    Ok(Any {
        type_url: target.type_url.clone(),
        value: into.encode_to_vec(),
    })
}

/// What a patch of several records comes down to: those of `sources` that are `present`, with their new data. A
/// record that is named twice is patched twice.
pub fn records(
    present: Vec<Record>,
    sources: Vec<Record>,
    mask: &[String],
) -> Result<Vec<Record>, PatchError> {
    let mut now: HashMap<_, _> = present
        .into_iter()
        .map(|record| (RecordKey::of(&record), record.data))
        .collect();
    let mut patched = Vec::with_capacity(sources.len());
    for source in sources {
        let Some(target) = now.get_mut(&RecordKey::of(&source)) else {
            continue;
        };
        let empty = Any::default();
        let from = source.data.as_ref().ok_or(PatchError::NoData)?;
        let data = patch(target.as_ref().unwrap_or(&empty), from, mask)?;
        *target = Some(data.clone());
        patched.push(Record {
            data: Some(data),
            deleted_at: None,
            ..source
        });
    }
    Ok(patched)
}

/// `from` is `None` below a message that the source does not set.
fn copy(
    into: &mut DynamicMessage,
    from: Option<&DynamicMessage>,
    path: &str,
    whole: &str,
) -> Result<(), PatchError> {
    let (name, rest) = match path.split_once('.') {
        Some((name, rest)) => (name, Some(rest)),
        None => (path, None),
    };
    let unknown = |message: &DynamicMessage| PatchError::UnknownPath {
        path: whole.to_owned(),
        message: message.descriptor().full_name().to_owned(),
    };
    let field = field_named(into, name).ok_or_else(|| unknown(into))?;
    let Some(rest) = rest else {
        match from.filter(|from| from.has_field(&field)) {
            Some(from) => into.set_field(&field, from.get_field(&field).into_owned()),
            None => into.clear_field(&field),
        }
        return Ok(());
    };
    // A path leads on only through single messages.
    if field.is_list() || field.is_map() || field.kind().as_message().is_none() {
        return Err(unknown(into));
    }
    let from_inner = from
        .filter(|from| from.has_field(&field))
        .map(|from| from.get_field(&field));
    let from_inner = from_inner
        .as_deref()
        .and_then(prost_reflect::Value::as_message);
    if from_inner.is_none() && !into.has_field(&field) {
        // Nothing to clear; but the rest of the path must still be a path.
        let mut scratch = into.get_field(&field).into_owned();
        return scratch
            .as_message_mut()
            .map_or(Ok(()), |scratch| copy(scratch, None, rest, whole));
    }
    into.get_field_mut(&field)
        .as_message_mut()
        .map_or(Ok(()), |into| copy(into, from_inner, rest, whole))
}

#[cfg(test)]
mod tests {
    use postern_common::rpc::stubs::session::{OAuthToken, Session};

    use super::*;

    const TYPE: &str = "type.googleapis.com/session.Session";

    fn any(session: &Session) -> Any {
        Any {
            type_url: TYPE.to_owned(),
            value: session.encode_to_vec(),
        }
    }

    fn session(id: &str, token: Option<(&str, &str)>) -> Session {
        Session {
            id: id.to_owned(),
            oauth_token: token.map(|(access, refresh)| OAuthToken {
                access_token: access.to_owned(),
                refresh_token: refresh.to_owned(),
                ..OAuthToken::default()
            }),
            ..Session::default()
        }
    }

    fn patched(target: &Session, source: &Session, mask: &[&str]) -> Result<Session, PatchError> {
        let mask: Vec<_> = mask.iter().map(|&path| path.to_owned()).collect();
        patch(&any(target), &any(source), &mask).map(|it| Session::decode(&*it.value).unwrap())
    }

    #[test]
    fn only_named_fields_change() {
        let got = patched(
            &session("a", Some(("old", "keep"))),
            &session("b", Some(("new", "drop"))),
            &["oauth_token.access_token"],
        );
        assert_eq!(got.unwrap(), session("a", Some(("new", "keep"))));
    }

    #[test]
    fn a_named_field_that_is_not_set_is_cleared() {
        let target = session("a", Some(("x", "y")));
        assert_eq!(
            patched(&target, &session("b", None), &["oauth_token"]).unwrap(),
            session("a", None)
        );
        assert_eq!(
            patched(&target, &session("b", None), &["oauth_token.refresh_token"]).unwrap(),
            session("a", Some(("x", ""))),
        );
        assert_eq!(
            patched(
                &session("a", None),
                &session("b", None),
                &["oauth_token.refresh_token"]
            )
            .unwrap(),
            session("a", None),
        );
    }

    #[test]
    fn a_path_that_does_not_exist_is_an_error() {
        for path in [
            "nope",
            "oauth_token.nope",
            "id.x",
            "claims.x",
            "",
            "oauth_token.",
        ] {
            let got = patched(&session("a", None), &session("b", None), &[path]);
            assert!(
                matches!(got, Err(PatchError::UnknownPath { .. })),
                "{path}: {got:?}"
            );
        }
    }

    #[test]
    fn types_must_agree_and_be_known() {
        let unknown = Any {
            type_url: "type.googleapis.com/unknown.Thing".to_owned(),
            value: vec![],
        };
        let known = any(&Session::default());
        assert!(matches!(
            patch(&known, &unknown, &[]),
            Err(PatchError::OtherType { .. })
        ));
        assert!(matches!(
            patch(&unknown, &unknown, &[]),
            Err(PatchError::UnknownType(_))
        ));
    }

    /// A newer version's field, which this one does not know.
    #[test]
    fn c85_unknown_fields_survive_a_patch() {
        let mut target = any(&session("a", None));
        // Field 1000, length-delimited, "new".
        target.value.extend([0xc2, 0x3e, 3, b'n', b'e', b'w']);
        let got = patch(
            &target,
            &any(&Session {
                idp_id: "i".to_owned(),
                ..Session::default()
            }),
            &["idp_id".to_owned()],
        );
        let value = got.unwrap().value;
        assert!(
            value
                .windows(6)
                .any(|it| it == [0xc2, 0x3e, 3, b'n', b'e', b'w']),
            "{value:?}"
        );
        assert_eq!(Session::decode(&*value).unwrap().idp_id, "i");
    }
}
