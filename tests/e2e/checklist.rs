//! Every line of the security checklist, and every situation seen in the field, has a test that is
//! named after its number, or is held elsewhere, which is said here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use postern_tests::binaries::repository;
use postern_tests::cluster::Layout;
use postern_tests::world::World;

/// How a line is held.
enum Held {
    /// By functions `sNN_…` or `cNN_…`.
    Tests,
    /// By a file that has to contain a text.
    File(&'static str, &'static str),
    /// The feature that it is about is not built yet.
    NotBuilt,
}

use Held::{File, NotBuilt, Tests};

const SECURITY: [(u8, &str, Held); 52] = [
    (1, "nothing upstream without an allow", Tests),
    (2, "what is authorized is what is forwarded", Tests),
    (3, "an error on the way to a decision is no access", Tests),
    (4, "a panic costs one request", Tests),
    (5, "upstreams see no credential of ours", Tests),
    (6, "clients set no header that upstreams trust", Tests),
    (7, "forwarding headers", Tests),
    (8, "handles", Tests),
    (9, "a deleted session ends everywhere", Tests),
    (10, "a new session id at each sign-in", Tests),
    (11, "state, nonce, PKCE, bound callbacks", Tests),
    (12, "ID tokens", Tests),
    (13, "redirect targets", Tests),
    (14, "signed URLs", Tests),
    (15, "constant time", Tests),
    (16, "secrets appear nowhere", Tests),
    (17, "gRPC tokens", Tests),
    (18, "nothing else listens", Tests),
    (19, "records at rest", Tests),
    (20, "TLS to Postgres", Tests),
    (21, "secrets of the wrong length, and published ones", Tests),
    (22, "images run as nobody", Tests),
    (23, "request smuggling over HTTP/1.1", Tests),
    (24, "request smuggling from HTTP/2", Tests),
    (25, "HTTP/2 floods", Tests),
    (26, "path tricks", Tests),
    (27, "host tricks", Tests),
    (28, "upgrades", Tests),
    (29, "hop-by-hop headers", Tests),
    (30, "bounds", Tests),
    (31, "answers of upstreams", Tests),
    (32, "broken answers", Tests),
    (33, "retries", Tests),
    (34, "deny beats allow", Tests),
    (35, "odd claims", Tests),
    (36, "e-mail domains", Tests),
    (37, "source addresses", Tests),
    (38, "random policies", Tests),
    (39, "time criteria", Tests),
    (40, "versions, suites and tickets of TLS", Tests),
    (41, "client certificates", Tests),
    (42, "TLS to upstreams", Tests),
    (43, "renewed certificates", Tests),
    (44, "CSRF", Tests),
    (45, "pages", Tests),
    (46, "error pages", Tests),
    (47, "answers of providers", Tests),
    (48, "mix-up of providers", Tests),
    (49, "cookies", Tests),
    (50, "CORS", Tests),
    (
        51,
        "supply chain: unsafe code",
        File("Cargo.toml", "unsafe_code = \"forbid\""),
    ),
    (52, "fuzz targets", Tests),
];

const CASES: [(u8, &str, Held); 58] = [
    (1, "connections that are silently forgotten", Tests),
    (2, "an authorizer dies", Tests),
    (3, "a second address", Tests),
    (5, "a name server that fails", Tests),
    (7, "all databrokers away", Tests),
    (8, "everything restarts", Tests),
    (9, "a handle that the replica does not know", Tests),
    (11, "Postgres fails over", Tests),
    (13, "many writers beside the cleanup", Tests),
    (14, "SIGTERM", Tests),
    (15, "Postgres is down", Tests),
    (16, "no provider at the start", Tests),
    (18, "refresh tokens for one use", Tests),
    (19, "refresh without an ID token", Tests),
    (20, "many claims", Tests),
    (22, "refused, not sent in circles", Tests),
    (24, "two tabs", Tests),
    (25, "scripts and preflights", Tests),
    (26, "sign-out", Tests),
    (27, "WebSockets of a deleted session", Tests),
    (28, "a group is taken", Tests),
    (29, "groups kept elsewhere", Tests),
    (30, "claim and domain under and", Tests),
    (31, "odd values of claims", Tests),
    (32, "dot segments", Tests),
    (33, "encoded slashes", Tests),
    (35, "spellings of a host", Tests),
    (37, "fields of the authorize log", Tests),
    (38, "WebSockets", Tests),
    (39, "time limits", Tests),
    (40, "rewritten paths", Tests),
    (42, "one connection, several certificates", Tests),
    (44, "trusted hops", Tests),
    (46, "gRPC", Tests),
    (47, "TLS to upstreams explains itself", Tests),
    (49, "tunnels", Tests),
    (50, "Helm", Tests),
    (51, "authenticate behind the proxies", Tests),
    (52, "two shared secrets", Tests),
    (54, "health of containers", Tests),
    (55, "no rights at all", Tests),
    (56, "certificates swapped", Tests),
    (58, "reload", Tests),
    (60, "forward auth", NotBuilt),
    (61, "no agent is special", Tests),
    (63, "tokens of the databroker", Tests),
    (65, "Kubernetes", Tests),
    (66, "no authorizer", Tests),
    (73, "response headers", Tests),
    (74, "a cookie for a domain", Tests),
    (75, "order of routes", Tests),
    (77, "no secrets", Tests),
    (79, "large headers", Tests),
    (81, "a deny rule and no session", Tests),
    (83, "ACME", NotBuilt),
    (84, "choice of a certificate", Tests),
    (85, "unknown records and fields", Tests),
    (87, "bytes of a path", Tests),
];

/// The numbers in names of test functions: `async fn c27_s09_a_deleted_session…` is a test of both.
fn numbers(letter: char) -> BTreeMap<u8, Vec<String>> {
    let mut found: BTreeMap<u8, Vec<String>> = BTreeMap::new();
    for folder in ["crates", "tests", "fuzz", "bench"] {
        collect(&repository().join(folder), letter, &mut found);
    }
    found
}

fn collect(folder: &Path, letter: char, found: &mut BTreeMap<u8, Vec<String>>) {
    functions(folder, &mut |name| {
        for number in name.split('_').filter_map(|part| number(part, letter)) {
            found.entry(number).or_default().push(name.to_owned());
        }
    });
}

/// The names of all functions.
fn functions(folder: &Path, found: &mut impl FnMut(&str)) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() && !path.ends_with("target") {
            functions(&path, found);
        } else if path
            .extension()
            .is_some_and(|kind| kind == "rs" || kind == "py")
        {
            let text = std::fs::read_to_string(&path).unwrap();
            let names = text.lines().filter_map(|line| {
                let rest = line.trim_start();
                let rest = rest.strip_prefix("async ").unwrap_or(rest);
                let rest = rest
                    .strip_prefix("fn ")
                    .or_else(|| rest.strip_prefix("def "))?;
                rest.split(['(', '<']).next()
            });
            names.for_each(&mut *found);
        }
    }
}

/// `s07` is 7.
fn number(part: &str, letter: char) -> Option<u8> {
    let digits = part.strip_prefix(letter)?;
    (digits.len() == 2).then(|| digits.parse().ok()).flatten()
}

fn hold(letter: char, lines: &[(u8, &str, Held)]) {
    let found = numbers(letter);
    let mut open = Vec::new();
    for (number, what, held) in lines {
        let tested = found.contains_key(number);
        let held = match held {
            Tests => tested,
            File(path, text) => {
                let content = std::fs::read_to_string(repository().join(path)).unwrap_or_default();
                content.contains(text)
            }
            // Once it has a test it is built, and belongs among the others.
            NotBuilt => !tested,
        };
        if !held {
            open.push(format!("{letter}{number:02} {what}"));
        }
    }
    assert!(open.is_empty(), "not held as it says here: {open:#?}");
    let known: BTreeSet<u8> = lines.iter().map(|(number, ..)| *number).collect();
    let unknown: Vec<_> = found
        .iter()
        .filter(|(number, _)| !known.contains(number))
        .collect();
    assert!(
        unknown.is_empty(),
        "tests of lines that nobody knows: {unknown:#?}"
    );
}

#[test]
fn every_line_of_the_security_checklist_is_held() {
    hold('s', &SECURITY);
}

#[test]
fn every_situation_seen_in_the_field_is_held() {
    hold('c', &CASES);
}

/// The table of docs/scale.md: every line is there, and names tests that there are.
#[test]
fn what_is_said_beside_pomerium_is_tested() {
    let text = std::fs::read_to_string(repository().join("docs/scale.md")).unwrap();
    let (_, table) = text.split_once("## Beside Pomerium").unwrap();
    let mut names = BTreeSet::new();
    for folder in ["crates", "tests"] {
        functions(&repository().join(folder), &mut |name| {
            names.insert(name.to_owned());
        });
    }
    let lines = table.lines().filter(|line| line.starts_with("| W"));
    let mut count = 0;
    for line in lines {
        count += 1;
        assert!(line.starts_with(&format!("| W{count} |")), "{line}");
        let cells: Vec<_> = line.split('|').collect();
        let tests: Vec<_> = cells[4].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "{line}");
        for test in tests {
            assert!(names.contains(test), "W{count}: {test}");
        }
    }
    assert_eq!(count, 23);
}

/// What compares secrets does so without `==`, which stops at the first difference.
#[test]
fn s15_secrets_are_compared_in_constant_time() {
    let crypto = |file: &str| {
        let path = repository().join("crates/common/src/crypto").join(file);
        std::fs::read_to_string(path).unwrap()
    };
    for (file, secret) in [
        ("keys.rs", "SecretKey"),
        ("state.rs", "CsrfToken"),
        ("binding.rs", "BindingCookie"),
    ] {
        let text = crypto(file);
        let (before, _) = text
            .split_once(&format!("pub struct {secret}("))
            .unwrap_or_else(|| panic!("{secret} is not in {file}"));
        let derived = before
            .lines()
            .rev()
            .find(|line| line.starts_with("#[derive"))
            .unwrap();
        assert!(!derived.contains("PartialEq"), "{secret}: {derived}");
        let compared = text.contains(&format!("impl PartialEq for {secret}"));
        assert!(
            !compared || text.contains("equal("),
            "{secret} is compared by {file}"
        );
    }
    for file in ["signed_url.rs", "binding.rs", "jws.rs"] {
        assert!(
            crypto(file).contains("verify_slice"),
            "{file} verifies its tag"
        );
    }
}

/// The public listener, gRPC and health, the last two on loopback.
#[tokio::test(flavor = "multi_thread")]
async fn s18_nothing_listens_that_is_not_configured() {
    let mut world = World::start(Layout::AllInOne, "").await;
    let port = world.cluster.port;
    let health = world.cluster.health("postern", "/");
    let health: u16 = health
        .rsplit(':')
        .next()
        .unwrap()
        .trim_end_matches('/')
        .parse()
        .unwrap();
    let expected: BTreeSet<_> = [port, port + 1, health]
        .map(|port| ([127, 0, 0, 1], port).into())
        .into();
    assert_eq!(world.cluster.process("postern").listens_on(), expected);
}

#[test]
fn s22_images_run_as_nobody_from_nothing() {
    let text = std::fs::read_to_string(repository().join("deploy/docker/Dockerfile")).unwrap();
    let mut stages = text.lines().filter_map(|line| line.strip_prefix("FROM "));
    assert_eq!(stages.next(), Some("scratch AS base"));
    assert!(stages.all(|stage| stage.starts_with("base AS ")), "{text}");
    let user = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("USER "));
    assert_eq!(user, Some("65532:65532"));
}
