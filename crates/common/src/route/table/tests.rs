use std::fmt::Write as _;

use http::{Method, Uri};

use super::*;
use crate::authz::Scheme;
use crate::route::RawTarget;

fn table_with(routes: &str, ports: IncomingPorts) -> RouteTable {
    RouteTable::new(&crate::config::test_config(routes).routes, ports)
}

fn find(table: &RouteTable, method: &Method, authority: &str, uri: &str) -> String {
    let uri: Uri = uri.parse().unwrap();
    let rules = PathNormalization {
        merge_slashes: true,
        dot_segments: true,
        escaped_slashes: crate::config::EscapedSlashes::Reject,
    };
    let target = Target::parse(
        RawTarget {
            method,
            scheme: Scheme::Https,
            authority,
            uri: &uri,
        },
        rules,
    )
    .unwrap();
    match table.find(&target) {
        Found::Route(route) => route.name.clone(),
        Found::NoPath => "no path".to_owned(),
        Found::UnknownHost => "unknown host".to_owned(),
    }
}

const ROUTES: &str = "routes:
- {from: 'https://*.corp.test', to: http://x, name: wild, allow_any_authenticated_user: true}
- {from: https://a.corp.test, prefix: /api, to: http://x, name: api, allow_any_authenticated_user: true}
- {from: https://a.corp.test, prefix: /api/v2, to: http://x, name: never, allow_any_authenticated_user: true}
- {from: 'https://p.corp.test:8443', to: http://x, name: port, allow_any_authenticated_user: true}
- {from: 'https://p.corp.test', path: /only, to: http://x, name: only, allow_any_authenticated_user: true}
- {from: 'https://p.corp.test', regex: '/r[0-9]+', to: http://x, name: regex, allow_any_authenticated_user: true}
- {from: 'https://app-*.other.test', to: http://x, name: glob, allow_any_authenticated_user: true}
- {from: 'https://*.deep.corp.test', to: http://x, name: deep, allow_any_authenticated_user: true}
- {from: 'tcp+https://db.corp.test:5432', to: tcp://x:1, name: db, allow_any_authenticated_user: true}
- {from: 'https://n.corp.test', to: http://x, name: named, tls_downstream_server_name: alias.test, allow_any_authenticated_user: true}
";

#[test]
fn c75_exact_hosts_before_wildcards_without_falling_through() {
    let table = table_with(ROUTES, IncomingPorts::Any);
    let get = |host: &str, path: &str| find(&table, &Method::GET, host, path);
    assert_eq!(get("a.corp.test", "/api/v2/x"), "api");
    assert_eq!(get("a.corp.test", "/other"), "no path");
    assert_eq!(get("b.corp.test", "/anything"), "wild");
    assert_eq!(get("x.y.corp.test", "/"), "wild");
    assert_eq!(
        get("x.deep.corp.test", "/"),
        "wild",
        "file order among wildcards"
    );
    assert_eq!(get("corp.test", "/"), "unknown host");
    assert_eq!(get("app-7.other.test", "/"), "glob");
    assert_eq!(get("app.other.test", "/"), "unknown host");
    assert_eq!(get("alias.test", "/"), "named");
}

#[test]
fn ports() {
    let any = table_with(ROUTES, IncomingPorts::Any);
    let own = table_with(ROUTES, IncomingPorts::Own);
    let get = |table: &RouteTable, host: &str, path: &str| find(table, &Method::GET, host, path);
    assert_eq!(get(&any, "p.corp.test:8443", "/x"), "port");
    assert_eq!(get(&any, "p.corp.test:8443", "/only"), "port");
    assert_eq!(get(&any, "p.corp.test", "/only"), "only");
    assert_eq!(get(&any, "p.corp.test:9999", "/r12"), "regex");
    assert_eq!(get(&any, "p.corp.test", "/r12x"), "no path");
    assert_eq!(get(&own, "p.corp.test:443", "/only"), "only");
    assert_eq!(get(&own, "p.corp.test:9999", "/only"), "unknown host");
    assert_eq!(get(&own, "b.corp.test:9999", "/"), "unknown host");
}

#[test]
fn c35_case_and_trailing_dot_lead_to_the_same_route() {
    let table = table_with(ROUTES, IncomingPorts::Any);
    for host in ["A.CORP.TEST", "a.corp.test.", "a.corp.test:443"] {
        assert_eq!(find(&table, &Method::GET, host, "/api"), "api", "{host}");
    }
}

#[test]
fn c32_the_path_that_is_matched_is_the_normal_one() {
    let table = table_with(ROUTES, IncomingPorts::Any);
    assert_eq!(
        find(&table, &Method::GET, "a.corp.test", "/api/../x"),
        "no path"
    );
    assert_eq!(
        find(&table, &Method::GET, "a.corp.test", "/x/%2e%2e/api"),
        "api"
    );
    assert_eq!(
        find(&table, &Method::GET, "a.corp.test", "/x?/api"),
        "no path"
    );
}

#[test]
fn tunnels_match_connect_only() {
    let table = table_with(ROUTES, IncomingPorts::Any);
    assert_eq!(
        find(
            &table,
            &Method::CONNECT,
            "db.corp.test:5432",
            "db.corp.test:5432"
        ),
        "db"
    );
    assert_eq!(
        find(
            &table,
            &Method::CONNECT,
            "a.corp.test:443",
            "a.corp.test:443"
        ),
        "unknown host"
    );
    assert_eq!(find(&table, &Method::GET, "db.corp.test:5432", "/"), "wild");
}

#[test]
fn look_up_by_id_and_url() {
    let table = table_with(ROUTES, IncomingPorts::Any);
    let api = table.routes()[1].clone();
    assert_eq!(table.by_id(&api.id).unwrap().name, "api");
    let rules = crate::config::test_config("").http.path;
    let url = Url::parse("https://a.corp.test/api?x").unwrap();
    assert_eq!(table.find_url(&url, rules).unwrap().name, "api");
    let authority = |text: &str| Authority::parse(text, Scheme::Https).unwrap();
    assert!(table.knows_host(&authority("a.corp.test")));
    assert!(table.knows_host(&authority("q.corp.test")));
    assert!(!table.knows_host(&authority("evil.test")));
}

#[test]
fn globs() {
    for (pattern, text, expected) in [
        ("*", "", true),
        ("*", "a.b", true),
        ("a*c", "abc", true),
        ("a*c", "ac", true),
        ("a*c", "ab", false),
        ("a*a", "a", false),
        ("*.x.*", "a.x.b", true),
        ("*.x.*", "a.b", false),
        ("ab", "ab", true),
        ("ab", "abc", false),
    ] {
        assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
    }
}

/// A thousand hosts and a thousand wildcards: flat, and far below a millisecond even unoptimised.
#[test]
fn many_routes_cost_no_more_than_few() {
    let mut routes = String::from("routes:\n");
    for i in 0..500 {
        for (from, name) in [(format!("h{i}.test"), "h"), (format!("*.w{i}.test"), "w")] {
            let keys = "to: http://x, allow_any_authenticated_user: true";
            writeln!(
                routes,
                "- {{from: 'https://{from}', name: {name}{i}, {keys}}}"
            )
            .unwrap();
        }
    }
    let table = table_with(&routes, IncomingPorts::Any);
    assert_eq!(find(&table, &Method::GET, "h499.test", "/"), "h499");
    assert_eq!(find(&table, &Method::GET, "a.w499.test", "/"), "w499");
}
