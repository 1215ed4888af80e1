use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::decide::decide;
use crate::testing::{NOW, ann, at, config, request, route};

fn line(fields: Option<&[&str]>, visitor: Visitor) -> Map<String, Value> {
    let policy = json!([{"allow": {"and": [{"email": {"is": "ann@corp.test"}}]}}]);
    let mut config = config(vec![route("r", &policy)]);
    config.log.authorize_fields =
        fields.map(|fields| fields.iter().map(|&name| name.to_owned()).collect());
    let snapshot = Snapshot::new(Arc::new(config), 0);
    let request = request(
        "/x",
        &[("user-agent", "test"), ("cookie", "_pomerium=secret")],
    );
    let facts = Facts {
        visitor,
        ..Facts::default()
    };
    let route = &snapshot.config.routes[0];
    let ruling = decide(&request, route, &facts, at(NOW));
    members(&Record {
        request: &request,
        snapshot: &snapshot,
        route: Some(route),
        facts: &facts,
        ruling: &ruling,
        removed_groups: 0,
    })
}

#[test]
fn c37_every_line_has_every_field_and_no_other() {
    let fields = [
        "request-id",
        "method",
        "path",
        "host",
        "email",
        "ip",
        "headers.User-Agent",
    ];
    let bob = {
        let mut bob = ann();
        bob.user = None;
        bob
    };
    for (visitor, email, why) in [
        (
            Visitor::Person(Box::new(ann())),
            "ann@corp.test",
            "allow-why-true",
        ),
        (Visitor::Person(Box::new(bob)), "", "allow-why-false"),
        (Visitor::Anonymous, "", "allow-why-false"),
    ] {
        let line = line(Some(&fields), visitor);
        let mut names: Vec<_> = line.keys().map(String::as_str).collect();
        names.sort_unstable();
        let mut expected = vec![
            "allow",
            why,
            "deny",
            "deny-why-false",
            "email",
            "headers",
            "host",
            "ip",
            "method",
            "path",
            "request-id",
        ];
        expected.sort_unstable();
        assert_eq!(names, expected);
        assert_eq!(line["email"], email);
        assert_eq!(line["headers"], json!({"User-Agent": "test"}));
    }
}

#[test]
fn the_default_fields() {
    let line = line(None, Visitor::Person(Box::new(ann())));
    for name in DEFAULT_FIELDS {
        assert!(line.contains_key(name), "{name}");
    }
    assert_eq!(line["session-id"], "session-ann");
    assert_eq!(line["service-account-id"], "");
    assert_eq!(line["route-checksum"], 7);
    assert_eq!(line["allow-why-true"], json!(["email-ok"]));
}

#[test]
fn s16_credentials_are_not_told() {
    let line = line(
        Some(&["headers", "headers.Cookie", "id-token"]),
        Visitor::Anonymous,
    );
    assert!(!Value::Object(line).to_string().contains("secret"));
}
