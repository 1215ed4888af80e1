//! TLS towards the upstream.

use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::super::super::diagnostic::{Diagnostic, code};
use super::super::super::route::{ClientIdentity, CustomRoots, UpstreamTls, UpstreamVerification};
use super::super::certificates::{authority_list, certificate_list, private_key};
use super::super::reader::{Load, Section};

pub fn upstream_tls(load: &mut Load<'_>, section: Section<'_>) -> UpstreamTls {
    let skip = section.flag(load, "tls_skip_verify").unwrap_or(false);
    if skip && let Some(node) = section.node("tls_skip_verify") {
        load.say(
            Diagnostic::note(
                code::INSECURE,
                "the upstream's certificate is not verified on this route",
            )
            .at(&node.place),
        );
    }
    let name = section.text(load, "tls_upstream_server_name");
    let old_name = section.text(load, "tls_server_name");
    let server_name = name.or(old_name);
    if let Some(name) = &server_name
        && ServerName::try_from(name.value.as_str()).is_err()
    {
        load.invalid(
            &name.place,
            format!(
                "`tls_upstream_server_name`: `{}` is no name that a certificate can have",
                name.value
            ),
        );
    }
    // Inline first; only one of the two is used.
    let custom = section
        .pem(load, "tls_custom_ca", "tls_custom_ca_file")
        .into_iter()
        .next();
    UpstreamTls {
        verification: if skip {
            UpstreamVerification::Skip
        } else {
            UpstreamVerification::Verify
        },
        server_name: server_name.map(|name| name.value),
        custom_roots: custom.and_then(|pem| {
            Some(CustomRoots {
                certificates: authority_list(load, &pem)?,
                origin: pem.origin,
            })
        }),
        client: client(load, section),
    }
}

fn client(load: &mut Load<'_>, section: Section<'_>) -> Option<Arc<ClientIdentity>> {
    let cert = section
        .pem(load, "tls_client_cert", "tls_client_cert_file")
        .into_iter()
        .next();
    let key = section
        .pem(load, "tls_client_key", "tls_client_key_file")
        .into_iter()
        .next();
    let has = |name: &str| section.has(name);
    let has_cert = has("tls_client_cert") || has("tls_client_cert_file");
    let has_key = has("tls_client_key") || has("tls_client_key_file");
    if has_cert != has_key {
        let (have, lack) = if has_cert {
            ("tls_client_cert", "tls_client_key")
        } else {
            ("tls_client_key", "tls_client_cert")
        };
        let mut diagnostic = Diagnostic::error(
            code::MISSING_KEY,
            format!("`{have}` is set, but `{lack}` is not"),
        );
        if let Some(place) = section
            .place(have)
            .or_else(|| section.place(&format!("{have}_file")))
        {
            diagnostic = diagnostic.at(place);
        }
        load.say(diagnostic);
        return None;
    }
    let (cert, key_pem) = (cert?, key?);
    let chain = certificate_list(load, &cert)?;
    let key = private_key(load, &key_pem)?;
    let matches = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
        .map(|signer| rustls::sign::CertifiedKey::new(chain.clone(), signer))
        .is_ok_and(|pair| {
            !matches!(
                pair.keys_match(),
                Err(rustls::Error::InconsistentKeys(
                    rustls::InconsistentKeys::KeyMismatch
                ))
            )
        });
    if !matches {
        load.say(
            Diagnostic::error(
                code::CERTIFICATE,
                format!(
                    "the key in {} does not belong to the certificate in {}",
                    key_pem.origin, cert.origin
                ),
            )
            .at(&key_pem.place),
        );
        return None;
    }
    Some(Arc::new(ClientIdentity { chain, key }))
}
