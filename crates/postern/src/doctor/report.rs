//! All findings of one run, for people and for programs. Pure.

use std::fmt::Write as _;

use serde::Serialize;

use super::finding::{Finding, Level};

/// The shape of `--json`; it changes only together with `format`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub format: u32,
    /// Of this program.
    pub version: &'static str,
    /// The file, or that there is none.
    pub configuration: String,
    /// The worst of the findings.
    pub level: Level,
    /// The worst first.
    pub findings: Vec<Finding>,
}

impl Report {
    pub fn new(configuration: String, mut findings: Vec<Finding>) -> Self {
        findings.sort_by(|a, b| {
            let key = |it: &Finding| (std::cmp::Reverse(it.level), it.check);
            key(a)
                .cmp(&key(b))
                .then_with(|| a.subject.cmp(&b.subject))
                .then_with(|| a.code.cmp(&b.code))
        });
        Self {
            format: 1,
            version: env!("CARGO_PKG_VERSION"),
            configuration,
            level: findings.first().map_or(Level::Ok, |worst| worst.level),
            findings,
        }
    }

    /// Nothing is broken.
    pub fn is_healthy(&self) -> bool {
        self.level < Level::Error
    }

    pub fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }

    /// What works in a line each, then what does not, the worst at the end where eyes are.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for level in [Level::Ok, Level::Warning, Level::Error] {
            for finding in self.findings.iter().filter(|it| it.level == level) {
                // Writing to a string can't fail.
                let _ = match level {
                    Level::Ok => right(&mut text, finding),
                    Level::Warning | Level::Error => wrong(&mut text, finding),
                };
            }
        }
        let _ = writeln!(text, "\n{}", self.summary());
        text
    }

    fn summary(&self) -> String {
        let count = |level| self.findings.iter().filter(|it| it.level == level).count();
        let word = |number, word| match number {
            1 => format!("1 {word}"),
            _ => format!("{number} {word}s"),
        };
        format!(
            "{}: {}, {}, {} ok",
            self.configuration,
            word(count(Level::Error), "error"),
            word(count(Level::Warning), "warning"),
            count(Level::Ok),
        )
    }
}

fn right(text: &mut String, finding: &Finding) -> std::fmt::Result {
    writeln!(
        text,
        "ok: {}: {} {}",
        finding.check, finding.subject, finding.message
    )
}

fn wrong(text: &mut String, finding: &Finding) -> std::fmt::Result {
    let level = match finding.level {
        Level::Error => "error",
        Level::Warning | Level::Ok => "warning",
    };
    let code = finding.code.unwrap_or_default();
    writeln!(
        text,
        "\n{level}[{code}]: {}: {}: {}",
        finding.check, finding.subject, finding.message
    )?;
    match (&finding.place, &finding.key) {
        (Some(place), Some(key)) => writeln!(text, " --> {place} ({key})")?,
        (Some(place), None) => writeln!(text, " --> {place}")?,
        (None, Some(key)) => writeln!(text, " --> {key}")?,
        (None, None) => {}
    }
    if let Some(help) = &finding.help {
        writeln!(text, "  = help: {help}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::code;
    use crate::doctor::finding::{Cause, Check};

    fn report() -> Report {
        let cause = Cause::new(code::REFUSED, "nobody listens there: connection refused")
            .help("start it, or correct the address or port");
        let mut refused =
            Finding::warning(Check::Authorize, "10.0.0.2:5443", cause).key("authorize_service_url");
        refused.place = Some("config.yaml:3:1".to_owned());
        let secret = Cause::new(code::SECRETS_DIFFER, "shared secrets differ");
        Report::new(
            "config.yaml".to_owned(),
            vec![
                refused,
                Finding::ok(Check::Authorize, "10.0.0.1:5443", "takes calls"),
                Finding::error(Check::Databroker, "10.0.0.3:5443", secret).key("shared_secret"),
            ],
        )
    }

    #[test]
    fn people_read_the_worst_last() {
        assert_eq!(
            report().text(),
            "\
ok: authorize: 10.0.0.1:5443 takes calls

warning[connection-refused]: authorize: 10.0.0.2:5443: nobody listens there: connection refused
 --> config.yaml:3:1 (authorize_service_url)
  = help: start it, or correct the address or port

error[secrets-differ]: databroker: 10.0.0.3:5443: shared secrets differ
 --> shared_secret

config.yaml: 1 error, 1 warning, 1 ok
"
        );
    }

    #[test]
    fn programs_read_one_shape() {
        let json: serde_json::Value = serde_json::from_str(&report().json().unwrap()).unwrap();
        assert_eq!(json["format"], 1);
        assert_eq!(json["level"], "error");
        let finding = &json["findings"][1];
        assert_eq!(
            finding,
            &serde_json::json!({
                "check": "authorize",
                "level": "warning",
                "code": "connection-refused",
                "subject": "10.0.0.2:5443",
                "message": "nobody listens there: connection refused",
                "key": "authorize_service_url",
                "place": "config.yaml:3:1",
                "help": "start it, or correct the address or port",
            })
        );
        assert!(json["findings"][2]["code"].is_null());
        assert!(!report().is_healthy());
        assert!(Report::new(String::new(), Vec::new()).is_healthy());
    }
}
