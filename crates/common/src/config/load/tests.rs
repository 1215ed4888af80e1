//! What is said about configurations, word for word where it matters.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::config::diagnostic::{Diagnostic, Severity};
use crate::config::{
    FromScheme, GrpcListenerSecurity, HostHeader, LoadBalancing, PassIdentity, PathMatcher,
    PathRewrite, ProviderKind, Route, SameSite, ServerTls, StorageOptions, UpstreamProtocol,
};

pub(crate) const SECRETS: &str = "shared_secret: yM8aAeZc3VOSnmgCcCIKVmz6kSC5YtULfKQr2LDIFeY=\n\
    cookie_secret: 1pvXsrWdiTKPnNv3x6ehRzqrOYLM9TMmvE3tKmXQ9vM=\n";

/// A configuration that is valid as it is, all-in-one, in clear text.
pub(crate) fn base() -> String {
    format!(
        "authenticate_service_url: https://auth.corp.test\nidp_provider: oidc\nidp_provider_url: https://idp.corp.test\n\
         idp_client_id: postern\nidp_client_secret: for-tests-only\ninsecure_server: true\n{SECRETS}"
    )
}

fn loaded_with(text: &str, variables: &[(&str, &str)]) -> Loaded {
    let environment = variables.iter().copied().collect();
    load_text(
        Path::new("config.yaml"),
        text,
        &environment,
        &ProcessSecrets::default(),
    )
}

/// Loads the base configuration with something added.
pub(crate) fn loaded(added: &str) -> Loaded {
    loaded_with(&format!("{}{added}", base()), &[])
}

pub(crate) fn config(added: &str) -> Arc<Config> {
    let loaded = loaded(added);
    loaded
        .config
        .unwrap_or_else(|| panic!("{}", loaded.diagnostics))
}

/// Everything that is said about the base configuration with something added.
fn said(added: &str) -> String {
    loaded(added).diagnostics.to_string()
}

fn errors(loaded: &Loaded) -> Vec<String> {
    loaded
        .diagnostics
        .iter()
        .filter(|d| d.severity == Severity::Error)
        .map(|d| d.message.clone())
        .collect()
}

fn route(keys: &str) -> Arc<Route> {
    config(&format!(
        "routes:\n- {{from: https://a.corp.test, allow_any_authenticated_user: true, {keys}}}\n"
    ))
    .routes[0]
        .clone()
}

fn route_said(keys: &str) -> String {
    said(&format!(
        "routes:\n- {{from: https://a.corp.test, allow_any_authenticated_user: true, {keys}}}\n"
    ))
}

#[test]
fn the_base_needs_no_remark() {
    assert_eq!(said(""), "");
    let config = config("");
    assert_eq!(config.listen.public, Some("[::]:443".parse().unwrap()));
    assert_eq!(config.listen.grpc, Some("127.0.0.1:5443".parse().unwrap()));
    assert_eq!(
        config.listen.health,
        "127.0.0.1:28080".parse::<SocketAddr>().unwrap()
    );
    assert!(matches!(
        config.grpc.listener,
        GrpcListenerSecurity::ClearText
    ));
    assert_eq!(config.grpc.client_timeout, Duration::from_secs(10));
    assert_eq!(config.process.drain.delay, Duration::from_secs(5));
    assert_eq!(
        config.process.drain.timeout,
        config.http.default_upstream_timeout
    );
    assert_eq!(config.cookie.name, "_pomerium");
    assert_eq!(config.cookie.same_site, SameSite::Lax);
    assert_eq!(config.cookie.expire, Duration::from_secs(14 * 3600));
    assert_eq!(config.provider.as_ref().unwrap().kind, ProviderKind::Oidc);
    assert!(matches!(config.storage, StorageOptions::Memory));
    assert_eq!(config.http.timeout_idle, Duration::from_secs(300));
    assert_eq!(config.programs.redirect_domains, ["localhost"]);
    assert!(config.metrics.is_none());
}

#[test]
fn c14_a_drain_takes_as_long_as_it_is_told() {
    let added = "drain_delay: 0\ndrain_timeout: 1m30s\n";
    assert_eq!(said(added), "");
    let changed = config(added);
    assert_eq!(changed.process.drain.delay, Duration::ZERO);
    assert_eq!(changed.process.drain.timeout, Duration::from_secs(90));
    assert_eq!(changed.checksum, config("").checksum);
    assert!(said("drain_timeout: 30\n").contains("write `30s` for seconds"));
    assert!(said("drain_delay: -1s\n").contains("`drain_delay`: a duration can't be negative"));
}

#[test]
fn an_unknown_key_is_told_with_place_excerpt_and_suggestion() {
    let text = said(
        "grpc_adress: ':80'\nroutes:\n- from: https://a.corp.test\n  to: http://up\n  allow_any_authenticated_user: true\n  idle_timout: 5m\n",
    );
    let expected = "\
warning[unknown-key]: there is no key `grpc_adress`; it has no effect
 --> config.yaml:9:1
  |
9 | grpc_adress: …
  | ^^^^^^^^^^^
  = help: did you mean `grpc_address`?

warning[unknown-key]: there is no key `idle_timout`; it has no effect
  --> config.yaml:14:3
   |
14 |   idle_timout: …
   |   ^^^^^^^^^^^
   = help: did you mean `idle_timeout`?
";
    assert_eq!(text, expected);
}

#[test]
fn a_key_at_the_wrong_level_is_sent_home() {
    assert!(
        said("allow_websockets: true\n")
            .contains("help: `allow_websockets` belongs in an entry of `routes`")
    );
    assert!(
        route_said("to: 'http://up', cookie_name: x").contains("belongs at the top of the file")
    );
    assert!(said("ca_file: x\n").contains("help: `ca_file` belongs under `downstream_mtls`"));
    assert!(route_said("redirect: {host_redirct: b}").contains("did you mean `host_redirect`?"));
}

#[test]
fn removed_keys_name_what_replaced_them() {
    let text = said("tracing_provider: jaeger\n");
    assert!(
        text.contains(
            "error[removed-key]: `tracing_provider` does not exist any more\n --> config.yaml:9:1"
        ),
        "{text}"
    );
    assert!(
        text.contains("help: use `otel_traces_exporter: otlp`"),
        "{text}"
    );
    assert!(
        route_said("to: 'http://up', allowed_groups: [x]")
            .contains("use `policy` with `claim/groups`")
    );
    assert!(said("databroker_storage_type: redis\n").contains("help: use postgres"));
}

#[test]
fn keys_without_effect_say_so() {
    assert!(
        said("autocert: true\n").contains(
            "warning[not-supported-yet]: `autocert` is not supported yet and has no effect"
        )
    );
    assert_eq!(said("autocert: false\n"), "");
    assert!(
        route_said("to: 'http://up', tls_downstream_client_ca_file: x")
            .contains("error[not-supported-yet]: `tls_downstream_client_ca_file`")
    );
    assert!(
        route_said("to: 'http://up', regex_priority_order: 3")
            .contains("note[ignored]: `regex_priority_order`")
    );
}

#[test]
fn mistakes_are_all_told_at_once() {
    let loaded = loaded_with(
        "address: nowhere:99999\nshared_secret: c2hvcnQ=\ncookie_secret: '!'\nsigning_key: aGVsbG8=\nidp_provider: gogle\nidp_provider_url: idp\n\
         timeout_read: 30\ncookie_expire: 5d\ninsecure_server: maybe\ndns_resolvers: [10.0.0.1]\nroutes:\n- from: a.corp.test\n  to: up\n- to: http://x\n  from: https://b/x\n",
        &[],
    );
    assert!(loaded.config.is_none());
    let text = loaded.diagnostics.to_string();
    for part in [
        "`address`: `nowhere` is no IP address",
        "`shared_secret`: 5 bytes, but 32 are needed",
        "`cookie_secret`: not standard base64",
        "`gogle` is not a value of `idp_provider`",
        "did you mean `google`?",
        "`idp_provider_url` is no URL",
        "`idp_client_id` is not set, but `idp_provider` is",
        "`idp_client_secret` is not set",
        "`authenticate_service_url` is not set",
        "write `30s` for seconds or `30ms` for milliseconds",
        "there are no days; write hours",
        "`insecure_server` must be true or false",
        "`10.0.0.1` is no name server",
        "`from`: this is no URL",
        "`to`: `up` has no scheme",
        "a path has no place here",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    assert!(!text.contains("c2hvcnQ="), "{text}");
}

#[test]
fn s16_no_secret_is_ever_shown() {
    let secret = "hunter2hunter2";
    let text = said(&format!(
        "signing_key: {secret}\nmetrics_basic_auth: {secret}\nshared_secrt: {secret}\ndatabroker_storage_type: postgres\n\
         databroker_storage_connection_string: mysql://u:{secret}@h\nroutes:\n\
         - {{from: 'https://a', to: 'x://u:{secret}@up', set_request_headers: {{'bad name': {secret}}}, idp_client_secret: {secret}, policy: x}}\n"
    ));
    assert!(!text.contains(secret), "{text}");
    assert!(text.contains("error["), "{text}");
    let debug = format!("{:?}", config("idp_request_params: {x: y}\n"));
    assert!(
        !debug.contains("for-tests-only") && !debug.contains("yM8aAeZc"),
        "{debug}"
    );
}

#[test]
fn services_and_what_they_need() {
    let alone = |service: &str, more: &str| {
        loaded_with(
            &format!(
                "{more}authenticate_service_url: https://auth.corp.test\ninsecure_server: true\n"
            ),
            &[("SERVICES", service)],
        )
    };
    let text = alone("proxy", "").diagnostics.to_string();
    for key in [
        "shared_secret",
        "cookie_secret",
        "authorize_service_url",
        "databroker_service_url",
    ] {
        assert!(text.contains(&format!("`{key}` ")), "{key}: {text}");
    }
    assert!(text.contains("--> environment variable SERVICES"), "{text}");
    let urls = format!(
        "{SECRETS}authorize_service_url: http://z\ndatabroker_service_url: http://d1,http://d2:81\n"
    );
    let proxy = alone("Proxy", &urls).config.unwrap();
    assert_eq!(proxy.urls.databroker.len(), 2);
    assert_eq!(proxy.listen.grpc, None);
    let authorize = alone("authorize", &format!("{urls}grpc_address: ':80'\n"))
        .config
        .unwrap();
    assert_eq!(authorize.listen.public, None);
    assert_eq!(authorize.listen.grpc, Some("[::]:80".parse().unwrap()));
    assert!(matches!(
        &authorize.grpc.listener,
        GrpcListenerSecurity::Tls(list) if list[0].self_signed
    ));
    let databroker = alone("cache", SECRETS).config.unwrap();
    assert_eq!(databroker.listen.grpc, Some("[::]:443".parse().unwrap()));
    assert!(alone("", SECRETS).config.unwrap().services.is_all());
    assert!(
        alone("proxy, authorize,authenticate,databroker", SECRETS)
            .config
            .unwrap()
            .services
            .is_all()
    );
    assert!(
        alone("authorise", SECRETS)
            .diagnostics
            .to_string()
            .contains("help: did you mean `authorize`?")
    );
}

/// What each set of services needs, key by key. All-in-one makes secrets for itself and reaches
/// itself without URLs.
#[test]
fn only_what_a_process_needs_is_required() {
    const KEYS: [(&str, &str); 5] = [
        (
            "shared_secret",
            "yM8aAeZc3VOSnmgCcCIKVmz6kSC5YtULfKQr2LDIFeY=",
        ),
        (
            "cookie_secret",
            "1pvXsrWdiTKPnNv3x6ehRzqrOYLM9TMmvE3tKmXQ9vM=",
        ),
        ("authenticate_service_url", "https://auth.corp.test"),
        ("authorize_service_url", "http://authorize"),
        ("databroker_service_url", "http://databroker"),
    ];
    let (yes, no) = (true, false);
    for (services, needs) in [
        ("all", [no, no, yes, no, no]),
        ("proxy", [yes, yes, yes, yes, yes]),
        ("authorize", [yes, no, yes, no, yes]),
        ("authenticate", [yes, yes, yes, no, yes]),
        ("databroker", [yes, no, no, no, no]),
        ("proxy,authorize", [yes, yes, yes, no, yes]),
        ("proxy,authenticate", [yes, yes, yes, yes, yes]),
        ("proxy,databroker", [yes, yes, yes, yes, no]),
        ("authorize,databroker", [yes, no, yes, no, no]),
        ("authenticate,databroker", [yes, yes, yes, no, no]),
        ("proxy,authorize,databroker", [yes, yes, yes, no, no]),
    ] {
        for ((key, _), needed) in KEYS.iter().zip(needs) {
            let rest = KEYS.iter().filter(|(name, _)| name != key);
            let lines: Vec<_> = rest
                .map(|(name, value)| format!("{name}: {value}\n"))
                .collect();
            let text = lines.concat();
            let loaded = loaded_with(&text, &[("SERVICES", services)]);
            let told = errors(&loaded);
            if needed {
                assert_eq!(told.len(), 1, "{services} without {key}: {told:?}");
                assert!(told[0].starts_with(&format!("`{key}` ")), "{told:?}");
            } else {
                assert!(
                    loaded.config.is_some(),
                    "{services} without {key}: {told:?}"
                );
            }
        }
    }
    // Databroker refreshes sessions, and the URL is part of a provider's id.
    let provider = "idp_provider: google\nidp_client_id: a\nidp_client_secret: b\n";
    let loaded = loaded_with(
        &format!("{}: {}\n{provider}", KEYS[0].0, KEYS[0].1),
        &[("SERVICES", "databroker")],
    );
    assert!(errors(&loaded)[0].starts_with("`authenticate_service_url` "));
}

#[test]
fn files_of_other_services_need_not_be_there() {
    let files = "certificate_file: /no/cert\ncertificate_key_file: /no/key\ncookie_secret_file: /no/cookie\n\
        signing_key_file: /no/signing\ndatabroker_storage_type: postgres\n\
        databroker_storage_connection_string_file: /no/dsn\ndatabroker_storage_keys_file: /no/keys\n\
        downstream_mtls: {ca_file: /no/ca}\ngrpc_insecure: true\n\
        authenticate_service_url: https://auth.corp.test\n\
        authorize_service_url: http://z\ndatabroker_service_url: http://d\n\
        shared_secret: yM8aAeZc3VOSnmgCcCIKVmz6kSC5YtULfKQr2LDIFeY=\n";
    let missing = |services: &str| {
        let mut files: Vec<String> = errors(&loaded_with(files, &[("SERVICES", services)]))
            .iter()
            .map(|told| told.replace("there is no file /no/", ""))
            .collect();
        files.sort();
        files.join(" ")
    };
    assert_eq!(missing("proxy"), "ca cert cookie key signing");
    assert_eq!(missing("authorize"), "ca signing");
    assert_eq!(missing("authenticate"), "cert cookie key signing");
    assert_eq!(missing("databroker"), "dsn keys");
}

#[test]
fn a_program_of_one_service_refuses_another() {
    let load_only = |only, services: &str| {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        std::fs::write(
            &file,
            format!(
                "{}authorize_service_url: http://z\ndatabroker_service_url: http://d\n",
                base()
            ),
        )
        .unwrap();
        let environment = [("SERVICES", services)].into_iter().collect();
        load(
            &Origin {
                file: Some(file),
                environment,
                only: Some(only),
            },
            &ProcessSecrets::default(),
        )
    };
    let wrong = load_only(Service::Proxy, "authorize");
    assert_eq!(
        errors(&wrong),
        ["this program is proxy, but `services` asks for authorize"]
    );
    for fine in ["", "all", "proxy", "proxy,authorize"] {
        let config = load_only(Service::Proxy, fine).config.unwrap();
        assert_eq!(
            config.services,
            crate::config::Services::one(Service::Proxy)
        );
    }
}

#[test]
fn grpc_listens_on_loopback_in_all_in_one() {
    let listen = |added: &str| config(added).listen.grpc.map(|address| address.to_string());
    assert_eq!(
        listen("grpc_address: ':9000'\n").as_deref(),
        Some("127.0.0.1:9000")
    );
    assert_eq!(
        listen("grpc_address: 0.0.0.0:9000\n").as_deref(),
        Some("0.0.0.0:9000")
    );
    assert_eq!(
        listen("grpc_address: ':443'\n").as_deref(),
        Some("127.0.0.1:5443")
    );
    assert_eq!(
        listen("address: ':5443'\n").as_deref(),
        Some("127.0.0.1:5444")
    );
    assert_eq!(listen("grpc_address: ''\n"), None);
    // All four by name are the same.
    let all = "services: proxy,authorize,authenticate,databroker\n";
    assert_eq!(listen(all).as_deref(), Some("127.0.0.1:5443"));
}

#[test]
fn es512_is_told_where_it_is_listed() {
    let with = |algorithms: &str| {
        format!(
            "identity_providers: {{ci: {{issuer: 'https://ci.test', audiences: [a], supported_algs: [{algorithms}]}}}}\n"
        )
    };
    let both = loaded(&with("ES512, ES256"));
    let told = both.diagnostics.to_string();
    assert!(
        told.contains("warning[not-supported-yet]: tokens signed with ES512"),
        "{told}"
    );
    let config = both.config.unwrap();
    assert_eq!(config.jwt_verifiers["ci"].algorithms, ["ES256"]);
    let alone = loaded(&with("ES512"));
    assert_eq!(errors(&alone).len(), 1, "{}", alone.diagnostics);
    assert!(errors(&alone)[0].contains("ES512"), "{}", alone.diagnostics);
    assert!(errors(&loaded(&with("HS256")))[0].contains("HS256"));
    assert_eq!(said(&with("ES256, RS256")), "");
}

#[test]
fn grpc_of_a_mixed_node_is_there_for_the_others() {
    for services in ["proxy,databroker", "authenticate,authorize,databroker"] {
        let listen = |added: &str| {
            let urls = "authorize_service_url: http://a\n";
            config(&format!("services: '{services}'\n{urls}{added}"))
                .listen
                .grpc
                .map(|address| address.to_string())
        };
        for (added, address) in [
            ("", Some("[::]:5443")),
            ("grpc_address: ':443'\n", Some("[::]:5443")),
            ("address: ':5443'\n", Some("[::]:5444")),
            ("grpc_address: ':9000'\n", Some("[::]:9000")),
            ("grpc_address: ''\n", None),
        ] {
            assert_eq!(listen(added).as_deref(), address, "{services} {added}");
        }
    }
}

#[test]
fn two_listeners_on_one_port_are_told_with_both_keys() {
    for (keys, both, port) in [
        (
            "address: ':9000'\ngrpc_address: '0.0.0.0:9000'\n",
            ["address", "grpc_address"],
            9000,
        ),
        (
            "address: 127.0.0.1:9000\ngrpc_address: ':9000'\n",
            ["address", "grpc_address"],
            9000,
        ),
        (
            "http_redirect_addr: ':443'\n",
            ["address", "http_redirect_addr"],
            443,
        ),
        (
            "metrics_address: ':28080'\n",
            ["metrics_address", "health_check_addr"],
            28080,
        ),
        (
            "address: ':28080'\n",
            ["address", "health_check_addr"],
            28080,
        ),
    ] {
        let loaded = loaded(keys);
        let [first, later] = both;
        assert_eq!(
            errors(&loaded),
            [format!("`{first}` and `{later}` both take port {port}")]
        );
    }
    // Other interfaces of one machine, and ports that the kernel chooses.
    assert_eq!(
        said("address: 127.0.0.1:9000\ngrpc_address: '127.0.0.2:9000'\n"),
        ""
    );
    assert_eq!(
        said("address: '127.0.0.1:0'\ngrpc_address: '127.0.0.1:0'\n"),
        ""
    );
    // Each alone has one of the two listeners only.
    for service in ["proxy", "authenticate", "authorize", "databroker"] {
        let text = format!(
            "{}address: ':9000'\ngrpc_address: ':9000'\ngrpc_insecure: true\n\
             authorize_service_url: http://z\ndatabroker_service_url: http://d\n",
            base()
        );
        let loaded = loaded_with(&text, &[("SERVICES", service)]);
        assert!(loaded.config.is_some(), "{service}: {}", loaded.diagnostics);
    }
}

#[test]
fn c77_random_secrets_are_made_once_per_process() {
    let text = "authenticate_service_url: https://auth.corp.test\ninsecure_server: true\nroutes:\n\
        - {from: https://auth.corp.test, to: http://up, allow_any_authenticated_user: true}\n";
    let process = ProcessSecrets::default();
    let again = || load_text(Path::new("c.yaml"), text, &Environment::default(), &process);
    let (first, second) = (again(), again());
    assert_eq!(
        first.config.unwrap().secrets.shared,
        second.config.unwrap().secrets.shared
    );
    let said = first.diagnostics.to_string();
    assert!(said.contains("warning[random-secret]: `shared_secret` is not set: this process makes a random one, so a restart signs everybody out"), "{said}");
    assert!(
        said.contains("shares the host of `authenticate_service_url`: `/.pomerium/…`"),
        "{said}"
    );
}

#[test]
fn s21_secrets_are_measured_and_published_ones_warned_of() {
    let text = loaded_with(
        "authenticate_service_url: https://a.corp.test\ninsecure_server: true\nshared_secret: 9OkZR6hwfmVD3a7Sfmgq58lUbFJGGz4hl/R9xbHFCAg=\n",
        &[("COOKIE_SECRET", "WwMtDXWaRDMBQCylle8OJ+w4kLIDIGd8W3cB4/zFFtg=")],
    )
    .diagnostics
    .to_string();
    assert!(
        text.contains("warning[public-secret]: `shared_secret` IS PUBLISHED"),
        "{text}"
    );
    assert!(text.contains("`cookie_secret` IS PUBLISHED"), "{text}");
    assert!(!text.contains("9OkZR6"), "{text}");
}

#[test]
fn secrets_rotate_as_lists_and_come_from_files() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    std::fs::write(&file, "yM8aAeZc3VOSnmgCcCIKVmz6kSC5YtULfKQr2LDIFeY=\n").unwrap();
    let text = format!(
        "authenticate_service_url: https://a.corp.test\ninsecure_server: true\nshared_secret_file: {}\n\
         cookie_secret: [1pvXsrWdiTKPnNv3x6ehRzqrOYLM9TMmvE3tKmXQ9vM=, yM8aAeZc3VOSnmgCcCIKVmz6kSC5YtULfKQr2LDIFeY=]\n",
        file.display()
    );
    let loaded = loaded_with(&text, &[]);
    let secrets = &loaded.config.as_ref().unwrap().secrets;
    assert_eq!((secrets.shared.len(), secrets.cookie.len()), (1, 2));
    assert_eq!(secrets.cookie[1], secrets.shared[0]);
    assert_eq!(loaded.files, [file]);
}

#[test]
fn signing_keys_rotate_as_lists_and_with_the_shared_secret() {
    let key = |text: &str| format!("signing_key: {text}\n");
    let published = |text: &str| {
        let config = loaded_with(text, &[]).config.unwrap();
        let jwks: serde_json::Value =
            serde_json::from_str(&config.signing_keys.jwks().body).unwrap();
        let kids = jwks["keys"].as_array().unwrap().iter();
        let kids: Vec<String> = kids
            .map(|key| key["kid"].as_str().unwrap().into())
            .collect();
        assert_eq!(kids[0], config.signing_keys.kid(), "the first signs");
        kids
    };
    let (old, new) = (
        "yM8aAeZc3VOSnmgCcCIKVmz6kSC5YtULfKQr2LDIFeY=",
        "1pvXsrWdiTKPnNv3x6ehRzqrOYLM9TMmvE3tKmXQ9vM=",
    );
    let derived = |secrets: &str| {
        published(&base().replacen(
            &format!("shared_secret: {old}"),
            &format!("shared_secret: {secrets}"),
            1,
        ))
    };
    let before = derived(old);
    let added = derived(&format!("[{old}, {new}]"));
    let turned = derived(&format!("[{new}, {old}]"));
    assert_eq!((before.len(), added.len(), turned.len()), (1, 2, 2));
    assert_eq!((&added[0], &added[1]), (&before[0], &turned[0]));
    assert_eq!(turned[1], before[0]);
    assert_eq!(derived(new), [turned[0].clone()]);

    let pem = || STANDARD.encode(certificate(&["x.test"]).1);
    let (one, two) = (pem(), pem());
    let list = published(&format!("{}{}", base(), key(&format!("[{one}, {two}]"))));
    let commas = published(&format!("{}{}", base(), key(&format!("'{one},{two}'"))));
    let turned = published(&format!("{}{}", base(), key(&format!("[{two}, {one}]"))));
    assert_eq!(list, commas);
    assert_eq!(list.iter().rev().cloned().collect::<Vec<_>>(), turned);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let text = said("idp_client_secret_file: /no/such/file\n");
    assert!(
        text.contains(
            "error[unreadable-file]: there is no file /no/such/file\n --> config.yaml:9:25"
        ),
        "{text}"
    );
    let missing = load(
        &Origin {
            file: Some("/no/config.yaml".into()),
            ..Origin::default()
        },
        &ProcessSecrets::default(),
    );
    assert_eq!(errors(&missing), ["there is no file /no/config.yaml"]);
}

fn certificate(names: &[&str]) -> (String, String) {
    let made = rcgen::generate_simple_self_signed(
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>(),
    )
    .unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

#[test]
fn certificates_are_parsed_matched_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let (cert, key) = certificate(&["App.corp.test", "*.dev.corp.test", "10.0.0.1"]);
    let (other, _) = certificate(&["other.test"]);
    let (cert, key, other) = (
        write("cert.pem", &cert),
        write("key.pem", &key),
        write("other.pem", &other),
    );
    let tls = |keys: &str| {
        loaded_with(
            &format!("{}{keys}", base().replace("insecure_server: true\n", "")),
            &[],
        )
    };

    let config = tls(&format!("certificate_file: {cert}\ncertificate_key_file: {key}\ncertificates: [{{cert: {cert}, key: {key}}}]\n")).config.unwrap();
    let ServerTls::Certificates(list) = &config.server_tls else {
        panic!()
    };
    assert_eq!(list.len(), 2);
    assert_eq!(
        list[0].names,
        ["app.corp.test", "*.dev.corp.test", "10.0.0.1"]
    );
    assert!(!list[0].self_signed);
    assert!(
        config
            .http
            .set_response_headers
            .iter()
            .any(|(name, _)| name == "strict-transport-security")
    );

    let wrong = tls(&format!(
        "certificate_file: {other}\ncertificate_key_file: {key}\n"
    ));
    assert!(
        errors(&wrong)[0].contains("does not belong to the certificate in"),
        "{}",
        wrong.diagnostics
    );
    let half = tls(&format!("certificate_file: {cert}\n"));
    assert_eq!(
        errors(&half),
        ["`certificate_file` is set, but `certificate_key_file` is not"]
    );
    let garbage = write(
        "garbage.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let broken = tls(&format!(
        "certificate_file: {garbage}\ncertificate_key_file: {key}\n"
    ));
    assert!(
        errors(&broken)[0].contains("is damaged"),
        "{}",
        broken.diagnostics
    );
    let empty = write("empty.pem", "\n");
    let none = tls(&format!(
        "certificate_file: {empty}\ncertificate_key_file: {key}\n"
    ));
    assert!(
        errors(&none)[0].contains("there is no certificate in"),
        "{}",
        none.diagnostics
    );

    let made = tls("");
    assert!(
        made.diagnostics
            .to_string()
            .contains("warning[self-signed-certificate]")
    );
    let config = made.config.unwrap();
    assert!(
        !config
            .http
            .set_response_headers
            .iter()
            .any(|(name, _)| name == "strict-transport-security")
    );
    let ServerTls::Certificates(list) = &config.server_tls else {
        panic!()
    };
    assert!(list[0].self_signed);
}

#[test]
fn metrics_have_tls_and_clients_with_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(&["metrics.corp.test"]);
    let write = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let (cert_file, key_file) = (write("cert.pem", &cert), write("key.pem", &key));
    let inline = |text: &str| STANDARD.encode(text);
    let address = "metrics_address: 127.0.0.1:9090\n";
    let tls = |keys: &str| {
        config(&format!("{address}{keys}"))
            .metrics
            .clone()
            .unwrap()
            .tls
    };

    assert!(tls("").is_none());
    let by_file = format!(
        "metrics_certificate_file: {cert_file}\nmetrics_certificate_key_file: {key_file}\n"
    );
    let open = tls(&by_file).unwrap();
    assert_eq!(open.certificate.names, ["metrics.corp.test"]);
    assert!(open.client_authorities.is_empty());
    let by_value = format!(
        "metrics_certificate: {}\nmetrics_certificate_key: {}\nmetrics_client_ca: {}\n",
        inline(&cert),
        inline(&key),
        inline(&cert)
    );
    assert_eq!(tls(&by_value).unwrap().client_authorities.len(), 1);
    let with_authority = format!("{by_file}metrics_client_ca_file: {cert_file}\n");
    assert_eq!(tls(&with_authority).unwrap().client_authorities.len(), 1);
    let both = format!("{address}{by_value}metrics_certificate_file: /nowhere\n");
    assert!(said(&both).contains("`metrics_certificate_file` is not used"));

    for (keys, words) in [
        (
            format!("metrics_certificate_file: {cert_file}\n"),
            "`metrics_certificate` is set, but `metrics_certificate_key` is not",
        ),
        (
            format!("metrics_client_ca_file: {cert_file}\n"),
            "`metrics_client_ca` is set, but `metrics_certificate` is not",
        ),
        (
            format!("{by_file}metrics_client_ca_file: {key_file}\n"),
            "there is no certificate in",
        ),
        (
            format!("{by_file}metrics_client_ca_file: /nowhere\n"),
            "there is no file /nowhere",
        ),
    ] {
        let loaded = loaded(&format!("{address}{keys}"));
        assert!(loaded.config.is_none(), "{keys}");
        assert!(errors(&loaded)[0].contains(words), "{}", loaded.diagnostics);
    }
}

#[test]
fn what_would_fail_at_the_start_is_told() {
    for (keys, words) in [
        (
            "override_certificate_name: 'a b'\n",
            "`override_certificate_name`: `a b` is no name that a certificate can have",
        ),
        (
            "routes: [{from: https://a, to: https://b, tls_upstream_server_name: 'a b', allow_any_authenticated_user: true}]\n",
            "`tls_upstream_server_name`: `a b` is no name that a certificate can have",
        ),
        (
            "routes: [{from: https://a, to: https://b, allow_any_authenticated_user: true}, {name: x, from: https://a, to: https://b}]\n",
            "this route is there twice",
        ),
    ] {
        let loaded = loaded(keys);
        assert!(loaded.config.is_none(), "{keys}");
        assert!(errors(&loaded)[0].contains(words), "{}", loaded.diagnostics);
    }
    assert!(
        loaded("override_certificate_name: '*.int.corp.test'\n")
            .config
            .is_some()
    );
}

#[test]
fn tls_derive_gives_a_certificate_and_whom_to_trust() {
    let database = |keys: &str| {
        loaded_with(
            &format!("authenticate_service_url: https://auth.corp.test\n{SECRETS}{keys}"),
            &[("SERVICES", "databroker")],
        )
    };
    let names = |config: &Config| match &config.grpc.listener {
        GrpcListenerSecurity::Tls(list) => list.iter().map(|it| it.names[0].clone()).collect(),
        GrpcListenerSecurity::ClearText => Vec::new(),
    };
    let without = database("");
    assert!(
        without
            .diagnostics
            .to_string()
            .contains("other services will not trust the self-signed one")
    );
    assert_eq!(names(&without.config.unwrap()), ["postern.invalid"]);

    let derived = database("tls_derive: databroker.int.corp.test\n");
    assert_eq!(derived.diagnostics.to_string(), "");
    let derived = derived.config.unwrap();
    assert_eq!(names(&derived), ["databroker.int.corp.test"]);
    assert_eq!(derived.certificate_authorities.len(), 1);
    // Whoever rotates the secret still trusts those that have the old one.
    let rotating = database("tls_derive: '*.int.corp.test'\n").config.unwrap();
    assert_eq!(
        rotating.certificate_authorities,
        derived.certificate_authorities
    );
    let two = SECRETS.replacen(
        "shared_secret: ",
        "shared_secret: 1pvXsrWdiTKPnNv3x6ehRzqrOYLM9TMmvE3tKmXQ9vM=,",
        1,
    );
    let two = loaded_with(
        &format!("authenticate_service_url: https://auth.corp.test\n{two}tls_derive: a.test\n"),
        &[("SERVICES", "databroker")],
    );
    let two = two.config.unwrap().certificate_authorities.clone();
    assert_eq!(two.len(), 2);
    assert_eq!(two[1], derived.certificate_authorities[0]);

    // Configured certificates come first, and HSTS rests on them.
    let plain = database("grpc_insecure: true\ntls_derive: a.test\n");
    assert!(names(&plain.config.unwrap()).is_empty());
    for bad in ["10.0.0.1", "a b", "https://a.test"] {
        let said = database(&format!("tls_derive: '{bad}'\n"));
        assert_eq!(
            errors(&said),
            [format!("`tls_derive`: `{bad}` is no DNS name")]
        );
    }
}

#[test]
fn issuers_by_http_are_warned_of() {
    let at = |url: &str| {
        loaded_with(&base().replace("https://idp.corp.test", url), &[])
            .diagnostics
            .to_string()
    };
    assert_eq!(at("http://127.0.0.1:9000"), "");
    assert_eq!(at("http://idp.localhost:9000"), "");
    assert!(
        at("http://idp.corp.test").contains("warning[insecure]: `idp_provider_url` is not https")
    );
}

#[test]
fn w15_azure_without_a_tenant_is_warned_of() {
    let with = |lines: &str| {
        let text = base().replace(
            "idp_provider: oidc\nidp_provider_url: https://idp.corp.test\n",
            lines,
        );
        loaded_with(&text, &[]).diagnostics.to_string()
    };
    let host = "https://login.microsoftonline.com";
    let warning = "people of every Azure tenant can sign in";
    assert!(with("idp_provider: azure\n").contains(warning));
    for shared in ["common", "organizations"] {
        let lines = format!("idp_provider: azure\nidp_provider_url: {host}/{shared}/v2.0\n");
        assert!(with(&lines).contains(warning), "{shared}");
    }
    let own = "72f988bf-86f1-41af-91ab-2d7cd011db47";
    let lines = format!("idp_provider: azure\nidp_provider_url: {host}/{own}/v2.0\n");
    assert_eq!(with(&lines), "");
    assert!(with("idp_provider: hosted\n").contains("it is a service that Pomerium runs"));
    assert!(
        with("idp_provider: onelogin\nidp_scopes: [openid]\n")
            .contains("`idp_scopes` has no effect")
    );
}

#[test]
fn provider_ids_follow_what_is_written() {
    let id = |more: &str| config(more).provider_id.clone().unwrap();
    assert_eq!(id(""), id("log_level: debug\n"));
    assert_ne!(id(""), id("idp_scopes: [openid]\n"));
    let routed = config(
        "routes: [{from: https://a, to: http://b, idp_client_id: other, allow_any_authenticated_user: true}]\n",
    );
    assert_ne!(routed.routes[0].provider_id, routed.provider_id);
    assert_eq!(
        routed.provider_id(Some(&routed.routes[0])),
        routed.routes[0].provider_id.as_ref()
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "mostly a table")]
fn upstreams() {
    let target = |keys: &str| {
        let route = route(keys);
        match &route.target {
            crate::config::RouteTarget::Upstream(target) => format!("{:?}", target.endpoints),
            other => panic!("{other:?}"),
        }
    };
    assert!(target("to: ['http://up:8080,2', 'https://b.test,1']").contains("weight: 2"));
    let plain = route("to: 'https://Up.Test/get?x=1'");
    let upstream = plain.upstream().unwrap();
    assert_eq!(upstream.endpoints[0].host, "up.test");
    assert_eq!(upstream.endpoints[0].authority, "Up.Test");
    assert_eq!(
        (upstream.endpoints[0].port, upstream.endpoints[0].protocol),
        (443, UpstreamProtocol::Https)
    );
    assert!(matches!(&upstream.rewrite, PathRewrite::Join(path) if path == "/get"));
    assert!(matches!(upstream.host, HostHeader::Endpoint));
    assert_eq!(upstream.timeout, Some(Duration::from_secs(30)));
    let local = route("to: 'http://localhost:81/', allow_websockets: true, timeout: 0s");
    assert_eq!(local.upstream().unwrap().endpoints[0].host, "127.0.0.1");
    assert_eq!(
        local.upstream().unwrap().endpoints[0].authority,
        "localhost:81"
    );
    assert!(matches!(
        local.upstream().unwrap().rewrite,
        PathRewrite::None
    ));
    for (keys, words) in [
        (
            "to: ['http://a', 'http://b,2']",
            "some URLs of `to` have a weight and some have none",
        ),
        (
            "to: ['http://a,0']",
            "a weight must be a whole number above zero",
        ),
        (
            "to: ['tcp://a:1', 'http://b']",
            "`to` mixes tcp with other schemes",
        ),
        (
            "to: 'unix:///x'",
            "warning[not-supported-yet]: this route is left out: unix is not supported yet",
        ),
        ("to: 'gopher://x'", "there is no scheme `gopher`"),
        ("to: []", "leads nowhere"),
        ("name: x", "leads nowhere"),
        (
            "to: 'http://a', prefix_rewrite: /b, regex_rewrite_pattern: x",
            "can't both be set",
        ),
        (
            "to: 'http://a', regex_rewrite_pattern: '(a)', regex_rewrite_substitution: '\\2'",
            "names a group that the pattern does not have; it has 1",
        ),
        (
            "to: 'http://a', regex: '['",
            "`regex` is no regular expression",
        ),
        (
            "to: 'http://a', regex: 'a)|(b'",
            "`regex` is no regular expression",
        ),
        (
            "to: 'http://a', prefix: a",
            "`prefix` can never match: the path does not begin with a slash",
        ),
        ("to: 'http://a', prefix: /a%2Fb", "`prefix` can never match"),
        (
            "redirect: {response_code: 200}",
            "can be 301, 302, 303, 307 or 308",
        ),
        ("response: {body: x}", "`response` needs a `status`"),
        ("response: {status: 99}", "must be from 200 to 599"),
        (
            "to: 'http://a', response: {status: 200}",
            "`to` has no effect, as `response` is set too",
        ),
        (
            "to: 'http://a', allowed_users: [x]",
            "`allow_any_authenticated_user` and `allowed_users` contradict each other",
        ),
        (
            "to: 'http://a', depends_on: [a, b, c, d, e, f]",
            "at most five hosts",
        ),
        (
            "to: 'http://a', tls_client_cert: x",
            "neither PEM nor base64 of PEM",
        ),
        (
            "to: 'http://a', tls_client_key_file: /no/key",
            "`tls_client_key` is set, but `tls_client_cert` is not",
        ),
        (
            "to: 'http://a', load_balancing_policy: round_robbin",
            "did you mean `round_robin`?",
        ),
        (
            "to: 'http://a', set_request_headers: {'a b': x}",
            "`a b` is no name of a header",
        ),
        (
            "to: 'http://a', identity_providers: [x]",
            "needs `bearer_token_format: jwt`",
        ),
        (
            "to: 'http://a', bearer_token_format: idp_access_token",
            "needs `idp_access_token_allowed_audiences`",
        ),
        ("to: 'http://a', timeout: 5", "write `5s` for seconds"),
        ("to: {a: b}", "`to` takes a list, but here is a map"),
    ] {
        let text = route_said(keys);
        assert!(text.contains(words), "{keys}: {text}");
    }
}

/// Without what it takes to verify a token, none is read at our own endpoints.
#[test]
fn w22_tokens_at_our_own_endpoints() {
    let with = |keys: &str| config(&format!("{keys}\n")).bearer.clone();
    let access = "bearer_token_format: idp_access_token";
    let verifier = "identity_providers: {ci: {issuer: https://ci.test, audiences: [a]}}";
    assert_eq!(with("").format, BearerTokenFormat::Default);
    assert_eq!(with(access).format, BearerTokenFormat::Default);
    let named = with(&format!(
        "{access}\nidp_access_token_allowed_audiences: [api]"
    ));
    assert_eq!(named.format, BearerTokenFormat::IdpAccessToken);
    assert_eq!(named.audiences, Some(vec!["api".to_owned()]));
    let identity = with("bearer_token_format: idp_identity_token");
    assert_eq!(identity.format, BearerTokenFormat::IdpIdentityToken);
    let jwt = "bearer_token_format: jwt";
    assert_eq!(with(jwt).format, BearerTokenFormat::Default);
    let jwt = with(&format!("{jwt}\n{verifier}"));
    assert_eq!(jwt.format, BearerTokenFormat::Jwt);
}

#[test]
fn froms() {
    let from = |text: &str| {
        config(&format!(
            "routes: [{{from: '{text}', to: http://up, allow_any_authenticated_user: true}}]\n"
        ))
        .routes[0]
            .from
            .clone()
    };
    assert_eq!(
        (
            from("https://A.Corp.Test:443").host.as_str(),
            from("https://a.corp.test:443").port
        ),
        ("a.corp.test", None)
    );
    assert_eq!(from("https://a.corp.test:8443/").port, Some(8443));
    assert!(from("https://*.corp.test").is_wildcard());
    let tcp = |text: &str| match from(text).scheme {
        FromScheme::Tcp { authorities } => authorities,
        other => panic!("{other:?}"),
    };
    assert_eq!(tcp("tcp+https://db.corp.test:5432"), ["db.corp.test:5432"]);
    assert_eq!(
        tcp("tcp+https://proxy.test:8443/redis.internal:6379"),
        ["redis.internal:6379"]
    );
}

#[test]
fn set_response_headers_merge_and_disable() {
    let headers = |global: &str, route: &str| {
        let config = config(&format!(
            "{global}routes: [{{from: https://a, to: http://b, allow_any_authenticated_user: true{route}}}]\n"
        ));
        let set = &config.routes[0].response_headers.set;
        set.iter()
            .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(headers("", "").len(), 2);
    assert_eq!(
        headers("set_response_headers: {disable: 'true'}\n", ""),
        [""; 0]
    );
    assert_eq!(
        headers(
            "set_response_headers: {X-Frame-Options: DENY, X-A: '1'}\n",
            ", set_response_headers: {X-A: '2'}"
        ),
        ["x-frame-options=DENY", "x-a=2"]
    );
    assert_eq!(
        headers(
            "set_response_headers: {X-A: '1'}\n",
            ", set_response_headers: {disable: 'true'}"
        ),
        [""; 0]
    );
}

#[test]
fn identity_headers() {
    let list = config(
        "jwt_claims_headers: [email, groups]\npass_identity_headers: true\nroutes: [{from: https://a, to: http://b, allow_any_authenticated_user: 'true'}]\n",
    );
    let names: Vec<_> = list
        .identity
        .claims_headers
        .iter()
        .map(|(name, claim)| format!("{name}={claim}"))
        .collect();
    assert_eq!(
        names,
        [
            "x-pomerium-claim-email=email",
            "x-pomerium-claim-groups=groups"
        ]
    );
    assert_eq!(list.routes[0].identity.headers, PassIdentity::Yes);
    assert_eq!(
        config("jwt_claims_headers: {X-Mail: Email}\n")
            .identity
            .claims_headers[0]
            .1,
        "Email"
    );
    assert!(said("jwt_claims_headers: {'a b': x}\n").contains("is no name of a header"));
}

#[test]
fn c30_policies_are_compiled_with_places() {
    let text = said(
        "routes:\n- from: https://a.corp.test\n  to: http://up\n  policy:\n  - allow:\n      and:\n      - domain: {is: corp.test}\n      - claim/groups: {contains: ops}\n",
    );
    assert!(text.contains("error[bad-policy]"), "{text}");
    assert!(text.contains("--> config.yaml:16:"), "{text}");
    assert!(text.contains("has"), "{text}");
    let both = config(
        "routes: [{from: https://a, to: http://b, allowed_idp_claims: {groups: [sales]}, policy: [{allow: {and: [{domain: {is: corp.test}}, {claim/groups: {has: ops}}]}}]}]\n",
    );
    let words = both.routes[0].policy.describe();
    assert!(words.contains("sales") && words.contains("ops"), "{words}");
    let text = route_said("to: 'http://up', policy: \"- allow:\\n    or:\\n    - emial: x\\n\"");
    assert!(
        text.contains("--> policy (config.yaml:10:") && text.contains("):3:7"),
        "{text}"
    );
}

#[test]
fn s34_a_route_that_lets_nobody_in_is_told() {
    let text = said("routes: [{from: https://a, to: http://b}]\n");
    assert!(
        text.contains("warning[bad-policy]: this route lets nobody in"),
        "{text}"
    );
}

#[test]
fn c40_the_difference_in_joining_is_told() {
    let text = route_said("to: 'http://up/folder'");
    assert!(text.contains("note[differs-from-pomerium]: a request for `/x` goes to `/folder/x`; Pomerium would send `/folderx`"), "{text}");
    assert_eq!(route_said("to: 'http://up/folder/'"), "");
    assert_eq!(
        route_said("to: 'http://up', prefix: /a, prefix_rewrite: /b"),
        ""
    );
}

#[test]
fn tunnels_lead_to_what_takes_them() {
    let text = |to: &str| {
        said(&format!(
            "routes: [{{from: 'tcp+https://db.corp.test:5432', to: '{to}', allow_any_authenticated_user: true}}]\n"
        ))
    };
    for to in ["tcp://db:5432", "http://proxy:3128", "https://proxy"] {
        assert!(!text(to).contains("error["), "{}", text(to));
    }
    assert!(text("h2c://proxy").contains("not to h2c://"));
}

#[test]
fn depends_on_keeps_only_hosts_that_a_route_serves() {
    let routes = "routes:\n- {from: 'https://a.corp.test', to: 'http://a', allow_any_authenticated_user: true, \
         depends_on: [b.corp.test, 'https://X.apps.corp.test/', gone.corp.test]}\n\
         - {from: 'https://b.corp.test', to: 'http://b', allow_any_authenticated_user: true}\n\
         - {from: 'https://*.apps.corp.test', to: 'http://c', allow_any_authenticated_user: true}\n";
    let loaded = loaded_with(&format!("{}{routes}", base()), &[]);
    let text = loaded.diagnostics.to_string();
    let said = "`depends_on` names `gone.corp.test`, which no route here serves";
    assert!(text.contains(said), "{text}");
    assert_eq!(
        loaded.config.unwrap().routes[0].depends_on,
        ["b.corp.test", "x.apps.corp.test"]
    );
}

#[test]
fn c75_shadowed_routes_are_told() {
    let text = said(
        "routes:\n- {from: 'https://*.corp.test', to: http://wild, allow_any_authenticated_user: true}\n\
         - {from: https://a.corp.test, prefix: /api, to: http://api, allow_any_authenticated_user: true}\n\
         - {from: https://a.corp.test, prefix: /api/v2, to: http://never, allow_any_authenticated_user: true}\n",
    );
    assert_eq!(text.matches("warning[").count(), 1, "{text}");
    assert!(
        text.contains("warning[shadowed-route]: this route is never reached"),
        "{text}"
    );
    assert!(
        text.contains("--> config.yaml:12:4")
            && text.contains("the earlier one is at config.yaml:11:4"),
        "{text}"
    );
}

#[test]
fn a_route_is_shadowed_by_whatever_takes_all_its_requests() {
    let shadowed = |earlier: &str, later: &str| {
        let route = |host_and_path: &str, to: &str| {
            let (host, path) = host_and_path.split_once(' ').unwrap_or((host_and_path, ""));
            format!("- {{from: '{host}', {path} to: '{to}', allow_any_authenticated_user: true}}\n")
        };
        let others = ["https://a.test prefix: /zzz,", "https://b.test"];
        let [other, another] = others.map(|it| route(it, "http://o"));
        let (earlier, later) = (route(earlier, "http://e"), route(later, "http://l"));
        let text = said(&format!("routes:\n{other}{earlier}{another}{later}"));
        text.contains("the earlier one is at config.yaml:11:")
    };
    for (earlier, later) in [
        ("https://a.test", "https://a.test"),
        ("https://a.test", "https://a.test prefix: /x,"),
        ("https://a.test", "https://a.test regex: '/x.*',"),
        ("https://a.test prefix: /x,", "https://a.test prefix: /xy,"),
        ("https://a.test prefix: /x,", "https://a.test path: /xy,"),
        ("https://a.test path: /x,", "https://a.test path: /x,"),
        ("https://a.test regex: '/x+',", "https://a.test path: /xx,"),
        (
            "https://a.test regex: '/x+',",
            "https://a.test regex: '/x+',",
        ),
        ("https://a.test:8443", "https://a.test:8443 prefix: /x,"),
        ("tcp+https://a.test:22", "tcp+https://a.test:22"),
    ] {
        assert!(shadowed(earlier, later), "{earlier} before {later}");
    }
    for (earlier, later) in [
        ("https://a.test prefix: /x,", "https://a.test"),
        ("https://a.test prefix: /x,", "https://a.test prefix: /y,"),
        ("https://a.test prefix: /xy,", "https://a.test path: /x,"),
        ("https://a.test path: /x,", "https://a.test prefix: /x,"),
        ("https://a.test regex: '/x+',", "https://a.test path: /xy,"),
        (
            "https://a.test regex: '/x+',",
            "https://a.test regex: '/x*',",
        ),
        ("https://a.test:8443", "https://a.test prefix: /x,"),
        ("https://c.test", "https://a.test prefix: /x,"),
        ("tcp+https://a.test:22", "tcp+https://a.test:23"),
        ("https://a.test", "tcp+https://a.test:22"),
    ] {
        assert!(!shadowed(earlier, later), "{earlier} before {later}");
    }
}

#[test]
fn a_route_of_the_sign_in_host_to_itself_is_an_error() {
    let split = |to: &str| {
        loaded_with(
            &format!(
                "{}authorize_service_url: http://z\ndatabroker_service_url: http://d\nroutes: [{{from: https://auth.corp.test, to: '{to}', allow_public_unauthenticated_access: true}}]\n",
                base()
            ),
            &[("SERVICES", "proxy")],
        )
    };
    assert_eq!(
        errors(&split("https://auth.corp.test")),
        ["this route forwards the sign-in host to itself"]
    );
    assert!(split("https://authenticate:8443").config.is_some());
}

#[test]
fn route_ids_follow_content_and_not_names() {
    let id = |keys: &str| route(keys).id.clone();
    assert_eq!(
        id("to: 'http://a', name: x"),
        id("to: ['http://a'], name: y")
    );
    assert_ne!(
        id("to: ['http://a', 'http://b']"),
        id("to: ['http://b', 'http://a']")
    );
    assert_ne!(id("to: 'http://a'"), id("to: 'http://a', prefix: /x"));
    assert_eq!(id("to: 'http://a'").as_str().len(), 16);
    let sum = |keys: &str| route(keys).checksum;
    assert_eq!(
        sum("to: 'http://a', name: x"),
        sum("to: 'http://a', allow_websockets: true")
    );
    assert_ne!(
        sum("to: 'http://a', prefix_rewrite: /x"),
        sum("to: 'http://a'")
    );
}

#[test]
fn checksums_are_equal_across_formats_and_processes() {
    let yaml =
        config("routes: [{from: https://a, to: http://b, allow_any_authenticated_user: true}]\n")
            .checksum;
    let more = "\"routes\": [{\"from\": \"https://a\", \"to\": \"http://b\", \"allow_any_authenticated_user\": true}]";
    let json = format!(
        "{{{}, {more}}}",
        base()
            .lines()
            .map(|line| {
                let (key, value) = line.trim().split_once(": ").unwrap();
                if value == "true" {
                    format!("\"{key}\": true")
                } else {
                    format!("\"{key}\": \"{value}\"")
                }
            })
            .collect::<Vec<_>>()
            .join(", ")
    );
    let loaded = load_text(
        Path::new("c.json"),
        &json,
        &Environment::default(),
        &ProcessSecrets::default(),
    );
    assert_eq!(
        loaded
            .config
            .unwrap_or_else(|| panic!("{}", loaded.diagnostics))
            .checksum,
        yaml
    );
    assert_eq!(
        config("log_level: debug\naddress: ':1'\n").checksum,
        config("").checksum
    );
    assert_ne!(config("cookie_name: x\n").checksum, config("").checksum);
}

#[test]
fn names_are_made_from_hosts() {
    let config = config(
        "routes:\n- {from: https://a.corp.test, prefix: /x, to: http://u, allow_any_authenticated_user: true}\n- {from: https://a.corp.test, to: http://u, allow_any_authenticated_user: true}\n\
         - {from: https://b.corp.test, to: http://u, allow_any_authenticated_user: true}\n- {from: https://b.other.test, name: mine, to: http://u, allow_any_authenticated_user: true}\n",
    );
    let names: Vec<_> = config
        .routes
        .iter()
        .map(|route| route.name.as_str())
        .collect();
    assert_eq!(names, ["a/x", "a", "b.corp", "mine"]);
}

#[test]
fn matchers_are_compared_in_normal_form() {
    assert!(
        matches!(&route("to: 'http://a', prefix: '/ä'").matcher, PathMatcher::Prefix(path) if path == "/%C3%A4")
    );
    assert!(matches!(
        &route("to: 'http://a', prefix: /").matcher,
        PathMatcher::Any
    ));
    let PathMatcher::Regex(regex) = &route("to: 'http://a', regex: '/a|/b'").matcher else {
        panic!()
    };
    assert!(regex.is_match("/b") && !regex.is_match("/ab") && !regex.is_match("/bc"));
}

/// The example of the High Availability page, its indentation restored, with a provider's values.
const PAGE: &str = "idp_provider: google
idp_client_id: client
idp_client_secret: secret

grpc_insecure: true
grpc_address: ':80'

authenticate_service_url: https://authenticate.localhost.pomerium.io:8443
authorize_service_url: http://pomerium-authorize
databroker_service_url: http://pomerium-databroker

cookie_secret: WwMtDXWaRDMBQCylle8OJ+w4kLIDIGd8W3cB4/zFFtg=
shared_secret: 9OkZR6hwfmVD3a7Sfmgq58lUbFJGGz4hl/R9xbHFCAg=
signing_key: LS0tLS1CRUdJTiBFQyBQUklWQVRFIEtFWS0tLS0tCk1IY0NBUUVFSUhQbkN5MXk0TEZZVkhQb3RzM05rUSttTXJLcDgvVmVWRkRwaUk2TVNxMlVvQW9HQ0NxR1NNNDkKQXdFSG9VUURRZ0FFT1h0VXAxOWFwRnNvVWJoYkI2cExMR1o1WFBXRlE5YWtmeW5ISy9RZ3paNC9MRjZhWEY2egpvS3lHMnNtL2wyajFiQ1JxUGJNd3dEVW9iWFNIODVIeDdRPT0KLS0tLS1FTkQgRUMgUFJJVkFURSBLRVktLS0tLQo=

routes:
  - from: https://httpbin.localhost.pomerium.io
    to: https://httpbin.org/get
    allow_any_authenticated_user: true
    pass_identity_headers: true
";

#[test]
fn the_pages_example_is_valid_in_every_place() {
    for service in ["all", "proxy", "authorize", "authenticate", "databroker"] {
        let loaded = loaded_with(PAGE, &[("SERVICES", service), ("INSECURE_SERVER", "true")]);
        assert!(loaded.config.is_some(), "{service}: {}", loaded.diagnostics);
        let text = loaded.diagnostics.to_string();
        assert_eq!(text.matches("warning[public-secret]").count(), 3, "{text}");
        assert!(
            !text.contains("LS0tLS1") && !text.contains("9OkZR6"),
            "{text}"
        );
        assert!(text.contains("Pomerium would send `/getx`"), "{text}");
    }
    let authorize = loaded_with(PAGE, &[("SERVICES", "authorize")])
        .config
        .unwrap();
    assert_eq!(authorize.listen.grpc, Some("[::]:80".parse().unwrap()));
    assert!(matches!(
        authorize.grpc.listener,
        GrpcListenerSecurity::ClearText
    ));
    let authenticate = loaded_with(PAGE, &[("SERVICES", "authenticate"), ("ADDRESS", ":8443")])
        .config
        .unwrap();
    assert_eq!(
        authenticate.listen.public,
        Some("[::]:8443".parse().unwrap())
    );
}

#[test]
fn kinds_of_routes_that_are_not_supported_yet_do_not_stop_the_others() {
    let loaded = loaded(
        "routes: [{from: 'ssh://host', to: 'ssh://up:22', policy: []}, {from: https://a, to: http://b, allow_any_authenticated_user: true}]\n",
    );
    assert!(
        loaded
            .diagnostics
            .to_string()
            .contains("this route is left out: ssh is not supported yet")
    );
    assert_eq!(loaded.config.unwrap().routes.len(), 1);
}

#[test]
fn a_denied_file_is_told_with_owner_mode_and_remedy() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    let text = unreadable(file.path(), &denied);
    for part in [
        "permission denied for",
        "it belongs to user ",
        "with mode 0600",
        "this process is user ",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let help = remedy(file.path(), &denied).unwrap();
    assert!(
        help.starts_with(&format!("chmod 644 {}", file.path().display())),
        "{help}"
    );
}

#[test]
fn c74_a_cookie_for_a_whole_domain_is_warned_of() {
    assert!(
        said("cookie_domain: corp.test\n")
            .contains("warning[exposed]: with `cookie_domain` every host below corp.test")
    );
}

#[test]
fn s23_a_configuration_does_not_frame_messages() {
    for name in ["Content-Length", "transfer-encoding", "Connection", "Host"] {
        let added = format!(
            "jwt_claims_headers: {{{name}: email}}\n\
             routes:\n- {{from: https://a, to: http://b, allow_any_authenticated_user: 'true', \
             set_request_headers: {{{name}: '5'}}, set_response_headers: {{{name}: '5'}}}}\n"
        );
        let told = said(&added);
        let expected = format!("`{name}` can't be set and is left out");
        assert_eq!(told.matches(&expected).count(), 3, "{told}");
        let config = config(&added);
        let route = &config.routes[0];
        let name: ::http::HeaderName = name.parse().unwrap();
        assert!(route.request_headers.set.is_empty());
        assert!(config.identity.claims_headers.is_empty());
        assert!(
            !route
                .response_headers
                .set
                .iter()
                .any(|(set, _)| *set == name)
        );
    }
}

#[test]
fn hosts_of_upstreams_are_hosts() {
    let route = |keys: &str| {
        loaded(&format!(
            "routes:\n- {{from: https://a, allow_any_authenticated_user: 'true', {keys}}}\n"
        ))
    };
    for keys in [
        "to: 'http://${UP}'",
        "to: 'http://up,-1'",
        "to: 'http://up,1,2'",
        "to: http://up, host_rewrite: a b",
        "to: http://up, host_rewrite: 'u@a'",
        "redirect: {host_redirect: a b}",
    ] {
        let loaded = route(keys);
        let errors = errors(&loaded);
        assert!(
            errors.len() == 1 && errors[0].contains("is no host"),
            "{keys}: {errors:?}"
        );
    }
    for keys in [
        "to: 'http://[::1]:8080'",
        "to: 'http://a_b.svc,10'",
        "to: http://up, host_rewrite: 'up:8080'",
        "redirect: {host_redirect: 'a.test:8443'}",
    ] {
        assert_eq!(errors(&route(keys)), [""; 0], "{keys}");
    }
    let told = route("to: 'http://user:word@up/x?y'")
        .diagnostics
        .to_string();
    assert!(
        told.contains("a user name, a query and a fragment have no effect"),
        "{told}"
    );
    assert!(!told.contains("word"), "{told}");
}

#[test]
fn a_cookie_domain_is_a_domain() {
    for (domain, good) in [
        ("corp.test", true),
        (".corp.test", true),
        ("https://corp.test", false),
        ("corp.test:443", false),
        ("'*.corp.test'", false),
        ("corp.test;x", false),
    ] {
        let loaded = loaded(&format!("cookie_domain: {domain}\n"));
        assert_eq!(errors(&loaded).is_empty(), good, "{domain}");
    }
}

/// A browser would not take the cookie there.
#[test]
fn a_route_outside_of_the_cookie_domain_is_told() {
    let with = |host: &str, domain: &str| {
        said(&format!(
            "cookie_domain: {domain}\nroutes:\n- {{from: 'https://{host}', to: 'http://a', allow_any_authenticated_user: true}}\n"
        ))
    };
    for (host, domain) in [
        ("a.other.test", "corp.test"),
        ("acorp.test", "corp.test"),
        ("corp.test", "a.corp.test"),
    ] {
        let told = with(host, domain);
        assert!(
            told.contains(&format!("nobody can sign in at `{host}`")),
            "{host}: {told}"
        );
    }
    for (host, domain) in [
        ("a.corp.test", ".Corp.test"),
        ("corp.test", "corp.test"),
        ("'*.corp.test", "corp.test"),
    ] {
        let told = with(host.trim_matches('\''), domain);
        assert!(!told.contains("nobody can sign in"), "{host}: {told}");
    }
}

#[test]
fn a_policy_of_balancing_has_a_short_and_a_long_name() {
    let of = |written: &str| {
        let route = route(&format!("to: 'http://a', load_balancing_policy: {written}"));
        route.upstream().unwrap().balancing
    };
    for (short, policy) in [
        ("round_robin", LoadBalancing::RoundRobin),
        ("least_request", LoadBalancing::LeastRequest),
        ("random", LoadBalancing::Random),
        ("ring_hash", LoadBalancing::RingHash),
        ("maglev", LoadBalancing::Maglev),
    ] {
        assert_eq!(of(short), policy);
        let long = format!("LOAD_BALANCING_POLICY_{}", short.to_ascii_uppercase());
        assert_eq!(of(&long), policy, "{long}");
    }
    let told = route_said("to: 'http://a', load_balancing_policy: LOAD_BALANCING_POLICY_X");
    assert!(told.contains("is not a value of"), "{told}");
}

/// Templates leave empty values behind; they are as good as none.
#[test]
fn what_is_empty_is_told_as_missing() {
    let split = "authorize_service_url: ''\ndatabroker_service_url: ''\n";
    for key in [
        "authenticate_service_url",
        "shared_secret",
        "cookie_secret",
        "idp_provider",
        "idp_client_id",
    ] {
        let kept: String = base()
            .lines()
            .filter(|line| !line.starts_with(&format!("{key}:")))
            .fold(String::new(), |kept, line| kept + line + "\n");
        for services in ["all", "proxy, authenticate"] {
            let text = format!("{kept}{split}{key}: ''\nservices: {services}\n");
            let loaded = loaded_with(&text, &[]);
            let missing = |d: &Diagnostic| {
                d.message.starts_with(&format!("`{key}` ")) && d.message.contains(" set")
            };
            let said = loaded.diagnostics.to_string();
            assert!(
                loaded.diagnostics.iter().any(missing),
                "{key}, {services}: {said}"
            );
            assert_eq!(
                loaded.config.is_none(),
                !errors(&loaded).is_empty(),
                "{said}"
            );
        }
    }
    let said = said("services: proxy\nauthorize_service_url: ''\n");
    assert!(
        said.contains("`authorize_service_url` is not set"),
        "{said}"
    );
}

#[test]
fn a_public_client_has_an_empty_secret() {
    let with = |secret: &str| {
        let text = base().replace("idp_client_secret: for-tests-only\n", secret);
        errors(&loaded_with(&text, &[]))
    };
    assert_eq!(with("idp_client_secret: ''\n"), [""; 0]);
    assert_eq!(with("").len(), 1);
}

#[test]
fn an_empty_file_is_no_secret() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "\n").unwrap();
    let path = file.path().display();
    for key in ["shared_secret", "idp_client_secret", "signing_key"] {
        let said = said(&format!("{key}_file: {path}\n"));
        assert!(said.contains(&format!("{path} is empty")), "{key}: {said}");
    }
}

#[test]
fn s41_an_empty_authority_is_not_none() {
    for key in ["ca", "ca_file"] {
        let loaded = loaded(&format!("downstream_mtls: {{{key}: ''}}\n"));
        assert_eq!(
            errors(&loaded),
            [format!("`downstream_mtls.{key}` is empty")]
        );
    }
}

#[test]
fn client_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, certificate(&["ca.test"]).0).unwrap();
    let with = |keys: &str| {
        loaded(&format!(
            "downstream_mtls: {{ca_file: {}{keys}}}\n",
            file.display()
        ))
    };
    let mtls = with(", match_subject_alt_names: [{dns: '.*\\.corp\\.test'}], max_verify_depth: 0")
        .config
        .unwrap();
    let mtls = mtls.downstream_mtls.as_ref().unwrap();
    assert_eq!((mtls.roots.len(), mtls.max_depth), (1, None));
    assert!(mtls.subject_alt_names[0].pattern.is_match("a.corp.test"));
    assert!(
        !mtls.subject_alt_names[0]
            .pattern
            .is_match("a.corp.test.evil")
    );
    for (keys, words) in [
        (", enforcement: polcy", "did you mean `policy`?"),
        (
            ", match_subject_alt_names: [{dns: '['}]",
            "is no regular expression",
        ),
        (
            ", match_subject_alt_names: [{ip: x}]",
            "there is no kind of name `ip`",
        ),
        (", ca: x", "can't both be set"),
        (", crl: x", "neither PEM nor base64 of PEM"),
        (", enforcment: policy", "did you mean `enforcement`?"),
    ] {
        let text = with(keys).diagnostics.to_string();
        assert!(text.contains(words), "{keys}: {text}");
    }
    assert!(said("downstream_mtls: {enforcement: policy}\n").contains("are not asked for"));
}

mod any_text {
    use super::*;
    use crate::config::keys::Key;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = String> {
        prop::sample::select(vec![
            "''",
            "~",
            "x",
            "-1",
            "99999999999999999999",
            "true",
            "1e9",
            "[]",
            "{}",
            "[[]]",
            "{a: {b: []}}",
            "':443'",
            "'[::1]:1'",
            "https://a.b",
            "'https://u:hunter2@h'",
            "5s",
            "5",
            "'a,b'",
            "[a, 1, ~]",
            "{a: b}",
            "'*'",
            "'%'",
            "'\\0'",
            "'ä'",
            "/etc/hostname",
            "[{}]",
            "[{from: https://x}]",
            "[{from: 'https://*', to: ['http://a,1', 'http://b,2'], policy: {allow: 1}}]",
            "&x [*x]",
            "!!str 5",
        ])
        .prop_map(str::to_owned)
    }

    fn entries(table: &'static [Key], indent: &'static str) -> impl Strategy<Value = String> {
        let name = prop::sample::select(table.iter().map(|key| key.name).collect::<Vec<_>>());
        prop::collection::vec((name, value()), 0..6).prop_map(move |entries| {
            let lines = entries
                .iter()
                .map(|(name, value)| format!("{indent}{name}: {value}\n"));
            lines.collect::<Vec<_>>().concat()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Whatever stands in a file: loading ends, tells of errors exactly when there is no
        /// configuration, and shows no secret.
        #[test]
        fn s52_any_configuration_is_handled(global in entries(GLOBAL, ""), route in entries(ROUTE, "  ")) {
            let text = format!("{}{global}policy:\n-\n{route}", base());
            let loaded = loaded_with(&text, &[]);
            prop_assert_eq!(loaded.config.is_none(), loaded.diagnostics.has_errors(), "{}\n{}", text, loaded.diagnostics);
            let said = loaded.diagnostics.to_string();
            prop_assert!(!said.contains("hunter2") && !said.contains("for-tests-only"), "{}", said);
        }

        #[test]
        fn s52_any_text_is_handled(text in "[a-z:\\[\\]{}*&!|>'\"\n -]{0,80}") {
            let loaded = loaded_with(&text, &[]);
            prop_assert!(loaded.diagnostics.has_errors());
        }
    }
}

#[test]
fn max_data_age_of_a_route_counts_before_that_of_all() {
    let routes = "routes:
- {from: https://a.corp.test, to: http://up, allow_any_authenticated_user: true}
- {from: https://b.corp.test, to: http://up, allow_any_authenticated_user: true, max_data_age: 10s}
- {from: https://c.corp.test, to: http://up, allow_any_authenticated_user: true, max_data_age: 0s}
";
    let limits = |global: &str| -> Vec<_> {
        let config = config(&format!("{global}{routes}"));
        config.routes.iter().map(|it| it.max_data_age).collect()
    };
    let seconds = |n| Some(Duration::from_secs(n));
    assert_eq!(limits(""), [None, seconds(10), None]);
    assert_eq!(
        limits("max_data_age: 1m\n"),
        [seconds(60), seconds(10), None]
    );
    assert!(said("max_data_age: 1s\n").contains("at least 2s"));
    assert!(route_said("to: 'http://up', max_data_age: 500ms").contains("at least 2s"));
}
