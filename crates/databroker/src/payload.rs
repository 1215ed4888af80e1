//! Looking into payloads by name. Only filters, free text, field masks and indices do; everywhere else a payload is
//! bytes that pass through as they came.

use std::{borrow::Cow, net::IpAddr, sync::LazyLock};

use ipnet::IpNet;
use postern_common::rpc::stubs::FILE_DESCRIPTOR_SET;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage as _, Value,
};
use prost_types::Any;

/// Every message of `/proto`. Empty if the descriptors were damaged, which a test rules out.
static KNOWN: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap_or_default());

const STRUCT: &str = "google.protobuf.Struct";
/// In seconds, by protobuf's own definition: about 10,000 years.
const LONGEST_DURATION: u64 = 315_576_000_000;

/// A payload whose type is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Payload(pub(crate) DynamicMessage);

impl Payload {
    /// `None`: the type is unknown, or the bytes are no such message.
    pub fn read(data: &Any) -> Option<Self> {
        let descriptor = KNOWN.get_message_by_name(name_of(data))?;
        DynamicMessage::decode(descriptor, data.value.as_slice())
            .ok()
            .map(Self)
    }

    /// The text of the field at a dotted path, as JSON would show it. Names may be written `as_here` or `asHere`;
    /// the path goes through messages and maps, and ends at something that has a text. Unset means no text.
    pub fn text_at(&self, path: &str) -> Option<String> {
        if self.0.descriptor().full_name() == STRUCT {
            // A key may itself contain a dot, so the whole path is tried first.
            let fields = self.0.get_field_by_name("fields")?;
            return text_in_struct(&fields, path);
        }
        let mut value = Cow::Owned(Value::Message(self.0.clone()));
        let mut kind = None;
        for name in path.split('.') {
            let (next, next_kind) = step(&value, name)?;
            value = Cow::Owned(next);
            kind = next_kind.or(kind);
        }
        text_of(&value, kind.as_ref())
    }

    /// Whether any text anywhere inside contains `needle`, which is in lower case.
    pub fn contains_text(&self, needle: &str) -> bool {
        message_contains(&self.0, needle)
    }

    /// Whether [`Self::network`] may find one; without looking into it.
    pub fn may_have_network(data: &Any) -> bool {
        name_of(data) == STRUCT
    }

    /// The network in `$index.cidr` of a payload that is a `Struct`.
    pub fn network(&self) -> Option<IpNet> {
        if self.0.descriptor().full_name() != STRUCT {
            return None;
        }
        let fields = self.0.get_field_by_name("fields")?;
        parse_network(&text_in_struct(&fields, "$index.cidr")?)
    }
}

fn name_of(data: &Any) -> &str {
    let url = data.type_url.as_str();
    url.rsplit_once('/').map_or(url, |(_, name)| name)
}

/// An address counts as the network that holds only it, and IPv4 written as IPv6 as IPv4.
pub fn parse_network(text: &str) -> Option<IpNet> {
    let network = text
        .parse::<IpNet>()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))?;
    let mapped = match network {
        IpNet::V6(v6) => v6
            .addr()
            .to_ipv4_mapped()
            .zip(v6.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    match mapped {
        Some((address, prefix)) => IpNet::new(IpAddr::V4(address), prefix).ok(),
        None => Some(network),
    }
}

/// One name further: into a message's field or a map's entry. The kind tells an enum from a number.
fn step(value: &Value, name: &str) -> Option<(Value, Option<Kind>)> {
    match value {
        Value::Message(message) => {
            let field = field_named(message, name)?;
            let kind = field.kind();
            message
                .has_field(&field)
                .then(|| (message.get_field(&field).into_owned(), Some(kind)))
        }
        Value::Map(map) => Some((map.get(&MapKey::String(name.to_owned()))?.clone(), None)),
        _ => None,
    }
}

pub(crate) fn field_named(message: &DynamicMessage, name: &str) -> Option<FieldDescriptor> {
    let descriptor = message.descriptor();
    descriptor
        .get_field_by_name(name)
        .or_else(|| descriptor.get_field_by_json_name(name))
}

/// Looks up `path` in the map of a `Struct`: the longest run of segments that is a key comes first.
fn text_in_struct(fields: &Value, path: &str) -> Option<String> {
    let Value::Map(map) = fields else { return None };
    if let Some(value) = map.get(&MapKey::String(path.to_owned())) {
        return text_of(value, None);
    }
    let mut splits: Vec<_> = path.match_indices('.').map(|(at, _)| at).collect();
    splits.reverse();
    splits.into_iter().find_map(|at| {
        let (key, rest) = path.split_at_checked(at)?;
        let inner = map.get(&MapKey::String(key.to_owned()))?.as_message()?;
        let inner = inner.get_field_by_name("struct_value")?;
        let inner = inner.as_message()?.get_field_by_name("fields")?;
        text_in_struct(&inner, rest.strip_prefix('.')?)
    })
}

fn text_of(value: &Value, kind: Option<&Kind>) -> Option<String> {
    Some(match value {
        Value::Bool(it) => it.to_string(),
        Value::I32(it) => it.to_string(),
        Value::I64(it) => it.to_string(),
        Value::U32(it) => it.to_string(),
        Value::U64(it) => it.to_string(),
        Value::F32(it) => it.to_string(),
        Value::F64(it) => it.to_string(),
        Value::String(it) => it.clone(),
        Value::EnumNumber(number) => kind
            .and_then(Kind::as_enum)
            .and_then(|it| it.get_value(*number))
            .map_or_else(|| number.to_string(), |it| it.name().to_owned()),
        Value::Message(message) => return text_of_message(message),
        Value::Bytes(_) | Value::List(_) | Value::Map(_) => return None,
    })
}

/// The well-known types that JSON shows as one text.
fn text_of_message(message: &DynamicMessage) -> Option<String> {
    match message.descriptor().full_name() {
        "google.protobuf.Value" => message
            .fields()
            .find_map(|(field, value)| match field.name() {
                "string_value" | "number_value" | "bool_value" => text_of(value, None),
                _ => None,
            }),
        "google.protobuf.Timestamp" => Some(
            message
                .transcode_to::<prost_types::Timestamp>()
                .ok()?
                .to_string(),
        ),
        "google.protobuf.Duration" => message
            .transcode_to::<prost_types::Duration>()
            .ok()
            // What is no duration to protobuf overflows when it is printed.
            .filter(|duration| duration.seconds.unsigned_abs() <= LONGEST_DURATION)
            .map(|duration| duration.to_string()),
        _ => None,
    }
}

fn message_contains(message: &DynamicMessage, needle: &str) -> bool {
    message
        .fields()
        .any(|(_, value)| value_contains(value, needle))
}

fn value_contains(value: &Value, needle: &str) -> bool {
    match value {
        Value::String(text) => text.to_lowercase().contains(needle),
        Value::Message(message) => message_contains(message, needle),
        Value::List(values) => values.iter().any(|value| value_contains(value, needle)),
        Value::Map(map) => map.values().any(|value| value_contains(value, needle)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use postern_common::rpc::stubs::session::{Session, SessionBindingRequest};
    use prost_types::{ListValue, Struct, Timestamp, value::Kind as JsonKind};

    use super::*;

    fn any(type_url: &str, message: &impl prost::Message) -> Any {
        Any {
            type_url: type_url.to_owned(),
            value: message.encode_to_vec(),
        }
    }

    fn text(text: &str) -> prost_types::Value {
        prost_types::Value {
            kind: Some(JsonKind::StringValue(text.to_owned())),
        }
    }

    fn session() -> Payload {
        let session = Session {
            id: "s1".to_owned(),
            user_id: "ann".to_owned(),
            issued_at: Some(Timestamp {
                seconds: 0,
                nanos: 0,
            }),
            claims: HashMap::from([(
                "groups".to_owned(),
                ListValue {
                    values: vec![text("Engineering")],
                },
            )]),
            ..Session::default()
        };
        Payload::read(&any("type.googleapis.com/session.Session", &session)).unwrap()
    }

    #[test]
    fn the_descriptors_are_read() {
        assert!(KNOWN.get_message_by_name("session.Session").is_some());
        assert!(KNOWN.get_message_by_name(STRUCT).is_some());
    }

    #[test]
    fn fields_are_found_by_either_form_of_their_name() {
        let session = session();
        assert_eq!(session.text_at("user_id").as_deref(), Some("ann"));
        assert_eq!(session.text_at("userId").as_deref(), Some("ann"));
        assert_eq!(
            session.text_at("issued_at").as_deref(),
            Some("1970-01-01T00:00:00Z")
        );
        for absent in ["idp_id", "user", "user_id.x", "claims", "claims.groups", ""] {
            assert_eq!(session.text_at(absent), None, "{absent}");
        }
    }

    #[test]
    fn times_and_durations_may_be_anything() {
        use postern_common::rpc::stubs::databroker::Options;
        let of = |seconds, nanos| {
            let options = Options {
                ttl: Some(prost_types::Duration { seconds, nanos }),
                ..Options::default()
            };
            let payload = Payload::read(&any("x/databroker.Options", &options)).unwrap();
            payload.text_at("ttl")
        };
        assert_eq!(of(90, 0).as_deref(), Some("90s"));
        assert_eq!(of(i64::MIN, i32::MIN), None);
        assert_eq!(of(i64::MIN + 1, -1_000_000_000), None);
        assert_eq!(of(i64::MAX, i32::MAX), None);
        for (seconds, nanos) in [(i64::MIN, i32::MIN), (i64::MAX, i32::MAX)] {
            let session = Session {
                issued_at: Some(prost_types::Timestamp { seconds, nanos }),
                ..Session::default()
            };
            let payload = Payload::read(&any("x/session.Session", &session)).unwrap();
            assert!(payload.text_at("issued_at").is_some());
        }
    }

    #[test]
    fn an_enum_is_found_by_its_name() {
        let request = SessionBindingRequest {
            state: 1,
            ..SessionBindingRequest::default()
        };
        let payload = Payload::read(&any("x/session.SessionBindingRequest", &request)).unwrap();
        assert_eq!(payload.text_at("state").as_deref(), Some("Accepted"));
    }

    #[test]
    fn a_struct_is_looked_up_by_its_own_keys() {
        let inner = Struct {
            fields: BTreeMap::from([("cidr".to_owned(), text("10.0.0.0/8"))]),
        };
        let outer = Struct {
            fields: BTreeMap::from([
                (
                    "$index".to_owned(),
                    prost_types::Value {
                        kind: Some(JsonKind::StructValue(inner)),
                    },
                ),
                ("a.b".to_owned(), text("dotted")),
                (
                    "n".to_owned(),
                    prost_types::Value {
                        kind: Some(JsonKind::NumberValue(5.0)),
                    },
                ),
            ]),
        };
        let payload =
            Payload::read(&any("type.googleapis.com/google.protobuf.Struct", &outer)).unwrap();
        assert_eq!(payload.network(), Some("10.0.0.0/8".parse().unwrap()));
        assert_eq!(payload.text_at("a.b").as_deref(), Some("dotted"));
        assert_eq!(
            payload.text_at("$index.cidr").as_deref(),
            Some("10.0.0.0/8")
        );
        assert_eq!(payload.text_at("n").as_deref(), Some("5"));
    }

    #[test]
    fn free_text_looks_everywhere_in_any_case() {
        let session = session();
        assert!(session.contains_text("ngineer"));
        assert!(session.contains_text("ann"));
        assert!(!session.contains_text("bob"));
        // Keys of a map are no text of the record.
        assert!(!session.contains_text("groups"));
    }

    #[test]
    fn an_unknown_type_is_not_looked_into() {
        assert_eq!(
            Payload::read(&Any {
                type_url: "type.googleapis.com/unknown.Thing".to_owned(),
                value: vec![]
            }),
            None
        );
    }
}
