//! What is signed or sealed under a secret: read as it comes, and again as if its maker had had the
//! key, so that what lies behind the signature is met too.

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac as _};
use postern_common::crypto::handle::Handle;
use postern_common::crypto::signed_url::{SignatureError, param, sign, verify, verify_received};
use postern_common::crypto::state::{CsrfToken, SignIn};
use postern_common::crypto::{keys::SecretKey, seal as sealing};
use postern_common::rpc::token;
use serde_json::Value;
use sha2::Sha256;
use url::{Position, Url};

use crate::input::{key, keys, lines, now};

const PADDED: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, GeneralPurposeConfig::new());

/// The header of every token of ours; the payload is the input's.
fn jwt(payload: &[u8]) -> String {
    let message = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#),
        URL_SAFE_NO_PAD.encode(payload)
    );
    let tag = URL_SAFE_NO_PAD.encode(tag(message.as_bytes()));
    format!("{message}.{tag}")
}

fn tag(message: &[u8]) -> Vec<u8> {
    Hmac::<Sha256>::new_from_slice(key().as_bytes()).map_or_else(
        |_| Vec::new(),
        |mac| mac.chain_update(message).finalize().into_bytes().to_vec(),
    )
}

fn text(data: &[u8]) -> String {
    String::from_utf8_lossy(data).into_owned()
}

/// A token or a payload. A handle survives being written again, and is never a service's token.
pub fn handle(data: &[u8]) {
    let other = [SecretKey::from_bytes([8; 32])];
    assert!(Handle::decode(&other, &text(data)).is_err());
    for token in [text(data), jwt(data)] {
        let Ok(handle) = Handle::decode(&keys(), &token) else {
            continue;
        };
        assert!(token::verify(&keys(), &token, now()).is_err());
        assert!(Handle::decode(&other, &token).is_err());
        // Writing may need six bytes for one, and there is a longest token.
        if data.len() < 1024 {
            assert_eq!(Handle::decode(&keys(), &handle.encode(&key())), Ok(handle));
        }
    }
}

/// A token or a payload. What makes its bearer a service has the one claim `exp`, and no more.
pub fn rpc_token(data: &[u8]) {
    assert!(token::verify(&[], &text(data), now()).is_err());
    for token in [text(data), jwt(data)] {
        if token::verify(&keys(), &token, now()).is_err() {
            continue;
        }
        let payload = token.split('.').nth(1).unwrap_or_default();
        let payload = URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
        let payload: Option<Value> = serde_json::from_slice(&payload).ok();
        let claims = payload.as_ref().and_then(Value::as_object);
        assert_eq!(claims.map(serde_json::Map::len), Some(1));
        let expiry = claims.and_then(|claims| claims.get("exp")?.as_f64());
        assert!(expiry.is_some_and(|expiry| expiry >= 1_748_779_200.0));
    }
}

/// Bytes that nobody sealed can't be opened; what was sealed can, until a byte changes.
pub fn seal(data: &[u8]) {
    assert!(sealing::open(&key(), data, b"").is_err());
    assert!(sealing::open_text(&keys(), &text(data)).is_err());
    let [aad, plain] = lines(data);
    let mut sealed = sealing::seal_with_nonce(&key(), &[9; sealing::NONCE], plain, aad);
    assert_eq!(sealing::open(&key(), &sealed, aad).as_deref(), Ok(plain));
    if let Some(byte) = sealed.get_mut(plain.len() / 2) {
        *byte ^= 1;
    }
    assert!(sealing::open(&key(), &sealed, aad).is_err());
}

/// A `state`, or two lines to be sealed: what stands before the URL, and the URL.
pub fn sign_in_state(data: &[u8]) {
    let [prefix, url] = lines(data);
    let mut content = prefix.to_vec();
    let sealed = sealing::seal_with_nonce(&key(), &[9; sealing::NONCE], url, prefix);
    content.extend_from_slice(&sealed);
    for state in [text(data), PADDED.encode(&content)] {
        if let Ok(sign_in) = SignIn::open(&keys(), &state) {
            assert!(sign_in.url.has_host());
            assert_eq!(sign_in.state, state);
            assert_eq!(SignIn::open(&keys(), &state), Ok(sign_in));
        }
    }
    if let Ok(url) = Url::parse(&text(url))
        && url.has_host()
    {
        let csrf = CsrfToken::new([3; 32]);
        let begun = SignIn::begin(&key(), csrf, url, now(), [5; sealing::NONCE]);
        assert_eq!(SignIn::open(&keys(), &begun.state), Ok(begun));
    }
}

/// A cookie, or what stands in it before the signature. It counts under its own name only.
pub fn csrf_cookie(data: &[u8]) {
    const NAME: &str = "_pomerium_csrf";
    let signed = [NAME.as_bytes(), data].join(&b'|');
    let mut content = data.to_vec();
    content.push(b'|');
    content.extend_from_slice(&tag(&signed));
    for cookie in [text(data), PADDED.encode(&content)] {
        if CsrfToken::from_cookie(&keys(), NAME, &cookie, now()).is_ok() {
            assert!(CsrfToken::from_cookie(&keys(), "_other", &cookie, now()).is_err());
        }
    }
}

/// Three lines: host, path, query as received, and all of it as a URL to be signed. A signature
/// holds for the URL that it was made for, to the byte, with each of its parameters.
pub fn signed_url(data: &[u8]) {
    let [host, path, query] = lines(data);
    let (host, path, query) = (text(host), text(path), text(query));
    let received = verify_received(&keys(), &host, &path, &query, now());
    assert!(received.is_err(), "nobody signed this");
    let Ok(url) = Url::parse(&format!("https://{host}{path}?{query}")) else {
        return;
    };
    let signed = sign(&key(), &url, now());
    let verified = verify(&keys(), &signed, now());
    assert!(verified.is_ok(), "{signed}: {verified:?}");
    let Ok(verified) = verified else { return };
    let times = [param::ISSUED, param::EXPIRY, param::SIGNATURE];
    let mut meant: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(name, _)| !times.contains(&&**name))
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    meant.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut read: Vec<(String, String)> = verified
        .pairs()
        .filter(|(name, _)| !times.contains(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    read.sort_by(|(one, _), (other, _)| one.cmp(other));
    assert_eq!(read, meant);

    let mut other = signed.clone();
    other.set_path(&format!("{}x", signed.path()));
    let refused = verify(&keys(), &other, now());
    assert_eq!(refused, Err(SignatureError::Signature));

    let authority = &signed[Position::BeforeHost..Position::AfterPort];
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:[]".contains(&byte);
    if authority.bytes().all(plain) && signed.username().is_empty() && signed.password().is_none() {
        let query = signed.query().unwrap_or_default();
        let received = verify_received(&keys(), authority, signed.path(), query, now());
        assert_eq!(received, Ok(verified));
    }
}
