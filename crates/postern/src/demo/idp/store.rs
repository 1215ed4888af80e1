//! What the provider has handed out: codes, and grants with their tokens. In memory and bounded.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use postern_common::crypto::random;

/// More grants than this and the oldest is forgotten.
const MAX_GRANTS: usize = 10_000;
/// More codes than this under way and the oldest is forgotten.
const MAX_CODES: usize = 1_000;
/// How long a code can be redeemed.
const CODE_LIFETIME: Duration = Duration::from_secs(60);

/// One sign-in of one person at one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub person: String,
    pub client: String,
    pub nonce: Option<String>,
    pub signed_in: Timestamp,
}

/// What a code stands for until it is redeemed.
#[derive(Debug, Clone)]
pub struct Code {
    pub grant: Grant,
    pub redirect_uri: String,
    pub challenge: Option<String>,
    pub made: Timestamp,
}

#[derive(Debug)]
struct Live {
    grant: Grant,
    refresh: String,
    access: VecDeque<(String, Timestamp)>,
}

/// Tokens of one answer.
#[derive(Debug)]
pub struct Issued {
    pub grant: Grant,
    pub access: String,
    pub refresh: String,
}

#[derive(Debug, Default)]
pub struct Store {
    codes: HashMap<String, Code>,
    codes_by_age: VecDeque<String>,
    grants: HashMap<String, Live>,
    grants_by_age: VecDeque<String>,
}

fn random_text() -> String {
    URL_SAFE_NO_PAD.encode(random::bytes::<24>())
}

/// Tokens start with the name of their grant.
fn grant_name(token: &str) -> Option<&str> {
    token.split_once('.').map(|(name, _)| name)
}

impl Store {
    pub fn add_code(&mut self, code: Code) -> String {
        let text = random_text();
        self.codes.insert(text.clone(), code);
        self.codes_by_age.push_back(text.clone());
        while self.codes_by_age.len() > MAX_CODES {
            if let Some(oldest) = self.codes_by_age.pop_front() {
                self.codes.remove(&oldest);
            }
        }
        text
    }

    /// A code works once, whatever becomes of it.
    pub fn take_code(&mut self, text: &str, now: Timestamp) -> Option<Code> {
        self.codes
            .remove(text)
            .filter(|code| code.made.duration_until(now).unsigned_abs() <= CODE_LIFETIME)
    }

    pub fn begin(&mut self, grant: Grant, expires: Timestamp) -> Issued {
        let name = random_text();
        let refresh = format!("{name}.{}", random_text());
        self.grants.insert(
            name.clone(),
            Live {
                grant: grant.clone(),
                refresh: refresh.clone(),
                access: VecDeque::new(),
            },
        );
        self.grants_by_age.push_back(name.clone());
        while self.grants_by_age.len() > MAX_GRANTS {
            if let Some(oldest) = self.grants_by_age.pop_front() {
                self.grants.remove(&oldest);
            }
        }
        let access = self.add_access(&name, expires);
        Issued {
            grant,
            access,
            refresh,
        }
    }

    fn add_access(&mut self, name: &str, expires: Timestamp) -> String {
        let access = format!("{name}.{}", random_text());
        if let Some(live) = self.grants.get_mut(name) {
            live.access.push_back((access.clone(), expires));
            // The last few are enough: older ones have run out or are about to.
            while live.access.len() > 4 {
                live.access.pop_front();
            }
        }
        access
    }

    /// Each refresh token works once; a second use ends the grant, as somebody has a copy
    /// (RFC 9700 4.14.2).
    pub fn refresh(&mut self, token: &str, client: &str, expires: Timestamp) -> Option<Issued> {
        let name = grant_name(token)?.to_owned();
        let live = self
            .grants
            .get_mut(&name)
            .filter(|live| live.grant.client == client)?;
        if live.refresh != token {
            self.grants.remove(&name);
            return None;
        }
        let refresh = format!("{name}.{}", random_text());
        live.refresh.clone_from(&refresh);
        let grant = live.grant.clone();
        let access = self.add_access(&name, expires);
        Some(Issued {
            grant,
            access,
            refresh,
        })
    }

    /// The grant of an access token that holds.
    pub fn access(&self, token: &str, now: Timestamp) -> Option<Grant> {
        self.expiry(token)
            .filter(|(_, expires)| now < *expires)
            .map(|(grant, _)| grant)
    }

    /// Grant and end of an access token.
    pub fn expiry(&self, token: &str) -> Option<(Grant, Timestamp)> {
        let live = self.grants.get(grant_name(token)?)?;
        let (_, expires) = live.access.iter().find(|(known, _)| known == token)?;
        Some((live.grant.clone(), *expires))
    }

    /// Takes back a token: a refresh token with the whole grant.
    pub fn revoke(&mut self, token: &str, client: &str) {
        let Some(name) = grant_name(token) else {
            return;
        };
        let Some(live) = self
            .grants
            .get_mut(name)
            .filter(|l| l.grant.client == client)
        else {
            return;
        };
        if live.refresh == token {
            self.grants.remove(name);
        } else {
            live.access.retain(|(known, _)| known != token);
        }
    }

    /// Ends every grant of a person at a client.
    pub fn sign_out(&mut self, person: &str, client: &str) {
        self.grants
            .retain(|_, live| live.grant.person != person || live.grant.client != client);
    }
}
