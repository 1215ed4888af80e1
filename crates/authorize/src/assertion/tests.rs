use serde_json::json;

use super::*;
use crate::facts::PersonKind;
use crate::records::{DirectoryUser, Session, User};

fn session(claims: Value) -> Arc<Session> {
    Arc::new(Session {
        id: "sid".into(),
        user_id: "user-1".into(),
        idp_id: String::new(),
        valid_until: None,
        claims: Claims::of(claims),
        impersonates: None,
        devices: Vec::new(),
        tokens: None,
        audience: Vec::new(),
    })
}

fn person(session_claims: Value, user_claims: Value) -> Person {
    Person {
        id: "6f9d1a3e-0000-4000-8000-000000000001".into(),
        kind: PersonKind::Session {
            own: session(session_claims),
            impersonated: None,
        },
        user_id: "user-1".into(),
        user: Some(Arc::new(User {
            id: "user-1".into(),
            email: "a@example.com".into(),
            claims: Claims::of(user_claims),
        })),
        directory: None,
        group_names: Vec::new(),
        devices: Vec::new(),
        valid_until: None,
        versions: PersonVersions::default(),
    }
}

fn audience<'a>(filter: &'a [&'a str], claims_headers: &'a [(HeaderName, String)]) -> Audience<'a> {
    Audience {
        host: "app.example.com",
        issuer: IssuerFormat::HostOnly,
        groups_filter: filter,
        claims_headers,
    }
}

fn header(claim: &str) -> (HeaderName, String) {
    let name = format!("x-pomerium-claim-{}", claim.to_lowercase());
    (name.parse().unwrap(), claim.to_owned())
}

const T: i64 = 1_767_225_600;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

#[test]
fn the_known_answer() {
    let person = person(json!({"name": ["A"]}), json!({}));
    let id = "6f9d1a3e-0000-4000-8000-000000000002".to_owned();
    let identity = identity(Some(&person), &audience(&[], &[]), at(T), id);
    let payload = concat!(
        "eyJhdWQiOiJhcHAuZXhhbXBsZS5jb20iLCJlbWFpbCI6ImFAZXhhbXBsZS5jb20iLCJleHAiOjE3NjcyMjU5MDAs",
        "Imdyb3VwcyI6W10sImlhdCI6MTc2NzIyNTYwMCwiaXNzIjoiYXBwLmV4YW1wbGUuY29tIiwianRpIjoiNmY5ZDFh",
        "M2UtMDAwMC00MDAwLTgwMDAtMDAwMDAwMDAwMDAyIiwibmFtZSI6IkEiLCJzaWQiOiI2ZjlkMWEzZS0wMDAwLTQw",
        "MDAtODAwMC0wMDAwMDAwMDAwMDEiLCJzdWIiOiJ1c2VyLTEiLCJ1c2VyIjoidXNlci0xIn0",
    );
    let decoded =
        base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, payload).unwrap();
    assert_eq!(
        Value::Object(identity.claims).to_string(),
        String::from_utf8(decoded).unwrap()
    );
}

#[test]
fn nobody_has_an_assertion_too() {
    let headers = [header("email"), header("groups"), header("dept")];
    let made = identity(None, &audience(&[], &headers), at(T), "j".into());
    assert_eq!(made.claims["sub"], "");
    assert_eq!(made.claims["groups"], json!([]));
    assert!(!made.claims.contains_key("dept"));
    for (_, value) in claim_headers(&made.claims, &headers) {
        assert_eq!(value, "");
    }
}

#[test]
fn the_issuer_as_a_uri() {
    let audience = Audience {
        issuer: IssuerFormat::Uri,
        ..audience(&[], &[])
    };
    let made = identity(None, &audience, at(T), "j".into());
    assert_eq!(made.claims["iss"], "https://app.example.com/");
    assert_eq!(made.claims["aud"], "app.example.com");
}

#[test]
fn c31_configured_claims_keep_case_and_integers() {
    let person = person(
        json!({"Dept": ["R&D"], "n": [42], "b": [true], "mix": [1, "two", null, {}], "none": []}),
        json!({"Dept": ["old"], "only_user": [1_700_000_000], "sub": ["forged"]}),
    );
    let names = ["Dept", "n", "b", "mix", "none", "only_user", "gone", "sub"];
    let headers: Vec<_> = names.map(header).into();
    let made = identity(Some(&person), &audience(&[], &headers), at(T), "j".into());
    assert_eq!(made.claims["Dept"], "R&D");
    assert_eq!(made.claims["sub"], "user-1", "reserved");
    assert!(!made.claims.contains_key("gone"));
    let values: Vec<_> = claim_headers(&made.claims, &headers)
        .into_iter()
        .map(|(_, value)| value.to_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        values,
        ["R&D", "42", "true", "1,two", "", "1700000000", "", "user-1"]
    );
}

#[test]
fn c79_the_filter_holds_for_groups_of_the_provider() {
    let many: Vec<_> = (0..298)
        .map(|n| format!("group-{n}"))
        .chain(["ops".into(), "eng".into()])
        .collect();
    let person = person(json!({"groups": many}), json!({}));
    let made = identity(
        Some(&person),
        &audience(&["ops", "eng"], &[]),
        at(T),
        "j".into(),
    );
    assert_eq!(made.claims["groups"], json!(["ops", "eng"]));
    assert_eq!(made.removed_groups, 298);
    let all = identity(Some(&person), &audience(&[], &[]), at(T), "j".into());
    assert_eq!(all.claims["groups"].as_array().unwrap().len(), 300);
}

#[test]
fn groups_of_the_directory_win() {
    let mut person = person(json!({"groups": ["claimed"]}), json!({}));
    person.directory = Some(Arc::new(DirectoryUser {
        id: "user-1".into(),
        email: "directory@example.com".into(),
        group_ids: vec!["1".into(), "2".into(), "3".into()],
    }));
    person.group_names = vec!["one".into(), String::new(), "three".into()];
    let made = identity(
        Some(&person),
        &audience(&["1", "2"], &[]),
        at(T),
        "j".into(),
    );
    assert_eq!(made.claims["groups"], json!(["1", "2", "one"]));
    assert_eq!(made.removed_groups, 1);
    assert_eq!(made.claims["email"], "directory@example.com");
}

#[test]
fn s06_a_claim_cannot_split_headers_or_be_cut_into_another() {
    for forged in ["adm\r\nX-Role: root", "adm\nin", "adm\0in"] {
        assert_eq!(header_value(forged), "");
    }
    assert_eq!(header_value("Zoë").as_bytes(), "Zoë".as_bytes());
}

#[test]
fn reuse_is_bounded_and_keyed_by_everything() {
    let keys =
        SigningKeys::derived_from(&postern_common::crypto::keys::SecretKey::random()).unwrap();
    let person = person(json!({}), json!({}));
    let assertions = Assertions::default();
    let key = |user: u64| Key {
        configuration: 1,
        route: None,
        host: "app.example.com".into(),
        person: Some((
            Arc::clone(&person.id),
            PersonVersions {
                user,
                ..PersonVersions::default()
            },
        )),
    };
    let get = |key: Key, reuse: u64, seconds: i64| {
        assertions
            .get_or_sign(
                key,
                Duration::from_secs(reuse),
                at(T + seconds),
                &keys,
                Some(&person),
                &audience(&[], &[]),
            )
            .unwrap()
            .token
            .clone()
    };
    let first = get(key(1), 60, 0);
    assert_eq!(get(key(1), 60, 59), first);
    assert_ne!(get(key(2), 60, 0), first, "the user's record has changed");
    let second = get(key(1), 60, 60);
    assert_ne!(second, first, "too old");
    assert_ne!(get(key(1), 0, 60), second, "turned off");
    assert_ne!(get(key(1), 3600, 121), second, "never longer than a minute");
}
