use std::net::IpAddr;
use std::sync::LazyLock;

use super::*;
use http::header::CONTENT_TYPE;
use postern_common::authz::ConsumedCredentials;
use proptest::prelude::*;

fn rules() -> HeaderRules {
    let claims = [
        HeaderName::from_static("x-email"),
        HeaderName::from_static("x_dept"),
    ];
    HeaderRules::new("_pomerium", &claims, true, 0)
}

fn address() -> &'static Address {
    static ADDRESS: LazyLock<Address> = LazyLock::new(|| IpAddr::from([10, 0, 0, 9]).into());
    &ADDRESS
}

fn forwarding() -> Forwarding<'static> {
    Forwarding {
        peer: address(),
        client: address(),
        proto: "https",
        request_id: "R",
        replaced_host: None,
        replaced_path: None,
        upgrade: None,
        receiver: Receiver::Upstream,
        identity: PassIdentity::Yes,
        remove: &[],
    }
}

fn map(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    map
}

fn send(pairs: &[(&str, &str)], allow: &Allow) -> HeaderMap {
    rules().upstream(&map(pairs), allow, &forwarding())
}

fn set(pairs: &[(&'static str, &str)]) -> Allow {
    let set_headers = pairs
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
        .collect();
    Allow {
        set_headers,
        ..Allow::default()
    }
}

#[test]
fn c44_the_whole_list_of_hops_goes_on() {
    let mut client = HeaderMap::new();
    for line in [&b"\xe9, 1.1.1.1"[..], b"198.51.100.7"] {
        let line = HeaderValue::from_bytes(line).unwrap();
        client.append(X_FORWARDED_FOR, line);
    }
    let out = rules().upstream(&client, &Allow::default(), &forwarding());
    assert_eq!(
        out[X_FORWARDED_FOR].as_bytes(),
        b"\xe9, 1.1.1.1, 198.51.100.7, 10.0.0.9"
    );
}

#[test]
fn s29_a_name_that_is_no_text_hides_no_other() {
    let mut client = map(&[("x-hop", "1"), ("te", "trailers")]);
    let line = HeaderValue::from_bytes(b"\xe9, X-Hop").unwrap();
    client.append(CONNECTION, line);
    let out = rules().upstream(&client, &Allow::default(), &forwarding());
    assert!(!out.contains_key("x-hop"));
    assert_eq!(out["te"], "trailers");
}

#[test]
fn s05_credentials_of_ours_stay_here() {
    let given = [
        (
            "cookie",
            "_pomerium=handle; theme=dark; _pomerium_authenticate=h2",
        ),
        ("cookie", "_pomerium_csrf=x; lang=de"),
        ("x-pomerium-authorization", "handle"),
        ("authorization", "Pomerium handle"),
    ];
    let out = send(&given, &Allow::default());
    assert_eq!(
        out.get_all(COOKIE).iter().collect::<Vec<_>>(),
        ["theme=dark; lang=de"]
    );
    assert!(!out.contains_key(AUTHORIZATION));
    assert!(!out.contains_key("x-pomerium-authorization"));
    for value in [
        "pomerium handle",
        "POMERIUM  x",
        "Bearer Pomerium-h",
        "bearer pomerium-h",
        "Pomerium",
    ] {
        let out = send(&[("authorization", value)], &Allow::default());
        assert!(!out.contains_key(AUTHORIZATION), "{value}");
    }
    let out = send(&[("cookie", "_pomerium=only")], &Allow::default());
    assert!(!out.contains_key(COOKIE));
}

#[test]
fn s05_consumed_bearer_tokens_stay_here_and_others_pass() {
    let bearer = [("authorization", "Bearer eyJ")];
    assert!(send(&bearer, &Allow::default()).contains_key(AUTHORIZATION));
    let consumed = Allow {
        consumed: ConsumedCredentials { bearer: true },
        ..Allow::default()
    };
    assert!(!send(&bearer, &consumed).contains_key(AUTHORIZATION));
    assert!(send(&[("authorization", "Basic eA==")], &consumed).contains_key(AUTHORIZATION));
}

#[test]
fn s06_no_spelling_of_a_trusted_header_passes() {
    for name in [
        "X-Pomerium-Jwt-Assertion",
        "x_pomerium_jwt_assertion",
        "X-Pomerium_Claim-Email",
        "x-pomerium-set-cookie",
        "X-Email",
        "x_email",
        "X-Dept",
        "x_dept",
        "Impersonate-User",
        "impersonate_group",
        "Impersonate-Extra-x",
        "x-envoy-upstream-alt-stat-name",
        "X-Forwarded-Client-Cert",
        "x_forwarded_for",
        "X_REAL_IP",
        "Forwarded",
    ] {
        let out = send(&[(name, "forged"), (name, "again")], &Allow::default());
        let forged = out
            .values()
            .filter(|value| *value == "forged" || *value == "again")
            .count();
        assert_eq!(forged, 0, "{name}: {out:?}");
    }
}

#[test]
fn s06_connection_cannot_take_away_what_we_set() {
    let given = [
        (
            "connection",
            "close, X-Pomerium-Jwt-Assertion, x-email, X-Forwarded-For, x-hop",
        ),
        ("x-hop", "1"),
    ];
    let allow = set(&[("x-pomerium-jwt-assertion", "real"), ("x-email", "")]);
    let out = send(&given, &allow);
    assert_eq!(out["x-pomerium-jwt-assertion"], "real");
    assert_eq!(out["x-email"], "");
    assert_eq!(out[X_FORWARDED_FOR], "10.0.0.9");
    assert!(!out.contains_key("x-hop"));
}

#[test]
fn identity_is_hidden_unless_passed() {
    let allow = set(&[
        ("x-pomerium-jwt-assertion", "j"),
        ("x-pomerium-claim-name", "n"),
        ("x-email", "e"),
        ("x-custom", "kept"),
    ]);
    let hidden = Forwarding {
        identity: PassIdentity::No,
        ..forwarding()
    };
    let out = rules().upstream(&HeaderMap::new(), &allow, &hidden);
    assert_eq!(out["x-custom"], "kept");
    for name in [
        "x-pomerium-jwt-assertion",
        "x-pomerium-claim-name",
        "x-email",
    ] {
        assert!(!out.contains_key(name), "{name}");
    }
}

#[test]
fn s29_hop_by_hop_headers_end_here() {
    let given = [
        ("connection", "keep-alive, x-custom-hop"),
        ("x-custom-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("proxy-authorization", "Basic x"),
        ("transfer-encoding", "chunked"),
        ("te", "gzip, trailers;q=0.5"),
        ("trailer", "x"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAM"),
        ("expect", "100-continue"),
        ("content-type", "text/plain"),
    ];
    let out = send(&given, &Allow::default());
    assert_eq!(out[TE], "trailers");
    assert_eq!(out[CONTENT_TYPE], "text/plain");
    for (name, _) in given
        .iter()
        .filter(|(name, _)| !["te", "content-type"].contains(name))
    {
        assert!(!out.contains_key(*name), "{name}");
    }
}

#[test]
fn c44_the_peer_is_appended() {
    let given = [
        ("x-forwarded-for", "203.0.113.5, 198.51.100.7"),
        ("x-forwarded-proto", "gopher"),
        ("x-forwarded-host", "evil.test"),
    ];
    let out = send(&given, &Allow::default());
    assert_eq!(out[X_FORWARDED_FOR], "203.0.113.5, 198.51.100.7, 10.0.0.9");
    assert_eq!(out[X_FORWARDED_PROTO], "https");
    assert!(!out.contains_key(X_FORWARDED_HOST));
}

#[test]
fn s07_a_replaced_host_and_path_are_told() {
    let told = Forwarding {
        replaced_host: Some("app.test"),
        replaced_path: Some("/a/x"),
        ..forwarding()
    };
    let out = rules().upstream(
        &map(&[("x-forwarded-host", "evil.test")]),
        &Allow::default(),
        &told,
    );
    assert_eq!(out[X_FORWARDED_HOST], "app.test");
    assert_eq!(out[X_ENVOY_ORIGINAL_PATH], "/a/x");
}

#[test]
fn removal_comes_last() {
    let remove = [
        HeaderName::from_static("x-pomerium-jwt-assertion"),
        X_FORWARDED_FOR,
    ];
    let last = Forwarding {
        remove: &remove,
        ..forwarding()
    };
    let allow = set(&[("x-pomerium-jwt-assertion", "j")]);
    let out = rules().upstream(&HeaderMap::new(), &allow, &last);
    assert!(!out.contains_key("x-pomerium-jwt-assertion"));
    assert!(!out.contains_key(X_FORWARDED_FOR));
}

#[test]
fn c65_kubernetes_headers_are_ours_alone() {
    let given = [
        ("impersonate-user", "admin"),
        ("impersonate-group", "system:masters"),
        ("impersonate-extra-x", "y"),
        ("authorization", "Bearer mine"),
    ];
    let allow = set(&[
        ("authorization", "Bearer T"),
        ("impersonate-user", "ann@corp.test"),
        ("impersonate-group", "eng"),
        ("impersonate-group", "ops"),
    ]);
    let out = send(&given, &allow);
    assert_eq!(out[AUTHORIZATION], "Bearer T");
    let groups = out.get_all("impersonate-group").iter();
    assert_eq!(groups.collect::<Vec<_>>(), ["eng", "ops"]);
    let allow = set(&[
        ("authorization", "Bearer T"),
        ("impersonate-user", "ann@corp.test"),
    ]);
    let out = send(&given, &allow);
    assert_eq!(out.get_all("impersonate-user").iter().count(), 1);
    assert_eq!(out["impersonate-user"], "ann@corp.test");
    assert!(!out.contains_key("impersonate-group"));
    assert!(!out.contains_key("impersonate-extra-x"));
}

#[test]
fn upgrades_name_their_token() {
    let token = HeaderValue::from_static("websocket");
    let upgrade = Forwarding {
        upgrade: Some(&token),
        ..forwarding()
    };
    let out = rules().upstream(
        &map(&[("sec-websocket-key", "k")]),
        &Allow::default(),
        &upgrade,
    );
    assert_eq!(out[UPGRADE], "websocket");
    assert_eq!(out[CONNECTION], "Upgrade");
    assert_eq!(out["sec-websocket-key"], "k");
}

proptest! {
    /// Whatever the spelling, a name that reads like one of ours to somebody never passes.
    #[test]
    fn s06_random_spellings(name in "[xX][-_](pomerium|POMERIUM|Pomerium)[-_][a-zA-Z-_]{1,12}") {
        let out = send(&[(&name, "forged")], &Allow::default());
        prop_assert!(out.values().all(|value| value != "forged"));
    }

    #[test]
    fn s05_random_cookies(cookies in proptest::collection::vec("(_pomerium[a-z_]{0,4}|a|b)=[a-z;]{0,3}", 0..6)) {
        let text = cookies.join("; ");
        let out = send(&[("cookie", &text)], &Allow::default());
        for value in out.get_all(COOKIE) {
            for cookie in value.to_str().unwrap().split(';') {
                prop_assert!(!cookie.trim().starts_with("_pomerium"));
            }
        }
    }
}
