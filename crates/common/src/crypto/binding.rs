//! Ties a route's callback to the browser that began the sign-in there.
//!
//! The first redirect sets a host-only cookie with a [`BindingCookie`], one for all tabs, and
//! sends [`value`] and the nonce along in the callback's URL. Whoever gets hold of that URL can
//! do nothing with it in another browser.

use hmac::Mac as _;

use super::{base64url, from_base64url, jws::mac_of, keys::SecretKey};

/// 128 random bits that a browser keeps for a host.
/// No `==`: only [`matches`] compares, in constant time.
#[derive(Clone)]
pub struct BindingCookie([u8; 16]);

/// 128 random bits for one sign-in.
pub type Nonce = [u8; 16];

/// What the name of the cookie ends with.
pub(crate) const SUFFIX: &str = "_binding";

/// Name of the cookie, beside the session's.
pub fn cookie_name(session_cookie: &str) -> String {
    format!("{session_cookie}{SUFFIX}")
}

impl BindingCookie {
    pub fn new(random: [u8; 16]) -> Self {
        Self(random)
    }

    /// Value of the cookie.
    pub fn to_text(&self) -> String {
        base64url(self.0)
    }

    /// Reads a cookie's value.
    pub fn from_text(text: &str) -> Option<Self> {
        sixteen(text).map(Self)
    }
}

/// Text form of a nonce, for the URL.
pub fn nonce_text(nonce: Nonce) -> String {
    base64url(nonce)
}

/// Reads a nonce from a URL.
pub fn nonce_from_text(text: &str) -> Option<Nonce> {
    sixteen(text)
}

/// What the callback's URL carries beside the nonce.
pub fn value(shared: &SecretKey, cookie: &BindingCookie, nonce: Nonce) -> String {
    base64url(mac(shared, cookie, &nonce).finalize().into_bytes())
}

/// Whether a callback's `value` and `nonce` were made for the browser with this cookie.
pub fn matches(shared: &[SecretKey], cookie: &BindingCookie, nonce: &str, value: &str) -> bool {
    let (Some(nonce), Some(tag)) = (sixteen(nonce), from_base64url(value)) else {
        return false;
    };
    shared
        .iter()
        .any(|key| mac(key, cookie, &nonce).verify_slice(&tag).is_ok())
}

fn mac(shared: &SecretKey, cookie: &BindingCookie, nonce: &Nonce) -> hmac::Hmac<sha2::Sha256> {
    let mut mac = mac_of(shared.derive("postern/binding").as_bytes(), &cookie.0);
    mac.update(nonce);
    mac
}

fn sixteen(text: &str) -> Option<[u8; 16]> {
    from_base64url(text)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::vectors::{c, k};
    use proptest::prelude::*;

    #[test]
    fn s11_useless_in_another_browser() {
        let (mine, other) = (BindingCookie::new([1; 16]), BindingCookie::new([2; 16]));
        let bound = value(&k(), &mine, [9; 16]);
        let nonce = nonce_text([9; 16]);
        assert!(matches(&[c(), k()], &mine, &nonce, &bound));
        assert!(!matches(&[k()], &other, &nonce, &bound));
        assert!(!matches(&[c()], &mine, &nonce, &bound));
        assert!(!matches(&[k()], &mine, &nonce_text([8; 16]), &bound));
        assert!(!matches(&[k()], &mine, &nonce, ""));
        assert!(!matches(&[k()], &mine, "", &bound));
    }

    proptest! {
        #[test]
        fn text_form_returns(bytes: [u8; 16], text in ".{0,40}") {
            let cookie = BindingCookie::new(bytes);
            let again = BindingCookie::from_text(&cookie.to_text()).unwrap();
            prop_assert_eq!(again.0, cookie.0);
            let _ = BindingCookie::from_text(&text);
        }
    }
}
