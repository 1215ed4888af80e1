//! What reading a request costs: its target, its route, its handle; and what an assertion costs that
//! is not there yet.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::allow_attributes,
    reason = "a benchmark that cannot go on stops"
)]

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use divan::{Bencher, black_box};
use http::{Method, Uri};
use postern_common::authz::Scheme;
use postern_common::config::source::Environment;
use postern_common::config::{Config, ProcessSecrets, load_text};
use postern_common::crypto::handle::{Handle, Purpose};
use postern_common::crypto::keys::{SecretKey, SigningKeys};
use postern_common::route::table::{Found, IncomingPorts};
use postern_common::route::target::RawTarget;
use postern_common::route::{RouteTable, Target};
use serde_json::json;

fn main() {
    divan::main();
}

const BASE: &str = "
authenticate_service_url: https://auth.corp.test
idp_provider: oidc
idp_provider_url: https://idp.corp.test
idp_client_id: postern
idp_client_secret: for-tests-only
insecure_server: true
shared_secret: yM8aAeZc3VOSnmgCcCIKVmz6kSC5YtULfKQr2LDIFeY=
cookie_secret: 1pvXsrWdiTKPnNv3x6ehRzqrOYLM9TMmvE3tKmXQ9vM=
routes:
";

/// So many routes, a host each; the last one is that of [`target`].
fn config(routes: usize) -> Arc<Config> {
    let mut text = BASE.to_owned();
    let others = (1..routes).map(|number| format!("app{number}"));
    for name in others.chain(["app".to_owned()]) {
        writeln!(
            text,
            "- {{from: 'https://{name}.corp.test', to: http://up, allow_any_authenticated_user: true}}"
        )
        .unwrap();
    }
    let loaded = load_text(
        Path::new("config.yaml"),
        &text,
        &Environment::default(),
        &ProcessSecrets::default(),
    );
    loaded
        .config
        .unwrap_or_else(|| panic!("{}", loaded.diagnostics))
}

fn target(config: &Config) -> Target {
    let uri = Uri::from_static("/some/page/of?the=application");
    parse(&uri, config)
}

fn parse(uri: &Uri, config: &Config) -> Target {
    let raw = RawTarget {
        method: &Method::GET,
        scheme: Scheme::Https,
        authority: "app.corp.test",
        uri,
    };
    Target::parse(raw, config.http.path).unwrap()
}

#[divan::bench]
fn target_parse(bencher: Bencher) {
    let config = config(1);
    let uri = Uri::from_static("/some/page/of?the=application");
    bencher.bench_local(|| parse(black_box(&uri), &config));
}

#[divan::bench(args = [1, 100, 1_000, 10_000])]
fn route_match(bencher: Bencher, routes: usize) {
    let config = config(routes);
    let table = RouteTable::new(&config.routes, IncomingPorts::Any);
    let target = target(&config);
    assert!(matches!(table.find(&target), Found::Route(_)));
    bencher.bench_local(|| matches!(table.find(black_box(&target)), Found::Route(_)));
}

fn secret() -> SecretKey {
    SecretKey::from_base64("yM8aAeZc3VOSnmgCcCIKVmz6kSC5YtULfKQr2LDIFeY=").unwrap()
}

/// Signature and claims, as at a client's first request.
#[divan::bench]
fn handle_verify(bencher: Bencher) {
    let handle = Handle {
        id: "b2f3a3a8-34a4-4d57-8f0d-0ad1a6f6ae51".to_owned(),
        subject: "user-7".to_owned(),
        issuer: "auth.corp.test".to_owned(),
        audience: vec!["app.corp.test".to_owned()],
        idp_id: "4kZ1".to_owned(),
        issued_at: 1_767_225_600,
        record_version: 1_234,
        server_version: 5_678,
        purpose: Some(Purpose::Browser),
    };
    let secrets = [secret()];
    let token = handle.encode(&secrets[0]);
    bencher.bench_local(|| Handle::decode(&secrets, black_box(&token)).unwrap());
}

#[divan::bench]
fn assertion_sign(bencher: Bencher) {
    let keys = SigningKeys::derived_from(&secret()).unwrap();
    let claims = json!({
        "iss": "app.corp.test", "aud": "app.corp.test", "iat": 1_767_225_600, "exp": 1_767_225_900,
        "jti": "b2f3a3a8-34a4-4d57-8f0d-0ad1a6f6ae51", "sub": "user-7", "user": "user-7",
        "email": "user-7@corp.test", "groups": ["eng", "staff", "berlin"], "sid": "session-7", "name": "Ann",
    });
    bencher.bench_local(|| keys.sign(black_box(&claims)).unwrap());
}
