//! Shared secret, cookie secret, storage keys, signing keys.

use std::sync::{Arc, OnceLock};

use super::super::diagnostic::{Diagnostic, code};
use super::super::options::{Secrets, ServerCertificate, Service, Services};
use super::super::place::At;
use super::super::source::Value;
use super::certificates;
use super::reader::{Load, Section, scalar};
use super::services::serves_web;
use crate::crypto::keys::{SecretKey, SigningKeys, is_published};

/// What a process makes for itself when it is not configured, once: reloading the configuration
/// must not sign people out who are in the middle of signing in.
pub struct ProcessSecrets {
    random: SecretKey,
    self_signed: OnceLock<Option<Arc<ServerCertificate>>>,
}

impl std::fmt::Debug for ProcessSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProcessSecrets(…)")
    }
}

impl Default for ProcessSecrets {
    fn default() -> Self {
        Self {
            random: SecretKey::random(),
            self_signed: OnceLock::new(),
        }
    }
}

impl ProcessSecrets {
    /// `None` if the crypto library fails.
    pub(super) fn self_signed(&self) -> Option<Arc<ServerCertificate>> {
        self.self_signed
            .get_or_init(certificates::self_signed)
            .clone()
    }
}

pub fn secrets(load: &mut Load<'_>, root: Section<'_>, services: &Services) -> Option<Secrets> {
    let needs_cookie = serves_web(services);
    let shared = keys(load, root, "shared_secret", Use::Needed);
    let cookie = keys(load, root, "cookie_secret", Use::where_(needs_cookie));
    let needs_storage = services.contains(Service::Databroker);
    let storage = keys(
        load,
        root,
        "databroker_storage_keys",
        Use::where_(needs_storage),
    );
    if shared.broken || cookie.broken || storage.broken {
        return None;
    }
    let random = load.process.random.clone();
    let shared = filled(load, root, services, "shared_secret", shared, &random);
    let cookie = if needs_cookie {
        filled(load, root, services, "cookie_secret", cookie, &random)
    } else if cookie.keys.is_empty() {
        // Nobody here uses it.
        Some(vec![random])
    } else {
        Some(cookie.keys)
    };
    Some(Secrets {
        shared: shared?,
        cookie: cookie?,
        storage: storage.keys,
    })
}

/// Signing keys; without configured ones those derived from the shared secrets, so that a rotation
/// of these publishes the next key before it signs.
pub fn signing_keys(
    load: &mut Load<'_>,
    root: Section<'_>,
    secrets: Option<&Secrets>,
    services: &Services,
) -> Option<Arc<SigningKeys>> {
    let mut sets = Vec::new();
    let mut broken = false;
    let signs = !services.iter().eq([Service::Databroker]);
    for text in texts(load, root, "signing_key", Use::where_(signs)) {
        match SigningKeys::from_text(&text.value) {
            Ok(keys) => {
                if keys.any_published() {
                    load.say(published("signing_key", &text));
                }
                sets.push(keys);
            }
            Err(error) => {
                broken = true;
                load.say(
                    Diagnostic::error(code::SECRET, format!("`signing_key`: {error}")).at(&text.place).help(
                        "make one with: openssl ecparam -genkey -name prime256v1 -noout | base64 -w0",
                    ),
                );
            }
        }
    }
    if broken {
        return None;
    }
    let keys = match SigningKeys::join(sets) {
        Some(keys) => Some(keys),
        // What is wrong with the secrets has been told.
        None => SigningKeys::join(secrets?.shared.iter().filter_map(SigningKeys::derived_from)),
    };
    if keys.is_none() {
        load.say(
            Diagnostic::error(
                code::SECRET,
                "no signing key can be derived from `shared_secret`",
            )
            .help("set `signing_key`"),
        );
    }
    keys.map(Arc::new)
}

struct Keys {
    keys: Vec<SecretKey>,
    broken: bool,
}

/// Whether this process uses a secret. One that it does not use may be in a file that is not
/// there; where it is there it counts for the checksum, which all processes share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Needed,
    IfThere,
}

impl Use {
    fn where_(needed: bool) -> Self {
        if needed { Self::Needed } else { Self::IfThere }
    }
}

fn keys(load: &mut Load<'_>, root: Section<'_>, name: &str, used: Use) -> Keys {
    let mut found = Keys {
        keys: Vec::new(),
        broken: false,
    };
    for text in texts(load, root, name, used) {
        match SecretKey::from_base64(&text.value) {
            Ok(key) => {
                if is_published(&key) {
                    load.say(published(name, &text));
                }
                found.keys.push(key);
            }
            Err(error) => {
                found.broken = true;
                load.say(
                    Diagnostic::error(code::SECRET, format!("`{name}`: {error}")).at(&text.place),
                );
            }
        }
    }
    // An unreadable file has been told already, but nothing random must stand in for it.
    let file = format!("{name}_file");
    found.broken |=
        used == Use::Needed && found.keys.is_empty() && (root.has(name) || root.has(&file));
    found
}

/// The key's entries: a text, texts with commas or lines, or a list.
fn texts(load: &mut Load<'_>, root: Section<'_>, name: &str, used: Use) -> Vec<At<String>> {
    let separators = if name == "signing_key" {
        &[','][..]
    } else {
        &[',', '\n'][..]
    };
    let list = match root.node(name).map(|node| &node.value) {
        Some(Value::List(items)) => items.iter().filter_map(scalar).collect(),
        _ => Vec::new(),
    };
    let file = format!("{name}_file");
    if !list.is_empty() && !root.has(&file) {
        return list;
    }
    let absent = |path: At<String>| std::fs::File::open(&path.value).is_err();
    if used == Use::IfThere && root.text(load, &file).is_some_and(absent) {
        return Vec::new();
    }
    let Some(text) = root.text_or_file(load, name) else {
        return Vec::new();
    };
    text.value
        .split(separators)
        .map(str::trim)
        .filter(|piece| !piece.is_empty())
        .map(|piece| At::new(piece.to_owned(), text.place.clone()))
        .collect()
}

fn filled(
    load: &mut Load<'_>,
    root: Section<'_>,
    services: &Services,
    name: &str,
    found: Keys,
    random: &SecretKey,
) -> Option<Vec<SecretKey>> {
    if !found.keys.is_empty() {
        return Some(found.keys);
    }
    if services.is_all() {
        load.say(
            Diagnostic::warning(
                code::RANDOM_SECRET,
                format!("`{name}` is not set: this process makes a random one, so a restart signs everybody out"),
            )
            .help("make one with: head -c32 /dev/urandom | base64"),
        );
        return Some(vec![random.clone()]);
    }
    let mut diagnostic = Diagnostic::error(
        code::MISSING_KEY,
        format!(
            "`{name}` must be set, and the same for all services, as this process runs only {}",
            names(services)
        ),
    )
    .help("make one with: head -c32 /dev/urandom | base64");
    if let Some(place) = root.place("services") {
        diagnostic = diagnostic.at(place);
    }
    load.say(diagnostic);
    None
}

fn names(services: &Services) -> String {
    services
        .iter()
        .map(Service::name)
        .collect::<Vec<_>>()
        .join(" and ")
}

fn published(name: &str, text: &At<String>) -> Diagnostic {
    Diagnostic::warning(
        code::PUBLIC_SECRET,
        format!("`{name}` IS PUBLISHED on a web page: EVERYBODY KNOWS IT and can sign in as anyone"),
    )
    .at(&text.place)
    .help("never use it beyond a trial on your own machine; make your own with: head -c32 /dev/urandom | base64")
}
