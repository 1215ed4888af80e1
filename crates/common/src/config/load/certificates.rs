//! Certificates and private keys: parsed, matched, named.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::super::diagnostic::{Diagnostic, code};
use super::super::options::{Secrets, ServerCertificate, ServerTls, Services};
use super::super::place::{At, Place};
use super::super::source::Value;
use super::reader::{Load, Pem, Section, decode_pem};
use super::services::{grpc_in_clear_text, serves_web};
use crate::tls::derived::DerivedAuthority;

/// The certificates that listeners choose from.
#[derive(Default)]
pub struct Shown {
    /// In the order of the configuration.
    configured: Vec<Arc<ServerCertificate>>,
    derived: Option<Arc<ServerCertificate>>,
}

/// Reads them. `None` when one is no good. Where no listener speaks TLS, none is read: their files
/// may well not be there.
pub fn shown(
    load: &mut Load<'_>,
    root: Section<'_>,
    services: &Services,
    derived: Option<&Derived>,
) -> Option<Shown> {
    let mut configured = Vec::new();
    let public = serves_web(services) && !root.flag(load, "insecure_server").unwrap_or(false);
    if !public && grpc_in_clear_text(load, root, services) {
        return Some(Shown::default());
    }
    let errors = load
        .diagnostics
        .count(super::super::diagnostic::Severity::Error);
    for (cert, key) in pairs(load, root) {
        configured.extend(server_certificate(load, &cert, &key));
    }
    if load
        .diagnostics
        .count(super::super::diagnostic::Severity::Error)
        > errors
    {
        return None;
    }
    Some(Shown {
        configured,
        derived: derived.map(|derived| Arc::clone(&derived.server)),
    })
}

impl Shown {
    /// For the public listener. Where nothing is configured there is a self-signed one, so that
    /// TLS comes up at all.
    pub fn public(
        &self,
        load: &mut Load<'_>,
        root: Section<'_>,
        services: &Services,
    ) -> Option<ServerTls> {
        if root.flag(load, "insecure_server").unwrap_or(false) {
            return Some(ServerTls::Off);
        }
        if self.configured.is_empty() && serves_web(services) {
            load.say(
                Diagnostic::warning(
                    code::SELF_SIGNED,
                    "no certificate is configured: browsers will warn of the self-signed one that is used instead",
                )
                .help("set `certificate_file` and `certificate_key_file`, or `insecure_server: true` behind something that does TLS"),
            );
        }
        let mut list = self.configured.clone();
        if list.is_empty() {
            list.push(load.process.self_signed()?);
        }
        list.extend(self.derived.clone());
        Some(ServerTls::Certificates(list))
    }

    /// For the gRPC listener. No service trusts a self-signed one, so its lack is told.
    pub fn grpc(&self, load: &mut Load<'_>) -> Option<Vec<Arc<ServerCertificate>>> {
        let mut list = self.configured.clone();
        list.extend(self.derived.clone());
        if list.is_empty() {
            load.say(
                Diagnostic::warning(
                    code::SELF_SIGNED,
                    "no certificate is configured: other services will not trust the self-signed one that gRPC uses instead",
                )
                .help("set `certificate_file` and `certificate_key_file`, or `tls_derive`, or `grpc_insecure: true` on a network of your own"),
            );
            list.push(load.process.self_signed()?);
        }
        Some(list)
    }
}

/// What `tls_derive` gives.
pub struct Derived {
    server: Arc<ServerCertificate>,
    /// Of every shared secret, the newest first: peers may still have the one before.
    pub authorities: Vec<CertificateDer<'static>>,
}

pub fn derived(
    load: &mut Load<'_>,
    root: Section<'_>,
    secrets: Option<&Secrets>,
) -> Option<Derived> {
    let name = root.text(load, "tls_derive")?;
    let host = name.value.strip_prefix("*.").unwrap_or(&name.value);
    if !matches!(ServerName::try_from(host), Ok(ServerName::DnsName(_))) {
        load.say(
            Diagnostic::error(
                code::INVALID_VALUE,
                format!("`tls_derive`: `{}` is no DNS name", name.value),
            )
            .at(&name.place)
            .help("set it to the name that the service URLs have, such as databroker.int.example.com, or to the one in `override_certificate_name`"),
        );
        return None;
    }
    let derive = || {
        let all = secrets?.shared.iter().map(DerivedAuthority::new);
        let all: Vec<_> = all.collect::<Result<_, _>>().ok()?;
        let server = all.first()?.server(&name.value).ok()?;
        Some(Derived {
            server: Arc::new(named(server, "`tls_derive`".to_owned(), true)?),
            authorities: all.iter().map(|it| it.certificate().clone()).collect(),
        })
    };
    let derived = derive();
    // Without a secret there is nothing more to say.
    if derived.is_none() && secrets.is_some() {
        load.invalid(&name.place, "`tls_derive`: no certificate can be derived");
    }
    derived
}

/// Every configured pair, files first named first chosen.
fn pairs(load: &mut Load<'_>, root: Section<'_>) -> Vec<(Pem, Pem)> {
    let mut pairs = Vec::new();
    for (cert, key, file) in [
        ("certificate", "certificate_key", false),
        ("certificate_file", "certificate_key_file", true),
    ] {
        match (root.text(load, cert), root.text(load, key)) {
            (Some(cert), Some(key)) => {
                let cert = if file {
                    from_file(load, cert)
                } else {
                    inline(load, "certificate", cert)
                };
                let key = if file {
                    from_file(load, key)
                } else {
                    inline(load, "certificate_key", key)
                };
                pairs.extend(cert.zip(key));
            }
            (None, None) => {}
            (Some(one), None) => load.say(incomplete(cert, key, &one.place)),
            (None, Some(one)) => load.say(incomplete(key, cert, &one.place)),
        }
    }
    let Some(node) = root.node("certificates") else {
        return pairs;
    };
    let Value::List(items) = &node.value else {
        root.wrong::<()>(load, "certificates", node);
        return pairs;
    };
    for item in items {
        let Value::Map(map) = &item.value else {
            root.wrong::<()>(load, "certificates", item);
            continue;
        };
        let section = Section {
            map,
            keys: super::super::keys::CERTIFICATE,
            prefix: "certificates.",
            place: Some(&item.place),
        };
        match (section.text(load, "cert"), section.text(load, "key")) {
            (Some(cert), Some(key)) => {
                let cert = path_or_inline(load, cert);
                let key = path_or_inline(load, key);
                pairs.extend(cert.zip(key));
            }
            _ => load.say(
                Diagnostic::error(
                    code::MISSING_KEY,
                    "an entry of `certificates` needs `cert` and `key`",
                )
                .at(&item.place),
            ),
        }
    }
    pairs
}

fn incomplete(have: &str, lack: &str, place: &Place) -> Diagnostic {
    Diagnostic::error(
        code::MISSING_KEY,
        format!("`{have}` is set, but `{lack}` is not"),
    )
    .at(place)
}

fn from_file(load: &mut Load<'_>, path: At<String>) -> Option<Pem> {
    let bytes = load.read(&path)?;
    Some(Pem {
        bytes,
        origin: path.value,
        place: path.place,
    })
}

fn inline(load: &mut Load<'_>, name: &str, text: At<String>) -> Option<Pem> {
    let Some(bytes) = decode_pem(&text.value) else {
        load.say(
            Diagnostic::error(
                code::CERTIFICATE,
                format!("`{name}` is neither PEM nor base64 of PEM"),
            )
            .at(&text.place)
            .help(
                "set it to the output of `base64 -w0 FILE`, or name the file under the `_file` key",
            ),
        );
        return None;
    };
    Some(Pem {
        bytes,
        origin: format!("`{name}`"),
        place: text.place,
    })
}

fn path_or_inline(load: &mut Load<'_>, text: At<String>) -> Option<Pem> {
    match decode_pem(&text.value) {
        Some(bytes) => Some(Pem {
            bytes,
            origin: "`certificates`".to_owned(),
            place: text.place,
        }),
        None => from_file(load, text),
    }
}

pub fn server_certificate(
    load: &mut Load<'_>,
    cert: &Pem,
    key: &Pem,
) -> Option<Arc<ServerCertificate>> {
    let chain = certificate_list(load, cert)?;
    let private = private_key(load, key)?;
    let Ok(signer) = any_supported_type(&private) else {
        load.say(
            Diagnostic::error(
                code::CERTIFICATE,
                format!("{}: this kind of private key is not supported", key.origin),
            )
            .at(&key.place),
        );
        return None;
    };
    let certified = CertifiedKey::new(chain, signer);
    if let Err(error) = certified.keys_match()
        && !matches!(
            error,
            rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)
        )
    {
        load.say(
            Diagnostic::error(
                code::CERTIFICATE,
                format!(
                    "the key in {} does not belong to the certificate in {}",
                    key.origin, cert.origin
                ),
            )
            .at(&key.place)
            .help("give the key that the certificate was made for"),
        );
        return None;
    }
    if let Some(certificate) = named(certified, cert.origin.clone(), false) {
        Some(Arc::new(certificate))
    } else {
        load.say(damaged(cert));
        None
    }
}

fn named(key: CertifiedKey, origin: String, self_signed: bool) -> Option<ServerCertificate> {
    let (names, not_after) = {
        let (_, leaf) = X509Certificate::from_der(key.cert.first()?).ok()?;
        (dns_names(&leaf), leaf.validity().not_after.timestamp())
    };
    Some(ServerCertificate {
        key: Arc::new(key),
        names,
        self_signed,
        not_after,
        origin,
    })
}

/// Names and addresses of the certificate; its common name only when it has no others.
fn dns_names(leaf: &X509Certificate<'_>) -> Vec<String> {
    let alternatives = leaf.subject_alternative_name().ok().flatten();
    let mut names: Vec<String> = alternatives
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes)
                    .ok()
                    .map(|b| std::net::Ipv4Addr::from(b).to_string()),
                _ => <[u8; 16]>::try_from(*bytes)
                    .ok()
                    .map(|b| std::net::Ipv6Addr::from(b).to_string()),
            },
            _ => None,
        })
        .collect();
    if names.is_empty() {
        let common = leaf.subject().iter_common_name().next();
        names.extend(
            common
                .and_then(|name| name.as_str().ok())
                .map(str::to_ascii_lowercase),
        );
    }
    names
}

/// Every certificate of a PEM text; at least one.
pub fn certificate_list(load: &mut Load<'_>, pem: &Pem) -> Option<Vec<CertificateDer<'static>>> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem.bytes).collect();
    let sound = |der: &CertificateDer<'_>| X509Certificate::from_der(der).is_ok();
    match parsed {
        Ok(list) if !list.is_empty() && list.iter().all(sound) => Some(list),
        Ok(list) if list.is_empty() => {
            load.say(
                Diagnostic::error(
                    code::CERTIFICATE,
                    format!("there is no certificate in {}", pem.origin),
                )
                .at(&pem.place),
            );
            None
        }
        _ => {
            load.say(damaged(pem));
            None
        }
    }
}

fn damaged(pem: &Pem) -> Diagnostic {
    Diagnostic::error(
        code::CERTIFICATE,
        format!("a certificate in {} is damaged", pem.origin),
    )
    .at(&pem.place)
}

/// The first private key of a PEM text.
pub fn private_key(load: &mut Load<'_>, pem: &Pem) -> Option<PrivateKeyDer<'static>> {
    if let Ok(key) = PrivateKeyDer::from_pem_slice(&pem.bytes) {
        Some(key)
    } else {
        load.say(
            Diagnostic::error(
                code::CERTIFICATE,
                format!(
                    "there is no private key in {}, or it is damaged or encrypted",
                    pem.origin
                ),
            )
            .at(&pem.place),
        );
        None
    }
}

/// Trust of our own beside the system's: `certificate_authority` and `…_file`.
pub fn authorities(load: &mut Load<'_>, root: Section<'_>) -> Vec<CertificateDer<'static>> {
    let pems = root.pem(load, "certificate_authority", "certificate_authority_file");
    pems.iter()
        .filter_map(|pem| authority_list(load, pem))
        .flatten()
        .collect()
}

/// A [`certificate_list`] of which each can be an authority.
pub fn authority_list(load: &mut Load<'_>, pem: &Pem) -> Option<Vec<CertificateDer<'static>>> {
    let list = certificate_list(load, pem)?;
    let mut roots = RootCertStore::empty();
    for (number, certificate) in (1..).zip(&list) {
        if let Err(error) = roots.add(certificate.clone()) {
            load.say(
                Diagnostic::error(
                    code::CERTIFICATE,
                    format!(
                        "certificate {number} in {} cannot serve as an authority: {error}",
                        pem.origin
                    ),
                )
                .at(&pem.place),
            );
            return None;
        }
    }
    Some(list)
}

/// A certificate for every name and no trust, so that TLS comes up at all.
pub(super) fn self_signed() -> Option<Arc<ServerCertificate>> {
    let names = vec!["postern.invalid".to_owned(), "localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).ok()?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let signer = any_supported_type(&key).ok()?;
    let key = CertifiedKey::new(vec![made.cert.der().clone()], signer);
    named(key, "self-signed".to_owned(), true).map(Arc::new)
}
