//! Each criterion with its data.

use serde_json::json;

use super::facts::{Leaf, OwnDevice, Shown, anonymous, lets_in, reason, signed_in};
use crate::{Claims, Fact, Policy};

#[test]
fn constants() {
    assert!(lets_in(&json!({"accept": false}), &anonymous()));
    assert!(!lets_in(&json!({"reject": true}), &anonymous()));
    assert_eq!(reason(&json!({"reject": null}), &anonymous()), "reject");
}

#[test]
fn authenticated_user() {
    let mut ann = signed_in("ann@corp.test", &json!({}));
    let criterion = json!({"authenticated_user": null});
    assert!(lets_in(&criterion, &ann));
    assert_eq!(reason(&criterion, &ann), "user-ok");
    assert_eq!(reason(&criterion, &anonymous()), "user-unauthenticated");
    ann.person().user_id.clear();
    assert_eq!(reason(&criterion, &ann), "user-unauthorized");
}

#[test]
fn user_and_email_are_compared_as_they_are_written() {
    let ann = signed_in("ann@corp.test", &json!({}));
    for (criterion, expected) in [
        (json!({"user": "id-of-ann@corp.test"}), "user-ok"),
        (json!({"user": {"starts_with": "id-of-"}}), "user-ok"),
        (json!({"user": "ID-of-ann@corp.test"}), "user-unauthorized"),
        (json!({"email": "ann@corp.test"}), "email-ok"),
        (
            json!({"email": {"is": "Ann@corp.test"}}),
            "email-unauthorized",
        ),
        (
            json!({"email": {"in": ["bob@corp.test", "ann@corp.test"]}}),
            "email-ok",
        ),
        (json!({"email": {"not": "bob@corp.test"}}), "email-ok"),
        (json!({"domain": "corp.test"}), "domain-ok"),
        (json!({"domain": {"ends_with": ".test"}}), "domain-ok"),
        (json!({"domain": "test"}), "domain-unauthorized"),
        (
            json!({"domain": {"not_in": ["CORP.test"]}}),
            "domain-unauthorized",
        ),
    ] {
        assert_eq!(reason(&criterion, &ann), expected, "{criterion}");
    }
}

#[test]
fn session_claims_come_before_user_claims() {
    let mut ann = signed_in("ann@corp.test", &json!({"role": ["new"]}));
    ann.person().user_claims = Claims::from([
        ("role".to_owned(), vec![json!("old")]),
        ("team".to_owned(), vec![json!("core")]),
    ]);
    assert!(lets_in(&json!({"claim/role": "new"}), &ann));
    assert!(!lets_in(&json!({"claim/role": "old"}), &ann));
    assert!(lets_in(&json!({"claim/team": "core"}), &ann));
    ann.person()
        .session_claims
        .insert("role".to_owned(), Vec::new());
    assert!(!lets_in(&json!({"claim/role": "old"}), &ann));
}

#[test]
fn a_claim_may_have_slashes_in_its_own_name() {
    let ann = signed_in(
        "ann@corp.test",
        &json!({"https://corp.test/groups": ["eng"], "a/b": ["literal"], "a.b": ["nested"]}),
    );
    assert!(lets_in(
        &json!({"claim/https://corp.test/groups": "eng"}),
        &ann
    ));
    assert!(lets_in(&json!({"claim/a/b": "literal"}), &ann));
    assert!(!lets_in(&json!({"claim/a/b": "nested"}), &ann));
    assert!(lets_in(&json!({"claim/a.b": "nested"}), &ann));
}

#[test]
fn s35_odd_claims_are_no_match() {
    let huge = "x".repeat(1 << 20);
    let ann = signed_in(
        "ann@corp.test",
        &json!({
            "null": [null], "empty": [], "object": [{"has": "a"}], "list": [["a"]],
            "inexact": [1e300], "huge": [huge], "many": vec!["b"; 10_000],
        }),
    );
    for name in [
        "missing", "null", "empty", "object", "list", "inexact", "huge", "many",
    ] {
        let claim = format!("claim/{name}");
        for operand in [
            "", "a", "null", "0", "false", "[]", "{}", "[\"a\"]", "1e300",
        ] {
            for operator in ["has", "is"] {
                let criterion = json!({claim.clone(): {operator: operand}});
                assert!(!lets_in(&criterion, &ann), "{criterion}");
            }
        }
    }
}

#[test]
fn groups_come_from_the_directory_else_from_the_claim() {
    let mut ann = signed_in("ann@corp.test", &json!({"groups": ["claimed"]}));
    assert!(lets_in(&json!({"groups": "claimed"}), &ann));
    ann.person().groups = Some(vec!["synced".to_owned()]);
    assert!(lets_in(&json!({"groups": {"has": "synced"}}), &ann));
    assert_eq!(
        reason(&json!({"groups": "claimed"}), &ann),
        "groups-unauthorized"
    );
    assert!(lets_in(&json!({"groups": {"exclude": "claimed"}}), &ann));
    ann.person().groups = Some(Vec::new());
    assert!(!lets_in(&json!({"groups": "claimed"}), &ann));
    // Nothing is known of bob's groups.
    let bob = signed_in("bob@corp.test", &json!({}));
    assert!(!lets_in(&json!({"groups": {"exclude": "claimed"}}), &bob));
}

#[test]
fn s37_source_ip() {
    let mut facts = anonymous();
    for (ip, expected) in [
        ("198.51.100.7", "source-ip-ok"),
        ("::ffff:198.51.100.7", "source-ip-ok"),
        ("198.51.101.7", "source-ip-unauthorized"),
        ("2001:db8::1", "source-ip-unauthorized"),
    ] {
        facts.ip = ip.to_owned();
        assert_eq!(
            reason(&json!({"source_ip": "198.51.100.0/24"}), &facts),
            expected,
            "{ip}"
        );
    }
}

#[test]
fn http() {
    let mut facts = anonymous();
    facts.path = "/app/ä b".to_owned();
    for (criterion, expected) in [
        (json!({"http_method": "GET"}), "http-method-ok"),
        (
            json!({"http_method": {"in": ["POST", "PUT"]}}),
            "http-method-unauthorized",
        ),
        (json!({"http_method": "get"}), "http-method-unauthorized"),
        (
            json!({"http_path": {"starts_with": "/app/"}}),
            "http-path-ok",
        ),
        (json!({"http_path": "/app/ä b"}), "http-path-ok"),
        (json!({"http_path": "/app"}), "http-path-unauthorized"),
    ] {
        assert_eq!(reason(&criterion, &facts), expected, "{criterion}");
    }
    for (path, expected) in [
        ("/.pomerium", true),
        ("/.pomerium/user", true),
        ("/.well-known/pomerium/jwks.json", true),
        ("/.pomeriumx", false),
        ("/x/.pomerium/", false),
        ("/.POMERIUM/", false),
    ] {
        facts.path = path.to_owned();
        assert_eq!(
            lets_in(&json!({"pomerium_routes": true}), &facts),
            expected,
            "{path}"
        );
    }
}

#[test]
fn a_preflight_has_its_method_and_both_headers() {
    let some = |text: &str| Some(text.to_owned());
    let app = "https://app.corp.test";
    for (method, origin, requested, expected) in [
        ("OPTIONS", some(app), some("PUT"), true),
        ("options", some(app), some("PUT"), false),
        ("GET", some(app), some("PUT"), false),
        ("OPTIONS", None, some("PUT"), false),
        ("OPTIONS", some(app), None, false),
        ("OPTIONS", some(""), some("PUT"), false),
        ("OPTIONS", some(app), some(""), false),
    ] {
        let mut facts = anonymous();
        facts.method = method.to_owned();
        facts.origin = origin;
        facts.requested_method = requested;
        assert_eq!(
            lets_in(&json!({"cors_preflight": true}), &facts),
            expected,
            "{facts:?}"
        );
    }
}

const HEX: &str = "17859273e8a980631d367b2d5a6a6635412b0f22835f69e47b3f65624546a704";
const HEX_WITH_COLONS: &str = "17:85:92:73:E8:A9:80:63:1D:36:7B:2D:5A:6A:66:35:41:2B:0F:22:83:5F:\
                               69:E4:7B:3F:65:62:45:46:A7:04";
const KEY: &str = "FsDbM0rUYIiL3V339eIKqiz6HPSB+Pz2WeAWhqlqh8U=";

#[test]
fn client_certificate() {
    let leaf = Leaf {
        fingerprint: HEX.to_owned(),
        spki_hash: KEY.to_owned(),
        san_dns: vec!["a.corp.test".to_owned(), "b.corp.test".to_owned()],
        san_email: vec!["ann@corp.test".to_owned()],
        san_uri: Vec::new(),
    };
    let other = HEX.replace('1', "2");
    for certificate in [
        Shown::Valid(leaf.clone()),
        Shown::Invalid(leaf.clone()),
        Shown::NotAsked(Some(leaf)),
    ] {
        let mut facts = anonymous();
        facts.certificate = certificate;
        for (data, expected) in [
            (json!({"fingerprint": HEX}), true),
            (json!({"fingerprint": HEX_WITH_COLONS}), true),
            (json!({"fingerprint": [other, HEX]}), true),
            (json!({"fingerprint": other}), false),
            (json!({"fingerprint": []}), false),
            (json!({"spki_hash": KEY}), true),
            (json!({"spki_hash": [KEY.replace('F', "G")]}), false),
            (json!({"san_dns": "b.corp.test"}), true),
            (
                json!({"san_dns": {"ends_with": ".corp.test", "not": "a.corp.test"}}),
                true,
            ),
            (json!({"san_dns": "corp.test"}), false),
            (json!({"san_email": {"ends_with": "@corp.test"}}), true),
            (json!({"san_uri": {"not": "x"}}), false),
            (json!({"fingerprint": HEX, "san_dns": "c.corp.test"}), false),
        ] {
            let criterion = json!({"client_certificate": data});
            assert_eq!(lets_in(&criterion, &facts), expected, "{criterion}");
        }
    }
    let criterion = json!({"client_certificate": {"fingerprint": HEX}});
    assert_eq!(
        reason(&criterion, &anonymous()),
        "client-certificate-unauthorized"
    );
}

#[test]
fn device() {
    let mut ann = signed_in("ann@corp.test", &json!({}));
    assert_eq!(
        reason(&json!({"device": {"type": "any"}}), &ann),
        "device-unauthenticated"
    );
    assert_eq!(
        reason(&json!({"device": {"approved": false}}), &ann),
        "device-unauthenticated"
    );
    for (type_id, credential_id, approved) in [("any", "key1", false), ("any", "key2", true)] {
        ann.person().devices.push(OwnDevice {
            type_id: type_id.to_owned(),
            credential_id: credential_id.to_owned(),
            approved,
        });
    }
    for (data, expected) in [
        (json!({"type": "any"}), "device-ok"),
        (json!({"is": "key2"}), "device-ok"),
        (json!({"is": "key2", "approved": true}), "device-ok"),
        (
            json!({"is": "key1", "approved": "true"}),
            "device-unauthorized",
        ),
        (json!({"approved": false}), "device-ok"),
        (json!({"is": "key3"}), "device-unauthorized"),
        (
            json!({"is": "key2", "type": "enclave_only"}),
            "device-unauthenticated",
        ),
    ] {
        assert_eq!(reason(&json!({"device": data}), &ann), expected, "{data}");
    }
}

#[test]
fn record() {
    let mut ann = signed_in("ann@corp.test", &json!({}));
    ann.records.insert(
        "hr".to_owned(),
        json!({
            "country": "US", "score": 5, "teams": ["a", "b"], "one": ["x"], "nothing": null,
            "office": {"floor": 3}, "a.b": "literal", "manager": true,
        }),
    );
    for (data, expected) in [
        (json!({"exists": true}), true),
        (json!({"exists": false}), false),
        (json!({"field": "country", "is": "US"}), true),
        (json!({"field": "country", "not": "US"}), false),
        (json!({"field": "country", "in": ["DE", "US"]}), true),
        (
            json!({"field": "country", "starts_with": "U", "ends_with": "S"}),
            true,
        ),
        (json!({"field": "country", "has": "US"}), true),
        (json!({"field": "manager", "is": true}), true),
        (json!({"field": "score", ">=": 5}), true),
        (json!({"field": "score", ">": 5}), false),
        (json!({"field": "score", "<": 5.5, ">": 4}), true),
        (json!({"field": "score", "<=": 4}), false),
        (json!({"field": "score", "=": 5.0}), true),
        (json!({"field": "score", "is": "5"}), true),
        (json!({"field": "country", ">": 1}), false),
        (json!({"field": "teams", "has": "b"}), true),
        (json!({"field": "teams", "exclude": "c"}), true),
        (json!({"field": "teams", "is": "a"}), false),
        (json!({"field": "one", "is": "x"}), true),
        (json!({"field": "office.floor", "=": 3}), true),
        (json!({"field": "office/floor", "is": 3}), true),
        (json!({"field": "a.b", "is": "literal"}), true),
        (json!({"field": "country.x", "is": "US"}), false),
        // What is not there is neither this nor that.
        (json!({"field": "gone", "is": ""}), false),
        (json!({"field": "gone", "not": "x"}), false),
        (json!({"field": "nothing", "exclude": "x"}), false),
        (json!({"field": "office", "not": "x"}), false),
    ] {
        let mut data = data;
        data["type"] = json!("hr");
        assert_eq!(lets_in(&json!({"record": data}), &ann), expected, "{data}");
    }
    let gone = json!({"record": {"type": "gone", "exists": false}});
    assert!(lets_in(&gone, &ann));
    assert!(!lets_in(&gone, &anonymous()));
    assert_eq!(reason(&gone, &anonymous()), "user-unauthenticated");
    // A record of the client's network needs nobody.
    let mut geo = anonymous();
    geo.records
        .insert("geo".to_owned(), json!({"country": "DE"}));
    assert!(lets_in(
        &json!({"record": {"type": "geo", "field": "country", "is": "DE"}}),
        &geo
    ));
    assert!(!lets_in(
        &json!({"record": {"type": "geo", "field": "country", "is": "US"}}),
        &geo
    ));
}

#[test]
fn needs_name_what_is_read_and_nothing_else() {
    let reads = |criterion| {
        let policy = Policy::compile(&json!({"allow": {"and": [criterion]}})).unwrap();
        let needs = policy.needs().clone();
        let facts = [
            Fact::Session,
            Fact::Email,
            Fact::Claims,
            Fact::Groups,
            Fact::Devices,
            Fact::ClientCertificate,
            Fact::Time,
        ];
        let records: Vec<String> = needs.record_types().map(str::to_owned).collect();
        let facts: Vec<Fact> = facts
            .into_iter()
            .filter(|fact| needs.reads(*fact))
            .collect();
        (facts, records)
    };
    for (criterion, facts) in [
        (json!({"accept": 1}), vec![]),
        (json!({"source_ip": "10.0.0.0/8"}), vec![]),
        (json!({"user": "x"}), vec![Fact::Session]),
        (json!({"domain": "x"}), vec![Fact::Session, Fact::Email]),
        (json!({"claim/x": "x"}), vec![Fact::Session, Fact::Claims]),
        (
            json!({"groups": "x"}),
            vec![Fact::Session, Fact::Claims, Fact::Groups],
        ),
        (
            json!({"device": {"is": "x"}}),
            vec![Fact::Session, Fact::Devices],
        ),
        (
            json!({"invalid_client_certificate": 1}),
            vec![Fact::ClientCertificate],
        ),
        (json!({"day_of_week": "mon"}), vec![Fact::Time]),
    ] {
        assert_eq!(reads(criterion.clone()), (facts, vec![]), "{criterion}");
    }
    let (facts, records) = reads(json!({"record": {"type": "hr", "exists": true}}));
    assert_eq!(
        (facts, records),
        (vec![Fact::Session], vec!["hr".to_owned()])
    );
}
