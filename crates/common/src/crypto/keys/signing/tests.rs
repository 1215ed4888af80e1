use aws_lc_rs::{
    rsa::KeySize,
    signature::{self, UnparsedPublicKey},
};
use p256::pkcs8::EncodePrivateKey as _;
use serde_json::{Value, json};

use super::*;
use crate::crypto::{from_base64url, vectors::k};

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

fn p256_pem(seed: u8) -> String {
    let key = p256::SecretKey::from_slice(&[seed; 32]).unwrap();
    pem("PRIVATE KEY", key.to_pkcs8_der().unwrap().as_bytes())
}

fn jwks(keys: &SigningKeys) -> Vec<Value> {
    let body: Value = serde_json::from_str(&keys.jwks().body).unwrap();
    body["keys"].as_array().unwrap().clone()
}

fn member(jwk: &Value, name: &str) -> Vec<u8> {
    from_base64url(jwk[name].as_str().unwrap()).unwrap()
}

/// Verifies a token with the public key as it is published.
fn verifies(token: &str, jwk: &Value) -> bool {
    let (message, tag) = token.rsplit_once('.').unwrap();
    let tag = from_base64url(tag).unwrap();
    let message = message.as_bytes();
    let point = || [vec![4], member(jwk, "x"), member(jwk, "y")].concat();
    match jwk["alg"].as_str().unwrap() {
        "ES256" => UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point())
            .verify(message, &tag),
        "ES384" => UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point())
            .verify(message, &tag),
        "ES512" => UnparsedPublicKey::new(&signature::ECDSA_P521_SHA512_FIXED, point())
            .verify(message, &tag),
        "EdDSA" => {
            UnparsedPublicKey::new(&signature::ED25519, member(jwk, "x")).verify(message, &tag)
        }
        "RS256" => signature::RsaPublicKeyComponents {
            n: member(jwk, "n"),
            e: member(jwk, "e"),
        }
        .verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, &tag),
        other => panic!("{other}"),
    }
    .is_ok()
}

#[test]
fn known_derived_key() {
    let keys = SigningKeys::derived_from(&k()).unwrap();
    assert_eq!(
        keys.jwks().body,
        r#"{"keys":[{"use":"sig","kty":"EC","kid":"dfdc30ede8204880a26e86348232fede98474153abe3975b99290fa48522c81b","crv":"P-256","alg":"ES256","x":"1uOUuU7VQuyIQZJTQQ85nB_uP8iBgYYDyiS8sUpYnH8","y":"GDkhzIWUOKSwHp2tisJy6FYSUc9tngjTFwNlBADz8JY"}]}"#
    );
    assert_eq!(keys.jwks().etag, "\"df0017b70c0b47d6\"");
}

#[test]
fn known_derived_key_of_pomerium() {
    let key = derived(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ01234567890+/AAAA=").unwrap();
    let jwk: Value = serde_json::from_str(&key.jwk).unwrap();
    assert_eq!(jwk["x"], "2EUdBs4O1nfxBWQ2AIZRnFih9sBmSKp0vhRvcWljmqI");
}

#[test]
fn known_assertion() {
    let known = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImRmZGMzMGVkZTgyMDQ4ODBhMjZlODYzNDgyMzJmZWRlOTg0NzQxNTNhYmUzOTc1Yjk5MjkwZmE0ODUyMmM4MWIiLCJ0eXAiOiJKV1QifQ.eyJhdWQiOiJhcHAuZXhhbXBsZS5jb20iLCJlbWFpbCI6ImFAZXhhbXBsZS5jb20iLCJleHAiOjE3NjcyMjU5MDAsImdyb3VwcyI6W10sImlhdCI6MTc2NzIyNTYwMCwiaXNzIjoiYXBwLmV4YW1wbGUuY29tIiwianRpIjoiNmY5ZDFhM2UtMDAwMC00MDAwLTgwMDAtMDAwMDAwMDAwMDAyIiwibmFtZSI6IkEiLCJzaWQiOiI2ZjlkMWEzZS0wMDAwLTQwMDAtODAwMC0wMDAwMDAwMDAwMDEiLCJzdWIiOiJ1c2VyLTEiLCJ1c2VyIjoidXNlci0xIn0.l-cuX2yVDqJ7nM48C5_WaI4M_G9BRUq4m9uc5zcbbgMFIvqtoLfXJo340qsL-but1QKtQ2Jsx7UYzxmR_8jUcw";
    let keys = SigningKeys::derived_from(&k()).unwrap();
    // members in an order of our own, to see that they get sorted
    let token = keys
        .sign(&json!({
            "user": "user-1", "sub": "user-1", "sid": "6f9d1a3e-0000-4000-8000-000000000001",
            "name": "A", "jti": "6f9d1a3e-0000-4000-8000-000000000002",
            "iss": "app.example.com", "iat": 1_767_225_600, "groups": [],
            "exp": 1_767_225_900, "email": "a@example.com", "aud": "app.example.com",
        }))
        .unwrap();
    assert_eq!(
        token.rsplit_once('.').unwrap().0,
        known.rsplit_once('.').unwrap().0
    );
    let jwk = &jwks(&keys)[0];
    assert!(verifies(&token, jwk) && verifies(known, jwk));
}

#[test]
fn every_kind_of_key_signs_what_its_jwk_verifies() {
    let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let p521 = EcdsaKeyPair::generate(&ECDSA_P521_SHA512_FIXED_SIGNING).unwrap();
    let ed = Ed25519KeyPair::generate().unwrap();
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let rsa_der = aws_lc_rs::encoding::AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&rsa);
    for (text, alg) in [
        (p256_pem(1), "ES256"),
        (
            pem("PRIVATE KEY", p384.to_pkcs8v1().unwrap().as_ref()),
            "ES384",
        ),
        (
            pem("PRIVATE KEY", p521.to_pkcs8v1().unwrap().as_ref()),
            "ES512",
        ),
        (
            pem("PRIVATE KEY", ed.to_pkcs8v1().unwrap().as_ref()),
            "EdDSA",
        ),
        // a wrong label doesn't matter
        (pem("EC PRIVATE KEY", rsa_der.unwrap().as_ref()), "RS256"),
    ] {
        let keys = SigningKeys::from_text(&text).unwrap();
        let jwk = &jwks(&keys)[0];
        assert_eq!(
            (jwk["alg"].as_str(), jwk["kid"].as_str()),
            (Some(alg), Some(keys.kid()))
        );
        let token = keys.sign(&json!({"sub": "a"})).unwrap();
        assert!(verifies(&token, jwk), "{alg}");
        assert!(!verifies(&token.replacen("ey", "eX", 1), jwk), "{alg}");
    }
}

#[test]
fn the_first_signs_and_all_are_published() {
    let both = format!("new one:\n{}\nold one:\n{}", p256_pem(1), p256_pem(2));
    let keys = SigningKeys::from_text(&STANDARD.encode(both)).unwrap();
    let published = jwks(&keys);
    assert_eq!(published.len(), 2);
    let token = keys.sign(&json!({})).unwrap();
    assert!(verifies(&token, &published[0]) && !verifies(&token, &published[1]));
    let (one, two) = (p256_pem(1), p256_pem(2));
    let joined = SigningKeys::join([one, two].map(|t| SigningKeys::from_text(&t).unwrap()));
    assert_eq!(joined.unwrap().jwks(), keys.jwks());
}

#[test]
fn what_can_not_sign_is_refused_by_number() {
    let public = pem("PUBLIC KEY", b"0123");
    let text = format!("{}{public}", p256_pem(1));
    assert_eq!(
        SigningKeys::from_text(&text).unwrap_err(),
        SigningKeyError::Unsupported {
            block: 2,
            label: "PUBLIC KEY".into()
        }
    );
    let cut = p256_pem(1).replace("-----END", "");
    assert_eq!(
        SigningKeys::from_text(&cut).unwrap_err(),
        SigningKeyError::Damaged(1)
    );
    let encrypted = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END EC PRIVATE KEY-----";
    assert_eq!(
        SigningKeys::from_text(encrypted).unwrap_err(),
        SigningKeyError::Damaged(1)
    );
    for text in ["", "AAAA", "no key"] {
        assert_eq!(
            SigningKeys::from_text(text).unwrap_err(),
            SigningKeyError::NotPem,
            "{text}"
        );
    }
}

#[test]
fn s21_published_signing_key_is_known() {
    let text = "LS0tLS1CRUdJTiBFQyBQUklWQVRFIEtFWS0tLS0tCk1IY0NBUUVFSUhQbkN5MXk0TEZZVkhQb3RzM05rUSttTXJLcDgvVmVWRkRwaUk2TVNxMlVvQW9HQ0NxR1NNNDkKQXdFSG9VUURRZ0FFT1h0VXAxOWFwRnNvVWJoYkI2cExMR1o1WFBXRlE5YWtmeW5ISy9RZ3paNC9MRjZhWEY2egpvS3lHMnNtL2wyajFiQ1JxUGJNd3dEVW9iWFNIODVIeDdRPT0KLS0tLS1FTkQgRUMgUFJJVkFURSBLRVktLS0tLQo=";
    let keys = SigningKeys::from_text(text).unwrap();
    assert_eq!([keys.kid()], PUBLISHED_KIDS);
    assert!(keys.any_published());
    assert!(
        !SigningKeys::from_text(&p256_pem(1))
            .unwrap()
            .any_published()
    );
}

#[test]
fn s16_debug_tells_no_key() {
    let keys = SigningKeys::from_text(&p256_pem(7)).unwrap();
    let shown = format!("{keys:?}");
    assert!(shown.contains(keys.kid()));
    assert!(!shown.contains("070707") && !shown.contains("[7, 7"));
}
