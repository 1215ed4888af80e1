//! How long a session may be used. Pure; one rule for whoever signs people in and whoever decides.

use jiff::Timestamp;

use crate::rpc::stubs::session::Session;

/// The first second of 1971. Times before it mean "never": absent ones were written so.
const YEAR_1971: i64 = 365 * 24 * 60 * 60;

/// A session ends at `expires_at`, and with its access token unless that can be refreshed.
/// `None`: it has no end of its own.
pub fn valid_until(session: &Session) -> Option<Timestamp> {
    let expires = limit(session.expires_at.as_ref());
    let token_ends = session.oauth_token.as_ref().and_then(|token| {
        let refreshable = !token.refresh_token.is_empty() && !session.refresh_disabled;
        if refreshable {
            None
        } else {
            limit(token.expires_at.as_ref())
        }
    });
    expires.into_iter().chain(token_ends).min()
}

/// Whether a session may be used now.
pub fn is_valid(session: &Session, now: Timestamp) -> bool {
    valid_until(session).is_none_or(|end| now < end)
}

/// A time that ends something; up to 1970 it ends nothing.
pub fn limit(time: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    let time = time.filter(|time| time.seconds >= YEAR_1971)?;
    // Beyond what can be counted is never, too.
    Timestamp::new(time.seconds, time.nanos).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::stubs::session::OAuthToken;

    fn time(seconds: i64) -> prost_types::Timestamp {
        prost_types::Timestamp { seconds, nanos: 0 }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn token(refresh: &str, expires: Option<prost_types::Timestamp>) -> OAuthToken {
        OAuthToken {
            refresh_token: refresh.to_owned(),
            expires_at: expires,
            ..OAuthToken::default()
        }
    }

    #[test]
    fn a_token_ends_a_session_unless_it_can_be_refreshed() {
        let base = Session {
            expires_at: Some(time(2_000_000_000)),
            ..Session::default()
        };
        assert_eq!(valid_until(&base), Some(at(2_000_000_000)));
        let refreshable = Session {
            oauth_token: Some(token("r", Some(time(1_900_000_000)))),
            ..base.clone()
        };
        assert_eq!(valid_until(&refreshable), Some(at(2_000_000_000)));
        let disabled = Session {
            refresh_disabled: true,
            ..refreshable
        };
        assert_eq!(valid_until(&disabled), Some(at(1_900_000_000)));
        let without = Session {
            oauth_token: Some(token("", Some(time(1_900_000_000)))),
            ..base
        };
        assert_eq!(valid_until(&without), Some(at(1_900_000_000)));
    }

    #[test]
    fn times_up_to_1970_are_none() {
        let never = [0, -62_135_596_800, 1, 31_535_999];
        for never in never.map(time).map(Some).into_iter().chain([None]) {
            let endless = Session {
                expires_at: never,
                oauth_token: Some(token("", never)),
                ..Session::default()
            };
            assert_eq!(valid_until(&endless), None, "{never:?}");
            assert!(is_valid(&endless, at(2_000_000_000)));
        }
        let first = Session {
            expires_at: Some(time(31_536_000)),
            ..Session::default()
        };
        assert!(!is_valid(&first, at(2_000_000_000)));
    }

    #[test]
    fn a_session_counts_until_its_end_and_not_at_it() {
        let session = Session {
            expires_at: Some(time(2_000_000_000)),
            ..Session::default()
        };
        assert!(is_valid(&session, at(1_999_999_999)));
        assert!(!is_valid(&session, at(2_000_000_000)));
    }
}
