//! What authenticate gives a browser on its way to the provider: `state`, and the CSRF cookie.
//!
//! Nothing is kept per tab. The CSRF token is one per browser; the PKCE verifier and the nonce
//! are computed from it and from the random part of `state`, so any replica that has the cookie
//! key can finish what another began, for any number of tabs at once.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::Mac as _;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use url::Url;

use super::{B64_URL_PADDED, base64url, jws::mac_of, keys::SecretKey, seal};

/// How long a sign-in may take at the provider.
pub const STATE_LIFETIME: SignedDuration = SignedDuration::from_mins(5);

/// How long a CSRF cookie is good for.
pub const CSRF_LIFETIME: SignedDuration = SignedDuration::from_hours(12);

/// Longest value of the CSRF cookie, and of a `state`, that is looked at.
const MAX_COOKIE: usize = 4096;
const MAX_STATE: usize = 64 * 1024;

/// The random value in the CSRF cookie of a browser. Comparing takes constant time.
#[derive(Debug, Clone)]
pub struct CsrfToken([u8; 32]);

/// Why a CSRF cookie doesn't count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CsrfError {
    #[error("the CSRF cookie is damaged")]
    Malformed,
    #[error("the CSRF cookie was made with another cookie_secret")]
    Signature,
    #[error("the CSRF cookie has expired")]
    Expired,
}

impl CsrfToken {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Value of the cookie `cookie_name`, made at `now`.
    pub fn to_cookie(&self, key: &SecretKey, cookie_name: &str, now: Timestamp) -> String {
        let value = B64_URL_PADDED.encode(format!("\"{}\"\n", STANDARD.encode(self.0)));
        let dated = format!("{}|{value}", now.as_second());
        let tag = mac_of(key.as_bytes(), format!("{cookie_name}|{dated}").as_bytes());
        let mut content = format!("{dated}|").into_bytes();
        content.extend_from_slice(&tag.finalize().into_bytes());
        B64_URL_PADDED.encode(content)
    }

    /// Reads a cookie that [`CsrfToken::to_cookie`] made.
    pub fn from_cookie(
        keys: &[SecretKey],
        cookie_name: &str,
        value: &str,
        now: Timestamp,
    ) -> Result<Self, CsrfError> {
        if value.len() > MAX_COOKIE {
            return Err(CsrfError::Malformed);
        }
        let content = B64_URL_PADDED
            .decode(value)
            .map_err(|_| CsrfError::Malformed)?;
        let mut parts = content.splitn(3, |byte| *byte == b'|');
        let (Some(time), Some(value), Some(tag)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(CsrfError::Malformed);
        };
        let signed = [cookie_name.as_bytes(), time, value].join(&b'|');
        if !keys
            .iter()
            .any(|key| mac_of(key.as_bytes(), &signed).verify_slice(tag).is_ok())
        {
            return Err(CsrfError::Signature);
        }
        let time: i64 = std::str::from_utf8(time)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or(CsrfError::Malformed)?;
        if now.as_second().saturating_sub(time) > CSRF_LIFETIME.as_secs() {
            return Err(CsrfError::Expired);
        }
        Self::from_json(value).ok_or(CsrfError::Malformed)
    }

    /// A value for the hidden field of a form, made from the token in the browser's cookie: only
    /// a page of ours could have it.
    pub fn form_value(&self, key: &SecretKey) -> String {
        base64url(self.form_mac(key).finalize().into_bytes())
    }

    /// Whether a form of this browser sent it.
    pub fn form_value_is(&self, keys: &[SecretKey], value: &str) -> bool {
        let Some(tag) = super::from_base64url(value) else {
            return false;
        };
        keys.iter()
            .any(|key| self.form_mac(key).verify_slice(&tag).is_ok())
    }

    fn form_mac(&self, key: &SecretKey) -> hmac::Hmac<Sha256> {
        mac_of(key.derive("postern/form").as_bytes(), &self.0)
    }

    fn from_json(value: &[u8]) -> Option<Self> {
        let text: String = serde_json::from_slice(&B64_URL_PADDED.decode(value).ok()?).ok()?;
        Self::from_text(&text)
    }

    fn from_text(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok()?.try_into().ok().map(Self)
    }
}

impl PartialEq for CsrfToken {
    fn eq(&self, other: &Self) -> bool {
        super::equal(&self.0, &other.0)
    }
}

impl Eq for CsrfToken {}

/// A sign-in that is under way at the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignIn {
    /// Must equal the one in the browser's cookie.
    pub csrf: CsrfToken,
    /// Unix seconds.
    pub begun: i64,
    /// Where to go afterwards: the sign-in URL on authenticate, with its parameters.
    pub url: Url,
    /// The `state` parameter as it travels.
    pub state: String,
    /// PKCE verifier (RFC 7636), 43 characters. Secret until the code is redeemed.
    pub pkce_verifier: String,
    /// `nonce` of the ID token.
    pub nonce: String,
}

/// Why a `state` doesn't count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error("state is damaged")]
    Malformed,
    #[error("state was made with another cookie_secret")]
    Sealed,
}

impl SignIn {
    /// Begins a sign-in. `random` must be fresh: it is the nonce under which the URL is sealed.
    pub fn begin(
        key: &SecretKey,
        csrf: CsrfToken,
        url: Url,
        now: Timestamp,
        random: [u8; seal::NONCE],
    ) -> Self {
        let begun = now.as_second();
        let mut content = format!("{}|{begun}||", STANDARD.encode(csrf.0)).into_bytes();
        let sealed = seal::seal_with_nonce(key, &random, url.as_str().as_bytes(), &content);
        content.extend_from_slice(&sealed);
        let state = B64_URL_PADDED.encode(content);
        Self::assemble(key, csrf, begun, url, state, &random)
    }

    /// Reads a `state` that a provider returned. Neither browser nor time are checked yet, so
    /// that an error page can tell what is wrong: see [`SignIn::is_fresh`] and `csrf`.
    pub fn open(keys: &[SecretKey], state: &str) -> Result<Self, StateError> {
        if state.len() > MAX_STATE {
            return Err(StateError::Malformed);
        }
        let content = B64_URL_PADDED
            .decode(state)
            .map_err(|_| StateError::Malformed)?;
        // CSRF | seconds | trace | sealed. The trace, which Pomerium may have put in, is skipped.
        let mut ends = content
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'|')
            .map(|(at, _)| at + 1);
        let at = ends.nth(2).ok_or(StateError::Malformed)?;
        let (prefix, sealed) = content.split_at_checked(at).ok_or(StateError::Malformed)?;
        let (key, url) = keys
            .iter()
            .find_map(|key| Some((key, seal::open(key, sealed, prefix).ok()?)))
            .ok_or(StateError::Sealed)?;
        let url = String::from_utf8(url)
            .ok()
            .and_then(|url| Url::parse(&url).ok());
        let mut parts = prefix.split(|byte| *byte == b'|').map(std::str::from_utf8);
        let (Some(Ok(csrf)), Some(Ok(begun))) = (parts.next(), parts.next()) else {
            return Err(StateError::Malformed);
        };
        let random = sealed.last_chunk().ok_or(StateError::Malformed)?;
        match (CsrfToken::from_text(csrf), begun.parse(), url) {
            (Some(csrf), Ok(begun), Some(url)) if url.has_host() => Ok(Self::assemble(
                key,
                csrf,
                begun,
                url,
                state.to_owned(),
                random,
            )),
            _ => Err(StateError::Malformed),
        }
    }

    fn assemble(
        key: &SecretKey,
        csrf: CsrfToken,
        begun: i64,
        url: Url,
        state: String,
        random: &[u8; seal::NONCE],
    ) -> Self {
        // The key that sealed the state also makes these, so that they survive a rotation.
        let value = |label| {
            let mut mac = mac_of(key.derive(label).as_bytes(), &csrf.0);
            mac.update(random);
            base64url(mac.finalize().into_bytes())
        };
        let (pkce_verifier, nonce) = (value("postern/pkce"), value("postern/nonce"));
        Self {
            csrf,
            begun,
            url,
            state,
            pkce_verifier,
            nonce,
        }
    }

    /// PKCE challenge (S256) of the verifier.
    pub fn code_challenge(&self) -> String {
        base64url(Sha256::digest(&self.pkce_verifier))
    }

    /// Whether it began at most five minutes ago (nor so far in the future).
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        now.as_second().abs_diff(self.begun) <= STATE_LIFETIME.as_secs().unsigned_abs()
    }

    /// Names this sign-in where its one use is recorded. Tells nothing about the state.
    pub fn id(&self) -> String {
        base64url(Sha256::digest(&self.state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::vectors::{T, at, c, k, nonce};
    use proptest::prelude::*;

    const URL: &str = "https://authenticate.example.com/.pomerium/sign_in";
    const STATE: &str = "b0tHaW82U2xwcWVvcWFxcnJLMnVyN0N4c3JPMHRiYTN1TG02dTd5OXZyOD18MTc2NzIyNTYwMHx8atcCibMIdltL-Yhx4wG3PM1Gpdy9sh1B0aV4jMWSUb9mMIYJAEWYJjcqYTHz-5xWe_1Lr1Z9KjOh0q8cX-YxtCvEgIGCg4SFhoeIiYqLjI2Oj5CRkpOUlZaX";
    const COOKIE: &str = "MTc2NzIyNTYwMHxJbTlMUjJsdk5sTnNjSEZsYjNGaGNYSnlTekoxY2pkRGVITnlUekIwWW1FemRVeHROblUzZVRsMmNqZzlJZ289fPHSAy5K1gmHWeKknhyZL0diAW-M5ul-0cE_s_hOq_ro";

    fn csrf() -> CsrfToken {
        CsrfToken(std::array::from_fn(|i| 0xa0 + u8::try_from(i).unwrap()))
    }

    fn begin() -> SignIn {
        SignIn::begin(&c(), csrf(), Url::parse(URL).unwrap(), at(T), nonce())
    }

    #[test]
    fn known_state() {
        assert_eq!(begin().state, STATE);
        assert_eq!(SignIn::open(&[k(), c()], STATE).unwrap(), begin());
    }

    #[test]
    fn known_cookie() {
        assert_eq!(csrf().to_cookie(&c(), "_pomerium_csrf", at(T)), COOKIE);
        let read = |keys: &[SecretKey], name, seconds| {
            CsrfToken::from_cookie(keys, name, COOKIE, at(seconds))
        };
        assert_eq!(read(&[k(), c()], "_pomerium_csrf", T), Ok(csrf()));
        assert_eq!(read(&[c()], "_pomerium_csrf", T + 43200), Ok(csrf()));
        assert_eq!(
            read(&[c()], "_pomerium_csrf", T + 43201),
            Err(CsrfError::Expired)
        );
        assert_eq!(read(&[k()], "_pomerium_csrf", T), Err(CsrfError::Signature));
        assert_eq!(read(&[c()], "_other_csrf", T), Err(CsrfError::Signature));
    }

    #[test]
    fn s11_verifier_and_nonce_are_of_this_browser_and_this_tab() {
        let one = begin();
        assert_eq!(one.pkce_verifier.len(), 43);
        let url = Url::parse(URL).unwrap();
        let other_tab = SignIn::begin(&c(), csrf(), url.clone(), at(T), [1; 24]);
        let other_browser = SignIn::begin(&c(), CsrfToken([1; 32]), url, at(T), nonce());
        for other in [other_tab, other_browser] {
            assert_ne!(one.pkce_verifier, other.pkce_verifier);
            assert_ne!(one.nonce, other.nonce);
            assert_ne!(one.id(), other.id());
        }
        assert_ne!(one.pkce_verifier, one.nonce);
    }

    #[test]
    fn s44_a_form_of_this_browser() {
        let value = csrf().form_value(&c());
        assert!(csrf().form_value_is(&[k(), c()], &value));
        assert!(!csrf().form_value_is(&[k()], &value));
        assert!(!CsrfToken([1; 32]).form_value_is(&[c()], &value));
        assert!(!csrf().form_value_is(&[c()], ""));
    }

    #[test]
    fn s11_five_minutes() {
        let sign_in = begin();
        assert!(sign_in.is_fresh(at(T)) && sign_in.is_fresh(at(T + 300)));
        assert!(!sign_in.is_fresh(at(T + 301)) && !sign_in.is_fresh(at(T - 301)));
    }

    #[test]
    fn state_of_another_key_is_refused() {
        assert_eq!(SignIn::open(&[k()], STATE), Err(StateError::Sealed));
        assert_eq!(SignIn::open(&[], STATE), Err(StateError::Sealed));
        assert_eq!(SignIn::open(&[c()], ""), Err(StateError::Malformed));
    }

    proptest! {
        #[test]
        fn any_change_of_a_state_is_noticed(at: prop::sample::Index, bit in 0..8_u32) {
            let mut content = B64_URL_PADDED.decode(STATE).unwrap();
            let at = at.index(content.len());
            content[at] ^= 1 << bit;
            prop_assert!(SignIn::open(&[c()], &B64_URL_PADDED.encode(content)).is_err());
        }

        #[test]
        fn reading_never_panics(text in ".{0,200}", bytes: Vec<u8>) {
            for text in [text, B64_URL_PADDED.encode(bytes)] {
                prop_assert!(SignIn::open(&[c()], &text).is_err());
                prop_assert!(CsrfToken::from_cookie(&[c()], "n", &text, at(T)).is_err());
            }
        }
    }
}
