//! What is done for one session when something is due: end it, refresh it, ask about the person.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use postern_common::rpc::stubs::databroker::{GetRequest, PatchRequest, Record};
use postern_common::rpc::stubs::session::Session;
use postern_common::rpc::stubs::user::User;
use postern_identity::{
    Claims, Provider, ProviderError, Providers, Refresh, Refreshed, UserInfoRequest, claims,
};
use prost::Message as _;
use prost_types::FieldMask;
use tokio::sync::watch;
use tonic::Code;

use super::intent::NoIntent;
use super::record::{
    Base, FlatClaims, Renewed, SESSION, USER, any, expected_subject, id_token, instant,
    oauth_token, overlaid_claims, renewed_claims, session,
};
use super::schedule::{Facts, Task};
use super::{Client, Now};
use crate::Databroker;
use crate::storage::{Refused, timestamp};
use crate::writer::WriteError;

/// How long new tokens are tried to be stored: they are the only ones left.
const STORE_TRIES: u32 = 60;
const STORE_PAUSE: Duration = Duration::from_secs(5);

/// Does what is due.
pub(crate) struct Worker {
    pub client: Client,
    pub databroker: Databroker,
    pub providers: watch::Receiver<Arc<Providers>>,
    pub now: Now,
}

/// What came of it.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    /// Done; the session's times as they are now, if they were looked at again.
    Done { facts: Option<Facts> },
    /// The access token is no longer accepted: the refresh token decides.
    RefreshNow,
    /// Somebody else is at it; not before this time.
    Later(Timestamp),
    /// Not done, for reasons that say nothing about the session. `wish`: how long the provider
    /// wants to be left alone.
    Failed { wish: Option<SignedDuration> },
    /// There is no such session (any more).
    Gone,
}

const FAILED: Outcome = Outcome::Failed { wish: None };

/// A session as it is stored.
struct Stored {
    record: Record,
    session: Session,
}

/// What became of a change under a version check.
enum Change {
    Made(Box<Session>),
    /// The session is gone, or no longer as the change needs it.
    Pointless,
    Failed,
}

impl Worker {
    pub async fn run(&self, id: &str, task: Task) -> Outcome {
        let stored = match self.read(id).await {
            Ok(Some(stored)) => stored,
            Ok(None) => return Outcome::Gone,
            Err(()) => return FAILED,
        };
        match task {
            Task::Expire => self.expire(stored).await,
            Task::Refresh => self.refresh(stored.session).await,
            Task::UserInfo => self.user_info(stored.session).await,
        }
    }

    async fn read(&self, id: &str) -> Result<Option<Stored>, ()> {
        let request = GetRequest {
            r#type: SESSION.to_owned(),
            id: id.to_owned(),
        };
        match self.client.clone().get(request).await {
            Ok(answer) => Ok(answer.into_inner().record.and_then(|record| {
                let session = session(&record)?;
                Some(Stored { record, session })
            })),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => {
                tracing::warn!(%status, "the identity manager could not read a session");
                Err(())
            }
        }
    }

    async fn expire(&self, stored: Stored) -> Outcome {
        let over = |session: &Session| {
            session
                .expires_at
                .as_ref()
                .and_then(instant)
                .is_some_and(|end| end <= (self.now)())
        };
        self.delete(stored, over, "its time is over").await
    }

    /// Deletes a session if, read again under a version check, it still is what was judged.
    async fn delete(&self, stored: Stored, still: impl Fn(&Session) -> bool, why: &str) -> Outcome {
        let mut stored = stored;
        loop {
            if !still(&stored.session) {
                return Outcome::Done {
                    facts: Some(Facts::of(&stored.session)),
                };
            }
            let id = stored.record.id.clone();
            let record = Record {
                deleted_at: Some(timestamp((self.now)())),
                ..stored.record.clone()
            };
            match self
                .databroker
                .put_if(record, Some(stored.record.version))
                .await
            {
                Ok(_) => {
                    tracing::info!(session = %id, user = %stored.session.user_id, why, "session ended");
                    return Outcome::Gone;
                }
                Err(WriteError::Refused(Refused::Conflict { .. })) => match self.read(&id).await {
                    Ok(Some(newer)) => stored = newer,
                    Ok(None) => return Outcome::Gone,
                    Err(()) => return FAILED,
                },
                Err(error) => {
                    tracing::warn!(session = %id, %error, "a session that is over could not be deleted");
                    return FAILED;
                }
            }
        }
    }

    fn provider(&self, session: &Session) -> Option<Arc<dyn Provider>> {
        let found = self.providers.borrow().get(&session.idp_id);
        found
            .inspect_err(|error| {
                tracing::warn!(session = %session.id, %error, "a session cannot be refreshed; it lives until its end");
            })
            .ok()
    }

    async fn refresh(&self, session: Session) -> Outcome {
        let Some(spent) = refresh_token(&session).map(str::to_owned) else {
            return Outcome::Done {
                facts: Some(Facts::of(&session)),
            };
        };
        let Some(provider) = self.provider(&session) else {
            return FAILED;
        };
        let intent = match self.claim(&session.id).await {
            Ok(intent) => intent,
            Err(NoIntent::Taken { until }) => return Outcome::Later(until),
            Err(NoIntent::Unknown(reason)) => {
                tracing::warn!(session = %session.id, reason, "a refresh could not be announced, so it is not made");
                return FAILED;
            }
        };
        // Between the reading and the claim another may have refreshed it.
        let outcome = match self.read(&session.id).await {
            Ok(Some(stored)) if refresh_token(&stored.session) == Some(&spent) => {
                self.refresh_claimed(&*provider, &stored.session, &spent)
                    .await
            }
            Ok(Some(stored)) => Outcome::Done {
                facts: Some(Facts::of(&stored.session)),
            },
            Ok(None) => Outcome::Gone,
            Err(()) => FAILED,
        };
        self.finish(intent).await;
        outcome
    }

    async fn refresh_claimed(
        &self,
        provider: &dyn Provider,
        session: &Session,
        spent: &str,
    ) -> Outcome {
        let subject = expected_subject(session);
        let ask = Refresh {
            refresh_token: spent,
            expected_subject: subject.as_deref(),
            now: (self.now)(),
        };
        match provider.refresh(ask).await {
            Ok(refreshed) => self.refreshed(provider, session, spent, refreshed).await,
            Err(ProviderError::Refused(refusal)) => {
                let why = format!("its provider refused to refresh it: {refusal}");
                match self.read(&session.id).await {
                    Ok(Some(stored)) => {
                        let same = |s: &Session| refresh_token(s) == Some(spent);
                        self.delete(stored, same, &why).await
                    }
                    Ok(None) => Outcome::Gone,
                    Err(()) => FAILED,
                }
            }
            Err(error) => {
                tracing::warn!(session = %session.id, %error, "a session could not be refreshed; trying again later");
                failed(&error)
            }
        }
    }

    /// Stores what a refresh brought: first of all what can't be had again.
    async fn refreshed(
        &self,
        provider: &dyn Provider,
        session: &Session,
        spent: &str,
        refreshed: Refreshed,
    ) -> Outcome {
        let mut renewed = Session {
            oauth_token: Some(oauth_token(&refreshed.tokens)),
            ..Session::default()
        };
        let mut mask = vec!["oauth_token".to_owned()];
        if let Some(token) = &refreshed.id_token {
            renewed.id_token = Some(id_token(token));
            mask.push("id_token".to_owned());
        }
        let same = |s: &Session| refresh_token(s) == Some(spent);
        let stored = match self.change(&session.id, &renewed, &mask, same).await {
            Change::Made(stored) => stored,
            Change::Pointless => {
                // Signed out meanwhile: nobody will ever use these.
                if let Err(error) = provider.revoke(&refreshed.tokens).await {
                    tracing::info!(session = %session.id, %error, "tokens of an ended session could not be revoked");
                }
                return Outcome::Gone;
            }
            Change::Failed => return FAILED,
        };
        let base = match (refreshed.claims, &refreshed.id_token) {
            (Some(claims), _) => Some(Base::New(claims)),
            (None, None) => stored_claims(&stored).map(Base::Stored),
            // The new ID token points to claims that could not be fetched: the old ones stay.
            (None, Some(_)) => None,
        };
        match (base, self.ask(provider, &stored).await) {
            (Some(base), Ok(info)) => {
                self.store_claims(&stored, renewed_claims(&stored, base, info))
                    .await;
            }
            // We may not ask, so only what the new ID token says is known to be new.
            (
                Some(Base::New(claims)),
                Err(ProviderError::Refused(_) | ProviderError::Misconfigured(_)),
            ) => {
                self.store_claims(&stored, overlaid_claims(&stored, claims))
                    .await;
            }
            _ => {}
        }
        Outcome::Done {
            facts: Some(Facts::of(&stored)),
        }
    }

    async fn user_info(&self, session: Session) -> Outcome {
        let Some(provider) = self.provider(&session) else {
            return FAILED;
        };
        match self.ask(&*provider, &session).await {
            Ok(None) => {}
            Ok(info) => {
                if let Some(base) = stored_claims(&session) {
                    let renewed = renewed_claims(&session, Base::Stored(base), info);
                    self.store_claims(&session, renewed).await;
                }
            }
            Err(ProviderError::Refused(_)) if refresh_token(&session).is_some() => {
                return Outcome::RefreshNow;
            }
            Err(ProviderError::Refused(refusal)) => {
                let token = |s: &Session| s.oauth_token.as_ref().map(|t| t.access_token.clone());
                let same = |s: &Session| token(s) == token(&session);
                let why = format!("its provider no longer accepts its token: {refusal}");
                return match self.read(&session.id).await {
                    Ok(Some(stored)) => self.delete(stored, same, &why).await,
                    Ok(None) => Outcome::Gone,
                    Err(()) => FAILED,
                };
            }
            Err(error) => return failed(&error),
        }
        Outcome::Done { facts: None }
    }

    async fn ask(
        &self,
        provider: &dyn Provider,
        session: &Session,
    ) -> Result<Option<Claims>, ProviderError> {
        let Some(token) = &session.oauth_token else {
            return Ok(None);
        };
        let subject = expected_subject(session);
        provider
            .user_info(UserInfoRequest {
                access_token: &token.access_token,
                expected_subject: subject.as_deref(),
            })
            .await
            .inspect_err(|error| {
                tracing::warn!(session = %session.id, %error, "user info could not be renewed");
            })
    }

    /// Writes the claims of session and user, where they differ from what is there.
    async fn store_claims(&self, session: &Session, renewed: Renewed) {
        let Renewed {
            all,
            flat,
            of_user_info,
        } = renewed;
        if (&flat, &of_user_info) != (&session.claims, &session.user_info_claims) {
            let renewed = Session {
                claims: flat.clone(),
                user_info_claims: of_user_info,
                ..Session::default()
            };
            let mask = ["claims", "user_info_claims"].map(str::to_owned);
            self.change(&session.id, &renewed, &mask, |_| true).await;
        }
        self.store_user(session, &all, flat).await;
    }

    async fn store_user(&self, session: &Session, all: &Claims, flat: FlatClaims) {
        let request = GetRequest {
            r#type: USER.to_owned(),
            id: session.user_id.clone(),
        };
        let present = match self.client.clone().get(request).await {
            Ok(answer) => answer.into_inner().record.and_then(|r| r.data),
            Err(_) => return,
        };
        let Some(present) = present.and_then(|data| User::decode(data.value.as_slice()).ok())
        else {
            return;
        };
        let mut mask = vec!["claims".to_owned()];
        let mut user = User {
            id: session.user_id.clone(),
            claims: flat,
            name: present.name.clone(),
            email: present.email.clone(),
            ..User::default()
        };
        if let Some(name) = claims::text(all, "name") {
            name.clone_into(&mut user.name);
            mask.push("name".to_owned());
        }
        if let Some(email) = claims::text(all, "email") {
            email.clone_into(&mut user.email);
            mask.push("email".to_owned());
        }
        if (&user.claims, &user.name, &user.email)
            == (&present.claims, &present.name, &present.email)
        {
            return;
        }
        // Only what changed: a device that is registered meanwhile stays registered.
        let request = PatchRequest {
            records: vec![Record {
                r#type: USER.to_owned(),
                id: session.user_id.clone(),
                data: Some(any(USER, &user)),
                ..Record::default()
            }],
            field_mask: Some(FieldMask { paths: mask }),
        };
        if let Err(status) = self.client.clone().patch(request).await {
            tracing::warn!(user = %session.user_id, %status, "a user's claims could not be stored");
        }
    }

    /// Changes fields of a session that still is as the change needs it, under a version check;
    /// what others changed meanwhile and what we do not know of stays.
    async fn change(
        &self,
        id: &str,
        source: &Session,
        mask: &[String],
        still: impl Fn(&Session) -> bool,
    ) -> Change {
        let source = any(SESSION, source);
        for _ in 0..STORE_TRIES {
            let stored = match self.read(id).await {
                Ok(Some(stored)) if still(&stored.session) => stored,
                Ok(_) => return Change::Pointless,
                Err(()) => {
                    tokio::time::sleep(STORE_PAUSE).await;
                    continue;
                }
            };
            let patched = stored
                .record
                .data
                .as_ref()
                .map(|data| crate::patch::patch(data, &source, mask));
            let record = match patched {
                Some(Ok(data)) => Record {
                    data: Some(data),
                    ..stored.record.clone()
                },
                Some(Err(error)) => {
                    tracing::error!(session = %id, %error, "a session record cannot be changed");
                    return Change::Failed;
                }
                None => return Change::Pointless,
            };
            match self
                .databroker
                .put_if(record, Some(stored.record.version))
                .await
            {
                Ok(receipt) => {
                    let now = receipt.records.first().and_then(session);
                    return now.map_or(Change::Pointless, |s| Change::Made(Box::new(s)));
                }
                Err(WriteError::Refused(Refused::Conflict { .. })) => {}
                Err(error) => {
                    tracing::warn!(session = %id, %error, "a session could not be stored; trying again");
                    tokio::time::sleep(STORE_PAUSE).await;
                }
            }
        }
        Change::Failed
    }
}

/// The refresh token that may be used.
fn refresh_token(session: &Session) -> Option<&str> {
    let token = session.oauth_token.as_ref()?.refresh_token.as_str();
    (!session.refresh_disabled && !token.is_empty()).then_some(token)
}

/// Claims of the ID token that a session has; empty without one.
fn stored_claims(session: &Session) -> Option<Claims> {
    match session.id_token.as_ref().filter(|t| !t.raw.is_empty()) {
        Some(token) => claims::of_stored_id_token(&token.raw),
        None => Some(Claims::new()),
    }
}

fn failed(error: &ProviderError) -> Outcome {
    let wish = match error {
        ProviderError::Unreachable { retry_after, .. } => *retry_after,
        _ => None,
    };
    Outcome::Failed {
        wish: wish.and_then(|w| SignedDuration::try_from(w).ok()),
    }
}
