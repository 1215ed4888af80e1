use proptest::prelude::*;

use super::*;

fn no_env(_: &str) -> Option<String> {
    None
}

fn parse(text: &str) -> Result<Settings, SettingsError> {
    Settings::parse(text, &no_env)
}

fn tcp(name: &str, port: u16) -> Host {
    Host::Tcp {
        name: name.to_owned(),
        address: None,
        port,
    }
}

#[test]
fn a_uri_with_several_hosts_and_parameters() {
    let got = parse(
        "postgres://p:p%40w@pg-a,pg-b:5433,[::1]:5434/postern?sslmode=disable&target_session_attrs=read-write\
         &connect_timeout=5&pool_max_conns=20&pool_max_conn_lifetime=1h30m",
    )
    .unwrap();
    assert_eq!(
        got.hosts,
        [tcp("pg-a", 5432), tcp("pg-b", 5433), tcp("::1", 5434)]
    );
    assert_eq!(
        (
            got.user.as_str(),
            got.password.as_deref(),
            got.database.as_str()
        ),
        ("p", Some("p@w"), "postern")
    );
    assert_eq!(got.tls.mode, SslMode::Disable);
    assert_eq!(got.connect_timeout, Some(Duration::from_secs(5)));
    assert_eq!(
        (got.pool.max, got.pool.max_lifetime),
        (20, Duration::from_secs(5_400))
    );
}

#[test]
fn pairs_with_quotes_and_escapes() {
    let got =
        parse(r"host=/var/run/postgresql  user = ann password='it\'s \\ it' dbname=d port=5433")
            .unwrap();
    assert_eq!(
        got.hosts,
        [Host::Unix {
            directory: PathBuf::from("/var/run/postgresql"),
            port: 5433
        }]
    );
    assert_eq!(got.password.as_deref(), Some(r"it's \ it"));
}

#[test]
fn both_forms_say_the_same() {
    let uri = parse(
        "postgresql://u:pw@h1:1,h2:2/d?sslmode=verify-full&sslrootcert=/ca.pem&application_name=x",
    );
    let pairs = parse(
        "host=h1,h2 port=1,2 user=u password=pw dbname=d sslmode=verify-full sslrootcert=/ca.pem application_name=x",
    );
    assert_eq!(uri, pairs);
    assert_eq!(uri.unwrap().tls.root_cert, Some(PathBuf::from("/ca.pem")));
}

#[test]
fn the_environment_fills_in_what_is_missing() {
    let env = |name: &str| {
        let value = match name {
            "PGHOST" => "db",
            "PGPORT" => "6000",
            "PGUSER" => "env-user",
            "PGPASSWORD" => "env-password",
            "PGSSLMODE" => "require",
            "HOME" => "/home/x",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let got = Settings::parse("user=u", &env).unwrap();
    assert_eq!(got.hosts, [tcp("db", 6000)]);
    assert_eq!(
        (
            got.user.as_str(),
            got.database.as_str(),
            got.password.as_deref()
        ),
        ("u", "u", Some("env-password"))
    );
    assert_eq!(got.tls.mode, SslMode::Require);
    assert_eq!(got.passfile, Some(PathBuf::from("/home/x/.pgpass")));
}

#[test]
fn defaults() {
    let got = parse("postgres://u@/").unwrap();
    assert_eq!(got.hosts, [tcp("localhost", 5432)]);
    assert_eq!(got.database, "u");
    assert_eq!(got.tls.mode, SslMode::Prefer);
    assert_eq!(got.options, "");
}

#[test]
fn an_address_stands_beside_its_name() {
    let got = parse("host=db hostaddr=10.0.0.1 user=u").unwrap();
    let address = "10.0.0.1".parse().ok();
    assert_eq!(
        got.hosts,
        [Host::Tcp {
            name: "db".to_owned(),
            address,
            port: 5432
        }]
    );
    assert!(matches!(
        parse("host=a,b hostaddr=10.0.0.1 user=u"),
        Err(SettingsError::Count { .. })
    ));
    assert!(matches!(
        parse("host=a,b port=1,2,3 user=u"),
        Err(SettingsError::Count { .. })
    ));
    assert_eq!(
        parse("host=a,b port=7 user=u").unwrap().hosts,
        [tcp("a", 7), tcp("b", 7)]
    );
}

#[test]
fn unknown_parameters_become_settings_of_the_session() {
    let got =
        parse("postgres://u@h/d?statement_timeout=5000&search_path=a%20b&keepalives=1").unwrap();
    assert_eq!(
        got.options,
        r"-c statement_timeout=5000 -c search_path=a\ b"
    );
}

#[test]
fn mistakes_are_named() {
    for (text, part) in [
        ("postgres://u@h/d?sslmode=verify", "sslmode"),
        ("postgres://u@h:port/d", "port"),
        ("postgres://u@h:0/d", "port"),
        ("postgres://u@[::1/d", "[ is not closed"),
        ("postgres://u@h/d?x", "no ="),
        ("postgres://u:%zz@h/d", "hexadecimal"),
        ("host=h user='u", "quote"),
        ("nonsense", "="),
        ("postgres://h/d", "user"),
        (
            "postgres://u@h/d?target_session_attrs=standby",
            "read-write",
        ),
        ("postgres://u@h/d?connect_timeout=soon", "seconds"),
        ("postgres://u@h/d?pool_max_conns=1", "2 to 1000"),
        ("postgres://u@h/d?pool_max_conn_idle_time=5", "30m"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn s20_a_password_is_never_shown() {
    let settings = parse("postgres://u:hunter2@h/d").unwrap();
    assert!(!format!("{settings:?}").contains("hunter2"));
    for text in [
        "postgres://u:hunter2@h:x/d",
        "postgres://u:hunter2@h/d?sslmode=x",
        "password=hunter2 user",
    ] {
        let error = parse(text).unwrap_err();
        assert!(
            !format!("{error} {error:?}").contains("hunter2"),
            "{error:?}"
        );
    }
}

#[test]
fn passwords_are_looked_up() {
    let file = "# comment\ndb:5432:*:ann:wrong\\:host\n*:*:postern:ann:it\\\\s\\:me\n*:*:*:*:last";
    let find = |host, database, user| password_in(file, host, 5432, database, user);
    assert_eq!(find("db", "x", "ann").as_deref(), Some("wrong:host"));
    assert_eq!(find("other", "postern", "ann").as_deref(), Some(r"it\s:me"));
    assert_eq!(find("other", "postern", "bob").as_deref(), Some("last"));
    assert_eq!(password_in("", "h", 1, "d", "u"), None);
}

proptest! {
    #[test]
    fn nothing_makes_it_panic(text in "\\PC{0,80}") {
        let _ = parse(&text);
        let _ = parse(&format!("postgres://{text}"));
    }

    #[test]
    fn a_quoted_value_comes_back(password in "[^\0]{1,30}") {
        let quoted = password.replace('\\', r"\\").replace('\'', r"\'");
        let got = parse(&format!("user=u password='{quoted}' host=h")).unwrap();
        prop_assert_eq!(got.password, Some(password));
    }
}
