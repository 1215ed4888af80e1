//! Every key there is: one table.
//!
//! Parsing, environment names, suggestions, `check` and the reference documentation come from it.

mod global;
mod nested;
mod reference;
mod route;

pub use global::GLOBAL;
pub use nested::{
    CERTIFICATE, CIRCUIT_BREAKER, DOWNSTREAM_MTLS, IDENTITY_PROVIDER, REDIRECT, RESPONSE,
    REWRITE_HEADER, RUNTIME_FLAGS,
};
pub use reference::markdown;
pub use route::ROUTE;

/// A key of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    /// For people; empty when there is none.
    pub default: &'static str,
    pub priority: Priority,
    pub state: State,
    pub meaning: &'static str,
}

/// What its value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// Must not be shown.
    Secret,
    /// Several with commas or as a list; none must be shown.
    Secrets,
    Bool,
    Integer,
    Number,
    /// With a unit: `300ms`, `1m30s`, `1h`.
    Duration,
    Url,
    /// A file's path.
    Path,
    /// `host:port`, `:port`
    Address,
    /// One of a few words.
    Choice,
    /// With commas or as a list.
    List,
    /// Names to texts.
    Map,
    /// Names to texts that must not be shown.
    SecretMap,
    /// Keys of its own.
    Object(&'static [Key]),
    /// A list of such.
    Objects(&'static [Key]),
    /// Free-form.
    Any,
    Policy,
    Routes,
}

impl Kind {
    pub const fn is_secret(self) -> bool {
        matches!(self, Self::Secret | Self::Secrets | Self::SecretMap)
    }

    /// In words, for messages and documentation.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Text | Self::Secret => "text",
            Self::Secrets => "text or a list of texts",
            Self::Bool => "true or false",
            Self::Integer => "a whole number",
            Self::Number => "a number",
            Self::Duration => "a duration such as 30s or 1h30m",
            Self::Url => "a URL",
            Self::Path => "a path",
            Self::Address => "an address such as :443",
            Self::Choice => "one of a few words",
            Self::List => "a list",
            Self::Map | Self::SecretMap => "a map of names to texts",
            Self::Object(_) => "a map",
            Self::Objects(_) => "a list of maps",
            Self::Any => "anything",
            Self::Policy => "a policy",
            Self::Routes => "a list of routes",
        }
    }
}

/// How much depends on a key (compatibility.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Any normal deployment needs it.
    P0,
    /// Commonly used.
    P1,
    /// Rare.
    P2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Works,
    /// Known and read over, with a warning at start.
    NotYet,
    /// Known, but reading over it would leave something open that it should close: an error that
    /// says what.
    Refused(&'static str),
    /// Means nothing here; why.
    Ignored(&'static str),
    /// An error; what replaced it.
    Removed(&'static str),
}

impl Key {
    /// Upper case; nested keys joined by `_`. `HEADERS` is the one exception.
    pub fn variable(&self) -> String {
        if self.name == "set_response_headers" {
            "HEADERS".to_owned()
        } else {
            self.name.to_ascii_uppercase()
        }
    }
}

/// The key of this name in a table, without case.
pub fn find<'a>(table: &'a [Key], name: &str) -> Option<&'a Key> {
    table.iter().find(|key| key.name.eq_ignore_ascii_case(name))
}

/// The key of this name in any table.
pub(super) fn find_anywhere(name: &str) -> Option<&'static Key> {
    let nested = GLOBAL.iter().chain(ROUTE).filter_map(|key| match key.kind {
        Kind::Object(keys) | Kind::Objects(keys) => find(keys, name),
        _ => None,
    });
    find(GLOBAL, name)
        .or_else(|| find(ROUTE, name))
        .or_else(|| nested.into_iter().next())
}

/// The known name that somebody most likely meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_ascii_lowercase();
    let limit = (name.chars().count() / 3).clamp(1, 4);
    known
        .into_iter()
        .map(|candidate| (distance(&name, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, substitutions and swaps of neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, cb) in b.iter().enumerate() {
            let at =
                |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
            let mut best = (at(&last, j + 1) + 1)
                .min(at(&row, j) + 1)
                .min(at(&last, j) + usize::from(ca != cb));
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(cb) && b.get(j - 1) == Some(ca);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or_default()
}

/// A row of a table.
const fn key(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    priority: Priority,
    state: State,
    meaning: &'static str,
) -> Key {
    Key {
        name,
        kind,
        default,
        priority,
        state,
        meaning,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_and_nothing_else() {
        let names = || GLOBAL.iter().map(|key| key.name);
        assert_eq!(nearest("grpc_adress", names()), Some("grpc_address"));
        assert_eq!(nearest("shared_secert", names()), Some("shared_secret"));
        assert_eq!(nearest("Cookie_Name", names()), Some("cookie_name"));
        assert_eq!(nearest("completely_else", names()), None);
    }

    #[test]
    fn names_are_unique_and_in_lower_case() {
        for table in [
            GLOBAL,
            ROUTE,
            DOWNSTREAM_MTLS,
            REDIRECT,
            RESPONSE,
            RUNTIME_FLAGS,
        ] {
            for (index, key) in table.iter().enumerate() {
                assert_eq!(key.name, key.name.to_ascii_lowercase());
                assert!(
                    !table[..index].iter().any(|other| other.name == key.name),
                    "{}",
                    key.name
                );
                assert!(!key.meaning.is_empty(), "{}", key.name);
            }
        }
    }

    /// The tables "Configuration" and "Routes" of the interface that Postern keeps.
    #[test]
    fn every_key_of_the_interface_is_known() {
        let global = "address insecure_server http_redirect_addr certificate certificate_key certificate_file \
            certificate_key_file certificates certificate_authority certificate_authority_file \
            authenticate_service_url authenticate_internal_service_url authorize_service_url authorize_service_urls \
            authorize_internal_service_url databroker_service_url databroker_service_urls \
            databroker_internal_service_url grpc_address grpc_insecure grpc_client_timeout override_certificate_name \
            tls_derive shared_secret shared_secret_file cookie_secret cookie_secret_file signing_key \
            signing_key_file idp_provider idp_provider_url idp_client_id idp_client_secret idp_client_secret_file \
            idp_scopes idp_request_params identity_providers sign_in_providers idp_access_token_allowed_audiences \
            bearer_token_format cookie_name cookie_domain cookie_http_only cookie_expire cookie_same_site \
            databroker_storage_type databroker_storage_connection_string databroker_storage_connection_string_file \
            databroker_storage_keys databroker_storage_keys_file routes policy policy_file pass_identity_headers \
            jwt_claims_headers jwt_groups_filter jwt_issuer_format jwt_assertion_reuse set_response_headers \
            timeout_read timeout_write timeout_idle default_upstream_timeout log_level proxy_log_level \
            access_log_fields authorize_log_fields metrics_address metrics_basic_auth metrics_certificate \
            metrics_certificate_key metrics_certificate_file metrics_certificate_key_file metrics_client_ca \
            metrics_client_ca_file otel_traces_exporter otel_exporter_otlp_endpoint \
            otel_exporter_otlp_traces_endpoint otel_exporter_otlp_protocol otel_exporter_otlp_traces_protocol \
            otel_exporter_otlp_headers otel_exporter_otlp_traces_headers otel_exporter_otlp_timeout \
            otel_exporter_otlp_traces_timeout otel_traces_sampler_arg otel_resource_attributes otel_log_level \
            otel_attribute_value_length_limit otel_bsp_schedule_delay otel_bsp_max_export_batch_size \
            tracing_provider tracing_sample_rate tracing_datadog_address tracing_jaeger_collector_endpoint \
            tracing_jaeger_agent_endpoint tracing_zipkin_endpoint downstream_mtls autocert autocert_ca \
            autocert_email autocert_use_staging autocert_eab_key_id autocert_eab_mac_key autocert_must_staple \
            autocert_dir autocert_trusted_ca autocert_trusted_ca_file use_proxy_protocol skip_xff_append \
            xff_num_trusted_hops codec_type dns_lookup_family dns_refresh_rate dns_query_timeout dns_query_tries \
            dns_failure_refresh_rate dns_udp_max_queries dns_use_tcp dns_resolvers signout_redirect_url \
            programmatic_redirect_domain_whitelist circuit_breaker_thresholds runtime_flags primary_color \
            secondary_color darkmode_primary_color darkmode_secondary_color logo_url favicon_url \
            error_message_first_paragraph google_cloud_serverless_authentication_service_account ssh_address \
            ssh_host_key_files ssh_host_keys ssh_user_ca_key ssh_user_ca_key_file ssh_rls_enabled \
            ssh_rls_additional_entries mcp_allowed_client_id_domains mcp_allowed_as_metadata_domains blob_storage \
            debug_address health_check_addr health_check_systemd_disabled installation_id merge_slashes \
            normalize_path path_with_escaped_slashes_action headers_with_underscores_action allow_upgrades \
            envoy_bind_config_source_address envoy_bind_config_freebind envoy_admin_address \
            envoy_admin_access_log_path envoy_admin_profile_path envoy_dynamic_extensions \
            session_recording_concurrency auto_apply_changesets services databroker_cluster_leader_id \
            databroker_cluster_node_id databroker_cluster_nodes databroker_raft_bind_address client_ca \
            client_ca_file idp_service_account idp_refresh_directory_timeout idp_refresh_directory_interval idp_qps \
            ext_authz_allow_unauthenticated accept_unbound_callbacks";
        let route = "from to name description logo_url prefix path regex regex_priority_order prefix_rewrite \
            regex_rewrite_pattern regex_rewrite_substitution host_rewrite host_rewrite_header \
            host_path_regex_rewrite_pattern host_path_regex_rewrite_substitution preserve_host_header redirect \
            response allow_public_unauthenticated_access allow_any_authenticated_user allowed_users \
            allowed_domains allowed_idp_claims cors_allow_preflight policy timeout idle_timeout allow_websockets \
            allow_spdy allow_upgrades set_request_headers remove_request_headers set_response_headers \
            rewrite_response_headers pass_identity_headers jwt_issuer_format jwt_groups_filter tls_skip_verify \
            tls_upstream_server_name tls_server_name tls_downstream_server_name tls_custom_ca tls_custom_ca_file \
            tls_client_cert tls_client_key tls_client_cert_file tls_client_key_file \
            tls_upstream_allow_renegotiation load_balancing_policy health_checks outlier_detection \
            healthy_panic_threshold circuit_breaker_thresholds tls_downstream_client_ca \
            tls_downstream_client_ca_file idp_client_id idp_client_secret idp_access_token_allowed_audiences \
            bearer_token_format identity_providers kubernetes_service_account_token \
            kubernetes_service_account_token_file depends_on show_error_details \
            enable_google_cloud_serverless_authentication mcp upstream_tunnel session_recording sub_policies \
            allowed_groups set_authorization_header";
        for (table, names) in [(GLOBAL, global), (ROUTE, route)] {
            for name in names.split_whitespace() {
                assert!(find(table, name).is_some(), "{name} is missing");
            }
        }
    }
}
