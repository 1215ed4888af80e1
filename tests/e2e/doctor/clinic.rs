//! A running fleet, and a doctor who is sent to it.

use std::collections::BTreeSet;
use std::process::{Command, Output};

use axum::Router;
use axum::routing::get;
use postern_test_dns::Answer;
use postern_tests::binaries::binary;
use postern_tests::cluster::{Layout, name_of};
use postern_tests::postgres::Postgres;
use postern_tests::site::Server;
use postern_tests::world::{Setting, World};
use serde_json::Value;

/// Of routes, of authenticate, and of an upstream.
const HOSTS: [&str; 6] = [
    "auth.corp.test",
    "app.corp.test",
    "eng.corp.test",
    "open.corp.test",
    "spare.corp.test",
    "backend.corp.test",
];

/// `level check code`
type Found = BTreeSet<String>;

pub struct Clinic {
    pub world: World,
    pub postgres: Postgres,
    /// What the fleet runs with.
    pub config: String,
    /// Where `spare` leads.
    pub spare: Server,
}

/// What the doctor said.
pub struct Said {
    json: Value,
    code: Option<i32>,
}

impl Clinic {
    pub async fn open() -> Self {
        let postgres = Postgres::start().unwrap();
        let spare = Server::start(Router::new().route("/", get(async || "spare"))).await;
        let setting = Setting::new(Layout::Fleet)
            .config(format!(
                "databroker_storage_type: postgres\ndatabroker_storage_connection_string: '{}'\n",
                postgres.uri("postgres")
            ))
            .names(&HOSTS)
            .routes(format!(
                "- {{from: 'https://spare.corp.test:{{PORT}}', to: '{}', allow_public_unauthenticated_access: true}}\n",
                spare.url()
            ));
        let world = World::start_with(setting).await;
        let config = std::fs::read_to_string(world.cluster.config_file()).unwrap();
        Self {
            world,
            postgres,
            config,
            spare,
        }
    }

    /// The doctor where proxy-1 runs, with a configuration of its own; `runner` runs it.
    pub fn run(&self, runner: &[&str], config: &str, environment: &[(&str, &str)]) -> Output {
        self.run_at("proxy", runner, config, environment)
    }

    fn run_at(
        &self,
        service: &str,
        runner: &[&str],
        config: &str,
        environment: &[(&str, &str)],
    ) -> Output {
        let file = self.world.cluster.site.path("doctor.yaml");
        std::fs::write(&file, config).unwrap();
        let doctor = binary("postern");
        let mut words = runner.iter().map(std::ffi::OsStr::new);
        let mut command = match words.next() {
            None => Command::new(&doctor),
            Some(runner) => {
                let mut command = Command::new(runner);
                command.args(words).arg(&doctor);
                command
            }
        };
        let cluster = &self.world.cluster;
        let health = cluster.health(&format!("{service}-1"), "");
        command
            .args(["doctor", "--json"])
            .arg(&file)
            .env("SERVICES", service)
            .env("ADDRESS", cluster.serves("proxy-1").to_string())
            .env("GRPC_ADDRESS", cluster.serves("databroker-1").to_string())
            .env("HEALTH_CHECK_ADDR", health.trim_start_matches("http://"))
            .envs(environment.iter().copied())
            .output()
            .unwrap()
    }

    /// What is found where a proxy runs and where a databroker runs: between them they use every edge.
    pub fn say(&self, config: &str) -> Said {
        let [mut said, more] =
            ["proxy", "databroker"].map(|it| Said::of(&self.run_at(it, &[], config, &[])));
        let findings = said.json["findings"].as_array_mut().unwrap();
        findings.extend(more.findings().cloned());
        said.code = said.code.max(more.code);
        said
    }

    /// What is found with this instead of that in the configuration.
    pub fn with(&self, that: &str, this: &str) -> Said {
        assert!(self.config.contains(that), "{that} in {}", self.config);
        self.say(&self.config.replace(that, this))
    }

    /// What is found while this stands in the configuration besides.
    pub fn and(&self, line: &str) -> Said {
        self.say(&format!("{line}\n{}", self.config))
    }

    pub fn spare(&self, url: &str) -> Said {
        self.with(&self.spare.url(), url)
    }

    /// Of a service.
    pub fn port_of(&self, service: &str) -> u16 {
        self.world.cluster.serves(service).port()
    }

    /// What is found while one more address of a service is in DNS.
    pub fn beside(&self, service: &str, address: &str) -> Said {
        let own =
            ["1", "2"].map(|number| self.world.cluster.serves(&format!("{service}-{number}")));
        let name = name_of(service);
        let dns = self.world.cluster.dns();
        let own = own.map(|it| it.ip());
        let more = own.iter().copied().chain([address.parse().unwrap()]);
        dns.set(&name, Answer::Addresses(more.collect(), 2));
        let said = self.say(&self.config);
        dns.set(&name, Answer::Addresses(own.to_vec(), 2));
        said
    }
}

impl Said {
    pub fn of(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout);
        let json = serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr))
        });
        Self {
            json,
            code: output.status.code(),
        }
    }

    pub fn findings(&self) -> impl Iterator<Item = &Value> {
        self.json["findings"].as_array().unwrap().iter()
    }

    fn wrong(&self) -> Found {
        let wrong = self.findings().filter(|it| it["level"] != "ok");
        wrong
            .map(|it| {
                let word = |name: &str| it[name].as_str().unwrap().to_owned();
                format!("{} {} {}", word("level"), word("check"), word("code"))
            })
            .collect()
    }

    /// This and nothing else is wrong, and each has a remedy.
    #[track_caller]
    pub fn is(&self, expected: &[&str]) {
        let expected: Found = expected.iter().map(|&text| text.to_owned()).collect();
        assert_eq!(self.wrong(), expected, "{:#}", self.json);
        let broken = expected.iter().any(|it| it.starts_with("error "));
        assert_eq!(self.code, Some(i32::from(broken)), "{:#}", self.json);
        let found = self.findings().filter(|it| it["level"] != "ok");
        // `check` has words of its own.
        for finding in found.filter(|it| it["check"] != "configuration") {
            assert!(finding["help"].is_string(), "{finding:#}");
        }
    }

    /// The same, about this.
    #[track_caller]
    pub fn is_about(&self, expected: &str, subject: &str) {
        self.is(&[expected]);
        let about = self.findings().filter(|it| it["level"] != "ok");
        for finding in about {
            let said = finding["subject"].as_str().unwrap();
            assert!(said.contains(subject), "{finding:#}");
        }
    }
}
