//! A span, from its begin to its end.

use std::borrow::Cow;
use std::time::Instant;

use http::{HeaderMap, Method, StatusCode};
use jiff::Timestamp;

use super::{Place, Tracer, on, proto};
use crate::crypto::random;
use crate::rpc::stubs::opentelemetry::proto::common::v1 as common;

/// Who does it for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It answers somebody else's request.
    Server,
    /// It asks somebody else.
    Client,
    /// It does something by itself.
    Internal,
}

/// Something that is done for a request. Sent when it is dropped; empty where nothing is traced.
#[derive(Debug, Default)]
pub struct Span {
    place: Option<Place>,
    open: Option<Box<Open>>,
}

#[derive(Debug)]
struct Open {
    tracer: &'static Tracer,
    started: Instant,
    span: proto::Span,
}

/// What an attribute says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    Text(&'a str),
    Number(i64),
    Flag(bool),
    Texts(&'a [String]),
}

impl Span {
    /// Answers a request that comes from outside.
    pub fn of_client(headers: &HeaderMap) -> Self {
        match on() {
            None => Self::default(),
            Some(tracer) => Self::admitted(tracer, headers),
        }
    }

    pub(super) fn admitted(tracer: &'static Tracer, headers: &HeaderMap) -> Self {
        let asked = Place::of(headers);
        let (place, parent) = tracer
            .sampler
            .admit(asked, random::bytes(), random::bytes());
        Self::open(tracer, place, parent, Kind::Server, "")
    }

    /// Part of what is done at `parent`.
    pub fn under(parent: Option<Place>, kind: Kind, name: &'static str) -> Self {
        match (parent, on()) {
            (Some(parent), Some(tracer)) => Self::part(tracer, parent, kind, name),
            _ => Self::default(),
        }
    }

    pub(super) fn part(
        tracer: &'static Tracer,
        parent: Place,
        kind: Kind,
        name: impl Into<Cow<'static, str>>,
    ) -> Self {
        if !parent.kept {
            // Others learn that the trace is not kept.
            return Self {
                place: Some(parent),
                open: None,
            };
        }
        let place = Place {
            span: random::bytes(),
            ..parent
        };
        Self::open(tracer, place, Some(parent.span), kind, name)
    }

    fn open(
        tracer: &'static Tracer,
        place: Place,
        parent: Option<[u8; 8]>,
        kind: Kind,
        name: impl Into<Cow<'static, str>>,
    ) -> Self {
        let open = place.kept.then(|| {
            Box::new(Open {
                tracer,
                started: Instant::now(),
                span: proto::Span {
                    trace_id: place.trace.to_vec(),
                    span_id: place.span.to_vec(),
                    parent_span_id: parent.map(Vec::from).unwrap_or_default(),
                    name: name.into().into_owned(),
                    kind: match kind {
                        Kind::Server => proto::span::SpanKind::Server.into(),
                        Kind::Client => proto::span::SpanKind::Client.into(),
                        Kind::Internal => proto::span::SpanKind::Internal.into(),
                    },
                    start_time_unix_nano: nanoseconds(Timestamp::now().as_nanosecond()),
                    flags: 1,
                    ..proto::Span::default()
                },
            })
        });
        Self {
            place: Some(place),
            open,
        }
    }

    /// For what is done as part of it.
    pub fn place(&self) -> Option<Place> {
        self.place
    }

    /// The same, where that will be kept.
    pub fn kept(&self) -> Option<Place> {
        self.place.and_then(Place::if_kept)
    }

    /// Whether anybody will see what is said about it.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Nobody is to see it.
    pub fn discard(&mut self) {
        self.open = None;
    }

    pub fn rename(&mut self, name: String) {
        if let Some(open) = &mut self.open {
            open.span.name = name;
        }
    }

    /// Says something about it. Texts are cut where they are too long.
    pub fn set(&mut self, key: &'static str, value: &Value<'_>) {
        let Some(open) = &mut self.open else { return };
        let text = |text: &str| any(common::any_value::Value::StringValue(open.tracer.cut(text)));
        let value = match value {
            Value::Text(one) => text(one),
            Value::Number(number) => any(common::any_value::Value::IntValue(*number)),
            Value::Flag(flag) => any(common::any_value::Value::BoolValue(*flag)),
            Value::Texts(several) => {
                let values = several.iter().map(|one| text(one)).collect();
                let array = common::ArrayValue { values };
                any(common::any_value::Value::ArrayValue(array))
            }
        };
        open.span.attributes.push(common::KeyValue {
            key: key.to_owned(),
            value: Some(value),
        });
    }

    /// The method of HTTP, `_OTHER` if it is none that everybody knows. Returns what it is called.
    pub fn method(&mut self, method: &Method) -> &'static str {
        let name = known(method);
        self.set("http.request.method", &Value::Text(name));
        name
    }

    /// The answer of HTTP. To a server, what a client did wrong is no failure of its own.
    pub fn status(&mut self, status: StatusCode) {
        let number = i64::from(status.as_u16());
        self.set("http.response.status_code", &Value::Number(number));
        if status.is_server_error() {
            self.failed();
        } else if let Some(open) = &mut self.open {
            open.span.status = None;
        }
    }

    /// It did not do what it is for, unless `status` says otherwise later.
    pub fn failed(&mut self) {
        if let Some(open) = &mut self.open {
            open.span.status = Some(proto::Status {
                code: proto::status::StatusCode::Error.into(),
                ..proto::Status::default()
            });
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else { return };
        let Open {
            tracer,
            started,
            mut span,
        } = *open;
        let took = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        span.end_time_unix_nano = span.start_time_unix_nano.saturating_add(took);
        tracer.ended(span);
    }
}

impl Tracer {
    fn ended(&self, span: proto::Span) {
        if self.queue.try_send(span).is_err() {
            self.overflowed.inc();
        }
    }

    fn cut(&self, text: &str) -> String {
        let mut ends = (0..=self.longest_value.min(text.len())).rev();
        let end = ends.find(|end| text.is_char_boundary(*end));
        text.get(..end.unwrap_or(0)).unwrap_or_default().to_owned()
    }
}

pub(super) fn any(value: common::any_value::Value) -> common::AnyValue {
    common::AnyValue { value: Some(value) }
}

fn nanoseconds(time: i128) -> u64 {
    u64::try_from(time).unwrap_or_default()
}

fn known(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ];
    let found = KNOWN.into_iter().find(|known| method.as_str() == *known);
    found.unwrap_or("_OTHER")
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use tokio::sync::mpsc;

    use super::super::TRACEPARENT;
    use super::super::place::Sampler;
    use super::*;

    /// One for a test, which lasts as long as the process.
    fn tracer(room: usize) -> (&'static Tracer, mpsc::Receiver<proto::Span>) {
        let (queue, ended) = mpsc::channel(room);
        let tracer = Tracer {
            sampler: Sampler {
                ratio: 1.0,
                key: [0; 32],
            },
            queue,
            overflowed: Counter::default(),
            longest_value: 5,
        };
        (Box::leak(Box::new(tracer)), ended)
    }

    #[test]
    fn where_nothing_is_traced_spans_are_empty() {
        let mut span = Span::of_client(&HeaderMap::new());
        assert_eq!(span.place(), None);
        span.set("key", &Value::Text("value"));
        assert!(!Span::under(span.place(), Kind::Client, "part").is_open());
    }

    #[test]
    fn parts_hang_below_what_they_are_part_of() {
        let (tracer, mut ended) = tracer(8);
        let mut headers = HeaderMap::new();
        let sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        headers.insert(TRACEPARENT, sent.parse().unwrap());
        let mut whole = Span::admitted(tracer, &headers);
        whole.rename("whole".to_owned());
        let mut part = Span::part(tracer, whole.place().unwrap(), Kind::Client, "part");
        part.set("long", &Value::Text("1234é"));
        part.failed();
        drop(part);
        drop(whole);
        let (part, whole) = (ended.try_recv().unwrap(), ended.try_recv().unwrap());
        assert_eq!(hex::encode(&whole.parent_span_id), "00f067aa0ba902b7");
        assert_eq!(
            hex::encode(&part.trace_id),
            "4bf92f3577b34da6a3ce929d0e0e4736"
        );
        assert_eq!(part.parent_span_id, whole.span_id);
        assert!(part.start_time_unix_nano >= whole.start_time_unix_nano);
        let cut = any(common::any_value::Value::StringValue("1234".to_owned()));
        assert_eq!(part.attributes[0].value, Some(cut));
        assert_eq!(part.status.unwrap().code, 2);
        // Two of them say nothing: nobody should have to guess which one counts.
        headers.append(TRACEPARENT, sent.parse().unwrap());
        let fresh = Span::admitted(tracer, &headers).place().unwrap();
        assert_ne!(fresh.trace.to_vec(), whole.trace_id);
    }

    #[test]
    fn what_is_not_kept_says_so_and_costs_nothing() {
        let (tracer, mut ended) = tracer(1);
        let place = Place {
            trace: [1; 16],
            span: [2; 8],
            kept: false,
        };
        let part = Span::part(tracer, place, Kind::Client, "part");
        assert_eq!((part.place(), part.kept()), (Some(place), None));
        drop(part);
        assert!(ended.try_recv().is_err());
    }

    #[test]
    fn a_full_queue_loses_spans_and_counts_them() {
        let (tracer, _ended) = tracer(1);
        for _ in 0..3 {
            drop(Span::admitted(tracer, &HeaderMap::new()));
        }
        assert_eq!(tracer.overflowed.get(), 2);
    }
}
