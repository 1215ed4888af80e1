//! Identity provider, cookies, programs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::super::diagnostic::{Diagnostic, code};
use super::super::options::{
    BearerTokenFormat, ClientCredentials, CookieOptions, JwtVerifier, ProgrammaticAccess,
    ProviderKind, ProviderOptions, SameSite, Service, Services, UnboundCallbacks,
};
use super::super::place::At;
use super::super::route::RouteBearer;
use super::super::source::Value;
use super::reader::{Load, Section, parse_url};
use crate::crypto::provider_id::{ProviderFields, provider_id};

const KINDS: &[(&str, ProviderKind)] = &[
    ("oidc", ProviderKind::Oidc),
    ("keycloak", ProviderKind::Oidc),
    ("google", ProviderKind::Google),
    ("azure", ProviderKind::Azure),
    ("okta", ProviderKind::Okta),
    ("auth0", ProviderKind::Auth0),
    ("gitlab", ProviderKind::Gitlab),
    ("github", ProviderKind::Github),
    ("cognito", ProviderKind::Cognito),
    ("onelogin", ProviderKind::OneLogin),
    ("ping", ProviderKind::Ping),
    ("apple", ProviderKind::Apple),
];

/// Without `idp_provider` there is none, and nobody can sign in.
pub fn provider(
    load: &mut Load<'_>,
    root: Section<'_>,
    services: &Services,
) -> Option<ProviderOptions> {
    if !root.has("idp_provider") {
        if services.contains(Service::Authenticate) {
            load.say(
                Diagnostic::warning(code::MISSING_KEY, "`idp_provider` is not set: nobody can sign in")
                    .help("set `idp_provider`, `idp_provider_url`, `idp_client_id` and `idp_client_secret`"),
            );
        }
        return None;
    }
    let kind = kind(load, root);
    let url = root.text(load, "idp_provider_url");
    if let Some(url) = &url
        && let Some(parsed) = parse_url(load, "idp_provider_url", url)
    {
        clear_text_issuer(load, url, &parsed);
    }
    let id = required(load, root, "idp_client_id");
    let secret = root.text_or_file(load, "idp_client_secret");
    // Empty on purpose: a public client, which has none.
    let written = root.node("idp_client_secret").is_some() || root.has("idp_client_secret_file");
    if secret.is_none() && !written {
        required(load, root, "idp_client_secret");
    }
    let scopes = root.list(load, "idp_scopes").unwrap_or_default();
    let params = root.pairs(load, "idp_request_params").unwrap_or_default();
    let audiences = root.list(load, "idp_access_token_allowed_audiences");
    let kind = kind?;
    if kind == ProviderKind::Azure {
        any_tenant(load, root, url.as_ref());
    }
    if kind == ProviderKind::OneLogin
        && let Some(place) = root.place("idp_scopes")
    {
        load.say(
            Diagnostic::note(
                code::IGNORED,
                "`idp_scopes` has no effect with OneLogin, as in Pomerium",
            )
            .at(place),
        );
    }
    if url.is_none() && needs_url(kind) {
        let message = format!(
            "`idp_provider_url` is not set, and {} has none of its own",
            kind.name()
        );
        let mut diagnostic = Diagnostic::error(code::MISSING_KEY, message)
            .help("set it to the issuer, such as https://idp.example.com");
        if let Some(place) = root.place("idp_provider") {
            diagnostic = diagnostic.at(place);
        }
        load.say(diagnostic);
    }
    Some(ProviderOptions {
        kind,
        url: url.map(|url| url.value),
        client: ClientCredentials {
            id: id?.value,
            secret: secret?.value,
        },
        scopes: scopes.into_iter().map(|scope| scope.value).collect(),
        request_params: params
            .into_iter()
            .map(|(name, value)| (name.value, value.value))
            .collect(),
        access_token_audiences: audiences
            .map(|list| list.into_iter().map(|audience| audience.value).collect()),
    })
}

fn kind(load: &mut Load<'_>, root: Section<'_>) -> Option<ProviderKind> {
    if let Some(text) = root
        .text(load, "idp_provider")
        .filter(|text| text.value == "hosted")
    {
        load.say(
            Diagnostic::error(
                code::INVALID_VALUE,
                "`idp_provider: hosted` is not supported: it is a service that Pomerium runs",
            )
            .at(&text.place)
            .help("configure a provider of your own, such as `idp_provider: oidc` with `idp_provider_url`"),
        );
        return None;
    }
    root.choice(load, "idp_provider", KINDS)
}

/// Azure's shared addresses let in people of every tenant there is, and of none.
fn any_tenant(load: &mut Load<'_>, root: Section<'_>, url: Option<&At<String>>) {
    let shared = ["/common/", "/organizations/", "/consumers/"];
    if url.is_some_and(|url| !shared.iter().any(|part| url.value.contains(part))) {
        return;
    }
    let mut diagnostic = Diagnostic::warning(
        code::INSECURE,
        "people of every Azure tenant can sign in: `idp_provider_url` names none",
    )
    .help("set it to https://login.microsoftonline.com/YOUR-TENANT-ID/v2.0, or check `claim/tid` in every policy");
    if let Some(place) = url.map(|url| &url.place).or(root.place("idp_provider")) {
        diagnostic = diagnostic.at(place);
    }
    load.say(diagnostic);
}

fn needs_url(kind: ProviderKind) -> bool {
    matches!(
        kind,
        ProviderKind::Oidc
            | ProviderKind::Okta
            | ProviderKind::Auth0
            | ProviderKind::Ping
            | ProviderKind::Cognito
    )
}

/// Loopback silently, others with a standing warning that `check --strict` refuses.
fn clear_text_issuer(load: &mut Load<'_>, text: &At<String>, url: &Url) {
    if url.scheme() != "http" || is_local(url) {
        return;
    }
    load.say(
        Diagnostic::warning(
            code::INSECURE,
            "`idp_provider_url` is not https: whoever listens in between signs in as anyone",
        )
        .at(&text.place)
        .help("use https; http is for trials"),
    );
}

fn is_local(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            host.ends_with(".localhost")
                || host
                    .trim_matches(['[', ']'])
                    .parse::<IpAddr>()
                    .is_ok_and(|ip| ip.is_loopback())
        }
        None => false,
    }
}

fn required(load: &mut Load<'_>, root: Section<'_>, name: &str) -> Option<At<String>> {
    let found = root.text(load, name);
    if found.is_none()
        && !root
            .node(name)
            .is_some_and(|node| !matches!(node.value, Value::Scalar(_)))
    {
        let mut diagnostic = Diagnostic::error(
            code::MISSING_KEY,
            format!("`{name}` is not set, but `idp_provider` is"),
        );
        if let Some(place) = root.place("idp_provider") {
            diagnostic = diagnostic.at(place);
        }
        load.say(diagnostic);
    }
    found
}

/// The id of a provider, of all settings as they were written.
pub fn id_of(
    provider: &ProviderOptions,
    client: &ClientCredentials,
    authenticate_url: &str,
) -> Arc<str> {
    provider_id(&ProviderFields {
        client_id: &client.id,
        client_secret: &client.secret,
        kind: provider.kind.name(),
        scopes: &provider.scopes,
        url: provider.url.as_deref().unwrap_or_default(),
        request_params: &provider.request_params,
        authenticate_url,
    })
    .into()
}

pub fn cookie(load: &mut Load<'_>, root: Section<'_>) -> CookieOptions {
    let name = root.text(load, "cookie_name");
    if let Some(name) = &name {
        // RFC 6265 4.1.1: a token.
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if !name.value.bytes().all(token) {
            load.invalid(
                &name.place,
                "`cookie_name` may hold letters, digits, `_`, `-` and `.` only",
            );
        }
    }
    let domain = root.text(load, "cookie_domain");
    if let Some(domain) = &domain {
        let name = domain.value.trim_start_matches('.');
        let label = |label: &str| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if !name.split('.').all(label) {
            load.invalid(
                &domain.place,
                format!(
                    "`cookie_domain`: {} is no domain; write it like example.com",
                    domain.value
                ),
            );
        }
        load.say(
            Diagnostic::warning(
                code::EXPOSED,
                format!("with `cookie_domain` every host below {} gets the session cookie, also those that are not routes", domain.value),
            )
            .at(&domain.place),
        );
    }
    let same_site = root.choice(
        load,
        "cookie_same_site",
        &[
            ("strict", SameSite::Strict),
            ("lax", SameSite::Lax),
            ("none", SameSite::None),
        ],
    );
    CookieOptions {
        name: name.map_or_else(|| "_pomerium".to_owned(), |name| name.value),
        domain: domain.map(|domain| domain.value.trim_start_matches('.').to_ascii_lowercase()),
        http_only: root.flag(load, "cookie_http_only").unwrap_or(true),
        expire: root
            .duration(load, "cookie_expire")
            .unwrap_or(Duration::from_secs(14 * 3600)),
        same_site: same_site.unwrap_or(SameSite::Lax),
    }
}

pub fn programs(load: &mut Load<'_>, root: Section<'_>) -> ProgrammaticAccess {
    let domains = root.list(load, "programmatic_redirect_domain_whitelist");
    let unbound = root.flag(load, "accept_unbound_callbacks").unwrap_or(false);
    ProgrammaticAccess {
        redirect_domains: match domains {
            Some(domains) => domains
                .into_iter()
                .map(|domain| domain.value.to_ascii_lowercase())
                .collect(),
            None => vec!["localhost".to_owned()],
        },
        unbound_callbacks: if unbound {
            UnboundCallbacks::Accept
        } else {
            UnboundCallbacks::Refuse
        },
    }
}

/// How bearer tokens are read at our own endpoints: by the keys at the top of the file. Where these
/// leave out what it takes to verify one, because each route has its own, none is read.
pub fn own_bearer(
    format: BearerTokenFormat,
    provider: Option<&ProviderOptions>,
    verifiers: &BTreeMap<String, JwtVerifier>,
) -> RouteBearer {
    let audiences = provider.and_then(|provider| provider.access_token_audiences.clone());
    let verifiable = match format {
        BearerTokenFormat::Default => true,
        BearerTokenFormat::IdpAccessToken => audiences.as_ref().is_some_and(|it| !it.is_empty()),
        BearerTokenFormat::IdpIdentityToken => provider.is_some(),
        BearerTokenFormat::Jwt => !verifiers.is_empty(),
    };
    RouteBearer {
        format: if verifiable {
            format
        } else {
            BearerTokenFormat::Default
        },
        audiences,
        verifiers: Vec::new(),
    }
}

pub fn bearer_format(load: &mut Load<'_>, section: Section<'_>) -> Option<BearerTokenFormat> {
    section.choice(
        load,
        "bearer_token_format",
        &[
            ("default", BearerTokenFormat::Default),
            ("idp_access_token", BearerTokenFormat::IdpAccessToken),
            ("idp_identity_token", BearerTokenFormat::IdpIdentityToken),
            ("jwt", BearerTokenFormat::Jwt),
        ],
    )
}

/// Algorithms that a verifier may allow.
const ALGORITHMS: [&str; 9] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA",
];
/// Pomerium knows it too; nothing here can verify it.
const UNSUPPORTED_ALGORITHM: &str = "ES512";

/// `identity_providers`: verifiers of JWTs made elsewhere.
pub fn verifiers(load: &mut Load<'_>, root: Section<'_>) -> BTreeMap<String, JwtVerifier> {
    let mut found = BTreeMap::new();
    let Some(node) = root.node("identity_providers") else {
        return found;
    };
    let Value::Map(map) = &node.value else {
        root.wrong::<()>(load, "identity_providers", node);
        return found;
    };
    for (name, node) in &map.entries {
        let Value::Map(map) = &node.value else {
            load.invalid(
                &node.place,
                format!("`identity_providers.{}` must be a map", name.value),
            );
            continue;
        };
        let section = Section {
            map,
            keys: super::super::keys::IDENTITY_PROVIDER,
            prefix: "identity_providers.",
            place: Some(&name.place),
        };
        super::reader::check_keys(load, section, &[], "");
        let issuer = section.text(load, "issuer");
        let audiences = section.list(load, "audiences").unwrap_or_default();
        if issuer.is_none() || audiences.is_empty() {
            load.say(
                Diagnostic::error(
                    code::MISSING_KEY,
                    format!(
                        "`identity_providers.{}` needs `issuer` and `audiences`",
                        name.value
                    ),
                )
                .at(&name.place),
            );
        }
        let mut algorithms = section.list(load, "supported_algs");
        if let Some(listed) = &mut algorithms {
            leave_unsupported_out(load, listed);
        }
        for algorithm in algorithms.iter().flatten() {
            if !ALGORITHMS.contains(&algorithm.value.as_str()) {
                load.invalid(
                    &algorithm.place,
                    format!(
                        "`{}` is not an allowed algorithm: {}",
                        algorithm.value,
                        ALGORITHMS.join(", ")
                    ),
                );
            }
        }
        let jwks_url = section.url(load, "jwks_url").map(|url| url.value);
        let Some(issuer) = issuer else { continue };
        let default = || ["RS256", "ES256", "EdDSA"].map(str::to_owned).to_vec();
        found.insert(
            name.value.to_ascii_lowercase(),
            JwtVerifier {
                issuer: issuer.value,
                jwks_url,
                algorithms: algorithms
                    .map_or_else(default, |list| list.into_iter().map(|a| a.value).collect()),
                audiences: audiences
                    .into_iter()
                    .map(|audience| audience.value)
                    .collect(),
            },
        );
    }
    found
}

/// Where what nothing here can verify is all that is allowed, every token would be refused.
fn leave_unsupported_out(load: &mut Load<'_>, listed: &mut Vec<At<String>>) {
    let is_supported = |algorithm: &At<String>| algorithm.value != UNSUPPORTED_ALGORITHM;
    let say: fn(_, String) -> Diagnostic = if listed.iter().any(is_supported) {
        Diagnostic::warning
    } else {
        Diagnostic::error
    };
    for algorithm in listed.iter().filter(|it| !is_supported(it)) {
        let message = format!(
            "tokens signed with {UNSUPPORTED_ALGORITHM} are refused: its curve P-521 is not supported"
        );
        load.say(
            say(code::UNSUPPORTED, message)
                .at(&algorithm.place)
                .help(format!(
                    "have them signed with one of {}",
                    ALGORITHMS.join(", ")
                )),
        );
    }
    listed.retain(is_supported);
}
