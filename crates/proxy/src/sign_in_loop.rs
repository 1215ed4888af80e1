//! Tells a person why signing in leads nowhere, instead of sending them round and round.
//!
//! The callback counts, in a cookie that lives for a minute, how often it has set a session. A
//! navigation that is to be sent to sign in although it was twice signed in within that minute is
//! in a loop.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use jiff::Timestamp;
use postern_common::web::cookie::{self, Scope, suffix};

/// How long a sign-in counts.
const COUNTS: Duration = Duration::from_secs(60);

/// So many sign-ins in that time without a session that holds are a loop.
const MANY: u32 = 2;

fn name(session_cookie: &str) -> String {
    format!("{session_cookie}{}", suffix::SIGNED_IN)
}

fn counted(headers: &HeaderMap, session_cookie: &str) -> u32 {
    let name = name(session_cookie);
    let values = cookie::values(headers, &name).filter_map(|value| value.parse().ok());
    values.max().unwrap_or(0)
}

/// One more sign-in on this host.
pub(crate) fn count(
    headers: &HeaderMap,
    session_cookie: &str,
    now: Timestamp,
) -> Option<HeaderValue> {
    let count = counted(headers, session_cookie).saturating_add(1);
    cookie::set(
        &name(session_cookie),
        &count.to_string(),
        Scope::HOST,
        COUNTS,
        now,
    )
}

/// Who signs out may sign in again.
pub(crate) fn forget(session_cookie: &str, now: Timestamp) -> Option<HeaderValue> {
    cookie::clear(&name(session_cookie), Scope::HOST, now)
}

/// What is wrong, if this is a loop.
pub(crate) fn cause(headers: &HeaderMap, session_cookie: &str) -> Option<&'static str> {
    if counted(headers, session_cookie) < MANY {
        return None;
    }
    let kept = cookie::values(headers, session_cookie).next().is_some();
    Some(if kept {
        "You have just signed in twice, but your session is not accepted here. It may have been \
         ended, belong to another sign-in, or the clocks of the servers may differ. Try again in a \
         minute."
    } else {
        "You have just signed in twice, but your browser did not keep the session cookie for this \
         site. Please allow cookies here, check that the address is right, and try again in a \
         minute."
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(cookies: &str) -> HeaderMap {
        [(http::header::COOKIE, cookies.parse().unwrap())]
            .into_iter()
            .collect()
    }

    #[test]
    fn the_third_round_is_a_loop() {
        assert_eq!(cause(&HeaderMap::new(), "_pomerium"), None);
        let mut cookies = String::new();
        for round in 1..=2 {
            assert_eq!(cause(&with(&format!("a=b{cookies}")), "_pomerium"), None);
            let now = Timestamp::UNIX_EPOCH;
            let set = count(&with(&format!("a=b{cookies}")), "_pomerium", now).unwrap();
            let pair = set.to_str().unwrap().split(';').next().unwrap().to_owned();
            assert_eq!(pair, format!("_pomerium_signed_in={round}"));
            cookies = format!("; {pair}");
        }
        let lost = cause(&with(&format!("a=b{cookies}")), "_pomerium").unwrap();
        assert!(lost.contains("did not keep"));
        let refused = cause(&with(&format!("_pomerium=x{cookies}")), "_pomerium").unwrap();
        assert!(refused.contains("not accepted"));
    }
}
