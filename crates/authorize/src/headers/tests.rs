use postern_common::config::Secret;
use serde_json::json;

use super::*;
use crate::assertion::{Assertions, Audience, Key};
use crate::records::{Claims, Tokens};
use crate::testing::{NOW, ann, at, config, request, route};

fn assertion(person: Option<&Person>) -> std::sync::Arc<Assertion> {
    let config = config(Vec::new());
    let headers = [("x-email".parse().unwrap(), "email".to_owned())];
    let key = Key {
        configuration: 0,
        route: None,
        host: "app.corp.test".into(),
        person: None,
    };
    let audience = Audience {
        host: "app.corp.test",
        issuer: postern_common::config::IssuerFormat::HostOnly,
        groups_filter: &[],
        claims_headers: &headers,
    };
    Assertions::default()
        .get_or_sign(
            key,
            std::time::Duration::ZERO,
            at(NOW),
            &config.signing_keys,
            person,
            &audience,
        )
        .unwrap()
}

fn own_names() -> OwnNames {
    OwnNames::new("_pomerium", [])
}

fn texts(changes: &Changes) -> Vec<(&str, &str)> {
    changes
        .set
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect()
}

#[test]
fn identity_only_where_the_route_passes_it() {
    let person = ann();
    let made = assertion(Some(&person));
    let request = request("/", &[]);
    let from = Sources {
        request: &request,
        person: Some(&person),
        assertion: Some(&made),
        certificate: None,
        own_names: &own_names(),
        consumed: ConsumedCredentials::default(),
    };
    let mut route = route("r", &json!([]));
    assert_eq!(for_upstream(&route, &from), Changes::default());
    route.identity.headers = PassIdentity::Yes;
    let changes = for_upstream(&route, &from);
    assert_eq!(texts(&changes)[1], ("x-email", "ann@corp.test"));
    assert_eq!(texts(&changes)[0].0, "x-pomerium-jwt-assertion");
}

#[test]
fn c65_kubernetes_impersonates_only_whom_we_say() {
    let mut person = ann();
    let mut session = (**person.session().unwrap()).clone();
    session.claims = Claims::default();
    person.kind = crate::facts::PersonKind::Session {
        own: session.into(),
        impersonated: None,
    };
    let made = assertion(Some(&person));
    let request = request(
        "/api",
        &[
            ("impersonate-user", "admin"),
            ("impersonate-group", "system:masters"),
            ("impersonate-extra-x", "y"),
            ("impersonate-uid", "0"),
        ],
    );
    let mut route = route("r", &json!([]));
    route.kubernetes_token = Some(Secret::new("T".into()));
    let from = Sources {
        request: &request,
        person: Some(&person),
        assertion: Some(&made),
        certificate: None,
        own_names: &own_names(),
        consumed: ConsumedCredentials::default(),
    };
    let changes = for_upstream(&route, &from);
    assert_eq!(
        texts(&changes),
        [
            ("authorization", "Bearer T"),
            ("impersonate-user", "ann@corp.test")
        ]
    );
    let removed: Vec<_> = changes.remove.iter().map(HeaderName::as_str).collect();
    assert_eq!(
        removed,
        [
            "impersonate-extra-x",
            "impersonate-group",
            "impersonate-uid"
        ]
    );
}

#[test]
fn templates() {
    let mut person = ann();
    let mut session = (**person.session().unwrap()).clone();
    session.tokens = Some(
        Tokens {
            access: "ACCESS".into(),
            id: "ID".into(),
        }
        .into(),
    );
    person.kind = crate::facts::PersonKind::Session {
        own: session.into(),
        impersonated: None,
    };
    let made = assertion(Some(&person));
    let request = request("/", &[("x-from", "client")]);
    let leaf = Leaf {
        fingerprint: "f00d".into(),
        san_dns: vec!["a.test".into(), "b,c.test".into(), "d.test".into()],
        ..Leaf::default()
    };
    let from = Sources {
        request: &request,
        person: Some(&person),
        assertion: Some(&made),
        certificate: Some(&leaf),
        own_names: &own_names(),
        consumed: ConsumedCredentials::default(),
    };
    let text = |text: &str| TemplatePart::Text(text.to_owned());
    let jwt = made.token.to_str().unwrap();
    for (template, expected) in [
        (
            vec![text("Bearer "), TemplatePart::AccessToken],
            "Bearer ACCESS",
        ),
        (vec![TemplatePart::IdToken], "ID"),
        (vec![TemplatePart::Jwt], jwt),
        (vec![TemplatePart::ClientCertFingerprint], "f00d"),
        (vec![TemplatePart::ClientCertSanDns], "a.test,d.test"),
        (vec![TemplatePart::ClientCertSanEmail], ""),
        (
            vec![TemplatePart::RequestHeader("x-from".parse().unwrap())],
            "client",
        ),
        (vec![text("a"), TemplatePart::Unknown, text("b")], "ab"),
    ] {
        let mut route = route("r", &json!([]));
        route.request_headers.set = vec![("x-set".parse().unwrap(), HeaderTemplate(template))];
        assert_eq!(texts(&for_upstream(&route, &from)), [("x-set", expected)]);
    }
    // Nobody has no tokens.
    let from = Sources {
        person: None,
        assertion: None,
        ..from
    };
    let mut route = route("r", &json!([]));
    route.request_headers.set = vec![(
        "x-set".parse().unwrap(),
        HeaderTemplate(vec![TemplatePart::AccessToken]),
    )];
    assert_eq!(texts(&for_upstream(&route, &from)), [("x-set", "")]);
}

#[test]
fn c65_each_group_is_a_header() {
    let mut person = ann();
    let mut session = (**person.session().unwrap()).clone();
    session.claims = Claims::of(json!({"groups": ["eng", "CN=ops,DC=corp", "a\nb"]}));
    person.kind = crate::facts::PersonKind::Session {
        own: session.into(),
        impersonated: None,
    };
    let mut made = std::sync::Arc::into_inner(assertion(Some(&person))).unwrap();
    let request = request("/api", &[]);
    let mut route = route("r", &json!([]));
    route.kubernetes_token = Some(Secret::new("T".into()));
    let set = |made: &Assertion| {
        let from = Sources {
            request: &request,
            person: Some(&person),
            assertion: Some(made),
            certificate: None,
            own_names: &own_names(),
            consumed: ConsumedCredentials::default(),
        };
        for_upstream(&route, &from)
    };
    assert_eq!(
        texts(&set(&made))[1..],
        [
            ("impersonate-user", "ann@corp.test"),
            ("impersonate-group", "eng"),
            ("impersonate-group", "CN=ops,DC=corp"),
        ]
    );
    made.email = String::new();
    assert_eq!(
        texts(&set(&made))[1],
        ("impersonate-user", &*person.user_id)
    );
}

#[test]
fn s05_no_credential_of_ours_passes_under_another_name() {
    let request = request(
        "/",
        &[
            ("cookie", "_pomerium=handle; theme=dark"),
            ("authorization", "Pomerium handle"),
            ("x-pomerium-authorization", "handle"),
        ],
    );
    let mut route = route("r", &json!([]));
    let copied = ["cookie", "authorization", "x-pomerium-authorization"];
    route.request_headers.set = copied
        .map(|name| {
            let part = TemplatePart::RequestHeader(name.parse().unwrap());
            let copy = format!("x-copied-{name}").parse().unwrap();
            (copy, HeaderTemplate(vec![part]))
        })
        .into();
    let from = Sources {
        request: &request,
        person: None,
        assertion: None,
        certificate: None,
        own_names: &own_names(),
        consumed: ConsumedCredentials::default(),
    };
    assert_eq!(
        texts(&for_upstream(&route, &from)),
        [
            ("x-copied-cookie", "theme=dark"),
            ("x-copied-authorization", ""),
            ("x-copied-x-pomerium-authorization", ""),
        ]
    );
}
