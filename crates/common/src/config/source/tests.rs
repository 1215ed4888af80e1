use std::fmt::Write as _;
use std::path::Path;

use super::*;

fn parse_as(name: &str, text: &str) -> Result<Map, String> {
    let source = SourceText::new(name, text);
    let mut diagnostics = Diagnostics::default();
    let map = parse(Path::new(name), &source, &mut diagnostics);
    match map {
        Some(map) if diagnostics.is_empty() => Ok(map),
        _ => Err(diagnostics.to_string()),
    }
}

fn json(name: &str, text: &str) -> serde_json::Value {
    let map = parse_as(name, text).unwrap();
    Node {
        value: Value::Map(map),
        place: Place::Variable("x".into()),
    }
    .to_json()
}

#[test]
fn texts_stay_as_written_and_look_like_json() {
    let map = parse_as(
        "c.yaml",
        "a: 1_000\nb: yes\nc: 08\nd: 12:30\ne: '5'\nf: 5\ng: true\nh: ~\ni: 1.50\nj: -3\nk: 0x1f\n",
    )
    .unwrap();
    let look = |key: &str| match &map.get(key).unwrap().value {
        Value::Scalar(scalar) => (scalar.text.clone(), scalar.look),
        other => panic!("{other:?}"),
    };
    for (key, text, expected) in [
        ("a", "1_000", Look::Text),
        ("b", "yes", Look::Text),
        ("c", "08", Look::Text),
        ("d", "12:30", Look::Text),
        ("e", "5", Look::Text),
        ("f", "5", Look::Number),
        ("g", "true", Look::Bool),
        ("i", "1.50", Look::Number),
        ("j", "-3", Look::Number),
        ("k", "0x1f", Look::Text),
    ] {
        assert_eq!(look(key), (text.to_owned(), expected), "{key}");
    }
    assert!(map.get("h").unwrap().is_null());
}

#[test]
fn the_same_in_three_formats() {
    let yaml = json("c.yaml", "a: {b: [1, x, true]}\nc: 'd'\n");
    assert_eq!(
        yaml,
        json("c.json", r#"{"a": {"b": [1, "x", true]}, "c": "d"}"#)
    );
    assert_eq!(yaml, json("c.toml", "c = 'd'\n[a]\nb = [1, 'x', true]\n"));
}

#[test]
fn every_value_knows_its_place() {
    let text = "a: 1\nroutes:\n  - from: x\n    to: [y, zz]\n";
    let map = parse_as("c.yaml", text).unwrap();
    assert_eq!(map.key("routes").unwrap().place.to_string(), "c.yaml:2:1");
    let routes = map.get("routes").unwrap();
    assert_eq!(routes.place_of("/0/to/1").to_string(), "c.yaml:4:13");
    assert_eq!(routes.place_of("/0/from").to_string(), "c.yaml:3:11");
    assert_eq!(routes.place_of("/0").to_string(), "c.yaml:3:5");
    assert_eq!(routes.place_of("/0/nothing/here").to_string(), "c.yaml:3:5");

    let toml = parse_as("c.toml", "a = 1\n[[routes]]\nfrom = 'x'\n").unwrap();
    assert_eq!(
        toml.get("routes").unwrap().place_of("/0/from").to_string(),
        "c.toml:3:8"
    );
}

#[test]
fn anchors_aliases_and_merges() {
    let value = json(
        "c.yaml",
        "x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\nz: *x\n'<<': 1\n",
    );
    assert_eq!(value["y"], serde_json::json!({"a": 1, "b": 3}));
    assert_eq!(value["z"], serde_json::json!({"a": 1, "b": 2}));
    assert_eq!(value["<<"], 1);
}

#[test]
fn what_is_no_yaml_is_told_with_its_place() {
    for (text, place, words) in [
        ("a: 1\na: 2\n", "c.yaml:2:1", "second time"),
        ("a: [1, 2\nb: 3\n", "c.yaml:", "YAML"),
        ("a: b: c\n", "c.yaml:1:", "YAML"),
        ("a: 1\n---\nb: 2\n", "c.yaml:2:1", "second document"),
        ("a: *x\n", "c.yaml:1:4", "anchor"),
        ("a: &a [*a]\n", "c.yaml:1:8", "inside"),
        ("[1]: 2\n", "c.yaml:1:1", "key must be text"),
        ("- a\n", "c.yaml:1:1", "not a map"),
    ] {
        let error = parse_as("c.yaml", text).expect_err(text);
        assert!(
            error.contains(place) && error.contains(words),
            "{text}: {error}"
        );
    }
    assert!(
        parse_as("c.toml", "a = \n")
            .unwrap_err()
            .contains("c.toml:1:")
    );
    assert!(
        parse_as("config", "a: 1")
            .unwrap_err()
            .contains(".yaml, .json or .toml")
    );
}

#[test]
fn an_alias_bomb_ends() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..12 {
        let alias = format!("*a{}", i - 1);
        let items = [alias.as_str(); 10].join(", ");
        writeln!(text, "a{i}: &a{i} [{items}]").unwrap();
    }
    assert!(parse_as("c.yaml", &text).unwrap_err().contains("more than"));
}

fn overlaid(file: &str, variables: &[(&str, &str)]) -> (serde_json::Value, String) {
    let mut map = parse_as("c.yaml", file).unwrap();
    let mut diagnostics = Diagnostics::default();
    overlay(
        &mut map,
        &variables.iter().copied().collect(),
        &mut diagnostics,
    );
    (
        Node {
            value: Value::Map(map),
            place: Place::Variable("x".into()),
        }
        .to_json(),
        diagnostics.to_string(),
    )
}

#[test]
fn the_environment_wins_over_the_file() {
    let (value, said) = overlaid(
        "address: ':1'\ncookie_name: kept\nidp_scopes: [a]\n",
        &[
            ("ADDRESS", ":8443"),
            ("COOKIE_NAME", ""),
            ("IDP_SCOPES", "b,c"),
            ("IDP_REQUEST_PARAMS", r#"{"hd": "corp.test"}"#),
            ("RUNTIME_FLAGS", r#"{"mcp": false}"#),
            ("DOWNSTREAM_MTLS_CA_FILE", "/ca.pem"),
            ("HEADERS", "X-A:1,X-B:2"),
            ("JWT_CLAIMS_HEADERS", "email name"),
            ("ROUTES", "LSB7ZnJvbTogaHR0cHM6Ly9hLCB0bzogaHR0cDovL2J9Cg=="),
        ],
    );
    assert_eq!(said, "");
    assert_eq!(
        value,
        serde_json::json!({
            "address": ":8443",
            "cookie_name": "kept",
            "idp_scopes": ["b", "c"],
            "idp_request_params": {"hd": "corp.test"},
            "runtime_flags": {"mcp": false},
            "downstream_mtls": {"ca_file": "/ca.pem"},
            "set_response_headers": {"X-A": "1", "X-B": "2"},
            "jwt_claims_headers": ["email", "name"],
            "routes": [{"from": "https://a", "to": "http://b"}],
        })
    );
}

/// A section without content would otherwise swallow what the environment says.
#[test]
fn the_environment_fills_sections_that_the_file_leaves_empty() {
    for empty in ["", "~", "null", "{}", "# later"] {
        let file = format!("downstream_mtls: {empty}\nRuntime_Flags: {empty}\n");
        let (value, said) = overlaid(
            &file,
            &[
                ("DOWNSTREAM_MTLS_CA_FILE", "/ca.pem"),
                ("RUNTIME_FLAGS_ROUTES_PORTAL", "false"),
            ],
        );
        assert_eq!(said, "");
        assert_eq!(
            value,
            serde_json::json!({
                "downstream_mtls": {"ca_file": "/ca.pem"},
                "Runtime_Flags": {"routes_portal": "false"},
            }),
            "{file}"
        );
    }
}

#[test]
fn routes_that_are_no_base64_are_an_error() {
    let (_, said) = overlaid("{}", &[("POLICY", "- from: x")]);
    assert!(
        said.contains(
            "error[invalid-value]: POLICY is not base64 of YAML\n --> environment variable POLICY"
        ),
        "{said}"
    );
    let wrapped = "LSB7ZnJvbTogaHR0cHM6\nLy9hLCB0bzogaHR0cDov\r\n L2J9Cg==\n";
    let (_, said) = overlaid("{}", &[("ROUTES", wrapped)]);
    assert_eq!(said, "");
    let (_, said) = overlaid("{}", &[("ROUTES", "YTogW2IK")]);
    assert!(said.contains("--> $ROUTES:"), "{said}");
}

#[test]
fn s16_an_environment_shows_names_only() {
    let environment: Environment = [("SHARED_SECRET", "hunter2")].into_iter().collect();
    assert_eq!(format!("{environment:?}"), r#"{"SHARED_SECRET"}"#);
}
