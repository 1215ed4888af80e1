//! `downstream_mtls`: certificates of clients.

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject as _;

use super::super::diagnostic::{Diagnostic, code};
use super::super::options::{
    DownstreamMtls, MtlsEnforcement, Service, Services, SubjectAltNameKind, SubjectAltNameRule,
};
use super::super::source::Value;
use super::certificates::authority_list;
use super::reader::{Load, Section, scalar};
use super::route::whole_match;
use crate::telemetry::log::chain;
use crate::tls;

/// Only proxy and authorize look at them; elsewhere the files need not be there.
pub fn downstream_mtls(
    load: &mut Load<'_>,
    root: Section<'_>,
    services: &Services,
) -> Option<DownstreamMtls> {
    if !services.contains(Service::Proxy) && !services.contains(Service::Authorize) {
        return None;
    }
    let section = root.section(load, "downstream_mtls", "downstream_mtls.")?;
    if !section.has("ca") && !section.has("ca_file") {
        for name in ["ca", "ca_file"] {
            if let Some(place) = section.place(name).filter(|_| section.is_empty(name)) {
                // Whoever wrote the key wants certificates asked for.
                load.invalid(place, format!("`downstream_mtls.{name}` is empty"));
                return None;
            }
        }
        let place = section.place.cloned();
        let mut diagnostic = Diagnostic::warning(
            code::MISSING_KEY,
            "`downstream_mtls` has no `ca`: certificates of clients are not asked for",
        );
        diagnostic.place = place;
        load.say(diagnostic);
        return None;
    }
    for (inline, file) in [("ca", "ca_file"), ("crl", "crl_file")] {
        if let (Some(_), Some(node)) = (section.node(inline), section.node(file)) {
            load.say(
                Diagnostic::error(
                    code::CONFLICT,
                    format!("`downstream_mtls.{inline}` and `{file}` can't both be set"),
                )
                .at(&node.place),
            );
        }
    }
    let roots: Vec<_> = section
        .pem(load, "ca", "ca_file")
        .iter()
        .filter_map(|pem| authority_list(load, pem))
        .flatten()
        .collect();
    let mut revocation_lists = Vec::new();
    for pem in section.pem(load, "crl", "crl_file") {
        let parsed: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(&pem.bytes).collect();
        match parsed {
            Ok(lists) if !lists.is_empty() => {
                revocation_lists.extend(lists.into_iter().map(|list| list.as_ref().to_vec()));
            }
            _ => load.say(
                Diagnostic::error(
                    code::CERTIFICATE,
                    format!("there is no sound revocation list in {}", pem.origin),
                )
                .at(&pem.place),
            ),
        }
    }
    if !roots.is_empty()
        && let Err(error) = tls::require_clients_of(&roots, &revocation_lists)
    {
        let mut diagnostic = Diagnostic::error(
            code::CERTIFICATE,
            format!("`downstream_mtls`: {}", chain(&error)),
        );
        diagnostic.place = section.place.cloned();
        load.say(diagnostic);
    }
    let enforcement = section.choice(
        load,
        "enforcement",
        &[
            (
                "policy_with_default_deny",
                MtlsEnforcement::PolicyWithDefaultDeny,
            ),
            ("policy", MtlsEnforcement::Policy),
            ("reject_connection", MtlsEnforcement::RejectConnection),
        ],
    );
    let depth = section
        .number::<usize>(load, "max_verify_depth")
        .map_or(1, |depth| depth.value);
    Some(DownstreamMtls {
        roots,
        revocation_lists,
        enforcement: enforcement.unwrap_or(MtlsEnforcement::PolicyWithDefaultDeny),
        subject_alt_names: subject_alt_names(load, section),
        max_depth: (depth > 0).then_some(depth),
    })
}

fn subject_alt_names(load: &mut Load<'_>, section: Section<'_>) -> Vec<SubjectAltNameRule> {
    let Some(node) = section.node("match_subject_alt_names") else {
        return Vec::new();
    };
    let Value::List(items) = &node.value else {
        load.invalid(&node.place, "`downstream_mtls.match_subject_alt_names` must be a list of one-key maps such as `dns: …`");
        return Vec::new();
    };
    let mut rules = Vec::new();
    for item in items {
        let entry = match &item.value {
            Value::Map(map) => map.entries.first().filter(|_| map.entries.len() == 1),
            _ => None,
        };
        let Some((name, pattern)) = entry.and_then(|(name, node)| Some((name, scalar(node)?)))
        else {
            load.invalid(
                &item.place,
                "expected one key and a pattern, such as `dns: '.*\\.corp\\.test'`",
            );
            continue;
        };
        let kind = match name.value.to_ascii_lowercase().as_str() {
            "dns" => SubjectAltNameKind::Dns,
            "email" => SubjectAltNameKind::Email,
            "uri" => SubjectAltNameKind::Uri,
            "ip_address" => SubjectAltNameKind::IpAddress,
            "user_principal_name" => SubjectAltNameKind::UserPrincipalName,
            _ => {
                load.say(
                    Diagnostic::error(
                        code::INVALID_VALUE,
                        format!("there is no kind of name `{}`", name.value),
                    )
                    .at(&name.place)
                    .help("kinds are dns, email, uri, ip_address and user_principal_name"),
                );
                continue;
            }
        };
        if let Some(pattern) = whole_match(load, "match_subject_alt_names", &pattern) {
            rules.push(SubjectAltNameRule { kind, pattern });
        }
    }
    rules
}
