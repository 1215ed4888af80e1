//! Reads typed values out of the tree and tells what does not fit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use twox_hash::XxHash3_64;
use url::Url;

use super::super::diagnostic::{Diagnostic, Diagnostics, code};
use super::super::keys::{self, Key, Kind, State};
use super::super::place::{At, Place};
use super::super::source::{Environment, Look, Map, Node, Value};
use super::scalars::{DurationError, parse_bool, parse_duration};
use super::secrets::ProcessSecrets;

/// One run of loading: what was found, and what there is to say about it.
pub struct Load<'a> {
    pub diagnostics: Diagnostics,
    /// Every file that was read or should have been; they are watched.
    pub files: Vec<PathBuf>,
    /// What the files held, for the checksum.
    pub digests: BTreeMap<String, u64>,
    pub process: &'a ProcessSecrets,
    pub environment: &'a Environment,
}

impl Load<'_> {
    pub fn say(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    /// A value is no good.
    pub fn invalid(&mut self, place: &Place, message: impl Into<String>) -> &mut Self {
        self.say(Diagnostic::error(code::INVALID_VALUE, message).at(place));
        self
    }

    /// Reads a file that the configuration names.
    pub fn read(&mut self, path: &At<String>) -> Option<Vec<u8>> {
        let file = PathBuf::from(&path.value);
        self.files.push(file.clone());
        match read_bounded(&file) {
            Ok(content) => {
                self.digests
                    .insert(path.value.clone(), XxHash3_64::oneshot(&content));
                Some(content)
            }
            Err(error) => {
                let mut diagnostic =
                    Diagnostic::error(code::FILE, unreadable(&file, &error)).at(&path.place);
                if let Some(help) = remedy(&file, &error) {
                    diagnostic = diagnostic.help(help);
                }
                self.say(diagnostic);
                None
            }
        }
    }

    /// The same as text, without the one newline that editors put at the end.
    pub fn read_text(&mut self, path: &At<String>) -> Option<String> {
        let Ok(text) = String::from_utf8(self.read(path)?) else {
            self.say(
                Diagnostic::error(code::FILE, format!("{} is not text", path.value))
                    .at(&path.place),
            );
            return None;
        };
        let trimmed = text
            .strip_suffix('\n')
            .map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t));
        Some(trimmed.to_owned())
    }
}

/// Larger files are no configuration.
const MAX_FILE: u64 = 16 * 1024 * 1024;

pub fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    use std::os::unix::fs::FileTypeExt as _;
    // Nobody may ever write to it. Those without a name, such as a shell's `<(…)`, have a writer.
    if std::fs::metadata(path)?.file_type().is_fifo() && path.canonicalize().is_ok() {
        let why = "it is a named pipe, not a file";
        return Err(std::io::Error::other(why));
    }
    let mut content = Vec::new();
    let size = std::fs::File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut content)?;
    if size as u64 > MAX_FILE {
        return Err(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            "larger than 16 MiB",
        ));
    }
    Ok(content)
}

/// What happened, and who may read the file if that is the trouble.
pub fn unreadable(path: &Path, error: &std::io::Error) -> String {
    let shown = path.display();
    match error.kind() {
        std::io::ErrorKind::NotFound => format!("there is no file {shown}"),
        std::io::ErrorKind::PermissionDenied => match owner(path) {
            Some((uid, mode)) => format!(
                "permission denied for {shown}: it belongs to user {uid} with mode {mode:04o}, and this process is user {}",
                own_uid().map_or_else(|| "unknown".to_owned(), |uid| uid.to_string())
            ),
            None => format!("permission denied for {shown}, or for a directory on the way to it"),
        },
        _ => format!("cannot read {shown}: {error}"),
    }
}

/// The command that repairs it.
pub fn remedy(path: &Path, error: &std::io::Error) -> Option<String> {
    let (owner, _) =
        owner(path).filter(|_| error.kind() == std::io::ErrorKind::PermissionDenied)?;
    Some(format!(
        "chmod 644 {}, or run this process as user {owner}",
        path.display()
    ))
}

#[cfg(unix)]
fn owner(path: &Path) -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.uid(), metadata.mode() & 0o7777))
}

/// A process owns its own entry in /proc.
#[cfg(unix)]
fn own_uid() -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self")
        .ok()
        .map(|metadata| metadata.uid())
}

/// A map of the configuration and the keys that may stand in it.
#[derive(Clone, Copy)]
pub struct Section<'a> {
    pub map: &'a Map,
    pub keys: &'static [Key],
    /// For messages: empty at the top, else `redirect.`.
    pub prefix: &'static str,
    /// Where the whole of it stands, for what is missing.
    pub place: Option<&'a Place>,
}

impl<'a> Section<'a> {
    /// What stands under a key; nothing counts as absent.
    pub fn node(&self, name: &str) -> Option<&'a Node> {
        debug_assert!(
            keys::find(self.keys, name).is_some(),
            "{name} is not in the table"
        );
        self.map.get(name).filter(|node| !node.is_null())
    }

    /// Where a key stands, else where it is missing.
    pub fn place(&self, name: &str) -> Option<&'a Place> {
        self.map.key(name).map(|key| &key.place).or(self.place)
    }

    /// Empty text counts as absent, as templates leave it behind.
    pub fn has(&self, name: &str) -> bool {
        self.node(name).is_some() && !self.is_empty(name)
    }

    pub fn is_empty(&self, name: &str) -> bool {
        let text = self.node(name).and_then(scalar);
        text.is_some_and(|text| text.value.is_empty())
    }

    /// The scalar's text as written. Empty text counts as absent.
    pub fn text(&self, load: &mut Load<'_>, name: &str) -> Option<At<String>> {
        self.text_or_empty(load, name)
            .filter(|text| !text.value.is_empty())
    }

    pub fn text_or_empty(&self, load: &mut Load<'_>, name: &str) -> Option<At<String>> {
        let node = self.node(name)?;
        scalar(node).or_else(|| self.wrong(load, name, node))
    }

    pub fn flag(&self, load: &mut Load<'_>, name: &str) -> Option<bool> {
        let text = self.text(load, name)?;
        let value = parse_bool(&text.value);
        if value.is_none() {
            load.invalid(
                &text.place,
                format!("`{}{name}` must be true or false", self.prefix),
            );
        }
        value
    }

    pub fn number<T: FromStr>(&self, load: &mut Load<'_>, name: &str) -> Option<At<T>> {
        let text = self.text(load, name)?;
        if let Ok(value) = text.value.trim().parse() {
            Some(At::new(value, text.place))
        } else {
            load.invalid(
                &text.place,
                format!(
                    "`{}{name}` must be a whole number in its range",
                    self.prefix
                ),
            );
            None
        }
    }

    pub fn duration(&self, load: &mut Load<'_>, name: &str) -> Option<Duration> {
        let text = self.text(load, name)?;
        match parse_duration(&text.value) {
            Ok(duration) => Some(duration),
            Err(error) => {
                let mut diagnostic = Diagnostic::error(
                    code::INVALID_VALUE,
                    format!("`{}{name}`: {error}", self.prefix),
                )
                .at(&text.place);
                diagnostic = match error {
                    DurationError::NoUnit => diagnostic.help(format!(
                        "write `{}s` for seconds or `{}ms` for milliseconds",
                        text.value, text.value
                    )),
                    DurationError::Unit(unit) if unit == "d" => {
                        diagnostic.help("there are no days; write hours, such as 24h")
                    }
                    _ => diagnostic
                        .help("write it like 300ms, 1m30s or 1h; units are ns, us, ms, s, m and h"),
                };
                load.say(diagnostic);
                None
            }
        }
    }

    pub fn url(&self, load: &mut Load<'_>, name: &str) -> Option<At<Url>> {
        let text = self.text(load, name)?;
        parse_url(load, &format!("{}{name}", self.prefix), &text)
            .map(|url| At::new(url, text.place))
    }

    /// A list; a single text is split at commas.
    pub fn list(&self, load: &mut Load<'_>, name: &str) -> Option<Vec<At<String>>> {
        let node = self.node(name)?;
        match &node.value {
            Value::Scalar(_) => Some(split_commas(node)),
            Value::List(items) => {
                let texts: Vec<_> = items
                    .iter()
                    .filter_map(|item| scalar(item).or_else(|| self.wrong(load, name, item)))
                    .collect();
                Some(texts)
            }
            _ => self.wrong(load, name, node),
        }
    }

    /// A list of which each item is taken as it is, commas included.
    pub fn items(&self, load: &mut Load<'_>, name: &str) -> Option<Vec<At<String>>> {
        let node = self.node(name)?;
        match scalar(node) {
            Some(text) => Some(vec![text]),
            None => self.list(load, name),
        }
    }

    /// A map of names to texts, in the order of the text.
    pub fn pairs(&self, load: &mut Load<'_>, name: &str) -> Option<Vec<(At<String>, At<String>)>> {
        let node = self.node(name)?;
        let Value::Map(map) = &node.value else {
            return self.wrong(load, name, node);
        };
        let mut pairs = Vec::new();
        for (key, node) in &map.entries {
            let value = if node.is_null() {
                Some(At::new(String::new(), node.place.clone()))
            } else {
                scalar(node)
            };
            if let Some(value) = value.or_else(|| self.wrong(load, name, node)) {
                pairs.push((key.clone(), value));
            }
        }
        Some(pairs)
    }

    /// One of a few words, without case; with the name of the key in front too, as Pomerium's enums
    /// have it: `LOAD_BALANCING_POLICY_MAGLEV`.
    pub fn choice<T: Copy>(
        &self,
        load: &mut Load<'_>,
        name: &str,
        words: &[(&str, T)],
    ) -> Option<T> {
        let text = self.text(load, name)?;
        let written = text.value.to_ascii_lowercase();
        let written = written
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('_'))
            .unwrap_or(&written);
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == written) {
            return Some(*value);
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let mut diagnostic = Diagnostic::error(
            code::INVALID_VALUE,
            format!("`{}` is not a value of `{}{name}`", text.value, self.prefix),
        )
        .at(&text.place);
        diagnostic = match keys::nearest(written, known.iter().copied()) {
            Some(word) => diagnostic.help(format!("did you mean `{word}`?")),
            None => diagnostic.help(format!("it can be {}", known.join(", "))),
        };
        load.say(diagnostic);
        None
    }

    pub fn section(
        &self,
        load: &mut Load<'_>,
        name: &str,
        prefix: &'static str,
    ) -> Option<Section<'a>> {
        let node = self.node(name)?;
        let Some(Kind::Object(keys)) = keys::find(self.keys, name).map(|key| key.kind) else {
            return None;
        };
        match &node.value {
            Value::Map(map) => Some(Section {
                map,
                keys,
                prefix,
                place: self.place(name),
            }),
            _ => self.wrong(load, name, node),
        }
    }

    /// `NAME` or the content of `NAME_file`, which wins.
    pub fn text_or_file(&self, load: &mut Load<'_>, name: &str) -> Option<At<String>> {
        let file = format!("{name}_file");
        let Some(path) = self.text(load, &file) else {
            return self.text(load, name);
        };
        if let Some(inline) = self.node(name) {
            load.say(
                Diagnostic::warning(
                    code::CONFLICT,
                    format!("`{name}` is not used: `{file}` is set as well and wins"),
                )
                .at(&inline.place),
            );
        }
        let text = load.read_text(&path)?;
        if text.is_empty() {
            load.say(
                Diagnostic::error(code::FILE, format!("{} is empty", path.value)).at(&path.place),
            );
            return None;
        }
        Some(At::new(text, path.place))
    }

    /// PEM: `NAME` as base64 (or as it is), else the content of `NAME_file`. `label` tells which.
    pub fn pem(&self, load: &mut Load<'_>, inline: &str, file: &str) -> Vec<Pem> {
        let mut found = Vec::new();
        if let Some(text) = self.text(load, inline) {
            match decode_pem(&text.value) {
                Some(bytes) => found.push(Pem {
                    bytes,
                    origin: format!("`{}{inline}`", self.prefix),
                    place: text.place,
                }),
                None => {
                    load.say(
                        Diagnostic::error(
                            code::CERTIFICATE,
                            format!("`{}{inline}` is neither PEM nor base64 of PEM", self.prefix),
                        )
                        .at(&text.place)
                        .help(format!("set it to the output of `base64 -w0 FILE`, or name the file under `{}{file}`", self.prefix)),
                    );
                }
            }
        }
        if let Some(path) = self.text(load, file)
            && let Some(bytes) = load.read(&path)
        {
            found.push(Pem {
                bytes,
                origin: path.value,
                place: path.place,
            });
        }
        found
    }

    /// The error that something else stands here than what the key takes.
    pub fn wrong<T>(&self, load: &mut Load<'_>, name: &str, node: &Node) -> Option<T> {
        let wanted = keys::find(self.keys, name).map_or("something else", |key| key.kind.words());
        load.say(
            Diagnostic::error(
                code::WRONG_TYPE,
                format!(
                    "`{}{name}` takes {wanted}, but here is {}",
                    self.prefix,
                    node.kind()
                ),
            )
            .at(&node.place),
        );
        None
    }
}

/// PEM text and where it came from.
pub struct Pem {
    pub bytes: Vec<u8>,
    pub origin: String,
    pub place: Place,
}

pub fn decode_pem(text: &str) -> Option<Vec<u8>> {
    if text.contains("-----BEGIN ") {
        return Some(text.as_bytes().to_vec());
    }
    let packed: String = text.split_whitespace().collect();
    STANDARD
        .decode(packed)
        .ok()
        .filter(|bytes| bytes.windows(11).any(|window| window == b"-----BEGIN "))
}

pub fn scalar(node: &Node) -> Option<At<String>> {
    match &node.value {
        Value::Scalar(scalar) => Some(At::new(scalar.text.clone(), node.place.clone())),
        _ => None,
    }
}

/// Pieces of a text between commas, each with its own place.
fn split_commas(node: &Node) -> Vec<At<String>> {
    let Some(text) = scalar(node) else {
        return Vec::new();
    };
    text.value
        .split(',')
        .map(str::trim)
        .filter(|piece| !piece.is_empty())
        .map(|piece| At::new(piece.to_owned(), text.place.clone()))
        .collect()
}

pub fn parse_url(load: &mut Load<'_>, name: &str, text: &At<String>) -> Option<Url> {
    let mut complain = |message: String, help: &str| {
        load.say(
            Diagnostic::error(code::INVALID_VALUE, message)
                .at(&text.place)
                .help(help.to_owned()),
        );
    };
    let url = match Url::parse(text.value.trim()) {
        Ok(url) => url,
        Err(url::ParseError::RelativeUrlWithoutBase) => {
            complain(
                format!("`{name}` is no URL: it has no scheme"),
                "begin it with https:// or http://",
            );
            return None;
        }
        Err(error) => {
            complain(
                format!("`{name}` is no URL: {error}"),
                "write it like https://host.example.com",
            );
            return None;
        }
    };
    if !matches!(url.scheme(), "http" | "https") {
        complain(
            format!(
                "`{name}` must be an http or https URL, not {}",
                url.scheme()
            ),
            "begin it with https:// or http://",
        );
        return None;
    }
    if !url.username().is_empty() || url.password().is_some() {
        complain(
            format!("`{name}` must not carry a user name or password"),
            "leave out what stands before the @",
        );
        return None;
    }
    Some(url)
}

/// Tells about keys that are unknown, removed, not supported yet, or without effect.
pub fn check_keys(
    load: &mut Load<'_>,
    section: Section<'_>,
    elsewhere: &'static [Key],
    elsewhere_is: &str,
) {
    for (name, node) in &section.map.entries {
        let Some(key) = keys::find(section.keys, &name.value) else {
            load.say(unknown(section, name, elsewhere, elsewhere_is));
            continue;
        };
        let shown = format!("{}{}", section.prefix, key.name);
        if node.is_null() || is_default(key, node) {
            continue;
        }
        match key.state {
            State::Works => {}
            State::NotYet => load.say(
                Diagnostic::warning(
                    code::UNSUPPORTED,
                    format!("`{shown}` is not supported yet and has no effect"),
                )
                .at(&name.place),
            ),
            State::Refused(why) => load.say(
                Diagnostic::error(
                    code::UNSUPPORTED,
                    format!("`{shown}` is not supported yet, and {why}"),
                )
                .at(&name.place)
                .help("remove it to start without"),
            ),
            State::Ignored(why) => load.say(
                Diagnostic::note(
                    code::IGNORED,
                    format!("`{shown}` is accepted and has no effect: {why}"),
                )
                .at(&name.place),
            ),
            State::Removed(instead) => load.say(
                Diagnostic::error(
                    code::REMOVED_KEY,
                    format!("`{shown}` does not exist any more"),
                )
                .at(&name.place)
                .help(instead),
            ),
        }
        if matches!(key.state, State::Works) {
            check_nested(load, key, node);
        }
    }
}

fn check_nested(load: &mut Load<'_>, key: &'static Key, node: &Node) {
    let prefix: &'static str = match key.name {
        "redirect" => "redirect.",
        "response" => "response.",
        "runtime_flags" => "runtime_flags.",
        "downstream_mtls" => "downstream_mtls.",
        "circuit_breaker_thresholds" => "circuit_breaker_thresholds.",
        "certificates" => "certificates.",
        "rewrite_response_headers" => "rewrite_response_headers.",
        _ => "",
    };
    let mut check = |keys, map, place| {
        let section = Section {
            map,
            keys,
            prefix,
            place: Some(place),
        };
        check_keys(load, section, &[], "");
    };
    match (key.kind, &node.value) {
        (Kind::Object(keys), Value::Map(map)) => check(keys, map, &node.place),
        (Kind::Objects(keys), Value::List(items)) => {
            for item in items {
                if let Value::Map(map) = &item.value {
                    check(keys, map, &item.place);
                }
            }
        }
        _ => {}
    }
}

fn unknown(
    section: Section<'_>,
    name: &At<String>,
    elsewhere: &'static [Key],
    elsewhere_is: &str,
) -> Diagnostic {
    let diagnostic = Diagnostic::warning(
        code::UNKNOWN_KEY,
        format!(
            "there is no key `{}{}`; it has no effect",
            section.prefix, name.value
        ),
    )
    .at(&name.place);
    let nested = section.keys.iter().find_map(|key| match key.kind {
        Kind::Object(keys) if keys::find(keys, &name.value).is_some() => Some(key.name),
        _ => None,
    });
    if keys::find(elsewhere, &name.value).is_some() {
        diagnostic.help(format!("`{}` belongs {elsewhere_is}", name.value))
    } else if let Some(near) = keys::nearest(&name.value, section.keys.iter().map(|key| key.name)) {
        diagnostic.help(format!("did you mean `{near}`?"))
    } else if let Some(parent) = nested {
        diagnostic.help(format!("`{}` belongs under `{parent}`", name.value))
    } else {
        diagnostic
    }
}

/// A switch that is off anyway needs no remark.
fn is_default(key: &Key, node: &Node) -> bool {
    match &node.value {
        Value::Scalar(scalar) if key.kind == Kind::Bool || scalar.look == Look::Bool => {
            !matches!(key.state, State::Removed(_))
                && parse_bool(&scalar.text) == Some(key.default == "true")
        }
        Value::Scalar(scalar) => scalar.text.is_empty(),
        Value::List(list) => list.is_empty(),
        Value::Map(map) => map.entries.is_empty() && !matches!(key.kind, Kind::Any),
        Value::Null => true,
    }
}
