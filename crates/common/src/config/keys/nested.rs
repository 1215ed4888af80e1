//! Keys inside of other keys.

use super::Kind::{Any, Bool, Choice, Integer, Path, Text};
use super::Priority::{P0, P1, P2};
use super::State::{Ignored, NotYet, Works};
use super::{Key, Kind, key};

pub const CERTIFICATE: &[Key] = &[
    key(
        "cert",
        Path,
        "",
        P0,
        Works,
        "a file with a certificate chain, or base64 of PEM",
    ),
    // A path, or the key itself: never shown.
    key(
        "key",
        Kind::Secret,
        "",
        P0,
        Works,
        "a file with its private key, or base64 of PEM",
    ),
];

pub const DOWNSTREAM_MTLS: &[Key] = &[
    key(
        "ca",
        Text,
        "",
        P1,
        Works,
        "who signs certificates of clients, base64 of PEM",
    ),
    key("ca_file", Path, "", P1, Works, "a file with it"),
    key(
        "crl",
        Text,
        "",
        P1,
        Works,
        "revocation lists, base64 of PEM",
    ),
    key("crl_file", Path, "", P1, Works, "a file with them"),
    key(
        "enforcement",
        Choice,
        "policy_with_default_deny",
        P1,
        Works,
        "policy_with_default_deny, policy or reject_connection",
    ),
    key(
        "match_subject_alt_names",
        Any,
        "",
        P1,
        Works,
        "names that a certificate must have one of",
    ),
    key(
        "max_verify_depth",
        Integer,
        "1",
        P1,
        Works,
        "intermediates and one; 0 for no limit",
    ),
];

pub const CIRCUIT_BREAKER: &[Key] = &[
    key("max_connections", Integer, "1024", P1, Works, "connections"),
    key(
        "max_pending_requests",
        Integer,
        "1024",
        P1,
        Works,
        "requests that wait for a connection",
    ),
    key(
        "max_requests",
        Integer,
        "1024",
        P1,
        Works,
        "requests in flight",
    ),
    key("max_retries", Integer, "3", P1, Works, "retries in flight"),
    key(
        "max_connection_pools",
        Integer,
        "",
        P1,
        Works,
        "connection pools",
    ),
];

pub const IDENTITY_PROVIDER: &[Key] = &[
    key("issuer", Kind::Url, "", P1, Works, "`iss` of its tokens"),
    key(
        "jwks_url",
        Kind::Url,
        "by discovery",
        P1,
        Works,
        "where its keys are",
    ),
    key(
        "supported_algs",
        Kind::List,
        "RS256, ES256, EdDSA",
        P1,
        Works,
        "allowed signature algorithms",
    ),
    key("audiences", Kind::List, "", P1, Works, "allowed `aud`"),
];

pub const REDIRECT: &[Key] = &[
    key(
        "https_redirect",
        Bool,
        "",
        P0,
        Works,
        "to https; wins over scheme_redirect",
    ),
    key("scheme_redirect", Text, "", P0, Works, "the new scheme"),
    key("host_redirect", Text, "", P0, Works, "the new host"),
    key("port_redirect", Integer, "", P0, Works, "the new port"),
    key(
        "path_redirect",
        Text,
        "",
        P0,
        Works,
        "the new path; wins over prefix_rewrite",
    ),
    key(
        "prefix_rewrite",
        Text,
        "",
        P0,
        Works,
        "replaces the matched prefix",
    ),
    key(
        "response_code",
        Integer,
        "301",
        P0,
        Works,
        "301, 302, 303, 307 or 308",
    ),
    key("strip_query", Bool, "false", P0, Works, "drop the query"),
];

pub const RESPONSE: &[Key] = &[
    key("status", Integer, "", P0, Works, "200 to 599"),
    key("body", Text, "", P0, Works, "up to 4096 bytes"),
];

pub const REWRITE_HEADER: &[Key] = &[
    key("header", Text, "", P0, Works, "the header"),
    key("prefix", Text, "", P0, Works, "what its value begins with"),
    key("value", Text, "", P0, Works, "what that becomes"),
];

const RESOURCES: &str = "limits are bounded by configuration, not by memory in use";

pub const RUNTIME_FLAGS: &[Key] = &[
    key(
        "config_hot_reload",
        Bool,
        "true",
        P0,
        Works,
        "watch the files",
    ),
    key(
        "match_any_incoming_port",
        Bool,
        "true",
        P0,
        Works,
        "a route on its default port answers on any",
    ),
    key(
        "routes_portal",
        Bool,
        "true",
        P1,
        Works,
        "the list of routes",
    ),
    key(
        "pomerium_jwt_endpoint",
        Bool,
        "false",
        P1,
        Works,
        "/.pomerium/jwt",
    ),
    key(
        "allow_any_sign_out_redirect_uri",
        Bool,
        "false",
        P1,
        Works,
        "sign-out may redirect anywhere",
    ),
    key(
        "refresh_session_at_id_token_expiration",
        Bool,
        "true",
        P1,
        Works,
        "refresh when the ID token expires",
    ),
    key(
        "add_extra_metrics_labels",
        Bool,
        "true",
        P1,
        NotYet,
        "host name and installation on every metric",
    ),
    key(
        "authorize_use_synced_data",
        Bool,
        "true",
        P1,
        Ignored("authorize always has its own replica"),
        "decide from a replica",
    ),
    key(
        "grpc_databroker_keepalive",
        Bool,
        "true",
        P1,
        Ignored("connections are always probed"),
        "keep connections alive",
    ),
    key("mcp", Bool, "true", P2, NotYet, "MCP routes"),
    key(
        "mcp_dynamic_client_registration",
        Bool,
        "false",
        P2,
        NotYet,
        "MCP clients",
    ),
    key(
        "debug_admin_endpoints",
        Bool,
        "false",
        P2,
        NotYet,
        "more debugging endpoints",
    ),
    key(
        "envoy_resource_manager",
        Bool,
        "true",
        P2,
        Ignored(RESOURCES),
        "limits by memory in use",
    ),
    key(
        "set_envoy_concurrency_to_go_max_procs",
        Bool,
        "true",
        P2,
        Ignored("there is no Envoy here"),
        "workers",
    ),
    key("ssh_allow_direct_tcpip", Bool, "false", P2, NotYet, "SSH"),
    key("ssh_routes_portal", Bool, "false", P2, NotYet, "SSH"),
    key("ssh_upstream_tunnel", Bool, "false", P2, NotYet, "SSH"),
];
