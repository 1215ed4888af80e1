//! When something is due for a session. Pure.

use jiff::{SignedDuration, Timestamp};
use postern_common::rpc::stubs::session::Session;

use super::record::instant;

/// How long before a token's end it is refreshed, at most.
const MARGIN: SignedDuration = SignedDuration::from_secs(60);
/// Least time between two refreshes of one session.
const DISTANCE: SignedDuration = SignedDuration::from_secs(10);
/// Longest pause after failures.
const MAX_PAUSE: SignedDuration = SignedDuration::from_mins(5);
/// How often user info is asked for.
const USER_INFO: SignedDuration = SignedDuration::from_mins(10);

/// Whether the end of an ID token makes a refresh due (`refresh_session_at_id_token_expiration`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdTokenExpiry {
    Counts,
    Ignored,
}

/// What can be due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Its time is over.
    Expire,
    Refresh,
    UserInfo,
}

/// What a session record says about times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub expires_at: Option<Timestamp>,
    pub issued_at: Option<Timestamp>,
    pub access_expires_at: Option<Timestamp>,
    pub id_token_expires_at: Option<Timestamp>,
    /// There is a refresh token that may be used.
    pub refreshable: bool,
    /// There is an access token of a browser's sign-in. (One that a program brought is for an
    /// interface, and the session ends with it.)
    pub has_access_token: bool,
}

impl Facts {
    pub fn of(session: &Session) -> Self {
        let oauth = session.oauth_token.as_ref();
        let held = |text: &str| !session.refresh_disabled && !text.is_empty();
        Self {
            expires_at: session.expires_at.as_ref().and_then(instant),
            issued_at: session.issued_at.as_ref().and_then(instant),
            access_expires_at: oauth.and_then(|t| t.expires_at.as_ref()).and_then(instant),
            id_token_expires_at: session
                .id_token
                .as_ref()
                .and_then(|t| t.expires_at.as_ref())
                .and_then(instant),
            refreshable: oauth.is_some_and(|t| held(&t.refresh_token)),
            has_access_token: oauth.is_some_and(|t| held(&t.access_token)),
        }
    }
}

/// What this manager has done for a session.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct History {
    /// When the next user info is due by the clock alone.
    pub user_info_at: Timestamp,
    /// Start of the last attempt to refresh.
    pub attempt: Option<Timestamp>,
    /// The last refresh that worked.
    pub refreshed: Option<Timestamp>,
    /// Attempts that failed since.
    pub failures: u32,
    /// No attempt before this, as the last failure has it.
    pub not_before: Option<Timestamp>,
}

impl History {
    /// For a session that has just been made, or was found on taking over: then the first user
    /// info comes somewhere in the first ten minutes, so that not all come together.
    pub fn new(now: Timestamp, first_user_info: SignedDuration) -> Self {
        Self {
            user_info_at: plus(now, first_user_info),
            attempt: None,
            refreshed: None,
            failures: 0,
            not_before: None,
        }
    }

    pub fn user_info_done(&mut self, now: Timestamp) {
        self.user_info_at = plus(now, USER_INFO);
    }

    /// After a failure: ten seconds, doubled each time, jittered by a fifth; the provider's own
    /// wish counts when it is longer.
    pub fn failed(&mut self, now: Timestamp, wish: Option<SignedDuration>, jitter: f64) {
        self.failures = self.failures.saturating_add(1);
        let pause = DISTANCE
            .saturating_mul(
                1_i32
                    .checked_shl(self.failures.min(10) - 1)
                    .unwrap_or(i32::MAX),
            )
            .min(MAX_PAUSE)
            .mul_f64(0.8 + 0.4 * jitter);
        self.not_before = Some(plus(now, pause.max(wish.unwrap_or_default())));
    }

    pub fn succeeded(&mut self, now: Timestamp) {
        self.refreshed = Some(now);
        self.failures = 0;
        self.not_before = None;
    }
}

/// What is due next, and when; the time may have passed.
pub(crate) fn next(
    facts: &Facts,
    history: &History,
    rule: IdTokenExpiry,
) -> Option<(Timestamp, Task)> {
    [
        facts.expires_at.map(|at| (at, Task::Expire)),
        refresh_at(facts, history, rule).map(|at| (at, Task::Refresh)),
        user_info_at(facts, history).map(|at| (at, Task::UserInfo)),
    ]
    .into_iter()
    .flatten()
    .min_by_key(|(at, _)| *at)
}

fn refresh_at(facts: &Facts, history: &History, rule: IdTokenExpiry) -> Option<Timestamp> {
    if !facts.refreshable {
        return None;
    }
    let began = history.refreshed.or(facts.issued_at);
    let access = facts.access_expires_at.map(|end| before(end, began));
    // A refresh that brought no new ID token left the old one, whose end means nothing then:
    // else it would be due again at once, for ever.
    let id_token = facts
        .id_token_expires_at
        .filter(|_| rule == IdTokenExpiry::Counts)
        .map(|end| before(end, facts.issued_at))
        .filter(|due| history.refreshed.is_none_or(|done| done < *due));
    let wanted = [access, id_token].into_iter().flatten().min()?;
    let distance = history.attempt.map(|at| plus(at, DISTANCE));
    [Some(wanted), distance, history.not_before]
        .into_iter()
        .flatten()
        .max()
}

/// A minute before the end, for short-lived tokens a fifth of their life.
fn before(end: Timestamp, began: Option<Timestamp>) -> Timestamp {
    let margin = match began {
        Some(began) if began < end => (began.duration_until(end) / 5).min(MARGIN),
        _ => MARGIN,
    };
    end.saturating_sub(margin).unwrap_or(Timestamp::MIN)
}

fn user_info_at(facts: &Facts, history: &History) -> Option<Timestamp> {
    let at = history.user_info_at;
    // With a token that has run out there is nothing to ask; a refresh asks by itself.
    let usable = facts.access_expires_at.is_none_or(|end| at < end);
    (facts.has_access_token && usable).then_some(at)
}

fn plus(at: Timestamp, duration: SignedDuration) -> Timestamp {
    at.saturating_add(duration).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn facts() -> Facts {
        Facts {
            expires_at: Some(at(50_400)),
            issued_at: Some(at(0)),
            access_expires_at: Some(at(3600)),
            id_token_expires_at: Some(at(1800)),
            refreshable: true,
            has_access_token: true,
        }
    }

    fn history() -> History {
        History::new(at(0), SignedDuration::from_hours(100))
    }

    fn due(facts: &Facts, history: &History) -> (i64, Task) {
        let (at, task) = next(facts, history, IdTokenExpiry::Counts).unwrap();
        (at.as_second(), task)
    }

    #[test]
    fn a_minute_before_the_first_token_ends() {
        assert_eq!(due(&facts(), &history()), (1740, Task::Refresh));
        let (ignored, _) = next(&facts(), &history(), IdTokenExpiry::Ignored).unwrap();
        assert_eq!(ignored.as_second(), 3540);
    }

    #[test]
    fn expiry_needs_no_tokens() {
        let mut plain = facts();
        (plain.refreshable, plain.has_access_token) = (false, false);
        assert_eq!(due(&plain, &history()), (50_400, Task::Expire));
        plain.expires_at = None;
        assert_eq!(next(&plain, &history(), IdTokenExpiry::Counts), None);
    }

    /// C19: the old ID token, kept because no new one comes, makes nothing due.
    #[test]
    fn c19_an_id_token_that_is_not_renewed_is_no_reason() {
        let mut history = history();
        history.attempt = Some(at(1740));
        history.succeeded(at(1740));
        let mut facts = facts();
        facts.access_expires_at = Some(at(1740 + 300));
        assert_eq!(due(&facts, &history), (1740 + 240, Task::Refresh));
    }

    #[test]
    fn short_lived_tokens_are_not_refreshed_in_a_loop() {
        let mut history = history();
        history.attempt = Some(at(100));
        history.succeeded(at(100));
        let mut facts = facts();
        facts.id_token_expires_at = None;
        facts.access_expires_at = Some(at(160));
        assert_eq!(due(&facts, &history), (148, Task::Refresh));
        facts.access_expires_at = Some(at(101));
        assert_eq!(
            due(&facts, &history),
            (110, Task::Refresh),
            "ten seconds apart at least"
        );
    }

    #[test]
    fn w7_failures_are_retried_with_growing_pauses() {
        let mut history = history();
        let mut now = at(1740);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            history.attempt = Some(now);
            history.failed(now, None, 0.5);
            let (next, task) = due(&facts(), &history);
            assert_eq!(task, Task::Refresh);
            pauses.push(next - now.as_second());
            now = at(next);
        }
        assert_eq!(pauses[..5], [10, 20, 40, 80, 160]);
        assert!(pauses[5..].iter().all(|p| *p == 300), "{pauses:?}");
        history.failed(now, Some(SignedDuration::from_secs(900)), 0.5);
        assert_eq!(due(&facts(), &history).0, now.as_second() + 900);
    }

    #[test]
    fn user_info_every_ten_minutes_while_the_token_lasts() {
        let mut history = History::new(at(0), SignedDuration::from_secs(600));
        assert_eq!(due(&facts(), &history), (600, Task::UserInfo));
        history.user_info_done(at(600));
        assert_eq!(due(&facts(), &history), (1200, Task::UserInfo));
        let mut facts = facts();
        facts.access_expires_at = Some(at(900));
        facts.refreshable = false;
        assert_eq!(due(&facts, &history), (50_400, Task::Expire));
    }

    #[test]
    fn what_a_program_brought_is_left_alone_until_it_ends() {
        let session = Session {
            refresh_disabled: true,
            oauth_token: Some(postern_common::rpc::stubs::session::OAuthToken {
                access_token: "a".into(),
                refresh_token: "r".into(),
                ..Default::default()
            }),
            expires_at: Some(crate::storage::timestamp(at(1_767_225_600))),
            ..Session::default()
        };
        let facts = Facts::of(&session);
        assert_eq!(
            due(&facts, &History::new(at(0), SignedDuration::ZERO)),
            (1_767_225_600, Task::Expire)
        );
    }

    proptest! {
        /// Whatever the times are, two attempts are ten seconds apart, and a refresh that worked
        /// and brought tokens of some length is followed by rest.
        #[test]
        fn never_a_loop(access in proptest::option::of(0_i64..10_000), id in proptest::option::of(0_i64..10_000),
                        done in 0_i64..10_000, life in 1_i64..4_000) {
            let mut facts = facts();
            facts.id_token_expires_at = id.map(at);
            facts.access_expires_at = access.map(|_| at(done + life));
            facts.expires_at = None;
            let mut history = history();
            history.attempt = Some(at(done));
            history.succeeded(at(done));
            if let Some((next, Task::Refresh)) = next(&facts, &history, IdTokenExpiry::Counts) {
                prop_assert!(next.as_second() >= done + 10);
                let by_access = access.is_some() && next.as_second() >= done + life * 4 / 5 - 1;
                let by_id = id.is_some_and(|end| next.as_second() <= end && end > done);
                prop_assert!(by_access || by_id || next.as_second() == done + 10);
            }
        }
    }
}
