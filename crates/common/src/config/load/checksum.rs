//! Ids and checksums: equal on every process that has the same configuration.

use std::collections::BTreeMap;

use twox_hash::XxHash3_64;
use url::Url;

use super::super::source::{Map, Node, Value};
use super::scalars::parse_bool;

/// The id that Pomerium gives a route (control-plane.md 4.2): sixteen hexadecimal digits of the
/// XXH3-64 of what it matches and where it leads. A new `name` or policy leaves it as it is.
pub fn route_id(route: &Map) -> String {
    let mut out = Vec::new();
    for key in ["from", "prefix", "path", "regex"] {
        text(&mut out, &plain(route, key));
    }
    if let Some(redirect) = route.get("redirect").filter(|node| !node.is_null()) {
        out.push(2);
        redirect_fields(&mut out, redirect);
    } else if let Some(response) = route.get("response").filter(|node| !node.is_null()) {
        out.push(3);
        if let Value::Map(map) = &response.value {
            out.extend(
                plain(map, "status")
                    .parse::<i32>()
                    .unwrap_or_default()
                    .to_le_bytes(),
            );
            text(&mut out, &plain(map, "body"));
        }
    } else if let Some(to) = route.get("to") {
        let urls = match &to.value {
            Value::List(items) => items.iter().map(as_text).collect(),
            _ => vec![as_text(to)],
        };
        out.push(1);
        length(&mut out, urls.len());
        for url in urls {
            target(&mut out, &url);
        }
    }
    format!("{:016x}", XxHash3_64::oneshot(&out))
}

fn target(out: &mut Vec<u8>, written: &str) {
    let (url, weight) = match written
        .rsplit_once(',')
        .map(|(url, weight)| (url, weight.trim().parse::<u32>()))
    {
        Some((url, Ok(weight))) => (url, weight),
        _ => (written, 0),
    };
    let url = url.trim();
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, after) = rest.split_at(end);
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    text(out, scheme);
    text(out, ""); // opaque
    match user {
        Some(user) => {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            out.push(1);
            text(out, name);
            text(out, password);
        }
        None => out.push(0),
    }
    let (path, fragment) = after.split_once('#').unwrap_or((after, ""));
    let (path, query) = path
        .split_once('?')
        .map_or((path, None), |(path, query)| (path, Some(query)));
    let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    text(out, host);
    text(out, &decoded);
    // Go keeps the written form only where it is not the usual one.
    let usual = Url::parse(&format!("http://h{path}"))
        .is_ok_and(|url| url.path() == path || path.is_empty());
    text(out, if usual { "" } else { path });
    out.push(0); // omit host
    out.push(u8::from(query == Some(""))); // force query
    text(
        out,
        &percent_encoding::percent_decode_str(fragment).decode_utf8_lossy(),
    );
    text(out, "");
    out.extend(weight.to_le_bytes());
}

fn redirect_fields(out: &mut Vec<u8>, redirect: &Node) {
    let Value::Map(map) = &redirect.value else {
        return;
    };
    let flag = |name: &str| {
        map.get(name)
            .filter(|node| !node.is_null())
            .and_then(|node| parse_bool(&as_text(node)))
    };
    let word = |name: &str| map.get(name).filter(|node| !node.is_null()).map(as_text);
    let optional = |out: &mut Vec<u8>, value: Option<Vec<u8>>| match value {
        Some(bytes) => {
            out.push(1);
            out.extend(bytes);
        }
        None => out.push(0),
    };
    let string = |value: Option<String>| {
        value.map(|value| {
            let mut bytes = Vec::new();
            text(&mut bytes, &value);
            bytes
        })
    };
    let number = |value: Option<String>| {
        value
            .and_then(|value| value.parse::<i32>().ok())
            .map(|n| n.to_le_bytes().to_vec())
    };
    let boolean = |value: Option<bool>| value.map(|value| vec![u8::from(value)]);
    optional(out, boolean(flag("https_redirect")));
    optional(out, string(word("scheme_redirect")));
    optional(out, string(word("host_redirect")));
    optional(out, number(word("port_redirect")));
    optional(out, string(word("path_redirect")));
    optional(out, string(word("prefix_rewrite")));
    optional(out, number(word("response_code")));
    optional(out, boolean(flag("strip_query")));
}

fn text(out: &mut Vec<u8>, value: &str) {
    length(out, value.len());
    out.extend(value.as_bytes());
}

fn length(out: &mut Vec<u8>, length: usize) {
    out.extend(i32::try_from(length).unwrap_or(i32::MAX).to_le_bytes());
}

fn plain(map: &Map, name: &str) -> String {
    map.get(name).map(as_text).unwrap_or_default()
}

fn as_text(node: &Node) -> String {
    match &node.value {
        Value::Scalar(scalar) => scalar.text.clone(),
        _ => String::new(),
    }
}

/// What makes a route the one that proxy forwards by and authorize decides about. Policies are not
/// part of it: the newest one always counts.
const ROUTE_KEYS: &[&str] = &[
    "from",
    "to",
    "redirect",
    "response",
    "prefix",
    "path",
    "regex",
    "prefix_rewrite",
    "regex_rewrite_pattern",
    "regex_rewrite_substitution",
    "host_rewrite",
    "host_rewrite_header",
    "host_path_regex_rewrite_pattern",
    "host_path_regex_rewrite_substitution",
    "preserve_host_header",
    "tls_downstream_server_name",
    "bearer_token_format",
    "identity_providers",
];

pub fn route_checksum(
    route: &Map,
    provider_id: Option<&str>,
) -> super::super::route::RouteChecksum {
    let mut out = Vec::new();
    let none = BTreeMap::new();
    for key in ROUTE_KEYS {
        entry(&mut out, key, route.get(key), &none);
    }
    text(&mut out, provider_id.unwrap_or_default());
    super::super::route::RouteChecksum(XxHash3_64::oneshot(&out))
}

/// Keys that differ from process to process of one deployment, or that databroker alone reads.
const LOCAL_KEYS: &[&str] = &[
    "services",
    "installation_id",
    "address",
    "grpc_address",
    "grpc_insecure",
    "insecure_server",
    "http_redirect_addr",
    "health_check_addr",
    "reuse_port",
    "drain_delay",
    "drain_timeout",
    "debug_address",
    "metrics_address",
    "metrics_certificate",
    "metrics_certificate_key",
    "metrics_certificate_file",
    "metrics_certificate_key_file",
    "metrics_client_ca",
    "metrics_client_ca_file",
    "otel_traces_exporter",
    "otel_exporter_otlp_endpoint",
    "otel_exporter_otlp_traces_endpoint",
    "otel_exporter_otlp_protocol",
    "otel_exporter_otlp_traces_protocol",
    "otel_exporter_otlp_headers",
    "otel_exporter_otlp_traces_headers",
    "otel_exporter_otlp_timeout",
    "otel_exporter_otlp_traces_timeout",
    "otel_traces_sampler_arg",
    "otel_resource_attributes",
    "otel_log_level",
    "otel_attribute_value_length_limit",
    "otel_bsp_schedule_delay",
    "otel_bsp_max_export_batch_size",
    "databroker_storage_connection_string_file",
    "databroker_storage_keys_file",
    "ssh_address",
    "log_level",
    "proxy_log_level",
    "certificate",
    "certificate_key",
    "certificate_file",
    "certificate_key_file",
    "certificates",
    "certificate_authority",
    "certificate_authority_file",
    "autocert_dir",
];

/// Of the whole configuration. A path that was read counts as what the file held (`digests`).
pub fn config_checksum(root: &Map, digests: &BTreeMap<String, u64>) -> u64 {
    let mut names: Vec<String> = root
        .entries
        .iter()
        .map(|(key, _)| key.value.to_ascii_lowercase())
        .collect();
    names.sort_unstable();
    let mut out = Vec::new();
    for name in names
        .iter()
        .filter(|name| !LOCAL_KEYS.contains(&name.as_str()))
    {
        entry(&mut out, name, root.get(name), digests);
    }
    XxHash3_64::oneshot(&out)
}

/// A value in one form, whatever the file's format: scalars as text, null as absent.
fn entry(out: &mut Vec<u8>, name: &str, node: Option<&Node>, digests: &BTreeMap<String, u64>) {
    let Some(node) = node.filter(|node| !node.is_null()) else {
        return;
    };
    text(out, name);
    value(out, node, digests);
}

fn value(out: &mut Vec<u8>, node: &Node, digests: &BTreeMap<String, u64>) {
    match &node.value {
        Value::Null => out.push(b'0'),
        Value::Scalar(scalar) => {
            if let Some(digest) = digests.get(&scalar.text) {
                out.push(b'f');
                out.extend(digest.to_le_bytes());
            } else {
                out.push(b's');
                text(out, &scalar.text);
            }
        }
        Value::List(items) => {
            out.push(b'l');
            length(out, items.len());
            for item in items {
                value(out, item, digests);
            }
        }
        Value::Map(map) => {
            out.push(b'm');
            let mut entries: Vec<_> = map.entries.iter().collect();
            entries.sort_by(|(a, _), (b, _)| a.value.cmp(&b.value));
            for (key, node) in entries {
                entry(out, &key.value, Some(node), digests);
            }
            out.push(b'.');
        }
    }
}
