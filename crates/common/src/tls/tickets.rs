//! Session tickets that every replica opens: a client that is sent to another proxy resumes there.
//!
//! The key follows from the shared secret, so nothing has to be handed round, and from the settings
//! of the listener, so that no session resumes where other certificates or other rules for client
//! certificates hold. It changes every six hours; tickets of the period before still open.

use jiff::Timestamp;
use rustls::server::ProducesTickets;
use sha2::{Digest as _, Sha256};

use crate::crypto::keys::SecretKey;
use crate::crypto::seal;

/// How long one key seals.
const PERIOD: u64 = 6 * 3600;

/// Larger than any ticket: two client chains of the largest kind fit.
const MAX_TICKET: usize = 64 * 1024;

/// What a session rests on: equal on replicas that are configured alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettingsHash([u8; 32]);

impl SettingsHash {
    /// Of parts whose order and number count.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

/// Makes and opens tickets.
#[derive(Debug)]
pub struct SharedTickets {
    /// The first seals, all open.
    secrets: Vec<SecretKey>,
    settings: SettingsHash,
}

impl SharedTickets {
    /// `secrets` are those of `shared_secret`.
    pub fn new(secrets: &[SecretKey], settings: SettingsHash) -> Self {
        Self {
            secrets: secrets.to_vec(),
            settings,
        }
    }

    fn key(&self, secret: &SecretKey, period: u64) -> SecretKey {
        let settings = hex::encode(self.settings.0);
        secret.derive(&format!("postern/ticket/{period}/{settings}"))
    }

    fn seal_in(&self, period: u64, session: &[u8]) -> Option<Vec<u8>> {
        let key = self.key(self.secrets.first()?, period);
        Some(seal::seal(&key, session, b""))
    }

    fn open_in(&self, period: u64, ticket: &[u8]) -> Option<Vec<u8>> {
        let periods = [Some(period), period.checked_sub(1)];
        let keys = self.secrets.iter().flat_map(|secret| {
            let periods = periods.into_iter().flatten();
            periods.map(|period| self.key(secret, period))
        });
        keys.into_iter()
            .find_map(|key| seal::open(&key, ticket, b"").ok())
    }
}

/// A clock before 1970 is in the first period.
fn now() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or(0) / PERIOD
}

impl ProducesTickets for SharedTickets {
    fn enabled(&self) -> bool {
        true
    }

    /// A ticket made at the end of a period opens until the end of the next.
    fn lifetime(&self) -> u32 {
        u32::try_from(PERIOD).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.seal_in(now(), session)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        if ticket.len() > MAX_TICKET {
            return None;
        }
        self.open_in(now(), ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tickets(secrets: &[u8], settings: &[u8]) -> SharedTickets {
        let secrets: Vec<_> = secrets
            .iter()
            .map(|byte| SecretKey::from_bytes([*byte; 32]))
            .collect();
        SharedTickets::new(&secrets, SettingsHash::of([settings]))
    }

    #[test]
    fn s40_tickets_open_for_one_period_more_and_no_longer() {
        let (a, b) = (tickets(&[1], b"x"), tickets(&[1], b"x"));
        let ticket = a.seal_in(7, b"session").unwrap();
        let opened = |period| b.open_in(period, &ticket);
        assert_eq!(opened(7).as_deref(), Some(&b"session"[..]));
        assert_eq!(opened(8).as_deref(), Some(&b"session"[..]));
        assert_eq!(opened(9), None);
        assert_eq!(opened(6), None);
        assert!(b.open_in(0, &ticket).is_none());
    }

    #[test]
    fn s40_tickets_open_only_under_the_same_secret_and_settings() {
        let ticket = tickets(&[1], b"x").encrypt(b"session").unwrap();
        assert!(tickets(&[1], b"x").decrypt(&ticket).is_some());
        assert!(tickets(&[1], b"y").decrypt(&ticket).is_none());
        assert!(tickets(&[2], b"x").decrypt(&ticket).is_none());
        assert!(tickets(&[], b"x").decrypt(&ticket).is_none());
        // While the secret rotates both open.
        assert!(tickets(&[2, 1], b"x").decrypt(&ticket).is_some());
        let mut changed = ticket.clone();
        changed[3] ^= 1;
        assert!(tickets(&[1], b"x").decrypt(&changed).is_none());
        assert!(
            tickets(&[1], b"x")
                .decrypt(&vec![0; MAX_TICKET + 1])
                .is_none()
        );
        assert_ne!(
            SettingsHash::of([&b"ab"[..], b"c"]),
            SettingsHash::of([&b"a"[..], b"bc"])
        );
    }
}
