//! `postern check`: everything there is to say about a configuration, without starting anything.

use std::fmt::Write as _;

use postern_common::config::diagnostic::{Diagnostic, Diagnostics, Severity, code};
use postern_common::config::{Config, Origin, ProcessSecrets, load};
use postern_common::telemetry::log::chain;

/// What turns a warning into an error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Strictness {
    /// What a start would say.
    #[default]
    AsStart,
    /// `--strict`: warnings are errors too, except of what is exposed by choice.
    Strict,
}

/// Whether routes and policies are told in words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Explain {
    #[default]
    No,
    /// `--explain`
    Yes,
}

/// What `postern check` prints, and whether it exits with 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckReport {
    pub text: String,
    pub valid: bool,
}

/// Loads a configuration as a start would, and tells all about it.
pub fn check(origin: &Origin, strictness: Strictness, explain: Explain) -> CheckReport {
    let loaded = load(origin, &ProcessSecrets::default());
    let mut diagnostics = loaded.diagnostics;
    // What only databroker can read of it.
    if let Some(config) = &loaded.config
        && let Err(refusal) = postern_databroker::check(config)
    {
        diagnostics.push(Diagnostic::error(code::INVALID_VALUE, chain(&refusal)));
    }
    if strictness == Strictness::Strict {
        diagnostics = diagnostics.strict();
    }
    let mut text = String::new();
    for diagnostic in &diagnostics {
        // Writing to a string can't fail.
        let _ = writeln!(text, "{diagnostic}");
    }
    if let (Explain::Yes, Some(config)) = (explain, &loaded.config) {
        explain_routes(&mut text, config);
    }
    let name = origin.file.as_ref().map_or_else(
        || "the environment".to_owned(),
        |file| file.display().to_string(),
    );
    let valid = loaded.config.is_some() && !diagnostics.has_errors();
    let routes = loaded.config.map_or(0, |config| config.routes.len());
    let outcome = if valid {
        format!("valid: {}", count(routes, "route"))
    } else {
        let errors = diagnostics.count(Severity::Error);
        format!("not valid: {}", count(errors, "error"))
    };
    let _ = writeln!(text, "{name} is {outcome}{}", rest(&diagnostics));
    CheckReport { text, valid }
}

fn rest(diagnostics: &Diagnostics) -> String {
    let mut text = String::new();
    for (severity, word) in [(Severity::Warning, "warning"), (Severity::Note, "note")] {
        let number = diagnostics.count(severity);
        if number > 0 {
            // Writing to a string can't fail.
            let _ = write!(text, ", {}", count(number, word));
        }
    }
    text
}

fn count(number: usize, word: &str) -> String {
    match number {
        1 => format!("1 {word}"),
        _ => format!("{number} {word}s"),
    }
}

fn explain_routes(text: &mut String, config: &Config) {
    for route in &config.routes {
        let _ = writeln!(
            text,
            "{} ({}, id {})",
            route.from.text, route.name, route.id
        );
        for line in route.policy.describe().lines() {
            let _ = writeln!(text, "  {line}");
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// The example of the High Availability page with a provider's values.
    const PAGE: &str = "\
idp_provider: oidc
idp_provider_url: https://idp.example.com
idp_client_id: postern
idp_client_secret: filled-in
grpc_insecure: true
grpc_address: ':80'
authenticate_service_url: https://authenticate.localhost.pomerium.io:8443
authorize_service_url: http://pomerium-authorize
databroker_service_url: http://pomerium-databroker
cookie_secret: WwMtDXWaRDMBQCylle8OJ+w4kLIDIGd8W3cB4/zFFtg=
shared_secret: 9OkZR6hwfmVD3a7Sfmgq58lUbFJGGz4hl/R9xbHFCAg=
routes:
- from: https://httpbin.localhost.pomerium.io
  to: https://httpbin.org/get
  allow_any_authenticated_user: true
  pass_identity_headers: true
";

    fn check_text(text: &str, strictness: Strictness, explain: Explain) -> (CheckReport, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        std::fs::write(&file, text).unwrap();
        let origin = Origin {
            file: Some(file.clone()),
            ..Origin::default()
        };
        (check(&origin, strictness, explain), file)
    }

    #[test]
    fn the_pages_example_is_valid_and_loudly_warned_of() {
        let (report, file) = check_text(PAGE, Strictness::AsStart, Explain::No);
        assert!(report.valid, "{}", report.text);
        assert!(report.text.contains("IS PUBLISHED"), "{}", report.text);
        let last = report.text.lines().last().unwrap();
        assert!(
            last.starts_with(&format!("{} is valid: 1 route, ", file.display())),
            "{last}"
        );
        assert!(!check_text(PAGE, Strictness::Strict, Explain::No).0.valid);
    }

    #[test]
    fn policies_are_told_in_words() {
        let text =
            format!("{PAGE}  policy: [{{deny: {{or: [{{email: {{is: eve@other.test}}}}]}}}}]\n");
        let (report, _) = check_text(&text, Strictness::AsStart, Explain::Yes);
        assert!(report.text.contains("eve@other.test"), "{}", report.text);
    }

    #[test]
    fn every_mistake_is_told_and_strictness_counts_unknown_keys() {
        let (report, _) = check_text(
            "shared_secret: x\nroutes: [{from: a}]\n",
            Strictness::AsStart,
            Explain::No,
        );
        assert!(!report.valid);
        for part in [
            "`shared_secret`",
            "`from`",
            "leads nowhere",
            "`authenticate_service_url`",
            " is not valid: ",
        ] {
            assert!(report.text.contains(part), "{part}: {}", report.text);
        }
        let fine = PAGE.replace("WwMt", "AwMt").replace("9OkZ", "AOkZ");
        let fine = format!("{fine}insecure_server: true\n");
        let odd = format!("{fine}cookie_nam: x\n");
        assert!(check_text(&odd, Strictness::AsStart, Explain::No).0.valid);
        let (strict, _) = check_text(&odd, Strictness::Strict, Explain::No);
        assert!(
            !strict.valid && strict.text.contains("error[unknown-key]"),
            "{}",
            strict.text
        );
        let (exposed, _) = check_text(
            &format!("{fine}cookie_domain: localhost.pomerium.io\n"),
            Strictness::Strict,
            Explain::No,
        );
        assert!(exposed.valid, "{}", exposed.text);
        for warned in [
            fine.replace("https://idp.", "http://idp."),
            fine.replace("insecure_server: true", ""),
            format!("{fine}autocert: true\n"),
        ] {
            assert!(
                check_text(&warned, Strictness::AsStart, Explain::No)
                    .0
                    .valid
            );
            let (strict, _) = check_text(&warned, Strictness::Strict, Explain::No);
            assert!(!strict.valid, "{}", strict.text);
        }
    }

    #[test]
    fn what_databroker_would_refuse_is_told() {
        let said = |connection: &str, services: &str| {
            let text = format!(
                "{PAGE}services: {services}\ndatabroker_storage_type: postgres\n\
                 databroker_storage_connection_string: '{connection}'\n"
            );
            check_text(&text, Strictness::AsStart, Explain::No).0
        };
        let good = "postgres://u:hunter2@pg-a,pg-b/db?sslmode=verify-full";
        assert!(said(good, "all").valid, "{}", said(good, "all").text);
        for (bad, words) in [
            ("postgres://u@pg/db?sslmode=always", "sslmode"),
            (
                "postgres://u@pg/db?target_session_attrs=read-only",
                "read-write",
            ),
            (
                "postgres://u@pg/db?sslrootcert=/nowhere.pem&sslmode=verify-ca",
                "/nowhere.pem",
            ),
            ("postgres://u@pg/db?sslcert=/nowhere.pem", "sslkey"),
        ] {
            let report = said(bad, "databroker");
            assert!(!report.valid, "{bad}");
            assert!(report.text.contains(words), "{bad}: {}", report.text);
            assert!(
                report.text.contains("databroker_storage_connection_string"),
                "{}",
                report.text
            );
            assert!(said(bad, "authenticate").valid, "only databroker opens it");
        }
        assert!(
            !said("postgres://u:hunter2@pg/db?sslmode=always", "all")
                .text
                .contains("hunter2")
        );
    }
}
