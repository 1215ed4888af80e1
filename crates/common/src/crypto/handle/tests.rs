use super::*;
use crate::crypto::{
    base64url,
    vectors::{T, c, k},
};
use proptest::prelude::*;

fn known() -> Handle {
    Handle {
        id: "6f9d1a3e-0000-4000-8000-000000000001".into(),
        subject: "user-1".into(),
        issuer: "authenticate.example.com".into(),
        audience: vec!["authenticate.example.com".into(), "app.example.com".into()],
        idp_id: "IDP".into(),
        issued_at: T,
        record_version: 7,
        server_version: 11,
        purpose: None,
    }
}

#[test]
fn known_answer() {
    let text = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJhdWQiOlsiYXV0aGVudGljYXRlLmV4YW1wbGUuY29tIiwiYXBwLmV4YW1wbGUuY29tIl0sImRhdGFicm9rZXJfcmVjb3JkX3ZlcnNpb24iOjcsImRhdGFicm9rZXJfc2VydmVyX3ZlcnNpb24iOjExLCJpYXQiOjE3NjcyMjU2MDAsImlkcF9pZCI6IklEUCIsImlzcyI6ImF1dGhlbnRpY2F0ZS5leGFtcGxlLmNvbSIsImp0aSI6IjZmOWQxYTNlLTAwMDAtNDAwMC04MDAwLTAwMDAwMDAwMDAwMSIsInN1YiI6InVzZXItMSJ9.VEyXDXuOXqEnKhZb_wYBu8pPOXZPe37cdFjgnS5uGug";
    assert_eq!(known().encode(&k()), text);
    assert_eq!(Handle::decode(&[c(), k()], text).unwrap(), known());
}

#[test]
fn known_service_account() {
    let token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJleHAiOjE4MDE4MzQ4NjAsImlhdCI6MTc3MDI5ODg2MCwianRpIjoiSUQiLCJuYmYiOjE3NzAyOTg4NjAsInN1YiI6IlNVQkpFQ1QifQ.XEdUSyeyUk2784Po8ABkUyEcSRS9HGlgIRUyjfnnWIg";
    let handle = Handle::decode(&[SecretKey::from_bytes([1; 32])], token).unwrap();
    assert_eq!(
        (handle.id.as_str(), handle.subject.as_str()),
        ("ID", "SUBJECT")
    );
    assert_eq!(handle.purpose, None);
    assert_eq!(handle.idp_id, "");
}

#[test]
fn s08_signature_and_algorithm() {
    let token = known().encode(&k());
    assert_eq!(Handle::decode(&[c()], &token), Err(HandleError::Signature));
    assert_eq!(Handle::decode(&[], &token), Err(HandleError::Signature));
    let (_, rest) = token.split_once('.').unwrap();
    for header in [
        r#"{"alg":"none","typ":"JWT"}"#,
        r#"{"alg":"HS384","typ":"JWT"}"#,
        r#"{"alg":"HS512","typ":"JWT"}"#,
        r#"{"alg":"RS256","typ":"JWT"}"#,
        r#"{"alg":"hs256","typ":"JWT"}"#,
        r#"{"alg":"HS256","crit":["exp"]}"#,
    ] {
        let forged = format!("{}.{rest}", base64url(header));
        assert_eq!(
            Handle::decode(&[k()], &forged),
            Err(HandleError::Algorithm),
            "{header}"
        );
    }
    let unsigned = token.rsplit_once('.').unwrap().0;
    assert_eq!(
        Handle::decode(&[k()], &format!("{unsigned}.")),
        Err(HandleError::Signature)
    );
}

#[test]
fn s17_a_service_token_is_no_handle() {
    let token = jws::sign(&k(), &serde_json::json!({"exp": T}));
    assert_eq!(Handle::decode(&[k()], &token), Err(HandleError::Claims));
}

#[test]
fn odd_claims_are_refused() {
    for payload in [
        serde_json::json!({"jti": ""}),
        serde_json::json!({"jti": 1}),
        serde_json::json!({"jti": "a", "sub": null}),
        serde_json::json!({"jti": "a", "aud": {"a": 1}}),
        serde_json::json!({"jti": "a", "use": "everything"}),
        serde_json::json!({"jti": "a", "databroker_record_version": -1}),
        serde_json::json!(["jti"]),
    ] {
        let token = jws::sign(&k(), &payload);
        assert_eq!(
            Handle::decode(&[k()], &token),
            Err(HandleError::Claims),
            "{payload}"
        );
    }
    let token = jws::sign(
        &k(),
        &serde_json::json!({"jti":"a","sub":"s","oid":"o","aud":"x"}),
    );
    let handle = Handle::decode(&[k()], &token).unwrap();
    assert_eq!(
        (handle.subject.as_str(), handle.audience),
        ("o", vec!["x".to_owned()])
    );
}

#[test]
fn s08_only_in_its_place() {
    let places = [
        Place::Cookie,
        Place::Header,
        Place::Query,
        Place::Authenticate,
    ];
    let accepted = |purpose| {
        let handle = Handle {
            purpose,
            audience: vec!["app.example.com".into()],
            ..Handle::default()
        };
        places.map(|place| handle.acceptable(place, "app.example.com", None).is_ok())
    };
    assert_eq!(
        accepted(Some(Purpose::Browser)),
        [true, false, false, false]
    );
    assert_eq!(
        accepted(Some(Purpose::Program)),
        [false, true, false, false]
    );
    assert_eq!(
        accepted(Some(Purpose::Authenticate)),
        [false, false, false, true]
    );
    assert_eq!(accepted(None), [true; 4]);
}

#[test]
fn s08_only_for_its_hosts() {
    let handle = Handle {
        purpose: Some(Purpose::Browser),
        audience: vec!["app.example.com".into(), "b.example.com:8443".into()],
        ..Handle::default()
    };
    let ok = |host, domain| handle.acceptable(Place::Cookie, host, domain).is_ok();
    assert!(ok("app.example.com", None));
    assert!(ok("APP.example.com:443", None));
    assert!(ok("app.example.com.", None));
    assert!(ok("b.example.com:8443", None));
    assert!(!ok("b.example.com", None));
    assert!(!ok("app.example.com:8443", None));
    assert!(!ok("other.example.com", None));
    assert!(!ok("", None));
    assert!(ok("other.example.com:8443", Some("example.com")));
    assert!(ok("other.example.com", Some(".Example.com")));
    assert!(ok("example.com", Some("example.com")));
    assert!(!ok("evilexample.com", Some("example.com")));
    assert!(!ok("other.example.com", Some("")));
}

proptest! {
    #[test]
    fn reads_what_it_wrote(
        id in ".{1,40}", subject: String, issuer: String, audience: Vec<String>,
        idp_id: String, issued_at: i64, record_version: u64, server_version: u64,
        purpose in prop::option::of(prop::sample::select(vec![
            Purpose::Browser, Purpose::Authenticate, Purpose::Program,
        ])),
    ) {
        let handle = Handle {
            id, subject, issuer, audience, idp_id, issued_at, record_version, server_version,
            purpose,
        };
        prop_assert_eq!(Handle::decode(&[k()], &handle.encode(&k())).unwrap(), handle);
    }

    #[test]
    fn decoding_never_panics(token in ".{0,200}") {
        prop_assert!(Handle::decode(&[k()], &token).is_err());
    }

    #[test]
    fn s08_any_change_is_noticed(at: prop::sample::Index, to in "[A-Za-z0-9_-]") {
        let token = known().encode(&k());
        let at = at.index(token.len());
        let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
        prop_assume!(changed != token);
        prop_assert!(Handle::decode(&[k()], &changed).is_err());
    }
}
