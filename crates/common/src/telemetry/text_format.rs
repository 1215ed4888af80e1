//! Which of Prometheus' text formats a scraper reads, and from the newer to the older one.

use std::fmt::Write as _;

use http::HeaderMap;

use crate::web::accept;

/// A text format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextFormat {
    /// What everything reads that reads metrics.
    Prometheus,
    OpenMetrics,
}

impl TextFormat {
    /// What `Accept` prefers; the older one if it does not say.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let (mut open_metrics, mut plain): (f32, f32) = (0.0, 0.0);
        for entry in accept::entries(headers) {
            if entry.is("application/openmetrics-text") {
                open_metrics = open_metrics.max(entry.weight);
            } else if entry.is("text/plain") {
                plain = plain.max(entry.weight);
            }
        }
        if open_metrics > 0.0 && open_metrics >= plain {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The older format has the whole name of a counter in its comments, knows fewer types, and no end.
pub(super) fn older(page: &str) -> String {
    let mut out = String::with_capacity(page.len());
    let mut help = None;
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            // Writing to a string can't fail.
            if let Some((_, words)) = help.take() {
                let _ = writeln!(out, "# HELP {name}{suffix} {words}");
            }
            let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with("# ") {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_is_for_all_that_do_not_ask() {
        let of = |accept: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(http::header::ACCEPT, accept.parse().unwrap());
            }
            TextFormat::of(&headers)
        };
        for accept in [
            None,
            Some("*/*"),
            Some("text/html,*/*;q=0.8"),
            Some("text/plain"),
            Some("application/openmetrics-text;q=0"),
            Some("application/openmetrics-text;Q=0"),
            Some("application/openmetrics-text;q=0.2,text/plain;version=0.0.4;q=0.9"),
        ] {
            assert_eq!(of(accept), TextFormat::Prometheus, "{accept:?}");
        }
        for accept in [
            "application/openmetrics-text",
            // As Prometheus 2 asks.
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
        ] {
            assert_eq!(of(Some(accept)), TextFormat::OpenMetrics, "{accept}");
        }
    }

    #[test]
    fn counters_and_infos_are_called_by_their_whole_name() {
        let page = "\
# HELP calls Calls that were made
# TYPE calls counter
calls_total{to=\"# x\"} 1
# HELP build What runs
# TYPE build info
build_info{a=\"b\"} 1
# HELP size Bytes.
# TYPE size histogram
# UNIT size bytes
size_bucket{le=\"+Inf\"} 2
# EOF
";
        assert_eq!(
            older(page),
            "\
# HELP calls_total Calls that were made
# TYPE calls_total counter
calls_total{to=\"# x\"} 1
# HELP build_info What runs
# TYPE build_info gauge
build_info{a=\"b\"} 1
# HELP size Bytes.
# TYPE size histogram
size_bucket{le=\"+Inf\"} 2
"
        );
    }
}
