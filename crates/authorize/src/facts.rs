//! What a decision is made on, beside the request, the route and the time.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::certificate::CertificateFact;
use crate::records::{Claims, DirectoryUser, Session, Tokens, User};

/// Facts about one request, gathered before it is decided.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub visitor: Visitor,
    pub certificate: CertificateFact,
    /// Records that criteria of the route's policy ask for, by type.
    pub records: BTreeMap<String, Value>,
    /// How old the copy is that they come from; `None` before there is one.
    pub data_age: Option<Duration>,
}

/// Who asks.
#[derive(Debug, Clone, Default)]
pub enum Visitor {
    /// Nobody showed a credential.
    #[default]
    Anonymous,
    /// A credential was shown that does not count (any more).
    Rejected(Rejection),
    Person(Box<Person>),
    /// A provider's token was shown and found invalid: refused without asking the policy.
    InvalidToken,
    /// A cookie and a bearer token at once, where only one may be.
    CookieAndBearer,
}

/// Why a credential does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// Not a handle of ours, or not valid where it was found.
    Handle,
    /// Two cookies with different sessions.
    TwoSessions,
    OtherProvider,
    /// No record of it: signed out, revoked, or lost.
    Gone,
    Expired,
}

impl Rejection {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Handle => "the credential is not accepted here",
            Self::TwoSessions => "the cookies are of two sessions",
            Self::OtherProvider => "the session is of another identity provider",
            Self::Gone => "the session is gone",
            Self::Expired => "the session has expired",
        }
    }
}

/// Somebody with a valid session or service account.
#[derive(Debug, Clone)]
pub struct Person {
    /// Of the session or service account that the credential names, also under impersonation.
    pub id: Arc<str>,
    pub kind: PersonKind,
    pub user_id: Arc<str>,
    pub user: Option<Arc<User>>,
    pub directory: Option<Arc<DirectoryUser>>,
    /// Names of the directory's groups, in the order of the ids; empty where there is none.
    pub group_names: Vec<String>,
    pub devices: Vec<ProvenDevice>,
    /// No decision about this person holds beyond; `None`: no limit.
    pub valid_until: Option<Timestamp>,
    pub versions: PersonVersions,
}

#[derive(Debug, Clone)]
pub enum PersonKind {
    Session {
        own: Arc<Session>,
        /// The one whose claims, user and groups count instead.
        impersonated: Option<Arc<Session>>,
    },
    ServiceAccount,
}

/// A device that the session has proved to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenDevice {
    pub type_id: String,
    pub credential_id: String,
    pub approved: bool,
}

/// Which records a person was put together from. Equal versions mean equal content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PersonVersions {
    pub data_set: u64,
    pub session: u64,
    pub impersonated: u64,
    pub user: u64,
    pub directory: u64,
    /// Counts changes of any group's name.
    pub groups: u64,
}

static NO_CLAIMS: LazyLock<Claims> = LazyLock::new(Claims::default);

impl Person {
    /// The session whose claims count.
    pub fn session(&self) -> Option<&Arc<Session>> {
        match &self.kind {
            PersonKind::Session { own, impersonated } => Some(impersonated.as_ref().unwrap_or(own)),
            PersonKind::ServiceAccount => None,
        }
    }

    pub fn impersonated(&self) -> Option<&Arc<Session>> {
        match &self.kind {
            PersonKind::Session { impersonated, .. } => impersonated.as_ref(),
            PersonKind::ServiceAccount => None,
        }
    }

    pub fn is_service_account(&self) -> bool {
        matches!(self.kind, PersonKind::ServiceAccount)
    }

    pub fn session_claims(&self) -> &Claims {
        self.session().map_or(&NO_CLAIMS, |session| &session.claims)
    }

    pub fn user_claims(&self) -> &Claims {
        self.user.as_ref().map_or(&NO_CLAIMS, |user| &user.claims)
    }

    /// The directory's address if it has one, else the user record's; empty if there is none.
    pub fn email(&self) -> &str {
        self.directory
            .as_ref()
            .map(|user| user.email.as_str())
            .filter(|email| !email.is_empty())
            .or_else(|| self.user.as_ref().map(|user| user.email.as_str()))
            .unwrap_or_default()
    }

    pub fn directory_groups(&self) -> Option<&[String]> {
        self.directory
            .as_ref()
            .map(|user| user.group_ids.as_slice())
    }

    /// The provider's tokens of the person's own session.
    pub fn tokens(&self) -> Option<&Tokens> {
        self.session()?.tokens.as_deref()
    }
}

impl Visitor {
    pub fn person(&self) -> Option<&Person> {
        match self {
            Self::Person(person) => Some(person),
            _ => None,
        }
    }
}
