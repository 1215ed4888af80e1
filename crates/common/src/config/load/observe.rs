//! Logs, metrics, pages, switches.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::super::diagnostic::{Diagnostic, code};
use super::super::options::{
    BasicAuth, Branding, LogLevel, LogOptions, MetricsOptions, MetricsTls, RuntimeFlags,
};
use super::certificates::{authority_list, server_certificate};
use super::reader::{Load, Pem, Section};
use super::services::address_of;

const LEVELS: &[(&str, LogLevel)] = &[
    ("trace", LogLevel::Trace),
    ("debug", LogLevel::Debug),
    ("info", LogLevel::Info),
    ("warn", LogLevel::Warn),
    ("warning", LogLevel::Warn),
    ("error", LogLevel::Error),
    ("critical", LogLevel::Error),
    ("fatal", LogLevel::Error),
    ("panic", LogLevel::Error),
    ("off", LogLevel::Off),
    ("none", LogLevel::Off),
    ("disabled", LogLevel::Off),
];

const ACCESS_FIELDS: &[&str] = &[
    "upstream-cluster",
    "method",
    "authority",
    "path",
    "user-agent",
    "referer",
    "forwarded-for",
    "request-id",
    "duration",
    "size",
    "response-code",
    "response-code-details",
    "query",
    "ip",
    "client-certificate",
    "cluster-stat-name",
];

const AUTHORIZE_FIELDS: &[&str] = &[
    "request-id",
    "check-request-id",
    "method",
    "path",
    "host",
    "query",
    "ip",
    "session-id",
    "impersonate-session-id",
    "impersonate-user-id",
    "impersonate-email",
    "service-account-id",
    "user",
    "email",
    "id-token",
    "id-token-claims",
    "headers",
    "body",
    "cluster-stat-name",
    "envoy-route-checksum",
    "envoy-route-id",
    "route-checksum",
    "route-id",
    "removed-groups-count",
    "data-age",
    "mcp-method",
    "mcp-tool",
    "mcp-tool-parameters",
];

pub fn log(load: &mut Load<'_>, root: Section<'_>) -> LogOptions {
    let level = root
        .choice(load, "log_level", LEVELS)
        .unwrap_or(LogLevel::Info);
    LogOptions {
        level,
        proxy_level: root
            .choice(load, "proxy_log_level", LEVELS)
            .unwrap_or(level),
        access_fields: fields(load, root, "access_log_fields", ACCESS_FIELDS),
        authorize_fields: fields(load, root, "authorize_log_fields", AUTHORIZE_FIELDS),
    }
}

/// Unknown fields are told and left out, as in Pomerium.
fn fields(
    load: &mut Load<'_>,
    root: Section<'_>,
    name: &str,
    known: &[&str],
) -> Option<Vec<String>> {
    let written = root.list(load, name)?;
    let mut fields = Vec::new();
    for field in written {
        let lower = field.value.trim().to_ascii_lowercase();
        if known.contains(&lower.as_str()) {
            fields.push(lower);
        } else if lower.starts_with("headers.") {
            fields.push(field.value.trim().to_owned());
        } else {
            let mut diagnostic = Diagnostic::warning(
                code::INVALID_VALUE,
                format!("`{name}` has no field `{}`; it is left out", field.value),
            )
            .at(&field.place);
            if let Some(near) = super::super::keys::nearest(&lower, known.iter().copied()) {
                diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
            }
            load.say(diagnostic);
        }
    }
    Some(fields)
}

/// Port alone: loopback, as metrics tell too much for everybody.
pub fn metrics(load: &mut Load<'_>, root: Section<'_>) -> Option<MetricsOptions> {
    let basic_auth = basic_auth(load, root);
    let tls = metrics_tls(load, root);
    let text = root.text(load, "metrics_address")?;
    let address = address_of(load, "metrics_address", &text, None)?;
    Some(MetricsOptions {
        address,
        basic_auth,
        tls,
    })
}

fn metrics_tls(load: &mut Load<'_>, root: Section<'_>) -> Option<MetricsTls> {
    let set = |name: &str| root.has(name) || root.has(&format!("{name}_file"));
    let (certificate, key) = ("metrics_certificate", "metrics_certificate_key");
    for (have, lack) in [
        (certificate, key),
        (key, certificate),
        ("metrics_client_ca", certificate),
    ] {
        if set(have) && !set(lack) {
            let place = root
                .place(&format!("{have}_file"))
                .filter(|_| !root.has(have))
                .or(root.place(have));
            let mut diagnostic = Diagnostic::error(
                code::MISSING_KEY,
                format!("`{have}` is set, but `{lack}` is not"),
            )
            .help(format!("set `{lack}` or `{lack}_file`"));
            if let Some(place) = place {
                diagnostic = diagnostic.at(place);
            }
            load.say(diagnostic);
        }
    }
    let chain = inline_first(load, root, certificate, "metrics_certificate_file");
    let private = inline_first(load, root, key, "metrics_certificate_key_file");
    let clients = inline_first(load, root, "metrics_client_ca", "metrics_client_ca_file");
    let client_authorities = clients.map(|pem| authority_list(load, &pem));
    let certificate = server_certificate(load, &chain?, &private?)?;
    Some(MetricsTls {
        certificate,
        // What could not be read has been told as an error.
        client_authorities: client_authorities.flatten().unwrap_or_default(),
    })
}

/// PEM of `inline`, which wins, else of `file`.
fn inline_first(load: &mut Load<'_>, root: Section<'_>, inline: &str, file: &str) -> Option<Pem> {
    if root.has(inline)
        && let Some(node) = root.node(file)
    {
        load.say(
            Diagnostic::warning(
                code::CONFLICT,
                format!("`{file}` is not used: `{inline}` is set as well and wins"),
            )
            .at(&node.place),
        );
    }
    root.pem(load, inline, file).into_iter().next()
}

fn basic_auth(load: &mut Load<'_>, root: Section<'_>) -> Option<BasicAuth> {
    let text = root.text(load, "metrics_basic_auth")?;
    let decoded = STANDARD
        .decode(text.value.trim())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    if let Some((user, password)) = decoded.as_deref().and_then(|pair| pair.split_once(':')) {
        Some(BasicAuth {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    } else {
        load.say(
            Diagnostic::error(
                code::SECRET,
                "`metrics_basic_auth` is not base64 of user:password",
            )
            .at(&text.place)
            .help("make it with: printf 'user:password' | base64"),
        );
        None
    }
}

pub fn branding(load: &mut Load<'_>, root: Section<'_>) -> Branding {
    let mut text = |name| root.text(load, name).map(|text| text.value);
    Branding {
        primary_color: text("primary_color"),
        secondary_color: text("secondary_color"),
        logo_url: text("logo_url"),
        favicon_url: text("favicon_url"),
        error_message_first_paragraph: text("error_message_first_paragraph"),
    }
}

pub fn flags(load: &mut Load<'_>, root: Section<'_>) -> RuntimeFlags {
    let default = RuntimeFlags::default();
    let Some(section) = root.section(load, "runtime_flags", "runtime_flags.") else {
        return default;
    };
    let mut flag = |name, default| section.flag(load, name).unwrap_or(default);
    RuntimeFlags {
        config_hot_reload: flag("config_hot_reload", default.config_hot_reload),
        match_any_incoming_port: flag("match_any_incoming_port", default.match_any_incoming_port),
        routes_portal: flag("routes_portal", default.routes_portal),
        pomerium_jwt_endpoint: flag("pomerium_jwt_endpoint", default.pomerium_jwt_endpoint),
        allow_any_sign_out_redirect_uri: flag(
            "allow_any_sign_out_redirect_uri",
            default.allow_any_sign_out_redirect_uri,
        ),
        refresh_session_at_id_token_expiration: flag(
            "refresh_session_at_id_token_expiration",
            default.refresh_session_at_id_token_expiration,
        ),
    }
}
