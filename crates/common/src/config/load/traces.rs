//! `otel_*`: where spans go.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use url::Url;

use super::super::diagnostic::{Diagnostic, code};
use super::super::options::{TracesOptions, TracesProtocol};
use super::super::place::At;
use super::super::source::Value;
use super::reader::{Load, Section};

/// Where collectors take spans by HTTP, under an endpoint that is for all signals.
const HTTP_PATH: &str = "v1/traces";

/// `None`: no tracing.
pub fn traces(load: &mut Load<'_>, root: Section<'_>) -> Option<TracesOptions> {
    let exporter = root.choice(
        load,
        "otel_traces_exporter",
        &[("otlp", true), ("none", false)],
    );
    // All of them are read, so that what is wrong is told before somebody switches tracing on.
    let protocol = protocol(load, root);
    let own = root.url(load, "otel_exporter_otlp_traces_endpoint");
    let common = root.url(load, "otel_exporter_otlp_endpoint");
    let (protocol, endpoint) = destination(protocol, own, common)?;
    let headers = [
        "otel_exporter_otlp_traces_headers",
        "otel_exporter_otlp_headers",
    ]
    .map(|name| {
        let pairs = named(load, root, name)?;
        let headers = pairs.into_iter();
        Some(
            headers
                .filter_map(|pair| header(load, name, pair))
                .collect(),
        )
    });
    let timeouts = [
        "otel_exporter_otlp_traces_timeout",
        "otel_exporter_otlp_timeout",
    ]
    .map(|name| milliseconds(load, root, name, 1));
    let resource = named(load, root, "otel_resource_attributes");
    let default = TracesOptions::to(endpoint, protocol);
    let options = TracesOptions {
        headers: headers.into_iter().flatten().next().unwrap_or_default(),
        timeout: timeouts
            .into_iter()
            .flatten()
            .next()
            .unwrap_or(default.timeout),
        ratio: ratio(load, root).unwrap_or(default.ratio),
        resource: resource
            .unwrap_or_default()
            .into_iter()
            .map(|(name, value)| (name.value, value.value))
            .collect(),
        longest_value: root
            .number::<usize>(load, "otel_attribute_value_length_limit")
            .map_or(default.longest_value, |limit| limit.value.clamp(64, 32768)),
        delay: milliseconds(load, root, "otel_bsp_schedule_delay", 100).unwrap_or(default.delay),
        batch: at_least(load, root, "otel_bsp_max_export_batch_size", 1)
            .and_then(|batch| usize::try_from(batch).ok())
            .map_or(default.batch, |batch| {
                batch.min(TracesOptions::LARGEST_BATCH)
            }),
        ..default
    };
    (exporter == Some(true)).then_some(options)
}

fn protocol(load: &mut Load<'_>, root: Section<'_>) -> Option<TracesProtocol> {
    const WORDS: &[(&str, TracesProtocol)] = &[
        ("grpc", TracesProtocol::Grpc),
        ("http/protobuf", TracesProtocol::Http),
    ];
    let own = root.choice(load, "otel_exporter_otlp_traces_protocol", WORDS);
    let common = root.choice(load, "otel_exporter_otlp_protocol", WORDS);
    own.or(common)
}

/// The specific endpoint is taken as it is, the common one has signals below it. Without a protocol
/// the port tells, then the path.
fn destination(
    protocol: Option<TracesProtocol>,
    own: Option<At<Url>>,
    common: Option<At<Url>>,
) -> Option<(TracesProtocol, Url)> {
    let is_own = own.is_some();
    let written = own.or(common).map(|url| url.value);
    let protocol = protocol.unwrap_or_else(|| match &written {
        Some(url) if url.port() == Some(4317) => TracesProtocol::Grpc,
        Some(url) if url.port() == Some(4318) || url.path().ends_with(HTTP_PATH) => {
            TracesProtocol::Http
        }
        _ => TracesProtocol::Grpc,
    });
    let usual = match protocol {
        TracesProtocol::Grpc => "http://localhost:4317",
        TracesProtocol::Http => "http://localhost:4318",
    };
    let mut url = match written {
        Some(url) => url,
        None => Url::parse(usual).ok()?,
    };
    if protocol == TracesProtocol::Http && !is_own {
        let path = format!("{}/{HTTP_PATH}", url.path().trim_end_matches('/'));
        url.set_path(&path);
    }
    Some((protocol, url))
}

/// A map, or OpenTelemetry's `name=value`, whose values are percent-encoded.
fn named(
    load: &mut Load<'_>,
    root: Section<'_>,
    name: &str,
) -> Option<Vec<(At<String>, At<String>)>> {
    let node = root.node(name)?;
    if matches!(node.value, Value::Map(_)) {
        return root.pairs(load, name);
    }
    let items = root.list(load, name)?;
    let mut pairs = Vec::with_capacity(items.len());
    for item in items.iter().filter(|item| !item.value.trim().is_empty()) {
        if let Some((key, value)) = item.value.split_once('=') {
            let value = percent_decode_str(value.trim()).decode_utf8_lossy();
            pairs.push((
                At::new(key.trim().to_owned(), item.place.clone()),
                At::new(value.into_owned(), item.place.clone()),
            ));
        } else {
            load.say(
                Diagnostic::error(
                    code::INVALID_VALUE,
                    format!("`{name}` has an entry without `=`"),
                )
                .at(&item.place)
                .help("write entries as name=value"),
            );
        }
    }
    Some(pairs)
}

fn header(
    load: &mut Load<'_>,
    key: &str,
    (name, value): (At<String>, At<String>),
) -> Option<(HeaderName, HeaderValue)> {
    let parsed = (
        HeaderName::from_bytes(name.value.as_bytes()),
        HeaderValue::from_str(&value.value),
    );
    if let (Ok(name), Ok(mut value)) = parsed {
        value.set_sensitive(true);
        return Some((name, value));
    }
    load.invalid(
        &name.place,
        format!("`{key}` has an entry that is no header"),
    );
    None
}

fn ratio(load: &mut Load<'_>, root: Section<'_>) -> Option<f64> {
    let name = "otel_traces_sampler_arg";
    let text = root.text(load, name)?;
    let ratio = text.value.trim().parse().ok();
    let ratio = ratio.filter(|ratio| (0.0..=1.0).contains(ratio));
    if ratio.is_none() {
        load.invalid(&text.place, format!("`{name}` must be between 0 and 1"));
    }
    ratio
}

fn milliseconds(
    load: &mut Load<'_>,
    root: Section<'_>,
    name: &str,
    least: u64,
) -> Option<Duration> {
    at_least(load, root, name, least).map(Duration::from_millis)
}

fn at_least(load: &mut Load<'_>, root: Section<'_>, name: &str, least: u64) -> Option<u64> {
    let number = root.number::<u64>(load, name)?;
    if number.value < least {
        load.invalid(&number.place, format!("`{name}` must be at least {least}"));
        return None;
    }
    Some(number.value)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::super::load::tests::{base, config, loaded};
    use super::super::{ProcessSecrets, load_text};
    use super::*;

    fn traces(added: &str) -> TracesOptions {
        let text = format!("otel_traces_exporter: otlp\n{added}");
        config(&text).traces.clone().unwrap()
    }

    #[test]
    fn it_is_off_unless_it_is_asked_for() {
        assert!(config("").traces.is_none());
        assert!(config("otel_traces_exporter: none\n").traces.is_none());
        let endpoint = "otel_exporter_otlp_endpoint: http://collector:4317\n";
        assert!(config(endpoint).traces.is_none());
    }

    #[test]
    fn the_endpoint_tells_the_protocol_and_the_specific_one_wins() {
        use TracesProtocol::{Grpc, Http};
        for (added, protocol, url) in [
            ("", Grpc, "http://localhost:4317/"),
            (
                "otel_exporter_otlp_endpoint: http://c:4318\n",
                Http,
                "http://c:4318/v1/traces",
            ),
            (
                "otel_exporter_otlp_endpoint: https://c/otlp/\notel_exporter_otlp_protocol: http/protobuf\n",
                Http,
                "https://c/otlp/v1/traces",
            ),
            (
                "otel_exporter_otlp_endpoint: http://c:4318\notel_exporter_otlp_traces_endpoint: http://d:4317\n",
                Grpc,
                "http://d:4317/",
            ),
            (
                "otel_exporter_otlp_traces_endpoint: https://d/own/v1/traces\n",
                Http,
                "https://d/own/v1/traces",
            ),
            (
                "otel_exporter_otlp_protocol: grpc\notel_exporter_otlp_traces_protocol: http/protobuf\n",
                Http,
                "http://localhost:4318/v1/traces",
            ),
        ] {
            let options = traces(added);
            let got = (options.protocol, options.endpoint.as_str());
            assert_eq!(got, (protocol, url), "{added}");
        }
    }

    #[test]
    fn lists_and_maps_are_read_and_headers_are_not_shown() {
        for added in [
            "otel_exporter_otlp_headers: ['x-key=se%20cret']\notel_resource_attributes: [a=b, 'c=d%2Ce']\n",
            "otel_exporter_otlp_headers: {x-key: se cret}\notel_resource_attributes: 'a=b,c=d%2Ce'\n",
        ] {
            let options = traces(added);
            assert_eq!(options.headers[0].0, "x-key");
            assert_eq!(options.headers[0].1, "se cret");
            let pairs = [("a", "b"), ("c", "d,e")].map(|(k, v)| (k.to_owned(), v.to_owned()));
            assert_eq!(options.resource, pairs);
            assert!(!format!("{options:?}").contains("cret"));
        }
    }

    #[test]
    fn the_environment_is_percent_encoded_too() {
        for variable in [
            "OTEL_EXPORTER_OTLP_HEADERS",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
        ] {
            for (text, value) in [
                ("Authorization=Basic%20dTpw", "Basic dTpw"),
                ("authorization = a:b=c%2Cd ,", "a:b=c,d"),
                (r#"{"authorization": "as%20is"}"#, "as%20is"),
            ] {
                let loaded = load_text(
                    Path::new("c.yaml"),
                    &format!("{}otel_traces_exporter: otlp\n", base()),
                    &[
                        (variable, text),
                        ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c=d%2Ce"),
                    ]
                    .into_iter()
                    .collect(),
                    &ProcessSecrets::default(),
                );
                let traces = loaded.config.unwrap().traces.clone().unwrap();
                let got = traces.headers.iter();
                let got: Vec<_> = got
                    .map(|(k, v)| (k.as_str(), v.to_str().unwrap()))
                    .collect();
                assert_eq!(got, [("authorization", value)], "{variable} {text}");
                let pairs = [("a", "b"), ("c", "d,e")].map(|(k, v)| (k.to_owned(), v.to_owned()));
                assert_eq!(traces.resource, pairs);
            }
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (added, message) in [
            ("otel_traces_sampler_arg: 1.5\n", "between 0 and 1"),
            ("otel_traces_sampler_arg: NaN\n", "between 0 and 1"),
            ("otel_bsp_schedule_delay: 99\n", "at least 100"),
            ("otel_bsp_max_export_batch_size: 0\n", "at least 1"),
            ("otel_exporter_otlp_timeout: 0\n", "at least 1"),
            ("otel_exporter_otlp_headers: ['nothing']\n", "without `=`"),
            ("otel_exporter_otlp_protocol: http/json\n", "http/protobuf"),
            (
                "otel_exporter_otlp_endpoint: 'c:4317'\n",
                "otel_exporter_otlp_endpoint",
            ),
        ] {
            let loaded = loaded(added);
            assert!(loaded.config.is_none(), "{added}");
            let text = loaded.diagnostics.to_string();
            assert!(text.contains(message), "{text}");
        }
    }
}
