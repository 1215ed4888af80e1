//! How the records of a type are kept: what may be set, and what the databroker itself sets at its start.

use std::time::Duration;

use postern_common::rpc::stubs::databroker::Options;

use crate::storage::length;
use crate::writer::MAX_NAME;

/// Most indexed fields of a type.
const MAX_FIELDS: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    #[error("options need a type of at most {MAX_NAME} bytes, without NUL")]
    Kind,
    #[error(
        "at most {MAX_FIELDS} fields can be indexed, each with a name of 1 to {MAX_NAME} bytes"
    )]
    Fields,
    #[error("ttl must be above 0 and of at most 292 years")]
    Ttl,
}

pub fn check_kind(kind: &str) -> Result<(), OptionsError> {
    let fits = !kind.is_empty() && kind.len() <= MAX_NAME && !kind.contains('\0');
    if fits {
        Ok(())
    } else {
        Err(OptionsError::Kind)
    }
}

pub fn check(kind: &str, options: &Options) -> Result<(), OptionsError> {
    check_kind(kind)?;
    let fields = &options.indexable_fields;
    if fields.len() > MAX_FIELDS
        || fields
            .iter()
            .any(|it| it.is_empty() || it.len() > MAX_NAME || it.contains('\0'))
    {
        return Err(OptionsError::Fields);
    }
    if options.ttl.is_some() && ttl(options).is_none() {
        return Err(OptionsError::Ttl);
    }
    Ok(())
}

/// How long records are kept after they were written, if there is an end to it: above nothing, and
/// as many nanoseconds as fit into 64 bits with their sign, which is what Pomerium can keep.
pub fn ttl(options: &Options) -> Option<Duration> {
    let ttl = length(options.ttl.as_ref()?)?;
    (!ttl.is_zero() && i64::try_from(ttl.as_nanos()).is_ok()).then_some(ttl)
}

/// What types need that Pomerium's services write, and those of the identity manager.
pub fn defaults() -> Vec<(String, Options)> {
    let of = |name: &str, capacity, fields: &[&str], ttl_minutes: Option<i64>| {
        let options = Options {
            capacity,
            indexable_fields: fields.iter().map(|&field| field.to_owned()).collect(),
            ttl: ttl_minutes.map(|minutes| prost_types::Duration {
                seconds: minutes * 60,
                nanos: 0,
            }),
        };
        (format!("type.googleapis.com/{name}"), options)
    };
    vec![
        of(
            "session.SessionBindingRequest",
            Some(50_000),
            &["key"],
            Some(15),
        ),
        of(
            "session.SessionBinding",
            None,
            &["session_id", "user_id"],
            None,
        ),
        of("session.IdentityBinding", None, &["user_id"], None),
        of(
            "oauth21.UpstreamMCPToken",
            None,
            &["user_id", "route_id"],
            None,
        ),
        of("oauth21.PendingUpstreamAuth", None, &["state_id"], Some(15)),
        of("pomerium.events.LastError", Some(50), &[], None),
        // Left behind by sessions that are gone.
        of("postern.RefreshIntent", None, &[], Some(24 * 60)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_set_ourselves_is_allowed() {
        for (kind, options) in defaults() {
            assert_eq!(check(&kind, &options), Ok(()), "{kind}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let ttl = |seconds| Options {
            ttl: Some(prost_types::Duration { seconds, nanos: 0 }),
            ..Options::default()
        };
        assert_eq!(check("", &Options::default()), Err(OptionsError::Kind));
        assert_eq!(check("t", &ttl(0)), Err(OptionsError::Ttl));
        assert_eq!(check("t", &ttl(-5)), Err(OptionsError::Ttl));
        for (seconds, nanos) in [
            (i64::MAX, 999_999_999),
            (i64::MAX, i32::MAX),
            (i64::MIN, i32::MIN),
            (0, -1),
            (10_000_000_000, 0),
        ] {
            let options = Options {
                ttl: Some(prost_types::Duration { seconds, nanos }),
                ..Options::default()
            };
            assert_eq!(
                check("t", &options),
                Err(OptionsError::Ttl),
                "{seconds} {nanos}"
            );
        }
        assert_eq!(check("t", &ttl(9_000_000_000)), Ok(()));
        let fields = Options {
            indexable_fields: vec![String::new()],
            ..Options::default()
        };
        assert_eq!(check("t", &fields), Err(OptionsError::Fields));
    }
}
